//! The suite for a store behind a bad network: whatever goes wrong, nobody is lied to, and all agree in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use super::{key, text};
use crate::faulty::{Faults, Faulty};
use crate::seam::{Condition, Event, LeaseId, Membership, MembershipError, PutOutcome, Revision, WatchStream};

const KEYS: usize = 5;
const STEPS: usize = 150;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a key may hold, as far as its only writer can know: several values after an unknown outcome.
type Possible = BTreeSet<Option<Bytes>>;

/// A writer and a watcher work through the faults; then these stop, and the watcher's picture, a list and what the
/// writer may have written must agree.
///
/// # Panics
/// If a store breaks one of the seam's promises; the seed replays it.
pub async fn converges<M: Membership>(store: &Faulty<M>, seed: u64, scope: &str) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut possible: BTreeMap<Bytes, Possible> =
        (0..KEYS).map(|index| (key(scope, &index.to_string()), BTreeSet::from([None]))).collect();
    let mut replica = Replica::default();
    for step in 0..STEPS {
        write(store, &mut random, &mut possible, &format!("{seed}-{step}"), scope).await;
        if random.f64() < 0.3 {
            // For a moment, as a watcher that shares a thread would.
            let _ = tokio::time::timeout(Duration::from_millis(1), replica.follow(store, scope)).await;
        }
    }
    store.set(Faults::NONE);
    // A watch that was opened in bad weather keeps its faults: start afresh.
    replica.watch = None;
    let last = key(scope, "last");
    let outcome = store.put(last.clone(), text("done"), None, Condition::Always).await.expect("no faults");
    let end = outcome.done().expect("no condition");
    tokio::time::timeout(PATIENCE, async {
        while replica.reached < end {
            replica.follow(store, scope).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("seed {seed}: the watcher doesn't reach {end}"));

    let listing = store.list(text(scope)).await.expect("no faults");
    let listed: BTreeMap<Bytes, Bytes> = listing.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(replica.values, listed, "seed {seed}: the watcher's picture is the store's");
    for (name, values) in possible {
        assert!(values.contains(&listed.get(&name).cloned()), "seed {seed}: {name:?} holds none of {values:?}");
    }
}

async fn write<M: Membership>(
    store: &Faulty<M>,
    random: &mut fastrand::Rng,
    possible: &mut BTreeMap<Bytes, Possible>,
    value: &str,
    scope: &str,
) {
    let name = key(scope, &random.usize(0..KEYS).to_string());
    let before = possible.get(&name).cloned().unwrap_or_default();
    let delete = random.f64() < 0.25;
    let condition = if !delete && random.f64() < 0.4 { Condition::Absent } else { Condition::Always };
    let written = (!delete).then(|| text(value));
    let outcome = if delete {
        store.delete(name.clone(), condition).await
    } else {
        store.put(name.clone(), text(value), None, condition).await
    };
    let after = match outcome {
        Ok(PutOutcome::Done(_)) => {
            assert!(condition == Condition::Always || before.contains(&None), "{name:?} can't have been absent");
            BTreeSet::from([written])
        }
        Ok(PutOutcome::Refused(_)) => {
            // It exists, so it holds one of the values that it may hold.
            let there: Possible = before.iter().filter(|value| value.is_some()).cloned().collect();
            assert!(!there.is_empty(), "{name:?} can't exist");
            there
        }
        Err(error) => {
            assert!(error.retryable(), "{error}");
            if error.outcome_unknown() {
                let mut either = before.clone();
                if condition == Condition::Always || before.contains(&None) {
                    either.insert(written);
                }
                either
            } else {
                before
            }
        }
    };
    possible.insert(name, after);
}

/// A picture of the store kept by list and watch.
#[derive(Default)]
struct Replica {
    values: BTreeMap<Bytes, Bytes>,
    reached: Revision,
    watch: Option<WatchStream>,
}

impl Replica {
    /// Takes one step: lists if there is no watch, else takes an event.
    async fn follow<M: Membership>(&mut self, store: &Faulty<M>, scope: &str) {
        let Some(watch) = &mut self.watch else {
            let opened = self.open(store, scope).await;
            if let Err(error) = opened {
                assert!(error.retryable(), "{error}");
            }
            return;
        };
        match watch.next().await {
            Some(Ok(event)) => {
                if let Some(revision) = event.revision() {
                    assert!(revision >= self.reached, "told in order");
                    self.reached = revision;
                }
                match event {
                    Event::Put(entry) => {
                        self.values.insert(entry.key, entry.value);
                    }
                    Event::Delete { key, .. } => {
                        self.values.remove(&key);
                    }
                    Event::Reset => self.watch = None,
                    Event::Progress(_) => {}
                }
            }
            Some(Err(error)) => {
                assert!(error.retryable(), "{error}");
                self.watch = None;
            }
            None => self.watch = None,
        }
    }

    async fn open<M: Membership>(&mut self, store: &Faulty<M>, scope: &str) -> Result<(), MembershipError> {
        let listing = store.list(text(scope)).await?;
        self.values = listing.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        self.reached = listing.revision;
        self.watch = Some(store.watch(text(scope), listing.revision).await?);
        Ok(())
    }
}

/// A member keeps its key on a lease through the faults: while the lease is renewed the key stands, when it has ended nothing
/// hangs on it, and whatever the answers were it finds its way back. Answers how many renewals there were, and how many leases
/// were lost.
///
/// # Panics
/// If a store breaks one of the seam's promises; the seed replays it.
pub async fn leases_hold<M: Membership>(store: &Faulty<M>, seed: u64, scope: &str) -> (u32, u32) {
    let mut random = fastrand::Rng::with_seed(seed);
    let name = key(scope, "member");
    let (mut lease, mut stands): (Option<LeaseId>, bool) = (None, false);
    let (mut renewed, mut lost) = (0, 0);
    for step in 0..STEPS {
        let Some(held) = lease else {
            match store.grant(LONG).await {
                Ok(granted) => (lease, stands) = (Some(granted), false),
                Err(error) => assert!(error.retryable(), "seed {seed}: {error}"),
            }
            continue;
        };
        let outcome = if random.f64() < 0.4 {
            let put = store.put(name.clone(), text(&step.to_string()), Some(held), Condition::Always).await;
            // Without an answer it stands if it stood before.
            stands |= put.is_ok();
            put.map(drop)
        } else {
            let kept = store.keep_alive(held).await;
            assert!(kept.as_ref().map_or(true, |left| !left.is_zero()), "seed {seed}: a lease without time");
            renewed += u32::from(kept.is_ok());
            kept.map(drop)
        };
        match outcome {
            Ok(()) if !stands => {}
            Ok(()) => assert!(hangs(store, &name, held).await, "seed {seed}, step {step}: {held} holds nothing"),
            Err(MembershipError::LeaseNotFound(ended)) => {
                assert_eq!(ended, held, "seed {seed}");
                assert!(!hangs(store, &name, held).await, "seed {seed}, step {step}: a key outlives its lease");
                (lease, stands) = (None, false);
                lost += 1;
            }
            Err(error) => assert!(error.retryable(), "seed {seed}: {error}"),
        }
    }
    store.set(Faults::NONE);
    let held = store.grant(LONG).await.expect("no faults");
    store.put(name.clone(), text("last"), Some(held), Condition::Always).await.expect("no faults");
    store.keep_alive(held).await.expect("no faults");
    assert!(hangs(store, &name, held).await);
    store.revoke(held).await.expect("no faults");
    assert!(!hangs(store, &name, held).await);
    (renewed, lost)
}

/// Longer than the suite takes, so that leases end by faults alone.
const LONG: Duration = Duration::from_secs(3600);

/// Whether the key hangs on the lease, asked until there is an answer.
async fn hangs<M: Membership>(store: &Faulty<M>, name: &Bytes, lease: LeaseId) -> bool {
    for _ in 0..1000 {
        match store.list(name.clone()).await {
            Ok(listing) => {
                return listing.entries.iter().any(|entry| entry.key == *name && entry.lease == Some(lease));
            }
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    }
    panic!("a thousand lists were lost");
}
