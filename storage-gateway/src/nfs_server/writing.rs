//! Procedures that change a file's contents or attributes: SETATTR, WRITE, COMMIT, CREATE.

use std::sync::atomic::Ordering;

use nfs3_types::nfs3::{
    COMMIT3resok, CREATE3resok, Nfs3Option, SETATTR3resok, WRITE3resok, createhow3, nfsstat3, nfstime3, sattr3,
    sattrguard3, set_atime, set_mtime, stable_how, writeverf3,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::access::{Caller, EXECUTE, WRITE};
use super::attributes::{changed, fattr, handle as handle_of, post};
use super::faults::Fault;
use super::programs::{Programs, handle, new_name, succeed};
use super::tree::{Object, Refusal, identify};
use crate::export::Kind;
use crate::export::beneath::kind;
use crate::export::nfs::record::RECORD_MAX;
use crate::export::nfs::xdr::Reader;

/// Whether this process can give files away.
pub(super) fn process_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Refuses to make what could not become the caller's: only root gives files away.
pub(super) fn need_to_own(caller: &Caller) -> Result<(), nfsstat3> {
    let own = caller.uid == rustix::process::geteuid().as_raw();
    if own || process_is_root() { Ok(()) } else { Err(nfsstat3::NFS3ERR_ACCES) }
}

/// Gives a new object to the caller; in a set-gid directory it keeps the directory's group.
pub(super) fn give(fd: impl AsFd, caller: &Caller, directory: &Stat) -> Result<(), Errno> {
    const SET_GID: u32 = 0o2000;
    if !process_is_root() {
        return Ok(());
    }
    let group = (directory.st_mode & SET_GID == 0).then(|| Gid::from_raw(caller.gid));
    rustix::fs::fchown(fd, Some(Uid::from_raw(caller.uid)), group)
}

fn timespec(time: nfstime3) -> Timespec {
    Timespec { tv_sec: time.seconds.into(), tv_nsec: time.nseconds.into() }
}

/// Sets what `wanted` says on an open file or directory that the caller may change so.
fn apply(fd: &OwnedFd, caller: &Caller, wanted: &sattr3) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(fd)?;
    if let Nfs3Option::Some(size) = wanted.size {
        caller.need_contents(&stat, WRITE)?;
        rustix::fs::ftruncate(fd, size)?;
    }
    let change = |asked: &Nfs3Option<u32>, is: u32| match asked {
        Nfs3Option::Some(id) if *id != is => Some(*id),
        _ => None,
    };
    let (uid, gid) = (change(&wanted.uid, stat.st_uid), change(&wanted.gid, stat.st_gid));
    if uid.is_some() || gid.is_some() {
        if !caller.is_root() || !process_is_root() {
            return Err(nfsstat3::NFS3ERR_PERM.into());
        }
        rustix::fs::fchown(fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
    }
    if let Nfs3Option::Some(mode) = wanted.mode {
        if !caller.owns(&stat) {
            return Err(nfsstat3::NFS3ERR_PERM.into());
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))?;
    }
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_access = match wanted.atime {
        set_atime::DONT_CHANGE => keep,
        set_atime::SET_TO_SERVER_TIME => now,
        set_atime::SET_TO_CLIENT_TIME(time) => timespec(time),
    };
    let last_modification = match wanted.mtime {
        set_mtime::DONT_CHANGE => keep,
        set_mtime::SET_TO_SERVER_TIME => now,
        set_mtime::SET_TO_CLIENT_TIME(time) => timespec(time),
    };
    if [last_access.tv_nsec, last_modification.tv_nsec] != [UTIME_OMIT; 2] {
        let only_now =
            [last_access.tv_nsec, last_modification.tv_nsec].iter().all(|t| [UTIME_NOW, UTIME_OMIT].contains(t));
        let may = caller.owns(&stat) || (only_now && caller.need(&stat, WRITE).is_ok());
        if !may {
            return Err(nfsstat3::NFS3ERR_PERM.into());
        }
        rustix::fs::futimens(fd, &Timestamps { last_access, last_modification })?;
    }
    Ok(())
}

/// Times that hold an exclusive creation's verifier until the client sets its own: so it survives a restart.
fn verifier_times(verifier: [u8; 8]) -> Timestamps {
    let [a, b, c, d, e, f, g, h] = verifier;
    // Without their highest bit, which some file systems take for a sign.
    let time = |bytes| Timespec { tv_sec: (u32::from_be_bytes(bytes) & 0x7fff_ffff).into(), tv_nsec: 0 };
    Timestamps { last_access: time([a, b, c, d]), last_modification: time([e, f, g, h]) }
}

impl Programs {
    fn write_verifier(&self) -> writeverf3 {
        if self.faults.strikes(Fault::VerifierChange) {
            self.verifier.fetch_add(1, Ordering::Relaxed);
        }
        writeverf3(self.verifier.load(Ordering::Relaxed).to_be_bytes())
    }

