//! Python peers: an environment of their own, made once, and a program that is asked line by line in JSON.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// A running program; ended when dropped.
pub(crate) struct Program {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    /// Starts a command that answers each line with one line.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("starting {command:?}"))?;
        let ask = child.stdin.take().context("a pipe was asked for")?;
        let answers = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Self { child, ask, answers })
    }

    /// Asks and waits for the answer.
    pub(crate) fn call(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.ask, "{request}").context("the peer has ended")?;
        self.ask.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the peer ended without an answer");
        serde_json::from_str(&line).with_context(|| format!("the peer's answer: {line}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interpreter of a virtual environment below `.cache` with what `requirements` names, and `alone`: packages whose own list of
/// dependencies isn't followed. Made anew when either changes.
pub(crate) fn environment(root: &Path, name: &str, requirements: &str, alone: &[&str]) -> anyhow::Result<PathBuf> {
    let wanted = root.join("benches/peers").join(requirements);
    let folder = root.join(".cache").join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("made-of.txt");
    let text = std::fs::read_to_string(&wanted).with_context(|| format!("reading {}", wanted.display()))?;
    let text = format!("{text}{}\n", alone.join("\n"));
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == text) {
        return Ok(python);
    }
    crate::say(&format!("making an environment from {requirements}"));
    let run = |command: &mut Command| -> anyhow::Result<()> {
        let status = command.stdin(Stdio::null()).status().context("python3 is missing")?;
        anyhow::ensure!(status.success(), "the environment of {requirements} can't be made");
        Ok(())
    };
    let pip = ["-m", "pip", "install", "--quiet"];
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(pip).arg("--requirement").arg(&wanted))?;
    if !alone.is_empty() {
        run(Command::new(&python).args(pip).arg("--no-deps").args(alone))?;
    }
    std::fs::write(stamp, text)?;
    Ok(python)
}
