//! An inode: attributes, and the sixty bytes that say where its contents lie.

use super::checksum;
use super::superblock::Superblock;
use crate::export::{Attr, Kind};

/// Its contents lie in extents.
const EXTENTS: u32 = 0x0008_0000;
/// Its contents and names are encrypted.
const ENCRYPTED: u32 = 0x0000_0800;
/// Its directory has an index.
const INDEXED: u32 = 0x0000_1000;

/// What is needed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) attr: Attr,
    flags: u32,
    generation: u32,
    /// Extents, or numbers of blocks.
    pub(crate) map: [u8; 60],
    /// What checksums of its blocks begin with.
    pub(crate) seed: Option<u32>,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("an inode has 128 bytes at least"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("an inode has 128 bytes at least"))
}

impl Inode {
    /// Reads and checks it. `Ok(None)` if no name leads to it any more.
    pub(crate) fn read(superblock: &Superblock, number: u32, bytes: &[u8]) -> Result<Option<Self>, String> {
        let generation = word(bytes, 0x64);
        let extra = if bytes.len() > 0x82 { usize::from(half(bytes, 0x80)) } else { 0 };
        let seed = superblock
            .seed
            .map(|seed| checksum::of(checksum::of(seed, &number.to_le_bytes()), &generation.to_le_bytes()));
        if let Some(seed) = seed {
            let long = bytes.len() > 128 && extra >= 4;
            let mut sum = checksum::of(seed, &bytes[..0x7c]);
            sum = checksum::of(sum, &[0; 2]);
            if long {
                sum = checksum::of(sum, &bytes[0x7e..0x82]);
                sum = checksum::of(sum, &[0; 2]);
                sum = checksum::of(sum, &bytes[0x84..]);
            } else {
                sum = checksum::of(sum, &bytes[0x7e..]);
            }
            let high = if long { half(bytes, 0x82) } else { 0 };
            let (stored, mask) = (u32::from(high) << 16 | u32::from(half(bytes, 0x7c)), if long { !0 } else { 0xffff });
            if sum & mask != stored {
                return Err(format!("the checksum of inode {number} is wrong"));
            }
        }
        let (mode, links) = (half(bytes, 0), half(bytes, 0x1a));
        if links == 0 || mode == 0 {
            return Ok(None);
        }
        let kind = match mode & 0xf000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Directory,
            0xa000 => Kind::Symlink,
            _ => Kind::Other,
        };
        let has = |end: usize| 128 + extra >= end && bytes.len() >= end;
        let time = |at: usize, more: usize| {
            // Two more bits of seconds, and thirty of nanoseconds, where the inode is long enough.
            let seconds = i64::from(word(bytes, at).cast_signed());
            let extra = if has(more + 4) { word(bytes, more) } else { 0 };
            let seconds = seconds + (i64::from(extra & 3) << 32);
            seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(extra >> 2).min(999_999_999))
        };
        let attr = Attr {
            kind,
            size: u64::from(word(bytes, 0x6c)) << 32 | u64::from(word(bytes, 0x4)),
            mtime_ns: time(0x10, 0x88),
            ctime_ns: time(0xc, 0x84),
            file_id: number.into(),
            mode: u32::from(mode & 0o7777),
            links: links.into(),
        };
        let map = *bytes[0x28..].first_chunk().expect("an inode has 128 bytes at least");
        Ok(Some(Self { number, attr, flags: word(bytes, 0x20), generation, map, seed }))
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    pub(crate) fn encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub(crate) fn indexed(&self) -> bool {
        self.flags & INDEXED != 0
    }

    /// Another value says that its contents may have changed.
    pub(crate) fn stamp(&self) -> (u32, u64, i64, i64) {
        (self.generation, self.attr.size, self.attr.mtime_ns, self.attr.ctime_ns)
    }
}
