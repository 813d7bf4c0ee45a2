//! gRPC as we serve and call it: bounds that tonic leaves open, keepalive, windows for bulk, reflection, health, traces.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server, ServerTlsConfig};
use tower::Service;
use tower::layer::util::{Identity, Stack};

use crate::config::TlsConfig;
use crate::tls::{TlsError, client_tls};
use crate::trace::{self, ServerTraceLayer};

/// Flow-control window of a stream, in bytes: bulk data comes in chunks of a mebibyte.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of a connection, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bound on a request's headers, in bytes.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

/// Bounds of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// Streams open at once on a connection; further ones are refused by HTTP/2.
    pub concurrent_streams: u32,
    /// Requests worked on at once for a connection; further ones wait.
    pub concurrent_requests_per_connection: usize,
    /// How often an idle peer is asked whether it is there.
    pub keepalive: Duration,
    /// How long it may take to answer that.
    pub keepalive_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            concurrent_streams: 1024,
            concurrent_requests_per_connection: 1024,
            keepalive: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// A server builder with bounds and the trace layer in place; add services to it.
pub type ServerBuilder = Server<Stack<ServerTraceLayer, Identity>>;

/// Starts a server. There is no timeout per request, because streams live long: handlers bound their own work.
///
/// # Errors
/// [`ConnectError::Tls`] if rustls refuses the certificate and key together.
pub fn server(limits: &ServerLimits, tls: Option<ServerTlsConfig>) -> Result<ServerBuilder, ConnectError> {
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).map_err(|error| ConnectError::Tls(crate::tasks::describe(&error)))?;
    }
    Ok(server
        .max_concurrent_streams(limits.concurrent_streams)
        .concurrency_limit_per_connection(limits.concurrent_requests_per_connection)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        // Bounds on the rapid-reset attack.
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_local_error_reset_streams(Some(256))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .layer(ServerTraceLayer))
}

/// Binds a listener for gRPC.
///
/// # Errors
/// What the system said, with the address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    crate::sockets::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("gRPC address {address}: {error}")))
}

/// Connections of a listener, for `serve_with_incoming_shutdown`; `TCP_NODELAY` is on.
#[must_use]
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(Duration::from_secs(60)))
}

/// The reflection services (v1 and v1alpha) over encoded descriptor sets and those of health.
///
/// # Panics
/// If a descriptor set, which is made at build time, isn't one.
pub fn reflection(
    descriptors: &[&'static [u8]],
) -> (
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection + use<>>,
    tonic_reflection::server::v1alpha::ServerReflectionServer<
        impl tonic_reflection::server::v1alpha::ServerReflection + use<>,
    >,
) {
    let builder = || {
        descriptors.iter().fold(
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET),
            |builder, set| builder.register_encoded_file_descriptor_set(set),
        )
    };
    (
        builder().build_v1().expect("descriptors are made by our build script and decode"),
        builder().build_v1alpha().expect("descriptors are made by our build script and decode"),
    )
}

