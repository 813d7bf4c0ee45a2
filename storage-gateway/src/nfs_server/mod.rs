//! The built-in NFS version 3 server: a directory served over NFS with nothing to install.
//!
//! NFS, MOUNT and the portmapper answer on one TCP port. `connection` frames and bounds, `call` reads RPC headers and
//! credentials, `programs` hands out, `tree` turns handles into files below the root (and never elsewhere), `access`
//! checks the caller's rights, and `reading`, `writing`, `naming` and `listing` are the procedures. `faults` spoils it for tests.

mod access;
mod attributes;
mod call;
mod connection;
mod faults;
mod listing;
mod naming;
mod nodes;
mod programs;
mod reading;
mod tree;
mod writing;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument as _;

pub use self::access::Squash;
pub use self::faults::{Faults, Full, NfsFaults, Trouble};
use self::programs::Programs;
use self::tree::Tree;

/// How to serve.
#[derive(Debug, Clone)]
pub struct NfsServerOptions {
    /// Address to listen on. Anyone who reaches it can claim any user id: loopback, unless the network is trusted.
    pub listen: SocketAddr,
    /// Whose rights callers have.
    pub squash: Squash,
    /// Refuse every change.
    pub read_only: bool,
    /// Connections at once; more are closed as they come.
    pub connections_max: usize,
    /// What goes wrong on purpose: nothing, outside of tests.
    pub faults: Arc<Faults>,
}

impl Default for NfsServerOptions {
    /// Loopback, a port of the system's choice, root squashed, writable, 256 connections.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            squash: Squash::Root,
            read_only: false,
            connections_max: 256,
            faults: Arc::default(),
        }
    }
}

/// A running server. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct NfsServer {
    local: SocketAddr,
    /// The one task that accepts, and owns all connections.
    accepting: JoinSet<()>,
}

impl NfsServer {
    /// Serves the directory `root` until dropped.
    ///
    /// # Errors
    /// `root` isn't a directory that can be entered, or the address can't be listened on.
    pub async fn bind(root: &Path, options: NfsServerOptions) -> io::Result<Self> {
        let tree =
            Tree::open(root).map_err(|errno| io::Error::new(errno.kind(), format!("{}: {errno}", root.display())))?;
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", options.listen)))?;
        let local = listener.local_addr()?;
        let programs = Arc::new(Programs::new(tree, local.port(), &options));
        let span = tracing::info_span!("nfs_server", %local, root = %root.display());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, programs, options.connections_max.max(1)).instrument(span));
        Ok(Self { local, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The URL by which our client reaches it from this machine: the port serves NFS and MOUNT both.
    #[must_use]
    pub fn url(&self) -> String {
        let port = self.local.port();
        let ip = self.local.ip();
        let host = match ip {
            _ if ip.is_unspecified() => "127.0.0.1".to_owned(),
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        format!("nfs://{host}:{port}/?mountport={port}&nfsport={port}")
    }

    /// Ends it and waits until its port is free.
    pub async fn shutdown(mut self) {
        self.accepting.shutdown().await;
    }
}

/// Serves `root` until `shutdown` completes. `ready` is told the server before the first call.
///
/// # Errors
/// As [`NfsServer::bind`].
pub async fn serve(
    root: &Path,
    options: NfsServerOptions,
    ready: impl FnOnce(&NfsServer),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let server = NfsServer::bind(root, options).await?;
    ready(&server);
    shutdown.await;
    server.shutdown().await;
    Ok(())
}

async fn accept(listener: TcpListener, programs: Arc<Programs>, connections_max: usize) {
    let slots = Arc::new(Semaphore::new(connections_max));
    // Ends its connections when it is dropped with this task.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(%peer, connections_max, "too many connections: this one is closed");
            continue;
        };
        let programs = programs.clone();
        connections.spawn(async move {
            let _slot = slot;
            connection::serve(stream, programs).await;
            tracing::debug!(%peer, "connection ended");
        });
    }
}
