//! What lies on a disk or partition, by the marks that its kind leaves: so that what can't be read is refused by name.

use super::ExportError;
use super::disk::Disk;

/// Bytes from the beginning in which marks are looked for: ZFS's is the last.
const LOOK: u64 = 132 * 1024;

/// Making ext4 leaves marks behind this standing that an earlier owner made.
const FAR: usize = 8192;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// ext2, ext3 or ext4.
    Ext4,
    /// Something else that has a name.
    Other(&'static str),
    /// Nothing known.
    Unknown,
}

/// Where a mark stands, what it is, and whose.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (3, b"-FVE-FS-", "BitLocker encryption"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (mdraid)"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (mdraid)"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (82, b"FAT32   ", "FAT32"),
    (54, b"FAT1", "FAT"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"H+\0\x04", "HFS+"),
    (32, b"NXSB", "APFS"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0x10000, b"\x01\x16\x19\x70", "GFS2"),
    (0x20000, b"\x0c\xb1\xba\x00\0\0\0\0", "ZFS"),
    (0x20000, b"\0\0\0\0\x00\xba\xb1\x0c", "ZFS"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache"),
];

/// Looks.
pub(crate) async fn content(disk: &dyn Disk) -> Result<Content, ExportError> {
    let length = u32::try_from(disk.size().min(LOOK)).expect("LOOK is small");
    let start = disk.read(0, length).await?;
    let has = |at: usize, mark: &[u8]| start.get(at..at + mark.len()) == Some(mark);
    let mark = |far: bool| MARKS.iter().find(|(at, mark, _)| (*at > FAR) == far && has(*at, mark));
    if let Some((_, _, name)) = mark(false) {
        return Ok(Content::Other(name));
    }
    if has(1024 + 0x38, b"\x53\xef") {
        return Ok(Content::Ext4);
    }
    if let Some((_, _, name)) = mark(true) {
        return Ok(Content::Other(name));
    }
    // Two old kinds of RAID members have their mark near the end.
    for at in [disk.size().wrapping_sub(65_536) & !65_535, disk.size().wrapping_sub(8192) & !4095] {
        if at < disk.size() && disk.size() - at >= 512 && disk.read(at, 512).await?.starts_with(b"\xfc\x4e\x2b\xa9") {
            return Ok(Content::Other("a member of a Linux RAID (mdraid)"));
        }
    }
    Ok(Content::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::disk::image::Image;

    #[tokio::test]
    async fn everything_has_its_name() {
        for (at, mark, name) in MARKS {
            let mut disk = vec![0; 300_000];
            assert_eq!(content(&Image::memory(disk.clone())).await, Ok(Content::Unknown));
            disk[*at..*at + mark.len()].copy_from_slice(mark);
            assert_eq!(content(&Image::memory(disk)).await, Ok(Content::Other(name)), "{name}");
        }
        for size in [0, 1, 511, 513, 2000, 5000] {
            assert_eq!(content(&Image::memory(vec![0; size])).await, Ok(Content::Unknown), "{size} bytes");
        }
        let mut disk = vec![0; 300_000];
        disk[1080..1082].copy_from_slice(b"\x53\xef");
        assert_eq!(content(&Image::memory(disk.clone())).await, Ok(Content::Ext4));
        disk[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
        assert_eq!(content(&Image::memory(disk.clone())).await, Ok(Content::Ext4), "what was there before");
        disk[..4].copy_from_slice(b"XFSB");
        assert_eq!(content(&Image::memory(disk)).await, Ok(Content::Other("XFS")));
        let mut member = vec![0; 300_000];
        let at = (300_000 - 65_536) & !65_535;
        member[at..at + 4].copy_from_slice(b"\xfc\x4e\x2b\xa9");
        let found = content(&Image::memory(member)).await;
        assert_eq!(found, Ok(Content::Other("a member of a Linux RAID (mdraid)")));
    }
}
