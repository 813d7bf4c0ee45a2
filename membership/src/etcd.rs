//! The seam over etcd (3.4 and later): leases, guarded transactions, watches that survive compaction.
//!
//! etcd-client's lease keeper has neither deadline nor reconnection, and its `campaign()` leaves orphan leases behind:
//! neither is used. Reads are always linearizable.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, Error as EtcdError, EventType, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
    WatchOptions, WatchResponse,
};
use futures::stream;
use ingle_daemon::tasks::describe;
use tonic::Code;

use crate::connect::{ConnectError, ConnectOptions, etcd_endpoints};
use crate::limits::{PROGRESS_INTERVAL, WATCH_SILENCE_MAX, check_key, check_prefix, check_ttl, check_value};
use crate::seam::{
    Condition, Entry, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream,
};

/// Keys fetched at a time: even of the largest values they fit one message.
const LIST_PAGE_KEYS: i64 = 50;
/// Whole listings that may be cut short by compaction before we give up.
const LIST_ATTEMPTS: u32 = 3;

/// A cluster of etcd. Clones share the connections, which mend themselves.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    deadline: Duration,
}

/// A client of the hosts of `etcd://HOST[:PORT][,HOST…]`, with connections that mend themselves; with a user it signs in at
/// once. Must be called in a tokio runtime: the connections live on it. Its calls have no deadline of their own.
///
/// # Errors
/// [`ConnectError`] for settings that can't be used or a sign-in that fails.
pub async fn client(url: &str, options: &ConnectOptions) -> Result<Client, ConnectError> {
    let endpoints = etcd_endpoints(url, &options.tls)?;
    let mut settings = etcd_client::ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(3))
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    if let Some(tls) = ingle_daemon::tls::client_tls(&options.tls)? {
        settings = settings.with_tls(tls);
    }
    if let Some(credentials) = &options.etcd_user {
        settings =
            settings.with_user(credentials.user.clone(), credentials.password.clone()).with_auto_token_refresh(true);
    }
    let unreachable = |reason: String| ConnectError::Unreachable { url: url.to_owned(), reason };
    tokio::time::timeout(options.deadline, Client::connect(&endpoints, Some(settings)))
        .await
        .map_err(|_| unreachable(format!("no answer within {:?}", options.deadline)))?
        .map_err(|error| unreachable(describe(&error)))
}

impl Etcd {
    /// Will connect as [`client`] does.
    ///
    /// # Errors
    /// As [`client`].
    pub async fn connect(url: &str, options: &ConnectOptions) -> Result<Self, ConnectError> {
        Ok(Self { client: client(url, options).await?, deadline: options.deadline })
    }

    async fn call<T>(
        &self,
        call: Call,
        answer: impl Future<Output = Result<T, EtcdError>>,
    ) -> Result<T, MembershipError> {
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(call.error(error)),
            Err(_) => Err(call.silent(format!("no answer within {:?}", self.deadline))),
        }
    }

    async fn write(
        &self,
        call: Call,
        key: &Bytes,
        condition: Condition,
        operation: TxnOp,
    ) -> Result<PutOutcome, MembershipError> {
        let guard = match condition {
            Condition::Always => None,
            Condition::Absent => Some(Compare::create_revision(key.as_ref(), CompareOp::Equal, 0)),
            Condition::Revision(Revision { epoch: 0, counter }) => match i64::try_from(counter) {
                Ok(counter) if counter > 0 => Some(Compare::mod_revision(key.as_ref(), CompareOp::Equal, counter)),
                _ => return Ok(PutOutcome::Refused(Revision::default())),
            },
            // Of a registry that was here before etcd: nothing of etcd's can match it.
            Condition::Revision(_) => return Ok(PutOutcome::Refused(Revision::default())),
        };
        let transaction = Txn::new().when(guard.into_iter().collect::<Vec<_>>()).and_then([operation]);
        let mut client = self.client.kv_client();
        let answer = self.call(call, client.txn(transaction)).await?;
        let revision = revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        Ok(if answer.succeeded() { PutOutcome::Done(revision) } else { PutOutcome::Refused(revision) })
    }

    async fn list_once(&self, prefix: &Bytes) -> Result<Listing, MembershipError> {
        let call = Call::read("list");
        let end = prefix_end(prefix);
        let mut from = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
        let mut at = None;
        let mut entries = Vec::new();
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(LIST_PAGE_KEYS);
            if let Some(at) = at {
                options = options.with_revision(at);
            }
            let mut client = self.client.kv_client();
            let page = self.call(call, client.get(from.clone(), Some(options))).await?;
            let at = *at.get_or_insert(page.header().map_or(0, etcd_client::ResponseHeader::revision));
            entries.extend(page.kvs().iter().map(entry));
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(Listing { revision: revision(at), entries }),
            }
        }
    }
}

