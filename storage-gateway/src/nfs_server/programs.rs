//! The three programs behind the port: NFS version 3, MOUNT version 3, and the portmapper that names that very port.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use ingle_proto::ObjectPath;
use nfs3_types::mount::{self, MNTPATHLEN, MOUNT_PROGRAM, fhandle3, mountres3, mountres3_ok, mountstat3};
use nfs3_types::nfs3::{self, NFS_PROGRAM, NFS3_FHSIZE, nfsstat3};
use nfs3_types::portmap::{self, IPPROTO_TCP, PMAP_PROG, mapping};
use nfs3_types::rpc::{accept_stat_data, auth_flavor};
use nfs3_types::xdr_codec::{List, Opaque, Pack};

use super::NfsServerOptions;
use super::access::{Caller, Squash};
use super::call::{self, Call, Header};
use super::faults::Faults;
use super::listing::Snapshots;
use super::tree::{Refusal, Tree};
use crate::export::nfs::record;
use crate::export::nfs::xdr::{Malformed, Reader, put};

/// Longest name of a file.
const NAME_MAX: usize = 255;

/// What all connections share.
pub(super) struct Programs {
    pub(super) tree: Tree,
    read_only: bool,
    pub(super) faults: Arc<Faults>,
    pub(super) snapshots: Snapshots,
    /// The write verifier: another one after a restart, and after data was lost to a failed sync.
    pub(super) verifier: AtomicU64,
    squash: Squash,
    port: u16,
}

/// A handle among the arguments.
pub(super) fn handle(arguments: &mut Reader) -> Result<Bytes, Malformed> {
    arguments.opaque(NFS3_FHSIZE)
}

/// A name among the arguments: bytes that can be one.
pub(super) fn name(arguments: &mut Reader) -> Result<Bytes, Refusal> {
    let name = arguments.opaque(MNTPATHLEN)?;
    if name.len() > NAME_MAX {
        return Err(nfsstat3::NFS3ERR_NAMETOOLONG.into());
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(nfsstat3::NFS3ERR_INVAL.into());
    }
    Ok(name)
}

/// The name of something to be made, moved or removed: not the directory itself, nor the one above.
pub(super) fn new_name(arguments: &mut Reader) -> Result<Bytes, Refusal> {
    let name = name(arguments)?;
    if matches!(name.as_ref(), b"." | b"..") { Err(nfsstat3::NFS3ERR_INVAL.into()) } else { Ok(name) }
}

/// Appends a successful result.
pub(super) fn succeed(out: &mut Vec<u8>, result: &impl Pack) {
    put(out, &nfsstat3::NFS3_OK);
    put(out, result);
}

impl Programs {
    pub(super) fn new(tree: Tree, port: u16, options: &NfsServerOptions) -> Self {
        Self {
            tree,
            read_only: options.read_only,
            faults: Arc::clone(&options.faults),
            snapshots: Snapshots::default(),
            verifier: AtomicU64::new(fastrand::u64(..)),
            squash: options.squash,
            port,
        }
    }

    /// Whether every change is refused now.
    pub(super) fn read_only(&self) -> bool {
        self.read_only || self.faults.now().read_only
    }

    /// Carries out a call; `None` if the record is no call at all. Blocks on the file system.
    pub(super) fn answer(&self, record: Bytes) -> Option<Vec<u8>> {
        let call = match call::read(record) {
            Header::Call(call) => call,
            Header::Answer(answer) => return Some(answer),
            Header::Nothing => return None,
        };
        let xid = call.xid;
        let mut out = call::accepted(xid, accept_stat_data::SUCCESS);
        let (program, version) = (call.program, call.version);
        let done = match (program, version) {
            (nfs3::PROGRAM, nfs3::VERSION) => self.nfs(call, &mut out),
            (mount::PROGRAM, mount::VERSION) => self.mount(call, &mut out),
            (portmap::PROGRAM, portmap::VERSION) => self.portmap(call, &mut out),
            (nfs3::PROGRAM | mount::PROGRAM, _) => Err(accept_stat_data::PROG_MISMATCH { low: 3, high: 3 }),
            (portmap::PROGRAM, _) => Err(accept_stat_data::PROG_MISMATCH { low: 2, high: 2 }),
            _ => Err(accept_stat_data::PROG_UNAVAIL),
        };
        if let Err(outcome) = done {
            out = call::accepted(xid, outcome);
        }
        record::seal(&mut out);
        Some(out)
    }

