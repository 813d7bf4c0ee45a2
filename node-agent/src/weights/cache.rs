//! Model files on the local disk, by content: bounded, and emptied from the least recently used end.
//!
//! Stored: `models/<digest>/…` (whole models, renamed into place after they were synced), `incoming/` (in the making or on
//! the way out, removed at start), `index.json` (which listing led to which digest, and when it was last used). Losing any of
//! it costs a read, no more. The index decides: a directory that it doesn't know is removed at start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ingle_proto::Digest;
use serde::{Deserialize, Serialize};

use super::evict::{Kept, evict};
use super::folders::FileStamp;
use crate::epoch::write_synced;
use crate::error::StartError;

/// What an earlier look at a model's files led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    files: Vec<FileStamp>,
    digest: String,
    last_used_ms: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Index {
    /// By where the model comes from.
    seen: BTreeMap<String, Seen>,
    /// Cached models: bytes and last use in Unix milliseconds, by digest.
    kept: BTreeMap<String, (u64, i64)>,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    /// Bytes set aside for directories in the making.
    reserved: u64,
    /// How many use a model's files.
    pins: BTreeMap<Digest, usize>,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

/// A model's files stay while one of its clones lives. The default is for files that aren't in the cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pin {
    _pinned: Option<Arc<Pinned>>,
}

#[derive(Debug)]
struct Pinned {
    cache: Arc<Cache>,
    digest: Digest,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        if let Some(users) = state.pins.get_mut(&self.digest) {
            *users -= 1;
            if *users == 0 {
                state.pins.remove(&self.digest);
            }
        }
    }
}

/// A directory in the making and the room set aside for it; gone when dropped, unless it was kept. Dropping it blocks.
#[derive(Debug)]
pub(super) struct Incoming {
    cache: Arc<Cache>,
    dir: PathBuf,
    bytes: u64,
}

impl Incoming {
    /// Where its files go. It isn't made yet.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the finished directory into the cache. Blocks.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn keep(mut self, digest: Digest) -> io::Result<(PathBuf, Pin)> {
        self.place(digest)
    }

    fn place(&mut self, digest: Digest) -> io::Result<(PathBuf, Pin)> {
        let path = self.cache.path(&digest);
        let mut state = self.cache.lock();
        // The same content may have come under another name meanwhile: that one stays, somebody may use it.
        if !(state.index.kept.contains_key(&digest.hex()) && path.is_dir()) {
            // Nobody vouches for what the index doesn't know.
            remove(&path)?;
            std::fs::rename(&self.dir, &path)?;
            state.index.kept.insert(digest.hex(), (self.bytes, ingle_daemon::clock::unix_ms()));
            state.reserved = state.reserved.saturating_sub(std::mem::take(&mut self.bytes));
            self.cache.save(&state.index);
        }
        let pin = self.cache.pinned(&mut state, digest);
        Ok((path, pin))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "a copy that was given up can't be removed; the next start does");
        }
        let mut state = self.cache.lock();
        state.reserved = state.reserved.saturating_sub(self.bytes);
    }
}

impl Cache {
    /// Opens `dir`, forgets what is no longer there and removes what was left in the making.
    ///
    /// # Errors
    /// [`StartError`] names the directory.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, StartError> {
        let index = Self::tidied(dir).map_err(|error| StartError::Directory {
            what: "cache_dir",
            path: dir.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { dir: dir.to_owned(), bytes_max, state: Mutex::new(State { index, ..State::default() }) })
    }

