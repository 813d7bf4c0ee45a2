//! From what a server answers to what the gateway's callers understand; statuses by their names in RFC 1813.

use nfs3_types::nfs3::nfsstat3;

use super::mount::{ENABLE_V3, denied};
use super::rpc::RpcError;
use super::url::NfsUrl;
use super::xdr::Malformed;
use crate::export::{ExportError, Kind};

/// Why a step of a call ended.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The server's status.
    Status(nfsstat3),
    /// No status came.
    Rpc(RpcError),
    /// The object is of this kind, and `expected` is needed.
    Is {
        /// What it is.
        kind: Kind,
        /// What is needed.
        expected: &'static str,
    },
    /// Settled already.
    Said(ExportError),
    /// It could not be mounted.
    Mount(ExportError),
}

impl From<RpcError> for Fault {
    fn from(error: RpcError) -> Self {
        Self::Rpc(error)
    }
}

impl From<Malformed> for Fault {
    fn from(error: Malformed) -> Self {
        Self::Rpc(error.into())
    }
}

impl From<ExportError> for Fault {
    fn from(error: ExportError) -> Self {
        Self::Said(error)
    }
}

impl Fault {
    /// Whether the server may have done it without our hearing of it.
    pub(crate) fn lost(&self) -> bool {
        matches!(self, Self::Rpc(RpcError::Lost(_)))
    }

    /// Whether the handle used means nothing to the server any more.
    pub(crate) fn stale(&self) -> bool {
        matches!(self, Self::Status(nfsstat3::NFS3ERR_STALE | nfsstat3::NFS3ERR_BADHANDLE))
    }

    /// Whether it is this status.
    pub(crate) fn is(&self, status: nfsstat3) -> bool {
        matches!(self, Self::Status(found) if *found == status)
    }

    /// For the caller, about the object at `path`.
    pub(crate) fn about(self, path: String, url: &NfsUrl, unprivileged: bool) -> ExportError {
        let server = &url.shown;
        match self {
            Self::Said(error) => error,
            // A NAS that has just started refuses what it doesn't show yet: the objects below aren't missing, nor denied.
            Self::Mount(error @ (ExportError::NotFound(_) | ExportError::Denied { .. })) => {
                ExportError::Unavailable(format!("{path}: can't be mounted now: {error}"))
            }
            Self::Mount(error) => error,
            Self::Is { kind, expected } => ExportError::Kind { path, found: kind.found(), expected },
            Self::Rpc(error) => match error {
                RpcError::NotSent(why) | RpcError::Lost(why) => {
                    ExportError::Unavailable(format!("{path}: {server}: {why}"))
                }
                RpcError::Malformed(why) => ExportError::Broken(format!("{path}: {server}: {why}")),
                RpcError::ProgramUnavailable | RpcError::VersionMismatch { .. } => {
                    ExportError::Unsupported(format!("{server}: {ENABLE_V3} ({error})"))
                }
                RpcError::ProcedureUnavailable => ExportError::Unsupported(format!("{path}: {server}: {error}")),
                RpcError::Refused(_) => ExportError::Broken(format!("{path}: {server}: {error}")),
                RpcError::Auth(_) => denied(url, &error.to_string(), !unprivileged),
            },
            Self::Status(status) => of_status(status, path, url, unprivileged),
        }
    }
}

fn of_status(status: nfsstat3, path: String, url: &NfsUrl, unprivileged: bool) -> ExportError {
    let server = &url.shown;
    match status {
        nfsstat3::NFS3ERR_NOENT => ExportError::NotFound(path),
        nfsstat3::NFS3ERR_EXIST => ExportError::Exists(path),
        nfsstat3::NFS3ERR_NOTEMPTY => ExportError::NotEmpty(path),
        nfsstat3::NFS3ERR_ACCES => ExportError::Denied { path, by: format!("{server} ({status})") },
        // Linux servers answer PERM to source ports above 1023.
        nfsstat3::NFS3ERR_PERM if unprivileged => denied(url, &status.to_string(), false),
        nfsstat3::NFS3ERR_PERM => ExportError::Denied { path, by: format!("{server} ({status})") },
        nfsstat3::NFS3ERR_ROFS => ExportError::ReadOnly(path),
        nfsstat3::NFS3ERR_NOSPC | nfsstat3::NFS3ERR_DQUOT => ExportError::Full(format!("{path} ({status})")),
        nfsstat3::NFS3ERR_NAMETOOLONG => ExportError::Path(format!("{path}: too long for the server ({status})")),
        nfsstat3::NFS3ERR_NOTDIR => {
            ExportError::Kind { path, found: "below something that is no directory", expected: "directories" }
        }
        nfsstat3::NFS3ERR_ISDIR => ExportError::Kind { path, found: Kind::Directory.found(), expected: "a file" },
        nfsstat3::NFS3ERR_NOTSUPP | nfsstat3::NFS3ERR_XDEV | nfsstat3::NFS3ERR_MLINK => {
            ExportError::Unsupported(format!("{path}: {server} can't do that ({status})"))
        }
        nfsstat3::NFS3ERR_INVAL => ExportError::Path(format!("{path}: refused by {server} ({status})")),
        nfsstat3::NFS3ERR_JUKEBOX | nfsstat3::NFS3ERR_STALE | nfsstat3::NFS3ERR_BADHANDLE => {
            ExportError::Unavailable(format!("{path}: {server} answered {status}; the call may be made again"))
        }
        status => ExportError::Broken(format!("{path}: {server} answered {status}")),
    }
}
