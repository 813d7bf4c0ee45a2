//! Where the contents of an inode lie: its tree of extents, or the lists of blocks of older files.

use std::ops::Range;

use super::Volume;
use super::checksum;
use super::inode::Inode;
use crate::export::ExportError;

/// Deepest tree of extents.
const DEPTH_MAX: u16 = 5;
/// Most nodes of a tree that one call reads. The largest directory, in pieces of one block and with its nodes half full,
/// needs less than half of them.
const NODES_MAX: usize = 16_384;
/// Blocks of a file that a tree can count.
const BLOCKS_MAX: u64 = 1 << 32;
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
    let found = if inode.has_extents() {
        extents(volume, inode, from, to).await?
    } else {
        blocks(volume, inode, from, to).await?
    };
    let mut whole = Vec::with_capacity(found.len() + 1);
    let mut next = from;
    for run in found {
        // More bytes than there are blocks to hold them: nothing that adds them up may see that.
        if run.first < next {
            return Err(volume.broken(format!("inode {}: pieces of it overlap", inode.number)));
        }
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

/// An entry, and the blocks between which all of it must lie.
type Within<'n> = (&'n [u8], Range<u64>);

/// Entries of a node that may concern the blocks `wanted`, with the blocks of the file that each stands for: up to the next
/// entry, or up to where the node ends. All of them lie `within` what the parent says.
fn entries<'n>(
    node: &'n [u8],
    depth: u16,
    within: &Range<u64>,
    wanted: &Range<u64>,
) -> Result<Vec<Within<'n>>, String> {
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
    // Two parents never have the same blocks: so no node has two, and a tree is no larger than the disk.
    if firsts.first().is_some_and(|first| *first < within.start)
        || firsts.last().is_some_and(|last| *last >= within.end)
    {
        return Err("a node of extents holds blocks that its parent has elsewhere".to_owned());
    }
    let ends = firsts.iter().skip(1).copied().chain([within.end]);
    let stretches = firsts.iter().zip(ends).map(|(first, end)| *first..end);
    let concerned = |blocks: &Range<u64>| blocks.start < wanted.end && blocks.end > wanted.start;
    Ok(all.into_iter().zip(stretches).filter(|(_, blocks)| concerned(blocks)).collect())
}

/// A node of a tree below its root.
#[derive(Debug)]
struct Node {
    /// Where it lies.
    block: u64,
    depth: u16,
    /// The blocks of the file that it may speak of.
    blocks: Range<u64>,
}

/// A tree on its way to runs: says which node is to be read next, and takes it in.
struct Walk {
    wanted: Range<u64>,
    /// Blocks of the volume.
    blocks: u64,
    /// Nodes still to be read, the leftmost last.
    below: Vec<Node>,
    /// Nodes that were.
    nodes: usize,
    found: Vec<Run>,
}

impl Walk {
    /// With the root, which lies in the inode.
    fn begin(root: &[u8; 60], wanted: Range<u64>, blocks: u64) -> Result<Self, String> {
        let depth = half(root, 6);
        if depth > DEPTH_MAX {
            return Err(format!("a tree of extents of depth {depth}"));
        }
        let mut walk = Self { wanted, blocks, below: Vec::new(), nodes: 0, found: Vec::new() };
        walk.take(root, depth, &(0..BLOCKS_MAX))?;
        Ok(walk)
    }

    /// The node to be read next.
    fn down(&mut self) -> Result<Option<Node>, String> {
        let Some(node) = self.below.pop() else { return Ok(None) };
        // Nodes that hold nothing may be shared all the same.
        if self.nodes == NODES_MAX {
            return Err(format!("a tree of extents with more than {NODES_MAX} nodes in one piece"));
        }
        self.nodes += 1;
        Ok(Some(node))
    }

    /// Takes in what a node holds.
    fn take(&mut self, node: &[u8], depth: u16, within: &Range<u64>) -> Result<(), String> {
        let chosen = entries(node, depth, within, &self.wanted)?;
        if depth > 0 {
            for (entry, blocks) in chosen.into_iter().rev() {
                let block = u64::from(half(entry, 8)) << 32 | u64::from(word(entry, 4));
                self.below.push(Node { block, depth: depth - 1, blocks });
            }
            return Ok(());
        }
        for (entry, blocks) in chosen {
            let (first, length) = (blocks.start, half(entry, 4));
            let (count, written) = if length > UNWRITTEN { (length - UNWRITTEN, false) } else { (length, true) };
            let at = u64::from(half(entry, 6)) << 32 | u64::from(word(entry, 8));
            let last = first + u64::from(count);
            if count == 0 || last > blocks.end || at == 0 || at + u64::from(count) > self.blocks {
                return Err(format!("an extent of {count} blocks at {at} can't be"));
            }
            let (start, stop) = (first.max(self.wanted.start), last.min(self.wanted.end));
            if start < stop {
                let at = written.then_some(at + (start - first));
                self.found.push(Run { first: start, count: stop - start, at });
            }
        }
        Ok(())
    }
}

