//! ONNX Runtime through `benches/peers/onnx_embed.py`, kept running and asked line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};

/// A running peer; ended when dropped.
pub(crate) struct Onnx {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Name and version, as the program says.
    pub(crate) name: String,
}

impl Onnx {
    /// Makes its environment below `.cache` at first, then starts it on the same model files and texts as ours.
    ///
    /// # Errors
    /// Says what is missing.
    pub(crate) fn start(root: &Path, model: &Path, texts: &[String], threads: usize) -> anyhow::Result<Self> {
        let python = environment(root)?;
        let mut child = Command::new(python)
            .arg(root.join("benches/peers/onnx_embed.py"))
            .arg("--model")
            .arg(model)
            .args(["--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting onnx_embed.py")?;
        let ask = child.stdin.take().context("a pipe was asked for")?;
        let answers = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        let mut peer = Self { child, ask, answers, name: String::new() };
        let answer = peer.call(&json!({ "texts": texts }))?;
        peer.name = answer["name"].as_str().context("the peer says who it is")?.to_owned();
        Ok(peer)
    }

    /// Embeds all texts in batches of `batch`, sorted by length; the seconds it took.
    pub(crate) fn embed(&mut self, batch: u32) -> anyhow::Result<f64> {
        let answer = self.call(&json!({ "batch": batch }))?;
        answer["seconds"].as_f64().context("the peer's answer has no seconds")
    }

    /// Its vectors of the first `count` texts.
    pub(crate) fn vectors(&mut self, count: usize) -> anyhow::Result<Vec<Vec<f32>>> {
        let answer = self.call(&json!({ "vectors": count }))?;
        Ok(serde_json::from_value(answer["vectors"].clone())?)
    }

    fn call(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.ask, "{request}").context("the peer has ended")?;
        self.ask.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the peer ended without an answer");
        serde_json::from_str(&line).with_context(|| format!("the peer's answer: {line}"))
    }
}

impl Drop for Onnx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A virtual environment with the packages that the peer needs, made once.
fn environment(root: &Path) -> anyhow::Result<std::path::PathBuf> {
    let wanted = root.join("benches/peers/requirements.txt");
    let folder = root.join(".cache/bench-venv");
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    let text = std::fs::read_to_string(&wanted).with_context(|| format!("reading {}", wanted.display()))?;
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == text) {
        return Ok(python);
    }
    crate::say("making an environment for ONNX Runtime");
    let run = |command: &mut Command| -> anyhow::Result<()> {
        let status = command.stdin(Stdio::null()).status().context("python3 is missing")?;
        anyhow::ensure!(status.success(), "the environment for ONNX Runtime can't be made");
        Ok(())
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&wanted))?;
    std::fs::write(stamp, text)?;
    Ok(python)
}
