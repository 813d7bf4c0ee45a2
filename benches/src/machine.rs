//! What a number was measured on: processor, cores, instruction sets, memory, kernel, and how busy it was.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// Instruction sets that decide how fast a kernel can be.
const FLAGS: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
];

/// Notes of a machine.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    flags: Vec<String>,
    memory_bytes: u64,
    kernel: String,
    /// Load average over a minute when the run began; above 0.5 someone else was computing too.
    load: f64,
    profile: &'static str,
}

impl Machine {
    /// Reads them.
    pub(crate) fn read() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let all = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let has = |flag: &str| all.split_whitespace().any(|known| known == flag);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            flags: FLAGS.iter().filter(|flag| has(flag)).map(|flag| (*flag).to_owned()).collect(),
            memory_bytes: kib * 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
        }
    }

    /// In a paragraph.
    pub(crate) fn notes(&self) -> String {
        format!(
            "{}, {} cores, {:.1} GiB, kernel {}, {}. Load when the run began: {}. Built as {}.\n",
            self.cpu,
            self.cores,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.kernel,
            self.flags.join(" "),
            self.load,
            self.profile
        )
    }

    /// Whether numbers from here mean little.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.profile == "dev" {
            doubts.push("built as dev: figures are no measure of a release build".to_owned());
        }
        if self.load > 0.5 {
            doubts.push(format!("load was {} when the run began: something else was computing", self.load));
        }
        doubts
    }
}

/// The commit that is checked out, marked when files differ from it.
pub(crate) fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-c", "safe.directory=*"]).args(arguments).current_dir(root).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.trim().is_empty());
    format!("{}{}", hash.trim(), if changed { "-dirty" } else { "" })
}