async fn extents(volume: &Volume, inode: &Inode, from: u64, to: u64) -> Result<Vec<Run>, ExportError> {
    let about = |why: String| volume.broken(format!("inode {}: {why}", inode.number));
    let mut walk = Walk::begin(&inode.map, from..to, volume.superblock().blocks).map_err(about)?;
    while let Some(node) = walk.down().map_err(about)? {
        let bytes = volume.block(node.block).await?;
        check(inode, &bytes).map_err(about)?;
        walk.take(&bytes, node.depth, &node.blocks).map_err(about)?;
    }
    Ok(walk.found)
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
async fn blocks(volume: &Volume, inode: &Inode, from: u64, to: u64) -> Result<Vec<Run>, ExportError> {
    let mut found: Vec<Run> = Vec::new();
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
    Ok(found)
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
        let all = 0..BLOCKS_MAX;
        assert_eq!(entries(&node, 0, &all, &(0..9)).unwrap().len(), 2);
        assert_eq!(entries(&node, 0, &all, &(5..9)).unwrap().len(), 1, "only what may concern us");
        assert!(entries(&node, 1, &all, &(0..9)).is_err(), "another depth");
        assert!(entries(&node, 0, &(1..9), &(0..9)).is_err(), "before its parent");
        assert!(entries(&node, 0, &(0..5), &(0..9)).is_err(), "behind its parent");
        node[24] = 0;
        assert!(entries(&node, 0, &all, &(0..9)).is_err(), "out of order");
        node[2] = 5;
        assert!(entries(&node, 0, &all, &(0..9)).is_err(), "more entries than room");
        node[4] = 200;
        assert!(entries(&node, 0, &all, &(0..9)).is_err());
    }

    /// A node with room for so many entries: the first block of the file, how many blocks (of an extent), and where.
    fn node(depth: u16, room: usize, entries: &[(u32, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY * (room + 1)];
        let halves = [0xf30a, u16::try_from(entries.len()).unwrap(), u16::try_from(room).unwrap(), depth];
        for (half, place) in halves.iter().zip(bytes.chunks_exact_mut(2)) {
            place.copy_from_slice(&half.to_le_bytes());
        }
        for ((first, count, at), entry) in entries.iter().zip(bytes[ENTRY..].chunks_exact_mut(ENTRY)) {
            let words = if depth > 0 { [*first, *at, 0] } else { [*first, (*count).into(), *at] };
            for (word, place) in words.iter().zip(entry.chunks_exact_mut(4)) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    /// Walks a tree: what it comes to, and how many nodes that took.
    fn walk(root: &[u8], wanted: Range<u64>, read: impl Fn(&Node) -> Vec<u8>) -> (Result<Vec<Run>, String>, usize) {
        let mut walk = match Walk::begin(root.first_chunk().expect("60 bytes"), wanted, 1 << 20) {
            Ok(walk) => walk,
            Err(why) => return (Err(why), 0),
        };
        loop {
            let taken = match walk.down() {
                Ok(Some(node)) => walk.take(&read(&node), node.depth, &node.blocks),
                Ok(None) => return (Ok(walk.found), walk.nodes),
                Err(why) => Err(why),
            };
            if let Err(why) = taken {
                return (Err(why), walk.nodes);
            }
        }
    }

    #[test]
    fn a_tree_is_walked_where_it_concerns_us() {
        let root = node(1, 4, &[(0, 0, 7), (100, 0, 8)]);
        let read = |wanted: &Node| match wanted.block {
            7 => node(0, 340, &[(0, 10, 1000), (50, 20, 2000)]),
            // An index may begin before what is below it does: something was cut out there.
            _ => node(0, 340, &[(102, UNWRITTEN + 5, 3000)]),
        };
        let run = |first, count, at| Run { first, count, at };
        let all = vec![run(0, 10, Some(1000)), run(50, 20, Some(2000)), run(102, 5, None)];
        assert_eq!(walk(&root, 0..200, read), (Ok(all), 2));
        assert_eq!(walk(&root, 60..103, read), (Ok(vec![run(60, 10, Some(2010)), run(102, 1, None)]), 2));
        assert_eq!(walk(&root, 60..100, read), (Ok(vec![run(60, 10, Some(2010))]), 1));
        for spoilt in [&[(0, 10, 1000), (5, 10, 2000)], &[(0, 10, 1000), (99, 2, 2000)]] {
            assert!(walk(&root, 0..200, |_| node(0, 340, spoilt)).0.is_err(), "{spoilt:?}");
        }
    }

    #[test]
    fn trees_without_end_are_given_up() {
        // All indexes of a level lead to one node: without bounds, more ways through it than anybody can go.
        let level: Vec<u32> = (0..340).collect();
        let read = |wanted: &Node| {
            let entries: Vec<(u32, u16, u32)> = level.iter().map(|first| (*first, 1, 1000)).collect();
            node(wanted.depth, 340, &entries)
        };
        for roots in 1..=4 {
            let entries: Vec<(u32, u16, u32)> = (0..roots).map(|first| (first, 1, 1000)).collect();
            let (found, nodes) = walk(&node(5, 4, &entries), 0..340, read);
            assert!(found.is_err() && nodes <= 5, "{nodes} nodes: {found:?}");
        }
        // Nothing is wrong with any node of this one, and nothing is in it.
        let wide = |wanted: &Node| {
            let step = (wanted.blocks.end - wanted.blocks.start) / 340;
            let first = |index: u64| u32::try_from(wanted.blocks.start + index * step).unwrap();
            let entries: Vec<(u32, u16, u32)> = (0..340).map(|index| (first(index), 0, 1000)).collect();
            node(wanted.depth, 340, if wanted.depth > 0 { entries.as_slice() } else { &[] })
        };
        let root = node(3, 4, &[(0, 0, 1000), (1 << 30, 0, 1000), (2 << 30, 0, 1000), (3 << 30, 0, 1000)]);
        let (found, nodes) = walk(&root, 0..BLOCKS_MAX, wide);
        assert!(found.is_err_and(|why| why.contains("more than")));
        assert_eq!(nodes, NODES_MAX);
    }
}
