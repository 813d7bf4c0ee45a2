//! Where the contents of an inode lie: its tree of extents, or the lists of blocks of older files.

use super::Volume;
use super::checksum;
use super::inode::Inode;
use crate::export::ExportError;

/// Deepest tree of extents.
const DEPTH_MAX: u16 = 5;
/// Bytes of an entry, and of the head before the entries.
const ENTRY: usize = 12;
/// Set in the length of an extent that has room on the disk and no contents yet.
const UNWRITTEN: u16 = 32_768;

/// A piece of a file: consecutive blocks of it that lie one after the other, or aren't there (and read as zeros).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block of the file.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
    /// First block on the disk.
    pub(crate) at: Option<u64>,
}

/// The runs that hold the blocks `from .. to` of a file, in order and without gaps.
pub(crate) async fn runs(volume: &Volume, inode: &Inode, from: u64, to: u64) -> Result<Vec<Run>, ExportError> {
    let mut found = Vec::new();
    if inode.has_extents() {
        extents(volume, inode, from, to, &mut found).await?;
    } else {
        blocks(volume, inode, from, to, &mut found).await?;
    }
    let mut whole = Vec::with_capacity(found.len() + 1);
    let mut next = from;
    for run in found {
        if run.first > next {
            whole.push(Run { first: next, count: run.first - next, at: None });
        }
        next = run.first + run.count;
        whole.push(run);
    }
    if next < to {
        whole.push(Run { first: next, count: to - next, at: None });
    }
    Ok(whole)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().expect("callers have checked the length"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("callers have checked the length"))
}

/// Entries of a node that may concern the blocks `from .. to`, with the first block behind each.
fn entries(node: &[u8], depth: u16, from: u64, to: u64) -> Result<Vec<(&[u8], u64)>, String> {
    let (magic, count, most, found) = (half(node, 0), half(node, 2), half(node, 4), half(node, 6));
    let room = (node.len() - ENTRY) / ENTRY;
    if magic != 0xf30a || count > most || usize::from(most) > room || found != depth {
        return Err(format!("a node of extents can't be: {count} of {most} entries, depth {found} instead of {depth}"));
    }
    let all: Vec<&[u8]> = node[ENTRY..].chunks_exact(ENTRY).take(count.into()).collect();
    let firsts: Vec<u64> = all.iter().map(|entry| word(entry, 0).into()).collect();
    if !firsts.is_sorted_by(|a, b| a < b) {
        return Err("extents aren't in order".to_owned());
    }
    let ends = firsts.iter().skip(1).copied().chain([u64::from(u32::MAX) + 1]);
    let with_ends = all.into_iter().zip(firsts.iter().copied().zip(ends));
    Ok(with_ends.filter(|(_, (first, end))| *first < to && *end > from).map(|(entry, (_, end))| (entry, end)).collect())
}

async fn extents(volume: &Volume, inode: &Inode, from: u64, to: u64, found: &mut Vec<Run>) -> Result<(), ExportError> {
    let about = |why: String| volume.broken(format!("inode {}: {why}", inode.number));
    let depth = half(&inode.map, 6);
    if depth > DEPTH_MAX {
        return Err(about(format!("a tree of extents of depth {depth}")));
    }
    // Nodes still to be read, the leftmost last: depth, first block behind it, contents.
    let mut nodes: Vec<(u16, u64, bytes::Bytes)> = vec![(depth, to, bytes::Bytes::copy_from_slice(&inode.map))];
    while let Some((depth, end, node)) = nodes.pop() {
        let to = to.min(end);
        let chosen = entries(&node, depth, from, to).map_err(about)?;
        if depth > 0 {
            for (entry, end) in chosen.into_iter().rev() {
                let block = u64::from(half(entry, 8)) << 32 | u64::from(word(entry, 4));
                let child = volume.block(block).await?;
                check(inode, &child).map_err(about)?;
                nodes.push((depth - 1, end.min(to), child));
            }
            continue;
        }
        for (entry, end) in chosen {
            let (first, length) = (u64::from(word(entry, 0)), half(entry, 4));
            let (count, written) = if length > UNWRITTEN { (length - UNWRITTEN, false) } else { (length, true) };
            let at = u64::from(half(entry, 6)) << 32 | u64::from(word(entry, 8));
            let last = first + u64::from(count);
            if count == 0 || last > end || at == 0 || at + u64::from(count) > volume.superblock().blocks {
                return Err(about(format!("an extent of {count} blocks at {at} can't be")));
            }
            let (start, stop) = (first.max(from), last.min(to));
            if start < stop {
                let at = written.then_some(at + (start - first));
                found.push(Run { first: start, count: stop - start, at });
            }
        }
    }
    Ok(())
}

