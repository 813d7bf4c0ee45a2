//! Pieces of files that were read from a NAS, in memory and on the local disk, by the version of the file they belong to.
//!
//! Bounded, and a pass over an archive goes through without pushing out what is hot: see [`evict`]. The disk is for what is
//! known to last (weights) and for what was asked for twice. Whoever answers from here has asked the NAS first whether
//! this user may read this version: nothing here knows permissions.

pub mod disk;
pub mod evict;
pub mod scrub;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::buffers::{self, PIECE_BYTES};
use crate::export::Attr;
use crate::metrics::Meters;
use disk::{Disk, Found};
use evict::S3Fifo;

/// Pieces that wait to be written; past that they are not kept, for the disk is slower than the wire.
const WRITES_WAITING: usize = 128;
/// Pieces that are written before others are looked at.
const WRITES_TOGETHER: usize = 32;
/// Files that wait to be written back; of more the kernel takes care.
const SETTLING_MAX: usize = 256;
/// A piece of so many bytes may keep the buffer that it came in.
const WORTH_ITS_BUFFER: usize = PIECE_BYTES / 8 * 7;
/// What a piece's places in the lists take.
const ENTRY_BYTES: usize = 256;
/// How long a piece that will last waits for its turn to be written: the NAS would be read again for it.
const TURN_MAX: Duration = Duration::from_millis(500);

/// Where the cache lies and how large it may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Memory, in MiB; 0 for none.
    pub memory_mib: u64,
    /// Local disk, in MiB; 0 for none.
    pub disk_mib: u64,
    /// Where the disk's part lies; `<state_dir>/cache` if absent. Never on the NAS.
    pub dir: Option<PathBuf>,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { memory_mib: 128, disk_mib: 8192, dir: None }
    }
}

/// One version of a file: all that a NAS shows of it. A file that changes is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub [u8; 16]);

impl Version {
    /// Of what `path` of an export shows now.
    #[must_use]
    pub fn of(export: &str, path: &[u8], attr: &Attr) -> Self {
        let mut hasher = blake3::Hasher::new();
        for text in [export.as_bytes(), path] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        for number in [attr.file_id, attr.size, attr.mtime_ns as u64, attr.ctime_ns as u64] {
            hasher.update(&number.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes"))
    }
}

/// A piece of a file's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The version.
    pub file: [u8; 16],
    /// Which piece, from 0.
    pub piece: u64,
}

impl Key {
    fn to_hex(self) -> String {
        format!("{:032x}{:016x}", u128::from_be_bytes(self.file), self.piece)
    }

    fn from_hex(name: &str) -> Option<Self> {
        let (file, piece) = (name.len() == 48 && name.is_ascii()).then(|| name.split_at(32))?;
        let file = u128::from_str_radix(file, 16).ok()?.to_be_bytes();
        Some(Self { file, piece: u64::from_str_radix(piece, 16).ok()? })
    }
}

/// A piece on its way to the disk.
struct Writing {
    key: Key,
    /// None: it is to go.
    data: Option<Bytes>,
    lasting: bool,
}

struct OnDisk {
    disk: Disk,
    held: Mutex<S3Fifo<Key, ()>>,
    waiting: mpsc::Sender<Writing>,
}

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Cache {
    memory: Arc<Mutex<S3Fifo<Key, Bytes>>>,
    on_disk: Option<Arc<OnDisk>>,
    meters: Meters,
}

/// What has to run for the disk's part: hand it to the daemon's tasks.
pub struct Upkeep {
    on_disk: Arc<OnDisk>,
    waiting: mpsc::Receiver<Writing>,
    meters: Meters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under the lock is one call that leaves the lists whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// In memory, and on disk where `dir` is given with bytes to use there. What lay there already is found by [`Upkeep::run`].
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(config: &CacheConfig, dir: PathBuf, meters: Meters) -> std::io::Result<(Self, Option<Upkeep>)> {
        let memory = Arc::new(Mutex::new(S3Fifo::new(config.memory_mib << 20)));
        if config.disk_mib == 0 {
            return Ok((Self { memory, on_disk: None, meters }, None));
        }
        let (sender, waiting) = mpsc::channel(WRITES_WAITING);
        let on_disk = Arc::new(OnDisk {
            disk: Disk::open(&dir)?,
            held: Mutex::new(S3Fifo::new(config.disk_mib << 20)),
            waiting: sender,
        });
        let upkeep = Upkeep { on_disk: Arc::clone(&on_disk), waiting, meters: meters.clone() };
        Ok((Self { memory, on_disk: Some(on_disk), meters }, Some(upkeep)))
    }

    /// A piece, if it is here.
    pub async fn get(&self, key: Key) -> Option<Bytes> {
        if let Some(found) = lock(&self.memory).get(&key).cloned() {
            self.meters.cached("memory");
            self.keep_on_disk(key, &found);
            return Some(found);
        }
        let found = self.read_disk(key).await;
        if let Some(found) = &found {
            self.meters.cached("disk");
            self.keep_in_memory(key, found, false);
        } else {
            self.meters.cached("none");
        }
        found
    }

