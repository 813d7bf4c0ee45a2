//! An ext4 volume, read without being mounted: paths to inodes, inodes to the places of their contents.
//!
//! Nothing on it is believed: numbers are checked before they are used, checksums where the volume has them. Somebody
//! else may write to it; so what was read of metadata is asked for again after a bounded time, and at once where a reader
//! wants to know whether what was read is torn. A volume that is mounted for writing elsewhere (its journal holds changes,
//! or its state says so) is refused until it isn't.

mod ahead;
mod checksum;
mod directory;
mod extents;
mod inode;
mod superblock;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::ObjectPath;
use tokio::time::Instant;

use self::ahead::Ahead;
use self::directory::{Index, Refused};
use self::inode::Inode;
use self::superblock::Superblock;
use super::aged::Aged;
use super::disk::{Disk, READ_MAX};
use super::{Attr, Entry, ExportError, Kind};
use crate::limits::DIRECTORY_ENTRIES_MAX;

/// Metadata is read in pieces of so many bytes.
const WINDOW: u32 = 64 * 1024;
/// Most bytes of metadata that are kept.
const WINDOWS_MAX: usize = 64 << 20;
/// Most bytes of indexes that are kept.
const INDEXES_MAX: usize = 128 << 20;
/// Most looks that are kept for who came while they were under way.
const LOOKS_MAX: usize = 256;
/// Largest directory that is read, in bytes.
const DIRECTORY_MAX: u64 = 256 << 20;
/// Directories larger than this aren't read again while their inode says that they haven't changed.
const DIRECTORY_SMALL: u64 = 1 << 20;
/// Reads of one call that are under way at once.
const READS_AT_ONCE: usize = 16;
/// The inode of the root.
const ROOT: u32 = 2;

/// See the module.
pub(crate) struct Volume {
    disk: Arc<dyn Disk>,
    superblock: Superblock,
    windows: Aged<Bytes>,
    indexes: Aged<Arc<Index>>,
    /// Inodes as they were after a read, and whether the volume was still itself (under 0): kept for nobody who comes later.
    looks: Aged<Option<Inode>>,
    stills: Aged<bool>,
    ahead: Ahead,
}

fn name_of(path: &ObjectPath) -> String {
    if path.is_root() { "the export's root".to_owned() } else { path.display() }
}

/// The name of what the first components of a path lead to.
fn name_above(path: &ObjectPath, components: usize) -> String {
    let bytes = path.components().take(components).collect::<Vec<_>>().join(&b'/');
    ObjectPath::new(bytes).map_or_else(|_| name_of(path), |above| name_of(&above))
}

impl Volume {
    /// Reads its superblock.
    ///
    /// # Errors
    /// It can't be read, or isn't read by us: says why.
    pub(crate) async fn open(disk: Arc<dyn Disk>, age: Duration) -> Result<Self, ExportError> {
        let superblock = read_superblock(&*disk).await?;
        let (windows, indexes) = (Aged::new(age, WINDOWS_MAX), Aged::new(age, INDEXES_MAX));
        let (looks, stills) = (Aged::new(Duration::ZERO, LOOKS_MAX), Aged::new(Duration::ZERO, 1));
        Ok(Self { ahead: Ahead::new(age), disk, superblock, windows, indexes, looks, stills })
    }

