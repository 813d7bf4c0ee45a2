//! An export in memory with inodes, hard links, and writes that a crash loses unless they were committed.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_gateway::export::{Abilities, Attr, Entry, Export, ExportError, Kind, Replace};
use ingle_proto::ObjectPath;

use crate::share::{Odd, Share};
use state::{Inode, Node, State, kind_error};

/// See the module.
pub(crate) struct Memory {
    state: Mutex<State>,
    looks: Mutex<Looks>,
    link: bool,
}

/// How it is looked at, and what a look meets.
#[derive(Default)]
pub(crate) struct Looks {
    /// Listings by directory.
    pub(crate) lists: BTreeMap<String, u32>,
    /// Questions by object.
    pub(crate) stats: BTreeMap<String, u32>,
    /// The next listing of its directory doesn't have this name, though it is there.
    pub(crate) overlooked: Option<String>,
    /// This directory is gone when it is listed, and there again afterwards.
    pub(crate) vanishing: Option<String>,
    /// Listing this directory takes until so many others have been listed.
    pub(crate) slow: Option<(String, usize)>,
    /// Directories answer in an order that this seed gives.
    pub(crate) shuffled: Option<u64>,
}

/// What tests arrange, past all wrappers.
impl Memory {
    pub(crate) fn new(link: bool) -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 0,
            clock_ns: 1_700_000_000_000_000_000,
            denied: None,
            broken: None,
            forbidden: BTreeSet::new(),
            mounted: BTreeSet::new(),
            theirs: BTreeSet::new(),
            theirs_not_linked: false,
            directory_id: 1,
        };
        Self { state: Mutex::new(state), looks: Mutex::default(), link }
    }

    /// What looks at it are to meet, and have met.
    pub(crate) fn looks(&self) -> std::sync::MutexGuard<'_, Looks> {
        self.looks.lock().unwrap()
    }

    /// Another file system is mounted in place of all of it: names stay, inodes of directories don't.
    pub(crate) fn remount(&self) {
        self.state.lock().unwrap().directory_id += 1;
    }

    pub(crate) fn set_ctime(&self, path: &str, ctime_ns: i64) {
        let mut state = self.state.lock().unwrap();
        let id = state.file(path.as_bytes()).unwrap();
        state.inodes.get_mut(&id).unwrap().ctime_ns = ctime_ns;
    }

    pub(crate) fn now_ns(&self) -> i64 {
        self.state.lock().unwrap().clock_ns
    }

    pub(crate) fn replace(&self, path: &str, data: &[u8]) {
        Share::replace(self, path, data);
    }

    pub(crate) fn edit(&self, path: &str, data: &[u8]) -> bool {
        Share::edit(self, path, data)
    }

    pub(crate) fn delete(&self, path: &str) -> bool {
        Share::delete(self, path)
    }

    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        Share::get(self, path)
    }

    pub(crate) fn files(&self, own: bool) -> BTreeMap<String, Vec<u8>> {
        Share::files(self, own)
    }

    /// The server refuses to link files of people's, as `protected_hardlinks` makes it.
    pub(crate) fn theirs_are_not_linked(&self) {
        self.state.lock().unwrap().theirs_not_linked = true;
    }

    pub(crate) fn symlink(&self, path: &str) {
        self.make(path, Odd::Symlink);
    }

    /// Lets nobody but people change names in this directory, or lets them again.
    pub(crate) fn forbid(&self, path: &str, forbidden: bool) {
        let mut state = self.state.lock().unwrap();
        if forbidden {
            state.forbidden.insert(path.as_bytes().to_vec());
        } else {
            state.forbidden.remove(path.as_bytes());
        }
    }

    pub(crate) fn make_directory_of_theirs(&self, path: &str) {
        self.make(path, Odd::Directory);
    }

    /// Mounts another file system here: nothing is linked or renamed into it or out of it.
    pub(crate) fn mount(&self, path: &str) {
        let mut state = self.state.lock().unwrap();
        state.names.insert(path.as_bytes().to_vec(), Node::Directory);
        state.mounted.insert(path.as_bytes().to_vec());
    }

    /// Time goes by on the server.
    pub(crate) fn pass(&self, ns: i64) {
        self.state.lock().unwrap().clock_ns += ns;
    }

    pub(crate) fn set_mtime(&self, path: &str, mtime_ns: i64) {
        let mut state = self.state.lock().unwrap();
        let id = state.file(path.as_bytes()).unwrap();
        state.inodes.get_mut(&id).unwrap().mtime_ns = mtime_ns;
    }

    /// Listing this directory is refused.
    pub(crate) fn deny(&self, path: Option<&str>) {
        self.state.lock().unwrap().denied = path.map(|p| p.as_bytes().to_vec());
    }

    /// Listing this directory fails.
    pub(crate) fn break_directory(&self, path: Option<&str>) {
        self.state.lock().unwrap().broken = path.map(|p| p.as_bytes().to_vec());
    }

    /// The server crashed: what was written and not committed is gone; names stay.
    pub(crate) fn lose_uncommitted(&self) {
        for inode in self.state.lock().unwrap().inodes.values_mut() {
            inode.data = inode.durable.clone();
        }
    }
}

