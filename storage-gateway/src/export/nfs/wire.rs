//! The procedures of NFS version 3 that we call, each with its arguments and the parts of its result that we use.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ingle_daemon::backoff::Backoff;
use nfs3_types::nfs3::{
    ACCESS3args, COMMIT3args, CREATE3args, FSINFO3args, GETATTR3args, LINK3args, LOOKUP3args, MKDIR3args, NFS_PROGRAM,
    NFS3_FHSIZE, Nfs3Option, PROGRAM, READ3args, REMOVE3args, RENAME3args, RMDIR3args, SETATTR3args, VERSION,
    cookieverf3, createhow3, createverf3, diropargs3, fattr3, filename3, ftype3, nfs_fh3, nfsstat3, nfstime3,
    post_op_attr, sattr3, sattrguard3, set_atime, set_mtime, stable_how, wcc_data, writeverf3,
};
use nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_types::xdr_codec::{Opaque, Pack};

use super::handles::Found;
use super::pool::{Pool, Replay};
use super::rpc::Procedure;
use super::status::Fault;
use super::xdr::{Malformed, Reader};
use crate::export::{Attr, Kind, User};

/// A file handle: at most 64 bytes that only its server understands.
pub(crate) type Handle = Bytes;

/// Most bytes of one READ or WRITE of ours.
pub(crate) const TRANSFER_MAX: u32 = 1 << 20;
/// What a server must allow at least; one that says less is taken at this.
pub(crate) const TRANSFER_MIN: u32 = 4096;
/// Most groups of a credential (RFC 5531, section 8.2).
pub(crate) const GROUPS_MAX: usize = 16;
/// First and longest pause before asking a server again that said `NFS3ERR_JUKEBOX`.
const JUKEBOX: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the server says of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FsInfo {
    /// Bytes per READ.
    pub(crate) read_size: u32,
    /// Bytes per WRITE.
    pub(crate) write_size: u32,
    /// Bit set of `FSF3_*`.
    pub(crate) properties: u32,
}

/// What the server says of READ or WRITE: its preference, no more than its maximum, or what the settings ask for.
fn transfer(asked: Option<u32>, preferred: u32, max: u32) -> u32 {
    let wanted = match (asked, preferred) {
        (Some(asked), _) => asked,
        (None, 0) => max,
        (None, preferred) => preferred,
    };
    wanted.min(if max == 0 { wanted } else { max }).clamp(TRANSFER_MIN, TRANSFER_MAX)
}

/// A server's NFS program, spoken to with one credential. Those of all users share the connections.
pub(crate) struct Server {
    pub(crate) pool: Arc<Pool>,
    pub(crate) credential: opaque_auth<'static>,
}

fn fh(handle: &Handle) -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned(handle.to_vec()) }
}

fn at<'n>(directory: &Handle, name: &'n [u8]) -> diropargs3<'n> {
    diropargs3 { dir: fh(directory), name: filename3(Opaque::borrowed(name)) }
}

/// `WRITE3args` up to its data, which is sent from where it lies.
struct WriteHead {
    file: nfs_fh3,
    offset: u64,
    count: u32,
}

impl Pack for WriteHead {
    fn packed_size(&self) -> usize {
        self.file.packed_size() + 8 + 4 + stable_how::UNSTABLE.packed_size() + 4
    }

    fn pack(&self, out: &mut impl std::io::Write) -> nfs3_types::xdr_codec::Result<usize> {
        let head = self.file.pack(out)? + self.offset.pack(out)? + self.count.pack(out)?;
        Ok(head + stable_how::UNSTABLE.pack(out)? + self.count.pack(out)?)
    }
}

fn mode(mode: u32) -> sattr3 {
    sattr3 { mode: Nfs3Option::Some(mode), ..sattr3::default() }
}

/// The export's attributes out of the server's.
pub(crate) fn attr(from: &fattr3) -> Attr {
    let ns = |time: nfstime3| i64::from(time.seconds) * 1_000_000_000 + i64::from(time.nseconds);
    let kind = match from.type_ {
        ftype3::NF3REG => Kind::File,
        ftype3::NF3DIR => Kind::Directory,
        ftype3::NF3LNK => Kind::Symlink,
        ftype3::NF3BLK | ftype3::NF3CHR | ftype3::NF3SOCK | ftype3::NF3FIFO => Kind::Other,
    };
    Attr {
        kind,
        size: from.size,
        mtime_ns: ns(from.mtime),
        ctime_ns: ns(from.ctime),
        file_id: from.fileid,
        mode: from.mode & 0o7777,
        links: from.nlink,
    }
}

