//! Handles of objects looked up a moment ago, bounded in number and age.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ingle_proto::ObjectPath;

use super::listed::{Listing, Listings};
use crate::export::{Attr, Kind};

/// A file's handle is used this long without asking who has the name now.
const FILE_AGE_MAX: Duration = Duration::from_secs(1);
/// A directory's, likewise: people rename directories seldom.
const DIRECTORY_AGE_MAX: Duration = Duration::from_secs(5);
/// Entries in each of the two generations: those of a listing of some pages, about 5 MB.
const ENTRIES_MAX: usize = 16_384;

/// An object that LOOKUP found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its handle, at most 64 bytes.
    pub(crate) handle: Bytes,
    /// Its attributes then.
    pub(crate) attr: Attr,
    /// The file system it is on: file ids are unique within it only.
    pub(crate) fsid: u64,
}

impl Found {
    /// Whether both are one object.
    pub(crate) fn same(&self, other: &Self) -> bool {
        (self.fsid, self.attr.file_id) == (other.fsid, other.attr.file_id)
    }
}

#[derive(Debug, Clone)]
struct Known {
    found: Found,
    at: Instant,
}

impl Known {
    fn fresh(&self, now: Instant) -> bool {
        let max = if self.found.attr.kind == Kind::Directory { DIRECTORY_AGE_MAX } else { FILE_AGE_MAX };
        now.saturating_duration_since(self.at) < max
    }
}

/// Two generations: when the young one is full it becomes the old one, and what was old is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    young: HashMap<ObjectPath, Known>,
    old: HashMap<ObjectPath, Known>,
    listings: Listings,
}

impl Handles {
    /// What has the path, as far as that is fresh.
    pub(crate) fn get(&self, path: &ObjectPath, now: Instant) -> Option<Found> {
        let known = self.young.get(path).or_else(|| self.old.get(path)).filter(|known| known.fresh(now));
        if let Some(known) = known {
            return Some(known.found.clone());
        }
        let (found, at) = self.listings.get(path)?;
        let known = Known { found, at };
        known.fresh(now).then_some(known.found)
    }

    /// Remembers what has the path.
    pub(crate) fn put(&mut self, path: ObjectPath, found: Found, now: Instant) {
        if self.young.len() >= ENTRIES_MAX && !self.young.contains_key(&path) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(path, Known { found, at: now });
    }

    /// Remembers what a listing of a directory saw.
    pub(crate) fn put_listing(&mut self, directory: ObjectPath, listing: Listing, now: Instant) {
        self.listings.put(directory, listing, now);
    }

    /// Forgets one path.
    pub(crate) fn forget(&mut self, path: &ObjectPath) {
        self.listings.forget(path);
        self.young.remove(path);
        self.old.remove(path);
    }

    /// Forgets a path and all directories above it.
    pub(crate) fn forget_chain(&mut self, path: &ObjectPath) {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            self.forget(&path);
            at = path.parent();
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.listings = Listings::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).expect("a valid path")
    }

    fn found(kind: Kind, file_id: u64) -> Found {
        let attr = Attr { kind, size: 0, mtime_ns: 0, ctime_ns: 0, file_id, mode: 0, links: 1 };
        Found { handle: Bytes::from_static(b"h"), attr, fsid: 0 }
    }

    #[test]
    fn ages_and_bounds() {
        let mut handles = Handles::default();
        let start = Instant::now();
        handles.put(path("f"), found(Kind::File, 1), start);
        handles.put(path("d"), found(Kind::Directory, 2), start);
        assert!(handles.get(&path("f"), start).is_some());
        let later = start + Duration::from_secs(2);
        assert!(handles.get(&path("f"), later).is_none() && handles.get(&path("d"), later).is_some());
        for i in 0..3 * ENTRIES_MAX as u64 {
            handles.put(path(&format!("x{i}")), found(Kind::Directory, i), start);
            assert!(handles.young.len() + handles.old.len() <= 2 * ENTRIES_MAX);
        }
        assert!(handles.get(&path("d"), start).is_none(), "the oldest went");
        handles.put(path("a/b"), found(Kind::Directory, 9), start);
        handles.put(path("a"), found(Kind::Directory, 8), start);
        handles.forget_chain(&path("a/b/c"));
        assert!(handles.get(&path("a/b"), start).is_none() && handles.get(&path("a"), start).is_none());
    }
}
