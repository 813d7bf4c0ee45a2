//! Whose rights a call has, and whether they suffice: the file's mode bits against the caller's user and groups.
//!
//! The kernel still checks the process's own rights beneath all this: a caller never has more than the server.

use nfs3_types::nfs3::{
    ACCESS3_DELETE, ACCESS3_EXECUTE, ACCESS3_EXTEND, ACCESS3_LOOKUP, ACCESS3_MODIFY, ACCESS3_READ, nfsstat3,
};
use rustix::fs::Stat;

use crate::export::Kind;
use crate::export::beneath::kind;

/// Mode bits of one class.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
pub(super) const EXECUTE: u32 = 1;

/// Who nobody is.
const NOBODY: u32 = 65_534;
/// Only the owner of a file, or of the directory, removes it from a directory with this bit.
const STICKY: u32 = 0o1000;

/// Whose rights callers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squash {
    /// User 0 has the rights of the server's own user; all others have their own.
    Root,
    /// Everyone has the rights of the server's own user.
    All,
    /// Everyone has their own, user 0 all of them.
    Nobody,
}

/// Who a caller says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// Whose rights a call has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    groups: Vec<u32>,
}

impl Caller {
    /// Squashes what is claimed; without a credential the caller is nobody.
    pub(super) fn new(claimed: Option<Claimed>, squash: Squash) -> Self {
        let own = || Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Vec::new(),
        };
        match (claimed, squash) {
            (_, Squash::All) => own(),
            (Some(claimed), Squash::Root) if claimed.uid == 0 => own(),
            (Some(Claimed { uid, gid, groups }), _) => Self { uid, gid, groups },
            (None, _) => Self { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
        }
    }

    /// Whether it may do anything.
    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether the object is the caller's.
    pub(super) fn owns(&self, stat: &Stat) -> bool {
        self.is_root() || self.uid == stat.st_uid
    }

    /// The bits of the class that the caller is in.
    fn bits(&self, stat: &Stat) -> u32 {
        if self.uid == stat.st_uid {
            stat.st_mode >> 6
        } else if self.gid == stat.st_gid || self.groups.contains(&stat.st_gid) {
            stat.st_mode >> 3
        } else {
            stat.st_mode
        }
    }

    fn has(&self, stat: &Stat, wanted: u32) -> bool {
        self.is_root() || self.bits(stat) & wanted == wanted
    }

    /// Refuses unless the caller has all of `wanted`.
    pub(super) fn need(&self, stat: &Stat, wanted: u32) -> Result<(), nfsstat3> {
        if self.has(stat, wanted) { Ok(()) } else { Err(nfsstat3::NFS3ERR_ACCES) }
    }

    /// The same for a file's contents, which its owner may always reach: the bits may have changed since the client
    /// opened it, and a server without opens can't know.
    pub(super) fn need_contents(&self, stat: &Stat, wanted: u32) -> Result<(), nfsstat3> {
        if self.owns(stat) { Ok(()) } else { self.need(stat, wanted) }
    }

    /// Refuses unless the caller may take `victim` out of `directory`.
    pub(super) fn need_removal(&self, directory: &Stat, victim: &Stat) -> Result<(), nfsstat3> {
        self.need(directory, WRITE | EXECUTE)?;
        let sticky = directory.st_mode & STICKY != 0;
        if sticky && !self.owns(victim) && !self.owns(directory) {
            return Err(nfsstat3::NFS3ERR_PERM);
        }
        Ok(())
    }

    /// Those of the asked `ACCESS3_*` bits that the caller has.
    pub(super) fn access(&self, stat: &Stat, asked: u32, read_only: bool) -> u32 {
        let directory = kind(stat) == Kind::Directory;
        let mut granted = 0;
        if self.has(stat, READ) {
            granted |= ACCESS3_READ;
        }
        if self.has(stat, WRITE) && !read_only {
            granted |= ACCESS3_MODIFY | ACCESS3_EXTEND;
            if directory {
                granted |= ACCESS3_DELETE;
            }
        }
        // User 0 may enter every directory, but runs only what is executable for someone.
        let executable = directory || !self.is_root() || stat.st_mode & 0o111 != 0;
        if self.has(stat, EXECUTE) && executable {
            granted |= if directory { ACCESS3_LOOKUP } else { ACCESS3_EXECUTE };
        }
        granted & asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mode: u32) -> Stat {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut stat = rustix::fs::fstat(file.as_file()).unwrap();
        (stat.st_uid, stat.st_gid) = (1000, 100);
        stat.st_mode = mode;
        stat
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn classes_of_the_mode_bits() {
        let stat = stat(0o100_640);
        for (who, read, write) in [
            (caller(1000, 5, &[]), true, true),
            (caller(2000, 100, &[]), true, false),
            (caller(2000, 5, &[7, 100]), true, false),
            (caller(2000, 5, &[7]), false, false),
            (caller(0, 0, &[]), true, true),
        ] {
            assert_eq!(who.need(&stat, READ).is_ok(), read, "{who:?}");
            assert_eq!(who.need(&stat, WRITE).is_ok(), write, "{who:?}");
        }
        // The owner's class counts even where others have more.
        assert!(caller(1000, 100, &[]).need(&super::tests::stat(0o100_077), READ).is_err());
        assert!(caller(1000, 100, &[]).need_contents(&super::tests::stat(0o100_077), READ).is_ok());
    }

    #[test]
    fn sticky_directories_keep_others_files() {
        let directory = stat(0o041_777);
        let mut theirs = stat(0o100_666);
        theirs.st_uid = 3000;
        assert!(caller(2000, 5, &[]).need_removal(&directory, &theirs).is_err());
        assert!(caller(3000, 5, &[]).need_removal(&directory, &theirs).is_ok());
        assert!(caller(1000, 5, &[]).need_removal(&directory, &theirs).is_ok(), "the directory's owner");
    }

    #[test]
    fn squashing() {
        let own = rustix::process::geteuid().as_raw();
        let claim = |uid| Some(Claimed { uid, gid: 5, groups: vec![] });
        assert_eq!(Caller::new(claim(0), Squash::Root).uid, own);
        assert_eq!(Caller::new(claim(77), Squash::Root).uid, 77);
        assert_eq!(Caller::new(claim(77), Squash::All).uid, own);
        assert_eq!(Caller::new(claim(0), Squash::Nobody).uid, 0);
        assert_eq!(Caller::new(None, Squash::Root).uid, NOBODY);
    }

    #[test]
    fn access_bits() {
        let directory = stat(0o040_755);
        let other = caller(2000, 5, &[]);
        assert_eq!(other.access(&directory, 0x3f, false), ACCESS3_READ | ACCESS3_LOOKUP);
        let owner = caller(1000, 5, &[]);
        assert_eq!(owner.access(&directory, 0x3f, true), ACCESS3_READ | ACCESS3_LOOKUP);
        assert_eq!(owner.access(&directory, ACCESS3_DELETE, false), ACCESS3_DELETE);
        assert_eq!(caller(0, 0, &[]).access(&stat(0o100_644), ACCESS3_EXECUTE, false), 0);
    }
}
