//! The system's attributes and errors in the protocol's terms.

use nfs3_types::nfs3::{Nfs3Option, fattr3, ftype3, nfs_fh3, nfsstat3, nfstime3, post_op_attr, specdata3, wcc_data};
use nfs3_types::xdr_codec::Opaque;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::nodes::Key;

/// The status for a failed system call.
pub(super) fn status(errno: Errno) -> nfsstat3 {
    match errno {
        Errno::PERM => nfsstat3::NFS3ERR_PERM,
        Errno::NOENT => nfsstat3::NFS3ERR_NOENT,
        Errno::NXIO => nfsstat3::NFS3ERR_NXIO,
        Errno::ACCESS | Errno::BUSY => nfsstat3::NFS3ERR_ACCES,
        Errno::EXIST => nfsstat3::NFS3ERR_EXIST,
        Errno::XDEV => nfsstat3::NFS3ERR_XDEV,
        Errno::NODEV => nfsstat3::NFS3ERR_NODEV,
        Errno::NOTDIR => nfsstat3::NFS3ERR_NOTDIR,
        Errno::ISDIR => nfsstat3::NFS3ERR_ISDIR,
        Errno::INVAL | Errno::LOOP | Errno::ILSEQ => nfsstat3::NFS3ERR_INVAL,
        Errno::FBIG => nfsstat3::NFS3ERR_FBIG,
        Errno::NOSPC => nfsstat3::NFS3ERR_NOSPC,
        Errno::ROFS => nfsstat3::NFS3ERR_ROFS,
        Errno::MLINK => nfsstat3::NFS3ERR_MLINK,
        Errno::NAMETOOLONG => nfsstat3::NFS3ERR_NAMETOOLONG,
        Errno::NOTEMPTY => nfsstat3::NFS3ERR_NOTEMPTY,
        Errno::DQUOT => nfsstat3::NFS3ERR_DQUOT,
        Errno::STALE => nfsstat3::NFS3ERR_STALE,
        Errno::OPNOTSUPP | Errno::NOSYS => nfsstat3::NFS3ERR_NOTSUPP,
        // Out of descriptors or memory for the moment: the client asks again.
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => nfsstat3::NFS3ERR_JUKEBOX,
        _ => nfsstat3::NFS3ERR_IO,
    }
}

/// Attributes. The casts only bridge the field types of different processors.
#[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]
pub(super) fn fattr(stat: &Stat) -> fattr3 {
    // The protocol's seconds are unsigned and end in 2106.
    let time = |seconds: i64, nanos: i64| nfstime3 {
        seconds: u32::try_from(seconds).unwrap_or(if seconds < 0 { 0 } else { u32::MAX }),
        nseconds: u32::try_from(nanos).unwrap_or(0),
    };
    let type_ = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => ftype3::NF3DIR,
        FileType::Symlink => ftype3::NF3LNK,
        FileType::BlockDevice => ftype3::NF3BLK,
        FileType::CharacterDevice => ftype3::NF3CHR,
        FileType::Socket => ftype3::NF3SOCK,
        FileType::Fifo => ftype3::NF3FIFO,
        _ => ftype3::NF3REG,
    };
    let rdev = stat.st_rdev as u64;
    fattr3 {
        type_,
        mode: stat.st_mode & 0o7777,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        used: (stat.st_blocks as u64).saturating_mul(512),
        rdev: specdata3 { specdata1: rustix::fs::major(rdev), specdata2: rustix::fs::minor(rdev) },
        fsid: stat.st_dev as u64,
        fileid: stat.st_ino as u64,
        atime: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        mtime: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    }
}

/// The same where a reply may leave them out.
pub(super) fn post(stat: &Stat) -> post_op_attr {
    Nfs3Option::Some(fattr(stat))
}

/// What a directory or file is after a change. We don't say what it was before: we can't read that at the same instant.
pub(super) fn changed(after: Option<&Stat>) -> wcc_data {
    wcc_data { before: Nfs3Option::None, after: after.map_or(Nfs3Option::None, post) }
}

/// A handle in a reply.
pub(super) fn handle(key: Key) -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned(key.to_handle()) }
}
