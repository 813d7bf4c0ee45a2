//! Inodes and names of the export in memory, and what may be done with them.

use std::collections::{BTreeMap, BTreeSet};

use ingle_gateway::export::{Attr, ExportError, Kind};

#[derive(Clone)]
pub(super) struct Inode {
    pub(super) data: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Node {
    File(u64),
    Directory,
    /// Anything else that is moved and linked as it is.
    Odd(u64, Kind),
}

pub(super) struct State {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<Vec<u8>, Node>,
    pub(super) next: u64,
    pub(super) clock_ns: i64,
    pub(super) denied: Option<Vec<u8>>,
    pub(super) broken: Option<Vec<u8>>,
    /// Directories whose names nobody but people may change.
    pub(super) forbidden: BTreeSet<Vec<u8>>,
    /// Where another file system is mounted.
    pub(super) mounted: BTreeSet<Vec<u8>>,
    /// Files that people made, and whether the server lets others link them.
    pub(super) theirs: BTreeSet<u64>,
    pub(super) theirs_not_linked: bool,
    pub(super) directory_id: u64,
}

pub(super) fn not_found(path: &[u8]) -> ExportError {
    ExportError::NotFound(String::from_utf8_lossy(path).into_owned())
}

pub(super) fn kind_error(path: &[u8], found: &'static str) -> ExportError {
    ExportError::Kind { path: String::from_utf8_lossy(path).into_owned(), found, expected: "something else" }
}

impl State {
    pub(super) fn tick(&mut self) -> i64 {
        self.clock_ns += 1_000_000;
        self.clock_ns
    }

    pub(super) fn parent_of(&self, path: &[u8]) -> Result<(), ExportError> {
        let mut end = 0;
        while let Some(slash) = path[end..].iter().position(|b| *b == b'/') {
            end += slash;
            match self.names.get(&path[..end]) {
                Some(Node::Directory) => {}
                None => return Err(not_found(path)),
                Some(_) => return Err(kind_error(path, "below something that is no directory")),
            }
            end += 1;
        }
        Ok(())
    }

    pub(super) fn node(&self, path: &[u8]) -> Result<Node, ExportError> {
        if path.is_empty() {
            return Ok(Node::Directory);
        }
        self.parent_of(path)?;
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    pub(super) fn file(&self, path: &[u8]) -> Result<u64, ExportError> {
        match self.node(path)? {
            Node::File(id) => Ok(id),
            Node::Directory => Err(kind_error(path, "a directory")),
            Node::Odd(_, kind) => Err(kind_error(path, kind.found())),
        }
    }

    /// What may be moved and linked: anything but a directory.
    pub(super) fn movable(&self, path: &[u8]) -> Result<Node, ExportError> {
        match self.node(path)? {
            Node::Directory => Err(kind_error(path, "a directory")),
            node => Ok(node),
        }
    }

    pub(super) fn may_change(&self, path: &[u8]) -> Result<(), ExportError> {
        let cut = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        if self.forbidden.contains(&path[..cut]) {
            let path = String::from_utf8_lossy(path).into_owned();
            return Err(ExportError::Denied { path, by: "memory".into() });
        }
        Ok(())
    }

    pub(super) fn file_system(&self, path: &[u8]) -> Option<&Vec<u8>> {
        self.mounted.iter().find(|at| path.starts_with(at) && path.get(at.len()) == Some(&b'/'))
    }

    pub(super) fn one_file_system(&self, a: &[u8], b: &[u8]) -> Result<(), ExportError> {
        if self.file_system(a) == self.file_system(b) {
            return Ok(());
        }
        Err(ExportError::Unsupported(format!("{}: on another file system", String::from_utf8_lossy(b))))
    }

    pub(super) fn touch(&mut self, node: Node) {
        let now = self.tick();
        if let Node::File(id) = node {
            self.inodes.get_mut(&id).unwrap().ctime_ns = now;
        }
    }

    pub(super) fn attr(&self, node: Node) -> Attr {
        match node {
            Node::File(id) => {
                let inode = &self.inodes[&id];
                let links = self.names.values().filter(|n| **n == node).count();
                Attr {
                    kind: Kind::File,
                    size: inode.data.len() as u64,
                    mtime_ns: inode.mtime_ns,
                    ctime_ns: inode.ctime_ns,
                    file_id: id,
                    mode: 0o644,
                    links: links as u32,
                }
            }
            Node::Directory | Node::Odd(..) => Attr {
                kind: if let Node::Odd(_, kind) = node { kind } else { Kind::Directory },
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                file_id: if let Node::Odd(id, _) = node { id } else { self.directory_id },
                mode: 0o755,
                links: 1,
            },
        }
    }

    pub(super) fn put(&mut self, path: &[u8], data: &[u8]) {
        let now = self.tick();
        self.next += 1;
        let inode = Inode { data: data.to_vec(), durable: data.to_vec(), mtime_ns: now, ctime_ns: now };
        self.inodes.insert(self.next, inode);
        self.names.insert(path.to_vec(), Node::File(self.next));
    }
}
