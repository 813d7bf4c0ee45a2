//! File descriptors below a directory, and never outside it: the kernel is asked to refuse what would leave.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ingle_proto::ObjectPath;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Attr, Kind};

/// openat2 answers EAGAIN when a rename somewhere raced with its walk: asked again at most this often.
const RACES_MAX: usize = 64;

/// Why something could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// The system says so.
    Os(Errno),
    /// It is there, but of this kind.
    Is(Kind),
}

impl From<Errno> for Miss {
    fn from(errno: Errno) -> Self {
        // ELOOP can only be a symlink met: we ask the kernel to follow none.
        if errno == Errno::LOOP { Self::Is(Kind::Symlink) } else { Self::Os(errno) }
    }
}

/// What the path of a root leads to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// To the directory that is held.
    Same,
    /// To another: a disk was mounted there, or the directory was replaced.
    Another,
    /// To what lay under a disk that is gone. Nothing that was on it counts as deleted.
    Uncovered,
}

/// A directory and what lies below it.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    /// False once the kernel (before 5.6, or a seccomp filter) answered ENOSYS.
    openat2: AtomicBool,
}

impl Beneath {
    /// Takes `root`, which may itself be reached through symlinks: it is configuration, not input.
    pub(crate) fn open(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
        Ok(Self { root, openat2: AtomicBool::new(true) })
    }

    /// What `root` leads to now.
    pub(crate) fn standing(&self, root: &Path) -> Result<Standing, Errno> {
        let (held, now) = (rustix::fs::fstat(&self.root)?, rustix::fs::stat(root)?);
        if same(&held, &now) {
            return Ok(Standing::Same);
        }
        let above = rustix::fs::statat(
            rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
            "..",
            AtFlags::empty(),
        )?;
        Ok(moved(held.st_dev, now.st_dev, above.st_dev))
    }

    /// Opens what has the path, following nothing. With `PATH | NOFOLLOW` a symlink at the end is opened as itself.
    pub(crate) fn at(&self, path: &ObjectPath, flags: OFlags) -> Result<OwnedFd, Miss> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if path.is_root() { b".".as_slice() } else { path.as_bytes() };
        // The kernel takes paths of at most 4095 bytes; ours may have 4096, which the walk below does in pieces.
        if !self.openat2.load(Ordering::Relaxed) || name.len() > 4095 {
            return self.walk(path, flags);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut last = Errno::AGAIN;
        for _ in 0..RACES_MAX {
            match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                Err(Errno::NOSYS) => {
                    self.openat2.store(false, Ordering::Relaxed);
                    return self.walk(path, flags);
                }
                Err(errno @ (Errno::AGAIN | Errno::INTR)) => last = errno,
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Miss::Os(last))
    }

    /// The same without openat2: one component at a time, each opened as itself and looked at before the next.
    fn walk(&self, path: &ObjectPath, flags: OFlags) -> Result<OwnedFd, Miss> {
        let mut parts = path.components().peekable();
        if parts.peek().is_none() {
            return Ok(rustix::fs::openat(&self.root, ".", flags, Mode::empty())?);
        }
        let mut held: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            let at = held.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            if parts.peek().is_none() {
                return Ok(rustix::fs::openat(at, part, flags, Mode::empty())?);
            }
            let step = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = rustix::fs::openat(at, part, step, Mode::empty())?;
            match kind(&rustix::fs::fstat(&next)?) {
                Kind::Directory => held = Some(next),
                Kind::Symlink => return Err(Miss::Is(Kind::Symlink)),
                Kind::File | Kind::Other => return Err(Miss::Os(Errno::NOTDIR)),
            }
        }
        unreachable!("the loop returns at the last component, and there is one")
    }

    /// The directory a path lies in, and the last component. The root has none: EBUSY.
    pub(crate) fn parent<'p>(&self, path: &'p ObjectPath) -> Result<(OwnedFd, &'p [u8]), Miss> {
        let parent = path.parent().ok_or(Miss::Os(Errno::BUSY))?;
        Ok((self.directory(&parent)?, path.file_name()))
    }

    /// A directory, opened so that it can be listed and synced.
    pub(crate) fn directory(&self, path: &ObjectPath) -> Result<OwnedFd, Miss> {
        self.at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)
    }

    /// The first directory of a path that is a symlink.
    pub(crate) fn link_on_the_way(&self, path: &ObjectPath) -> Option<ObjectPath> {
        let parents: Vec<ObjectPath> = std::iter::successors(path.parent(), ObjectPath::parent).collect();
        let is_link = |at: &ObjectPath| self.stat(at).is_ok_and(|stat| kind(&stat) == Kind::Symlink);
        parents.into_iter().rev().find(|at| !at.is_root() && is_link(at))
    }

    /// Attributes of the object itself, be it a symlink.
    pub(crate) fn stat(&self, path: &ObjectPath) -> Result<Stat, Miss> {
        Ok(rustix::fs::fstat(self.at(path, OFlags::PATH)?)?)
    }

    /// A regular file. Anything else is looked at, never opened: opening a FIFO would wake who waits at its other end.
    pub(crate) fn regular(&self, path: &ObjectPath, flags: OFlags) -> Result<OwnedFd, Miss> {
        match kind(&self.stat(path)?) {
            Kind::File => {}
            other => return Err(Miss::Is(other)),
        }
        // Swapped in between? NONBLOCK keeps us from waiting at it, and the second look refuses it.
        let fd = self.at(path, flags | OFlags::NONBLOCK)?;
        match kind(&rustix::fs::fstat(&fd)?) {
            Kind::File => Ok(fd),
            other => Err(Miss::Is(other)),
        }
    }
}