    /// Whether a piece is here; it doesn't count as asked for.
    #[must_use]
    pub fn holds(&self, key: &Key) -> bool {
        lock(&self.memory).contains(key)
            || self.on_disk.as_ref().is_some_and(|on_disk| lock(&on_disk.held).contains(key))
    }

    /// Takes in a piece that was read. `lasting`: it will be wanted again, by another node or after a restart, and so waits a
    /// little for a disk that is behind.
    pub async fn put(&self, key: Key, data: &Bytes, lasting: bool) {
        self.keep_in_memory(key, data, lasting);
        if lasting
            && let Some(on_disk) = &self.on_disk
            && !lock(&on_disk.held).contains(&key)
        {
            let writing = Writing { key, data: Some(data.clone()), lasting };
            // A disk that stays behind keeps less.
            let _ = tokio::time::timeout(TURN_MAX, on_disk.waiting.send(writing)).await;
        }
    }

    /// Drops a piece, also one that waits to be written.
    pub async fn forget(&self, key: Key) {
        lock(&self.memory).remove(&key);
        if let Some(on_disk) = &self.on_disk {
            lock(&on_disk.held).remove(&key);
            // Fails only when nothing is written any more.
            let _ = on_disk.waiting.send(Writing { key, data: None, lasting: false }).await;
        }
    }

    /// What is much smaller than the buffer it came in is copied out of it: the bound is on memory, not on bytes of files.
    fn keep_in_memory(&self, key: Key, data: &Bytes, lasting: bool) {
        let (data, bytes) = if data.len() < WORTH_ITS_BUFFER {
            (Bytes::copy_from_slice(data), data.len())
        } else {
            (data.clone(), buffers::KEPT_CAPACITY)
        };
        lock(&self.memory).insert(key, data, (bytes + ENTRY_BYTES) as u64, lasting);
    }

    /// Bytes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        lock(&self.memory).bytes()
    }

    fn keep_on_disk(&self, key: Key, data: &Bytes) {
        let Some(on_disk) = &self.on_disk else { return };
        if !lock(&on_disk.held).contains(&key) {
            // A disk that doesn't keep up keeps less.
            let _ = on_disk.waiting.try_send(Writing { key, data: Some(data.clone()), lasting: false });
        }
    }

    async fn read_disk(&self, key: Key) -> Option<Bytes> {
        let on_disk = Arc::clone(self.on_disk.as_ref()?);
        lock(&on_disk.held).get(&key)?;
        let of_disk = Arc::clone(&on_disk);
        let found = tokio::task::spawn_blocking(move || of_disk.disk.read(&key)).await;
        match found {
            Ok(Ok(Found::Piece(data))) => return Some(data),
            Ok(Ok(Found::Nothing)) => {}
            Ok(Ok(Found::Damaged)) => self.meters.damaged_piece(),
            Ok(Err(error)) => tracing::warn!(%error, "a cached piece can't be read; it is fetched again"),
            Err(ended) => tracing::warn!(%ended, "reading a cached piece ended"),
        }
        lock(&on_disk.held).remove(&key);
        None
    }
}

impl Upkeep {
    /// Finds what lay on the disk, then writes what comes, until the cache is gone or `end` comes.
    ///
    /// # Errors
    /// None: what can't be kept is fetched again.
    pub async fn run(mut self, end: impl Future<Output = ()> + Send) -> Result<(), std::convert::Infallible> {
        let on_disk = Arc::clone(&self.on_disk);
        let found = tokio::task::spawn_blocking(move || {
            let found = on_disk.disk.list()?;
            for (key, bytes) in found {
                let gone = lock(&on_disk.held).insert(key, (), bytes, true);
                gone.iter().for_each(|(key, ())| on_disk.disk.remove(key));
            }
            std::io::Result::Ok(())
        });
        if let Ok(Err(error)) = found.await {
            tracing::warn!(%error, "the cache's directory can't be listed; what lies there is not used");
        }
        #[allow(clippy::disallowed_methods, reason = "ended with this task, which is one of the daemon's")]
        let scrubbing = tokio::spawn(scrub::run(Arc::clone(&self.on_disk), self.meters.clone()));
        let _ended_with_us = scrub::Ending(scrubbing.abort_handle());
        let mut together = Vec::with_capacity(WRITES_TOGETHER);
        let mut end = std::pin::pin!(end);
        let mut written: Vec<std::fs::File> = Vec::new();
        let mut settling = tokio::task::JoinSet::new();
        loop {
            let came = tokio::select! {
                came = self.waiting.recv_many(&mut together, WRITES_TOGETHER) => came,
                () = &mut end => 0,
            };
            if came == 0 {
                return Ok(());
            }
            let (on_disk, pieces) = (Arc::clone(&self.on_disk), std::mem::take(&mut together));
            match tokio::task::spawn_blocking(move || on_disk.write(&pieces)).await {
                Ok(files) => written.extend(files),
                Err(ended) => tracing::warn!(%ended, "writing to the cache ended"),
            }
            // Written back beside the writing, one round at a time.
            while settling.try_join_next().is_some() {}
            if settling.is_empty() {
                let files = std::mem::take(&mut written);
                settling.spawn_blocking(move || disk::settle(&files));
            } else {
                written.truncate(SETTLING_MAX);
            }
        }
    }
}

