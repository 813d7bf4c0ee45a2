//! A plain directory as an export: a laptop's folder, a USB disk, a tests' tempdir.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_proto::ObjectPath;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use tokio::sync::Semaphore;

pub use super::beneath::Standing;
use super::beneath::{self, Beneath, Miss};
use super::{Abilities, Attr, Entry, Export, ExportError, Kind, Replace};
use crate::buffers;

/// Longest a call may take. Disks answer sooner; what hangs this long is a dead mount below the directory.
const DEADLINE: Duration = Duration::from_secs(120);
/// System calls at once: what hangs may hold this many threads, and no more.
const CALLS_MAX: usize = 64;
/// Most bytes of one read.
const READ_MAX: u32 = 1 << 20;
/// File systems without hard links: FAT and exFAT, by `statfs` magic.
const WITHOUT_LINKS: [u64; 2] = [0x4d44, 0x2011_bab0];

/// A directory of this machine.
#[derive(Debug, Clone)]
pub struct LocalExport {
    beneath: Arc<Beneath>,
    root: PathBuf,
    read_only: bool,
    calls: Arc<Semaphore>,
}

impl LocalExport {
    /// Takes the directory `root`; with `read_only` every call that would change something is refused.
    ///
    /// # Errors
    /// `root` isn't a directory that this process may enter.
    pub fn open(root: &Path, read_only: bool) -> Result<Self, ExportError> {
        let beneath = Beneath::open(root).map_err(|errno| {
            let shown = root.display();
            match errno {
                Errno::NOENT => ExportError::NotFound(format!("{shown}: a directory to export")),
                Errno::NOTDIR => {
                    ExportError::Kind { path: shown.to_string(), found: "a file", expected: "a directory to export" }
                }
                Errno::ACCESS | Errno::PERM => {
                    ExportError::Denied { path: shown.to_string(), by: "this machine".to_owned() }
                }
                errno => ExportError::Broken(format!("{shown}: {errno}")),
            }
        })?;
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Ok(Self { beneath: Arc::new(beneath), root: root.to_owned(), read_only, calls })
    }

    /// Whether the path of the root still leads to the directory that is held: a disk may have been mounted over it since.
    ///
    /// # Errors
    /// [`ExportError::Unavailable`] if the path leads nowhere now, or isn't answered in time.
    pub async fn standing(&self) -> Result<Standing, ExportError> {
        let root = self.root.clone();
        let answer = self.run(&ObjectPath::root(), move |beneath| Ok(beneath.standing(&root))).await?;
        answer.map_err(|errno| {
            let why = if errno == Errno::NOENT { "is not there any more".to_owned() } else { errno.to_string() };
            ExportError::Unavailable(format!("{}: {why}; mount it or make it again", self.root.display()))
        })
    }