/// What a failure means depends on what was asked.
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

    fn error(self, error: EtcdError) -> MembershipError {
        let reason = describe(&error);
        match (&error, self.lease) {
            (EtcdError::GRpcStatus(status), Some(lease)) if status.code() == Code::NotFound => {
                MembershipError::LeaseNotFound(lease)
            }
            // How the client reports a renewal that was answered with no time left.
            (EtcdError::LeaseKeepAliveError(_), Some(lease)) if self.what == "keep_alive" => {
                MembershipError::LeaseNotFound(lease)
            }
            (EtcdError::GRpcStatus(status), _) => match status.code() {
                // NOSPACE and too many requests: nothing was done, and it may pass.
                Code::ResourceExhausted => MembershipError::Full { reason },
                // It has forgotten that we signed in, as after a restart: nothing was done, and the next call signs in anew.
                Code::Unauthenticated => MembershipError::Unavailable { what: self.what, reason },
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                    self.silent(reason)
                }
                _ => MembershipError::Refused { what: self.what, reason },
            },
            (EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_), _) => {
                MembershipError::Refused { what: self.what, reason }
            }
            _ => self.silent(reason),
        }
    }
}

fn revision(counter: i64) -> Revision {
    Revision { epoch: 0, counter: u64::try_from(counter).unwrap_or(0) }
}

/// Lease ids of etcd are positive.
fn lease_to_etcd(lease: LeaseId) -> Result<i64, MembershipError> {
    i64::try_from(lease.0).map_err(|_| MembershipError::LeaseNotFound(lease))
}

fn entry(kv: &KeyValue) -> Entry {
    Entry {
        key: Bytes::copy_from_slice(kv.key()),
        value: Bytes::copy_from_slice(kv.value()),
        created: revision(kv.create_revision()),
        modified: revision(kv.mod_revision()),
        lease: u64::try_from(kv.lease()).ok().filter(|id| *id != 0).map(LeaseId),
    }
}

