//! What is started, with which settings: a TOML file and a command line for every process. Pure but for writing the files.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::child::Spec;
use super::layout::Layout;
use super::ports::{Pair, Ports};
use super::share::{MODELS, Share, Source};
use crate::exit::{Exit, Failure};

/// How long a daemon may take until it serves. A node measures the machine first.
const READY: Duration = Duration::from_secs(60);
/// How long one may take to end: a node finishes what it computes.
const END: Duration = Duration::from_secs(15);
const NODE_END: Duration = Duration::from_secs(45);

/// Processes in groups that start one after the other.
pub(crate) struct Plan {
    pub(crate) groups: Vec<Vec<Spec>>,
}

impl Plan {
    /// Writes the settings files and says what to start.
    pub(crate) fn make(layout: &Layout, ports: &Ports, shares: &[Share]) -> Result<Self, Failure> {
        let gateway = binary("ingle-gateway")?;
        let coordinator = binary("ingle-coordinator")?;
        let node = binary("ingle-node")?;
        let spec = |name: &str, program: &Path, arguments: Vec<OsString>, address: String, end_within| Spec {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            address,
            log: layout.logs().join(format!("{name}.log")),
            run: layout.run(),
            environment: Vec::new(),
            ready_within: READY,
            end_within,
            may_leave: false,
        };
        let mut nfs = Vec::new();
        for (share, port) in directories(shares).zip(&ports.nfs) {
            let arguments = nfs_arguments(&share.1, *port, share.0.read_only);
            nfs.push(spec(
                &format!("nfs-{}", share.0.name),
                &gateway,
                arguments,
                format!("nfs://{}/", local(*port)),
                END,
            ));
        }
        let with = |name: &str, table: &Table, pair: Pair| -> Result<Vec<OsString>, Failure> {
            let file = write(layout, name, table)?;
            // On the command line as well, which goes before the environment: a stray variable must not move a port.
            Ok(vec![
                "--config".into(),
                file.into(),
                "--listen".into(),
                local(pair.serve).to_string().into(),
                "--metrics".into(),
                local(pair.metrics).to_string().into(),
            ])
        };
        let grpc = |pair: Pair| format!("http://{}", local(pair.serve));
        let arguments = with("gateway", &gateway_settings(layout, ports, shares), ports.gateway)?;
        let gateways = vec![spec("gateway", &gateway, arguments, grpc(ports.gateway), END)];
        let arguments = with("coordinator", &coordinator_settings(layout, ports), ports.coordinator)?;
        let coordinators = vec![spec("coordinator", &coordinator, arguments, grpc(ports.coordinator), END)];
        let mut nodes = Vec::new();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let share = Slice { cores, memory: memory(), of: ports.nodes.len() };
        for (index, (pair, beat)) in ports.nodes.iter().enumerate() {
            let name = format!("node-{}", index + 1);
            let arguments = with(&name, &node_settings(layout, ports, &name, *beat, share), *pair)?;
            let mut node = spec(&name, &node, arguments, grpc(*pair), NODE_END);
            node.may_leave = true;
            // The engines' thread pools read no setting of ours: nodes that share a machine must not each take all of it.
            node.environment =
                ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"].map(|name| (name, share.threads().to_string())).into();
            nodes.push(node);
        }
        Ok(Self { groups: vec![nfs, gateways, coordinators, nodes] })
    }
}

/// A node's part of the machine.
#[derive(Debug, Clone, Copy)]
struct Slice {
    cores: usize,
    /// Bytes; 0 if not known.
    memory: u64,
    /// Nodes that share it.
    of: usize,
}

impl Slice {
    fn threads(self) -> usize {
        (self.cores / self.of.max(1)).max(1)
    }

    /// What a node must leave alone so that all of them together leave a tenth to the system. `None`: its own default.
    fn reserve(self) -> Option<u64> {
        if self.of <= 1 || self.memory == 0 {
            return None;
        }
        let usable = self.memory - (self.memory / 10).clamp(512 << 20, 4 << 30).min(self.memory);
        Some(self.memory - usable / self.of as u64)
    }
}

fn directories(shares: &[Share]) -> impl Iterator<Item = (&Share, PathBuf)> {
    shares.iter().filter_map(|share| match &share.source {
        Source::Directory(dir) => Some((share, dir.clone())),
        Source::Url(_) => None,
    })
}

fn nfs_arguments(dir: &Path, port: u16, read_only: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec!["serve-nfs".into(), dir.into(), "--listen".into(), local(port).to_string().into()];
    if read_only {
        arguments.push("--read-only".into());
    }
    arguments
}