/// What people do.
impl Share for Memory {
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.file(path.as_bytes()).ok().map(|id| state.inodes[&id].data.clone())
    }

    fn odd(&self, path: &str) -> Option<u64> {
        match self.state.lock().unwrap().node(path.as_bytes()) {
            Ok(Node::Odd(id, _)) => Some(id),
            _ => None,
        }
    }

    fn is_directory(&self, path: &str) -> bool {
        matches!(self.state.lock().unwrap().node(path.as_bytes()), Ok(Node::Directory))
    }

    fn edit(&self, path: &str, data: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap();
        let Ok(id) = state.file(path.as_bytes()) else { return false };
        let now = state.tick();
        let inode = state.inodes.get_mut(&id).unwrap();
        *inode = Inode { data: data.to_vec(), durable: data.to_vec(), mtime_ns: now, ctime_ns: now };
        true
    }

    fn replace(&self, path: &str, data: &[u8]) {
        let mut state = self.state.lock().unwrap();
        for (at, _) in path.match_indices('/') {
            state.names.entry(path.as_bytes()[..at].to_vec()).or_insert(Node::Directory);
        }
        state.put(path.as_bytes(), data);
        let id = state.next;
        state.theirs.insert(id);
    }

    fn delete(&self, path: &str) -> bool {
        self.state.lock().unwrap().names.remove(path.as_bytes()).is_some()
    }

    fn make(&self, path: &str, what: Odd) {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let node = match what {
            Odd::Directory => Node::Directory,
            Odd::Symlink => Node::Odd(state.next, Kind::Symlink),
            Odd::Fifo => Node::Odd(state.next, Kind::Other),
        };
        state.names.insert(path.as_bytes().to_vec(), node);
    }

    fn forbid(&self, directory: &str) {
        Self::forbid(self, directory, true);
    }

    fn files(&self, own: bool) -> BTreeMap<String, Vec<u8>> {
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

    fn oddities(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock().unwrap();
        let odd = |(name, node): (&Vec<u8>, &Node)| match node {
            Node::Odd(id, _) => Some((String::from_utf8_lossy(name).into_owned(), *id)),
            _ => None,
        };
        state.names.iter().filter_map(odd).collect()
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
        *self.looks().stats.entry(path.display()).or_default() += 1;
        let state = self.state.lock().unwrap();
        match state.node(path.as_bytes())? {
            Node::Odd(_, Kind::Symlink) => Err(kind_error(path.as_bytes(), "a symbolic link")),
            node => Ok(state.attr(node)),
        }
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        let name = path.display();
        let turns = self.looks().shuffled.map_or(0, |seed| {
            let bytes: u64 = name.bytes().map(u64::from).sum();
            fastrand::Rng::with_seed(seed ^ bytes).usize(..20)
        });
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        for turn in 0.. {
            let held = {
                let looks = self.looks();
                looks.slow.as_ref().is_some_and(|(slow, others)| *slow == name && looks.lists.len() < *others)
            };
            if !held {
                break;
            }
            assert!(turn < 100_000, "{name} waits for others that are never listed");
            tokio::task::yield_now().await;
        }
        let overlooked = {
            let mut looks = self.looks();
            *looks.lists.entry(name.clone()).or_default() += 1;
            if looks.vanishing.as_ref() == Some(&name) {
                return Err(ExportError::NotFound(name));
            }
            let here =
                looks.overlooked.as_ref().is_some_and(|file| file.rsplit_once('/').is_some_and(|(d, _)| d == name));
            if here { looks.overlooked.take() } else { None }
        };
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
                let seen = overlooked.as_ref().is_none_or(|overlooked| overlooked.as_bytes() != name.as_slice());
                (seen && !rest.is_empty() && !rest.contains(&b'/'))
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
        state.may_change(path.as_bytes())?;
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
        let source = state.movable(from.as_bytes())?;
        state.parent_of(to.as_bytes())?;
        match state.names.get(to.as_bytes()) {
            Some(node) if *node == source => return Ok(()),
            Some(_) => return Err(ExportError::Exists(to.display())),
            None => {}
        }
        state.one_file_system(from.as_bytes(), to.as_bytes())?;
        state.may_change(to.as_bytes())?;
        // As protected_hardlinks: a person's file may be moved, and not be linked.
        if state.theirs_not_linked && matches!(source, Node::File(id) if state.theirs.contains(&id)) {
            return Err(ExportError::Denied { path: to.display(), by: "memory".into() });
        }
        state.names.insert(to.as_bytes().to_vec(), source);
        state.touch(source);
        Ok(())
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let source = state.movable(from.as_bytes())?;
        state.parent_of(to.as_bytes())?;
        match state.names.get(to.as_bytes()) {
            Some(Node::Directory) => return Err(kind_error(to.as_bytes(), "a directory")),
            Some(_) if replace == Replace::Nothing => return Err(ExportError::Exists(to.display())),
            _ => {}
        }
        state.one_file_system(from.as_bytes(), to.as_bytes())?;
        state.may_change(from.as_bytes())?;
        state.may_change(to.as_bytes())?;
        state.names.remove(from.as_bytes());
        state.names.insert(to.as_bytes().to_vec(), source);
        state.touch(source);
        Ok(())
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        match state.movable(path.as_bytes()) {
            Ok(_) => {
                state.may_change(path.as_bytes())?;
                state.names.remove(path.as_bytes());
                Ok(())
            }
            Err(ExportError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let mut state = self.state.lock().unwrap();
        let mut at = ObjectPath::root();
        for part in path.components() {
            at = at.join(part).unwrap();
            match state.names.get(at.as_bytes()) {
                None => {
                    state.may_change(at.as_bytes())?;
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
