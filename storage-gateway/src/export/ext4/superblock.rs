//! The superblock: geometry, features, and where descriptions of groups lie.

use crate::export::ExportError;

use super::checksum;

/// Where it lies.
pub(crate) const OFFSET: u64 = 1024;
/// Bytes of it.
pub(crate) const SIZE: u32 = 1024;

/// Features that change where things lie.
mod incompatible {
    pub(super) const COMPRESSION: u32 = 0x1;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const JOURNAL_DEV: u32 = 0x8;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BITS_64: u32 = 0x80;
    pub(super) const DIRDATA: u32 = 0x1000;
    pub(super) const CSUM_SEED: u32 = 0x2000;
    pub(super) const INLINE_DATA: u32 = 0x8000;
    /// File types in directories, extents, MMP, flexible groups, attributes in inodes, large directories, encryption
    /// (of single files), names without case (of single directories): read, or no matter for reading.
    pub(super) const READ: u32 = 0x2 | 0x40 | 0x100 | 0x200 | 0x400 | 0x4000 | 0x1_0000 | 0x2_0000;
}

/// Whose features a reader need not know, but for these.
mod read_only {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const METADATA_CSUM: u32 = 0x400;
}

/// Its journal shows when it is mounted for writing: [`incompatible::RECOVER`] is set then.
const HAS_JOURNAL: u32 = 0x4;
/// Set in the state of a volume that was unmounted.
const UNMOUNTED: u16 = 0x1;
/// Newer than `sparse_super`: copies in two groups only.
const SPARSE_SUPER_2: u32 = 0x200;

/// What is needed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) block_size: u32,
    pub(crate) blocks: u64,
    pub(crate) inodes: u32,
    pub(crate) inode_size: u16,
    inodes_per_group: u32,
    blocks_per_group: u32,
    first_block: u32,
    descriptor_size: u16,
    /// Groups of descriptors that lie together at the beginning; later ones lie in their groups.
    first_meta: Option<u32>,
    sparse: bool,
    copies: Option<[u32; 2]>,
    uuid: [u8; 16],
    /// What checksums of metadata begin with; none are there if absent.
    pub(crate) seed: Option<u32>,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("within the superblock"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("within the superblock"))
}