    fn nfs(&self, call: Call, out: &mut Vec<u8>) -> Result<(), accept_stat_data> {
        let procedure = NFS_PROGRAM::try_from(call.procedure).map_err(|_| accept_stat_data::PROC_UNAVAIL)?;
        let caller = Caller::new(call.claimed, self.squash);
        let header = out.len();
        match self.procedure(procedure, &caller, call.arguments, out) {
            Ok(()) => Ok(()),
            Err(Refusal::Rpc(outcome)) => Err(outcome),
            Err(Refusal::Status(status)) => {
                tracing::trace!(%procedure, %status, uid = caller.uid, "refused");
                out.truncate(header);
                put(out, &status);
                out.resize(out.len() + 4 * failure_words(procedure), 0);
                Ok(())
            }
        }
    }

    fn procedure(
        &self,
        procedure: NFS_PROGRAM,
        caller: &Caller,
        arguments: Reader,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let changes = matches!(
            procedure,
            NFS_PROGRAM::NFSPROC3_SETATTR
                | NFS_PROGRAM::NFSPROC3_WRITE
                | NFS_PROGRAM::NFSPROC3_CREATE
                | NFS_PROGRAM::NFSPROC3_MKDIR
                | NFS_PROGRAM::NFSPROC3_REMOVE
                | NFS_PROGRAM::NFSPROC3_RMDIR
                | NFS_PROGRAM::NFSPROC3_RENAME
                | NFS_PROGRAM::NFSPROC3_LINK
        );
        if changes && self.read_only() {
            return Err(nfsstat3::NFS3ERR_ROFS.into());
        }
        if let Some(status) = self.faults.refuses(procedure) {
            return Err(status.into());
        }
        match procedure {
            NFS_PROGRAM::NFSPROC3_NULL => Ok(()),
            NFS_PROGRAM::NFSPROC3_GETATTR => self.getattr(arguments, out),
            NFS_PROGRAM::NFSPROC3_SETATTR => self.setattr(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_LOOKUP => self.lookup(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_ACCESS => self.access(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_READLINK => self.readlink(arguments, out),
            NFS_PROGRAM::NFSPROC3_READ => self.read(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_WRITE => self.write(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_CREATE => self.create(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_MKDIR => self.mkdir(caller, arguments, out),
            // Nothing of ours makes symlinks or devices, and nobody should through us.
            NFS_PROGRAM::NFSPROC3_SYMLINK | NFS_PROGRAM::NFSPROC3_MKNOD => Err(nfsstat3::NFS3ERR_NOTSUPP.into()),
            NFS_PROGRAM::NFSPROC3_REMOVE => self.remove(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_RMDIR => self.rmdir(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_RENAME => self.rename(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_LINK => self.link(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_READDIR => self.readdir(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_READDIRPLUS => self.readdirplus(caller, arguments, out),
            NFS_PROGRAM::NFSPROC3_FSSTAT => self.fsstat(arguments, out),
            NFS_PROGRAM::NFSPROC3_FSINFO => self.fsinfo(arguments, out),
            NFS_PROGRAM::NFSPROC3_PATHCONF => self.pathconf(arguments, out),
            NFS_PROGRAM::NFSPROC3_COMMIT => self.commit(caller, arguments, out),
        }
    }

    fn mount(&self, call: Call, out: &mut Vec<u8>) -> Result<(), accept_stat_data> {
        let mut arguments = call.arguments;
        let procedure = MOUNT_PROGRAM::try_from(call.procedure).map_err(|_| accept_stat_data::PROC_UNAVAIL)?;
        let garbage = |_: Malformed| accept_stat_data::GARBAGE_ARGS;
        match procedure {
            MOUNT_PROGRAM::MOUNTPROC3_NULL | MOUNT_PROGRAM::MOUNTPROC3_UMNT | MOUNT_PROGRAM::MOUNTPROC3_UMNTALL => {}
            MOUNT_PROGRAM::MOUNTPROC3_MNT => {
                let path = arguments.opaque(MNTPATHLEN).map_err(garbage)?;
                put(out, &self.mounted(&path));
            }
            // Nobody is remembered as having mounted.
            MOUNT_PROGRAM::MOUNTPROC3_DUMP => put(out, &mount::mountlist::default()),
            MOUNT_PROGRAM::MOUNTPROC3_EXPORT => {
                let ex_dir = mount::dirpath(Opaque::borrowed(b"/"));
                put(out, &List(vec![mount::export_node { ex_dir, ex_groups: List::default() }]));
            }
        }
        Ok(())
    }

    /// The handle of a directory that a client mounts: the root, or one below it.
    fn mounted(&self, path: &[u8]) -> mountres3<'static> {
        // Clients differ over slashes at either end, and libnfs doubles them.
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        let Ok(path) = ObjectPath::new(parts.join(&b'/')) else {
            return mountres3::Err(mountstat3::MNT3ERR_INVAL);
        };
        let handle = if path.is_root() {
            Ok(self.tree.root())
        } else {
            self.tree.walk(&path).and_then(|object| object.directory()).map(|directory| directory.key)
        };
        match handle {
            Ok(key) => mountres3::Ok(mountres3_ok {
                fhandle: fhandle3(Opaque::owned(key.to_handle())),
                auth_flavors: vec![auth_flavor::AUTH_UNIX as u32],
            }),
            Err(Refusal::Status(nfsstat3::NFS3ERR_NOENT)) => mountres3::Err(mountstat3::MNT3ERR_NOENT),
            Err(Refusal::Status(nfsstat3::NFS3ERR_NOTDIR)) => mountres3::Err(mountstat3::MNT3ERR_NOTDIR),
            Err(Refusal::Status(nfsstat3::NFS3ERR_ACCES)) => mountres3::Err(mountstat3::MNT3ERR_ACCES),
            Err(_) => mountres3::Err(mountstat3::MNT3ERR_IO),
        }
    }

    fn portmap(&self, call: Call, out: &mut Vec<u8>) -> Result<(), accept_stat_data> {
        let mut arguments = call.arguments;
        let port = u32::from(self.port);
        let offered =
            [(portmap::PROGRAM, portmap::VERSION), (nfs3::PROGRAM, nfs3::VERSION), (mount::PROGRAM, mount::VERSION)];
        match PMAP_PROG::try_from(call.procedure) {
            Ok(PMAP_PROG::PMAPPROC_NULL) => {}
            Ok(PMAP_PROG::PMAPPROC_GETPORT) => {
                let asked: mapping = arguments.take().map_err(|_| accept_stat_data::GARBAGE_ARGS)?;
                let ours = asked.prot == IPPROTO_TCP && offered.contains(&(asked.prog, asked.vers));
                put(out, &if ours { port } else { 0 });
            }
            Ok(PMAP_PROG::PMAPPROC_DUMP) => {
                let all = offered.map(|(prog, vers)| mapping { prog, vers, prot: IPPROTO_TCP, port });
                put(out, &List(all.to_vec()));
            }
            _ => return Err(accept_stat_data::PROC_UNAVAIL),
        }
        Ok(())
    }
}

/// Words after the status of a failed call: attributes that we leave out (one zero each), before and after of a
/// directory or file (two).
fn failure_words(procedure: NFS_PROGRAM) -> usize {
    match procedure {
        NFS_PROGRAM::NFSPROC3_NULL | NFS_PROGRAM::NFSPROC3_GETATTR => 0,
        NFS_PROGRAM::NFSPROC3_LOOKUP
        | NFS_PROGRAM::NFSPROC3_ACCESS
        | NFS_PROGRAM::NFSPROC3_READLINK
        | NFS_PROGRAM::NFSPROC3_READ
        | NFS_PROGRAM::NFSPROC3_READDIR
        | NFS_PROGRAM::NFSPROC3_READDIRPLUS
        | NFS_PROGRAM::NFSPROC3_FSSTAT
        | NFS_PROGRAM::NFSPROC3_FSINFO
        | NFS_PROGRAM::NFSPROC3_PATHCONF => 1,
        NFS_PROGRAM::NFSPROC3_SETATTR
        | NFS_PROGRAM::NFSPROC3_WRITE
        | NFS_PROGRAM::NFSPROC3_CREATE
        | NFS_PROGRAM::NFSPROC3_MKDIR
        | NFS_PROGRAM::NFSPROC3_SYMLINK
        | NFS_PROGRAM::NFSPROC3_MKNOD
        | NFS_PROGRAM::NFSPROC3_REMOVE
        | NFS_PROGRAM::NFSPROC3_RMDIR
        | NFS_PROGRAM::NFSPROC3_COMMIT => 2,
        NFS_PROGRAM::NFSPROC3_LINK => 3,
        NFS_PROGRAM::NFSPROC3_RENAME => 4,
    }
}
