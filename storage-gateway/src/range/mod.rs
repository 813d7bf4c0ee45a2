//! The range endpoint: files over HTTP/1.1 for what is large, with the tokens, checks and certificates of gRPC.
//!
//! A message of gRPC is framed, flow-controlled and copied; a body with a length is not. Measured beside each other:
//! docs/decisions, "ranges over HTTP/1.1".

mod answer;
mod request;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ingle_daemon::{OnFailure, Shutdown, Tasks};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, rustls};

use crate::grpc::STALL;
use crate::limits::RANGE_CONNECTIONS_MAX;
use crate::source::Sources;

/// How long a handshake, and the head of a request, may take.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a request's head; what is answered is written from the pieces themselves.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Where ranges are served, for those who ask over gRPC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// TCP port.
    pub port: Option<u16>,
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// Socket on this host.
    pub unix_socket: Option<PathBuf>,
    /// This process.
    pub instance: String,
}

/// A path in the file system, removed when dropped.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The endpoint, before its listeners.
pub struct Ranges {
    sources: Sources,
    instance: String,
    connections: Arc<Semaphore>,
    tasks: Tasks,
}

impl Ranges {
    /// Over the same sources as gRPC.
    #[must_use]
    pub fn new(sources: Sources, tasks: Tasks) -> Arc<Self> {
        let instance = format!("{:032x}", fastrand::u128(..));
        let connections = Arc::new(Semaphore::new(RANGE_CONNECTIONS_MAX));
        Arc::new(Self { sources, instance, connections, tasks })
    }

    /// This process's name for itself.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Serves on TCP until shutdown.
    pub fn serve_tcp(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        shutdown: Shutdown,
    ) {
        let ranges = Arc::clone(self);
        let acceptor = tls.map(TlsAcceptor::from);
        self.tasks.spawn("ranges", OnFailure::Log, async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.wait() => return Ok::<_, Infallible>(()),
                };
                let Some((stream, turn)) = ranges.admitted(accepted.map(|(stream, _)| stream)).await else { continue };
                let _ = stream.set_nodelay(true);
                let (ranges, acceptor, ending) = (Arc::clone(&ranges), acceptor.clone(), shutdown.clone());
                ranges.clone().tasks.spawn("range connection", OnFailure::Log, async move {
                    match acceptor {
                        None => ranges.connection(stream, turn, ending).await,
                        Some(acceptor) => match tokio::time::timeout(HEAD_MAX, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => ranges.connection(stream, turn, ending).await,
                            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        },
                    }
                    Ok::<_, Infallible>(())
                });
            }
        });
    }

    /// Serves on a socket of the file system until shutdown; who may reach it is who may write to it: this user and group.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn serve_unix(self: &Arc<Self>, path: &Path, shutdown: Shutdown) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        // One that a killed process left; the state directory's lock says that nobody else serves there.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        let (ranges, socket) = (Arc::clone(self), Socket(path.to_owned()));
        self.tasks.spawn("ranges on this host", OnFailure::Log, async move {
            let _socket = socket;
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.wait() => return Ok::<_, Infallible>(()),
                };
                let Some((stream, turn)) = ranges.admitted(accepted.map(|(stream, _)| stream)).await else { continue };
                let (ranges, ending) = (Arc::clone(&ranges), shutdown.clone());
                ranges.clone().tasks.spawn("range connection", OnFailure::Log, async move {
                    ranges.connection(stream, turn, ending).await;
                    Ok::<_, Infallible>(())
                });
            }
        });
        Ok(())
    }

    /// A connection that may stay.
    async fn admitted<S>(&self, accepted: std::io::Result<S>) -> Option<(S, OwnedSemaphorePermit)> {
        match accepted {
            Ok(stream) => match Arc::clone(&self.connections).try_acquire_owned() {
                Ok(turn) => Some((stream, turn)),
                Err(_) => {
                    tracing::warn!(RANGE_CONNECTIONS_MAX, "too many range connections: this one is closed");
                    None
                }
            },
            Err(error) => {
                tracing::warn!(%error, "a range connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        }
    }

    async fn connection<S>(&self, stream: S, _turn: OwnedSemaphorePermit, shutdown: Shutdown)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(answer::Patient::new(stream, STALL)), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.wait() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a range connection ended");
        }
    }
}
