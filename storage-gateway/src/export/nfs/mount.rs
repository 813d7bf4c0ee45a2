//! From an export's path to its root handle: portmapper, MOUNT version 3, and clear words where a server has neither.

use std::time::Duration;

use bytes::Bytes;
use ingle_daemon::backoff::Backoff;
use nfs3_types::mount::{self, MOUNT_PROGRAM, dirpath, mountstat3};
use nfs3_types::nfs3::{self, NFS3_FHSIZE};
use nfs3_types::portmap::{self, IPPROTO_TCP, PMAP_PORT, PMAP_PROG, mapping};
use nfs3_types::rpc::{auth_flavor, opaque_auth};
use nfs3_types::xdr_codec::{Opaque, Void};
use tokio::time::Instant;

use super::dial::dial;
use super::rpc::{Connection, Procedure, RpcError};
use super::url::NfsUrl;
use super::xdr::{Malformed, Reader};
use crate::export::ExportError;

/// Where NFS listens when nobody says otherwise.
const NFS_PORT: u16 = 2049;
/// First and longest pause before mounting is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Most kinds of credential that a server may offer for an export.
const FLAVORS_MAX: usize = 64;
/// What to do about a server without version 3.
pub(crate) const ENABLE_V3: &str = "the server doesn't speak NFS version 3; enable it there \
    (Linux: vers3=y in the [nfsd] section of /etc/nfs.conf, with rpcbind and mountd running; \
    Synology, QNAP, TrueNAS: \"NFSv3\" in the NFS settings)";

/// Asks the portmapper. `Ok(None)`: it answers, but has no such program.
async fn port_of(host: &str, program: u32, version: u32, deadline: Duration) -> Result<Option<u16>, String> {
    let connection = Connection::new(dial(host, PMAP_PORT).await?.stream);
    let to =
        Procedure { program: portmap::PROGRAM, version: portmap::VERSION, number: PMAP_PROG::PMAPPROC_GETPORT as u32 };
    let question = mapping { prog: program, vers: version, prot: IPPROTO_TCP, port: 0 };
    let answer = connection.call(to, &opaque_auth::default(), &question, &Bytes::new(), deadline).await;
    let port = answer.and_then(|bytes| Ok(Reader::new(bytes).u32()?)).map_err(|e| format!("portmapper: {e}"))?;
    u16::try_from(port).map(|port| (port != 0).then_some(port)).map_err(|_| format!("portmapper: port {port}"))
}

/// The port of NFS version 3.
pub(crate) async fn nfs_port(host: &str, deadline: Duration) -> Result<u16, String> {
    match port_of(host, nfs3::PROGRAM, nfs3::VERSION, deadline).await {
        Ok(Some(port)) => Ok(port),
        // Some servers register mountd only; what is there says itself whether it is version 3.
        Ok(None) | Err(_) => Ok(NFS_PORT),
    }
}

