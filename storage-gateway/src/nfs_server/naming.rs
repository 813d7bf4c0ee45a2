//! Procedures that change names: MKDIR, REMOVE, RMDIR, RENAME, LINK. Durable before they are answered.

use nfs3_types::nfs3::{
    LINK3resok, MKDIR3resok, Nfs3Option, REMOVE3resok, RENAME3resok, RMDIR3resok, nfsstat3, sattr3, wcc_data,
};
use rustix::fd::AsRawFd as _;
use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;

use super::access::{Caller, EXECUTE, WRITE};
use super::attributes::{changed, handle as handle_of, post};
use super::programs::{Programs, handle, new_name, succeed};
use super::tree::{Object, Refusal};
use super::writing::{give, need_to_own};
use crate::export::Kind;
use crate::export::beneath::kind;
use crate::export::nfs::xdr::Reader;

/// A directory as it is now.
fn after(directory: &Object) -> wcc_data {
    changed(rustix::fs::fstat(&directory.fd).ok().as_ref())
}

impl Programs {
    pub(super) fn mkdir(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = new_name(&mut arguments)?;
        let wanted: sattr3 = arguments.take()?;
        caller.need(&directory.stat, WRITE | EXECUTE)?;
        need_to_own(caller)?;
        rustix::fs::mkdirat(&directory.fd, name.as_ref(), Mode::from_raw_mode(0o700))?;
        let made = self.tree.child(&directory, &name)?.directory()?;
        let fd = self.tree.open_directory(&made)?;
        give(&fd, caller, &directory.stat)?;
        let mode = if let Nfs3Option::Some(mode) = wanted.mode { mode & 0o7777 } else { 0o755 };
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        self.tree.sync(&made)?;
        self.tree.sync(&directory)?;
        let stat = rustix::fs::fstat(&fd)?;
        succeed(
            out,
            &MKDIR3resok {
                obj: Nfs3Option::Some(handle_of(made.key)),
                obj_attributes: post(&stat),
                dir_wcc: after(&directory),
            },
        );
        Ok(())
    }

    pub(super) fn remove(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = new_name(&mut arguments)?;
        caller.need(&directory.stat, EXECUTE)?;
        let victim = self.tree.child(&directory, &name)?;
        caller.need_removal(&directory.stat, &victim.stat)?;
        if kind(&victim.stat) == Kind::Directory {
            return Err(nfsstat3::NFS3ERR_ISDIR.into());
        }
        rustix::fs::unlinkat(&directory.fd, name.as_ref(), AtFlags::empty())?;
        self.tree.gone(victim.key, &directory, &name);
        self.tree.sync(&directory)?;
        succeed(out, &REMOVE3resok { dir_wcc: after(&directory) });
        Ok(())
    }

    pub(super) fn rmdir(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = new_name(&mut arguments)?;
        caller.need(&directory.stat, EXECUTE)?;
        let victim = self.tree.child(&directory, &name)?.directory()?;
        caller.need_removal(&directory.stat, &victim.stat)?;
        rustix::fs::unlinkat(&directory.fd, name.as_ref(), AtFlags::REMOVEDIR)?;
        self.tree.gone(victim.key, &directory, &name);
        self.tree.sync(&directory)?;
        succeed(out, &RMDIR3resok { dir_wcc: after(&directory) });
        Ok(())
    }

    pub(super) fn rename(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let from_directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let from = new_name(&mut arguments)?;
        let to_directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let to = new_name(&mut arguments)?;
        caller.need(&from_directory.stat, EXECUTE)?;
        caller.need(&to_directory.stat, WRITE | EXECUTE)?;
        let moved = self.tree.child(&from_directory, &from)?;
        caller.need_removal(&from_directory.stat, &moved.stat)?;
        let replaced = match self.tree.child(&to_directory, &to) {
            Ok(there) => {
                caller.need_removal(&to_directory.stat, &there.stat)?;
                Some(there)
            }
            Err(Refusal::Status(nfsstat3::NFS3ERR_NOENT)) => None,
            Err(refusal) => return Err(refusal),
        };
        rustix::fs::renameat(&from_directory.fd, from.as_ref(), &to_directory.fd, to.as_ref())?;
        // Two names of one file both stay: the system has done nothing then.
        let nothing_done = replaced.as_ref().is_some_and(|there| there.key == moved.key);
        if !nothing_done {
            if let Some(there) = replaced {
                self.tree.gone(there.key, &to_directory, &to);
            }
            self.tree.gone(moved.key, &from_directory, &from);
            self.tree.saw(moved.key, &to_directory, &to);
        }
        self.tree.sync(&from_directory)?;
        self.tree.sync(&to_directory)?;
        succeed(out, &RENAME3resok { fromdir_wcc: after(&from_directory), todir_wcc: after(&to_directory) });
        Ok(())
    }

    pub(super) fn link(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let file = self.tree.resolve(&handle(&mut arguments)?)?;
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = new_name(&mut arguments)?;
        caller.need(&directory.stat, WRITE | EXECUTE)?;
        if kind(&file.stat) == Kind::Directory {
            return Err(nfsstat3::NFS3ERR_ISDIR.into());
        }
        // As the kernel's protected_hardlinks: a name for what one can't write would keep it alive against its owner.
        if !caller.owns(&file.stat) {
            caller.need(&file.stat, super::access::READ | WRITE).map_err(|_| nfsstat3::NFS3ERR_PERM)?;
        }
        // The very object that the handle stands for, whatever has its old name by now: so there is nothing to look at
        // afterwards, and nothing of a person's that took the new name meanwhile to take away.
        let held = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        match rustix::fs::linkat(CWD, held, &directory.fd, name.as_ref(), AtFlags::SYMLINK_FOLLOW) {
            // Its last name went, or the directory did (or /proc isn't there): the client looks again.
            Err(Errno::NOENT) => return Err(nfsstat3::NFS3ERR_STALE.into()),
            other => other?,
        }
        self.tree.saw(file.key, &directory, &name);
        self.tree.sync(&directory)?;
        let stat = rustix::fs::fstat(&file.fd)?;
        succeed(out, &LINK3resok { file_attributes: post(&stat), linkdir_wcc: after(&directory) });
        Ok(())
    }
}
