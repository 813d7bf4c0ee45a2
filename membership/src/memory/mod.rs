//! The seam in process: what the coordinator serves as its registry when there is no etcd.
//!
//! Kept: keys, values and leases, in memory, and the last few thousand changes for watchers.
//! Not kept: anything across a restart. A restarted registry starts a new epoch: watchers are told to list again,
//! members register again, and nothing ends before they have had the time to.

mod state;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch::Sender;

use crate::limits::{check_key, check_prefix, check_ttl, check_value};
use crate::seam::{Condition, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream};
use state::State;

/// Time since some fixed point; never goes back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A clock that stands still until a test moves it. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// As a [`Clock`].
    #[must_use]
    pub fn clock(&self) -> Clock {
        let nanos = Arc::clone(&self.0);
        Arc::new(move || Duration::from_nanos(nanos.load(Ordering::SeqCst)))
    }
}

struct Shared {
    state: Mutex<State>,
    /// Number of the last change, for watchers to wait on.
    changed: Sender<u64>,
    clock: Clock,
}

/// The registry in process. Clones share it.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// A first start: epoch 1.
    #[must_use]
    pub fn new() -> Self {
        Self::with(1, Duration::ZERO, Arc::new(ingle_daemon::clock::boottime))
    }

    /// A start after others: `epoch` must be greater than theirs. No lease ends before `settle` has passed (one TTL of
    /// members and the time they may take to come back).
    #[must_use]
    pub fn restarted(epoch: u64, settle: Duration) -> Self {
        Self::with(epoch, settle, Arc::new(ingle_daemon::clock::boottime))
    }

    /// With every choice open.
    #[must_use]
    pub fn with(epoch: u64, settle: Duration, clock: Clock) -> Self {
        let settled = clock().saturating_add(settle);
        let changed = Sender::new(0);
        Self(Arc::new(Shared { state: Mutex::new(State::new(epoch, settled)), changed, clock }))
    }

    /// Whether members have had the time to register again after a restart: who is absent now has left.
    #[must_use]
    pub fn settled(&self) -> bool {
        (self.0.clock)() >= self.lock().settled()
    }

    /// Ends leases that are due. Every call and every watch does so by itself; a test that moved the clock, or a
    /// registry without callers, may want it at once.
    pub fn expire(&self) {
        drop(self.now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as of now: with leases that are due ended, and watchers told.
    fn now(&self) -> Current<'_> {
        let mut state = self.lock();
        let now = (self.0.clock)();
        state.expire(now);
        Current { state, now, changed: &self.0.changed }
    }
}

/// The locked state; tells watchers when it is let go.
struct Current<'a> {
    state: MutexGuard<'a, State>,
    now: Duration,
    changed: &'a Sender<u64>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let last = self.state.revision().counter;
        self.changed.send_if_modified(|seen| std::mem::replace(seen, last) != last);
    }
}

#[async_trait]
impl Membership for Memory {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError> {
        check_ttl(ttl)?;
        let mut current = self.now();
        let now = current.now;
        current.state.grant(now, ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError> {
        let mut current = self.now();
        let now = current.now;
        current.state.keep_alive(now, lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError> {
        self.now().state.revoke(lease);
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
        self.now().state.put(key, value, lease, condition)
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        check_key(&key)?;
        self.now().state.delete(&key, condition)
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        check_prefix(&prefix)?;
        Ok(self.now().state.list(&prefix))
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        check_prefix(&prefix)?;
        Ok(watch::stream(self.clone(), prefix, after))
    }
}

#[cfg(test)]
mod tests;
