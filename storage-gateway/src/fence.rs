//! The fence: the highest epoch seen, on disk before anyone acts under it; older senders are refused.
//!
//! What is stored: two numbers in `STATE_DIR/epoch`. What isn't: who sent them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ingle_proto::{Epoch, ErrorCode, Problem};
use tokio::sync::Mutex;

/// Keeps the highest epoch.
pub struct Fence {
    file: PathBuf,
    highest: Mutex<Epoch>,
}

impl Fence {
    /// Reads what was kept in `state_dir`, which must exist.
    ///
    /// # Errors
    /// The file can't be read, or holds something else.
    pub fn open(state_dir: &Path) -> std::io::Result<Self> {
        let file = state_dir.join("epoch");
        let highest = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).ok_or_else(|| {
                std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!(
                        "{}: expected two numbers, the highest epoch seen; write the coordinator's epoch there",
                        file.display()
                    ),
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Epoch::default(),
            Err(error) => return Err(std::io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
        };
        Ok(Self { file, highest: Mutex::new(highest) })
    }

    /// Lets a sender of this epoch act, and remembers it first if it is the highest yet.
    ///
    /// # Errors
    /// `EPOCH_STALE` for an older one; `INTERNAL` if the epoch can't be kept.
    pub async fn admit(&self, epoch: Epoch) -> Result<(), Problem> {
        let mut highest = self.highest.lock().await;
        if epoch < *highest {
            return Err(Problem::new(
                ErrorCode::EpochStale,
                format!("epoch {epoch} is older than {highest}, which has been seen: another coordinator leads"),
            ));
        }
        if epoch > *highest {
            let file = self.file.clone();
            tokio::task::spawn_blocking(move || keep(&file, epoch))
                .await
                .map_err(|ended| Problem::new(ErrorCode::Internal, format!("keeping the epoch: {ended}")))?
                .map_err(|error| {
                    Problem::new(ErrorCode::Internal, format!("{}: can't be kept: {error}", self.file.display()))
                })?;
            *highest = epoch;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<Epoch> {
    let (generation, revision) = text.trim().split_once(' ')?;
    Some(Epoch { generation: generation.parse().ok()?, revision: revision.parse().ok()? })
}

fn keep(file: &Path, epoch: Epoch) -> std::io::Result<()> {
    replace_file(file, format!("{} {}\n", epoch.generation, epoch.revision).as_bytes())
}

/// Replaces a small local file, durably: it holds the old bytes or the new ones, whenever the power fails.
///
/// # Errors
/// What the system said.
pub fn replace_file(file: &Path, data: &[u8]) -> std::io::Result<()> {
    let temporary = file.with_extension("tmp");
    let mut out = std::fs::File::create(&temporary)?;
    out.write_all(data)?;
    out.sync_all()?;
    std::fs::rename(&temporary, file)?;
    if let Some(parent) = file.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_older_sender_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let epoch = |generation, revision| Epoch { generation, revision };
        let fence = Fence::open(dir.path()).unwrap();
        fence.admit(epoch(1, 5)).await.unwrap();
        fence.admit(epoch(1, 5)).await.unwrap();
        assert_eq!(fence.admit(epoch(1, 4)).await.unwrap_err().code, ErrorCode::EpochStale);
        fence.admit(epoch(2, 1)).await.unwrap();
        let again = Fence::open(dir.path()).unwrap();
        assert_eq!(again.admit(epoch(1, 99)).await.unwrap_err().code, ErrorCode::EpochStale);
        again.admit(epoch(2, 1)).await.unwrap();
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("epoch"), "soon").unwrap();
        let error = Fence::open(dir.path()).err().expect("not an epoch");
        assert!(error.to_string().contains("epoch"), "{error}");
    }
}