/// The root handle of the export.
pub(crate) async fn root(
    url: &NfsUrl,
    credential: &opaque_auth<'static>,
    deadline: Duration,
) -> Result<Bytes, ExportError> {
    let unavailable = |why: String| ExportError::Unavailable(format!("{}: {why}", url.shown));
    let port = match url.mount_port {
        Some(port) => port,
        None => match port_of(&url.host, mount::PROGRAM, mount::VERSION, deadline).await {
            Ok(Some(port)) => port,
            Ok(None) => return Err(without_mount(url, "it has no mount service of version 3", deadline).await),
            Err(why) => return Err(without_mount(url, &why, deadline).await),
        },
    };
    let to =
        Procedure { program: mount::PROGRAM, version: mount::VERSION, number: MOUNT_PROGRAM::MOUNTPROC3_MNT as u32 };
    let path = dirpath(Opaque::borrowed(&url.path));
    let until = Instant::now() + deadline;
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    // Mounting twice is like mounting once: repeated until the deadline, for servers restart.
    let (privileged, answer) = loop {
        let left = until.saturating_duration_since(Instant::now());
        let (privileged, answer) = match dial(&url.host, port).await {
            Ok(dialed) => {
                let connection = Connection::new(dialed.stream);
                (dialed.privileged, connection.call(to, credential, &path, &Bytes::new(), left).await)
            }
            Err(why) => (true, Err(RpcError::NotSent(why))),
        };
        let again = matches!(answer, Err(RpcError::NotSent(_) | RpcError::Lost(_)));
        if !again || Instant::now() >= until {
            break (privileged, answer);
        }
        tokio::time::sleep_until((Instant::now() + backoff.next_random()).min(until)).await;
    };
    let reply = answer.map_err(|error| match error {
        RpcError::NotSent(why) | RpcError::Lost(why) => unavailable(format!("mount service: {why}")),
        RpcError::ProgramUnavailable | RpcError::VersionMismatch { .. } | RpcError::ProcedureUnavailable => {
            ExportError::Unsupported(format!("{}: {ENABLE_V3} (mount service: {error})", url.shown))
        }
        RpcError::Auth(_) => denied(url, &error.to_string(), privileged),
        RpcError::Malformed(_) | RpcError::Refused(_) => {
            ExportError::Broken(format!("{}: mount service: {error}", url.shown))
        }
    })?;
    let broken = |error: Malformed| ExportError::Broken(format!("{}: mount service: {error}", url.shown));
    let mut reader = Reader::new(reply);
    let status: mountstat3 = reader.take().map_err(broken)?;
    match status {
        mountstat3::MNT3_OK => {}
        mountstat3::MNT3ERR_ACCES | mountstat3::MNT3ERR_PERM => {
            return Err(denied(url, &status.to_string(), privileged));
        }
        mountstat3::MNT3ERR_NOENT | mountstat3::MNT3ERR_NOTDIR => {
            return Err(ExportError::NotFound(format!("{} on the server ({status})", url.shown)));
        }
        mountstat3::MNT3ERR_NOTSUPP => return Err(ExportError::Unsupported(format!("{}: {status}", url.shown))),
        mountstat3::MNT3ERR_INVAL | mountstat3::MNT3ERR_NAMETOOLONG => {
            return Err(ExportError::Path(format!("{}: {status}", url.shown)));
        }
        mountstat3::MNT3ERR_IO | mountstat3::MNT3ERR_SERVERFAULT => {
            return Err(ExportError::Broken(format!("{}: mount service: {status}", url.shown)));
        }
    }
    let handle = reader.opaque(NFS3_FHSIZE).map_err(broken)?;
    let flavors = reader.integers(FLAVORS_MAX).map_err(broken)?;
    reader.end().map_err(broken)?;
    if handle.is_empty() {
        return Err(ExportError::Broken(format!("{}: mount service: an empty file handle", url.shown)));
    }
    let usable = [auth_flavor::AUTH_UNIX as u32, auth_flavor::AUTH_NULL as u32];
    if !flavors.is_empty() && !flavors.iter().any(|flavor| usable.contains(flavor)) {
        return Err(ExportError::Unsupported(format!(
            "{}: the server demands Kerberos for this export (flavors {flavors:?}); allow sec=sys for this machine",
            url.shown
        )));
    }
    Ok(handle)
}

/// Says what a server is that has no mount service of version 3: of version 4 only, hidden behind a firewall, or down.
async fn without_mount(url: &NfsUrl, why: &str, deadline: Duration) -> ExportError {
    let port = url.nfs_port.unwrap_or(NFS_PORT);
    let connection = match dial(&url.host, port).await {
        Ok(dialed) => Connection::new(dialed.stream),
        Err(error) => return ExportError::Unavailable(format!("{}: {why}; {error}", url.shown)),
    };
    let null = Procedure { program: nfs3::PROGRAM, version: nfs3::VERSION, number: 0 };
    match connection.call(null, &opaque_auth::default(), &Void, &Bytes::new(), deadline).await {
        Err(error @ (RpcError::VersionMismatch { .. } | RpcError::ProgramUnavailable)) => {
            ExportError::Unsupported(format!("{}: {ENABLE_V3} ({error})", url.shown))
        }
        Ok(_) => ExportError::Unavailable(format!(
            "{}: {why}; NFS itself answers on port {port}: open port 111 (rpcbind) to this machine, \
             or say where the mount service is with ?mountport=PORT",
            url.shown
        )),
        Err(error) => ExportError::Unavailable(format!("{}: {why}; port {port}: {error}", url.shown)),
    }
}

/// The refusal, with the likeliest reason.
pub(crate) fn denied(url: &NfsUrl, status: &str, privileged: bool) -> ExportError {
    let by = if privileged {
        format!("{} ({status}: does the export's client list name this machine?)", url.shown)
    } else {
        format!(
            "{} ({status}: this process may not use a source port below 1024, so the export needs the option \
             `insecure`, or the process CAP_NET_BIND_SERVICE)",
            url.shown
        )
    };
    ExportError::Denied { path: "the export's root".to_owned(), by }
}
