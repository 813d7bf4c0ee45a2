//! Handles that listings brought along: each listing one lump of memory, since a directory of a hundred thousand files is
//! usually only walked through.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use ingle_proto::ObjectPath;

use super::handles::Found;
use super::wire::{self, Named};
use crate::export::Attr;

/// Entries of all listings that are remembered, the oldest listing forgotten first: about 6 MB.
const ENTRIES_MAX: usize = 32_768;

/// An entry: where its name and its handle lie, and what is known of it.
#[derive(Debug)]
struct Row {
    name: (u32, u8),
    /// No length: it is forgotten.
    handle_length: u8,
    attr: Attr,
    fsid: u64,
}

/// A directory's entries that came with a handle.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

impl Listing {
    /// Takes in an entry, if its handle came along and there is room.
    pub(crate) fn add(&mut self, named: &Named) {
        let (Some(attr), Some(handle)) = (&named.attr, &named.handle) else { return };
        if self.rows.len() >= ENTRIES_MAX || matches!(named.name.as_slice(), b"." | b"..") {
            return;
        }
        let lengths = (u8::try_from(named.name.len()), u8::try_from(handle.len()), u32::try_from(self.bytes.len()));
        let (Ok(name), Ok(handle_length), Ok(at)) = lengths else { return };
        self.bytes.extend_from_slice(&named.name);
        self.bytes.extend_from_slice(handle);
        self.rows.push(Row { name: (at, name), handle_length, attr: wire::attr(attr), fsid: attr.fsid });
    }

    fn name(bytes: &[u8], row: &Row) -> std::ops::Range<usize> {
        let start = row.name.0 as usize;
        debug_assert!(start + usize::from(row.name.1) <= bytes.len());
        start..start + usize::from(row.name.1)
    }

    fn sorted(mut self) -> Self {
        let bytes = &self.bytes;
        self.rows.sort_unstable_by(|a, b| bytes[Self::name(bytes, a)].cmp(&bytes[Self::name(bytes, b)]));
        self
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.rows.binary_search_by(|row| self.bytes[Self::name(&self.bytes, row)].cmp(name)).ok()
    }
}

/// The last listings of an export.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    /// The newest at the end.
    kept: VecDeque<(ObjectPath, Listing, Instant)>,
    entries: usize,
}

impl Listings {
    /// Keeps a listing; an older one of the same directory goes.
    pub(crate) fn put(&mut self, directory: ObjectPath, listing: Listing, at: Instant) {
        self.drop_listing(&directory);
        self.entries += listing.rows.len();
        self.kept.push_back((directory, listing.sorted(), at));
        while self.entries > ENTRIES_MAX
            && let Some((_, oldest, _)) = self.kept.pop_front()
        {
            self.entries -= oldest.rows.len();
        }
    }

    /// What has the path as a listing saw it, and when that was.
    pub(crate) fn get(&self, path: &ObjectPath) -> Option<(Found, Instant)> {
        let directory = path.parent()?;
        let (_, listing, at) = self.kept.iter().find(|(listed, ..)| *listed == directory)?;
        let row = &listing.rows[listing.find(path.file_name())?];
        let end = Listing::name(&listing.bytes, row).end;
        let handle =
            listing.bytes.get(end..end + usize::from(row.handle_length)).filter(|handle| !handle.is_empty())?;
        let (attr, fsid) = (row.attr.clone(), row.fsid);
        Some((Found { handle: Bytes::copy_from_slice(handle), attr, fsid }, *at))
    }

    /// Forgets one path, and what was listed of it if it is a directory.
    pub(crate) fn forget(&mut self, path: &ObjectPath) {
        self.drop_listing(path);
        let Some(directory) = path.parent() else { return };
        if let Some((_, listing, _)) = self.kept.iter_mut().find(|(listed, ..)| *listed == directory)
            && let Some(row) = listing.find(path.file_name())
        {
            listing.rows[row].handle_length = 0;
        }
    }

    fn drop_listing(&mut self, directory: &ObjectPath) {
        if let Some(at) = self.kept.iter().position(|(listed, ..)| listed == directory)
            && let Some((_, gone, _)) = self.kept.remove(at)
        {
            self.entries -= gone.rows.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use nfs3_types::nfs3::{fattr3, ftype3, nfstime3, specdata3};

    use super::*;

    fn named(name: &str, id: u64) -> Named {
        let time = || nfstime3 { seconds: 1, nseconds: 2 };
        let attr = fattr3 {
            type_: ftype3::NF3REG,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 3,
            used: 3,
            rdev: specdata3 { specdata1: 0, specdata2: 0 },
            fsid: 7,
            fileid: id,
            atime: time(),
            mtime: time(),
            ctime: time(),
        };
        let handle = Some(Bytes::copy_from_slice(&id.to_be_bytes()));
        Named { name: name.as_bytes().to_vec(), cookie: id, attr: Some(attr), handle }
    }

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).expect("a valid path")
    }

    fn listing(names: &[&str]) -> Listing {
        let mut listing = Listing::default();
        names.iter().zip(1..).for_each(|(name, id)| listing.add(&named(name, id)));
        listing
    }

    #[test]
    fn entries_are_found_by_name_and_forgotten() {
        let (mut listings, now) = (Listings::default(), Instant::now());
        listings.put(path("a"), listing(&["z", ".", "b", "m"]), now);
        let (found, at) = listings.get(&path("a/b")).expect("listed");
        assert_eq!((found.handle.as_ref(), found.attr.file_id, found.fsid, at), (&3u64.to_be_bytes()[..], 3, 7, now));
        assert!(listings.get(&path("a/c")).is_none() && listings.get(&path("b")).is_none());
        listings.forget(&path("a/b"));
        assert!(listings.get(&path("a/b")).is_none() && listings.get(&path("a/z")).is_some());
        listings.forget(&path("a"));
        assert!(listings.get(&path("a/z")).is_none());
        assert_eq!(listings.entries, 0);
    }

    #[test]
    fn the_oldest_listings_go() {
        let (mut listings, now) = (Listings::default(), Instant::now());
        let names: Vec<String> = (0..10_000).map(|n| format!("f{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for n in 0..10 {
            listings.put(path(&format!("d{n}")), listing(&names), now);
            assert!(listings.entries <= ENTRIES_MAX);
        }
        assert!(listings.get(&path("d9/f1")).is_some() && listings.get(&path("d0/f1")).is_none());
        listings.put(path("d9"), listing(&["x"]), now);
        assert!(listings.get(&path("d9/f1")).is_none() && listings.get(&path("d9/x")).is_some());
    }
}
