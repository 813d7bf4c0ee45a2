//! The seam as a client of another process's registry (`ingle.v1.Registry`).

use std::error::Error as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, Channel, ConnectError};
use ingle_proto::v1::registry_client::RegistryClient;
use ingle_proto::v1::watch_response::Kind;
use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, Problem, v1};
use tonic::{Response, Status, Streaming};

use crate::limits::{CALL_DEADLINE, WATCH_SILENCE_MAX, check_key, check_prefix, check_ttl, check_value};
use crate::seam::{
    Condition, Entry, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream,
};

/// A registry elsewhere. Clones share the connection, which mends itself.
#[derive(Debug, Clone)]
pub struct Remote {
    client: RegistryClient<Channel>,
    deadline: Duration,
}

impl Remote {
    /// Will connect to `endpoint` (`HOST:PORT`, `http://…`, `https://…`) on the first call. Must be called in a tokio
    /// runtime: the connection lives on it.
    ///
    /// # Errors
    /// [`ConnectError`] for settings that can't be used.
    pub fn connect(endpoint: &str, tls: &TlsConfig) -> Result<Self, ConnectError> {
        Ok(Self::over(grpc::connect_lazy(endpoint, tls, &grpc::ConnectOptions::default())?))
    }

    /// Over a connection that exists.
    #[must_use]
    pub fn over(channel: Channel) -> Self {
        let client = RegistryClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { client, deadline: CALL_DEADLINE }
    }

    /// Another deadline per call than [`CALL_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    async fn call<T>(
        &self,
        call: Call,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, MembershipError> {
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(call.error(&status)),
            Err(_) => Err(call.silent(format!("no answer within {:?}", self.deadline))),
        }
    }
}

/// What a failure means depends on what was asked: a read that failed has not happened, a write may have.
#[derive(Clone, Copy)]
struct Call {
    what: &'static str,
    writes: bool,
    lease: Option<LeaseId>,
}

impl Call {
    const fn read(what: &'static str) -> Self {
        Self { what, writes: false, lease: None }
    }

    const fn write(what: &'static str) -> Self {
        Self { what, writes: true, lease: None }
    }

    const fn on(self, lease: Option<LeaseId>) -> Self {
        Self { lease, ..self }
    }

    fn silent(self, reason: String) -> MembershipError {
        if self.writes {
            MembershipError::Unknown { what: self.what, reason }
        } else {
            MembershipError::Unavailable { what: self.what, reason }
        }
    }

    fn error(self, status: &Status) -> MembershipError {
        let reason = status.message().to_owned();
        if never_sent(status) {
            return MembershipError::Unavailable { what: self.what, reason };
        }
        let problem = Problem::from_status(status);
        match (problem.code, self.lease) {
            (ErrorCode::LeaseNotFound, Some(lease)) => MembershipError::LeaseNotFound(lease),
            (ErrorCode::InvalidArgument, _) => MembershipError::Refused { what: self.what, reason },
            (ErrorCode::Overloaded, _) => MembershipError::Full { reason },
            (ErrorCode::StorageUnavailable | ErrorCode::Deadline | ErrorCode::Cancelled, _) => self.silent(reason),
            _ if status.source().is_some() => self.silent(reason),
            _ => MembershipError::Refused { what: self.what, reason },
        }
    }
}

/// Whether the connection was never made.
fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn required<T>(what: &'static str, field: &str, value: Option<T>) -> Result<T, MembershipError> {
    value.ok_or_else(|| MembershipError::Refused { what, reason: format!("the registry's answer lacks {field}") })
}