    /// Whether it is still the volume that was opened, and may still be read.
    pub(crate) async fn still(&self) -> Result<bool, ExportError> {
        Ok(self.superblock.same(&read_superblock(&*self.disk).await?))
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// For an error about what lies on the disk.
    pub(crate) fn broken(&self, why: String) -> ExportError {
        ExportError::Broken(format!("{}: {why}; if nobody writes to it, run e2fsck on it", self.disk.shown()))
    }

    /// Bytes of metadata, within one window or over its end.
    async fn bytes(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let window = |number: u64| async move {
            let start = number * u64::from(WINDOW);
            let length = u64::from(WINDOW).min(self.disk.size().saturating_sub(start));
            let length = u32::try_from(length).expect("a window at most");
            self.windows
                .get(number, |_| async { self.disk.read(start, length).await.map(|data| (data, length as usize)) })
                .await
        };
        let first = offset / u64::from(WINDOW);
        let (start, end) =
            ((offset % u64::from(WINDOW)) as usize, (offset % u64::from(WINDOW)) as usize + length as usize);
        let past = || self.broken(format!("{length} bytes at {offset} are past its end"));
        let held = window(first).await?;
        if end <= held.len() {
            return Ok(held.slice(start..end));
        }
        if held.len() < WINDOW as usize {
            return Err(past());
        }
        let mut out = BytesMut::from(held.get(start..).ok_or_else(past)?);
        for number in first + 1.. {
            let more = window(number).await?;
            let wanted = length as usize - out.len();
            out.extend_from_slice(&more[..wanted.min(more.len())]);
            if out.len() == length as usize {
                break;
            }
            if more.len() < WINDOW as usize {
                return Err(past());
            }
        }
        Ok(out.freeze())
    }

    /// A block of metadata.
    async fn block(&self, number: u64) -> Result<Bytes, ExportError> {
        if number == 0 || number >= self.superblock.blocks {
            return Err(self.broken(format!("block {number} of {}", self.superblock.blocks)));
        }
        let size = self.superblock.block_size;
        self.bytes(number * u64::from(size), size).await
    }

    /// Where an inode lies, in bytes.
    async fn place(&self, number: u32) -> Result<u64, ExportError> {
        let Some((group, index)) = self.superblock.group_of(number) else {
            return Err(self.broken(format!("inode {number} of {}", self.superblock.inodes)));
        };
        let (offset, length) = self.superblock.descriptor(group);
        let descriptor = self.bytes(offset, length).await?;
        let table = self.superblock.table(group, &descriptor).map_err(|why| self.broken(why))?;
        Ok(table + u64::from(index) * u64::from(self.superblock.inode_size))
    }

    async fn inode(&self, number: u32) -> Result<Option<Inode>, ExportError> {
        let place = self.place(number).await?;
        let bytes = self.bytes(place, self.superblock.inode_size.into()).await?;
        Inode::read(&self.superblock, number, &bytes).map_err(|why| self.broken(why))
    }

    /// An inode as the disk has it now, whatever was read before.
    async fn inode_now(&self, number: u32) -> Result<Option<Inode>, ExportError> {
        let place = self.place(number).await?;
        let bytes = self.disk.read(place, self.superblock.inode_size.into()).await?;
        Inode::read(&self.superblock, number, &bytes).map_err(|why| self.broken(why))
    }

    /// The names of the directory to which the first components of a path lead.
    async fn index(&self, inode: &Inode, path: &ObjectPath, components: usize) -> Result<Arc<Index>, ExportError> {
        if inode.encrypted() {
            let why = format!("{}: this directory is encrypted (fscrypt)", name_above(path, components));
            return Err(ExportError::Unsupported(why));
        }
        let read = |held: Option<(tokio::time::Instant, Arc<Index>)>| async move {
            if let Some((_, index)) = held
                && index.bytes > DIRECTORY_SMALL
                && index.stamp == inode.stamp()
            {
                return Ok((index.clone(), index.weight()));
            }
            let index = self.read_index(inode, || name_above(path, components), DIRECTORY_ENTRIES_MAX).await?;
            let weight = index.weight();
            Ok((Arc::new(index), weight))
        };
        self.indexes.get(inode.number.into(), read).await
    }

    /// At most `limit` names: no directory takes more memory than that, whoever asks for how many.
    async fn read_index(&self, inode: &Inode, named: impl Fn() -> String, limit: usize) -> Result<Index, ExportError> {
        let (size, block) = (inode.attr.size, u64::from(self.superblock.block_size));
        if size > DIRECTORY_MAX {
            return Err(self.broken(format!("directory with inode {} has {size} bytes", inode.number)));
        }
        let runs = extents::runs(self, inode, 0, size.div_ceil(block)).await?;
        let at_once = u64::from(READ_MAX) / block;
        let pieces = runs.into_iter().filter_map(|run| run.at.map(|at| (at, run.count))).flat_map(|(at, count)| {
            (0..count).step_by(usize::try_from(at_once).expect("small")).map(move |done| {
                let length = (count - done).min(at_once) * block;
                ((at + done) * block, u32::try_from(length).expect("READ_MAX at most"))
            })
        });
        let mut reads = futures::stream::iter(pieces)
            .map(|(offset, length)| self.disk.read(offset, length))
            .buffered(READS_AT_ONCE);
        let mut index = Index::of(inode);
        while let Some(data) = reads.try_next().await? {
            for block in data.chunks_exact(self.superblock.block_size as usize) {
                index.add(inode, block, limit).map_err(|refused| match refused {
                    Refused::Spoilt(why) => self.broken(why),
                    Refused::TooMany => ExportError::TooMany { path: named(), limit },
                })?;
            }
        }
        Ok(index)
    }

    /// The inode that a path leads to, through directories only.
    async fn find(&self, path: &ObjectPath) -> Result<Inode, ExportError> {
        let missing = || ExportError::NotFound(name_of(path));
        let mut at = self.inode(ROOT).await?.ok_or_else(|| self.broken("it has no root".to_owned()))?;
        for (depth, name) in path.components().enumerate() {
            match at.attr.kind {
                Kind::Directory => {}
                Kind::Symlink => {
                    // It is this directory that is at fault, not what lies in it.
                    let way = path.components().take(depth).collect::<Vec<_>>().join(&b'/');
                    let way = ObjectPath::new(way).unwrap_or_else(|_| path.clone());
                    return Err(self.is(&way, Kind::Symlink, "a directory"));
                }
                _ => {
                    let found = "below something that is no directory";
                    return Err(ExportError::Kind { path: name_of(path), found, expected: "directories" });
                }
            }
            let number = self.index(&at, path, depth).await?.get(name).ok_or_else(missing)?;
            at = self.inode(number).await?.ok_or_else(missing)?;
        }
        Ok(at)
    }

    fn is(&self, path: &ObjectPath, kind: Kind, expected: &'static str) -> ExportError {
        ExportError::Kind { path: name_of(path), found: kind.found(), expected }
    }

    /// Attributes of what a path leads to, unless that is a symbolic link.
    pub(crate) async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        let inode = self.find(path).await?;
        match inode.attr.kind {
            Kind::Symlink => Err(self.is(path, Kind::Symlink, "a file or directory")),
            _ => Ok(inode.attr),
        }
    }