fn handle(reader: &mut Reader) -> Result<Handle, Malformed> {
    let handle = reader.opaque(NFS3_FHSIZE)?;
    // A copy of its own: a slice would keep the whole record alive in the cache.
    if handle.is_empty() { Err(Malformed("an empty file handle".into())) } else { Ok(Bytes::copy_from_slice(&handle)) }
}

pub(crate) fn optional_handle(reader: &mut Reader) -> Result<Option<Handle>, Malformed> {
    reader.optional(handle)
}

pub(crate) fn optional_attr(reader: &mut Reader) -> Result<Option<fattr3>, Malformed> {
    Ok(match reader.take::<post_op_attr>()? {
        Nfs3Option::Some(attr) => Some(attr),
        Nfs3Option::None => None,
    })
}

impl Server {
    /// Over these connections, as this user.
    pub(crate) fn new(pool: Arc<Pool>, user: &User) -> Self {
        let auth = auth_unix {
            stamp: 0,
            machinename: Opaque::borrowed(b"inglenook"),
            uid: user.uid,
            gid: user.gid,
            gids: user.groups.iter().copied().take(GROUPS_MAX).collect(),
        };
        Self { pool, credential: opaque_auth::auth_unix(&auth) }
    }

    /// Calls, and reads the status and the rest with `read`, which must leave nothing over.
    pub(crate) async fn call<T>(
        &self,
        procedure: NFS_PROGRAM,
        arguments: &(impl Pack + Sync),
        replay: Replay,
        read: impl Fn(&mut Reader) -> Result<T, Malformed>,
    ) -> Result<T, Fault> {
        self.call_with(procedure, arguments, &Bytes::new(), replay, read).await
    }