/// The first key that doesn't start with `prefix`; a single NUL stands for the end of all keys.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[async_trait]
impl Membership for Etcd {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError> {
        check_ttl(ttl)?;
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let mut client = self.client.lease_client();
        let granted = self.call(Call::write("grant"), client.grant(seconds, None)).await?;
        match u64::try_from(granted.id()) {
            Ok(id) if id != 0 => Ok(LeaseId(id)),
            _ => Err(MembershipError::Refused { what: "grant", reason: "etcd granted a lease without a name".into() }),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError> {
        // Renewing twice is renewing: what failed can simply be done again.
        let call = Call::read("keep_alive").on(Some(lease));
        let id = lease_to_etcd(lease)?;
        let mut client = self.client.lease_client();
        let answer = self
            .call(call, async {
                // Opening renews once but hides the time left, so ask again on the same stream.
                let (mut keeper, mut answers) = client.keep_alive(id).await?;
                keeper.keep_alive().await?;
                answers.message().await
            })
            .await?;
        let ttl = answer.map_or(0, |answer| answer.ttl());
        match u64::try_from(ttl) {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(MembershipError::LeaseNotFound(lease)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError> {
        let Ok(id) = lease_to_etcd(lease) else { return Ok(()) };
        let mut client = self.client.lease_client();
        match self.call(Call::write("revoke").on(Some(lease)), client.revoke(id)).await {
            Ok(_) | Err(MembershipError::LeaseNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
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
        let mut options = PutOptions::new();
        if let Some(lease) = lease {
            options = options.with_lease(lease_to_etcd(lease)?);
        }
        let operation = TxnOp::put(key.as_ref(), value.as_ref(), Some(options));
        self.write(Call::write("put").on(lease), &key, condition, operation).await
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        check_key(&key)?;
        if condition == Condition::Absent {
            return Err(MembershipError::invalid("condition", "can't be absence: there would be nothing to delete"));
        }
        let operation = TxnOp::delete(key.as_ref(), None);
        self.write(Call::write("delete"), &key, condition, operation).await
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        check_prefix(&prefix)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.list_once(&prefix).await {
                // Compacted between two pages: what we had is of a revision that is gone.
                Err(MembershipError::Refused { reason, .. })
                    if attempt < LIST_ATTEMPTS && reason.contains("compacted") => {}
                answer => return answer,
            }
        }
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        check_prefix(&prefix)?;
        let Some(from) = i64::try_from(after.counter).ok().and_then(|counter| counter.checked_add(1)) else {
            return Ok(Box::pin(stream::iter([Ok(Event::Reset)])));
        };
        // Of a registry that was here before etcd, or of no store at all.
        if after.epoch != 0 || after.counter == 0 {
            return Ok(Box::pin(stream::iter([Ok(Event::Reset)])));
        }
        let key = if prefix.is_empty() { vec![0] } else { prefix.to_vec() };
        let options = WatchOptions::new().with_range(prefix_end(&prefix)).with_start_revision(from);
        let mut client = self.client.watch_client();
        let source = self.call(Call::read("watch"), client.watch(key, Some(options))).await?;
        let watcher = Watcher { source, reached: after, ready: std::collections::VecDeque::new(), ended: false };
        Ok(Box::pin(stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        })))
    }
}

struct Watcher {
    source: etcd_client::WatchStream,
    reached: Revision,
    ready: std::collections::VecDeque<Event>,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Event, MembershipError>> {
        let mut heard = tokio::time::Instant::now();
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            match tokio::time::timeout(PROGRESS_INTERVAL, self.source.message()).await {
                Ok(Ok(Some(answer))) => {
                    heard = tokio::time::Instant::now();
                    match self.take(&answer) {
                        Ok(()) => {}
                        Err(error) => return self.fail(error),
                    }
                }
                Ok(Ok(None)) => return self.fail("etcd ended it".to_owned()),
                Ok(Err(error)) => return self.fail(describe(&error)),
                Err(_) if heard.elapsed() > WATCH_SILENCE_MAX => {
                    return self.fail(format!("silent for {WATCH_SILENCE_MAX:?}"));
                }
                // A connection can die without a sound: ask for a sign of life.
                Err(_) => match tokio::time::timeout(PROGRESS_INTERVAL, self.source.request_progress()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return self.fail(describe(&error)),
                    Err(_) => return self.fail("it takes no requests".to_owned()),
                },
            }
        }
    }

    fn take(&mut self, answer: &WatchResponse) -> Result<(), String> {
        if answer.compact_revision() > 0 {
            self.ready.push_back(Event::Reset);
            self.ended = true;
            return Ok(());
        }
        if answer.canceled() {
            return Err(format!("etcd cancelled it: {}", answer.cancel_reason()));
        }
        if answer.created() {
            return Ok(());
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let event = match event.event_type() {
                EventType::Put => Event::Put(entry(kv)),
                EventType::Delete => {
                    Event::Delete { key: Bytes::copy_from_slice(kv.key()), revision: revision(kv.mod_revision()) }
                }
            };
            self.reached = event.revision().unwrap_or(self.reached).max(self.reached);
            self.ready.push_back(event);
        }
        if answer.events().is_empty() {
            // A sign of life. Up to 3.4.24 its revision may run ahead of changes not yet sent, so it isn't passed on.
            self.ready.push_back(Event::Progress(self.reached));
        }
        Ok(())
    }

    fn fail(&mut self, reason: String) -> Option<Result<Event, MembershipError>> {
        self.ended = true;
        Some(Err(MembershipError::Unavailable { what: "watch", reason }))
    }
}
