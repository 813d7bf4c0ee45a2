//! Documents with pages on the local disk while they are read: never in memory, and kept for the next range of their pages.
//!
//! Stored: one file without a name in `cache_dir` for each document, gone with the process. Documents in use and documents
//! kept for another range have half of `spool_bytes_max` each. Nothing here is a second truth: a kept document is taken
//! again only if the NAS still shows the very version that was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ingle_proto::{Digest, ErrorCode, Problem, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::limits::{SPOOL_KEPT, SPOOL_KEPT_DOCUMENTS};
use crate::storage::Gateway;

/// Unit in which room is counted.
const UNIT_BYTES: u64 = 1024;

/// Where a document lies: export and path.
type Place = (String, bytes::Bytes);

/// What tells one version of a document from another, as the NAS shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
    file_id: u64,
}

impl Version {
    fn of(attributes: &v1::Attributes) -> Self {
        let v1::Attributes { size, mtime_ns, ctime_ns, file_id, .. } = *attributes;
        Self { size, mtime_ns, ctime_ns, file_id }
    }
}

#[derive(Debug)]
struct Inner {
    place: Place,
    version: Version,
    file: Arc<File>,
    digest: Digest,
    size: u64,
    /// Among documents in use; given back once it is kept.
    room: Mutex<Option<Room>>,
}

/// A document's bytes on the local disk. Clones share them; they are gone with the last one.
#[derive(Debug, Clone)]
pub struct Spooled(Arc<Inner>);

impl Spooled {
    /// Open for reading alone; read it by position.
    #[must_use]
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.0.file)
    }

    /// BLAKE3 over the bytes as they came.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// How many bytes came.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The document's time of change as it was read, nanoseconds since the epoch.
    #[must_use]
    pub fn mtime_ns(&self) -> i64 {
        self.0.version.mtime_ns
    }
}

/// Leave to write a document here; given back when dropped.
#[derive(Debug)]
pub struct Room {
    _held: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Kept {
    /// The one that was used last stands last.
    documents: Vec<(Instant, Spooled)>,
    /// Whoever reads a document that is to be kept holds its turn, so that others wait for it instead of reading it too.
    turns: BTreeMap<Place, Weak<tokio::sync::Mutex<()>>>,
}

/// See the module.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    document_bytes_max: u64,
    room: Arc<Semaphore>,
    room_units: u32,
    kept_bytes_max: u64,
    kept: Mutex<Kept>,
}

impl Spool {
    /// With files in `directory`. Documents have at most `document_bytes_max`, and all files together `bytes_max`, which is at
    /// least twice that.
    #[must_use]
    pub fn new(directory: &Path, document_bytes_max: u64, bytes_max: u64) -> Self {
        let half = (bytes_max / 2).max(document_bytes_max);
        let room_units = u32::try_from(half.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        Self {
            directory: directory.to_owned(),
            document_bytes_max,
            room: Arc::new(Semaphore::new(room_units as usize)),
            room_units,
            kept_bytes_max: half,
            kept: Mutex::default(),
        }
    }

    /// Largest document.
    #[must_use]
    pub fn document_bytes_max(&self) -> u64 {
        self.document_bytes_max
    }

    /// Waits for room for a document of this size. Who takes several asks for them in the order in which it is done with
    /// them: then a later one never holds what an earlier one waits for. `None` at the node's end.
    pub async fn room(&self, bytes: u64) -> Option<Room> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).unwrap_or(u32::MAX).min(self.room_units);
        let held = Arc::clone(&self.room).acquire_many_owned(units).await.ok()?;
        Some(Room { _held: held })
    }

    /// Reads a document.
    ///
    /// # Errors
    /// What the gateway said; `TOO_LARGE` past the bound; `INTERNAL` if it can't be written here.
    pub async fn fetch(
        &self,
        gateway: &Gateway,
        object: &v1::ObjectRef,
        token: &v1::AttemptToken,
        room: Room,
    ) -> Result<Spooled, Problem> {
        let directory = self.directory.clone();
        let made = tokio::task::spawn_blocking(move || tempfile::tempfile_in(directory)).await;
        let made = made.map_err(io::Error::other).and_then(|made| made).map_err(|error| self.local(&error))?;
        let mut file = tokio::fs::File::from_std(made);
        let (attributes, digest) = gateway.object_into(object, token, &mut file, self.document_bytes_max).await?;
        let file = file.into_std().await;
        let (file, size) = read_only(&file).map_err(|error| self.local(&error))?;
        let (place, version) = ((object.export.clone(), object.path.clone()), Version::of(&attributes));
        let room = Mutex::new(Some(room));
        Ok(Spooled(Arc::new(Inner { place, version, file: Arc::new(file), digest, size, room })))
    }

    /// A document that is read in several pieces: the one that is kept, if it hasn't changed since, else it is read and kept.
    ///
    /// # Errors
    /// As [`Spool::fetch`].
    pub async fn shared(
        &self,
        gateway: &Gateway,
        object: &v1::ObjectRef,
        token: &v1::AttemptToken,
        bytes: u64,
    ) -> Result<Spooled, Problem> {
        let place = (object.export.clone(), object.path.clone());
        let turn = self.turn(&place);
        let _turn = turn.lock().await;
        if let Some(kept) = self.kept(&place) {
            let now = gateway.attributes(object, token).await?;
            if Version::of(&now) == kept.0.version {
                return Ok(kept);
            }
        }
        self.forget(&place);
        let ending = || Problem::new(ErrorCode::ShuttingDown, "this node is stopping");
        let room = self.room(bytes).await.ok_or_else(ending)?;
        let document = self.fetch(gateway, object, token, room).await?;
        self.keep(&document);
        Ok(document)
    }

    /// Keeps a document for the next piece of it, if there is room beside those that are in use.
    pub fn keep(&self, document: &Spooled) {
        let mut kept = self.lock();
        kept.documents.retain(|(_, other)| other.0.place != document.0.place);
        let bytes = |kept: &Kept| kept.documents.iter().map(|(_, document)| document.size()).sum::<u64>();
        while kept.documents.len() >= SPOOL_KEPT_DOCUMENTS || bytes(&kept) + document.size() > self.kept_bytes_max {
            // One that somebody reads would stay on the disk, counted nowhere.
            let idle = kept.documents.iter().position(|(_, document)| Arc::strong_count(&document.0) == 1);
            let Some(idle) = idle else { return };
            kept.documents.remove(idle);
        }
        kept.documents.push((Instant::now(), document.clone()));
        document.0.room.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Drops documents of which nobody wanted a piece for a while.
    pub fn sweep(&self, now: Instant) {
        let mut kept = self.lock();
        kept.documents.retain(|(used, document)| {
            now.saturating_duration_since(*used) < SPOOL_KEPT || Arc::strong_count(&document.0) > 1
        });
        kept.turns.retain(|_, turn| turn.strong_count() > 0);
    }

    fn turn(&self, place: &Place) -> Arc<tokio::sync::Mutex<()>> {
        let mut kept = self.lock();
        kept.turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = kept.turns.get(place).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        kept.turns.insert(place.clone(), Arc::downgrade(&turn));
        turn
    }

    fn kept(&self, place: &Place) -> Option<Spooled> {
        let mut kept = self.lock();
        let at = kept.documents.iter().position(|(_, document)| document.0.place == *place)?;
        let (_, document) = kept.documents.remove(at);
        kept.documents.push((Instant::now(), document.clone()));
        Some(document)
    }

    fn forget(&self, place: &Place) {
        self.lock().documents.retain(|(_, document)| document.0.place != *place);
    }

    /// A thread that panicked holding the lock left lists that are whole: each change is one call.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self, error: &io::Error) -> Problem {
        let directory = self.directory.display();
        Problem::new(ErrorCode::Internal, format!("the node's cache_dir {directory}: {error}"))
    }
}

