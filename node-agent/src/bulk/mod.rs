//! Ranges of files over the gateway's HTTP/1.1 endpoint: the way for weights, several connections at once.
//!
//! Where the endpoint is the gateway says over gRPC; over a socket of the file system where both share a host. Whoever
//! answers there must be that very process: else the other way is taken, and in the end gRPC.

mod http;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ingle_daemon::config::TlsConfig;
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::{ErrorCode, Problem, v1};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use prost::Message as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, rustls};
use tokio_util::task::AbortOnDropHandle;

use crate::limits::{BULK_IDLE_MAX, STORAGE_ANSWER};
use http::{Broken, Head, Wire};

/// Longest that a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Least pace of a body, in bytes per second: bounds a range together with [`STORAGE_ANSWER`].
const PACE_MIN: u64 = 256 << 10;

/// A record of TLS.
const TLS_AT_ONCE: u64 = 16 << 10;

/// Part of a file.
#[derive(Debug)]
pub struct Part {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Which version of the file: ask for the next part of this one.
    pub etag: String,
    /// The file's size.
    pub size: u64,
    /// Its last change.
    pub mtime_ns: i64,
}

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The file.
    pub object: &'a v1::ObjectRef,
    /// In whose name.
    pub token: Option<&'a v1::AttemptToken>,
    /// From where.
    pub offset: u64,
    /// How much, at least 1.
    pub length: u64,
    /// Of this version alone.
    pub etag: Option<&'a str>,
    /// It will be wanted again: the gateway keeps it.
    pub lasting: bool,
}

/// Where a gateway serves ranges.
#[derive(Debug, Clone)]
struct Served {
    port: u16,
    tls: bool,
    socket: Option<PathBuf>,
    instance: String,
}

struct Connection {
    wire: Box<dyn Wire>,
    /// Who must answer.
    instance: String,
    /// Over a socket of this host.
    local: bool,
    /// Bytes that one call may bring.
    at_once: u64,
}

/// The range endpoint of one gateway. Clones share its connections.
#[derive(Clone)]
pub struct Bulk(Arc<Inner>);

struct Inner {
    host: String,
    tls: Option<TlsConnector>,
    /// Says where ranges are served; none where that is known.
    client: Option<StorageClient<ingle_daemon::grpc::Channel>>,
    served: tokio::sync::Mutex<Option<Served>>,
    idle: Mutex<Vec<Connection>>,
    /// Idle connections that turned out to be closed.
    given_up: AtomicU64,
}

/// What came of a request: the body, or the problem that the gateway told.
struct Answer {
    connection: Connection,
    head: Head,
    outcome: Result<Vec<u8>, Problem>,
}

/// Asks, and reads the answer into `buffer`, on a task of its own that ends with the caller: connections side by side then
/// use several cores, for TLS decrypts, and the kernel copies, on the thread that reads.
#[allow(clippy::disallowed_methods, reason = "the handle owns the task, and ends it when dropped")]
async fn exchange(
    mut connection: Connection,
    request: Arc<str>,
    most: u64,
    mut buffer: Vec<u8>,
) -> Result<Result<Answer, Broken>, Problem> {
    let exchanged = tokio::spawn(async move {
        buffer.clear();
        let wire = &mut *connection.wire;
        let mut head = http::ask(wire, &request, &mut buffer).await?;
        let outcome = if head.instance != connection.instance {
            // Whoever that is: nothing of it is read.
            Ok(Vec::new())
        } else if !matches!(head.status, 200 | 206) {
            Err(http::problem(wire, &mut head, buffer).await)
        } else if head.length > most {
            let words = format!("{} bytes announced where {most} were asked for", head.length);
            return Err(Broken::Middle(words));
        } else {
            http::rest(wire, &head, connection.at_once, &mut buffer).await?;
            Ok(buffer)
        };
        Ok(Answer { connection, head, outcome })
    });
    let ended = AbortOnDropHandle::new(exchanged).await;
    ended.map_err(|error| Problem::new(ErrorCode::Internal, format!("reading a range failed: {error}")))
}