fn entry_from_wire(what: &'static str, wire: v1::RegistryEntry) -> Result<Entry, MembershipError> {
    let v1::RegistryEntry { key, value, created, modified, lease } = wire;
    Ok(Entry {
        key,
        value,
        created: required(what, "entry.created", created)?.into(),
        modified: required(what, "entry.modified", modified)?.into(),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}

fn outcome(what: &'static str, done: bool, revision: Option<v1::Revision>) -> Result<PutOutcome, MembershipError> {
    let revision = required(what, "revision", revision)?.into();
    Ok(if done { PutOutcome::Done(revision) } else { PutOutcome::Refused(revision) })
}

fn event_from_wire(wire: v1::WatchResponse) -> Result<Option<Event>, MembershipError> {
    const WHAT: &str = "watch";
    let kind = wire.kind();
    Ok(match kind {
        Kind::Put => Some(Event::Put(entry_from_wire(WHAT, required(WHAT, "entry", wire.entry)?)?)),
        Kind::Delete => Some(Event::Delete {
            key: required(WHAT, "entry", wire.entry)?.key,
            revision: required(WHAT, "revision", wire.revision)?.into(),
        }),
        Kind::Reset => Some(Event::Reset),
        Kind::Progress => Some(Event::Progress(required(WHAT, "revision", wire.revision)?.into())),
        // From a newer registry: what we don't know we can't miss.
        Kind::Unspecified => None,
    })
}

#[async_trait]
impl Membership for Remote {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError> {
        check_ttl(ttl)?;
        let call = Call::write("grant");
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let mut client = self.client.clone();
        let answer = self.call(call, client.grant(v1::GrantRequest { ttl_ms })).await?;
        Ok(LeaseId(required(call.what, "lease", (answer.lease != 0).then_some(answer.lease))?))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError> {
        // Renewing twice is renewing: what failed can simply be done again.
        let call = Call::read("keep_alive").on(Some(lease));
        let mut client = self.client.clone();
        let answer = self.call(call, client.keep_alive(v1::KeepAliveRequest { lease: lease.0 })).await?;
        Ok(Duration::from_millis(answer.ttl_ms))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError> {
        let mut client = self.client.clone();
        self.call(Call::write("revoke").on(Some(lease)), client.revoke(v1::RevokeRequest { lease: lease.0 })).await?;
        Ok(())
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        condition: Condition,
    ) -> Result<PutOutcome, MembershipError> {
        check_key(&key)?;
        check_value(&value)?;
        let call = Call::write("put").on(lease);
        let request = v1::PutRequest {
            key,
            value,
            lease: lease.map_or(0, |lease| lease.0),
            if_absent: condition == Condition::Absent,
            if_revision: revision_of(condition),
        };
        let mut client = self.client.clone();
        let answer = self.call(call, client.put(request)).await?;
        outcome(call.what, answer.done, answer.revision)
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        check_key(&key)?;
        if condition == Condition::Absent {
            return Err(MembershipError::invalid("condition", "can't be absence: there would be nothing to delete"));
        }
        let call = Call::write("delete");
        let mut client = self.client.clone();
        let request = v1::DeleteRequest { key, if_revision: revision_of(condition) };
        let answer = self.call(call, client.delete(request)).await?;
        outcome(call.what, answer.done, answer.revision)
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        check_prefix(&prefix)?;
        let call = Call::read("list");
        let mut client = self.client.clone();
        let answer = self.call(call, client.list(v1::RegistryListRequest { prefix })).await?;
        let entries: Result<_, _> = answer.entries.into_iter().map(|entry| entry_from_wire(call.what, entry)).collect();
        Ok(Listing { revision: required(call.what, "revision", answer.revision)?.into(), entries: entries? })
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        check_prefix(&prefix)?;
        let mut client = self.client.clone();
        let request = v1::WatchRequest { prefix, after: Some(after.into()) };
        let events = self.call(Call::read("watch"), client.watch(request)).await?;
        Ok(Box::pin(stream::unfold(Some(events), |events| async move {
            let mut events = events?;
            match next(&mut events).await {
                Ok(Event::Reset) => Some((Ok(Event::Reset), None)),
                Ok(event) => Some((Ok(event), Some(events))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }
}

fn revision_of(condition: Condition) -> Option<v1::Revision> {
    match condition {
        Condition::Revision(revision) => Some(revision.into()),
        Condition::Always | Condition::Absent => None,
    }
}

async fn next(events: &mut Streaming<v1::WatchResponse>) -> Result<Event, MembershipError> {
    let broken = |reason: String| MembershipError::Unavailable { what: "watch", reason };
    loop {
        let message = tokio::time::timeout(WATCH_SILENCE_MAX, events.message())
            .await
            .map_err(|_| broken(format!("silent for {WATCH_SILENCE_MAX:?}")))?
            .map_err(|status| broken(status.message().to_owned()))?
            .ok_or_else(|| broken("the registry ended it".to_owned()))?;
        if let Some(event) = event_from_wire(message)? {
            return Ok(event);
        }
    }
}