    /// Runs system calls on a thread that may block, within the deadline.
    async fn run<T, F>(&self, path: &ObjectPath, work: F) -> Result<T, ExportError>
    where
        T: Send + 'static,
        F: FnOnce(&Beneath) -> Result<T, Miss> + Send + 'static,
    {
        let (beneath, calls, of) = (self.beneath.clone(), self.calls.clone(), path.clone());
        let done = async move {
            // Held by the thread, not by us: if we stop waiting, a hung call goes on counting.
            let permit = calls.acquire_owned().await.expect("the semaphore is never closed");
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work(&beneath).map_err(|miss| {
                    let link = if miss == Miss::Is(Kind::Symlink) { beneath.link_on_the_way(&of) } else { None };
                    (miss, link)
                })
            })
            .await
        };
        match tokio::time::timeout(DEADLINE, done).await {
            Ok(Ok(result)) => result.map_err(|(miss, link)| match link {
                // It is the directory that is at fault, not what lies in it.
                Some(link) => {
                    ExportError::Kind { path: shown(&link), found: Kind::Symlink.found(), expected: "a directory" }
                }
                None => self.error(path, miss),
            }),
            Ok(Err(ended)) => Err(ExportError::Unavailable(format!("{}: {ended}", shown(path)))),
            Err(_) => Err(ExportError::Unavailable(format!(
                "{}: no answer from the disk for {} s; look at `dmesg` and the mounts below {}",
                shown(path),
                DEADLINE.as_secs(),
                self.root.display()
            ))),
        }
    }

    fn writable(&self, path: &ObjectPath) -> Result<(), ExportError> {
        if self.read_only { Err(ExportError::ReadOnly(shown(path))) } else { Ok(()) }
    }

    fn error(&self, path: &ObjectPath, miss: Miss) -> ExportError {
        let path = shown(path);
        match miss {
            Miss::Is(kind) => ExportError::Kind { path, found: kind.found(), expected: "a file" },
            Miss::Os(errno) => match errno {
                Errno::NOENT => ExportError::NotFound(path),
                Errno::EXIST => ExportError::Exists(path),
                Errno::NOTDIR => {
                    ExportError::Kind { path, found: "below something that is no directory", expected: "directories" }
                }
                Errno::ISDIR => ExportError::Kind { path, found: Kind::Directory.found(), expected: "a file" },
                Errno::BUSY => {
                    ExportError::Path(format!("{path}: can't be replaced or removed, it is in use as a root"))
                }
                Errno::NAMETOOLONG => ExportError::Path(format!("{path}: a name too long for this file system")),
                Errno::INVAL | Errno::ILSEQ => {
                    ExportError::Path(format!("{path}: refused by this file system ({errno}); rename it"))
                }
                Errno::ACCESS | Errno::PERM => ExportError::Denied { path, by: self.url() },
                Errno::ROFS => ExportError::ReadOnly(path),
                Errno::NOSPC | Errno::DQUOT => ExportError::Full(path),
                Errno::NOTEMPTY => ExportError::NotEmpty(path),
                Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::MLINK => {
                    ExportError::Unsupported(format!("{path}: this file system can't ({errno})"))
                }
                Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::STALE | Errno::TIMEDOUT => {
                    ExportError::Unavailable(format!("{path}: {errno}"))
                }
                errno => ExportError::Broken(format!("{path}: {errno}")),
            },
        }
    }
}

/// The path for people; the root has no name of its own.
fn shown(path: &ObjectPath) -> String {
    if path.is_root() { "the export's root".to_owned() } else { path.display() }
}

