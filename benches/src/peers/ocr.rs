//! rapidocr and Tesseract through `benches/peers/ocr.py`, and the pages that everyone reads.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::json;

use super::python::{Program, environment};

/// The seed of the pages.
const SEED: u32 = 1;

/// Running peers.
pub(crate) struct Readers(Program);

/// What one round over all pages took.
pub(crate) struct Round {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// Peak of resident memory of the process that reads.
    pub(crate) bytes: f64,
}

/// The environment with rapidocr, whose own requirements ask for a build of OpenCV that needs a display.
fn python(root: &Path) -> anyhow::Result<PathBuf> {
    environment(root, "bench-ocr-venv", "requirements-ocr.txt", &["rapidocr-onnxruntime==1.4.4"])
}

/// Pages of every kind, made once.
pub(crate) fn pages(root: &Path, per_kind: u32) -> anyhow::Result<Vec<PathBuf>> {
    let folder = root.join(format!(".cache/bench-ocr/seed-{SEED}-{per_kind}"));
    if !folder.is_dir() {
        let new = folder.with_extension("new");
        let mut command = Command::new(python(root)?);
        command.arg(root.join("benches/ocr/pages.py")).args([
            "--seed",
            &SEED.to_string(),
            "--pages",
            &per_kind.to_string(),
        ]);
        command.args(["--kinds", "clean,degraded,receipt,columns,invoice"]).arg("--out").arg(&new);
        let status = command.status().context("making pages")?;
        anyhow::ensure!(status.success(), "benches/ocr/pages.py made no pages: does it name fonts that are missing?");
        std::fs::rename(&new, &folder)?;
    }
    let files = std::fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut pages: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ending| ending == "png")).collect();
    pages.sort();
    anyhow::ensure!(!pages.is_empty(), "{} holds no pages", folder.display());
    Ok(pages)
}

impl Readers {
    /// Starts them on the pages.
    ///
    /// # Errors
    /// Says what is missing.
    pub(crate) fn start(root: &Path, pages: &[PathBuf], threads: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(python(root)?);
        command.arg(root.join("benches/peers/ocr.py")).args(["--threads", &threads.to_string()]).args(pages);
        Program::start(&mut command).map(Self)
    }

    /// One round of an engine.
    ///
    /// # Errors
    /// Why the engine can't be run.
    pub(crate) fn read(&mut self, engine: &str) -> anyhow::Result<Round> {
        let answer = self.0.call(&json!({ "engine": engine }))?;
        let name = answer["name"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(!name.is_empty(), "{}", answer["why"].as_str().unwrap_or("it doesn't say why"));
        let number = |field: &str| answer[field].as_f64().with_context(|| format!("the peer's answer has no {field}"));
        Ok(Round { seconds: number("seconds")?, bytes: number("bytes")?, name })
    }
}
