//! Keeps one member's record alive: claims its key, renews its lease, and comes back after any loss.
//!
//! The key admits one incarnation at a time: a second process with the same identity is refused for as long as the
//! first renews its lease.

use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::Shutdown;
use ingle_daemon::backoff::Backoff;
use ingle_daemon::clock::boottime;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::records::Record;
use crate::seam::{Condition, Entry, LeaseId, Membership, MembershipError, PutOutcome, Revision};

/// How long members' leases last unless set otherwise: they serve discovery, liveness has its own beats.
pub const MEMBER_TTL: Duration = Duration::from_secs(15);
/// Beyond the lease of another incarnation, how long we wait for it to vanish.
const CLAIM_MARGIN: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Longest wait before registering is tried again: a node gets work within seconds of being ready.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Renewals between two looks at whether the key is still ours.
const RENEWALS_PER_LOOK: u32 = 4;

/// Why a member is no longer, or never was, registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// Another process lives under this identity.
    #[error(
        "{id} is in use by another process (incarnation {other}): two members can't share a state directory's key; \
         end that one, or remove identity.key here to join as a new member"
    )]
    IdentityInUse {
        /// The identity.
        id: String,
        /// The process that holds it.
        other: String,
    },
    /// The store refuses the record itself.
    #[error("{id} can't be registered: {reason}")]
    Refused {
        /// The identity.
        id: String,
        /// What the store said.
        reason: MembershipError,
    },
}

impl RegistrationError {
    /// Whether trying again may help: the other process may end.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::IdentityInUse { .. })
    }
}

/// Where a registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationState {
    /// Others can't find us, and why.
    Pending(String),
    /// Others can find us.
    Registered(Revision),
}

/// One member's record, to be kept alive by [`Registration::run`].
pub struct Registration<R: Record> {
    membership: Arc<dyn Membership>,
    record: watch::Receiver<R>,
    state: watch::Sender<RegistrationState>,
    ttl: Duration,
    patience: Duration,
}

/// The other end of a [`Registration`]: changes the record and tells how it stands.
#[derive(Debug, Clone)]
pub struct RegistrationHandle<R: Record> {
    record: watch::Sender<R>,
    /// Where it stands.
    pub state: watch::Receiver<RegistrationState>,
}

impl<R: Record> RegistrationHandle<R> {
    /// Changes the record; its identity and incarnation stay what they are.
    pub fn update(&self, change: impl FnOnce(&mut R)) {
        self.record.send_if_modified(|record| {
            let before = record.clone();
            change(record);
            if record.id() != before.id() || record.incarnation() != before.incarnation() {
                *record = before;
                return false;
            }
            *record != before
        });
    }

    /// Waits until others can find us.
    pub async fn registered(&mut self) {
        // An error means that the registration has ended: its runner says why.
        let _ = self.state.wait_for(|state| matches!(state, RegistrationState::Registered(_))).await;
    }
}

struct Held {
    lease: LeaseId,
    revision: Revision,
    renewed: Duration,
}

impl<R: Record> Registration<R> {
    /// A record to be kept alive under leases of `ttl` (2 s or more; see [`MEMBER_TTL`]).
    #[must_use]
    pub fn new(membership: Arc<dyn Membership>, record: R, ttl: Duration) -> (Self, RegistrationHandle<R>) {
        let (sender, receiver) = watch::channel(record);
        let (state, states) = watch::channel(RegistrationState::Pending("starting".to_owned()));
        let registration = Self { membership, record: receiver, state, ttl, patience: ttl + CLAIM_MARGIN };
        (registration, RegistrationHandle { record: sender, state: states })
    }

