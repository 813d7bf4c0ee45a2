//! Listening sockets that outlive us: taken over from systemd, or bound here and left with it, so that a restart refuses nobody.
//!
//! Sockets come from two places: a `.socket` unit, and the copies that our last run left (`FileDescriptorStoreMax=`). Both are
//! known by their address alone, so that no list has to be kept in step: whatever is bound at an address that was handed down
//! takes that one. A socket from a unit that no setting names is refused, for it would take connections that nobody serves;
//! a copy that no setting names any more is of former settings, and closed.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;
use tokio::net::TcpListener;

use crate::supervisor;

/// Most sockets that are taken over.
const INHERITED_MAX: usize = 16;

static INHERITED: Mutex<Vec<(SocketAddr, StdListener)>> = Mutex::new(Vec::new());

/// Sockets that were handed down and can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Not a listening TCP socket, or too many.
    #[error(
        "socket {index} from systemd: {reason}; expected at most {INHERITED_MAX} TCP sockets (ListenStream=HOST:PORT)"
    )]
    Unusable {
        /// Which, from 0.
        index: usize,
        /// What the system said.
        reason: String,
    },
    /// No setting names its address.
    #[error(
        "systemd listens at {address} for us ({unit}), but the settings name {wanted}; make them agree: \
         `systemctl edit {unit}` with [Socket], an empty ListenStream=, and one ListenStream= per address, \
         or `systemctl disable --now {unit}`, for a restart refuses no connection without it too"
    )]
    Unnamed {
        /// What systemd listens at.
        address: SocketAddr,
        /// The unit.
        unit: String,
        /// What the settings name.
        wanted: String,
    },
}

impl SocketError {
    /// Never: units don't mend themselves.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// Takes over what was handed down. Call it before there are threads: it reads the environment.
///
/// # Errors
/// [`SocketError`] for a socket that can't be used, or that isn't at one of the addresses `wanted`.
pub(crate) fn inherit(wanted: &[SocketAddr]) -> Result<(), SocketError> {
    let mut passed = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    for index in 0..passed.len() {
        let name = names.next().unwrap_or_default();
        let unusable = |reason: String| SocketError::Unusable { index, reason };
        if index >= INHERITED_MAX {
            return Err(unusable("is one too many".into()));
        }
        let taken = passed.take_tcp_listener(index).map_err(|error| unusable(error.to_string()))?;
        let Some(listener) = taken else { continue };
        let address = listener.local_addr().map_err(|error| unusable(error.to_string()))?;
        listener.set_nonblocking(true).map_err(|error| unusable(error.to_string()))?;
        if wanted.contains(&address) {
            inherited().push((address, listener));
        } else if name == supervisor::stored_name(address) {
            supervisor::forget(address);
        } else {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            return Err(SocketError::Unnamed { address, unit: name.to_owned(), wanted: wanted.join(", ") });
        }
    }
    Ok(())
}

/// The socket at `address` that was handed down, or a new one, which is left with systemd for our next start.
///
/// # Errors
/// What the system said.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    if let Some(listener) = take(address) {
        return TcpListener::from_std(listener);
    }
    let listener = TcpListener::bind(address).await?.into_std()?;
    // A port that the system chose is another one at the next start.
    if address.port() != 0 {
        supervisor::keep(&listener, address);
    }
    TcpListener::from_std(listener)
}

fn take(address: SocketAddr) -> Option<StdListener> {
    let mut inherited = inherited();
    let at = inherited.iter().position(|(theirs, _)| *theirs == address)?;
    Some(inherited.swap_remove(at).1)
}

fn inherited() -> MutexGuard<'static, Vec<(SocketAddr, StdListener)>> {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner)
}