    fn tidied(dir: &Path) -> io::Result<Index> {
        for name in ["incoming", "scratch"] {
            remove(&dir.join(name))?;
            std::fs::create_dir_all(dir.join(name))?;
        }
        let models = dir.join("models");
        std::fs::create_dir_all(&models)?;
        // An index that can't be read costs a read of the models, no more.
        let mut index: Index = std::fs::read(dir.join("index.json"))
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        index.kept.retain(|digest, _| parse(digest).is_some() && models.join(digest).is_dir());
        // Renamed into place just before a crash: nobody vouches for them, and nobody counts them.
        for entry in std::fs::read_dir(&models)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| index.kept.contains_key(name)) {
                remove(&entry.path())?;
            }
        }
        Ok(index)
    }

    /// Most bytes it holds.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// A fresh path for a file of an attempt.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.fresh("scratch")
    }

    fn fresh(&self, below: &str) -> PathBuf {
        self.dir.join(below).join(format!("{:016x}", fastrand::u64(..)))
    }

    /// The digest that these very files had when they were last read.
    #[must_use]
    pub fn known(&self, origin: &str, files: &[FileStamp]) -> Option<Digest> {
        let state = self.lock();
        let seen = state.index.seen.get(origin).filter(|seen| seen.files == files)?;
        parse(&seen.digest)
    }

    /// Remembers what reading the files led to.
    pub fn remember(&self, origin: &str, files: &[FileStamp], digest: Digest) {
        let mut state = self.lock();
        let index = &mut state.index;
        let last_used_ms = ingle_daemon::clock::unix_ms();
        index.seen.insert(origin.to_owned(), Seen { files: files.to_vec(), digest: digest.hex(), last_used_ms });
        while index.seen.len() > 4 * crate::limits::MODELS_MAX {
            let oldest = index.seen.iter().min_by_key(|(_, seen)| seen.last_used_ms).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            index.seen.remove(&oldest);
        }
        self.save(index);
    }

    /// The directory of a cached model, marked as used now and kept while the pin lives.
    #[must_use]
    pub(super) fn pin(self: &Arc<Self>, digest: Digest) -> Option<(PathBuf, Pin)> {
        let path = self.path(&digest);
        let mut state = self.lock();
        let (_, used) = state.index.kept.get_mut(&digest.hex())?;
        *used = ingle_daemon::clock::unix_ms();
        if !path.is_dir() {
            return None;
        }
        let pin = self.pinned(&mut state, digest);
        Some((path, pin))
    }

    fn pinned(self: &Arc<Self>, state: &mut State, digest: Digest) -> Pin {
        *state.pins.entry(digest).or_default() += 1;
        Pin { _pinned: Some(Arc::new(Pinned { cache: Arc::clone(self), digest })) }
    }

    /// Sets room aside for a directory of so many bytes: the models used least recently go, those that are pinned stay.
    /// Blocks.
    ///
    /// # Errors
    /// What the file system said; `StorageFull` if there is no room now.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> io::Result<Incoming> {
        let mut leaving = Vec::new();
        let incoming = self.set_aside(bytes, &mut leaving);
        // The index has let them go already: nobody waits while their files are removed.
        leaving.iter().try_for_each(|dir| remove(dir))?;
        incoming
    }

    fn set_aside(self: &Arc<Self>, bytes: u64, leaving: &mut Vec<PathBuf>) -> io::Result<Incoming> {
        let mut state = self.lock();
        let kept = |(hex, (bytes, used)): (&String, &(u64, i64))| {
            let digest = parse(hex)?;
            Some(Kept { digest, bytes: *bytes, last_used: *used, pinned: state.pins.contains_key(&digest) })
        };
        let entries: Vec<Kept> = state.index.kept.iter().filter_map(kept).collect();
        let Some(gone) = evict(&entries, bytes.saturating_add(state.reserved), self.bytes_max) else {
            let pinned: u64 = entries.iter().filter(|entry| entry.pinned).map(|entry| entry.bytes).sum();
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{bytes} bytes have no room now: models in use take {pinned} and copies under way {} of cache_bytes_max = {}",
                    state.reserved, self.bytes_max
                ),
            ));
        };
        for digest in gone {
            let out = self.fresh("incoming");
            match std::fs::rename(self.path(&digest), &out) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            state.index.kept.remove(&digest.hex());
            leaving.push(out);
        }
        state.reserved = state.reserved.saturating_add(bytes);
        Ok(Incoming { cache: Arc::clone(self), dir: self.fresh("incoming"), bytes })
    }

    /// Drops a model whose files turned out to be damaged. Blocks.
    pub(super) fn drop_damaged(&self, digest: &Digest) {
        let mut state = self.lock();
        state.index.kept.remove(&digest.hex());
        let _ = remove(&self.path(digest));
        self.save(&state.index);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("models").join(digest.hex())
    }

    fn save(&self, index: &Index) {
        let saved = serde_json::to_vec(index)
            .map_err(io::Error::other)
            .and_then(|bytes| write_synced(&self.dir.join("index.json"), &bytes));
        if let Err(error) = saved {
            tracing::warn!(%error, dir = %self.dir.display(), "the cache's index can't be written; models will be read again");
        }
    }
}

