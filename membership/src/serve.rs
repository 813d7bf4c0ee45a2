//! The seam over gRPC (`ingle.v1.Registry`): checks what arrives, bounds the watches, and ends them at shutdown.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use ingle_daemon::Shutdown;
use ingle_proto::v1::{self, registry_server};
use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, Problem};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::limits::{CALL_DEADLINE, WATCHERS_MAX};
use crate::seam::{Condition, Entry, Event, LeaseId, Membership, MembershipError, PutOutcome, Revision};

/// Serves a store of members to others.
pub struct RegistryService {
    membership: Arc<dyn Membership>,
    shutdown: Shutdown,
    watchers: Arc<Semaphore>,
}

impl RegistryService {
    /// Over any store; watches end when `shutdown` begins.
    #[must_use]
    pub fn new(membership: Arc<dyn Membership>, shutdown: Shutdown) -> Self {
        Self { membership, shutdown, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }

    /// As a tonic service, with our message bound.
    #[must_use]
    pub fn into_server(self) -> registry_server::RegistryServer<Self> {
        registry_server::RegistryServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl From<MembershipError> for Problem {
    fn from(error: MembershipError) -> Self {
        match &error {
            MembershipError::Invalid { field, reason } => Self::invalid(*field, reason),
            MembershipError::LeaseNotFound(_) => Self::new(ErrorCode::LeaseNotFound, error.to_string()),
            MembershipError::Full { .. } => {
                Self::new(ErrorCode::Overloaded, error.to_string()).retry_after(Duration::from_secs(5))
            }
            MembershipError::Unavailable { .. } => Self::new(ErrorCode::StorageUnavailable, error.to_string()),
            MembershipError::Unknown { .. } => Self::new(ErrorCode::Deadline, error.to_string()),
            MembershipError::Refused { .. } => Self::new(ErrorCode::Internal, error.to_string()),
        }
    }
}

fn fail(error: MembershipError) -> Status {
    Problem::from(error).into()
}

impl From<v1::Revision> for Revision {
    fn from(wire: v1::Revision) -> Self {
        Self { epoch: wire.epoch, counter: wire.counter }
    }
}

impl From<Revision> for v1::Revision {
    fn from(revision: Revision) -> Self {
        Self { epoch: revision.epoch, counter: revision.counter }
    }
}

pub(crate) fn entry_to_wire(entry: Entry) -> v1::RegistryEntry {
    v1::RegistryEntry {
        key: entry.key,
        value: entry.value,
        created: Some(entry.created.into()),
        modified: Some(entry.modified.into()),
        lease: entry.lease.map_or(0, |lease| lease.0),
    }
}

fn event_to_wire(event: Event) -> v1::WatchResponse {
    use v1::watch_response::Kind;
    let revision = event.revision().map(Into::into);
    let (kind, entry) = match event {
        Event::Put(entry) => (Kind::Put, Some(entry_to_wire(entry))),
        Event::Delete { key, .. } => (Kind::Delete, Some(v1::RegistryEntry { key, ..Default::default() })),
        Event::Reset => (Kind::Reset, None),
        Event::Progress(_) => (Kind::Progress, None),
    };
    v1::WatchResponse { kind: kind.into(), entry, revision }
}

fn lease(id: u64) -> Result<LeaseId, Status> {
    if id == 0 {
        return Err(Problem::missing("lease").into());
    }
    Ok(LeaseId(id))
}

fn condition(if_absent: bool, if_revision: Option<v1::Revision>) -> Result<Condition, Status> {
    match (if_absent, if_revision) {
        (false, None) => Ok(Condition::Always),
        (true, None) => Ok(Condition::Absent),
        (false, Some(revision)) => Ok(Condition::Revision(revision.into())),
        (true, Some(_)) => {
            Err(Problem::invalid("if_revision", "can't hold together with if_absent: choose one").into())
        }
    }
}

fn outcome_to_wire(outcome: PutOutcome) -> (bool, Option<v1::Revision>) {
    match outcome {
        PutOutcome::Done(revision) => (true, Some(revision.into())),
        PutOutcome::Refused(revision) => (false, Some(revision.into())),
    }
}

/// Bounds a call: the store behind may be one that waits.
async fn within<T>(call: impl Future<Output = Result<T, MembershipError>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(answer) => answer.map_err(fail),
        Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("no answer within {CALL_DEADLINE:?}")).into()),
    }
}

#[tonic::async_trait]
impl registry_server::Registry for RegistryService {
    async fn grant(&self, request: Request<v1::GrantRequest>) -> Result<Response<v1::GrantResponse>, Status> {
        let ttl_ms = request.into_inner().ttl_ms;
        let granted = within(self.membership.grant(Duration::from_millis(ttl_ms))).await?;
        Ok(Response::new(v1::GrantResponse { lease: granted.0, ttl_ms }))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::KeepAliveResponse>, Status> {
        let left = within(self.membership.keep_alive(lease(request.into_inner().lease)?)).await?;
        let ttl_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(v1::KeepAliveResponse { ttl_ms }))
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        within(self.membership.revoke(lease(request.into_inner().lease)?)).await?;
        Ok(Response::new(v1::RevokeResponse {}))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let v1::PutRequest { key, value, lease, if_absent, if_revision } = request.into_inner();
        let condition = condition(if_absent, if_revision)?;
        let lease = (lease != 0).then_some(LeaseId(lease));
        let (done, revision) = outcome_to_wire(within(self.membership.put(key, value, lease, condition)).await?);
        Ok(Response::new(v1::PutResponse { done, revision }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { key, if_revision } = request.into_inner();
        let condition = condition(false, if_revision)?;
        let (done, revision) = outcome_to_wire(within(self.membership.delete(key, condition)).await?);
        Ok(Response::new(v1::DeleteResponse { done, revision }))
    }

    async fn list(
        &self,
        request: Request<v1::RegistryListRequest>,
    ) -> Result<Response<v1::RegistryListResponse>, Status> {
        let listing = within(self.membership.list(request.into_inner().prefix)).await?;
        Ok(Response::new(v1::RegistryListResponse {
            entries: listing.entries.into_iter().map(entry_to_wire).collect(),
            revision: Some(listing.revision.into()),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchRequest { prefix, after } = request.into_inner();
        let after = after.ok_or_else(|| Status::from(Problem::missing("after")))?;
        let place = Arc::clone(&self.watchers)
            .try_acquire_owned()
            .map_err(|_| fail(MembershipError::Full { reason: format!("{WATCHERS_MAX} watches are open") }))?;
        let events = within(self.membership.watch(prefix, after.into())).await?;
        let events = events.take_until(self.shutdown.wait()).map(move |event| {
            // Held until the stream is dropped.
            let _ = &place;
            event.map(event_to_wire).map_err(fail)
        });
        Ok(Response::new(Box::pin(events)))
    }
}
