//! The NAS seam: trait [`Export`], what it promises, and the kinds there are.
//!
//! The contract every implementation keeps, and [`conformance`] proves:
//!
//! - Paths are resolved component by component below the root; a symlink on the way or at the end is
//!   [`ExportError::Kind`], never followed. Names are bytes.
//! - `link`, `rename` and `remove` act on the name itself, whatever non-directory has it: a person's symlink or FIFO is
//!   moved as it is. Everything else refuses it, or (`stat`, of a FIFO) says what it is.
//! - `read_at` may return less than asked only at the end of the file; 0 bytes mean the end.
//! - `create` is exclusive: it fails with [`ExportError::Exists`] if anything has the name.
//! - What `commit` returned `Ok` for is on stable storage, with everything written to that file before it, and the name too.
//! - `link`, `rename` and `remove` are done at most once by the caller's hand but their replies may be lost: an
//!   implementation that repeats a call looks at what is there and answers for the final state.
//!   `link` never replaces; `rename` replaces only what [`Replace`] allows.
//! - Every call ends within the export's deadline.

mod aged;
pub(crate) mod beneath;
pub mod conformance;
mod disk;
mod ext4;
pub mod faulty;
pub mod iscsi;
pub mod local;
pub mod nfs;
mod partitions;
mod recognise;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ingle_proto::{ErrorCode, ObjectPath, Problem};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link: listed, never followed.
    Symlink,
    /// FIFO, socket or device: listed, never opened.
    Other,
}

impl Kind {
    /// For errors: "is a directory, expected a file".
    #[must_use]
    pub fn found(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Other => "a FIFO, socket or device",
        }
    }
}

/// Attributes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Last change of the contents, nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Last change of the attributes, nanoseconds since the Unix epoch.
    pub ctime_ns: i64,
    /// Inode number.
    pub file_id: u64,
    /// Permission bits.
    pub mode: u32,
    /// Hard links.
    pub links: u32,
}

impl Attr {
    /// Whether both show the same file with the same content, as far as a NAS tells.
    #[must_use]
    pub fn same_version(&self, other: &Self) -> bool {
        (self.size, self.mtime_ns, self.ctime_ns, self.file_id)
            == (other.size, other.mtime_ns, other.ctime_ns, other.file_id)
    }
}

/// An entry of a directory; never `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: bytes without `/` and NUL.
    pub name: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
}

/// What `rename` may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Nothing, as far as the protocol can say so: the target is looked up first, and NFSv3 can't close that gap.
    /// Used only for targets whose names nobody else makes (trash names).
    Nothing,
    /// Whatever has the name (a placeholder of ours).
    Anything,
}

/// What an export can do beyond reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It may be written.
    pub write: bool,
    /// It has hard links (LINK): publish never needs a placeholder then.
    pub link: bool,
}

/// Who a NAS takes us for (`AUTH_SYS`, RFC 5531 section 8.2): its own modes and ACLs decide what that user may do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups, at most 16.
    pub groups: Vec<u32>,
}

/// A place documents and results lie. One instance serves many calls at once.
#[async_trait]
pub trait Export: Send + Sync {
    /// Its URL without credentials, for people.
    fn url(&self) -> String;

    /// What it can do; asked of the server once.
    async fn abilities(&self) -> Result<Abilities, ExportError>;

    /// Whether reading costs a network: what came is worth keeping then.
    fn remote(&self) -> bool {
        false
    }

    /// Who the NAS takes us for here; `None` where it knows no users that a client may present.
    fn user(&self) -> Option<User> {
        None
    }

    /// The same export as another user sees it, with connections shared. `None`: what lies behind it knows no users
    /// that a client may present (a directory or a volume of this machine's).
    fn as_user(&self, _user: &User) -> Option<Arc<dyn Export>> {
        None
    }

    /// Attributes of the object at `path`. Always asked of the server.
    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError>;

    /// Attributes of a regular file that this export's user may read now. Always asked of the server: who answers from a
    /// cache asks this first.
    async fn readable(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        let attr = self.stat(path).await?;
        match attr.kind {
            Kind::File => Ok(attr),
            kind => Err(ExportError::Kind { path: path.display(), found: kind.found(), expected: "a file" }),
        }
    }

    /// Whether this export's user may make things in a directory, as far as the server says so beforehand. A write may be
    /// refused all the same, and one that is denied here may turn out to be refused for another reason.
    async fn may_add(&self, directory: &ObjectPath) -> Result<bool, ExportError> {
        self.stat(directory).await.map(|_| true)
    }

    /// All entries of a directory, in no order. Pages are read one after another; `limit` bounds the number of entries
    /// held ([`ExportError::TooMany`] past it).
    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError>;

    /// Up to `length` bytes (at most 1 MiB) at `offset`.
    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError>;

