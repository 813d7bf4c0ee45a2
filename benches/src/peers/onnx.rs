//! ONNX Runtime through `benches/peers/onnx_embed.py`.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::json;

use super::python::{Program, environment};

/// A running peer.
pub(crate) struct Onnx {
    program: Program,
    /// Name and version, as the program says.
    pub(crate) name: String,
}

impl Onnx {
    /// Makes its environment at first, then starts it on the same model files and texts as ours.
    ///
    /// # Errors
    /// Says what is missing.
    pub(crate) fn start(root: &Path, model: &Path, texts: &[String], threads: usize) -> anyhow::Result<Self> {
        let python = environment(root, "bench-venv", "requirements.txt", &[])?;
        let mut command = Command::new(python);
        command.arg(root.join("benches/peers/onnx_embed.py")).arg("--model").arg(model);
        let mut program = Program::start(command.args(["--threads", &threads.to_string()]))?;
        let answer = program.call(&json!({ "texts": texts }))?;
        let name = answer["name"].as_str().context("the peer says who it is")?.to_owned();
        Ok(Self { program, name })
    }

    /// Embeds all texts in batches of `batch`, sorted by length; the seconds it took.
    pub(crate) fn embed(&mut self, batch: u32) -> anyhow::Result<f64> {
        let answer = self.program.call(&json!({ "batch": batch }))?;
        answer["seconds"].as_f64().context("the peer's answer has no seconds")
    }

    /// Its vectors of the first `count` texts.
    pub(crate) fn vectors(&mut self, count: usize) -> anyhow::Result<Vec<Vec<f32>>> {
        let answer = self.program.call(&json!({ "vectors": count }))?;
        Ok(serde_json::from_value(answer["vectors"].clone())?)
    }
}
