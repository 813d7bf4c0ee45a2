//! Who leads: the one whose key was put while it was absent, for as long as it renews the lease that the key hangs on.
//!
//! The leader steps down before its lease can end: 2.5 s after its last renewal was *asked for*, by a clock that counts
//! sleep, while the lease lasts 4 s. Between these two nobody leads, so that no two ever do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::Shutdown;
use ingle_daemon::backoff::Backoff;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::memory::Clock;
use crate::records::LEADER;
use crate::seam::{Condition, Entry, Event, LeaseId, Membership, MembershipError, PutOutcome, Revision};

/// How the election is timed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionTiming {
    /// How long the leader's lease lasts.
    pub lease: Duration,
    /// Without a renewal for so long the leader steps down; less than `lease`.
    pub step_down: Duration,
    /// How often the leader renews.
    pub renew: Duration,
}

impl Default for ElectionTiming {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(4),
            step_down: Duration::from_millis(2500),
            renew: Duration::from_millis(800),
        }
    }
}

/// What happens to a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderEvent {
    /// It leads; the revision orders leaders and is greater than any before.
    Elected(Revision),
    /// It leads no more.
    Lost,
}

/// Whoever leads or wants to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its identity.
    pub id: String,
    /// Of this start of its process.
    pub incarnation: String,
    /// Where its services are, `HOST:PORT`.
    pub address: String,
}

/// Answers at any moment whether we lead. Clones share it.
#[derive(Clone)]
pub struct Leadership(Arc<Term>);

struct Term {
    clock: Clock,
    /// Until when we lead, in nanoseconds of the clock; 0 if we don't.
    until: AtomicU64,
    epoch: Mutex<Option<Revision>>,
}

impl Leadership {
    /// The epoch we lead in, if we lead now: looks at the clock, so that a machine that slept knows at once.
    #[must_use]
    pub fn epoch(&self) -> Option<Revision> {
        let now = nanos((self.0.clock)());
        if now >= self.0.until.load(Ordering::Acquire) {
            return None;
        }
        *self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, epoch: Revision, until: Duration) {
        *self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
        self.0.until.store(nanos(until), Ordering::Release);
    }

    fn end(&self) {
        self.0.until.store(0, Ordering::Release);
        *self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A candidacy, to be carried by [`Election::run`].
pub struct Election {
    membership: Arc<dyn Membership>,
    key: Bytes,
    candidate: Candidate,
    timing: ElectionTiming,
    clock: Clock,
    leadership: Leadership,
}

/// What a leader holds.
struct Reign {
    lease: LeaseId,
    created: Revision,
    /// When the renewal that last worked was asked for.
    renewed: Duration,
}

impl Election {
    /// A candidacy for leading the cluster.
    #[must_use]
    pub fn new(membership: Arc<dyn Membership>, candidate: Candidate) -> Self {
        let clock: Clock = Arc::new(ingle_daemon::clock::boottime);
        Self::with(membership, candidate, ElectionTiming::default(), clock)
    }

    /// With other timing or another clock.
    #[must_use]
    pub fn with(membership: Arc<dyn Membership>, candidate: Candidate, timing: ElectionTiming, clock: Clock) -> Self {
        let term = Term { clock: Arc::clone(&clock), until: AtomicU64::new(0), epoch: Mutex::new(None) };
        let key = Bytes::from_static(LEADER.as_bytes());
        Self { membership, key, candidate, timing, clock, leadership: Leadership(Arc::new(term)) }
    }

    /// To ask whether we lead.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Stands, leads, and stands again until `shutdown`; then lets go at once, so that another needn't wait. `events`
    /// has room for at least one: a leader that isn't heard keeps renewing all the same.
    ///
    /// # Errors
    /// [`MembershipError`] if the store refuses candidacies for good.
    pub async fn run(self, events: mpsc::Sender<LeaderEvent>, shutdown: Shutdown) -> Result<(), MembershipError> {
        let stop = shutdown.wait();
        tokio::pin!(stop);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            let reign = tokio::select! {
                () = &mut stop => return Ok(()),
                reign = self.stand() => reign,
            };
            match reign {
                Ok(Some(mut reign)) => {
                    backoff.reset();
                    self.leadership.hold(reign.created, reign.renewed + self.timing.step_down);
                    tracing::info!(epoch = %reign.created, "leading");
                    let mut told = false;
                    let ended = tokio::select! {
                        () = &mut stop => None,
                        reason = self.reign_and_tell(&mut reign, &events, &mut told) => Some(reason),
                    };
                    self.leadership.end();
                    let _ = timeout(self.timing.renew, self.let_go(&reign)).await;
                    if let Some(reason) = &ended {
                        tracing::warn!(%reason, epoch = %reign.created, "no longer leading");
                    }
                    if told {
                        let _ = events.send(LeaderEvent::Lost).await;
                    }
                    if ended.is_none() {
                        return Ok(());
                    }
                }
                Ok(None) => backoff.reset(),
                Err(error) if !error.retryable() && !matches!(error, MembershipError::LeaseNotFound(_)) => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%error, "can't stand for leader yet"),
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                () = sleep(backoff.next_random()) => {}
            }
        }
    }