/// Makes a change of names durable.
fn sync(directory: impl AsFd) -> Result<(), Miss> {
    match rustix::fs::fsync(directory) {
        // Some file systems (FUSE, 9p) can't sync a directory; they promise nothing that we could ask for.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[async_trait]
impl Export for LocalExport {
    fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        let write = !self.read_only;
        self.run(&ObjectPath::root(), move |beneath| {
            let fs = rustix::fs::fstatfs(beneath.directory(&ObjectPath::root())?)?;
            let magic = u64::try_from(fs.f_type).unwrap_or(0);
            Ok(Abilities { write, link: write && !WITHOUT_LINKS.contains(&magic) })
        })
        .await
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        let of = path.clone();
        self.run(path, move |beneath| {
            let attr = beneath::attr(&beneath.stat(&of)?);
            if attr.kind == Kind::Symlink { Err(Miss::Is(Kind::Symlink)) } else { Ok(attr) }
        })
        .await
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        let of = path.clone();
        let entries =
            self.run(path, move |beneath| entries(beneath, &of, limit)).await.map_err(|error| match error {
                ExportError::Kind { path, found, .. } => ExportError::Kind { path, found, expected: "a directory" },
                other => other,
            })?;
        entries.ok_or_else(|| ExportError::TooMany { path: shown(path), limit })
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let of = path.clone();
        let length = length.min(READ_MAX) as usize;
        self.run(path, move |beneath| {
            let file = beneath.regular(&of, OFlags::RDONLY)?;
            // No offset beyond what the system can express holds a byte.
            if i64::try_from(offset.saturating_add(length as u64)).is_err() {
                return Ok(Bytes::new());
            }
            let mut data = buffers::take(length);
            while data.len() < length {
                let at = offset + data.len() as u64;
                match rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut data), at) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            // The buffer may have had a little more room than was asked for.
            data.truncate(length);
            Ok(buffers::share(data))
        })
        .await
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            let (parent, name) = beneath.parent(&of)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            let file = rustix::fs::openat(&parent, name, flags, mode)?;
            // Whatever umask the daemon was started with: results are there to be read.
            Ok(rustix::fs::fchmod(&file, mode)?)
        })
        .await
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            let file = beneath.regular(&of, OFlags::WRONLY)?;
            let mut written = 0;
            while written < data.len() {
                match rustix::io::pwrite(&file, &data[written..], offset + written as u64) {
                    Ok(0) => return Err(Miss::Os(Errno::IO)),
                    Ok(n) => written += n,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(())
        })
        .await
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            rustix::fs::fsync(beneath.regular(&of, OFlags::RDONLY)?)?;
            sync(beneath.parent(&of)?.0)
        })
        .await
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        self.writable(to)?;
        let (source, target) = (from.clone(), to.clone());
        let named = |error: ExportError| named_for(error, to);
        // The source is looked at first, so that the error below can only be about the target.
        self.run(from, move |beneath| match beneath::kind(&beneath.stat(&source)?) {
            Kind::Directory => Err(Miss::Is(Kind::Directory)),
            _ => Ok(()),
        })
        .await?;
        let source = from.clone();
        self.run(to, move |beneath| {
            let (from_dir, from_name) = beneath.parent(&source)?;
            let (to_dir, to_name) = beneath.parent(&target)?;
            match rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let this = beneath::stat_in(from_dir.as_fd(), from_name)?;
                    let there = beneath::stat_in(to_dir.as_fd(), to_name)?;
                    if !beneath::same(&this, &there) {
                        return Err(Miss::Os(Errno::EXIST));
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
            sync(to_dir)
        })
        .await
        .map_err(named)
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        self.writable(from)?;
        let source = from.clone();
        self.run(from, move |beneath| match beneath::kind(&beneath.stat(&source)?) {
            Kind::Directory => Err(Miss::Is(Kind::Directory)),
            _ => Ok(()),
        })
        .await?;
        let (source, target) = (from.clone(), to.clone());
        self.run(to, move |beneath| {
            let (from_dir, from_name) = beneath.parent(&source)?;
            let (to_dir, to_name) = beneath.parent(&target)?;
            let flags = match replace {
                Replace::Nothing => RenameFlags::NOREPLACE,
                Replace::Anything => RenameFlags::empty(),
            };
            match rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, flags) {
                // A file system without NOREPLACE: looked up first, as the contract says.
                Err(Errno::INVAL) if replace == Replace::Nothing => {
                    match beneath::stat_in(to_dir.as_fd(), to_name) {
                        Ok(_) => return Err(Miss::Os(Errno::EXIST)),
                        Err(Errno::NOENT) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)?;
                }
                other => other?,
            }
            // Two names of one file: the system leaves both and calls it done. The caller wants `from` gone.
            if replace == Replace::Anything && source != target {
                let this = beneath::stat_in(from_dir.as_fd(), from_name);
                let there = beneath::stat_in(to_dir.as_fd(), to_name)?;
                if this.is_ok_and(|this| beneath::same(&this, &there)) {
                    rustix::fs::unlinkat(&from_dir, from_name, AtFlags::empty())?;
                }
            }
            sync(from_dir)?;
            sync(to_dir)
        })
        .await
        .map_err(|error| named_for(error, to))
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            let (parent, name) = match beneath.parent(&of) {
                Ok(found) => found,
                Err(Miss::Os(Errno::NOENT)) => return Ok(()),
                Err(miss) => return Err(miss),
            };
            match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) => sync(parent),
                Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        })
        .await
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            let mut at = ObjectPath::root();
            for part in of.components() {
                let parent = beneath.directory(&at)?;
                at = at.join(part).map_err(|_| Miss::Os(Errno::NAMETOOLONG))?;
                match rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        rustix::fs::fchmod(beneath.directory(&at)?, Mode::from_raw_mode(0o755))?;
                        sync(parent)?;
                    }
                    Err(Errno::EXIST) => match beneath::kind(&beneath::stat_in(parent.as_fd(), part)?) {
                        Kind::Directory => {}
                        other => return Err(Miss::Is(other)),
                    },
                    Err(errno) => return Err(errno.into()),
                }
            }
            Ok(())
        })
        .await
        .map_err(|error| match error {
            ExportError::Kind { path, found, .. } => ExportError::Kind { path, found, expected: "a directory" },
            other => other,
        })
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        let of = path.clone();
        self.run(path, move |beneath| {
            let (parent, name) = match beneath.parent(&of) {
                Ok(found) => found,
                Err(Miss::Os(Errno::NOENT)) => return Ok(()),
                Err(miss) => return Err(miss),
            };
            match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => sync(parent),
                Err(Errno::NOENT) => Ok(()),
                Err(Errno::NOTDIR) => Err(Miss::Is(beneath::kind(&beneath::stat_in(parent.as_fd(), name)?))),
                // POSIX allows EEXIST for "not empty" too.
                Err(Errno::EXIST) => Err(Miss::Os(Errno::NOTEMPTY)),
                Err(errno) => Err(errno.into()),
            }
        })
        .await
        .map_err(|error| match error {
            ExportError::Kind { path, found, .. } => ExportError::Kind { path, found, expected: "a directory" },
            other => other,
        })
    }
}

