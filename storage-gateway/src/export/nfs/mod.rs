//! NFS version 3 in user space: no mount, no kernel client, no root needed.
//!
//! From the wire up: `record` (fragments), `rpc` (many calls in flight on a connection), `dial` and `pool` (connections),
//! `mount` (the root handle), `wire` (procedures), `resolve` (paths to handles, component by component), then what the
//! contract asks for: `listing`, `names` (changes whose replies may be lost), `writes` (verifiers), `status` (errors).

mod dial;
mod handles;
#[cfg(test)]
mod hostile;
mod listed;
mod listing;
mod mount;
mod names;
mod pool;
pub(crate) mod record;
mod resolve;
mod root;
mod rpc;
mod status;
mod url;
mod wire;
mod writes;
pub(crate) mod xdr;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use ingle_proto::ObjectPath;
use nfs3_types::nfs3::{ACCESS3_EXTEND, ACCESS3_LOOKUP, ACCESS3_READ, FSF3_LINK, nfsstat3};

use self::handles::Handles;
use self::pool::Pool;
use self::root::Root;
use self::status::Fault;
pub use self::url::NfsOptions;
use self::url::NfsUrl;
pub(crate) use self::wire::{GROUPS_MAX, TRANSFER_MAX, TRANSFER_MIN};
use self::wire::{Handle, Server};
use self::writes::Writes;
use self::xdr::Malformed;
use super::{Abilities, Attr, Entry, Export, ExportError, Kind, Replace, User};
use crate::buffers::PIECE_BYTES;

/// Most bytes of one read of the export.
const READ_MAX: u32 = 1 << 20;
/// READs or WRITEs in flight for one call of the export, where the server takes small ones only.
const CHUNKS_AT_ONCE: usize = 8;
/// Longest that a listing may take: each page has the RPC's deadline, and big directories have many pages.
const LISTING_MAX: Duration = Duration::from_secs(600);
/// RPC deadlines that one call of the export may use up: to resolve, to act, to look after a lost reply.
const DEADLINES_PER_CALL: u32 = 3;

/// A directory of an NFS server, as one user sees it. Users share connections and the mount; each has handles of its own,
/// for a handle is worth what its LOOKUP was asked for.
pub struct NfsExport {
    url: Arc<NfsUrl>,
    server: Server,
    user: User,
    deadline: Duration,
    root: Arc<Root>,
    handles: Mutex<Handles>,
    writes: Mutex<Writes>,
}

impl NfsExport {
    /// Reads the URL and opens nothing: the first call mounts, and every later one mounts again where it must.
    /// So a gateway starts while its NAS is down.
    ///
    /// # Errors
    /// The URL can't be read: says which part, and what was expected.
    pub fn new(url: &str, options: &NfsOptions) -> Result<Self, ExportError> {
        let url = NfsUrl::parse(url)?;
        let user = User {
            uid: url.uid.unwrap_or(options.uid),
            gid: url.gid.unwrap_or(options.gid),
            groups: options.groups.clone(),
        };
        let pool = Arc::new(Pool::new(url.host.clone(), url.nfs_port, options.deadline, options.connections));
        let root = Arc::new(Root::new(Server::new(pool.clone(), &user), options));
        Ok(Self::of(Arc::new(url), pool, root, user, options.deadline))
    }

    fn of(url: Arc<NfsUrl>, pool: Arc<Pool>, root: Arc<Root>, user: User, deadline: Duration) -> Self {
        let server = Server::new(pool, &user);
        Self { url, server, user, deadline, root, handles: Mutex::default(), writes: Mutex::default() }
    }