    /// Waits until nobody leads, then tries once.
    async fn stand(&self) -> Result<Option<Reign>, MembershipError> {
        self.vacancy().await?;
        let renewed = (self.clock)();
        let lease =
            timeout(self.timing.lease, self.membership.grant(self.timing.lease)).await.map_err(|_| late("grant"))??;
        let outcome = self.claim(lease).await;
        let created = match outcome {
            Ok(Some(created)) => created,
            other => {
                // An answer we don't know, or another was first: nothing may stay behind that hangs on this lease.
                let _ = timeout(self.timing.renew, self.membership.revoke(lease)).await;
                return other.map(|_| None);
            }
        };
        // The claim may have taken so long that the lease is about to end.
        if (self.clock)().saturating_sub(renewed) >= self.timing.step_down {
            let _ = timeout(self.timing.renew, self.membership.revoke(lease)).await;
            return Ok(None);
        }
        Ok(Some(Reign { lease, created, renewed }))
    }

    async fn claim(&self, lease: LeaseId) -> Result<Option<Revision>, MembershipError> {
        let value = Bytes::from(serde_json::to_vec(&self.candidate).expect("three strings"));
        let put = self.membership.put(self.key.clone(), value, Some(lease), Condition::Absent);
        match timeout(self.timing.step_down, put).await {
            Ok(Ok(PutOutcome::Done(revision))) => Ok(Some(revision)),
            Ok(Ok(PutOutcome::Refused(_))) => Ok(None),
            Ok(Err(error)) if !error.outcome_unknown() => Err(error),
            // It may be ours: the lease is of this try alone, so the key tells.
            Ok(Err(_)) | Err(_) => {
                let there = self.look().await?;
                Ok(there.filter(|entry| entry.lease == Some(lease)).map(|entry| entry.created))
            }
        }
    }

    async fn look(&self) -> Result<Option<Entry>, MembershipError> {
        let listing = timeout(self.timing.step_down, self.membership.list(self.key.clone()))
            .await
            .map_err(|_| late("list"))??;
        Ok(listing.entries.into_iter().find(|entry| entry.key == self.key))
    }

    /// Ends when the key is absent.
    async fn vacancy(&self) -> Result<(), MembershipError> {
        loop {
            let listing = self.membership.list(self.key.clone()).await?;
            if !listing.entries.iter().any(|entry| entry.key == self.key) {
                return Ok(());
            }
            let mut watch = self.membership.watch(self.key.clone(), listing.revision).await?;
            // Now and then look anyway: a watch can hang.
            let gone = timeout(self.timing.lease, async {
                while let Some(event) = watch.next().await {
                    match event? {
                        Event::Delete { key, .. } if key == self.key => break,
                        Event::Reset => break,
                        _ => {}
                    }
                }
                Ok::<_, MembershipError>(())
            });
            if let Ok(outcome) = gone.await {
                outcome?;
            }
        }
    }

    /// Telling must not keep us from renewing: a slow listener is told while we reign.
    async fn reign_and_tell(&self, reign: &mut Reign, events: &mpsc::Sender<LeaderEvent>, told: &mut bool) -> String {
        let elected = events.send(LeaderEvent::Elected(reign.created));
        let reign = self.reign(reign);
        tokio::pin!(elected, reign);
        tokio::select! {
            reason = &mut reign => return reason,
            _ = &mut elected => *told = true,
        }
        reign.await
    }

    /// Renews until it can't; answers why.
    async fn reign(&self, reign: &mut Reign) -> String {
        let mut wait = self.timing.renew;
        loop {
            let ends = reign.renewed + self.timing.step_down;
            let left = ends.saturating_sub((self.clock)());
            sleep(wait.min(left)).await;
            let asked = (self.clock)();
            if asked >= ends {
                return format!("not renewed for {:?}", self.timing.step_down);
            }
            let renewal = async {
                self.membership.keep_alive(reign.lease).await?;
                // The lease alone doesn't prove that the key still stands.
                self.look().await
            };
            match timeout(ends - asked, renewal).await {
                Ok(Ok(Some(entry))) if entry.created == reign.created => {
                    reign.renewed = asked;
                    self.leadership.hold(reign.created, asked + self.timing.step_down);
                    wait = self.timing.renew;
                }
                Ok(Ok(_)) => return "the leader's key is gone or another's".to_owned(),
                Ok(Err(error @ MembershipError::LeaseNotFound(_))) => return error.to_string(),
                // Try again soon: there may be time left.
                Ok(Err(_)) => wait = self.timing.renew / 4,
                Err(_) => return format!("not renewed for {:?}", self.timing.step_down),
            }
        }
    }

    async fn let_go(&self, reign: &Reign) {
        if self.membership.revoke(reign.lease).await.is_err() {
            tracing::debug!("couldn't let go of the leader's lease; it ends by itself");
        }
    }
}

fn late(what: &'static str) -> MembershipError {
    MembershipError::Unknown { what, reason: "no answer in time".into() }
}

/// Who leads now, as far as the store knows.
///
/// # Errors
/// [`MembershipError`] of the store; [`MembershipError::Refused`] if the key holds something else.
pub async fn leader(membership: &dyn Membership) -> Result<Option<(Candidate, Revision)>, MembershipError> {
    let listing = membership.list(Bytes::from_static(LEADER.as_bytes())).await?;
    let Some(entry) = listing.entries.into_iter().find(|entry| entry.key == LEADER) else { return Ok(None) };
    let candidate = serde_json::from_slice(&entry.value).map_err(|error| MembershipError::Refused {
        what: "list",
        reason: format!("{LEADER} holds no candidate: {error}"),
    })?;
    Ok(Some((candidate, entry.created)))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test owns what it spawns, and awaits it")]
mod tests;
