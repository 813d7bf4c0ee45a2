//! From paths to handles, one LOOKUP per component: the server never sees a path, and no symlink is followed.

use std::future::Future;
use std::time::{Duration, Instant};

use ingle_proto::ObjectPath;
use nfs3_types::nfs3::nfsstat3;

use super::handles::Found;
use super::status::Fault;
use super::wire::{FsInfo, Handle};
use super::{DEADLINES_PER_CALL, NfsExport};
use crate::export::{ExportError, Kind};

/// What mounting told.
#[derive(Debug, Clone)]
pub(crate) struct Mounted {
    pub(crate) root: Handle,
    pub(crate) info: FsInfo,
}

impl NfsExport {
    /// Runs a call of the export, repeated where a handle it used turned out stale: once with the handles on its paths
    /// looked up anew, once with the export mounted anew. The first path is the one that errors are about.
    pub(super) async fn run<T, F>(&self, paths: &[&ObjectPath], call: impl Fn() -> F) -> Result<T, ExportError>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        self.run_within(self.deadline * DEADLINES_PER_CALL, paths, call).await
    }

    /// The same with a deadline of its own.
    pub(super) async fn run_within<T, F>(
        &self,
        deadline: Duration,
        paths: &[&ObjectPath],
        call: impl Fn() -> F,
    ) -> Result<T, ExportError>
    where
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let repeated = async {
            let mut answer = Box::pin(call()).await;
            for anew in [false, true] {
                match &answer {
                    Err(fault) if fault.stale() => {
                        crate::metrics::STALE_HANDLES.inc();
                    }
                    _ => break,
                }
                for path in paths {
                    self.handles().forget_chain(path);
                }
                if anew {
                    self.handles().clear();
                    self.root.forget().await;
                }
                answer = Box::pin(call()).await;
            }
            answer
        };
        match tokio::time::timeout(deadline, repeated).await {
            Ok(answer) => answer.map_err(|fault| self.about(paths[0], fault)),
            Err(_) => Err(ExportError::Unavailable(format!(
                "{}: {} did not answer within {} ms in all",
                paths[0].display(),
                self.url.shown,
                deadline.as_millis()
            ))),
        }
    }

    /// The root's handle and the server's sizes; mounts if need be.
    pub(super) async fn mounted(&self) -> Result<Mounted, Fault> {
        self.root.mounted(&self.url).await
    }

    /// A directory's handle.
    pub(super) async fn directory(&self, path: &ObjectPath) -> Result<Handle, Fault> {
        let now = Instant::now();
        let mut missing = Vec::new();
        let mut at = path.clone();
        let mut handle = loop {
            let Some(parent) = at.parent() else {
                break self.mounted().await?.root;
            };
            let known = self.handles().get(&at, now);
            if let Some(known) = known.filter(|known| known.attr.kind == Kind::Directory) {
                break known.handle;
            }
            missing.push(std::mem::replace(&mut at, parent));
        };
        while let Some(next) = missing.pop() {
            let found = self.server.lookup(&handle, next.file_name()).await?;
            if found.attr.kind != Kind::Directory {
                self.handles().forget(&next);
                // It is this directory that is at fault, not what lies in it.
                let (path, found) = (next.display(), found.attr.kind.found());
                return Err(ExportError::Kind { path, found, expected: "a directory" }.into());
            }
            handle = found.handle.clone();
            self.handles().put(next, found, now);
        }
        Ok(handle)
    }

    /// The directory a path lies in, and its last component.
    pub(super) async fn parent<'p>(&self, path: &'p ObjectPath) -> Result<(Handle, &'p [u8]), Fault> {
        match path.parent() {
            Some(parent) => Ok((self.directory(&parent).await?, path.file_name())),
            None => Err(ExportError::Path("the export's root can't be made, moved or removed".to_owned()).into()),
        }
    }

    /// What has the path now: always asked of the server.
    pub(super) async fn look(&self, path: &ObjectPath) -> Result<Found, Fault> {
        if path.is_root() {
            let root = self.mounted().await?.root;
            let attr = self.server.getattr(&root).await?;
            self.root.seen(&attr).await;
            return self.server.found(root, Some(attr)).await;
        }
        let (directory, name) = self.parent(path).await?;
        match self.server.lookup(&directory, name).await {
            Ok(found) => {
                self.handles().put(path.clone(), found.clone(), Instant::now());
                Ok(found)
            }
            Err(fault) => {
                if fault.is(nfsstat3::NFS3ERR_NOENT) {
                    self.handles().forget(path);
                }
                Err(fault)
            }
        }
    }

    /// The handle of a regular file, as fresh as [`super::handles`] says.
    pub(super) async fn file(&self, path: &ObjectPath) -> Result<Handle, Fault> {
        let known = self.handles().get(path, Instant::now());
        let found = match known {
            Some(found) => found,
            None => self.look(path).await?,
        };
        match found.attr.kind {
            Kind::File => Ok(found.handle),
            kind => Err(Fault::Is { kind, expected: "a file" }),
        }
    }
}
