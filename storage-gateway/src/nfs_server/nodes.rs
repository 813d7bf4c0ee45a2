//! Which names the objects have that handles stand for: known from LOOKUPs, bounded, forgotten at a restart.
//!
//! A handle names an inode (device, number, time of birth: numbers are used again). An unprivileged process can't open an
//! inode, so we remember under which directory and name we saw it. A directory that is renamed takes all below it along,
//! for a child names its parent, not a path. What we don't know is stale, and the client looks it up again.

use std::collections::HashMap;

use ingle_proto::ObjectPath;

/// Objects in each of the two generations.
const NODES_MAX: usize = 131_072;
/// Names remembered of one object: hard links beyond these are found through one of the others, or looked up again.
const NAMES_MAX: usize = 8;
/// Deepest nesting; a longer path could not be opened anyway.
const DEPTH_MAX: usize = 2048;

/// What a handle says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Time of birth, seconds and nanoseconds; zero where the file system doesn't know.
    pub(super) born: (i64, u32),
}

const MAGIC: &[u8; 4] = b"INL1";

impl Key {
    /// The handle: 32 bytes, the same after a restart.
    pub(super) fn to_handle(self) -> Vec<u8> {
        let mut handle = Vec::with_capacity(32);
        handle.extend_from_slice(MAGIC);
        handle.extend_from_slice(&self.device.to_be_bytes());
        handle.extend_from_slice(&self.inode.to_be_bytes());
        handle.extend_from_slice(&self.born.0.to_be_bytes());
        handle.extend_from_slice(&self.born.1.to_be_bytes());
        handle
    }

    /// `None` if it isn't one of ours.
    pub(super) fn from_handle(handle: &[u8]) -> Option<Self> {
        let rest = handle.strip_prefix(MAGIC)?;
        let (device, rest) = rest.split_first_chunk()?;
        let (inode, rest) = rest.split_first_chunk()?;
        let (seconds, rest) = rest.split_first_chunk()?;
        let (nanos, []) = rest.split_first_chunk()? else { return None };
        Some(Self {
            device: u64::from_be_bytes(*device),
            inode: u64::from_be_bytes(*inode),
            born: (i64::from_be_bytes(*seconds), u32::from_be_bytes(*nanos)),
        })
    }
}

type Names = Vec<(Key, Vec<u8>)>;

/// Two generations: when the young one is full it becomes the old one, and what was old is forgotten.
#[derive(Debug)]
pub(super) struct Nodes {
    root: Key,
    young: HashMap<Key, Names>,
    old: HashMap<Key, Names>,
}

impl Nodes {
    pub(super) fn new(root: Key) -> Self {
        Self { root, young: HashMap::new(), old: HashMap::new() }
    }

    /// `child` was seen as `name` in `parent`.
    pub(super) fn saw(&mut self, child: Key, parent: Key, name: &[u8]) {
        if child == self.root {
            return;
        }
        let names = self.names(child);
        names.retain(|(in_directory, as_name)| (in_directory, as_name.as_slice()) != (&parent, name));
        if names.len() == NAMES_MAX {
            names.remove(0);
        }
        names.push((parent, name.to_vec()));
    }

    /// `child` isn't `name` in `parent` any more.
    pub(super) fn gone(&mut self, child: Key, parent: Key, name: &[u8]) {
        self.names(child).retain(|(in_directory, as_name)| (in_directory, as_name.as_slice()) != (&parent, name));
    }

    /// Paths under which it was seen, the latest first.
    pub(super) fn paths(&mut self, key: Key) -> Vec<ObjectPath> {
        if key == self.root {
            return vec![ObjectPath::root()];
        }
        let names = self.names(key).clone();
        names.iter().rev().filter_map(|(parent, name)| self.path(*parent, name)).collect()
    }

    fn path(&mut self, parent: Key, name: &[u8]) -> Option<ObjectPath> {
        let mut parts = vec![name.to_vec()];
        let mut at = parent;
        while at != self.root {
            if parts.len() == DEPTH_MAX {
                return None;
            }
            let (parent, name) = self.names(at).last()?.clone();
            parts.push(name);
            at = parent;
        }
        parts.reverse();
        ObjectPath::new(parts.join(&b'/')).ok()
    }

    /// The names of an object, moved into the young generation for being used.
    fn names(&mut self, key: Key) -> &mut Names {
        if !self.young.contains_key(&key) {
            if self.young.len() >= NODES_MAX {
                self.old = std::mem::take(&mut self.young);
            }
            let names = self.old.remove(&key).unwrap_or_default();
            self.young.insert(key, names);
        }
        self.young.get_mut(&key).expect("present or inserted above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> Key {
        Key { device: 7, inode, born: (-1, 5) }
    }

    #[test]
    fn handles_there_and_back() {
        let handle = key(42).to_handle();
        assert_eq!(handle.len(), 32);
        assert_eq!(Key::from_handle(&handle), Some(key(42)));
        for bad in [&handle[..31], b"", b"INL1", &[0; 32], &[handle.as_slice(), b"x"].concat()] {
            assert_eq!(Key::from_handle(bad), None);
        }
    }

    #[test]
    fn names_follow_their_directory() {
        let mut nodes = Nodes::new(key(1));
        let shown = |nodes: &mut Nodes, k| nodes.paths(k).iter().map(ObjectPath::display).collect::<Vec<_>>();
        nodes.saw(key(2), key(1), b"dir");
        nodes.saw(key(3), key(2), b"file");
        nodes.saw(key(3), key(1), b"link");
        assert_eq!(shown(&mut nodes, key(3)), ["link", "dir/file"]);
        nodes.gone(key(2), key(1), b"dir");
        nodes.saw(key(2), key(1), b"moved");
        assert_eq!(shown(&mut nodes, key(3)), ["link", "moved/file"]);
        nodes.gone(key(3), key(1), b"link");
        assert_eq!(shown(&mut nodes, key(3)), ["moved/file"]);
        assert_eq!(shown(&mut nodes, key(9)), Vec::<String>::new());
        assert_eq!(nodes.paths(key(1)), [ObjectPath::root()]);
    }

    #[test]
    fn loops_and_numbers_are_bounded() {
        let mut nodes = Nodes::new(key(1));
        nodes.saw(key(2), key(3), b"a");
        nodes.saw(key(3), key(2), b"b");
        assert!(nodes.paths(key(2)).is_empty(), "a loop leads nowhere, and ends");
        nodes.saw(key(4), key(1), b"used");
        for i in 10..3 * NODES_MAX as u64 {
            nodes.saw(key(i), key(1), b"x");
            if i % 1000 == 0 {
                assert_eq!(nodes.paths(key(4)).len(), 1, "what is used stays");
            }
        }
        assert!(nodes.young.len() + nodes.old.len() <= 2 * NODES_MAX);
        for i in 0..100 {
            nodes.saw(key(5), key(1), format!("name {i}").as_bytes());
        }
        assert_eq!(nodes.paths(key(5)).len(), NAMES_MAX);
    }
}
