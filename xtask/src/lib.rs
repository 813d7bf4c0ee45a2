//! The house's own chores: tidy checks and the one script behind `make test`.

pub mod chores;
pub mod deb;
pub mod tidy;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The folder that holds the workspace's manifest.
///
/// # Errors
/// If this crate was moved out of it.
pub fn workspace_root() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("xtask/ has no parent folder: expected the workspace's root")
}

/// A line for the person at the terminal. A closed pipe is no reason to stop a test run.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
