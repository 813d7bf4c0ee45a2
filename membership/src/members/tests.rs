//! Joining, changing, leaving, and what a restart or a bad network must not do to them.

use std::collections::BTreeMap;

use super::*;
use crate::faulty::{Faults, Faulty};
use crate::memory::Memory;
use crate::records::GatewayRecord;
use crate::seam::{Condition, MembershipError};

const LONG: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);

fn gateway(id: &str, address: &str) -> GatewayRecord {
    GatewayRecord { id: id.into(), incarnation: "i".into(), address: address.into(), ..Default::default() }
}

async fn put(store: &dyn Membership, record: &GatewayRecord) {
    store.put(record.key(), record.encode(), None, Condition::Always).await.expect("put");
}

async fn delete(store: &dyn Membership, record: &GatewayRecord) {
    store.delete(record.key(), Condition::Always).await.expect("deleted");
}

async fn next(members: &mut Members<GatewayRecord>) -> MemberEvent<GatewayRecord> {
    tokio::time::timeout(PATIENCE, members.next()).await.expect("in time")
}

#[tokio::test]
async fn members_join_change_and_leave() {
    let store = Arc::new(Memory::new());
    let (a, b) = (gateway("g-a", "h:1"), gateway("g-b", "h:1"));
    put(&*store, &a).await;
    let mut members = watch_members::<GatewayRecord>(store.clone());
    assert!(!members.listed());
    assert_eq!(next(&mut members).await, MemberEvent::Joined(a.clone()));
    assert!(members.listed());
    put(&*store, &b).await;
    assert_eq!(next(&mut members).await, MemberEvent::Joined(b.clone()));
    let moved = gateway("g-a", "h:2");
    put(&*store, &moved).await;
    // The same record written again is no change.
    put(&*store, &moved).await;
    delete(&*store, &b).await;
    assert_eq!(next(&mut members).await, MemberEvent::Changed(moved.clone()));
    assert_eq!(next(&mut members).await, MemberEvent::Left(b));
    assert_eq!(members.current().collect::<Vec<_>>(), [&moved]);
}

#[tokio::test]
async fn records_of_others_are_left_alone() {
    let store = Arc::new(Memory::new());
    let bad = gateway("g-bad", "h:1");
    store.put(bad.key(), Bytes::from_static(b"{"), None, Condition::Always).await.expect("put");
    let node = crate::records::NodeRecord { id: "n-1".into(), ..Default::default() };
    store.put(node.key(), node.encode(), None, Condition::Always).await.expect("put");
    let good = gateway("g-good", "h:1");
    put(&*store, &good).await;
    let mut members = watch_members::<GatewayRecord>(store);
    assert_eq!(next(&mut members).await, MemberEvent::Joined(good));
    assert_eq!(members.current().count(), 1);
}

/// Stands for a registry that restarts: calls go to whichever life is the current one.
#[derive(Clone)]
struct Lives(Arc<std::sync::Mutex<Memory>>);

impl Lives {
    fn now(&self) -> Memory {
        self.0.lock().expect("no panic").clone()
    }
}

#[async_trait::async_trait]
impl Membership for Lives {
    async fn grant(&self, ttl: Duration) -> Result<crate::seam::LeaseId, MembershipError> {
        self.now().grant(ttl).await
    }

    async fn keep_alive(&self, lease: crate::seam::LeaseId) -> Result<Duration, MembershipError> {
        self.now().keep_alive(lease).await
    }

    async fn revoke(&self, lease: crate::seam::LeaseId) -> Result<(), MembershipError> {
        self.now().revoke(lease).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Option<crate::seam::LeaseId>,
        condition: Condition,
    ) -> Result<crate::seam::PutOutcome, MembershipError> {
        self.now().put(key, value, lease, condition).await
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<crate::seam::PutOutcome, MembershipError> {
        self.now().delete(key, condition).await
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        self.now().list(prefix).await
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        self.now().watch(prefix, after).await
    }
}

#[tokio::test]
async fn a_restart_makes_nobody_leave_who_comes_back_in_time() {
    let store = Lives(Arc::new(std::sync::Mutex::new(Memory::restarted(1, Duration::ZERO))));
    let (back, gone) = (gateway("g-back", "h:1"), gateway("g-gone", "h:1"));
    put(&store, &back).await;
    put(&store, &gone).await;
    let settle = Duration::from_millis(600);
    let mut members = Members::<GatewayRecord>::new(Arc::new(store.clone()), Duration::from_millis(100), settle);
    next(&mut members).await;
    next(&mut members).await;
    *store.0.lock().expect("no panic") = Memory::restarted(2, settle);
    // Notices the new life and tells nothing.
    let quiet = tokio::time::timeout(settle / 2, members.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(members.current().count(), 2, "both get the time to come back");
    put(&store, &back).await;
    assert_eq!(next(&mut members).await, MemberEvent::Left(gone), "and one didn't");
    assert_eq!(members.current().collect::<Vec<_>>(), [&back]);
}

#[tokio::test]
async fn the_picture_is_right_after_any_faults() {
    for seed in 0..10 {
        let store = Memory::new();
        let faulty = Arc::new(Faulty::new(store.clone(), seed, Faults::MANY));
        let mut members = Members::<GatewayRecord>::new(faulty.clone(), LONG, LONG);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut told: BTreeMap<String, GatewayRecord> = BTreeMap::new();
        let mut take = |event: MemberEvent<GatewayRecord>| match event {
            MemberEvent::Joined(record) => {
                assert!(told.insert(record.id.clone(), record).is_none(), "joins once");
                told.clone()
            }
            MemberEvent::Changed(record) => {
                assert!(told.insert(record.id.clone(), record).is_some(), "was there");
                told.clone()
            }
            MemberEvent::Left(record) => {
                assert_eq!(told.remove(&record.id), Some(record), "as it last was");
                told.clone()
            }
        };
        for step in 0..60 {
            let record = gateway(&format!("g-{}", random.u8(0..4)), &format!("h:{step}"));
            if random.f64() < 0.3 {
                delete(&store, &record).await
            } else {
                put(&store, &record).await
            }
            if let Ok(event) = tokio::time::timeout(Duration::from_millis(2), members.next()).await {
                take(event);
            }
        }
        faulty.set(Faults::NONE);
        // A last member, told only after everything before it.
        let last = gateway("g-last", "h:1");
        put(&store, &last).await;
        let mut picture = BTreeMap::new();
        while !picture.contains_key("g-last") || !members.events.is_empty() {
            picture = take(next(&mut members).await);
        }
        let listing = store.list(Bytes::from_static(GatewayRecord::PREFIX.as_bytes())).await.expect("a list");
        let stored: BTreeMap<String, GatewayRecord> = listing
            .entries
            .iter()
            .map(|entry| GatewayRecord::decode(&entry.key, &entry.value).expect("ours"))
            .map(|record| (record.id.clone(), record))
            .collect();
        assert_eq!(picture, stored, "seed {seed}");
    }
}