/// The health service and the handle that sets it.
pub fn health() -> (
    tonic_health::server::HealthReporter,
    tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) {
    tonic_health::server::health_reporter()
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Don't connect before the first call; then [`connect`] fails only on bad settings.
    pub lazy: bool,
    /// Bound on TCP and TLS.
    pub connect_timeout: Duration,
    /// How often the peer is asked whether it is there, also when idle.
    pub keepalive: Duration,
    /// How long it may take to answer that before the connection counts as broken.
    pub keepalive_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            lazy: true,
            connect_timeout: Duration::from_secs(3),
            keepalive: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

impl ConnectOptions {
    /// Connects before answering.
    #[must_use]
    pub fn eager() -> Self {
        Self { lazy: false, ..Self::default() }
    }
}

/// No connection, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Not an endpoint.
    #[error("`{endpoint}` is not an endpoint: {reason}; expected HOST:PORT, http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Plaintext to another machine.
    #[error("`{endpoint}` is on another machine and would be spoken to in plaintext: set tls.ca, tls.cert and tls.key")]
    Plaintext {
        /// As given.
        endpoint: String,
    },
    /// The TLS files can't be used.
    #[error(transparent)]
    TlsFiles(#[from] TlsError),
    /// rustls refuses the files.
    #[error("TLS: {0}")]
    Tls(String),
    /// It doesn't answer.
    #[error("`{endpoint}` can't be reached: {reason}")]
    Unreachable {
        /// As given.
        endpoint: String,
        /// What the transport said.
        reason: String,
    },
}

impl ConnectError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A connection to a daemon that carries the current span's trace context with every call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channel(tonic::transport::Channel);

impl Channel {
    /// The connection without trace context, for code that takes tonic's own type.
    #[must_use]
    pub fn into_inner(self) -> tonic::transport::Channel {
        self.0
    }
}

impl From<tonic::transport::Channel> for Channel {
    fn from(channel: tonic::transport::Channel) -> Self {
        Self(channel)
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = tonic::transport::channel::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        trace::inject(request.headers_mut());
        self.0.call(request)
    }
}

/// Connects to a daemon, with TLS where `tls.ca` is set. It reconnects by itself. Must be called in a tokio runtime,
/// on which the connection then lives.
///
/// # Errors
/// [`ConnectError`]; only [`ConnectError::Unreachable`] is worth another try.
pub async fn connect(endpoint: &str, tls: &TlsConfig, options: &ConnectOptions) -> Result<Channel, ConnectError> {
    let target = self::endpoint(endpoint, tls, options)?;
    if options.lazy {
        return Ok(Channel(target.connect_lazy()));
    }
    let channel = target.connect().await.map_err(|error| ConnectError::Unreachable {
        endpoint: endpoint.to_owned(),
        reason: crate::tasks::describe(&error),
    })?;
    Ok(Channel(channel))
}

/// [`connect`] on the first call; needs no await.
///
/// # Errors
/// [`ConnectError`] for settings that can't be used.
pub fn connect_lazy(endpoint: &str, tls: &TlsConfig, options: &ConnectOptions) -> Result<Channel, ConnectError> {
    Ok(Channel(self::endpoint(endpoint, tls, options)?.connect_lazy()))
}

fn endpoint(endpoint: &str, tls: &TlsConfig, options: &ConnectOptions) -> Result<Endpoint, ConnectError> {
    let bad = |reason: &str| ConnectError::Endpoint { endpoint: endpoint.to_owned(), reason: reason.to_owned() };
    let tls = client_tls(tls)?;
    let secure = tls.is_some();
    let (scheme, authority) = endpoint.split_once("://").unwrap_or((if secure { "https" } else { "http" }, endpoint));
    let uri: http::Uri = format!("{scheme}://{authority}").parse().map_err(|_| bad("it can't be parsed"))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("it has no host"))?;
    if uri.port_u16().is_none() {
        return Err(bad("it has no port"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("it has a path"));
    }
    match (scheme, secure) {
        ("https", true) => {}
        ("http", _) if is_loopback(host) => {}
        ("http", _) => return Err(ConnectError::Plaintext { endpoint: endpoint.to_owned() }),
        ("https", false) => {
            return Err(ConnectError::Tls(format!(
                "`{endpoint}` needs tls.ca, the authority its certificate is checked by"
            )));
        }
        _ => return Err(bad("its scheme is unknown")),
    }
    let mut target = Endpoint::from(uri.clone())
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(60)))
        .http2_keep_alive_interval(options.keepalive)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    if scheme == "https"
        && let Some(tls) = tls
    {
        target = target.tls_config(tls).map_err(|error| ConnectError::Tls(crate::tasks::describe(&error)))?;
    }
    Ok(target)
}

/// Whether a host is this machine by its very name; nothing is looked up.
fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