/// Of our own server, which answers for NFS and MOUNT on one port.
fn nfs_url(port: u16) -> String {
    format!("nfs://{}/?mountport={port}&nfsport={port}", local(port))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn text(path: &Path) -> Value {
    // The data directory's name is UTF-8: it was checked when it was opened.
    Value::from(path.to_string_lossy().into_owned())
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn gateway_settings(layout: &Layout, ports: &Ports, shares: &[Share]) -> Table {
    let mut nfs = ports.nfs.iter();
    let exports: Table = shares
        .iter()
        .map(|share| {
            let url = match &share.source {
                Source::Directory(_) => nfs_url(nfs.next().copied().unwrap_or_default()),
                Source::Url(url) => url.clone(),
            };
            (share.name.clone(), Value::from(table([("url", url.into()), ("read_only", share.read_only.into())])))
        })
        .collect();
    let state = format!("file://{}", layout.state().display());
    table([
        ("state_dir", text(&layout.of("gateway"))),
        ("membership", format!("http://{}", local(ports.coordinator.serve)).into()),
        ("state_export", Value::from(table([("url", state.into())]))),
        ("exports", exports.into()),
    ])
}

fn coordinator_settings(layout: &Layout, ports: &Ports) -> Table {
    table([
        ("state_dir", text(&layout.of("coordinator"))),
        ("gateway", format!("http://{}", local(ports.gateway.serve)).into()),
    ])
}

fn node_settings(layout: &Layout, ports: &Ports, name: &str, beat: u16, share: Slice) -> Table {
    let dir = layout.of(name);
    let mut settings = table([
        ("name", name.into()),
        ("beat_listen", local(beat).to_string().into()),
        ("state_dir", text(&dir.join("state"))),
        ("cache_dir", text(&dir.join("cache"))),
        ("models", format!("nas://{MODELS}/").into()),
        ("gateway", format!("http://{}", local(ports.gateway.serve)).into()),
        ("coordinator", format!("http://{}", local(ports.coordinator.serve)).into()),
        ("threads", i64::try_from(share.threads()).unwrap_or(1).into()),
    ]);
    if let Some(reserve) = share.reserve() {
        settings.insert("memory_reserve_bytes".into(), i64::try_from(reserve).unwrap_or(i64::MAX).into());
    }
    settings
}

fn write(layout: &Layout, name: &str, settings: &Table) -> Result<PathBuf, Failure> {
    let path = layout.run().join(format!("{name}.toml"));
    let head = "# Written by `ingle up` at every start: changes here do not last.\n";
    let body = toml::to_string(settings)
        .map_err(|error| Failure::new(Exit::WorkFailed, format!("settings of {name}: {error}")))?;
    std::fs::write(&path, format!("{head}{body}"))
        .map_err(|error| Failure::new(Exit::WorkFailed, format!("{}: {error}", path.display())))?;
    Ok(path)
}

/// A daemon's binary: beside ours, or on the PATH.
pub(crate) fn binary(name: &str) -> Result<PathBuf, Failure> {
    let ours = std::env::current_exe().ok().and_then(|exe| Some(exe.canonicalize().ok()?.parent()?.to_owned()));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = ours.clone().into_iter().chain(std::env::split_paths(&on_path)).collect();
    places.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let beside = ours.map(|dir| format!(" beside this program in {}", dir.display())).unwrap_or_default();
        Failure::new(Exit::WorkFailed, format!("{name} is neither{beside} nor on the PATH"))
            .hint("`cargo build --release` builds all of them into target/release")
    })
}

/// Bytes of memory of the machine, or of our control group if that is less; 0 if not known.
fn memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024));
    match read("/sys/fs/cgroup/memory.max").trim().parse::<u64>() {
        Ok(limit) if limit < machine => limit,
        _ => machine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Vec<Share> {
        let share = |name: &str, source, read_only| Share { name: name.into(), source, read_only };
        vec![
            share("docs", Source::Directory("/srv/my docs".into()), false),
            share("nas", Source::Url("nfs://nas/volume1".into()), false),
            share(MODELS, Source::Directory("/srv/models".into()), true),
        ]
    }

    #[test]
    fn directories_are_read_over_nfs_and_urls_as_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::open(dir.path()).expect("free");
        let shares = shares();
        let ports = Ports::choose(0, 2, &shares).expect("free ports");
        let settings = gateway_settings(&layout, &ports, &shares);
        let url = |name: &str| settings["exports"][name]["url"].as_str().expect("text").to_owned();
        assert_eq!(url("docs"), nfs_url(ports.nfs[0]));
        assert_eq!(url("nas"), "nfs://nas/volume1");
        assert_eq!(url(MODELS), nfs_url(ports.nfs[1]));
        assert_eq!(settings["exports"][MODELS]["read_only"].as_bool(), Some(true));
        let arguments = nfs_arguments(Path::new("/srv/my docs"), 7750, true);
        assert_eq!(arguments, ["serve-nfs", "/srv/my docs", "--listen", "127.0.0.1:7750", "--read-only"]);
        // Names with spaces, quotes and the like survive the file.
        let path = write(&layout, "gateway", &settings).expect("room");
        let read: Table = std::fs::read_to_string(path).expect("written").parse().expect("TOML");
        assert_eq!(read, settings);
    }

    #[test]
    fn nodes_share_the_machine() {
        let gib = 1u64 << 30;
        let two = Slice { cores: 2, memory: 24 * gib, of: 2 };
        assert_eq!(two.threads(), 1);
        let budget = two.memory - two.reserve().expect("more than one");
        assert!(2 * budget <= 24 * gib * 9 / 10 + 1, "together they leave a tenth");
        assert_eq!(Slice { cores: 8, memory: 24 * gib, of: 1 }.reserve(), None);
        assert_eq!(Slice { cores: 1, memory: 0, of: 4 }.threads(), 1);
        let small = Slice { cores: 1, memory: 256 << 20, of: 2 };
        assert!(small.reserve().expect("more than one") <= small.memory, "never more than there is");
    }
}