    /// Reads the URL and mounts.
    ///
    /// # Errors
    /// The URL can't be read; the server can't be reached, refuses, or speaks version 4 only. Each says what to do.
    pub async fn connect(url: &str, options: &NfsOptions) -> Result<Self, ExportError> {
        let export = Self::new(url, options)?;
        let within = options.deadline * DEADLINES_PER_CALL;
        match tokio::time::timeout(within, export.mounted()).await {
            Ok(Ok(_)) => Ok(export),
            Ok(Err(Fault::Mount(error))) => Err(error),
            Ok(Err(fault)) => Err(export.about(&ObjectPath::root(), fault)),
            Err(_) => Err(ExportError::Unavailable(format!("{}: no answer in time", export.url.shown))),
        }
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the caller, about the object at `path`.
    fn about(&self, path: &ObjectPath, fault: Fault) -> ExportError {
        let shown = if path.is_root() { "the export's root".to_owned() } else { path.display() };
        fault.about(shown, &self.url, self.server.pool.unprivileged())
    }

    /// One read of the server's size, continued where the server gave less without the file ending.
    async fn read_chunk(&self, file: &Handle, offset: u64, length: u32) -> Result<(Bytes, Option<Attr>), Fault> {
        let (first, mut end, attr) = self.server.read(file, offset, length).await?;
        if end || first.len() == length as usize {
            return Ok((first, attr));
        }
        let mut out = BytesMut::from(first);
        let mut told = attr;
        while !end && out.len() < length as usize {
            let left = length - u32::try_from(out.len()).expect("shorter than `length`");
            let (more, ended, then) = self.server.read(file, offset + out.len() as u64, left).await?;
            if more.is_empty() && !ended {
                return Err(Malformed(format!("no bytes at {} and no end there", offset + out.len() as u64)).into());
            }
            out.extend_from_slice(&more);
            end = ended;
            told = agreed(told, then)?;
        }
        Ok((out.freeze(), told))
    }

    /// The bytes, and the file's attributes as the last READ told them.
    async fn read_now(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<(Bytes, Option<Attr>), Fault> {
        let size = self.mounted().await?.info.read_size;
        let file = self.file(path).await?;
        // Servers differ over offsets that no file can have; for us they are past the end.
        if length == 0 || i64::try_from(offset.saturating_add(length.into())).is_err() {
            return Ok((Bytes::new(), None));
        }
        if length <= size {
            return self.read_chunk(&file, offset, length).await;
        }
        let size = size.min(PIECE_BYTES as u32);
        let mut chunks = futures::stream::iter((0..length).step_by(size as usize))
            .map(|start| {
                let want = size.min(length - start);
                let read = self.read_chunk(&file, offset + u64::from(start), want);
                async move { read.await.map(|(data, attr)| (data.len() < want as usize, data, attr)) }
            })
            .buffered(CHUNKS_AT_ONCE);
        let mut out = BytesMut::with_capacity(length as usize);
        // They were read side by side: only if all tell the same is it one version's bytes.
        let mut told: Option<Option<Attr>> = None;
        while let Some(chunk) = chunks.next().await {
            let (short, data, then) = chunk?;
            out.extend_from_slice(&data);
            told = Some(match told {
                None => then,
                Some(before) => agreed(before, then)?,
            });
            if short {
                break;
            }
        }
        Ok((out.freeze(), told.flatten()))
    }

    async fn write_now(&self, path: &ObjectPath, offset: u64, data: &Bytes) -> Result<(), Fault> {
        let size = self.mounted().await?.info.write_size as usize;
        let file = self.file(path).await?;
        let mut chunks = futures::stream::iter((0..data.len()).step_by(size))
            .map(|start| {
                let chunk = data.slice(start..data.len().min(start + size));
                self.write_chunk(path, &file, offset + start as u64, chunk)
            })
            .buffered(CHUNKS_AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            chunk?;
        }
        Ok(())
    }

    async fn write_chunk(&self, path: &ObjectPath, file: &Handle, offset: u64, data: Bytes) -> Result<(), Fault> {
        let mut done = 0;
        while done < data.len() {
            let (taken, verifier) = self.server.write(file, offset + done as u64, &data.slice(done..)).await?;
            if taken == 0 {
                return Err(Malformed("a WRITE that took no bytes".to_owned()).into());
            }
            done += taken as usize;
            if !self.writes().wrote(path, verifier, Instant::now()) {
                let why = format!("{}: too many files are being written; commit or remove some", path.display());
                return Err(ExportError::Unavailable(why).into());
            }
        }
        Ok(())
    }

    async fn commit_now(&self, path: &ObjectPath) -> Result<(), Fault> {
        let file = self.file(path).await?;
        let verifier = self.server.commit(&file).await?;
        if self.writes().committed(path, verifier) {
            Ok(())
        } else {
            Err(ExportError::VerifierChanged(path.display()).into())
        }
    }

    /// By LOOKUP and ACCESS, both asked now: the file's own mode and ACL decide, and those of the directories above it.
    async fn readable_now(&self, path: &ObjectPath) -> Result<Attr, Fault> {
        let found = self.look(path).await?;
        if found.attr.kind != Kind::File {
            return Err(Fault::Is { kind: found.attr.kind, expected: "a file" });
        }
        match self.server.access(&found.handle, ACCESS3_READ).await? & ACCESS3_READ {
            0 => Err(Fault::Status(nfsstat3::NFS3ERR_ACCES)),
            _ => Ok(found.attr),
        }
    }

    async fn list_now(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, Fault> {
        let directory = self.directory(path).await?;
        // Who may list a directory need not be allowed to go through it: only then are the handles of any use.
        let through =
            async { self.server.access(&directory, ACCESS3_LOOKUP).await.is_ok_and(|bits| bits & ACCESS3_LOOKUP != 0) };
        let at = Instant::now();
        let (listed, through) = futures::join!(listing::all(&self.server, &directory, path, limit), through);
        let (entries, with_handles) = listed?;
        if through {
            self.handles().put_listing(path.clone(), with_handles, at);
        }
        Ok(entries)
    }

    async fn create_now(&self, path: &ObjectPath, verifier: [u8; 8]) -> Result<(), Fault> {
        let (directory, name) = self.parent(path).await?;
        let made = match self.server.create(&directory, name, Some(verifier)).await {
            // A server without exclusive creation. A lost reply then reads as "taken", which is safe: another name.
            Err(fault) if fault.is(nfsstat3::NFS3ERR_NOTSUPP) => {
                match self.server.create(&directory, name, None).await {
                    Err(fault) if fault.lost() => self.server.create(&directory, name, None).await,
                    other => other,
                }
            }
            other => other,
        }?;
        self.writes().forget(path);
        self.handles().forget(path);
        let file = match made {
            Some(handle) => handle,
            None => self.server.lookup(&directory, name).await?.handle,
        };
        self.server.settle(&file).await
    }
}

/// What two READs told of the file: nothing if either told nothing.
fn agreed(before: Option<Attr>, then: Option<Attr>) -> Result<Option<Attr>, Fault> {
    match (before, then) {
        (Some(before), Some(then)) if !before.same_version(&then) => {
            Err(Fault::Said(ExportError::Changed("the file".to_owned())))
        }
        (Some(_), Some(then)) => Ok(Some(then)),
        _ => Ok(None),
    }
}

#[async_trait]
impl Export for NfsExport {
    fn url(&self) -> String {
        self.url.shown.clone()
    }

    fn remote(&self) -> bool {
        true
    }

    fn user(&self) -> Option<User> {
        Some(self.user.clone())
    }

    fn as_user(&self, user: &User) -> Option<Arc<dyn Export>> {
        let (url, pool, root) = (self.url.clone(), self.server.pool.clone(), self.root.clone());
        Some(Arc::new(Self::of(url, pool, root, user.clone(), self.deadline)))
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        let mounted = self.run(&[&ObjectPath::root()], || self.mounted()).await?;
        // Whether it may be written depends on the directory and the user: each write says so itself.
        Ok(Abilities { write: true, link: mounted.info.properties & FSF3_LINK != 0 })
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        let found = self.run(&[path], || self.look(path)).await?;
        match found.attr.kind {
            Kind::Symlink => Err(self.about(path, Fault::Is { kind: Kind::Symlink, expected: "a file or directory" })),
            _ => Ok(found.attr),
        }
    }

    async fn readable(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        self.run(&[path], || self.readable_now(path)).await
    }

    async fn may_add(&self, directory: &ObjectPath) -> Result<bool, ExportError> {
        let wanted = ACCESS3_EXTEND | ACCESS3_LOOKUP;
        let may = || async {
            let handle = self.directory(directory).await?;
            Ok(self.server.access(&handle, wanted).await? == wanted)
        };
        self.run(&[directory], may).await
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        self.run_within(LISTING_MAX, &[path], || self.list_now(path, limit)).await
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        self.read_with_attr(path, offset, length).await.map(|(data, _)| data)
    }

    async fn read_with_attr(
        &self,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<(Bytes, Option<Attr>), ExportError> {
        let length = length.min(READ_MAX);
        self.run(&[path], || self.read_now(path, offset, length)).await
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        // One verifier for all repetitions: the server knows by it that the file is this call's own.
        let verifier = fastrand::u64(..).to_be_bytes();
        self.run(&[path], || self.create_now(path, verifier)).await
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.run(&[path], || self.write_now(path, offset, &data)).await
    }

    async fn write_back(&self, path: &ObjectPath) -> Result<(), ExportError> {
        // Whether the server restarted is for the commit at the end to find out: the verifier isn't noted.
        let commit = || async {
            let file = self.file(path).await?;
            self.server.commit(&file).await.map(drop)
        };
        self.run(&[path], commit).await
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.run(&[path], || self.commit_now(path)).await
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        self.run(&[to, from], || self.link_now(from, to)).await
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        let moved = OnceLock::new();
        self.run(&[to, from], || self.rename_now(from, to, replace, &moved)).await
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.run(&[path], || self.remove_now(path)).await
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.run(&[path], || self.make_directory_now(path)).await
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.run(&[path], || self.remove_directory_now(path)).await
    }
}
