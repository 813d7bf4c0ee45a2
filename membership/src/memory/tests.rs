//! What only the in-process registry promises: its clock, its bounds, and its restarts.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use super::*;
use crate::limits;
use crate::seam::Event;

const TTL: Duration = Duration::from_secs(10);

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

async fn put(memory: &Memory, name: &str, lease: Option<LeaseId>) -> Revision {
    let outcome = memory.put(key(name), key("v"), lease, Condition::Always).await.expect("within bounds");
    outcome.done().expect("no condition")
}

#[tokio::test]
async fn leases_end_by_the_given_clock() {
    let clock = ManualClock::default();
    let memory = Memory::with(1, Duration::ZERO, clock.clock());
    let lease = memory.grant(TTL).await.expect("a lease");
    put(&memory, "a", Some(lease)).await;
    clock.advance(TTL - Duration::from_nanos(1));
    assert_eq!(memory.list(key("")).await.expect("a list").entries.len(), 1);
    assert_eq!(memory.keep_alive(lease).await, Ok(TTL));
    clock.advance(TTL - Duration::from_nanos(1));
    assert_eq!(memory.list(key("")).await.expect("a list").entries.len(), 1);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(memory.keep_alive(lease).await, Err(MembershipError::LeaseNotFound(lease)));
    assert!(memory.list(key("")).await.expect("a list").entries.is_empty());
}

#[tokio::test]
async fn a_watch_sees_leases_end_without_any_caller() {
    let clock = ManualClock::default();
    let memory = Memory::with(1, Duration::ZERO, clock.clock());
    let lease = memory.grant(TTL).await.expect("a lease");
    let made = put(&memory, "a", Some(lease)).await;
    let mut watch = memory.watch(key(""), made).await.expect("a watch");
    let next = watch.next();
    clock.advance(TTL);
    memory.expire();
    let event = next.await.expect("open").expect("no error");
    assert_eq!(event, Event::Delete { key: key("a"), revision: Revision { epoch: 1, counter: 2 } });
}

#[tokio::test]
async fn a_restart_resets_watchers_and_gives_members_time() {
    let clock = ManualClock::default();
    let settle = Duration::from_secs(35);
    let before = Memory::with(1, Duration::ZERO, clock.clock());
    let old_lease = before.grant(TTL).await.expect("a lease");
    let reached = put(&before, "a", Some(old_lease)).await;

    let after = Memory::with(2, settle, clock.clock());
    let mut watch = after.watch(key(""), reached).await.expect("a watch");
    assert_eq!(watch.next().await, Some(Ok(Event::Reset)));
    assert_eq!(watch.next().await, None, "a watch ends with its reset");
    assert_eq!(after.keep_alive(old_lease).await, Err(MembershipError::LeaseNotFound(old_lease)));

    let lease = after.grant(TTL).await.expect("a lease");
    assert_ne!(lease, old_lease);
    assert!(put(&after, "a", Some(lease)).await > reached, "revisions go on rising");
    clock.advance(settle - Duration::from_nanos(1));
    assert!(!after.settled());
    assert_eq!(after.list(key("")).await.expect("a list").entries.len(), 1, "nothing ends before it has settled");
    clock.advance(Duration::from_nanos(1));
    assert!(after.settled());
    assert!(after.list(key("")).await.expect("a list").entries.is_empty());
}

#[tokio::test]
async fn history_is_bounded_and_a_lagging_watch_is_reset() {
    let memory = Memory::new();
    let start = memory.list(key("")).await.expect("a list").revision;
    let lagging = memory.watch(key(""), start).await.expect("a watch");
    for _ in 0..=limits::HISTORY_EVENTS_MAX {
        put(&memory, "a", None).await;
    }
    let events: Vec<_> = lagging.collect().await;
    assert_eq!(events, [Ok(Event::Reset)]);
    let one_later = Revision { epoch: 1, counter: 1 };
    let within = memory.watch(key(""), one_later).await.expect("a watch");
    let events: Vec<_> = within.take(limits::HISTORY_EVENTS_MAX).collect().await;
    assert!(matches!(events.last(), Some(Ok(Event::Put(_)))), "exactly the bound is kept");
}

#[tokio::test]
async fn bounds_hold() {
    let memory = Memory::new();
    let big = Bytes::from(vec![0; limits::VALUE_BYTES_MAX]);
    let mut refused = None;
    for index in 0..100 {
        let name = Bytes::from(format!("{index:03}"));
        if let Err(error) = memory.put(name, big.clone(), None, Condition::Always).await {
            refused = Some((index, error));
            break;
        }
    }
    let (held, error) = refused.expect("a bound on all of it");
    assert!(matches!(error, MembershipError::Full { .. }) && error.retryable(), "{error}");
    assert!(held >= 40, "room for {held} large values");
    // Replacing frees what was there; deleting makes room.
    memory.put(key("000"), big.clone(), None, Condition::Always).await.expect("room for what was there");
    memory.delete(key("000"), Condition::Always).await.expect("deleted");
    memory.put(key("other"), big, None, Condition::Always).await.expect("room again");
}
