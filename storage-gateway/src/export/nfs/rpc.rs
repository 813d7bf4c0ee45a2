//! One RPC connection with many calls in flight: matched by xid, each with a deadline, ended together when it breaks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use nfs3_types::rpc::{
    RPC_VERSION_2, accept_stat, auth_flavor, auth_stat, call_body, msg_body, msg_type, opaque_auth, reject_stat,
    reply_stat, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack};
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::record;
use super::xdr::{Malformed, Reader, put};

/// Calls in flight on one connection; more wait their turn within their deadline.
pub(crate) const IN_FLIGHT_MAX: usize = 32;
/// Calls that wait are sent together up to this size.
const TOGETHER_BYTES: usize = 16 << 10;
/// Small replies come several with one system call; of a big one no more than this is copied once more.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Longest verifier in a reply (RFC 5531: 400 bytes).
const AUTH_BYTES_MAX: usize = 400;

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RpcError {
    /// It was never sent.
    #[error("{0}")]
    NotSent(String),
    /// It was sent, or may have been, and nobody knows whether it was carried out.
    #[error("{0}")]
    Lost(String),
    /// The server sent something that isn't RPC, or isn't what was asked.
    #[error("{0}")]
    Malformed(String),
    /// The server doesn't have that program.
    #[error("the server doesn't offer this program")]
    ProgramUnavailable,
    /// It has the program in other versions.
    #[error("the server offers versions {low} to {high} of this program")]
    VersionMismatch {
        /// Oldest.
        low: u32,
        /// Newest.
        high: u32,
    },
    /// It has the program, but not this procedure.
    #[error("the server doesn't offer this procedure")]
    ProcedureUnavailable,
    /// It can't read our arguments, or failed inside.
    #[error("the server answered {0}")]
    Refused(&'static str),
    /// It doesn't accept our credential.
    #[error("the server answered {0}")]
    Auth(auth_stat),
}

impl From<Malformed> for RpcError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What to call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Procedure {
    /// Program number.
    pub(crate) program: u32,
    /// Its version.
    pub(crate) version: u32,
    /// Number of the procedure.
    pub(crate) number: u32,
}

/// Calls waiting for replies.
struct Waiting {
    calls: HashMap<u32, oneshot::Sender<Result<Bytes, RpcError>>>,
    /// The xids given out so far are `first .. first + count`, wrapping.
    first: u32,
    count: u32,
    /// Set once, when the connection ended.
    closed: Option<RpcError>,
    heard: Instant,
}

type Shared = Arc<Mutex<Waiting>>;

fn lock(waiting: &Shared) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends every waiting call and all later ones.
fn close(waiting: &Shared, reason: &RpcError) {
    let calls = {
        let mut waiting = lock(waiting);
        if waiting.closed.is_some() {
            return;
        }
        waiting.closed = Some(reason.clone());
        std::mem::take(&mut waiting.calls)
    };
    for (_, reply) in calls {
        let _ = reply.send(Err(reason.clone()));
    }
}

/// A call on its way: what was encoded for it, and data that follows as it is.
struct Outgoing {
    head: Vec<u8>,
    data: Bytes,
}

impl Outgoing {
    /// XDR fills opaque data up to whole words.
    fn padding(&self) -> &'static [u8] {
        &[0; 3][..self.data.len().next_multiple_of(4) - self.data.len()]
    }
}

/// A connection. Dropping it ends its two tasks.
pub(crate) struct Connection {
    waiting: Shared,
    outbox: mpsc::Sender<Outgoing>,
    permits: Semaphore,
    /// The reader and the writer. One that fails leaves its calls to their deadlines, and the connection is given up.
    _tasks: JoinSet<()>,
}

/// Forgets a call that nobody waits for any more.
struct Forget<'a> {
    waiting: &'a Shared,
    xid: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).calls.remove(&self.xid);
    }
}

