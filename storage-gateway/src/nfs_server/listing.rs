//! READDIR and READDIRPLUS, with cookies that stay good: over changes between pages, over restarts, on any file system.
//!
//! A cookie is a hash of the name, and entries come in the order of their hashes: the next page begins after the cookie
//! whatever was added or removed meanwhile. The sorted names of a directory being paged through are kept for seconds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nfs3_types::nfs3::{cookieverf3, nfsstat3, post_op_fh3};
use rustix::fd::AsFd;
use rustix::fs::Dir;

use super::access::{Caller, READ};
use super::attributes::post;
use super::faults::Fault;
use super::nodes::Key;
use super::programs::{Programs, handle};
use super::tree::{Object, Refusal};
use crate::export::beneath::stat_in;
use crate::export::nfs::xdr::{Reader, put};

/// Directories whose names are kept.
const SNAPSHOTS_MAX: usize = 4;
/// How long they are.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a reply, whatever the client allows.
const REPLY_MAX: usize = 1 << 20;
/// Cookies of `.` and `..`.
const OWN: u64 = 1;
const ABOVE: u64 = 2;

/// A directory's names in the order of their cookies.
type Names = Arc<Vec<(u64, Vec<u8>)>>;

/// Names of directories that are being paged through.
#[derive(Default)]
pub(super) struct Snapshots {
    kept: Mutex<Vec<(Key, Instant, Names)>>,
}

/// Positive also for clients with signed cookies, and beyond those of `.` and `..`.
fn cookie(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    let first = hash.as_bytes().first_chunk().expect("a digest has 32 bytes");
    (u64::from_be_bytes(*first) >> 1).max(ABOVE + 1)
}

impl Snapshots {
    /// The names: fresh ones for a first page, the kept ones, if they are, for a later one.
    fn names(
        &self,
        directory: &Object,
        first: bool,
        read: impl FnOnce() -> Result<Names, Refusal>,
    ) -> Result<Names, Refusal> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, at, _)| now.saturating_duration_since(*at) < AGE_MAX);
        if first {
            kept.retain(|(key, _, _)| *key != directory.key);
        } else if let Some((_, _, names)) = kept.iter().find(|(key, _, _)| *key == directory.key) {
            return Ok(names.clone());
        }
        drop(kept);
        let names = read()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= SNAPSHOTS_MAX {
            kept.remove(0);
        }
        kept.push((directory.key, now, names.clone()));
        Ok(names)
    }
}

/// How much a page may hold.
struct Room {
    /// Bytes of the reply.
    reply: usize,
    /// Bytes of file ids, names and cookies.
    names: usize,
}

impl Programs {
    pub(super) fn readdir(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let (after, _verifier) = (arguments.take::<u64>()?, arguments.take::<cookieverf3>()?);
        let reply = arguments.u32()? as usize;
        self.page(caller, &directory, after, Room { reply, names: reply }, false, out)
    }

    pub(super) fn readdirplus(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let (after, _verifier) = (arguments.take::<u64>()?, arguments.take::<cookieverf3>()?);
        let (names, reply) = (arguments.u32()? as usize, arguments.u32()? as usize);
        self.page(caller, &directory, after, Room { reply, names }, true, out)
    }

    fn page(
        &self,
        caller: &Caller,
        directory: &Object,
        after: u64,
        room: Room,
        plus: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        caller.need(&directory.stat, READ)?;
        if after != 0 && self.faults.strikes(Fault::BadCookie) {
            return Err(nfsstat3::NFS3ERR_BAD_COOKIE.into());
        }
        let names = self.snapshots.names(directory, after == 0, || self.names(directory))?;
        let begin = out.len();
        put(out, &nfsstat3::NFS3_OK);
        put(out, &post(&directory.stat));
        // One verifier for all time: our cookies never go bad.
        put(out, &cookieverf3::default());
        let limit = room.reply.min(REPLY_MAX).saturating_sub(8);
        let mut named = 0;
        let (mut any, mut end) = (false, true);
        let start = names.partition_point(|(cookie, _)| *cookie <= after);
        for (cookie, name) in &names[start..] {
            let stat = match name.as_slice() {
                b"." => directory.stat,
                b".." => self.tree.above(directory)?.stat,
                // Gone since it was read: left out. What can't be looked at is left out too.
                name => match stat_in(directory.fd.as_fd(), name) {
                    Ok(stat) => stat,
                    Err(_) => continue,
                },
            };
            let before = out.len();
            put(out, &true);
            put(out, &stat.st_ino);
            put(out, &nfs3_types::xdr_codec::Opaque::borrowed(name));
            put(out, cookie);
            let of_name = out.len() - before - 4;
            if plus {
                put(out, &post(&stat));
                // No handle: the client that wants one looks the name up, and only then do we remember it.
                put(out, &post_op_fh3::None);
            }
            if out.len() - begin > limit || (any && named + of_name > room.names) {
                out.truncate(before);
                end = false;
                break;
            }
            named += of_name;
            any = true;
        }
        if !any && !end {
            return Err(nfsstat3::NFS3ERR_TOOSMALL.into());
        }
        put(out, &false);
        put(out, &end);
        Ok(())
    }

    fn names(&self, directory: &Object) -> Result<Names, Refusal> {
        let fd = self.tree.open_directory(directory)?;
        let mut names = vec![(OWN, b".".to_vec()), (ABOVE, b"..".to_vec())];
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push((cookie(name), name.to_vec()));
            }
        }
        names.sort_unstable();
        Ok(Arc::new(names))
    }
}
