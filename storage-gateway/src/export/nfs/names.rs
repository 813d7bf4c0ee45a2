//! Changes of names. LINK, RENAME, REMOVE, MKDIR and RMDIR can't be repeated blindly: after a lost reply we look at what
//! is there, and answer for the final state.

use std::sync::OnceLock;

use ingle_proto::ObjectPath;
use nfs3_types::nfs3::nfsstat3::{NFS3ERR_EXIST, NFS3ERR_NOENT, NFS3ERR_NOTDIR, NFS3ERR_NOTEMPTY};

use super::NfsExport;
use super::handles::Found;
use super::rpc::RpcError;
use super::status::Fault;
use super::wire::Handle;
use crate::export::{ExportError, Kind, Replace};

/// How often a change is sent before the caller is told that its outcome isn't known.
const SENDS_MAX: usize = 4;

fn unknown() -> Fault {
    Fault::Rpc(RpcError::Lost(format!("the reply was lost {SENDS_MAX} times; look at what is there")))
}

impl NfsExport {
    /// What has a name in a directory; `None` if nothing has.
    async fn named(&self, directory: &Handle, name: &[u8]) -> Result<Option<Found>, Fault> {
        match self.server.lookup(directory, name).await {
            Ok(found) => Ok(Some(found)),
            Err(fault) if fault.is(NFS3ERR_NOENT) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn link_now(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), Fault> {
        let source = self.look(from).await.map_err(|fault| self.of_source(from, fault))?;
        if source.attr.kind == Kind::Directory {
            return Err(self.of_source(from, Fault::Is { kind: Kind::Directory, expected: "a file" }));
        }
        let (directory, name) = self.parent(to).await?;
        self.handles().forget(to);
        for _ in 0..SENDS_MAX {
            let fault = match self.server.link(&source.handle, &directory, name).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.lost() || fault.is(NFS3ERR_EXIST) => fault,
                Err(fault) => return Err(fault),
            };
            match self.named(&directory, name).await? {
                Some(there) if there.same(&source) => return Ok(()),
                Some(_) => return Err(Fault::Status(NFS3ERR_EXIST)),
                // Taken a moment ago and free now: somebody else's name came and went.
                None if !fault.lost() => return Err(fault),
                None => {}
            }
        }
        Err(unknown())
    }

    /// `moved` remembers, over repetitions with other handles, which object was sent on its way.
    pub(super) async fn rename_now(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        replace: Replace,
        moved: &OnceLock<Found>,
    ) -> Result<(), Fault> {
        let (from_directory, from_name) = self.parent(from).await.map_err(|fault| self.of_source(from, fault))?;
        let (to_directory, to_name) = self.parent(to).await?;
        for path in [from, to] {
            self.handles().forget(path);
        }
        for _ in 0..SENDS_MAX {
            let source = self.named(&from_directory, from_name).await?;
            let target = self.named(&to_directory, to_name).await?;
            if let Some(ours) = moved.get()
                && !source.as_ref().is_some_and(|source| source.same(ours))
            {
                // Ours has left its old name: for the new one, or somebody took it away.
                return match target {
                    Some(target) if target.same(ours) => self.renamed(from, to),
                    _ => Err(self.of_source(from, Fault::Status(NFS3ERR_NOENT))),
                };
            }
            let Some(source) = source else {
                return Err(self.of_source(from, Fault::Status(NFS3ERR_NOENT)));
            };
            if source.attr.kind == Kind::Directory {
                return Err(self.of_source(from, Fault::Is { kind: Kind::Directory, expected: "a file" }));
            }
            let own_other_name = match &target {
                Some(_) if replace == Replace::Nothing => return Err(Fault::Status(NFS3ERR_EXIST)),
                Some(_) if from == to => return Ok(()),
                Some(target) if target.attr.kind == Kind::Directory => {
                    return Err(Fault::Is { kind: Kind::Directory, expected: "a file" });
                }
                Some(target) => target.same(&source),
                None => false,
            };
            let _ = moved.set(source);
            let sent = if own_other_name {
                // RENAME would leave both names and call it done.
                self.server.remove(&from_directory, from_name).await
            } else {
                let (from, to) = ((&from_directory, from_name), (&to_directory, to_name));
                self.server.rename(from, to).await
            };
            match sent {
                Ok(()) => return self.renamed(from, to),
                Err(fault) if fault.lost() || fault.is(NFS3ERR_NOENT) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(unknown())
    }

    fn renamed(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), Fault> {
        for path in [from, to] {
            self.handles().forget(path);
        }
        self.writes().renamed(from, to);
        Ok(())
    }

    /// An error about the first of two paths, said so. A stale handle stays what it is: the call is repeated then.
    fn of_source(&self, from: &ObjectPath, fault: Fault) -> Fault {
        if fault.stale() { fault } else { Fault::Said(self.about(from, fault)) }
    }

    pub(super) async fn remove_now(&self, path: &ObjectPath) -> Result<(), Fault> {
        let (directory, name) = match self.parent(path).await {
            Ok(found) => found,
            Err(fault) if fault.is(NFS3ERR_NOENT) => return Ok(()),
            Err(fault) => return Err(fault),
        };
        self.handles().forget(path);
        self.writes().forget(path);
        let Some(ours) = self.named(&directory, name).await? else {
            return Ok(());
        };
        if ours.attr.kind == Kind::Directory {
            return Err(Fault::Is { kind: Kind::Directory, expected: "a file" });
        }
        for _ in 0..SENDS_MAX {
            match self.server.remove(&directory, name).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.is(NFS3ERR_NOENT) => return Ok(()),
                Err(fault) if fault.lost() => {}
                Err(fault) => return Err(fault),
            }
            // Still there, and the same? Then again. Another's file of that name isn't ours to remove.
            match self.named(&directory, name).await? {
                Some(there) if there.same(&ours) => {}
                _ => return Ok(()),
            }
        }
        Err(unknown())
    }

    pub(super) async fn make_directory_now(&self, path: &ObjectPath) -> Result<(), Fault> {
        let mut at = ObjectPath::root();
        'components: for name in path.components() {
            let directory = self.directory(&at).await?;
            at = at.join(name).map_err(|problem| ExportError::Path(problem.to_string()))?;
            for _ in 0..SENDS_MAX {
                match self.named(&directory, name).await? {
                    Some(found) if found.attr.kind == Kind::Directory => continue 'components,
                    Some(found) => return Err(Fault::Is { kind: found.attr.kind, expected: "a directory" }),
                    None => {}
                }
                self.handles().forget(&at);
                match self.server.mkdir(&directory, name).await {
                    Ok(()) => continue 'components,
                    Err(fault) if fault.lost() || fault.is(NFS3ERR_EXIST) => {}
                    Err(fault) => return Err(fault),
                }
            }
            return Err(unknown());
        }
        Ok(())
    }

    pub(super) async fn remove_directory_now(&self, path: &ObjectPath) -> Result<(), Fault> {
        let (directory, name) = match self.parent(path).await {
            Ok(found) => found,
            Err(fault) if fault.is(NFS3ERR_NOENT) => return Ok(()),
            Err(fault) => return Err(fault),
        };
        self.handles().forget(path);
        for _ in 0..SENDS_MAX {
            match self.named(&directory, name).await? {
                None => return Ok(()),
                Some(found) if found.attr.kind == Kind::Directory => {}
                Some(found) => return Err(Fault::Is { kind: found.attr.kind, expected: "a directory" }),
            }
            match self.server.rmdir(&directory, name).await {
                Ok(()) => return Ok(()),
                // RFC 1813 has its own status for it, and some servers say EXIST.
                Err(fault) if fault.is(NFS3ERR_EXIST) => return Err(Fault::Status(NFS3ERR_NOTEMPTY)),
                Err(fault) if fault.lost() || fault.is(NFS3ERR_NOENT) || fault.is(NFS3ERR_NOTDIR) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(unknown())
    }
}