fn unavailable(words: String) -> Problem {
    Problem::new(ErrorCode::StorageUnavailable, words)
}

impl Bulk {
    /// Of the gateway at a gRPC endpoint. Opens nothing.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for certificates that can't be used.
    pub fn new(
        endpoint: &str,
        tls: &TlsConfig,
        client: StorageClient<ingle_daemon::grpc::Channel>,
    ) -> Result<Self, Problem> {
        let tls = ingle_daemon::tls::client_config(tls).map_err(|error| Problem::invalid("tls", error))?;
        let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        Ok(Self(Arc::new(Inner {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            tls: tls.map(TlsConnector::from),
            client: Some(client),
            served: tokio::sync::Mutex::default(),
            idle: Mutex::default(),
            given_up: AtomicU64::new(0),
        })))
    }

    /// Of any server of ranges at an address; who answers there isn't asked for its name.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        let served = Served { port: address.port(), tls: false, socket: None, instance: String::new() };
        Self(Arc::new(Inner {
            host: address.ip().to_string(),
            tls: None,
            client: None,
            served: tokio::sync::Mutex::new(Some(served)),
            idle: Mutex::default(),
            given_up: AtomicU64::new(0),
        }))
    }

    /// How many idle connections turned out to be closed when they were used again.
    #[must_use]
    pub fn given_up(&self) -> u64 {
        self.0.given_up.load(Ordering::Relaxed)
    }

    /// Reads a part of a file into `buffer`, which is emptied first. `UNIMPLEMENTED` where the gateway serves no ranges.
    ///
    /// # Errors
    /// What the gateway said; `OBJECT_CHANGED` if the file is another version; `STORAGE_UNAVAILABLE` if it can't be reached.
    pub async fn part(&self, wanted: Wanted<'_>, mut buffer: Vec<u8>) -> Result<Part, Problem> {
        let request: Arc<str> = self.request(wanted).into();
        let bound = STORAGE_ANSWER + Duration::from_secs(wanted.length / PACE_MIN);
        let read = async {
            let mut fresh = false;
            loop {
                let (connection, reused) = self.connection(fresh).await?;
                match exchange(connection, Arc::clone(&request), wanted.length, std::mem::take(&mut buffer)).await? {
                    // It was closed while it was idle.
                    Err(Broken::Stale) if reused => {
                        self.0.given_up.fetch_add(1, Ordering::Relaxed);
                        fresh = true;
                    }
                    Err(Broken::Stale) => {
                        self.forget().await;
                        return Err(unavailable("the gateway ended the connection without an answer".to_owned()));
                    }
                    Err(Broken::Middle(words)) => return Err(unavailable(words)),
                    Ok(answer) => return self.taken(answer).await,
                }
            }
        };
        tokio::time::timeout(bound, read)
            .await
            .unwrap_or_else(|_| Err(unavailable(format!("no range came within {} s", bound.as_secs()))))
    }

    async fn taken(&self, Answer { connection, head, outcome }: Answer) -> Result<Part, Problem> {
        if head.instance != connection.instance {
            if connection.local {
                // Two gateways with the same settings on two hosts: this host's is another one.
                self.0.served.lock().await.iter_mut().for_each(|served| served.socket = None);
                self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            } else {
                self.forget().await;
            }
            return Err(unavailable(
                "another process answers where the gateway served ranges; it is asked again".into(),
            ));
        }
        self.keep(connection, &head);
        let size = head.size.unwrap_or(head.length);
        outcome.map(|bytes| Part { bytes, etag: head.etag, size, mtime_ns: head.mtime_ns })
    }

    fn request(&self, wanted: Wanted<'_>) -> String {
        let encoded = |bytes: &[u8]| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
        let path: Vec<String> = wanted.object.path.split(|byte| *byte == b'/').map(encoded).collect();
        let mut request = format!(
            "GET /objects/{}/{} HTTP/1.1\r\nhost: {}\r\nrange: bytes={}-{}\r\n",
            encoded(wanted.object.export.as_bytes()),
            path.join("/"),
            self.0.host,
            wanted.offset,
            wanted.offset + wanted.length.max(1) - 1
        );
        if let Some(token) = wanted.token {
            request.push_str(&format!("ingle-token: {}\r\n", STANDARD.encode(token.encode_to_vec())));
        }
        if let Some(etag) = wanted.etag {
            request.push_str(&format!("if-match: \"{etag}\"\r\n"));
        }
        if wanted.lasting {
            request.push_str("ingle-lasting: 1\r\n");
        }
        if let Some(traceparent) = ingle_daemon::trace::current_traceparent() {
            request.push_str(&format!("traceparent: {traceparent}\r\n"));
        }
        request.push_str("\r\n");
        request
    }

    /// An idle connection, or a new one; whether it was idle.
    async fn connection(&self, fresh: bool) -> Result<(Connection, bool), Problem> {
        let idle = if fresh { None } else { self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() };
        if let Some(connection) = idle {
            return Ok((connection, true));
        }
        let served = self.served().await?;
        let instance = served.instance.clone();
        let opened = tokio::time::timeout(CONNECT_MAX, self.open(&served)).await;
        match opened.unwrap_or_else(|_| Err(format!("nothing within {} s", CONNECT_MAX.as_secs()))) {
            Ok((wire, local)) => {
                let at_once = if served.tls && !local { TLS_AT_ONCE } else { u64::MAX };
                Ok((Connection { wire, instance, local, at_once }, false))
            }
            Err(why) => {
                self.forget().await;
                let (host, port) = (&self.0.host, served.port);
                Err(unavailable(format!("the gateway's range endpoint {host}:{port} can't be reached: {why}")))
            }
        }
    }

    /// A connection, and whether it is over a socket of this host.
    async fn open(&self, served: &Served) -> Result<(Box<dyn Wire>, bool), String> {
        if let Some(socket) = &served.socket
            // Another host's path leads nowhere here, or to somebody whose answers don't carry the gateway's name.
            && let Ok(stream) = UnixStream::connect(socket).await
        {
            return Ok((Box::new(stream), true));
        }
        let stream =
            TcpStream::connect((self.0.host.as_str(), served.port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match (served.tls, &self.0.tls) {
            (false, _) => Ok((Box::new(stream), false)),
            (true, None) => Err("it speaks TLS, and tls.ca isn't set here".to_owned()),
            (true, Some(connector)) => {
                let name = rustls::pki_types::ServerName::try_from(self.0.host.clone()).map_err(|e| e.to_string())?;
                let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
                Ok((Box::new(stream), false))
            }
        }
    }

    async fn served(&self) -> Result<Served, Problem> {
        let mut known = self.0.served.lock().await;
        if let Some(served) = &*known {
            return Ok(served.clone());
        }
        let Some(mut client) = self.0.client.clone() else {
            return Err(unavailable("the server of ranges is gone".to_owned()));
        };
        let answer = tokio::time::timeout(CONNECT_MAX, client.ranges(v1::RangesRequest {})).await;
        let answer = answer.map_err(|_| unavailable("the gateway doesn't say where it serves ranges".to_owned()))?;
        let told = answer.map_err(|status| Problem::from_status(&status))?.into_inner();
        let nowhere = || Problem::new(ErrorCode::Unimplemented, "the gateway serves no ranges over HTTP");
        let port = u16::try_from(told.port).ok().filter(|port| *port > 0).ok_or_else(nowhere)?;
        let socket = (!told.unix_socket.is_empty()).then(|| PathBuf::from(told.unix_socket));
        // Plaintext goes to this machine alone, as with gRPC.
        if !told.tls && self.0.tls.is_some() {
            return Err(nowhere());
        }
        let served = Served { port, tls: told.tls, socket, instance: told.instance };
        Ok(known.insert(served).clone())
    }

    async fn forget(&self) {
        *self.0.served.lock().await = None;
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, connection: Connection, head: &Head) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !head.last && idle.len() < BULK_IDLE_MAX {
            idle.push(connection);
        }
    }
}