    /// The same with data that ends the arguments.
    async fn call_with<T>(
        &self,
        procedure: NFS_PROGRAM,
        arguments: &(impl Pack + Sync),
        data: &Bytes,
        replay: Replay,
        read: impl Fn(&mut Reader) -> Result<T, Malformed>,
    ) -> Result<T, Fault> {
        let number = procedure as u32;
        let until = tokio::time::Instant::now() + self.pool.deadline();
        let mut backoff = Backoff::new(JUKEBOX.0, JUKEBOX.1);
        loop {
            let to = Procedure { program: PROGRAM, version: VERSION, number };
            let reply = self.pool.call(to, &self.credential, arguments, data, replay).await?;
            let mut reader = Reader::new(reply);
            let described = |error: Malformed| Malformed(format!("{} to {procedure}", error.0));
            match reader.take::<nfsstat3>().map_err(described)? {
                nfsstat3::NFS3_OK => {}
                nfsstat3::NFS3ERR_JUKEBOX if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(backoff.next_random()).await;
                    continue;
                }
                status => return Err(Fault::Status(status)),
            }
            let value = read(&mut reader).map_err(described)?;
            reader.end().map_err(described)?;
            return Ok(value);
        }
    }

    pub(crate) async fn getattr(&self, object: &Handle) -> Result<fattr3, Fault> {
        let arguments = GETATTR3args { object: fh(object) };
        self.call(NFS_PROGRAM::NFSPROC3_GETATTR, &arguments, Replay::Harmless, Reader::take).await
    }

    /// Those of the asked `ACCESS3_*` bits that this user has, as the server says.
    pub(crate) async fn access(&self, object: &Handle, asked: u32) -> Result<u32, Fault> {
        let arguments = ACCESS3args { object: fh(object), access: asked };
        self.call(NFS_PROGRAM::NFSPROC3_ACCESS, &arguments, Replay::Harmless, |r| {
            optional_attr(r)?;
            Ok(r.u32()? & asked)
        })
        .await
    }

    pub(crate) async fn lookup(&self, directory: &Handle, name: &[u8]) -> Result<Found, Fault> {
        let arguments = LOOKUP3args { what: at(directory, name) };
        let (handle, attr) = self
            .call(NFS_PROGRAM::NFSPROC3_LOOKUP, &arguments, Replay::Harmless, |r| {
                let found = (handle(r)?, optional_attr(r)?);
                optional_attr(r)?;
                Ok(found)
            })
            .await?;
        self.found(handle, attr).await
    }

    /// Completes what a reply left out.
    pub(crate) async fn found(&self, handle: Handle, known: Option<fattr3>) -> Result<Found, Fault> {
        let known = match known {
            Some(known) => known,
            None => self.getattr(&handle).await?,
        };
        Ok(Found { handle, attr: attr(&known), fsid: known.fsid })
    }

    /// At most `count` bytes, whether the file ends there, and its attributes then, if the server says them.
    pub(crate) async fn read(
        &self,
        file: &Handle,
        offset: u64,
        count: u32,
    ) -> Result<(Bytes, bool, Option<Attr>), Fault> {
        let arguments = READ3args { file: fh(file), offset, count };
        self.call(NFS_PROGRAM::NFSPROC3_READ, &arguments, Replay::Harmless, |r| {
            let known = optional_attr(r)?.map(|known| attr(&known));
            let (said, eof) = (r.u32()?, r.take::<bool>()?);
            let data = r.opaque(count as usize)?;
            if data.len() != said as usize {
                return Err(Malformed(format!("{} bytes where {said} are announced", data.len())));
            }
            Ok((data, eof, known))
        })
        .await
    }

    /// How many of the bytes were taken, and the server's write verifier.
    pub(crate) async fn write(&self, file: &Handle, offset: u64, data: &Bytes) -> Result<(u32, writeverf3), Fault> {
        let count = u32::try_from(data.len()).expect("writes are cut to the server's size, at most 1 MiB");
        let head = WriteHead { file: fh(file), offset, count };
        self.call_with(NFS_PROGRAM::NFSPROC3_WRITE, &head, data, Replay::Harmless, |r| {
            r.take::<wcc_data>()?;
            let taken = r.u32()?;
            r.take::<stable_how>()?;
            let verifier = r.take()?;
            if taken > count {
                return Err(Malformed(format!("{taken} bytes taken of {count}")));
            }
            Ok((taken, verifier))
        })
        .await
    }

    pub(crate) async fn commit(&self, file: &Handle) -> Result<writeverf3, Fault> {
        let arguments = COMMIT3args { file: fh(file), offset: 0, count: 0 };
        self.call(NFS_PROGRAM::NFSPROC3_COMMIT, &arguments, Replay::Harmless, |r| {
            r.take::<wcc_data>()?;
            r.take()
        })
        .await
    }

    /// Makes a file that wasn't there. With a verifier the server knows its own work again, so that it may be repeated.
    pub(crate) async fn create(
        &self,
        directory: &Handle,
        name: &[u8],
        verifier: Option<[u8; 8]>,
    ) -> Result<Option<Handle>, Fault> {
        let (how, replay) = match verifier {
            Some(verifier) => (createhow3::EXCLUSIVE(createverf3(verifier)), Replay::Harmless),
            None => (createhow3::GUARDED(mode(0o644)), Replay::Look),
        };
        let arguments = CREATE3args { where_: at(directory, name), how };
        self.call(NFS_PROGRAM::NFSPROC3_CREATE, &arguments, replay, made).await
    }

    /// Gives a new file its mode, and times that aren't the verifier's: servers keep that in them.
    pub(crate) async fn settle(&self, file: &Handle) -> Result<(), Fault> {
        let new_attributes =
            sattr3 { atime: set_atime::SET_TO_SERVER_TIME, mtime: set_mtime::SET_TO_SERVER_TIME, ..mode(0o644) };
        let arguments = SETATTR3args { object: fh(file), new_attributes, guard: sattrguard3::None };
        self.call(NFS_PROGRAM::NFSPROC3_SETATTR, &arguments, Replay::Harmless, |r| r.take::<wcc_data>().map(drop)).await
    }

    pub(crate) async fn mkdir(&self, directory: &Handle, name: &[u8]) -> Result<(), Fault> {
        let arguments = MKDIR3args { where_: at(directory, name), attributes: mode(0o755) };
        self.call(NFS_PROGRAM::NFSPROC3_MKDIR, &arguments, Replay::Look, made).await.map(drop)
    }

    pub(crate) async fn remove(&self, directory: &Handle, name: &[u8]) -> Result<(), Fault> {
        let arguments = REMOVE3args { object: at(directory, name) };
        self.call(NFS_PROGRAM::NFSPROC3_REMOVE, &arguments, Replay::Look, |r| r.take::<wcc_data>().map(drop)).await
    }

    pub(crate) async fn rmdir(&self, directory: &Handle, name: &[u8]) -> Result<(), Fault> {
        let arguments = RMDIR3args { object: at(directory, name) };
        self.call(NFS_PROGRAM::NFSPROC3_RMDIR, &arguments, Replay::Look, |r| r.take::<wcc_data>().map(drop)).await
    }

    pub(crate) async fn rename(&self, from: (&Handle, &[u8]), to: (&Handle, &[u8])) -> Result<(), Fault> {
        let arguments = RENAME3args { from: at(from.0, from.1), to: at(to.0, to.1) };
        self.call(NFS_PROGRAM::NFSPROC3_RENAME, &arguments, Replay::Look, |r| {
            r.take::<wcc_data>()?;
            r.take::<wcc_data>().map(drop)
        })
        .await
    }

    pub(crate) async fn link(&self, file: &Handle, directory: &Handle, name: &[u8]) -> Result<(), Fault> {
        let arguments = LINK3args { file: fh(file), link: at(directory, name) };
        self.call(NFS_PROGRAM::NFSPROC3_LINK, &arguments, Replay::Look, |r| {
            optional_attr(r)?;
            r.take::<wcc_data>().map(drop)
        })
        .await
    }

    /// What the server says of the file system, with the sizes of READ and WRITE that the settings ask for.
    pub(crate) async fn fsinfo(&self, root: &Handle, asked: [Option<u32>; 2]) -> Result<FsInfo, Fault> {
        let arguments = FSINFO3args { fsroot: fh(root) };
        self.call(NFS_PROGRAM::NFSPROC3_FSINFO, &arguments, Replay::Harmless, |r| {
            optional_attr(r)?;
            let [read_max, read_preferred, _, write_max, write_preferred, _, _] =
                [r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?];
            let _maximal_file_size: u64 = r.take()?;
            let _time_step: nfstime3 = r.take()?;
            Ok(FsInfo {
                read_size: transfer(asked[0], read_preferred, read_max),
                write_size: transfer(asked[1], write_preferred, write_max),
                properties: r.u32()?,
            })
        })
        .await
    }
}

