//! An export in memory with inodes, hard links, and writes that a crash loses unless they were committed.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_gateway::export::{Abilities, Attr, Entry, Export, ExportError, Kind, Replace};
use ingle_proto::ObjectPath;

#[derive(Clone)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    mtime_ns: i64,
    ctime_ns: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    File(u64),
    Directory,
    Symlink,
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<Vec<u8>, Node>,
    next: u64,
    clock_ns: i64,
    denied: Option<Vec<u8>>,
    broken: Option<Vec<u8>>,
}

/// See the module.
pub(crate) struct Memory {
    state: Mutex<State>,
    link: bool,
}

fn not_found(path: &[u8]) -> ExportError {
    ExportError::NotFound(String::from_utf8_lossy(path).into_owned())
}

fn kind_error(path: &[u8], found: &'static str) -> ExportError {
    ExportError::Kind { path: String::from_utf8_lossy(path).into_owned(), found, expected: "something else" }
}

impl State {
    fn tick(&mut self) -> i64 {
        self.clock_ns += 1_000_000;
        self.clock_ns
    }

    fn parent_of(&self, path: &[u8]) -> Result<(), ExportError> {
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

    fn node(&self, path: &[u8]) -> Result<Node, ExportError> {
        if path.is_empty() {
            return Ok(Node::Directory);
        }
        self.parent_of(path)?;
        self.names.get(path).copied().ok_or_else(|| not_found(path))
    }

    fn file(&self, path: &[u8]) -> Result<u64, ExportError> {
        match self.node(path)? {
            Node::File(id) => Ok(id),
            Node::Directory => Err(kind_error(path, "a directory")),
            Node::Symlink => Err(kind_error(path, "a symbolic link")),
        }
    }

    fn attr(&self, node: Node) -> Attr {
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
            Node::Directory | Node::Symlink => Attr {
                kind: if node == Node::Directory { Kind::Directory } else { Kind::Symlink },
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                file_id: 0,
                mode: 0o755,
                links: 1,
            },
        }
    }

    fn put(&mut self, path: &[u8], data: &[u8]) {
        let now = self.tick();
        self.next += 1;
        let inode = Inode { data: data.to_vec(), durable: data.to_vec(), mtime_ns: now, ctime_ns: now };
        self.inodes.insert(self.next, inode);
        self.names.insert(path.to_vec(), Node::File(self.next));
    }
}

/// What people do, past all wrappers.
impl Memory {
    pub(crate) fn new(link: bool) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 0,
            clock_ns: 1_700_000_000_000_000_000,
            denied: None,
            broken: None,
        };
        Self { state: Mutex::new(state), link }
    }

    /// Writes a file, in place if there is one: every name of it shows the new bytes.
    pub(crate) fn edit(&self, path: &str, data: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap();
        let Ok(id) = state.file(path.as_bytes()) else { return false };
        let now = state.tick();
        let inode = state.inodes.get_mut(&id).unwrap();
        *inode = Inode { data: data.to_vec(), durable: data.to_vec(), mtime_ns: now, ctime_ns: now };
        true
    }

    /// Puts another file under the name, with the directories above.
    pub(crate) fn replace(&self, path: &str, data: &[u8]) {
        let mut state = self.state.lock().unwrap();
        for (at, _) in path.match_indices('/') {
            state.names.entry(path.as_bytes()[..at].to_vec()).or_insert(Node::Directory);
        }
        state.put(path.as_bytes(), data);
    }

    pub(crate) fn delete(&self, path: &str) -> bool {
        self.state.lock().unwrap().names.remove(path.as_bytes()).is_some()
    }

    pub(crate) fn symlink(&self, path: &str) {
        self.state.lock().unwrap().names.insert(path.as_bytes().to_vec(), Node::Symlink);
    }

    pub(crate) fn set_mtime(&self, path: &str, mtime_ns: i64) {
        let mut state = self.state.lock().unwrap();
        let id = state.file(path.as_bytes()).unwrap();
        state.inodes.get_mut(&id).unwrap().mtime_ns = mtime_ns;
    }

    /// Listing this directory is refused.
    pub(crate) fn deny(&self, path: &str) {
        self.state.lock().unwrap().denied = Some(path.as_bytes().to_vec());
    }

    /// Listing this directory fails.
    pub(crate) fn break_directory(&self, path: Option<&str>) {
        self.state.lock().unwrap().broken = path.map(|p| p.as_bytes().to_vec());
    }

    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.file(path.as_bytes()).ok().map(|id| state.inodes[&id].data.clone())
    }

    /// Files outside `.inglenook` (or all), by path.
    pub(crate) fn files(&self, own: bool) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        let mut out = BTreeMap::new();
        for (name, node) in &state.names {
            let name = String::from_utf8_lossy(name).into_owned();
            if let Node::File(id) = node
                && (own || !name.contains(".inglenook"))
            {
                out.insert(name, state.inodes[id].data.clone());
            }
        }
        out
    }

    /// The server crashed: what was written and not committed is gone; names stay.
    pub(crate) fn lose_uncommitted(&self) {
        for inode in self.state.lock().unwrap().inodes.values_mut() {
            inode.data = inode.durable.clone();
        }
    }
}