    /// How long to wait for another incarnation's lease to end before calling the identity in use. The default outlasts
    /// that lease, so that a machine that lost its power finds its way back.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Registers, renews and registers again until `shutdown`; then takes the record away. It only waits and calls:
    /// run it on any runtime, best on the one that beats.
    ///
    /// # Errors
    /// [`RegistrationError`] when the identity is another's or the store refuses the record for good.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), RegistrationError> {
        let stop = shutdown.wait();
        tokio::pin!(stop);
        let mut held = None;
        let outcome = tokio::select! {
            () = &mut stop => Ok(()),
            outcome = self.keep(&mut held) => outcome,
        };
        if let Some(Held { lease, .. }) = held {
            let _ = timeout(GOODBYE, self.membership.revoke(lease)).await;
        }
        self.state.send_replace(RegistrationState::Pending("ended".to_owned()));
        outcome
    }

    async fn keep(&mut self, held: &mut Option<Held>) -> Result<(), RegistrationError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), (self.ttl / 3).min(RETRY_MAX));
        let mut refused_since = None;
        loop {
            match self.register().await {
                Ok(registered) => {
                    backoff.reset();
                    refused_since = None;
                    self.state.send_replace(RegistrationState::Registered(registered.revision));
                    *held = Some(registered);
                    let reason = self.renew(held).await;
                    tracing::warn!(%reason, "registration lost; registering again");
                    *held = None;
                    self.state.send_replace(RegistrationState::Pending(reason));
                    continue;
                }
                Err(Failure::Taken(other)) => {
                    let now = boottime();
                    let since = *refused_since.get_or_insert(now);
                    let id = self.record.borrow().id().to_owned();
                    let error = RegistrationError::IdentityInUse { id, other };
                    if now.saturating_sub(since) >= self.patience {
                        return Err(error);
                    }
                    self.state.send_replace(RegistrationState::Pending(error.to_string()));
                }
                Err(Failure::Store(error))
                    if !error.retryable() && !matches!(error, MembershipError::LeaseNotFound(_)) =>
                {
                    let id = self.record.borrow().id().to_owned();
                    return Err(RegistrationError::Refused { id, reason: error });
                }
                Err(Failure::Store(error)) => {
                    tracing::debug!(%error, "can't register yet");
                    self.state.send_replace(RegistrationState::Pending(error.to_string()));
                }
            }
            tokio::time::sleep(backoff.next_random()).await;
        }
    }

    /// One try to put the record under a lease of its own.
    async fn register(&mut self) -> Result<Held, Failure> {
        let record = self.record.borrow_and_update().clone();
        let renewed = boottime();
        let lease = self.membership.grant(self.ttl).await?;
        match self.claim(&record, lease).await {
            Ok(revision) => Ok(Held { lease, revision, renewed }),
            Err(failure) => {
                // Whatever hangs on it must not outlive this try.
                let _ = timeout(GOODBYE, self.membership.revoke(lease)).await;
                Err(failure)
            }
        }
    }

    async fn claim(&self, record: &R, lease: LeaseId) -> Result<Revision, Failure> {
        let key = record.key();
        let (value, lease) = (record.encode(), Some(lease));
        let condition = match self.look(record).await? {
            None => Condition::Absent,
            Some(entry) => match R::decode(&key, &entry.value) {
                Ok(there) if there.incarnation() == record.incarnation() => Condition::Revision(entry.modified),
                // We hold the lock of the place it registered from: that process has ended.
                Ok(there) if !record.place().is_empty() && there.place() == record.place() => {
                    Condition::Revision(entry.modified)
                }
                Ok(there) => return Err(Failure::Taken(there.incarnation().to_owned())),
                Err(error) => return Err(Failure::Taken(format!("unreadable: {error}"))),
            },
        };
        match self.membership.put(key, value, lease, condition).await? {
            PutOutcome::Done(revision) => Ok(revision),
            PutOutcome::Refused(_) => match self.look(record).await? {
                Some(entry) => {
                    let other = R::decode(&entry.key, &entry.value).map(|there| there.incarnation().to_owned());
                    Err(Failure::Taken(other.unwrap_or_else(|error| error.to_string())))
                }
                // It went away in between: the next try finds the key free.
                None => Err(Failure::Store(MembershipError::Unavailable {
                    what: "put",
                    reason: "the key changed in between".into(),
                })),
            },
        }
    }

    async fn look(&self, record: &R) -> Result<Option<Entry>, MembershipError> {
        let key = record.key();
        let listing = self.membership.list(key.clone()).await?;
        Ok(listing.entries.into_iter().find(|entry| entry.key == key))
    }

    /// Renews until the registration is lost; answers why. `held` is kept current for who says goodbye.
    async fn renew(&mut self, held: &mut Option<Held>) -> String {
        let mut backoff = Backoff::new(Duration::from_millis(200), self.ttl / 6);
        let mut wait = self.ttl / 3;
        // Changes of the record don't put it off: they may come as often as we renew.
        let mut due = tokio::time::Instant::now() + wait;
        let mut renewals = 0_u32;
        // Set once nobody can change the record any more.
        let mut frozen = false;
        while let Some(now) = held {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                changed = self.record.changed(), if !frozen => {
                    frozen = changed.is_err();
                    if changed.is_ok() {
                        match self.rewrite(now.lease, now.revision).await {
                            Ok(revision) => {
                                now.revision = revision;
                                self.state.send_replace(RegistrationState::Registered(revision));
                            }
                            Err(reason) => return reason,
                        }
                    }
                    continue;
                }
            }
            let asked = boottime();
            match timeout(self.ttl / 3, self.membership.keep_alive(now.lease)).await {
                Ok(Ok(_)) => {
                    now.renewed = asked;
                    backoff.reset();
                    wait = self.ttl / 3;
                    renewals = renewals.wrapping_add(1);
                    if renewals.is_multiple_of(RENEWALS_PER_LOOK)
                        && let Err(reason) = self.still_ours(now.revision).await
                    {
                        return reason;
                    }
                }
                Ok(Err(error @ MembershipError::LeaseNotFound(_))) => return error.to_string(),
                Ok(Err(error)) => {
                    wait = backoff.next_random();
                    tracing::debug!(%error, "renewal failed");
                }
                Err(_) => wait = backoff.next_random(),
            }
            due = tokio::time::Instant::now() + wait;
            if boottime().saturating_sub(now.renewed) > self.ttl {
                return format!("not renewed for {:?}", self.ttl);
            }
        }
        "never held".to_owned()
    }

    async fn rewrite(&mut self, lease: LeaseId, revision: Revision) -> Result<Revision, String> {
        let record = self.record.borrow_and_update().clone();
        let put = self.membership.put(record.key(), record.encode(), Some(lease), Condition::Revision(revision));
        match put.await {
            Ok(PutOutcome::Done(revision)) => Ok(revision),
            Ok(PutOutcome::Refused(_)) => Err("the record was changed by someone else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn still_ours(&self, revision: Revision) -> Result<(), String> {
        let record = self.record.borrow().clone();
        match self.look(&record).await {
            Ok(Some(entry)) if entry.modified == revision => Ok(()),
            Ok(Some(_)) => Err("the record was changed by someone else".to_owned()),
            Ok(None) => Err("the record was deleted".to_owned()),
            // Not knowing is no loss: the lease decides.
            Err(_) => Ok(()),
        }
    }
}

enum Failure {
    Taken(String),
    Store(MembershipError),
}

impl From<MembershipError> for Failure {
    fn from(error: MembershipError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test owns what it spawns, and awaits it")]
mod tests;