    /// The same, with the file's attributes as they were just after that read, where the protocol tells them for nothing:
    /// what is torn can be seen by them.
    async fn read_with_attr(
        &self,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<(Bytes, Option<Attr>), ExportError> {
        Ok((self.read_at(path, offset, length).await?, None))
    }

    /// Makes an empty file that did not exist, mode 0644.
    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError>;

    /// Writes at `offset` into a file made by [`Export::create`]; durable after [`Export::commit`].
    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError>;

    /// A hint in the middle of a long write: what was written so far may go to the disk now, beside what follows. Promises
    /// nothing; [`Export::commit`] does.
    ///
    /// # Errors
    /// Those of a commit that are worth ending the write for.
    async fn write_back(&self, path: &ObjectPath) -> Result<(), ExportError> {
        let _ = path;
        Ok(())
    }

    /// Makes all that was written to the file durable. [`ExportError::VerifierChanged`] if the server restarted since
    /// the first write: everything must be written again.
    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError>;

    /// Gives a file a second name. [`ExportError::Exists`] if `to` is taken by anything but this very file;
    /// [`ExportError::Unsupported`] where there are no hard links.
    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError>;

    /// Renames a file.
    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError>;

    /// Removes a file. No error if it is gone already.
    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError>;

    /// Makes a directory, mode 0755, with those above it. No error if it exists.
    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError>;

    /// Removes an empty directory. No error if it is gone already; [`ExportError::NotEmpty`] otherwise.
    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError>;
}

/// What can go wrong at an export. Each names the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Nothing has that name.
    #[error("{0}: no such object")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}: the name is taken")]
    Exists(String),
    /// Not of the kind the call needs: says which it is.
    #[error("{path}: is {found}, expected {expected}")]
    Kind {
        /// Whose.
        path: String,
        /// What it is.
        found: &'static str,
        /// What is needed.
        expected: &'static str,
    },
    /// The path itself can't be.
    #[error("{0}")]
    Path(String),
    /// The server refuses (EACCES, EPERM).
    #[error(
        "{path}: permission denied by {by}; give that user the right on the NAS, or map who asks to one that has it"
    )]
    Denied {
        /// Whose.
        path: String,
        /// URL of the export.
        by: String,
    },
    /// EROFS: what lies behind it takes no change now.
    #[error("{0}: the file system has become read-only; make it writable again: the job goes on by itself")]
    ReadOnly(String),
    /// ENOSPC or EDQUOT.
    #[error("{0}: no space or quota left; free some: the job goes on by itself")]
    Full(String),
    /// The directory has entries.
    #[error("{0}: directory not empty")]
    NotEmpty(String),
    /// More entries than the caller's bound.
    #[error("{path}: more than {limit} entries")]
    TooMany {
        /// Which directory.
        path: String,
        /// The bound.
        limit: usize,
    },
    /// The server can't do that at all (no LINK, no v3, no such procedure).
    #[error("{0}")]
    Unsupported(String),
    /// The write verifier changed: the server restarted and may have lost what was not committed.
    #[error("{0}: the server restarted before the data was committed; write it again")]
    VerifierChanged(String),
    /// The file is not the one any more that was opened: its attributes moved, or it ends sooner.
    #[error("{0}: it changed while it was read; read it again")]
    Changed(String),
    /// No answer in time, connection refused or broken.
    #[error("{0}")]
    Unavailable(String),
    /// The server answered with something impossible, or with an I/O error.
    #[error("{0}")]
    Broken(String),
}

impl ExportError {
    /// Whether the same call may succeed later without anyone changing the request.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            Self::Full(_)
                | Self::ReadOnly(_)
                | Self::VerifierChanged(_)
                | Self::Changed(_)
                | Self::Unavailable(_)
                | Self::Broken(_)
        )
    }

    /// Says first which export it is about, by the name that people know it by, where that is what they must look after.
    #[must_use]
    pub fn of(self, export: &str) -> Self {
        let at = |words: String| format!("{export}: {words}");
        match self {
            Self::ReadOnly(words) => Self::ReadOnly(at(words)),
            Self::Full(words) => Self::Full(at(words)),
            Self::Unavailable(words) => Self::Unavailable(at(words)),
            Self::Broken(words) => Self::Broken(at(words)),
            other => other,
        }
    }

    /// Its stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::ObjectNotFound,
            Self::Exists(_) | Self::NotEmpty(_) => ErrorCode::NameTaken,
            Self::Kind { .. } => ErrorCode::ObjectKind,
            Self::Path(_) => ErrorCode::PathRefused,
            Self::Denied { .. } => ErrorCode::StorageDenied,
            Self::ReadOnly(_) => ErrorCode::StorageReadOnly,
            Self::Full(_) => ErrorCode::StorageFull,
            Self::TooMany { .. } => ErrorCode::TooLarge,
            Self::Unsupported(_) => ErrorCode::Unimplemented,
            Self::Changed(_) => ErrorCode::ObjectChanged,
            Self::VerifierChanged(_) | Self::Unavailable(_) => ErrorCode::StorageUnavailable,
            Self::Broken(_) => ErrorCode::StorageProtocol,
        }
    }
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        Problem::new(error.code(), error.to_string())
    }
}