impl OnDisk {
    fn write(&self, pieces: &[Writing]) -> Vec<std::fs::File> {
        let mut written = Vec::with_capacity(pieces.len());
        for Writing { key, data, lasting } in pieces {
            let Some(data) = data else {
                lock(&self.held).remove(key);
                self.disk.remove(key);
                continue;
            };
            if lock(&self.held).contains(key) || !self.disk.has_room() {
                continue;
            }
            match self.disk.write(key, data) {
                Ok(file) => written.push(file),
                Err(error) => {
                    tracing::debug!(%error, "a piece can't be cached on disk");
                    continue;
                }
            }
            let gone = lock(&self.held).insert(*key, (), data.len() as u64, *lasting);
            gone.iter().for_each(|(key, ())| self.disk.remove(key));
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ingle_daemon::metrics::Metrics;

    use super::*;

    fn key(piece: u64) -> Key {
        Key { file: [1; 16], piece }
    }

    fn open(dir: &std::path::Path, memory_mib: u64, disk_mib: u64) -> (Cache, Option<Upkeep>) {
        let config = CacheConfig { memory_mib, disk_mib, dir: None };
        Cache::open(&config, dir.to_owned(), Meters::new(&Metrics::new("test"))).expect("made")
    }

    /// Ends with what it answers.
    fn kept_up(upkeep: Option<Upkeep>) -> tokio::task::JoinSet<Result<(), std::convert::Infallible>> {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(upkeep.expect("a disk").run(std::future::pending()));
        tasks
    }

    async fn until(what: &str, mut is: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if is() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: not within ten seconds");
    }

    #[tokio::test]
    async fn what_lasts_survives_a_restart_and_what_is_read_once_never_meets_the_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, upkeep) = open(dir.path(), 1, 64);
        let running = kept_up(upkeep);
        let data = Bytes::from(vec![3; 1000]);
        cache.put(key(1), &data, true).await;
        cache.put(key(2), &data, false).await;
        cache.put(key(3), &data, false).await;
        assert_eq!(cache.get(key(3)).await, Some(data.clone()), "asked for a second time");
        let on_disk = cache.on_disk.clone().expect("a disk");
        until("two pieces on disk", || lock(&on_disk.held).len() == 2).await;
        drop((cache, on_disk));
        drop(running);
        let (cache, upkeep) = open(dir.path(), 1, 64);
        let running = kept_up(upkeep);
        until("found again", || cache.holds(&key(1)) && cache.holds(&key(3))).await;
        assert_eq!(cache.get(key(1)).await, Some(data));
        assert_eq!(cache.get(key(2)).await, None);
        drop(running);
    }

    #[tokio::test]
    async fn a_rotten_piece_is_fetched_again_not_handed_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cache, upkeep) = open(dir.path(), 0, 64);
        let running = kept_up(upkeep);
        let data = Bytes::from(vec![3; 1000]);
        cache.put(key(1), &data, true).await;
        let on_disk = cache.on_disk.clone().expect("a disk");
        until("a piece on disk", || lock(&on_disk.held).len() == 1).await;
        assert_eq!(cache.get(key(1)).await, Some(data.clone()), "no memory: from disk");
        let file = dir.path().join("01").join(key(1).to_hex());
        let mut bytes = std::fs::read(&file).expect("there");
        *bytes.last_mut().expect("not empty") ^= 0x80;
        std::fs::write(&file, bytes).expect("room");
        assert_eq!(cache.get(key(1)).await, None);
        assert!(!cache.holds(&key(1)) && !file.exists());
        drop(running);
    }

    #[test]
    fn keys_read_their_own_names() {
        let key = Key { file: *b"0123456789abcdef", piece: u64::MAX - 1 };
        assert_eq!(Key::from_hex(&key.to_hex()), Some(key));
        for bad in ["", "xyz", &"g".repeat(48), &"0".repeat(47), "é".repeat(24).as_str()] {
            assert_eq!(Key::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn another_version_is_another_file() {
        let attr =
            Attr { kind: crate::export::Kind::File, size: 1, mtime_ns: 2, ctime_ns: 3, file_id: 4, mode: 0, links: 1 };
        let of = |attr: &Attr| Version::of("docs", b"a", attr);
        let others = [
            Attr { size: 9, ..attr.clone() },
            Attr { mtime_ns: 9, ..attr.clone() },
            Attr { ctime_ns: 9, ..attr.clone() },
            Attr { file_id: 9, ..attr.clone() },
        ];
        assert!(others.iter().all(|other| of(other) != of(&attr)));
        assert_eq!(of(&Attr { mode: 9, links: 9, ..attr.clone() }), of(&attr));
        assert_ne!(Version::of("docs", b"b", &attr), of(&attr));
        assert_ne!(Version::of("doc", b"sa", &attr), Version::of("docs", b"a", &attr));
    }
}
