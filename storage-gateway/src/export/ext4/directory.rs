//! Directories: their blocks read one after the other, hashed or not, into an index by name.

use std::collections::HashMap;

use super::checksum;
use super::inode::Inode;

/// Why a directory isn't read.
#[derive(Debug)]
pub(crate) enum Refused {
    /// What is wrong with it.
    Spoilt(String),
    /// More names than anybody asks for.
    TooMany,
}

/// A directory's names, with the inodes they lead to; never `.` or `..`.
#[derive(Debug)]
pub(crate) struct Index {
    names: HashMap<Box<[u8]>, u32>,
    /// Bytes of the directory on the disk.
    pub(crate) bytes: u64,
    /// Of its inode, when it was read.
    pub(crate) stamp: (u32, u64, i64, i64),
}

impl Index {
    /// Of a directory, with nothing in it yet.
    pub(crate) fn of(inode: &Inode) -> Self {
        Self { names: HashMap::new(), bytes: inode.attr.size, stamp: inode.stamp() }
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.names.iter().map(|(name, inode)| (name.as_ref(), *inode))
    }

    /// Bytes of memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.names.keys().map(|name| name.len() + 64).sum::<usize>() + 256
    }

    /// Takes one block in, up to `most` names in all. What a hashed directory keeps for finding names looks like empty space
    /// here.
    pub(crate) fn add(&mut self, inode: &Inode, block: &[u8], most: usize) -> Result<(), Refused> {
        let about = |why: &str| Refused::Spoilt(format!("directory with inode {}: {why}", inode.number));
        check(inode, block).map_err(about)?;
        let mut at = 0;
        while at + 8 <= block.len() {
            let number = u32::from_le_bytes(*block[at..].first_chunk().expect("eight bytes are left"));
            let length = match u16::from_le_bytes([block[at + 4], block[at + 5]]) {
                // As long as a block of 64 KiB, which 16 bits can't say.
                0 | 0xffff if block.len() == 65_536 => 65_536,
                length => usize::from(length),
            };
            let name_length = usize::from(block[at + 6]);
            if length < 8 || !length.is_multiple_of(4) || length > block.len() - at {
                return Err(about("an entry that goes past its block"));
            }
            if number != 0 && name_length > 0 {
                if 8 + name_length > length {
                    return Err(about("a name that is longer than its entry"));
                }
                let name = &block[at + 8..at + 8 + name_length];
                if name.contains(&b'/') || name.contains(&0) {
                    return Err(about("a name with a slash or NUL in it"));
                }
                if name != b"." && name != b".." {
                    self.names.insert(name.into(), number);
                    if self.names.len() > most {
                        return Err(Refused::TooMany);
                    }
                }
            }
            at += length;
        }
        Ok(())
    }
}

/// Blocks with names end in an entry that holds their checksum; those of an index have theirs elsewhere.
fn check(inode: &Inode, block: &[u8]) -> Result<(), &'static str> {
    let (Some(seed), Some(tail)) = (inode.seed, block.last_chunk::<12>()) else { return Ok(()) };
    if tail[..8] != [0, 0, 0, 0, 12, 0, 0, 0xde] {
        return if inode.indexed() { Ok(()) } else { Err("a block without its checksum") };
    }
    let stored = u32::from_le_bytes(*tail.last_chunk().expect("twelve bytes"));
    if checksum::of(seed, &block[..block.len() - 12]) == stored {
        Ok(())
    } else {
        Err("the checksum of a block is wrong")
    }
}
