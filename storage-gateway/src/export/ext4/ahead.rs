//! What of a file is read before it is asked for: whoever reads one from its beginning to its end never waits for a
//! single answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt as _, Shared};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Volume;
use super::inode::Inode;
use crate::export::ExportError;
use crate::export::disk::Disk;

/// Bytes of a window: as much as the largest read.
const WINDOW: u32 = 1 << 20;
/// Windows that are kept before a reader, with the one that it asks for.
const WINDOWS: usize = 3;
/// Windows that are under way at once unless somebody waits for more: they push each other out of the processor's caches.
const UNDER_WAY: usize = 4;
/// Windows behind the last read that are kept for reads that come late.
const LATE: usize = 2;
/// Files that are read ahead of at once; the one that rested longest gives way.
const FILES: usize = 16;
/// What waits unread is believed for so many times the age of metadata.
const AGES: u32 = 5;

type Read = Shared<BoxFuture<'static, Result<Bytes, ExportError>>>;

struct Window {
    offset: u64,
    length: u32,
    begun: Instant,
    read: Read,
}

/// A file that somebody reads from its beginning to its end.
struct Stream {
    inode: u32,
    stamp: (u32, u64, i64, i64),
    /// Where the next read begins, if it goes on.
    next: u64,
    /// Where the next window begins.
    ahead: u64,
    windows: VecDeque<Window>,
    used: Instant,
    /// Keeps the reads going while nobody waits for them; one that fails is told to who takes its window.
    reads: JoinSet<()>,
}

impl Stream {
    fn new(inode: &Inode, next: u64) -> Self {
        Self {
            inode: inode.number,
            stamp: inode.stamp(),
            next,
            ahead: next,
            windows: VecDeque::new(),
            used: Instant::now(),
            reads: JoinSet::new(),
        }
    }

    /// The window that holds these bytes, with their place in it.
    fn held(&self, offset: u64, length: u32) -> Option<(usize, Read)> {
        let within = |window: &&Window| {
            window.offset <= offset && offset + u64::from(length) <= window.offset + u64::from(window.length)
        };
        let window = self.windows.iter().find(within)?;
        Some((usize::try_from(offset - window.offset).ok()?, window.read.clone()))
    }

    /// Begins windows up to so many after what was asked for, in the order in which they will be taken.
    fn reach(&mut self, volume: &Arc<Volume>, inode: &Inode) {
        let reach = (self.next + u64::from(WINDOW) * (WINDOWS as u64 - 1)).min(inode.attr.size);
        let mut under_way = self.windows.iter().filter(|window| window.read.peek().is_none()).count();
        while self.ahead < reach && (self.ahead < self.next || under_way < UNDER_WAY) {
            let size = u64::from(WINDOW).min(inode.attr.size - self.ahead);
            let (offset, length) = (self.ahead, u32::try_from(size).expect("a window at most"));
            let (volume, inode) = (volume.clone(), inode.clone());
            let read = async move { volume.read_range(&inode, offset, length).await }.boxed().shared();
            self.reads.spawn(read.clone().map(drop));
            self.windows.push_back(Window { offset, length, begun: Instant::now(), read });
            self.ahead += size;
            under_way += 1;
        }
    }
}

/// See the module.
pub(crate) struct Ahead {
    age: Duration,
    streams: Mutex<Vec<Stream>>,
}

impl Ahead {
    pub(crate) fn new(age: Duration) -> Self {
        Self { age: age * AGES, streams: Mutex::default() }
    }

    /// Bytes of a file, which are within it.
    pub(crate) async fn read(
        &self,
        volume: &Arc<Volume>,
        inode: &Inode,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ExportError> {
        match self.take(volume, inode, offset, length) {
            Some((start, read)) => Ok(read.await?.slice(start..start + length as usize)),
            None => volume.read_range(inode, offset, length).await,
        }
    }

    /// The window that holds these bytes, if somebody reads the file from its beginning to its end.
    fn take(&self, volume: &Arc<Volume>, inode: &Inode, offset: u64, length: u32) -> Option<(usize, Read)> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + u64::from(length);
        let known = streams.iter().position(|stream| stream.inode == inode.number && stream.stamp == inode.stamp());
        let Some(place) = known else {
            streams.retain(|stream| stream.inode != inode.number);
            if streams.len() >= FILES
                && let Some(oldest) = (0..streams.len()).min_by_key(|index| streams[*index].used)
            {
                streams.swap_remove(oldest);
            }
            // Nothing follows the end of a file.
            if end < inode.attr.size {
                streams.push(Stream::new(inode, end));
            }
            return None;
        };
        let stream = &mut streams[place];
        stream.used = Instant::now();
        while stream.reads.try_join_next().is_some() {}
        stream.windows.retain(|window| window.begun.elapsed() < self.age);
        let held = stream.held(offset, length);
        if held.is_none() && !(offset <= stream.next && end > stream.next) {
            *stream = Stream::new(inode, end);
            return None;
        }
        stream.next = stream.next.max(end);
        // Reads of one reader may come in any order: only what lies before all that still may come is done with.
        let behind = stream.next.saturating_sub(u64::from(WINDOW) * LATE as u64);
        stream.windows.retain(|window| window.offset + u64::from(window.length) > behind);
        if held.is_none() && stream.windows.is_empty() {
            stream.ahead = offset;
        }
        stream.reach(volume, inode);
        held.or_else(|| stream.held(offset, length))
    }
}

/// Bytes from several places of a disk, one behind the other; one place costs no copy.
pub(crate) async fn gather(disk: &dyn Disk, pieces: Vec<(Option<u64>, u32)>) -> Result<Bytes, ExportError> {
    if let [(Some(at), length)] = pieces[..] {
        return disk.read(at, length).await;
    }
    let total: usize = pieces.iter().map(|(_, length)| *length as usize).sum();
    let mut out = BytesMut::with_capacity(total);
    let mut reads = futures::stream::iter(pieces)
        .map(|(at, length)| async move {
            match at {
                Some(at) => disk.read(at, length).await.map(|data| (Some(data), length)),
                None => Ok((None, length)),
            }
        })
        .buffered(super::READS_AT_ONCE);
    while let Some((data, length)) = reads.try_next().await? {
        match data {
            Some(data) => out.extend_from_slice(&data),
            None => out.resize(out.len() + length as usize, 0),
        }
    }
    Ok(out.freeze())
}
