//! llama.cpp through its own `llama-bench`, one short run per sample.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// llama.cpp's bench program and the model it reads.
pub(crate) struct LlamaCpp {
    program: PathBuf,
    model: PathBuf,
    threads: usize,
    /// Name and build, as the program says.
    pub(crate) name: String,
}

impl LlamaCpp {
    /// Finds the program: `given` is it, or the folder that holds it.
    ///
    /// # Errors
    /// Says what is missing and how to provide it.
    pub(crate) fn find(given: Option<&Path>, model: PathBuf, threads: usize) -> anyhow::Result<Self> {
        let given = given.context("set LLAMA_CPP_BIN to llama-bench; benches/peers/llama_cpp.sh builds one")?;
        let program = if given.is_dir() { given.join("llama-bench") } else { given.to_path_buf() };
        anyhow::ensure!(program.is_file(), "LLAMA_CPP_BIN: {} isn't there", program.display());
        let mut peer = Self { program, model, threads, name: String::new() };
        let rows = peer.run(8, 0)?;
        let build = rows["build_commit"].as_str().unwrap_or("unknown build").to_owned();
        peer.name = format!("llama.cpp {build}");
        Ok(peer)
    }

    /// Tokens per second while reading a prompt of `tokens`.
    pub(crate) fn prefill(&self, tokens: u32) -> anyhow::Result<f64> {
        rate(&self.run(tokens, 0)?)
    }

    /// Tokens per second while producing `tokens` from an empty context.
    pub(crate) fn decode(&self, tokens: u32) -> anyhow::Result<f64> {
        rate(&self.run(0, tokens)?)
    }

    fn run(&self, prompt: u32, generate: u32) -> anyhow::Result<Value> {
        let output = Command::new(&self.program)
            .arg("--model")
            .arg(&self.model)
            .args(["--n-prompt", &prompt.to_string(), "--n-gen", &generate.to_string()])
            .args(["--threads", &self.threads.to_string(), "--repetitions", "1", "--output", "json"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", self.program.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "{}: {}",
            self.program.display(),
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("no words")
        );
        let rows: Value = serde_json::from_slice(&output.stdout).context("llama-bench's JSON")?;
        Ok(rows[0].clone())
    }
}

fn rate(row: &Value) -> anyhow::Result<f64> {
    row["avg_ts"].as_f64().filter(|rate| *rate > 0.0).context("llama-bench's JSON has no rate `avg_ts`")
}
