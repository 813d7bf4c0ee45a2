//! A wrapper that makes any store of members fail in the ways networks do, by a seed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::seam::{Condition, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream};

/// How often what goes wrong, each as a probability from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// A call never arrives.
    pub unavailable: f64,
    /// A write's answer is lost; whether it took place is a coin's toss.
    pub unknown: f64,
    /// A call or an event is held up.
    pub delay: f64,
    /// For at most so long.
    pub delay_max: Duration,
    /// A lease is gone when it is to be renewed.
    pub lease_lost: f64,
    /// A watch breaks before an event.
    pub watch_broken: f64,
    /// A watch is told to list again before an event.
    pub watch_reset: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        unavailable: 0.0,
        unknown: 0.0,
        delay: 0.0,
        delay_max: Duration::ZERO,
        lease_lost: 0.0,
        watch_broken: 0.0,
        watch_reset: 0.0,
    };

    /// A bad day: about a third of all calls go wrong in some way.
    pub const MANY: Self = Self {
        unavailable: 0.1,
        unknown: 0.15,
        delay: 0.2,
        delay_max: Duration::from_millis(5),
        lease_lost: 0.05,
        watch_broken: 0.05,
        watch_reset: 0.05,
    };
}

struct Chance {
    random: fastrand::Rng,
    faults: Faults,
}

/// See [`Faults`].
pub struct Faulty<M> {
    inner: M,
    chance: Mutex<Chance>,
}

enum Fate {
    Arrives,
    Lost,
    AnswerLost { took_place: bool },
}

impl<M: Membership> Faulty<M> {
    /// The same seed and the same calls make the same faults.
    pub fn new(inner: M, seed: u64, faults: Faults) -> Self {
        Self { inner, chance: Mutex::new(Chance { random: fastrand::Rng::with_seed(seed), faults }) }
    }

    /// From now on these faults.
    pub fn set(&self, faults: Faults) {
        self.chance.lock().unwrap_or_else(PoisonError::into_inner).faults = faults;
    }

    fn roll<T>(&self, draw: impl FnOnce(&mut fastrand::Rng, &Faults) -> T) -> T {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let Chance { random, faults } = &mut *chance;
        draw(random, faults)
    }

    async fn hold_up(&self) {
        let delay =
            self.roll(|random, faults| (random.f64() < faults.delay).then(|| faults.delay_max.mul_f64(random.f64())));
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    async fn fate(&self, writes: bool) -> Fate {
        self.hold_up().await;
        self.roll(|random, faults| {
            if random.f64() < faults.unavailable {
                Fate::Lost
            } else if writes && random.f64() < faults.unknown {
                Fate::AnswerLost { took_place: random.bool() }
            } else {
                Fate::Arrives
            }
        })
    }

    async fn read<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MembershipError>>,
    ) -> Result<T, MembershipError> {
        match self.fate(false).await {
            Fate::Arrives | Fate::AnswerLost { .. } => call.await,
            Fate::Lost => Err(lost(what)),
        }
    }

    async fn write<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, MembershipError>>,
    ) -> Result<T, MembershipError> {
        match self.fate(true).await {
            Fate::Arrives => call.await,
            Fate::Lost => Err(lost(what)),
            Fate::AnswerLost { took_place } => {
                if took_place {
                    let _ = call.await;
                }
                Err(MembershipError::Unknown { what, reason: "injected".into() })
            }
        }
    }
}

fn lost(what: &'static str) -> MembershipError {
    MembershipError::Unavailable { what, reason: "injected".into() }
}

#[async_trait]
impl<M: Membership> Membership for Faulty<M> {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError> {
        self.write("grant", self.inner.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError> {
        if self.roll(|random, faults| random.f64() < faults.lease_lost) {
            self.inner.revoke(lease).await?;
        }
        self.read("keep_alive", self.inner.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError> {
        self.write("revoke", self.inner.revoke(lease)).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        condition: Condition,
    ) -> Result<PutOutcome, MembershipError> {
        self.write("put", self.inner.put(key, value, lease, condition)).await
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        self.write("delete", self.inner.delete(key, condition)).await
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        self.read("list", self.inner.list(prefix)).await
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        let events = self.read("watch", self.inner.watch(prefix, after)).await?;
        let (seed, faults) = self.roll(|random, faults| (random.u64(..), faults.clone()));
        let random = fastrand::Rng::with_seed(seed);
        Ok(Box::pin(stream::unfold(Some((events, random, faults)), |watch| async move {
            let (mut events, mut random, faults) = watch?;
            let event = events.next().await?;
            if random.f64() < faults.delay {
                tokio::time::sleep(faults.delay_max.mul_f64(random.f64())).await;
            }
            if random.f64() < faults.watch_broken {
                return Some((Err(lost("watch")), None));
            }
            if random.f64() < faults.watch_reset {
                return Some((Ok(Event::Reset), None));
            }
            Some((event, Some((events, random, faults))))
        })))
    }
}
