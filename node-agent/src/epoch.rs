//! The highest epoch seen, on disk before it counts: an older sender is refused, also after a restart.
//!
//! Stored: one epoch as `generation.revision`. Not stored: attempts, results, models; a node computes and forgets.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ingle_proto::{Epoch, ErrorCode, Problem};

use crate::error::StartError;

const EPOCH_FILE: &str = "epoch";

/// The highest epoch seen, on disk before it counts.
#[derive(Debug)]
pub struct EpochGuard {
    path: PathBuf,
    highest: Mutex<Epoch>,
}

impl EpochGuard {
    /// Reads what an earlier process saw.
    ///
    /// # Errors
    /// [`StartError`] if the file is there and isn't an epoch.
    pub fn open(state_dir: &Path) -> Result<Self, StartError> {
        let path = state_dir.join(EPOCH_FILE);
        let fail = |reason: String| StartError::Directory { what: "state_dir", path: path.clone(), reason };
        let highest = match std::fs::read_to_string(&path) {
            Ok(text) => {
                parse(text.trim()).ok_or_else(|| fail(format!("expected `generation.revision`, got {text:?}")))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Epoch::default(),
            Err(error) => return Err(fail(error.to_string())),
        };
        Ok(Self { path, highest: Mutex::new(highest) })
    }

    /// Takes a sender's epoch: a newer one is written and synced before this returns.
    ///
    /// # Errors
    /// `EPOCH_STALE` for an older sender; `INTERNAL` if the epoch can't be written.
    pub fn admit(&self, epoch: Epoch) -> Result<(), Problem> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < *highest {
            return Err(Problem::new(
                ErrorCode::EpochStale,
                format!("epoch {epoch} is older than {}: another coordinator leads since then", *highest),
            ));
        }
        if epoch > *highest {
            write_synced(&self.path, epoch.to_string().as_bytes()).map_err(|error| {
                Problem::new(ErrorCode::Internal, format!("epoch can't be kept at {}: {error}", self.path.display()))
            })?;
            *highest = epoch;
        }
        Ok(())
    }

    /// Checks without taking: beats come too often to wait for a disk.
    ///
    /// # Errors
    /// `EPOCH_STALE` for an older sender.
    pub fn check(&self, epoch: Epoch) -> Result<(), Problem> {
        let highest = *self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < highest {
            return Err(Problem::new(ErrorCode::EpochStale, format!("epoch {epoch} is older than {highest}")));
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<Epoch> {
    let (generation, revision) = text.split_once('.')?;
    Some(Epoch { generation: generation.parse().ok()?, revision: revision.parse().ok()? })
}

/// Writes a small file in one step: whole and on disk, or not there.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let mut file = File::create(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&staged, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_rise_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let epoch = |generation, revision| Epoch { generation, revision };
        let guard = EpochGuard::open(dir.path()).unwrap();
        guard.admit(epoch(1, 5)).unwrap();
        guard.admit(epoch(1, 5)).unwrap();
        assert_eq!(guard.admit(epoch(1, 4)).unwrap_err().code, ErrorCode::EpochStale);
        guard.admit(epoch(2, 1)).unwrap();
        let guard = EpochGuard::open(dir.path()).unwrap();
        assert_eq!(guard.check(epoch(1, 9)).unwrap_err().code, ErrorCode::EpochStale);
        guard.check(epoch(2, 1)).unwrap();
        std::fs::write(dir.path().join(EPOCH_FILE), "nonsense").unwrap();
        assert!(EpochGuard::open(dir.path()).is_err());
    }
}
