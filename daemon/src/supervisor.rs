//! What we tell whoever started us, if it is systemd: that we serve, that we are alive, that we stop. Silent elsewhere.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sd_notify::NotifyState;

use crate::Shutdown;

/// What a unit's `TimeoutStopSec=` gives beyond the daemon's own drain deadline: for the last words, for tasks that have to be
/// dropped, and for telemetry that has to leave. The units are compared with it.
pub const STOP_MARGIN: Duration = Duration::from_secs(30);

/// We serve.
pub(crate) fn serving(at: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving at {at}"))]);
}

/// Shows that the runtime still gets round to things, twice per `WatchdogSec=`, and says when we begin to stop. Never ends.
pub(crate) async fn watch(shutdown: Shutdown) {
    let every = sd_notify::watchdog_enabled().map(|limit| (limit / 2).max(Duration::from_millis(10)));
    let alive = async move {
        let Some(every) = every else { return std::future::pending().await };
        loop {
            tell(&[NotifyState::Watchdog]);
            tokio::time::sleep(every).await;
        }
    };
    let stopping = async move {
        shutdown.wait().await;
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        std::future::pending::<()>().await;
    };
    tokio::join!(alive, stopping);
}

/// Leaves a copy of a listening socket with systemd, which gives it to our next start: see [`crate::sockets`].
pub(crate) fn keep(listener: &TcpListener, address: SocketAddr) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let words = format!("FDSTORE=1\nFDNAME={}\n", stored_name(address));
    let send = || -> std::io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&path)?;
        let fds = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&socket, &[IoSlice::new(words.as_bytes())], &mut control, SendFlags::empty())?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::debug!(%address, %error, "the socket can't be left with systemd: a restart will refuse connections for a moment");
    }
}

/// Takes back what [`keep`] left.
pub(crate) fn forget(address: SocketAddr) {
    let name = format!("FDNAME={}", stored_name(address));
    tell(&[NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::Custom(&name)]);
}

/// The name under which a socket is left; systemd allows no colon.
pub(crate) fn stored_name(address: SocketAddr) -> String {
    format!("at-{}", address.to_string().replace(':', "-"))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd can't be told how we are");
    }
}