impl Superblock {
    /// Reads and checks it. `shown` names the volume, `size` is that of what it lies on.
    pub(crate) fn read(bytes: &[u8], size: u64, shown: &str) -> Result<Self, ExportError> {
        let broken = |why: &str| Err(ExportError::Broken(format!("{shown}: ext4 superblock: {why}; run e2fsck on it")));
        if bytes.len() < SIZE as usize || half(bytes, 0x38) != 0xef53 {
            return broken("it isn't there any more");
        }
        let (compatible, needed, kept) = (word(bytes, 0x5c), word(bytes, 0x60), word(bytes, 0x64));
        features(needed, shown)?;
        unmounted(compatible, half(bytes, 0x3a), shown)?;
        let seed = if kept & read_only::METADATA_CSUM == 0 {
            None
        } else {
            if bytes[0x175] != 1 || checksum::of(!0, &bytes[..0x3fc]) != word(bytes, 0x3fc) {
                return broken("its checksum is wrong");
            }
            let stored = needed & incompatible::CSUM_SEED != 0;
            Some(if stored { word(bytes, 0x270) } else { checksum::of(!0, &bytes[0x68..0x78]) })
        };
        if word(bytes, 0x18) > 6 {
            return broken("blocks larger than 64 KiB");
        }
        let block_size = 1024_u32 << word(bytes, 0x18);
        let wide = needed & incompatible::BITS_64 != 0;
        let high = if wide { word(bytes, 0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(word(bytes, 0x4));
        let old = word(bytes, 0x4c) == 0;
        let read = Self {
            block_size,
            blocks,
            inodes: word(bytes, 0),
            inode_size: if old { 128 } else { half(bytes, 0x58) },
            inodes_per_group: word(bytes, 0x28),
            blocks_per_group: word(bytes, 0x20),
            first_block: word(bytes, 0x14),
            descriptor_size: if wide { half(bytes, 0xfe) } else { 32 },
            first_meta: (needed & incompatible::META_BG != 0).then(|| word(bytes, 0x104)),
            sparse: kept & read_only::SPARSE_SUPER != 0,
            copies: (compatible & SPARSE_SUPER_2 != 0).then(|| [word(bytes, 0x24c), word(bytes, 0x250)]),
            uuid: *bytes[0x68..].first_chunk().expect("within the superblock"),
            seed,
        };
        let sound = read.blocks.checked_mul(block_size.into()).is_some_and(|bytes| bytes <= size)
            && read.inode_size.is_power_of_two()
            && (128..=block_size).contains(&u32::from(read.inode_size))
            && read.inodes_per_group > 0
            && read.blocks_per_group > 0
            && u64::from(read.first_block) < read.blocks
            && read.descriptor_size.is_power_of_two()
            && (32..=1024).contains(&read.descriptor_size)
            && u32::from(read.descriptor_size) <= block_size;
        if sound { Ok(read) } else { broken("its numbers don't fit together, or the volume is larger than its disk") }
    }

    /// Whether it is the same file system, not made anew or grown.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self == other
    }

    /// Where an inode lies in its group: the group, and how many are before it there. `None` for a number that none has.
    pub(crate) fn group_of(&self, inode: u32) -> Option<(u32, u32)> {
        let index = inode.checked_sub(1).filter(|_| inode <= self.inodes)?;
        Some((index / self.inodes_per_group, index % self.inodes_per_group))
    }

    /// Where the description of a group lies, in bytes, and how long it is.
    pub(crate) fn descriptor(&self, group: u32) -> (u64, u32) {
        let size = u32::from(self.descriptor_size);
        let each = self.block_size / size;
        let (chunk, within) = (group / each, group % each);
        // The block of the superblock itself, which isn't the first one where clusters begin at block 0.
        let own = OFFSET / u64::from(self.block_size);
        let block = match self.first_meta {
            Some(first) if chunk >= first => {
                // The first group of those that the block describes holds it, behind a copy of the superblock if any.
                let home = chunk * each;
                let start = u64::from(self.first_block) + u64::from(home) * u64::from(self.blocks_per_group);
                start.max(own) + u64::from(self.has_copy(home))
            }
            _ => own + 1 + u64::from(chunk),
        };
        (block * u64::from(self.block_size) + u64::from(within * size), size)
    }

    fn has_copy(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if let Some(copies) = self.copies {
            return copies.contains(&group);
        }
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        !self.sparse || group == 1 || [3, 5, 7].into_iter().any(power_of)
    }

    /// Where the table of inodes of a group begins, in bytes.
    pub(crate) fn table(&self, group: u32, descriptor: &[u8]) -> Result<u64, String> {
        if let Some(seed) = self.seed {
            let mut sum = checksum::of(seed, &group.to_le_bytes());
            sum = checksum::of(sum, &descriptor[..0x1e]);
            sum = checksum::of(sum, &[0; 2]);
            sum = checksum::of(sum, &descriptor[0x20..]);
            if sum & 0xffff != u32::from(half(descriptor, 0x1e)) {
                return Err(format!("the checksum of group {group} is wrong"));
            }
        }
        let high = if descriptor.len() >= 64 { word(descriptor, 0x28) } else { 0 };
        let block = u64::from(high) << 32 | u64::from(word(descriptor, 0x8));
        if block == 0 || block >= self.blocks {
            return Err(format!("the inodes of group {group} lie at block {block} of {}", self.blocks));
        }
        Ok(block * u64::from(self.block_size))
    }
}

fn features(needed: u32, shown: &str) -> Result<(), ExportError> {
    const REFUSED: &[(u32, &str)] = &[
        (incompatible::COMPRESSION, "compression"),
        (incompatible::JOURNAL_DEV, "journal_dev (it is the journal of another volume)"),
        (incompatible::DIRDATA, "dirdata"),
        (incompatible::INLINE_DATA, "inline_data"),
    ];
    if let Some((_, name)) = REFUSED.iter().find(|(bit, _)| needed & bit != 0) {
        return Err(ExportError::Unsupported(format!("{shown}: an ext4 volume with {name}, which isn't read")));
    }
    let known = incompatible::READ
        | incompatible::RECOVER
        | incompatible::META_BG
        | incompatible::BITS_64
        | incompatible::CSUM_SEED;
    let unknown = needed & !known;
    if unknown != 0 {
        let why = format!("an ext4 volume with features that aren't known here (incompatible, bits {unknown:#x})");
        return Err(ExportError::Unsupported(format!("{shown}: {why}")));
    }
    if needed & incompatible::RECOVER != 0 {
        // Retryable: whoever has it mounted will end that.
        return Err(ExportError::Unavailable(format!(
            "{shown}: the journal of this ext4 volume holds changes (needs_recovery): it is mounted for writing \
             elsewhere, or was not unmounted; unmount it there, or run e2fsck on it, or export a snapshot"
        )));
    }
    Ok(())
}

/// Without a journal the state alone says so: whoever mounts it for writing clears that bit, and sets it again at the end.
fn unmounted(compatible: u32, state: u16, shown: &str) -> Result<(), ExportError> {
    if compatible & HAS_JOURNAL != 0 || state & UNMOUNTED != 0 {
        return Ok(());
    }
    // Retryable, as above.
    Err(ExportError::Unavailable(format!(
        "{shown}: this ext4 volume has no journal and isn't marked as unmounted (s_state {state:#x}): it is mounted for \
         writing elsewhere, or was not unmounted; unmount it there, or run e2fsck on it"
    )))
}
