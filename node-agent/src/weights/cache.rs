//! Model files on the local disk, by content: bounded, and emptied from the least recently used end.
//!
//! Stored: `models/<digest>/…` (whole models, renamed into place after they were synced), `incoming/` (in the making, removed at
//! start), `index.json` (which listing led to which digest, and when it was last used). Losing any of it costs a read, no more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ingle_proto::Digest;
use serde::{Deserialize, Serialize};

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

/// The cache.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
}

impl Cache {
    /// Opens `dir`, forgets what is no longer there and removes what was left in the making.
    ///
    /// # Errors
    /// [`StartError`] names the directory.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, StartError> {
        let fail = |error: std::io::Error| StartError::Directory {
            what: "cache_dir",
            path: dir.to_owned(),
            reason: error.to_string(),
        };
        for name in ["incoming", "scratch"] {
            match std::fs::remove_dir_all(dir.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
            std::fs::create_dir_all(dir.join(name)).map_err(fail)?;
        }
        std::fs::create_dir_all(dir.join("models")).map_err(fail)?;
        // An index that can't be read costs a read of the models, no more.
        let mut index: Index = std::fs::read(dir.join("index.json"))
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default();
        index.kept.retain(|digest, _| dir.join("models").join(digest).is_dir());
        Ok(Self { dir: dir.to_owned(), bytes_max, index: Mutex::new(index) })
    }

    /// Most bytes it holds.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// A fresh path for a file or directory in the making.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.dir.join("incoming").join(format!("{:016x}", fastrand::u64(..)))
    }

    /// A fresh path for a file of an attempt.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch").join(format!("{:016x}", fastrand::u64(..)))
    }

    /// The digest that these very files had when they were last read.
    #[must_use]
    pub fn known(&self, origin: &str, files: &[FileStamp]) -> Option<Digest> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = index.seen.get(origin).filter(|seen| seen.files == files)?;
        parse(&seen.digest)
    }

    /// Remembers what reading the files led to.
    pub fn remember(&self, origin: &str, files: &[FileStamp], digest: Digest) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let last_used_ms = ingle_daemon::clock::unix_ms();
        index.seen.insert(origin.to_owned(), Seen { files: files.to_vec(), digest: digest.hex(), last_used_ms });
        while index.seen.len() > 4 * crate::limits::MODELS_MAX {
            let oldest = index.seen.iter().min_by_key(|(_, seen)| seen.last_used_ms).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            index.seen.remove(&oldest);
        }
        self.save(&index);
    }

    /// The directory of a cached model, marked as used now.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, used) = index.kept.get_mut(&digest.hex())?;
        *used = ingle_daemon::clock::unix_ms();
        path.is_dir().then_some(path)
    }

    /// Takes a finished directory into the cache, making room first. `pinned` models are in use and stay.
    ///
    /// # Errors
    /// What the file system said; `StorageFull` if there is no room.
    pub fn put(&self, made: &Path, digest: &Digest, bytes: u64, pinned: &[Digest]) -> std::io::Result<PathBuf> {
        let path = self.path(digest);
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<Kept> = index
            .kept
            .iter()
            .filter_map(|(hex, (bytes, used))| {
                let digest = parse(hex)?;
                Some(Kept { digest, bytes: *bytes, last_used: *used, pinned: pinned.contains(&digest) })
            })
            .collect();
        let Some(gone) = evict(&entries, bytes, self.bytes_max) else {
            return Err(std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!("a model of {bytes} bytes doesn't fit into cache_bytes_max = {}", self.bytes_max),
            ));
        };
        for digest in gone {
            index.kept.remove(&digest.hex());
            match std::fs::remove_dir_all(self.path(&digest)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match std::fs::rename(made, &path) {
            Ok(()) => {}
            // The same content is there already.
            Err(_) if path.is_dir() => {
                let _ = std::fs::remove_dir_all(made);
            }
            Err(error) => return Err(error),
        }
        index.kept.insert(digest.hex(), (bytes, ingle_daemon::clock::unix_ms()));
        self.save(&index);
        Ok(path)
    }

    /// Drops a model whose files turned out to be damaged.
    pub fn drop_damaged(&self, digest: &Digest) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.kept.remove(&digest.hex());
        let _ = std::fs::remove_dir_all(self.path(digest));
        self.save(&index);
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("models").join(digest.hex())
    }

    fn save(&self, index: &Index) {
        let saved = serde_json::to_vec(index)
            .map_err(std::io::Error::other)
            .and_then(|bytes| write_synced(&self.dir.join("index.json"), &bytes));
        if let Err(error) = saved {
            tracing::warn!(%error, dir = %self.dir.display(), "the cache's index can't be written; models will be read again");
        }
    }
}

