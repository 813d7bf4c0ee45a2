//! A few connections to one server's NFS port: opened when needed, opened again with back-off, calls replayed where
//! replaying is harmless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ingle_daemon::backoff::Backoff;
use nfs3_types::rpc::opaque_auth;
use nfs3_types::xdr_codec::Pack;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::dial::dial;
use super::mount;
use super::rpc::{Connection, Procedure, RpcError};

/// First and longest pause between two tries to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Whether a call whose reply was lost may simply be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Doing it twice is like doing it once.
    Harmless,
    /// The caller must look at what is there first.
    Look,
}

/// One place for a connection.
struct Slot {
    connection: Option<Arc<Connection>>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

/// The connections.
pub(crate) struct Pool {
    host: String,
    port: Option<u16>,
    deadline: Duration,
    slots: Vec<Mutex<Slot>>,
    next: AtomicUsize,
    unprivileged: AtomicBool,
}

impl Pool {
    /// Opens nothing yet. Without a `port` the portmapper is asked each time a connection is opened.
    pub(crate) fn new(host: String, port: Option<u16>, deadline: Duration, connections: usize) -> Self {
        let slot =
            || Mutex::new(Slot { connection: None, backoff: Backoff::new(PAUSES.0, PAUSES.1), not_before: None });
        let slots = (0..connections.clamp(1, 16)).map(|_| slot()).collect();
        Self { host, port, deadline, slots, next: AtomicUsize::new(0), unprivileged: AtomicBool::new(false) }
    }

    /// Whether a connection had to be made from a source port above 1023.
    pub(crate) fn unprivileged(&self) -> bool {
        self.unprivileged.load(Ordering::Relaxed)
    }

    /// Longest that one call takes.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Calls within the deadline, over as many connections as it takes. `data` ends the arguments.
    pub(crate) async fn call(
        &self,
        procedure: Procedure,
        credential: &opaque_auth<'_>,
        arguments: &(impl Pack + Sync),
        data: &Bytes,
        replay: Replay,
    ) -> Result<Bytes, RpcError> {
        let until = Instant::now() + self.deadline;
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let answer = match self.connection(until).await {
                Ok(connection) => {
                    let left = until.saturating_duration_since(Instant::now());
                    connection.call(procedure, credential, arguments, data, left).await
                }
                Err(why) => Err(RpcError::NotSent(why)),
            };
            let again = match &answer {
                Err(RpcError::NotSent(_)) => true,
                Err(RpcError::Lost(_)) => replay == Replay::Harmless,
                _ => false,
            };
            if !again || Instant::now() >= until {
                return answer;
            }
            // The first repetition at once: mostly an idle connection was found closed. Then with pauses, for a server
            // may take connections and end them.
            if backoff.attempt() > 0 {
                tokio::time::sleep_until((Instant::now() + backoff.next_random()).min(until)).await;
            } else {
                let _ = backoff.next_random();
            }
        }
    }

    /// An open connection, the next in turn.
    async fn connection(&self, until: Instant) -> Result<Arc<Connection>, String> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len()];
        let late = || format!("no connection to {} within {} ms", self.host, self.deadline.as_millis());
        let Ok(mut slot) = tokio::time::timeout_at(until, slot.lock()).await else {
            return Err(late());
        };
        if let Some(connection) = slot.connection.take_if(|connection| connection.is_closed()) {
            tracing::debug!(host = self.host, "a connection to the NAS ended");
            drop(connection);
        }
        if let Some(connection) = &slot.connection {
            return Ok(connection.clone());
        }
        if let Some(not_before) = slot.not_before {
            tokio::time::sleep_until(not_before.min(until)).await;
        }
        match tokio::time::timeout_at(until, self.open()).await.unwrap_or_else(|_| Err(late())) {
            Ok(connection) => {
                slot.backoff.reset();
                slot.not_before = None;
                slot.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(why) => {
                slot.not_before = Some(Instant::now() + slot.backoff.next_random());
                Err(why)
            }
        }
    }

    async fn open(&self) -> Result<Arc<Connection>, String> {
        let port = match self.port {
            Some(port) => port,
            None => mount::nfs_port(&self.host, self.deadline).await?,
        };
        let dialed = dial(&self.host, port).await?;
        if !dialed.privileged {
            self.unprivileged.store(true, Ordering::Relaxed);
        }
        Ok(Arc::new(Connection::new(dialed.stream)))
    }
}
