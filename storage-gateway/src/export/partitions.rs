//! Partition tables: GPT, with its copy at the end of the disk, and MBR with its chain of logical partitions.

use super::ExportError;
use super::disk::{Disk, READ_MAX};

/// Most entries that are read of a table.
const ENTRIES_MAX: u32 = 1024;
/// Most logical partitions that are followed.
const LOGICAL_MAX: u32 = 124;
/// Blocks of either size: some disks say 512 and carry a table made for 4096.
const BLOCKS: [u64; 2] = [512, 4096];

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Counted from 1, as other systems do.
    pub(crate) number: u32,
    /// First byte.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// What the table calls it; GPT only.
    pub(crate) name: String,
}

/// All partitions of a disk. `None` if it has no table.
pub(crate) async fn read(disk: &dyn Disk) -> Result<Option<Vec<Partition>>, ExportError> {
    for block in BLOCKS {
        if disk.size() < block * 4 {
            continue;
        }
        // The copy is for disks whose first blocks were lost.
        for at in [1, disk.size() / block - 1] {
            if let Some(found) = gpt(disk, block, at).await? {
                return Ok(Some(found));
            }
        }
    }
    mbr(disk).await
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("callers have checked the length")
}

async fn gpt(disk: &dyn Disk, block: u64, at: u64) -> Result<Option<Vec<Partition>>, ExportError> {
    let length = u32::try_from(block).expect("512 or 4096");
    let header = disk.read(at * block, length).await?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let size = u32::from_le_bytes(number(&header, 12)) as usize;
    if !(92..=header.len()).contains(&size) {
        return Ok(None);
    }
    let mut hashed = header[..size].to_vec();
    hashed[16..20].fill(0);
    if crc32fast::hash(&hashed) != u32::from_le_bytes(number(&header, 16)) {
        return Ok(None);
    }
    let table = u64::from_le_bytes(number(&header, 72));
    let (count, each) = (u32::from_le_bytes(number(&header, 80)), u32::from_le_bytes(number(&header, 84)));
    if count > ENTRIES_MAX || !(128..=1024).contains(&each) {
        return Ok(None);
    }
    let bytes = count * each;
    let Some(from) = table.checked_mul(block) else { return Ok(None) };
    if from.checked_add(bytes.into()).is_none_or(|end| end > disk.size()) || bytes > READ_MAX {
        return Ok(None);
    }
    let entries = disk.read(from, bytes).await?;
    if crc32fast::hash(&entries) != u32::from_le_bytes(number(&header, 88)) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (index, entry) in (1..).zip(entries.chunks_exact(each as usize)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64::from_le_bytes(number(entry, 32)), u64::from_le_bytes(number(entry, 40)));
        let end = last.checked_add(1).and_then(|end| end.checked_mul(block)).filter(|end| *end <= disk.size());
        let (Some(end), true) = (end, first <= last) else { continue };
        let units: Vec<u16> = entry[56..128].chunks_exact(2).map(|pair| u16::from_le_bytes(number(pair, 0))).collect();
        let name = String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned();
        found.push(Partition { number: index, start: first * block, size: end - first * block, name });
    }
    Ok(Some(found))
}

/// An entry of an MBR: type, first block, number of blocks.
fn entry(sector: &[u8], index: usize) -> (u8, u64, u64) {
    let at = 446 + 16 * index;
    let word = |at| u64::from(u32::from_le_bytes(number(sector, at)));
    (sector[at + 4], word(at + 8), word(at + 12))
}

async fn mbr(disk: &dyn Disk) -> Result<Option<Vec<Partition>>, ExportError> {
    const BLOCK: u64 = 512;
    let blocks = disk.size() / BLOCK;
    if blocks < 2 {
        return Ok(None);
    }
    let sector = disk.read(0, 512).await?;
    // The first bytes of a FAT or NTFS end like that too: their entries make no sense then.
    let flags_are_flags = (0..4).all(|index| sector[446 + 16 * index] & 0x7f == 0);
    if sector[510..] != [0x55, 0xaa] || !flags_are_flags {
        return Ok(None);
    }
    let fits = |start: u64, count: u64| start > 0 && count > 0 && start.saturating_add(count) <= blocks;
    let partition = |number, start: u64, count: u64| Partition {
        number,
        start: start * BLOCK,
        size: count * BLOCK,
        name: String::new(),
    };
    let mut found = Vec::new();
    for (number, index) in (1..).zip(0..4) {
        let (kind, start, count) = entry(&sector, index);
        match kind {
            // Nothing, or a table of another kind that isn't there.
            0 | 0xee => {}
            0x05 | 0x0f | 0x85 if fits(start, count) => {
                logical(disk, start, count, &mut found).await?;
            }
            _ if fits(start, count) => found.push(partition(number, start, count)),
            _ => {}
        }
    }
    found.sort_by_key(|partition| partition.number);
    Ok((!found.is_empty()).then_some(found))
}