fn parse(hex: &str) -> Option<Digest> {
    Digest::from_hex(hex)
}

/// A cached model, as eviction sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Which.
    pub(super) digest: Digest,
    /// Its size.
    pub(super) bytes: u64,
    /// Greater is later.
    pub(super) last_used: i64,
    /// It must stay.
    pub(super) pinned: bool,
}

/// Which models go so that `need` more bytes fit: least recently used first, no more than needed; `None` if it can't be.
#[must_use]
pub(super) fn evict(entries: &[Kept], need: u64, bytes_max: u64) -> Option<Vec<Digest>> {
    let mut held: u64 = entries.iter().map(|entry| entry.bytes).sum();
    let mut order: Vec<&Kept> = entries.iter().filter(|entry| !entry.pinned).collect();
    order.sort_by_key(|entry| (entry.last_used, entry.digest));
    let mut gone = Vec::new();
    for entry in order {
        if held.saturating_add(need) <= bytes_max {
            break;
        }
        held -= entry.bytes;
        gone.push(entry.digest);
    }
    (held.saturating_add(need) <= bytes_max).then_some(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_takes_the_oldest_and_no_pinned_ones() {
        let kept = |n: u8, bytes, last_used, pinned| Kept { digest: Digest([n; 32]), bytes, last_used, pinned };
        let entries = [kept(1, 40, 3, false), kept(2, 40, 1, true), kept(3, 10, 2, false)];
        assert_eq!(evict(&entries, 10, 100), Some(vec![]));
        assert_eq!(evict(&entries, 15, 100), Some(vec![Digest([3; 32])]));
        assert_eq!(evict(&entries, 30, 100), Some(vec![Digest([3; 32]), Digest([1; 32])]));
        assert_eq!(evict(&entries, 61, 100), None);
        assert_eq!(evict(&[], 101, 100), None);
    }

    #[test]
    fn models_are_kept_across_restarts_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 100).unwrap();
        let put = |cache: &Cache, n: u8, bytes| {
            let made = cache.incoming();
            std::fs::create_dir_all(&made).unwrap();
            std::fs::write(made.join("f"), [n]).unwrap();
            cache.put(&made, &Digest([n; 32]), bytes, &[])
        };
        put(&cache, 1, 60).unwrap();
        let stamps = [FileStamp { name: "f".into(), size: 1, mtime_ns: 5 }];
        cache.remember("nas://m/a", &stamps, Digest([1; 32]));
        let cache = Cache::open(dir.path(), 100).unwrap();
        assert_eq!(cache.known("nas://m/a", &stamps), Some(Digest([1; 32])));
        let newer = [FileStamp { mtime_ns: 6, ..stamps[0].clone() }];
        assert_eq!(cache.known("nas://m/a", &newer), None, "a changed file is read again");
        assert!(cache.get(&Digest([1; 32])).unwrap().join("f").is_file());
        put(&cache, 2, 60).unwrap();
        assert!(cache.get(&Digest([1; 32])).is_none(), "the older one made room");
        assert!(put(&cache, 3, 101).is_err());
    }
}
