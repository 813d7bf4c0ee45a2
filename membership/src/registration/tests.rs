//! Claiming, renewing, coming back, and two processes with one identity.

use super::*;
use crate::faulty::{Faults, Faulty};
use crate::memory::Memory;
use crate::records::NodeRecord;

const TTL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

fn node(incarnation: &str, place: &str) -> NodeRecord {
    NodeRecord { id: "n-1".into(), incarnation: incarnation.into(), place: place.into(), ..Default::default() }
}

async fn stored(store: &dyn Membership) -> Option<NodeRecord> {
    let listing = store.list(node("", "").key()).await.expect("a list");
    listing.entries.first().map(|entry| NodeRecord::decode(&entry.key, &entry.value).expect("ours"))
}

struct Running {
    handle: RegistrationHandle<NodeRecord>,
    stop: Shutdown,
    task: tokio::task::JoinHandle<Result<(), RegistrationError>>,
}

fn start(store: Arc<dyn Membership>, record: NodeRecord, patience: Duration) -> Running {
    let (registration, handle) = Registration::new(store, record, TTL);
    let stop = Shutdown::new();
    let task = tokio::spawn(registration.patience(patience).run(stop.clone()));
    Running { handle, stop, task }
}

impl Running {
    async fn registered(&mut self) {
        timeout(PATIENCE, self.handle.registered()).await.expect("in time");
        let state = self.handle.state.borrow().clone();
        assert!(matches!(state, RegistrationState::Registered(_)), "{state:?}");
    }

    async fn end(self) -> Result<(), RegistrationError> {
        self.stop.begin();
        self.task.await.expect("no panic")
    }
}

#[tokio::test]
async fn registers_changes_and_says_goodbye() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    let mut member = start(store.clone(), node("i-1", ""), TTL);
    member.registered().await;
    assert_eq!(stored(&*store).await, Some(node("i-1", "")));
    member.handle.update(|record| record.name = "attic".into());
    timeout(PATIENCE, member.handle.state.changed()).await.expect("in time").expect("running");
    assert_eq!(stored(&*store).await.expect("there").name, "attic");
    member.handle.update(|record| record.id = "n-2".into());
    assert_eq!(member.handle.record.borrow().id, "n-1", "an identity doesn't change");
    // Longer than the lease: it is renewed.
    tokio::time::sleep(TTL + TTL / 2).await;
    assert_eq!(stored(&*store).await.expect("there").name, "attic");
    member.end().await.expect("a clean end");
    assert_eq!(stored(&*store).await, None);
}

#[tokio::test]
async fn a_record_that_changes_all_the_time_is_renewed() {
    let (store, ttl) = (Memory::new(), 3 * TTL);
    let (registration, mut handle) = Registration::new(Arc::new(store.clone()), node("i-1", ""), ttl);
    let stop = Shutdown::new();
    let task = tokio::spawn(registration.run(stop.clone()));
    timeout(PATIENCE, handle.registered()).await.expect("in time");
    let lease = async || {
        let listing = store.list(node("", "").key()).await.expect("a list");
        listing.entries.first().and_then(|entry| entry.lease)
    };
    let first = lease().await;
    assert!(first.is_some());
    let (begun, mut changes) = (boottime(), 0_u32);
    while boottime().saturating_sub(begun) < ttl + TTL {
        changes += 1;
        handle.update(|record| record.name = changes.to_string());
        tokio::time::sleep(ttl / 60).await;
    }
    assert_eq!(lease().await, first, "its lease has ended, and it came back under another");
    stop.begin();
    task.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_second_process_with_one_identity_is_refused_while_the_first_lives() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    let mut first = start(store.clone(), node("i-1", "here"), TTL);
    first.registered().await;
    let second = start(store.clone(), node("i-2", "a copy elsewhere"), Duration::ZERO);
    let error = timeout(PATIENCE, second.task).await.expect("in time").expect("no panic").expect_err("refused");
    let expected = RegistrationError::IdentityInUse { id: "n-1".into(), other: "i-1".into() };
    assert_eq!(error, expected);
    assert!(error.retryable() && error.to_string().contains("identity.key"), "{error}");
    // With patience it finds out that the first one lives on, for it outwaits the lease.
    let patient = start(store.clone(), node("i-3", "another copy"), TTL + Duration::from_secs(1));
    let error = timeout(PATIENCE, patient.task).await.expect("in time").expect("no panic").expect_err("refused");
    assert_eq!(error, expected);
    assert_eq!(stored(&*store).await.expect("there").incarnation, "i-1", "the first is untouched");
    first.end().await.expect("a clean end");
}

#[tokio::test]
async fn a_killed_process_comes_back_when_its_lease_has_ended() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    let mut first = start(store.clone(), node("i-1", "here"), TTL);
    first.registered().await;
    first.task.abort();
    let mut second = start(store.clone(), node("i-2", "there"), PATIENCE);
    second.registered().await;
    assert_eq!(stored(&*store).await.expect("there").incarnation, "i-2");
    second.end().await.expect("a clean end");
}

#[tokio::test]
async fn a_killed_process_comes_back_at_once_in_its_own_place() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    // A lease that would outlast this test.
    let lease = store.grant(Duration::from_secs(3600)).await.expect("a lease");
    let old = node("i-1", "here");
    store.put(old.key(), old.encode(), Some(lease), Condition::Always).await.expect("put");
    let mut second = start(store.clone(), node("i-2", "here"), Duration::ZERO);
    second.registered().await;
    store.revoke(lease).await.expect("the old lease ends");
    assert_eq!(stored(&*store).await.expect("there").incarnation, "i-2", "it no longer hangs on the old lease");
    second.end().await.expect("a clean end");
}

#[tokio::test]
async fn comes_back_after_the_record_is_deleted() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    let mut member = start(store.clone(), node("i-1", ""), TTL);
    member.registered().await;
    store.delete(node("", "").key(), Condition::Always).await.expect("deleted");
    let back = async {
        while stored(&*store).await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back).await.expect("it looks after itself");
    member.end().await.expect("a clean end");
}

#[tokio::test]
async fn stays_registered_under_faults() {
    for seed in 0..5 {
        let store = Memory::new();
        let faulty = Arc::new(Faulty::new(store.clone(), seed, Faults::MANY));
        let mut member = start(faulty.clone(), node("i-1", ""), PATIENCE);
        member.registered().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        faulty.set(Faults::NONE);
        member.handle.update(|record| record.version = "2".into());
        let settled = async {
            while stored(&store).await.is_none_or(|record| record.version != "2") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, settled).await.unwrap_or_else(|_| panic!("seed {seed}: doesn't come back"));
        member.end().await.expect("a clean end");
        assert_eq!(stored(&store).await, None, "seed {seed}");
    }
}

#[tokio::test]
async fn a_record_that_the_store_refuses_ends_it() {
    let store: Arc<dyn Membership> = Arc::new(Memory::new());
    let huge = NodeRecord { name: "x".repeat(100_000), ..node("i-1", "") };
    let member = start(store, huge, PATIENCE);
    let error = timeout(PATIENCE, member.task).await.expect("in time").expect("no panic").expect_err("too large");
    assert!(matches!(error, RegistrationError::Refused { .. }) && !error.retryable(), "{error}");
}