/// The chain within an extended partition, numbered from 5. It only goes forward.
async fn logical(
    disk: &dyn Disk,
    extended: u64,
    extended_count: u64,
    found: &mut Vec<Partition>,
) -> Result<(), ExportError> {
    const BLOCK: u64 = 512;
    let (end, mut at) = (extended + extended_count, extended);
    for number in 5..5 + LOGICAL_MAX {
        let sector = disk.read(at * BLOCK, 512).await?;
        if sector[510..] != [0x55, 0xaa] {
            return Ok(());
        }
        let (kind, start, count) = entry(&sector, 0);
        let start = at + start;
        if kind != 0 && count > 0 && start.saturating_add(count) <= end {
            found.push(Partition { number, start: start * BLOCK, size: count * BLOCK, name: String::new() });
        }
        let (kind, next, _) = entry(&sector, 1);
        let next = extended + next;
        if !matches!(kind, 0x05 | 0x0f | 0x85) || next <= at || next >= end {
            return Ok(());
        }
        at = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::disk::image::Image;

    /// A disk with a GPT of these partitions (first block, last block), and its copy at the end.
    fn with_gpt(block: usize, partitions: &[(u64, u64)]) -> Vec<u8> {
        let (blocks, mut disk) = (600, vec![0; 600 * block]);
        let mut entries = vec![0; 128 * 128];
        for (index, (first, last)) in partitions.iter().enumerate() {
            let entry = &mut entries[index * 128..][..128];
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56] = b'p';
        }
        let table = entries.len().div_ceil(block) as u64;
        for (at, from) in [(1, 2), (blocks - 1, blocks - 1 - table)] {
            let mut header = vec![0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[72..80].copy_from_slice(&from.to_le_bytes());
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            let sum = crc32fast::hash(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            let place = |at: u64| usize::try_from(at).unwrap() * block;
            disk[place(at)..][..92].copy_from_slice(&header);
            disk[place(from)..][..entries.len()].copy_from_slice(&entries);
        }
        disk
    }

    async fn found(disk: &[u8]) -> Option<Vec<(u32, u64, u64)>> {
        let table = read(&Image::memory(disk.to_vec())).await.expect("it can be read");
        table.map(|table| table.into_iter().map(|part| (part.number, part.start, part.size)).collect())
    }

    #[tokio::test]
    async fn a_gpt_is_found_by_either_copy() {
        for block in [512, 4096] {
            let size = block as u64;
            let mut disk = with_gpt(block, &[(100, 199), (0, u64::MAX), (200, 200), (300, 299), (300, 700)]);
            let expected = Some(vec![(1, 100 * size, 100 * size), (3, 200 * size, size)]);
            assert_eq!(found(&disk).await, expected, "those within the disk");
            disk[block + 20] ^= 1;
            assert_eq!(found(&disk).await, expected, "the first header is spoilt");
            let last = disk.len() - block;
            disk[last] ^= 1;
            assert_eq!(found(&disk).await, None, "both are");
        }
    }

    fn put(disk: &mut [u8], table: usize, index: usize, kind: u8, start: u32, count: u32) {
        let at = table * 512 + 446 + 16 * index;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk[table * 512 + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
    }

    #[tokio::test]
    async fn an_mbr_with_logical_partitions() {
        let mut disk = vec![0; 2000 * 512];
        assert_eq!(found(&disk).await, None);
        put(&mut disk, 0, 0, 0x83, 10, 90);
        put(&mut disk, 0, 1, 0x05, 1000, 1000);
        put(&mut disk, 0, 2, 0x83, 100, 5000);
        put(&mut disk, 1000, 0, 0x83, 10, 90);
        put(&mut disk, 1000, 1, 0x05, 500, 500);
        put(&mut disk, 1500, 0, 0x83, 10, 90);
        let at = |block: u64| block * 512;
        let expected = vec![(1, at(10), at(90)), (5, at(1010), at(90)), (6, at(1510), at(90))];
        assert_eq!(found(&disk).await, Some(expected.clone()), "what goes past the end is left out");
        // A chain that comes back to its beginning ends.
        put(&mut disk, 1500, 1, 0x05, 500, 500);
        assert_eq!(found(&disk).await, Some(expected));
        disk[446] = 0x33;
        assert_eq!(found(&disk).await, None, "code, not a table");
    }

    #[tokio::test]
    async fn noise_is_no_table() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut disk = with_gpt(512, &[(100, 199)]);
            for _ in 0..random.usize(1..200) {
                let at = random.usize(..disk.len().min(20_000));
                disk[at] = random.u8(..);
            }
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            let size = disk.len() as u64;
            for (_, start, length) in found(&disk).await.unwrap_or_default() {
                assert!(start + length <= size, "seed {seed}");
            }
        }
    }
}
