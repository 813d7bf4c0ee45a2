//! The job store: one seam, so that what was promised survives the process.
//!
//! Stored: the records of `core::record` (jobs, segments, batches, high-water marks), those of ended jobs apart as an
//! archive, the epoch of whoever may write, and the revision (a count of commits).
//! Not stored: documents, prompts of interactive calls, results, weights, inline payloads (blobs in the state export), and
//! what nodes report again by themselves.

pub mod conformance;
pub mod etcd;
pub mod faulty;
pub mod memory;
pub mod migrate;
pub mod sqlite;

use async_trait::async_trait;
use ingle_proto::Epoch;

use crate::core::record::Change;
use crate::limits;

pub use etcd::EtcdStore;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Bytes of keys and values in one commit.
pub const COMMIT_BYTES_MAX: usize = 1 << 20;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;

/// What the archive keeps of jobs that ended; the oldest go as a whole where it has grown beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveBounds {
    /// Records.
    pub records: u64,
    /// Bytes of keys and values; in etcd old jobs leave once it is half full instead.
    pub bytes: u64,
}

impl Default for ArchiveBounds {
    /// Some hundred thousand batches, and as many bytes as are read at a start without being noticed.
    fn default() -> Self {
        Self { records: 400_000, bytes: 512 << 20 }
    }
}

/// Whether a store has room for more jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// It has.
    Enough,
    /// For what is accepted already, but not for more: why, and what to do.
    Little(String),
}

/// Records with their keys, in the order of keys.
pub type Records = Vec<(String, Vec<u8>)>;

/// What a store holds, or what was written to it lately.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Commits so far.
    pub revision: u64,
    /// The highest epoch that has written.
    pub epoch: Epoch,
    /// Live records.
    pub records: Records,
}

/// Why the store didn't do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A newer leader has written: nothing of an older one is taken any more.
    #[error(
        "the job store belongs to epoch {stored} and refuses epoch {ours}: another coordinator leads; this one must end"
    )]
    Fenced {
        /// Of the writer that was refused.
        ours: Epoch,
        /// Of the store.
        stored: Epoch,
    },
    /// It may have happened or not: read before going on.
    #[error("the job store didn't say whether a commit happened: {0}")]
    Unknown(String),
    /// No room; nothing was written.
    #[error("the job store has no room: {0}; jobs go on by themselves once it has")]
    Full(String),
    /// What is stored can't be trusted.
    #[error("job store {place}: {reason}; {remedy}")]
    Corrupt {
        /// Which file or record.
        place: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// Changes beyond the bounds: a defect of ours.
    #[error("a commit beyond its bounds: {0}")]
    Bounds(String),
    /// Another process has the store open.
    #[error("job store {place} is in use by {holder}: end it, or give this coordinator a state directory of its own")]
    InUse {
        /// The lock's file.
        place: String,
        /// `process N` if known.
        holder: String,
    },
    /// Our lease as leader has run out by the clock: another may lead already.
    #[error(
        "this coordinator's lease as leader has run out: nothing more is begun in its name; it must end and stand again"
    )]
    NotLeading,
    /// What writes it has ended: nothing can be learned here any more, and whoever starts next reads what happened.
    #[error("the job store is gone: {0}; this process must end and start again")]
    Gone(String),
    /// The system refuses; nothing was written.
    #[error("job store {place}: {reason}")]
    Io {
        /// Which file or step.
        place: String,
        /// What it said.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same may work later without anybody's doing. After [`StoreError::Unknown`] read first.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Full(_) | Self::Io { .. } | Self::InUse { .. })
    }

    pub(crate) fn io(place: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Io { place: place.to_string(), reason: reason.to_string() }
    }
}

/// A durable place for records. What [`JobStore::commit`] answered with `Ok` survives kill -9 and power loss.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// All live records.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if any can't be trusted.
    async fn load(&self) -> Result<Snapshot, StoreError>;

    /// Makes all changes durable at once, in their order, and answers the new revision. A greater epoch than the stored
    /// one takes the store over; an empty commit does only that.
    ///
    /// # Errors
    /// [`StoreError`]; only [`StoreError::Unknown`] leaves open whether it happened.
    async fn commit(&self, epoch: Epoch, changes: Vec<Change>) -> Result<u64, StoreError>;

    /// Revision and epoch as they are, and live records written after `revision` (removals aren't told).
    ///
    /// # Errors
    /// As [`JobStore::load`].
    async fn changes_since(&self, revision: u64) -> Result<Snapshot, StoreError>;

    /// Records below a prefix that were archived.
    ///
    /// # Errors
    /// As [`JobStore::load`].
    async fn archived(&self, prefix: &str) -> Result<Records, StoreError>;

    /// Keeps house, and answers whether more jobs may be accepted. Asked now and then by whoever leads, never on the way of a
    /// commit.
    ///
    /// # Errors
    /// [`StoreError::Io`] while the store doesn't say.
    async fn tend(&self) -> Result<Room, StoreError> {
        Ok(Room::Enough)
    }
}

/// Checks what every store refuses: too many changes, too many bytes, keys that aren't ours.
///
/// # Errors
/// [`StoreError::Bounds`] names the bound.
pub fn check(changes: &[Change]) -> Result<(), StoreError> {
    if changes.len() > limits::CHANGES_PER_COMMIT {
        let words = format!("{} changes; at most {}", changes.len(), limits::CHANGES_PER_COMMIT);
        return Err(StoreError::Bounds(words));
    }
    let bytes: usize = changes.iter().map(size).sum();
    if bytes > COMMIT_BYTES_MAX {
        return Err(StoreError::Bounds(format!("{bytes} bytes; at most {COMMIT_BYTES_MAX}")));
    }
    for change in changes {
        let (Change::Put { key, .. }
        | Change::Delete { key }
        | Change::Archive { prefix: key }
        | Change::Clear { prefix: key }) = change;
        // Printable ASCII, so that every key below a prefix sorts between it and it followed by 0x7f.
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let words = format!("key {key:?}; expected 1 to {KEY_BYTES_MAX} printable ASCII characters");
            return Err(StoreError::Bounds(words));
        }
    }
    Ok(())
}

/// What a change counts towards [`COMMIT_BYTES_MAX`].
#[must_use]
pub fn size(change: &Change) -> usize {
    match change {
        Change::Put { key, value } => key.len() + value.len(),
        Change::Delete { key } => key.len(),
        Change::Archive { prefix } | Change::Clear { prefix } => prefix.len(),
    }
}

/// What goes with this key when a job leaves the archive: all of the job's parts, or one record of another kind.
fn whole(key: &str) -> &str {
    match key.match_indices('/').nth(1) {
        Some((at, _)) if key.starts_with("parts/") => &key[..=at],
        _ => key,
    }
}

/// The end of the range of keys below a prefix.
fn below(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}