#[async_trait]
impl Export for Memory {
    fn url(&self) -> String {
        "memory:".into()
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        Ok(Abilities { write: true, link: self.link })
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        let state = self.state.lock().unwrap();
        match state.node(path.as_bytes())? {
            Node::Symlink => Err(kind_error(path.as_bytes(), "a symbolic link")),
            node => Ok(state.attr(node)),
        }
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        let state = self.state.lock().unwrap();
        if state.denied.as_deref() == Some(path.as_bytes()) {
            return Err(ExportError::Denied { path: path.display(), by: "memory".into() });
        }
        if state.broken.as_deref() == Some(path.as_bytes()) {
            return Err(ExportError::Broken(format!("{}: I/O error", path.display())));
        }
        if state.node(path.as_bytes())? != Node::Directory {
            return Err(kind_error(path.as_bytes(), "a file"));
        }
        let mut prefix = path.as_bytes().to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let entries: Vec<Entry> = state
            .names
            .iter()
            .filter_map(|(name, node)| {
                let rest = name.strip_prefix(prefix.as_slice())?;
                (!rest.is_empty() && !rest.contains(&b'/'))
                    .then(|| Entry { name: rest.to_vec(), attr: state.attr(*node) })
            })
            .collect();
        if entries.len() > limit {
            return Err(ExportError::TooMany { path: path.display(), limit });
        }
        Ok(entries)
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let state = self.state.lock().unwrap();
        let data = &state.inodes[&state.file(path.as_bytes())?].data;
        let start = (offset as usize).min(data.len());
        let end = (start + length as usize).min(data.len());
        Ok(Bytes::copy_from_slice(&data[start..end]))
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        state.parent_of(path.as_bytes())?;
        if state.names.contains_key(path.as_bytes()) {
            return Err(ExportError::Exists(path.display()));
        }
        state.put(path.as_bytes(), b"");
        Ok(())
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let id = state.file(path.as_bytes())?;
        let now = state.tick();
        let inode = state.inodes.get_mut(&id).unwrap();
        let end = offset as usize + data.len();
        if inode.data.len() < end {
            inode.data.resize(end, 0);
        }
        inode.data[offset as usize..end].copy_from_slice(&data);
        inode.mtime_ns = now;
        Ok(())
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let id = state.file(path.as_bytes())?;
        let inode = state.inodes.get_mut(&id).unwrap();
        inode.durable = inode.data.clone();
        Ok(())
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        if !self.link {
            return Err(ExportError::Unsupported("no links here".into()));
        }
        let mut state = self.state.lock().unwrap();
        let id = state.file(from.as_bytes())?;
        state.parent_of(to.as_bytes())?;
        match state.names.get(to.as_bytes()) {
            Some(node) if *node == Node::File(id) => Ok(()),
            Some(_) => Err(ExportError::Exists(to.display())),
            None => {
                state.names.insert(to.as_bytes().to_vec(), Node::File(id));
                let now = state.tick();
                state.inodes.get_mut(&id).unwrap().ctime_ns = now;
                Ok(())
            }
        }
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let id = state.file(from.as_bytes())?;
        state.parent_of(to.as_bytes())?;
        if replace == Replace::Nothing && state.names.contains_key(to.as_bytes()) {
            return Err(ExportError::Exists(to.display()));
        }
        state.names.remove(from.as_bytes());
        state.names.insert(to.as_bytes().to_vec(), Node::File(id));
        let now = state.tick();
        state.inodes.get_mut(&id).unwrap().ctime_ns = now;
        Ok(())
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.state.lock().unwrap().names.remove(path.as_bytes());
        Ok(())
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let mut at = ObjectPath::root();
        for part in path.components() {
            at = at.join(part).unwrap();
            match state.names.get(at.as_bytes()) {
                None => {
                    state.names.insert(at.as_bytes().to_vec(), Node::Directory);
                }
                Some(Node::Directory) => {}
                Some(_) => return Err(kind_error(at.as_bytes(), "a file")),
            }
        }
        Ok(())
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.state.lock().unwrap().names.remove(path.as_bytes());
        Ok(())
    }
}