/// What another directory at the root's path means, by the devices of the one held, of the one there now, and of the one
/// above it: what isn't on another device than the directory above is no mount point.
fn moved<D: PartialEq>(held: D, now: D, above: D) -> Standing {
    if held != now && now == above { Standing::Uncovered } else { Standing::Another }
}

/// Attributes of a name in an open directory, of the object itself.
pub(crate) fn stat_in(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether two are the same object.
pub(crate) fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// What it is.
pub(crate) fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

/// The export's attributes out of the system's. The casts only bridge the field types of different processors.
#[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]
pub(crate) fn attr(stat: &Stat) -> Attr {
    let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Attr {
        kind: kind(stat),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: ns(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime_ns: ns(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        file_id: stat.st_ino as u64,
        mode: stat.st_mode & 0o7777,
        links: stat.st_nlink as u32,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn path(text: &str) -> ObjectPath {
        ObjectPath::new(text).expect("a valid path")
    }

    /// Both ways of resolving answer alike, on everything that must be refused and on what must not.
    #[test]
    fn with_and_without_openat2_alike() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("secret"), "s").unwrap();
        let root = base.path().join("root");
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        std::fs::write(root.join("d/e/f"), "f").unwrap();
        symlink("d", root.join("within")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("/", root.join("d/absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fast = Beneath::open(&root).unwrap();
        let slow = Beneath::open(&root).unwrap();
        slow.openat2.store(false, Ordering::Relaxed);
        for (text, expected) in [
            ("", Ok(Kind::Directory)),
            ("d/e/f", Ok(Kind::File)),
            ("d/e", Ok(Kind::Directory)),
            ("within", Ok(Kind::Symlink)),
            ("within/e/f", Err(Miss::Is(Kind::Symlink))),
            ("out", Ok(Kind::Symlink)),
            ("d/absolute/etc", Err(Miss::Is(Kind::Symlink))),
            ("loop/x", Err(Miss::Is(Kind::Symlink))),
            ("d/e/f/g", Err(Miss::Os(Errno::NOTDIR))),
            ("d/none/g", Err(Miss::Os(Errno::NOENT))),
        ] {
            for beneath in [&fast, &slow] {
                let found = beneath.stat(&path(text)).map(|stat| kind(&stat));
                assert_eq!(found, expected, "{text:?} with openat2 {:?}", beneath.openat2);
            }
        }
        for beneath in [&fast, &slow] {
            for (text, link) in [
                ("within/e/f", Some("within")),
                ("d/absolute/etc/x", Some("d/absolute")),
                ("d/e/f", None),
                ("out", None),
                ("", None),
            ] {
                assert_eq!(beneath.link_on_the_way(&path(text)), link.map(path), "{text:?}");
            }
            for link in ["within", "out", "d/absolute", "loop"] {
                let refused = beneath.regular(&path(link), OFlags::RDONLY).unwrap_err();
                assert_eq!(refused, Miss::Is(Kind::Symlink), "{link}");
            }
        }
    }

    #[test]
    fn a_root_that_was_replaced_or_uncovered_is_told() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let beneath = Beneath::open(&root).unwrap();
        assert_eq!(beneath.standing(&root), Ok(Standing::Same));
        std::fs::rename(&root, base.path().join("moved")).unwrap();
        assert_eq!(beneath.standing(&root), Err(Errno::NOENT));
        std::fs::create_dir(&root).unwrap();
        assert_eq!(beneath.standing(&root), Ok(Standing::Another));
        // A disk (2) over a directory of the system's (1), then away again; another disk (3) in its place.
        assert_eq!(moved(1, 2, 1), Standing::Another);
        assert_eq!(moved(2, 1, 1), Standing::Uncovered);
        assert_eq!(moved(2, 3, 1), Standing::Another);
    }

    #[test]
    fn deepest_path_is_reached() {
        let root = tempfile::tempdir().unwrap();
        // 2047 directories `x` and a name of two bytes: 4096 in all, one more than the kernel takes at once.
        let deep = format!("{}yy", "x/".repeat(2047));
        assert_eq!(deep.len(), 4096);
        let mut at = rustix::fs::openat(CWD, root.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..2047 {
            rustix::fs::mkdirat(&at, "x", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "x", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&at, "yy", flags, Mode::RUSR).unwrap());
        let beneath = Beneath::open(root.path()).unwrap();
        assert_eq!(kind(&beneath.stat(&path(&deep)).unwrap()), Kind::File);
    }
}
