//! What a directory held at a look, in 16 bytes: equal digests mean that nothing in it moved. Pure.
//!
//! Over the entries that count, by name: kind, size, both times and file id. Of a directory within only its name and file id,
//! since its times say what happened in it, and it has a digest of its own.

use crate::export::{Attr, Entry, Kind};
use crate::scan::walk::Found;

/// Bytes of a digest: enough that two directories don't meet by chance, and a million of them stay small.
pub const DIGEST_BYTES: usize = 16;

/// A digest, or the mark of a name.
pub type Mark = [u8; DIGEST_BYTES];

/// Collects a directory's entries, in any order.
#[derive(Debug, Default)]
pub struct DirectoryDigest(Vec<(Vec<u8>, Mark)>);

impl DirectoryDigest {
    /// Takes an entry.
    pub fn add(&mut self, entry: &Entry) {
        let Attr { kind, size, mtime_ns, ctime_ns, file_id, .. } = entry.attr;
        let numbers = match kind {
            Kind::Directory => [1, 0, 0, 0, file_id],
            Kind::File => [2, size, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned(), file_id],
            Kind::Symlink => [3, size, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned(), file_id],
            Kind::Other => [4, 0, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned(), file_id],
        };
        self.0.push((entry.name.clone(), mark(&entry.name, &numbers)));
    }

    /// The digest over all of them.
    #[must_use]
    pub fn finish(mut self) -> Mark {
        self.0.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for (_, mark) in &self.0 {
            hasher.update(mark);
        }
        short(&hasher)
    }
}

/// Stands for a name.
#[must_use]
pub fn name_mark(name: &[u8]) -> Mark {
    mark(name, &[])
}

/// Stands for a document as it was found: another size, time or inode is another document.
#[must_use]
pub fn found_mark(found: &Found, action: i32) -> Mark {
    let action = u64::from(action.cast_unsigned());
    let Found { size, mtime_ns, ctime_ns, file_id, .. } = found;
    mark(&found.name, &[action, *size, mtime_ns.cast_unsigned(), ctime_ns.cast_unsigned(), *file_id])
}

fn mark(name: &[u8], numbers: &[u64]) -> Mark {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    short(&hasher)
}

fn short(hasher: &blake3::Hasher) -> Mark {
    let mut out = [0; DIGEST_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind) -> Entry {
        let attr = Attr { kind, size: 3, mtime_ns: 5, ctime_ns: 7, file_id: 9, mode: 0o644, links: 1 };
        Entry { name: name.into(), attr }
    }

    fn digest(entries: &[Entry]) -> Mark {
        let mut digest = DirectoryDigest::default();
        entries.iter().for_each(|entry| digest.add(entry));
        digest.finish()
    }

    #[test]
    fn whatever_moves_in_a_directory_changes_its_digest_and_the_order_does_not() {
        let (file, below) = (entry("a", Kind::File), entry("b", Kind::Directory));
        let whole = digest(&[file.clone(), below.clone()]);
        assert_eq!(whole, digest(&[below.clone(), file.clone()]));
        for change in [
            |attr: &mut Attr| attr.size += 1,
            |attr: &mut Attr| attr.mtime_ns += 1,
            |attr: &mut Attr| attr.ctime_ns += 1,
            |attr: &mut Attr| attr.file_id += 1,
            |attr: &mut Attr| attr.kind = Kind::Symlink,
        ] {
            let mut other = file.clone();
            change(&mut other.attr);
            assert_ne!(whole, digest(&[other, below.clone()]));
        }
        assert_ne!(whole, digest(&[entry("c", Kind::File), below.clone()]));
        assert_ne!(whole, digest(std::slice::from_ref(&file)));
        assert_ne!(digest(&[entry("ab", Kind::File), entry("c", Kind::File)]), digest(&[entry("a", Kind::File)]));
        // What happens in a directory within is told by its own digest.
        let mut touched = below;
        (touched.attr.mtime_ns, touched.attr.ctime_ns) = (70, 80);
        assert_eq!(whole, digest(&[file, touched]));
    }
}
