//! From handles to objects below the root, opened so that no symlink and no rename can lead elsewhere.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ingle_proto::ObjectPath;
use nfs3_types::nfs3::nfsstat3;
use nfs3_types::rpc::accept_stat_data;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use super::nodes::{Key, Nodes};
use crate::export::Kind;
use crate::export::beneath::{self, Beneath, Miss};
use crate::export::nfs::xdr::Malformed;

/// Why a procedure doesn't do what it was asked.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The NFS status.
    Status(nfsstat3),
    /// The call itself is at fault.
    Rpc(accept_stat_data),
}

impl From<nfsstat3> for Refusal {
    fn from(status: nfsstat3) -> Self {
        Self::Status(status)
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Rpc(accept_stat_data::GARBAGE_ARGS)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Status(super::attributes::status(errno))
    }
}

impl From<Miss> for Refusal {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Os(errno) => errno.into(),
            Miss::Is(Kind::Directory) => Self::Status(nfsstat3::NFS3ERR_ISDIR),
            Miss::Is(_) => Self::Status(nfsstat3::NFS3ERR_INVAL),
        }
    }
}

/// An object that a handle stands for, held by a descriptor that can neither read nor write it.
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) path: ObjectPath,
    pub(super) stat: Stat,
    pub(super) fd: OwnedFd,
}

impl Object {
    /// Refuses all but directories.
    pub(super) fn directory(self) -> Result<Self, Refusal> {
        match beneath::kind(&self.stat) {
            Kind::Directory => Ok(self),
            _ => Err(nfsstat3::NFS3ERR_NOTDIR.into()),
        }
    }
}

/// The directory served.
pub(super) struct Tree {
    beneath: Beneath,
    nodes: Mutex<Nodes>,
    root: Key,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, Errno> {
        let beneath = Beneath::open(root)?;
        let fd = beneath.at(&ObjectPath::root(), OFlags::PATH).map_err(|_| Errno::NOTDIR)?;
        let (root, _) = identify(&fd)?;
        Ok(Self { beneath, nodes: Mutex::new(Nodes::new(root)), root })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the root's handle says.
    pub(super) fn root(&self) -> Key {
        self.root
    }

    /// The object that a handle stands for. Stale if it isn't found under any name we saw it by.
    pub(super) fn resolve(&self, handle: &Bytes) -> Result<Object, Refusal> {
        let key = Key::from_handle(handle).ok_or(nfsstat3::NFS3ERR_BADHANDLE)?;
        self.by_key(key)
    }

    fn by_key(&self, key: Key) -> Result<Object, Refusal> {
        let paths = self.nodes().paths(key);
        for path in paths {
            if let Ok(fd) = self.beneath.at(&path, OFlags::PATH)
                && let Ok((found, stat)) = identify(&fd)
                && found == key
            {
                return Ok(Object { key, path, stat, fd });
            }
        }
        Err(nfsstat3::NFS3ERR_STALE.into())
    }

    /// What has `name` in `directory`.
    pub(super) fn child(&self, directory: &Object, name: &[u8]) -> Result<Object, Refusal> {
        let path = directory.path.join(name).map_err(|_| nfsstat3::NFS3ERR_NAMETOOLONG)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?;
        let (key, stat) = identify(&fd)?;
        self.nodes().saw(key, directory.key, name);
        Ok(Object { key, path, stat, fd })
    }

    /// The directory above; the root's is the root.
    pub(super) fn above(&self, directory: &Object) -> Result<Object, Refusal> {
        let Some(parent) = directory.path.parent() else {
            return self.by_key(self.root);
        };
        self.walk(&parent)
    }

    /// What a path leads to, every directory on the way becoming known.
    pub(super) fn walk(&self, path: &ObjectPath) -> Result<Object, Refusal> {
        let mut at = self.by_key(self.root)?;
        for part in path.components() {
            at = self.child(&at.directory()?, part)?;
        }
        Ok(at)
    }

    /// Opens a directory for listing and syncing.
    pub(super) fn open_directory(&self, directory: &Object) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // Through the descriptor itself: it is this directory wherever its name has gone.
        Ok(rustix::fs::openat(&directory.fd, ".", flags, Mode::empty())?)
    }

    /// Opens the contents of a regular file.
    pub(super) fn open_file(&self, file: &Object, flags: OFlags) -> Result<OwnedFd, Refusal> {
        let fd = self.beneath.regular(&file.path, flags)?;
        if identify(&fd)?.0 == file.key { Ok(fd) } else { Err(nfsstat3::NFS3ERR_STALE.into()) }
    }

    /// Makes changes of names durable, as the protocol demands before the reply.
    pub(super) fn sync(&self, directory: &Object) -> Result<(), Refusal> {
        match self.open_directory(directory) {
            Ok(fd) => match rustix::fs::fsync(fd) {
                // A file system that can't sync directories promises nothing that we could ask for.
                Ok(()) | Err(Errno::INVAL) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
            // A directory that may be written but not listed can't be synced by name either.
            Err(Refusal::Status(nfsstat3::NFS3ERR_ACCES)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// An object has a name now.
    pub(super) fn saw(&self, child: Key, directory: &Object, name: &[u8]) {
        self.nodes().saw(child, directory.key, name);
    }

    /// An object lost a name.
    pub(super) fn gone(&self, child: Key, directory: &Object, name: &[u8]) {
        self.nodes().gone(child, directory.key, name);
    }
}

/// What a handle for it says, and its attributes.
#[allow(clippy::unnecessary_cast)] // The width of these fields differs between processors.
pub(super) fn identify(fd: impl AsFd) -> Result<(Key, Stat), Errno> {
    let stat = rustix::fs::fstat(&fd)?;
    let born = match rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME) {
        Ok(more) if more.stx_mask & StatxFlags::BTIME.bits() != 0 => (more.stx_btime.tv_sec, more.stx_btime.tv_nsec),
        Ok(_) | Err(_) => (0, 0),
    };
    Ok((Key { device: stat.st_dev as u64, inode: stat.st_ino as u64, born }, stat))
}