    /// All entries of a directory, at most `limit`.
    pub(crate) async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        let directory = self.find(path).await?;
        if directory.attr.kind != Kind::Directory {
            return Err(self.is(path, directory.attr.kind, "a directory"));
        }
        let index = self.index(&directory, path, usize::MAX).await?;
        if index.len() > limit {
            return Err(ExportError::TooMany { path: name_of(path), limit });
        }
        let mut names: Vec<(&[u8], u32)> = index.iter().collect();
        // In the order in which they lie on the disk: a window serves hundreds.
        names.sort_unstable_by_key(|(_, number)| *number);
        self.fetch(names.iter().map(|(_, number)| *number)).await?;
        let mut entries = Vec::with_capacity(names.len());
        for (name, number) in names {
            // Gone since the directory was read.
            if let Some(inode) = self.inode(number).await? {
                entries.push(Entry { name: name.to_vec(), attr: inode.attr });
            }
        }
        Ok(entries)
    }

    /// Reads the windows in which these inodes lie, many at once.
    async fn fetch(&self, numbers: impl Iterator<Item = u32>) -> Result<(), ExportError> {
        let mut places: Vec<u64> = Vec::new();
        for number in numbers {
            let place = self.place(number).await?;
            let start = place - place % u64::from(WINDOW);
            if places.last() != Some(&start) {
                places.push(start);
            }
        }
        let reads = futures::stream::iter(places).map(|place| self.bytes(place, 1));
        reads.buffered(READS_AT_ONCE).try_for_each(|_| std::future::ready(Ok(()))).await
    }

    /// The file at a path.
    pub(crate) async fn file(&self, path: &ObjectPath) -> Result<Inode, ExportError> {
        let inode = self.find(path).await?;
        if inode.attr.kind != Kind::File {
            return Err(self.is(path, inode.attr.kind, "a file"));
        }
        if inode.encrypted() {
            return Err(ExportError::Unsupported(format!("{}: this file is encrypted (fscrypt)", name_of(path))));
        }
        Ok(inode)
    }

    /// Up to `length` bytes of a file at `offset`.
    pub(crate) async fn read(
        self: &Arc<Self>,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ExportError> {
        let inode = self.file(path).await?;
        self.contents(&inode, offset, length).await
    }

    /// The same, with the file's attributes as the disk has them after that: by what was read of metadata before, nothing
    /// could ever be seen to have changed.
    pub(crate) async fn read_and_look(
        self: &Arc<Self>,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<(Bytes, Attr), ExportError> {
        let inode = self.file(path).await?;
        let data = self.contents(&inode, offset, length).await?;
        match self.look(&inode).await? {
            Some(now) => Ok((data, now.attr)),
            None => {
                // Whoever reads it again shall not meet the old one for the rest of its age.
                self.windows.forget(self.place(inode.number).await? / u64::from(WINDOW));
                Err(ExportError::Changed(name_of(path)))
            }
        }
    }

    /// An inode as it is now. `None` if it, or the whole volume, isn't what it was. Readers who come together share a look.
    async fn look(&self, inode: &Inode) -> Result<Option<Inode>, ExportError> {
        let (moment, number) = (Instant::now(), inode.number);
        // A volume that was mounted for writing since would hold what changes in its journal first, and not in the inode.
        let still = self.stills.since(0, moment, |_| async { self.still().await.map(|still| (still, 1)) });
        let look = |_| async move { self.inode_now(number).await.map(|inode| (inode, 1)) };
        let look = self.looks.since(number.into(), moment, look);
        let (still, now) = futures::future::try_join(still, look).await?;
        Ok(now.filter(|now| still && now.stamp() == inode.stamp()))
    }

    async fn contents(self: &Arc<Self>, inode: &Inode, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let length = u64::from(length.min(READ_MAX)).min(inode.attr.size.saturating_sub(offset));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let length = u32::try_from(length).expect("READ_MAX at most");
        self.ahead.read(self, inode, offset, length).await
    }

    /// A file's bytes `offset .. offset + length`, which are within it.
    async fn read_range(&self, inode: &Inode, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        ahead::gather(&*self.disk, self.pieces(inode, offset, length).await?).await
    }

    /// Where they lie: on the disk, or nowhere (zeros).
    async fn pieces(&self, inode: &Inode, offset: u64, length: u32) -> Result<Vec<(Option<u64>, u32)>, ExportError> {
        let block = u64::from(self.superblock.block_size);
        let end = offset + u64::from(length);
        let runs = extents::runs(self, inode, offset / block, end.div_ceil(block)).await?;
        let mut pieces = Vec::with_capacity(runs.len());
        for run in runs {
            let (start, stop) = (offset.max(run.first * block), end.min((run.first + run.count) * block));
            let length = u32::try_from(stop - start).expect("no more than was asked");
            pieces.push((run.at.map(|at| at * block + (start - run.first * block)), length));
        }
        Ok(pieces)
    }
}

async fn read_superblock(disk: &dyn Disk) -> Result<Superblock, ExportError> {
    if disk.size() < superblock::OFFSET + u64::from(superblock::SIZE) {
        return Err(ExportError::Broken(format!("{}: too small for an ext4 volume", disk.shown())));
    }
    let bytes = disk.read(superblock::OFFSET, superblock::SIZE).await?;
    Superblock::read(&bytes, disk.size(), &disk.shown())
}