impl Connection {
    /// Takes over a stream.
    pub(crate) fn new(stream: TcpStream) -> Self {
        let first = fastrand::u32(..);
        let waiting = Arc::new(Mutex::new(Waiting {
            calls: HashMap::new(),
            first,
            count: 0,
            closed: None,
            heard: Instant::now(),
        }));
        let (input, mut output) = stream.into_split();
        let (outbox, mut queue) = mpsc::channel::<Outgoing>(IN_FLIGHT_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let waiting = waiting.clone();
            async move {
                while let Some(mut next) = queue.recv().await {
                    // What waits goes with one system call: most calls are a few hundred bytes.
                    while next.data.is_empty()
                        && next.head.len() < TOGETHER_BYTES
                        && let Ok(after) = queue.try_recv()
                    {
                        next.head.extend_from_slice(&after.head);
                        next.data = after.data;
                    }
                    let padding = next.padding();
                    let mut whole = next.head.chain(next.data).chain(padding);
                    if let Err(error) = output.write_all_buf(&mut whole).await {
                        close(&waiting, &RpcError::Lost(format!("the connection broke: {error}")));
                        return;
                    }
                }
            }
        });
        tasks.spawn({
            let waiting = waiting.clone();
            async move {
                let mut input = BufReader::with_capacity(READ_BUFFER_BYTES, input);
                let reason = loop {
                    match record::read(&mut input).await {
                        Ok(Some(record)) => {
                            if let Err(error) = deliver(&waiting, record) {
                                break RpcError::Malformed(error.to_string());
                            }
                        }
                        Ok(None) => break RpcError::Lost("the server closed the connection".to_owned()),
                        Err(error @ record::RecordError::Broken(_)) => break RpcError::Lost(error.to_string()),
                        Err(error) => break RpcError::Malformed(error.to_string()),
                    }
                };
                close(&waiting, &reason);
            }
        });
        Self { waiting, outbox, permits: Semaphore::new(IN_FLIGHT_MAX), _tasks: tasks }
    }

    /// Whether it ended.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.waiting).closed.is_some()
    }

    /// Calls and waits for the result's bytes, at most `deadline`. `data` is opaque data that ends the arguments: its length
    /// stands in them already, and it is sent from where it lies.
    pub(crate) async fn call(
        &self,
        procedure: Procedure,
        credential: &opaque_auth<'_>,
        arguments: &(impl Pack + Sync),
        data: &Bytes,
        deadline: Duration,
    ) -> Result<Bytes, RpcError> {
        let begun = Instant::now();
        let late = || format!("no reply within {} ms", deadline.as_millis());
        let until = tokio::time::Instant::from_std(begun + deadline);
        let Ok(permit) = tokio::time::timeout_at(until, self.permits.acquire()).await else {
            return Err(RpcError::NotSent(format!("{}: {IN_FLIGHT_MAX} calls are before it", late())));
        };
        let _permit = permit.expect("the semaphore is never closed");
        let (sender, receiver) = oneshot::channel();
        let xid = {
            let mut waiting = lock(&self.waiting);
            if let Some(reason) = &waiting.closed {
                return Err(RpcError::NotSent(reason.to_string()));
            }
            let xid = waiting.first.wrapping_add(waiting.count);
            waiting.count = waiting.count.wrapping_add(1);
            waiting.calls.insert(xid, sender);
            xid
        };
        let _forget = Forget { waiting: &self.waiting, xid };
        let head = encode(xid, procedure, credential, arguments, data.len().next_multiple_of(4));
        let outgoing = Outgoing { head, data: data.clone() };
        match tokio::time::timeout_at(until, self.outbox.send(outgoing)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(RpcError::NotSent("the connection broke".to_owned())),
            Err(_) => {
                // The server takes no bytes: nothing will come of this connection.
                close(&self.waiting, &RpcError::Lost("the server stopped reading".to_owned()));
                return Err(RpcError::NotSent(late()));
            }
        }
        match tokio::time::timeout_at(until, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(RpcError::Lost("the connection ended".to_owned())),
            Err(_) => {
                // Slow for this call, or dead? Not a byte in all that time means dead.
                if lock(&self.waiting).heard < begun {
                    close(&self.waiting, &RpcError::Lost("the server fell silent".to_owned()));
                }
                Err(RpcError::Lost(late()))
            }
        }
    }
}

fn encode(xid: u32, to: Procedure, credential: &opaque_auth<'_>, arguments: &impl Pack, following: usize) -> Vec<u8> {
    let cred = opaque_auth { flavor: credential.flavor, body: Opaque::borrowed(credential.body.as_ref()) };
    let call = call_body {
        rpcvers: RPC_VERSION_2,
        prog: to.program,
        vers: to.version,
        proc: to.number,
        cred,
        verf: opaque_auth { flavor: auth_flavor::AUTH_NULL, body: Opaque::borrowed(&[]) },
    };
    let message = rpc_msg { xid, body: msg_body::CALL(call) };
    let mut out = record::begin(message.packed_size() + arguments.packed_size());
    put(&mut out, &message);
    put(&mut out, arguments);
    record::seal_before(&mut out, following);
    out
}

/// Hands a reply to its call. An error means that the other side doesn't speak RPC: the connection must end.
fn deliver(waiting: &Shared, record: Bytes) -> Result<(), Malformed> {
    let mut reader = Reader::new(record);
    let xid = reader.u32()?;
    if reader.take::<msg_type>()? != msg_type::REPLY {
        return Err(Malformed("a call where a reply was expected".to_owned()));
    }
    let call = {
        let mut waiting = lock(waiting);
        waiting.heard = Instant::now();
        if xid.wrapping_sub(waiting.first) >= waiting.count {
            return Err(Malformed(format!("a reply to xid {xid:#x}, which was never sent")));
        }
        waiting.calls.remove(&xid)
    };
    // A reply that comes after its call gave up is nobody's.
    if let Some(call) = call {
        let _ = call.send(result(reader));
    }
    Ok(())
}

/// What the reply says.
fn result(mut reader: Reader) -> Result<Bytes, RpcError> {
    match reader.take::<reply_stat>()? {
        reply_stat::MSG_ACCEPTED => {
            let _flavor = reader.u32()?;
            let _verifier = reader.opaque(AUTH_BYTES_MAX)?;
            match reader.take::<accept_stat>()? {
                accept_stat::SUCCESS => Ok(reader.rest().clone()),
                accept_stat::PROG_UNAVAIL => Err(RpcError::ProgramUnavailable),
                accept_stat::PROG_MISMATCH => {
                    Err(RpcError::VersionMismatch { low: reader.u32()?, high: reader.u32()? })
                }
                accept_stat::PROC_UNAVAIL => Err(RpcError::ProcedureUnavailable),
                accept_stat::GARBAGE_ARGS => Err(RpcError::Refused("GARBAGE_ARGS")),
                accept_stat::SYSTEM_ERR => Err(RpcError::Refused("SYSTEM_ERR")),
            }
        }
        reply_stat::MSG_DENIED => match reader.take::<reject_stat>()? {
            reject_stat::RPC_MISMATCH => Err(RpcError::Refused("RPC_MISMATCH")),
            reject_stat::AUTH_ERROR => Err(RpcError::Auth(reader.take()?)),
        },
    }
}