/// What CREATE and MKDIR answer.
fn made(r: &mut Reader) -> Result<Option<Handle>, Malformed> {
    let handle = optional_handle(r)?;
    optional_attr(r)?;
    r.take::<wcc_data>()?;
    Ok(handle)
}

/// A name in a directory, with what came along.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: Vec<u8>,
    pub(crate) cookie: u64,
    pub(crate) attr: Option<fattr3>,
    /// With it no LOOKUP is needed to read the object.
    pub(crate) handle: Option<Handle>,
}

/// One page of a directory.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Named>,
    pub(crate) verifier: cookieverf3,
    pub(crate) end: bool,
}

impl Server {
    /// The entries after `cookie`, with attributes if `plus`.
    pub(crate) async fn page(
        &self,
        directory: &Handle,
        cookie: u64,
        cookieverf: cookieverf3,
        plus: bool,
    ) -> Result<Page, Fault> {
        use nfs3_types::nfs3::{READDIR3args, READDIRPLUS3args};
        /// Bytes of names, and of the whole reply.
        const SIZES: (u32, u32) = (32 << 10, 128 << 10);
        let dir = fh(directory);
        let read = |r: &mut Reader| read_page(r, plus);
        if plus {
            let arguments = READDIRPLUS3args { dir, cookie, cookieverf, dircount: SIZES.0, maxcount: SIZES.1 };
            self.call(NFS_PROGRAM::NFSPROC3_READDIRPLUS, &arguments, Replay::Harmless, read).await
        } else {
            let arguments = READDIR3args { dir, cookie, cookieverf, count: SIZES.1 };
            self.call(NFS_PROGRAM::NFSPROC3_READDIR, &arguments, Replay::Harmless, read).await
        }
    }
}

fn read_page(r: &mut Reader, plus: bool) -> Result<Page, Malformed> {
    optional_attr(r)?;
    let verifier = r.take()?;
    let mut entries = Vec::new();
    while r.take::<bool>()? {
        let _file_id: u64 = r.take()?;
        let name = r.opaque(255).map_err(|error| Malformed(format!("a name in a directory: {error}")))?.to_vec();
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            return Err(Malformed(format!(
                "a directory holds the impossible name {:?}",
                String::from_utf8_lossy(&name)
            )));
        }
        let cookie = r.take()?;
        // Slices of the page: what is kept of them is copied together.
        let slice = |r: &mut Reader| r.opaque(NFS3_FHSIZE);
        let (attr, handle) = if plus { (optional_attr(r)?, r.optional(slice)?) } else { (None, None) };
        let handle = handle.filter(|handle| !handle.is_empty());
        entries.push(Named { name, cookie, attr, handle });
    }
    Ok(Page { entries, verifier, end: r.take()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_servers_preference_unless_asked_for() {
        const MIB: u32 = 1 << 20;
        for (asked, preferred, max, size) in [
            (None, 65_536, MIB, 65_536),
            (None, MIB, 32_768, 32_768),
            (None, 0, 32_768, 32_768),
            (None, 512, 512, TRANSFER_MIN),
            (None, 8 * MIB, 8 * MIB, TRANSFER_MAX),
            (Some(8192), 65_536, MIB, 8192),
            (Some(MIB), 65_536, MIB, MIB),
            (Some(MIB), 65_536, 65_536, 65_536),
            (Some(8192), 0, 0, 8192),
        ] {
            assert_eq!(transfer(asked, preferred, max), size, "{asked:?} {preferred} {max}");
        }
    }
}
