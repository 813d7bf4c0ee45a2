//! `ingle models pull`: models into a directory that the nodes read, each as a folder named after it.

mod fetch;
mod hub;
mod select;
mod starter;

use std::path::{Path, PathBuf};

use crate::commands::models::PullArgs;
use crate::exit::{Exit, Failure};
use crate::out::Out;
use crate::up::data_dir;

pub(crate) async fn run(out: Out, args: PullArgs) -> Result<(), Failure> {
    // Before anything is made: a bad name leaves no directory behind.
    let source = args.repository.as_deref().map(hub::Source::parse).transpose()?;
    let into = match args.into {
        Some(into) => into,
        None => data_dir(None)?.join("models"),
    };
    std::fs::create_dir_all(&into).map_err(|error| at(&into, &error))?;
    let into = std::path::absolute(&into).map_err(|error| at(&into, &error))?;
    let pulling = async {
        match source {
            Some(source) => hub::pull(out, source, args.files, into).await,
            None => starter::pull(out, &into).await,
        }
    };
    tokio::select! {
        pulled = pulling => pulled,
        _ = tokio::signal::ctrl_c() => {
            Err(Failure::new(Exit::Interrupted, "stopped").hint("the same command goes on where it was"))
        }
    }
}

/// What a file system said, with the path.
fn at(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::WorkFailed, format!("{}: {error}", path.display()))
}

/// Refuses before the disk is full.
fn check_room(into: &Path, needed: u64) -> Result<(), Failure> {
    let Ok(disk) = rustix::fs::statvfs(into) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        return Err(Failure::new(
            Exit::WorkFailed,
            format!(
                "{} has {} free and {} are needed",
                into.display(),
                crate::human::bytes(free),
                crate::human::bytes(needed)
            ),
        )
        .hint("free some space, or name another directory with --into"));
    }
    Ok(())
}

/// A directory that is taken away again unless it was put in its place.
struct Staged(Option<PathBuf>);

impl Staged {
    fn make(path: PathBuf) -> Result<Self, Failure> {
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|error| at(&path, &error))?;
        }
        std::fs::create_dir(&path).map_err(|error| at(&path, &error))?;
        Ok(Self(Some(path)))
    }

    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn put(mut self, place: &Path) -> Result<(), Failure> {
        if let Some(path) = self.0.take() {
            std::fs::rename(&path, place).map_err(|error| at(place, &error))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nothing hangs on it: the next pull takes it away too.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