    /// Makes a file's contents durable. If that fails, nobody knows which bytes written so far are lost, and asking a
    /// second time would find nothing wrong: the verifier changes, and clients write again.
    fn sync_file(&self, file: &OwnedFd) -> Result<(), Refusal> {
        rustix::fs::fsync(file).map_err(|errno| {
            self.verifier.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%errno, "a sync failed: the write verifier is changed");
            errno.into()
        })
    }

    /// Opens whatever attributes can be set on.
    fn open_to_change(&self, object: &Object) -> Result<OwnedFd, Refusal> {
        match kind(&object.stat) {
            Kind::Directory => self.tree.open_directory(object),
            Kind::File => match self.tree.open_file(object, OFlags::RDWR) {
                // The server's own user may hold only one of the two rights.
                Err(Refusal::Status(nfsstat3::NFS3ERR_ACCES)) => self.tree.open_file(object, OFlags::RDONLY),
                other => other,
            },
            Kind::Symlink | Kind::Other => Err(nfsstat3::NFS3ERR_INVAL.into()),
        }
    }

    pub(super) fn setattr(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let wanted: sattr3 = arguments.take()?;
        let guard: sattrguard3 = arguments.take()?;
        if let Nfs3Option::Some(ctime) = guard
            && fattr(&object.stat).ctime != ctime
        {
            return Err(nfsstat3::NFS3ERR_NOT_SYNC.into());
        }
        if wanted.size.is_some() && kind(&object.stat) == Kind::Directory {
            return Err(nfsstat3::NFS3ERR_ISDIR.into());
        }
        let fd = self.open_to_change(&object)?;
        apply(&fd, caller, &wanted)?;
        self.sync_file(&fd)?;
        succeed(out, &SETATTR3resok { obj_wcc: changed(rustix::fs::fstat(&fd).ok().as_ref()) });
        Ok(())
    }

    pub(super) fn write(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let (offset, count) = (arguments.take::<u64>()?, arguments.u32()? as usize);
        let committed: stable_how = arguments.take()?;
        let mut data = arguments.opaque(RECORD_MAX)?;
        data.truncate(count);
        if kind(&object.stat) == Kind::File {
            caller.need_contents(&object.stat, WRITE)?;
        }
        if i64::try_from(offset.saturating_add(data.len() as u64)).is_err() {
            return Err(nfsstat3::NFS3ERR_FBIG.into());
        }
        // Before the write: one that fails to become durable between the two must be told.
        let verf = self.write_verifier();
        let file = self.tree.open_file(&object, OFlags::WRONLY)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&file, &data[done..], offset + done as u64) {
                Ok(0) => return Err(nfsstat3::NFS3ERR_IO.into()),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // What fitted is told; the rest will be refused when it comes again.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        if committed != stable_how::UNSTABLE {
            self.sync_file(&file)?;
        }
        let count = u32::try_from(done).expect("a record is at most 4 MiB");
        let file_wcc = changed(rustix::fs::fstat(&file).ok().as_ref());
        succeed(out, &WRITE3resok { file_wcc, count, committed, verf });
        Ok(())
    }

    pub(super) fn commit(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let _range = (arguments.take::<u64>()?, arguments.u32()?);
        if kind(&object.stat) == Kind::File {
            caller.need_contents(&object.stat, WRITE)?;
        }
        let file = self.tree.open_file(&object, OFlags::RDONLY)?;
        let verf = self.write_verifier();
        self.sync_file(&file)?;
        succeed(out, &COMMIT3resok { file_wcc: changed(Some(&object.stat)), verf });
        Ok(())
    }

    pub(super) fn create(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = new_name(&mut arguments)?;
        let how: createhow3 = arguments.take()?;
        caller.need(&directory.stat, WRITE | EXECUTE)?;
        need_to_own(caller)?;
        let made = {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&directory.fd, name.as_ref(), flags, Mode::from_raw_mode(0o600))
        };
        let fd = match (made, &how) {
            (Ok(fd), how) => {
                give(&fd, caller, &directory.stat)?;
                match how {
                    createhow3::EXCLUSIVE(verifier) => rustix::fs::futimens(&fd, &verifier_times(verifier.0))?,
                    createhow3::UNCHECKED(wanted) | createhow3::GUARDED(wanted) => {
                        if wanted.mode.is_none() {
                            rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o644))?;
                        }
                        apply(&fd, caller, wanted)?;
                    }
                }
                self.sync_file(&fd)?;
                self.tree.sync(&directory)?;
                fd
            }
            (Err(Errno::EXIST), createhow3::EXCLUSIVE(verifier)) => {
                // Perhaps it is this very call's own work, and the reply was lost.
                let there = self.tree.child(&directory, &name)?;
                let times = verifier_times(verifier.0);
                let (seconds, size) = ((there.stat.st_atime, there.stat.st_mtime), there.stat.st_size);
                let same = seconds == (times.last_access.tv_sec, times.last_modification.tv_sec);
                if kind(&there.stat) != Kind::File || size != 0 || !same {
                    return Err(nfsstat3::NFS3ERR_EXIST.into());
                }
                self.tree.open_file(&there, OFlags::RDONLY)?
            }
            (Err(Errno::EXIST), createhow3::UNCHECKED(wanted)) => {
                let there = self.tree.child(&directory, &name)?;
                if kind(&there.stat) != Kind::File {
                    return Err(nfsstat3::NFS3ERR_EXIST.into());
                }
                let fd = self.open_to_change(&there)?;
                // Of an existing file only the size is set.
                apply(&fd, caller, &sattr3 { size: wanted.size, ..sattr3::default() })?;
                self.sync_file(&fd)?;
                fd
            }
            (Err(errno), _) => return Err(errno.into()),
        };
        let (key, stat) = identify(&fd)?;
        self.tree.saw(key, &directory, &name);
        succeed(
            out,
            &CREATE3resok {
                obj: Nfs3Option::Some(handle_of(key)),
                obj_attributes: post(&stat),
                dir_wcc: changed(rustix::fs::fstat(&directory.fd).ok().as_ref()),
            },
        );
        Ok(())
    }
}