/// The same file open for reading alone, and its size: who is handed it can't change it.
fn read_only(file: &File) -> io::Result<(File, u64)> {
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// A document that came, with the room it takes.
    async fn came(spool: &Spool, name: &str, bytes: u64) -> Spooled {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; bytes as usize]).unwrap();
        let (file, size) = read_only(&file).unwrap();
        Spooled(Arc::new(Inner {
            place: ("docs".into(), name.to_owned().into()),
            version: Version { size, mtime_ns: 1, ctime_ns: 1, file_id: 1 },
            file: Arc::new(file),
            digest: Digest::of(&[]),
            size,
            room: Mutex::new(spool.room(size).await),
        }))
    }

    fn holds(spool: &Spool, name: &str) -> bool {
        spool.kept(&("docs".into(), name.to_owned().into())).is_some()
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_gives_its_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 4096, 20 << 10);
        let free = spool.room.available_permits();
        let a = came(&spool, "a", 4096).await;
        assert_eq!(spool.room.available_permits(), free - 4);
        spool.keep(&a);
        assert_eq!(spool.room.available_permits(), free, "it is counted among the kept ones now");
        for name in ["b", "c"] {
            let document = came(&spool, name, 4096).await;
            spool.keep(&document);
        }
        assert!(holds(&spool, "a"), "it is in use");
        assert!(!holds(&spool, "b") && holds(&spool, "c"), "10 KiB are kept: two of three");
        drop(a);
        spool.sweep(Instant::now());
        assert!(holds(&spool, "a") && holds(&spool, "c"));
        spool.sweep(Instant::now() + SPOOL_KEPT);
        assert!(!holds(&spool, "a") && !holds(&spool, "c"));
    }

    #[tokio::test]
    async fn a_document_for_which_no_room_is_left_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 4096, 8192);
        let a = came(&spool, "a", 4096).await;
        spool.keep(&a);
        let b = came(&spool, "b", 4096).await;
        spool.keep(&b);
        assert!(holds(&spool, "a") && !holds(&spool, "b"));
        assert_eq!(spool.room.available_permits(), 0, "it has its room among those in use");
        drop(b);
        assert_eq!(spool.room.available_permits(), 4);
    }

    #[test]
    fn what_is_handed_out_can_be_read_alone() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"bytes").unwrap();
        let (mut again, size) = read_only(&file).unwrap();
        assert_eq!(size, 5);
        let mut bytes = Vec::new();
        again.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"bytes");
        assert!(again.write_all(b"x").is_err());
    }
}