fn check(inode: &Inode, node: &[u8]) -> Result<(), String> {
    let Some(seed) = inode.seed else { return Ok(()) };
    let tail = ENTRY + usize::from(half(node, 4)) * ENTRY;
    if tail + 4 > node.len() {
        return Err("a node of extents says that it is longer than a block".to_owned());
    }
    if checksum::of(seed, &node[..tail]) != word(node, tail) {
        return Err("the checksum of its extents is wrong".to_owned());
    }
    Ok(())
}

/// Files of ext2 and ext3: twelve blocks, then lists of blocks, lists of lists, lists of lists of lists.
async fn blocks(volume: &Volume, inode: &Inode, from: u64, to: u64, found: &mut Vec<Run>) -> Result<(), ExportError> {
    let each = u64::from(volume.superblock().block_size / 4);
    // What the lists can hold; a file that claims more has nothing behind it.
    let to = to.min(12 + each + each * each + each * each * each);
    let mut block = from;
    while block < to {
        // The place in the inode, and the places in the lists below it.
        let (place, steps) = place(block, each);
        let mut at = word(&inode.map, place * 4);
        let mut missing = 1;
        for (index, step) in steps.iter().enumerate() {
            if at == 0 {
                // All that would be below a list that isn't there.
                let below = u32::try_from(steps.len() - index - 1).expect("three at most");
                missing = each.pow(below);
                break;
            }
            at = word(&volume.block(at.into()).await?, *step * 4);
        }
        if at == 0 {
            // Up to where the missing list ends.
            block += missing - (block - offset_of(steps.len(), each)) % missing;
            continue;
        }
        if u64::from(at) >= volume.superblock().blocks {
            let why = format!("inode {}: block {at} of {}", inode.number, volume.superblock().blocks);
            return Err(volume.broken(why));
        }
        match found.last_mut() {
            Some(run)
                if run.first + run.count == block && run.at.is_some_and(|start| start + run.count == u64::from(at)) =>
            {
                run.count += 1;
            }
            _ => found.push(Run { first: block, count: 1, at: Some(at.into()) }),
        }
        block += 1;
    }
    Ok(())
}

/// The first block of a file that is `levels` lists away.
fn offset_of(levels: usize, each: u64) -> u64 {
    match levels {
        0 => 0,
        1 => 12,
        2 => 12 + each,
        _ => 12 + each + each * each,
    }
}

fn place(block: u64, each: u64) -> (usize, Vec<usize>) {
    let index = |number: u64| usize::try_from(number).expect("less than the numbers in a block");
    let levels = (1..4).rev().find(|levels| block >= offset_of(*levels, each)).unwrap_or(0);
    if levels == 0 {
        return (index(block), Vec::new());
    }
    let mut rest = block - offset_of(levels, each);
    let mut steps = vec![0; levels];
    for step in steps.iter_mut().rev() {
        *step = index(rest % each);
        rest /= each;
    }
    (11 + levels, steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_files_count_their_lists() {
        assert_eq!(place(11, 256), (11, vec![]));
        assert_eq!(place(12, 256), (12, vec![0]));
        assert_eq!(place(12 + 255, 256), (12, vec![255]));
        assert_eq!(place(12 + 256, 256), (13, vec![0, 0]));
        assert_eq!(place(12 + 256 + 257, 256), (13, vec![1, 1]));
        assert_eq!(place(12 + 256 + 65_536 + 1, 256), (14, vec![0, 0, 1]));
    }

    #[test]
    fn nodes_that_cannot_be_are_refused() {
        let mut node = vec![0; 60];
        node[..8].copy_from_slice(&[0x0a, 0xf3, 2, 0, 4, 0, 0, 0]);
        node[24] = 5;
        assert_eq!(entries(&node, 0, 0, 9).unwrap().len(), 2);
        assert_eq!(entries(&node, 0, 5, 9).unwrap().len(), 1, "only what may concern us");
        assert!(entries(&node, 1, 0, 9).is_err(), "another depth");
        node[24] = 0;
        assert!(entries(&node, 0, 0, 9).is_err(), "out of order");
        node[2] = 5;
        assert!(entries(&node, 0, 0, 9).is_err(), "more entries than room");
        node[4] = 200;
        assert!(entries(&node, 0, 0, 9).is_err());
    }
}