/// `None` if there are more than `limit`.
fn entries(beneath: &Beneath, path: &ObjectPath, limit: usize) -> Result<Option<Vec<Entry>>, Miss> {
    // Asked for its kind first: a FIFO opened as a directory is refused by the system, but says only "not a directory".
    match beneath::kind(&beneath.stat(path)?) {
        Kind::Directory => {}
        other => return Err(Miss::Is(other)),
    }
    let directory = beneath.directory(path)?;
    let mut out = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let stat = match beneath::stat_in(directory.as_fd(), name) {
            Ok(stat) => stat,
            // Gone since it was read.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if out.len() == limit {
            return Ok(None);
        }
        out.push(Entry { name: name.to_vec(), attr: beneath::attr(&stat) });
    }
    Ok(Some(out))
}

/// An error of a call with two paths, said of the one it is about.
fn named_for(error: ExportError, path: &ObjectPath) -> ExportError {
    match error {
        ExportError::Kind { found, expected, .. } => ExportError::Kind { path: shown(path), found, expected },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_told_in_the_gateways_terms() {
        let root = tempfile::tempdir().unwrap();
        let export = LocalExport::open(root.path(), false).unwrap();
        let path = ObjectPath::new("out/doc").unwrap();
        let of = |errno| export.error(&path, Miss::Os(errno));
        for full in [Errno::NOSPC, Errno::DQUOT] {
            assert_eq!(of(full), ExportError::Full("out/doc".into()));
            assert!(of(full).retryable(), "space comes back");
        }
        assert_eq!(of(Errno::ROFS), ExportError::ReadOnly("out/doc".into()));
        for denied in [Errno::ACCESS, Errno::PERM] {
            assert_eq!(of(denied), ExportError::Denied { path: "out/doc".into(), by: export.url() });
        }
        assert!(matches!(of(Errno::IO), ExportError::Broken(said) if said.contains("out/doc")));
        assert!(matches!(of(Errno::NAMETOOLONG), ExportError::Path(_)));
        assert!(matches!(of(Errno::MFILE), ExportError::Unavailable(_)));
        assert!(matches!(of(Errno::XDEV), ExportError::Unsupported(_)));
    }
}