fn parse(hex: &str) -> Option<Digest> {
    Digest::from_hex(hex)
}

/// Removes a file, or a directory with all that lies in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = std::fs::symlink_metadata(path).and_then(|found| match found.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn made(cache: &Arc<Cache>, n: u8, bytes: u64) -> io::Result<Incoming> {
        let incoming = cache.reserve(bytes)?;
        std::fs::create_dir_all(incoming.dir())?;
        std::fs::write(incoming.dir().join("f"), [n])?;
        Ok(incoming)
    }

    fn put(cache: &Arc<Cache>, n: u8, bytes: u64) -> io::Result<(PathBuf, Pin)> {
        made(cache, n, bytes)?.keep(digest(n))
    }

    fn opened(dir: &Path, bytes_max: u64) -> Arc<Cache> {
        Arc::new(Cache::open(dir, bytes_max).unwrap())
    }

    /// What lies below one of its directories.
    fn names(dir: &Path, below: &str) -> Vec<String> {
        let entries = std::fs::read_dir(dir.join(below)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn models_are_kept_across_restarts_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let cache = opened(dir.path(), 100);
        drop(put(&cache, 1, 60).unwrap());
        let stamps = [FileStamp { name: "f".into(), size: 1, mtime_ns: 5 }];
        cache.remember("nas://m/a", &stamps, digest(1));
        let cache = opened(dir.path(), 100);
        assert_eq!(cache.known("nas://m/a", &stamps), Some(digest(1)));
        let newer = [FileStamp { mtime_ns: 6, ..stamps[0].clone() }];
        assert_eq!(cache.known("nas://m/a", &newer), None, "a changed file is read again");
        assert!(cache.pin(digest(1)).unwrap().0.join("f").is_file());
        drop(put(&cache, 2, 60).unwrap());
        assert!(cache.pin(digest(1)).is_none(), "the older one made room");
        assert!(put(&cache, 3, 101).is_err());
    }

    #[test]
    fn room_is_made_before_a_copy_and_counted_while_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let cache = opened(dir.path(), 100);
        drop(put(&cache, 1, 60).unwrap());
        let first = made(&cache, 2, 60).unwrap();
        assert_eq!(names(dir.path(), "models"), Vec::<String>::new(), "it made room at once");
        assert_eq!(names(dir.path(), "incoming").len(), 1, "the new one alone");
        assert_eq!(cache.reserve(41).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let second = cache.reserve(40).unwrap();
        drop(second);
        drop(first);
        assert_eq!(names(dir.path(), "incoming"), Vec::<String>::new(), "given up, it leaves nothing");
        drop(put(&cache, 3, 100).unwrap());
        assert_eq!(names(dir.path(), "models"), [digest(3).hex()]);
    }

    #[test]
    fn pinned_models_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = opened(dir.path(), 100);
        let (path, pin) = put(&cache, 1, 60).unwrap();
        let again = cache.pin(digest(1)).unwrap().1;
        drop(pin);
        assert_eq!(cache.reserve(60).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(path.join("f").is_file());
        assert_eq!(names(dir.path(), "incoming"), Vec::<String>::new());
        drop(again);
        drop(cache.reserve(60).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_the_index_does_not_know_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(put(&opened(dir.path(), 100), 1, 10).unwrap());
        let orphan = |n| {
            let path = dir.path().join("models").join(digest(n).hex());
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("f"), "another").unwrap();
            path
        };
        let path = orphan(2);
        let cache = opened(dir.path(), 100);
        assert!(!path.exists());
        assert!(cache.pin(digest(1)).is_some());
        orphan(3);
        let (path, _pin) = put(&cache, 3, 10).unwrap();
        assert_eq!(std::fs::read(path.join("f")).unwrap(), [3], "never the orphan's content");
        assert_eq!(names(dir.path(), "incoming"), Vec::<String>::new());
    }
}
