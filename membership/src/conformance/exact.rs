//! The suite for a store that works: every answer is checked to the letter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use super::{key, text};
use crate::limits::{KEY_BYTES_MAX, TTL_MAX, TTL_MIN, VALUE_BYTES_MAX};
use crate::seam::{
    Condition, Entry, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream,
};

/// Bound on anything that is waited for; a store that keeps its promises needs a fraction of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the whole suite below `scope`, which no one else uses.
///
/// # Panics
/// If the store breaks one of the seam's promises.
pub async fn exact(store: Arc<dyn Membership>, scope: &str) {
    conditions(&*store, &format!("{scope}/conditions/")).await;
    listings(&*store, &format!("{scope}/listings/")).await;
    leases(&*store, &format!("{scope}/leases/")).await;
    bounds(&*store, &format!("{scope}/bounds/")).await;
    one_of_many_wins(&store, &format!("{scope}/race/")).await;
    watches(&*store, &format!("{scope}/watches/")).await;
    watch_misses_nothing(&store, &format!("{scope}/stream/")).await;
    foreign_revisions_reset(&*store, &format!("{scope}/foreign/")).await;
    leases_end(&*store, &format!("{scope}/end/")).await;
}

async fn put(store: &dyn Membership, key: &Bytes, value: &str, lease: Option<LeaseId>) -> Revision {
    let outcome = store.put(key.clone(), text(value), lease, Condition::Always).await.expect("a put");
    outcome.done().expect("an unconditional put is done")
}

async fn list(store: &dyn Membership, prefix: &str) -> Listing {
    store.list(text(prefix)).await.expect("a list")
}

async fn get(store: &dyn Membership, key: &Bytes) -> Option<Entry> {
    let listing = store.list(key.clone()).await.expect("a list");
    listing.entries.into_iter().find(|entry| entry.key == key)
}

/// The next change, past signs of life.
async fn next_change(watch: &mut WatchStream) -> Event {
    let change = async {
        loop {
            match watch.next().await.expect("the watch is open").expect("the watch works") {
                Event::Progress(_) => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(PATIENCE, change).await.expect("a change within the patience")
}

async fn conditions(store: &dyn Membership, scope: &str) {
    let a = key(scope, "a");
    let if_absent = store.put(a.clone(), text("1"), None, Condition::Absent).await.expect("a put");
    let first = if_absent.done().expect("the key is absent");
    let entry = get(store, &a).await.expect("the key is there");
    assert_eq!((entry.value, entry.created, entry.modified, entry.lease), (text("1"), first, first, None));

    let again = store.put(a.clone(), text("2"), None, Condition::Absent).await.expect("a put");
    let PutOutcome::Refused(at) = again else { panic!("the key is there: {again:?}") };
    assert!(at >= first, "a refusal tells where the store stands");

    let second = put(store, &a, "3", None).await;
    assert!(second > first, "revisions rise");
    let entry = get(store, &a).await.expect("the key is there");
    assert_eq!((entry.created, entry.modified), (first, second));

    let stale = store.put(a.clone(), text("4"), None, Condition::Revision(first)).await.expect("a put");
    assert_eq!(stale.done(), None, "its last change was another");
    let fresh = store.put(a.clone(), text("5"), None, Condition::Revision(second)).await.expect("a put");
    let third = fresh.done().expect("its last change was this one");
    assert!(third > second);

    let stale = store.delete(a.clone(), Condition::Revision(second)).await.expect("a delete");
    assert_eq!(stale.done(), None);
    let gone = store.delete(a.clone(), Condition::Revision(third)).await.expect("a delete").done();
    assert!(gone.expect("its last change was this one") > third, "a deletion is a change");
    assert_eq!(get(store, &a).await, None);
    let absent = store.delete(a.clone(), Condition::Always).await.expect("a delete");
    assert!(absent.done().is_some(), "deleting what is absent is done at once");
    let absent = store.delete(a.clone(), Condition::Revision(third)).await.expect("a delete");
    assert_eq!(absent.done(), None, "an absent key has no last change");
    let absent = store.put(a.clone(), text("6"), None, Condition::Revision(third)).await.expect("a put");
    assert_eq!(absent.done(), None, "an absent key has no last change");
    let made = store.put(a.clone(), text("7"), None, Condition::Absent).await.expect("a put").done();
    let entry = get(store, &a).await.expect("the key is there");
    assert_eq!(Some(entry.created), made, "made anew");
    assert!(store.delete(a, Condition::Absent).await.is_err_and(|error| !error.retryable()));
}

async fn listings(store: &dyn Membership, scope: &str) {
    let names = ["b", "a", "a/x", "a/\u{7f}", "ab"];
    let mut last = Revision::default();
    for name in names {
        last = put(store, &key(scope, name), name, None).await;
    }
    let mut raw = key(scope, "a/").to_vec();
    raw.push(0xff);
    store.put(Bytes::from(raw.clone()), Bytes::from_static(&[0, 0xff]), None, Condition::Always).await.expect("bytes");
    let everything = list(store, scope).await;
    assert!(everything.revision > last);
    let keys: Vec<Bytes> = everything.entries.iter().map(|entry| entry.key.clone()).collect();
    let mut sorted: Vec<Bytes> = names.iter().map(|name| key(scope, name)).chain([Bytes::from(raw)]).collect();
    sorted.sort();
    assert_eq!(keys, sorted, "in order of their bytes");
    let below = list(store, &format!("{scope}a/")).await;
    assert_eq!(below.entries.len(), 3, "a prefix is a prefix of bytes");
    assert_eq!(list(store, &format!("{scope}c")).await.entries, []);
    let all = list(store, "").await;
    assert!(all.entries.len() >= keys.len(), "an empty prefix is all keys");
    assert!(store.list(Bytes::from(vec![0xff; 3])).await.expect("a list").entries.is_empty());
    // More than fits a page of any store.
    for index in 0..130 {
        put(store, &key(scope, &format!("many/{index:03}")), "", None).await;
    }
    let many = list(store, &format!("{scope}many/")).await;
    assert_eq!(many.entries.len(), 130);
    assert!(many.entries.is_sorted_by(|a, b| a.key < b.key));
}

async fn leases(store: &dyn Membership, scope: &str) {
    let (a, b, c) = (key(scope, "a"), key(scope, "b"), key(scope, "c"));
    let ttl = Duration::from_secs(60);
    let lease = store.grant(ttl).await.expect("a lease");
    let other = store.grant(ttl).await.expect("a lease");
    assert_ne!(lease, other);
    let left = store.keep_alive(lease).await.expect("renewed");
    assert!(left > ttl / 2 && left <= ttl + Duration::from_secs(1), "{left:?}");
    put(store, &a, "", Some(lease)).await;
    put(store, &b, "", Some(lease)).await;
    put(store, &c, "", Some(lease)).await;
    assert_eq!(get(store, &a).await.expect("there").lease, Some(lease));
    put(store, &b, "", None).await;
    put(store, &c, "", Some(other)).await;
    assert_eq!(get(store, &b).await.expect("there").lease, None, "put without a lease hangs on none");
    store.revoke(lease).await.expect("ended");
    let keys: Vec<Bytes> = list(store, scope).await.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [b, c.clone()], "what no longer hung on it stays");
    assert_eq!(store.keep_alive(lease).await, Err(MembershipError::LeaseNotFound(lease)));
    let late = store.put(a.clone(), text(""), Some(lease), Condition::Always).await;
    assert_eq!(late, Err(MembershipError::LeaseNotFound(lease)));
    assert_eq!(get(store, &a).await, None);
    store.revoke(lease).await.expect("ending what has ended changes nothing");
    store.revoke(other).await.expect("ended");
    assert_eq!(get(store, &c).await, None);
}

async fn bounds(store: &dyn Membership, scope: &str) {
    let refused = |error: MembershipError| matches!(error, MembershipError::Invalid { .. }) && !error.retryable();
    for ttl in [Duration::ZERO, TTL_MIN - Duration::from_millis(1), TTL_MAX + Duration::from_secs(1), Duration::MAX] {
        assert!(store.grant(ttl).await.is_err_and(refused), "{ttl:?}");
    }
    let big = Bytes::from(vec![b'x'; VALUE_BYTES_MAX + 1]);
    let long = Bytes::from(vec![b'x'; KEY_BYTES_MAX + 1]);
    let fits = key(scope, "fits");
    for (name, value) in [(Bytes::new(), text("")), (long.clone(), text("")), (fits.clone(), big.clone())] {
        assert!(store.put(name.clone(), value, None, Condition::Always).await.is_err_and(refused), "{}", name.len());
    }
    assert!(store.delete(Bytes::new(), Condition::Always).await.is_err_and(refused));
    assert!(store.delete(long.clone(), Condition::Always).await.is_err_and(refused));
    assert!(store.list(long.clone()).await.is_err_and(refused));
    let at = list(store, scope).await.revision;
    assert!(store.watch(long.clone(), at).await.is_err_and(refused));
    let mut name = fits.to_vec();
    name.resize(KEY_BYTES_MAX, b'x');
    let largest = Bytes::from(name);
    let outcome = store.put(largest.clone(), big.slice(1..), None, Condition::Always).await.expect("just within");
    assert!(outcome.done().is_some());
    assert_eq!(get(store, &largest).await.expect("there").value.len(), VALUE_BYTES_MAX);
    store.delete(largest, Condition::Always).await.expect("deleted");
    let nul = key(scope, "nul\0in\0it");
    put(store, &nul, "\0", None).await;
    assert_eq!(get(store, &nul).await.expect("there").value, text("\0"));
}

async fn one_of_many_wins(store: &Arc<dyn Membership>, scope: &str) {
    let name = key(scope, "crown");
    let claims = (0..16).map(|index| store.put(name.clone(), text(&index.to_string()), None, Condition::Absent));
    let outcomes = futures::future::join_all(claims).await;
    let winners: Vec<usize> = outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| outcome.as_ref().expect("a put").done().is_some())
        .map(|(index, _)| index)
        .collect();
    assert_eq!(winners.len(), 1, "exactly one of sixteen");
    assert_eq!(get(&**store, &name).await.expect("there").value, text(&winners[0].to_string()));
}

async fn watches(store: &dyn Membership, scope: &str) {
    let (a, b) = (key(scope, "a"), key(scope, "b"));
    let outside = Bytes::from(format!("{}-outside", scope.trim_end_matches('/')));
    let start = put(store, &a, "before", None).await;
    let one = put(store, &a, "1", None).await;
    put(store, &outside, "x", None).await;
    let mut watch = store.watch(text(scope), start).await.expect("a watch");
    let Event::Put(entry) = next_change(&mut watch).await else { panic!("a put") };
    assert_eq!((&entry.key, entry.value, entry.created, entry.modified), (&a, text("1"), start, one));
    // Changes made while it is open, in order, and nothing from outside.
    let two = put(store, &b, "2", None).await;
    put(store, &outside, "y", None).await;
    let three = store.delete(a.clone(), Condition::Always).await.expect("a delete").done().expect("done");
    let Event::Put(entry) = next_change(&mut watch).await else { panic!("a put") };
    assert_eq!((&entry.key, entry.modified), (&b, two));
    assert_eq!(next_change(&mut watch).await, Event::Delete { key: a.clone(), revision: three });
    // From a revision in the middle: what came after it, and it alone.
    let mut resumed = store.watch(text(scope), two).await.expect("a watch");
    assert_eq!(next_change(&mut resumed).await, Event::Delete { key: a, revision: three });
    // From a listing: nothing that it already told.
    let listing = list(store, scope).await;
    let mut from_list = store.watch(text(scope), listing.revision).await.expect("a watch");
    let four = put(store, &b, "4", None).await;
    let Event::Put(entry) = next_change(&mut from_list).await else { panic!("a put") };
    assert_eq!(entry.modified, four);
    // Ending a lease tells of every key that hung on it.
    let lease = store.grant(Duration::from_secs(60)).await.expect("a lease");
    put(store, &key(scope, "l1"), "", Some(lease)).await;
    let last = put(store, &key(scope, "l2"), "", Some(lease)).await;
    let mut watch = store.watch(text(scope), last).await.expect("a watch");
    store.revoke(lease).await.expect("ended");
    let mut gone = BTreeSet::new();
    for _ in 0..2 {
        let Event::Delete { key, .. } = next_change(&mut watch).await else { panic!("a deletion") };
        gone.insert(key);
    }
    assert_eq!(gone, BTreeSet::from([key(scope, "l1"), key(scope, "l2")]));
}

/// A reader that lists and then watches, beside a writer, ends with what the writer wrote.
async fn watch_misses_nothing(store: &Arc<dyn Membership>, scope: &str) {
    const WRITES: usize = 200;
    let writer = async {
        for index in 0..WRITES {
            put(&**store, &key(scope, &format!("{}", index % 7)), &index.to_string(), None).await;
        }
    };
    let reader = async {
        tokio::task::yield_now().await;
        let listing = list(&**store, scope).await;
        let mut seen = listing.entries.iter().map(|entry| number(&entry.value)).max();
        let mut watch = store.watch(text(scope), listing.revision).await.expect("a watch");
        let mut reached = listing.revision;
        while seen != Some(WRITES - 1) {
            let Event::Put(entry) = next_change(&mut watch).await else { panic!("only puts here") };
            assert!(entry.modified > reached, "in order and none twice");
            reached = entry.modified;
            let index = number(&entry.value);
            assert_eq!(index, seen.map_or(0, |last| last + 1), "none missing");
            seen = Some(index);
        }
    };
    futures::future::join(writer, reader).await;
}

fn number(value: &Bytes) -> usize {
    std::str::from_utf8(value).expect("digits").parse().expect("a number")
}

async fn foreign_revisions_reset(store: &dyn Membership, scope: &str) {
    let now = put(store, &key(scope, "a"), "", None).await;
    let foreign = Revision { epoch: now.epoch.wrapping_add(7), counter: now.counter };
    let mut watch = store.watch(text(scope), foreign).await.expect("a watch");
    assert_eq!(next_change(&mut watch).await, Event::Reset, "another life of the store");
    assert!(watch.next().await.is_none(), "a watch ends with its reset");
    let outcome = store.put(key(scope, "a"), text(""), None, Condition::Revision(foreign)).await.expect("a put");
    assert_eq!(outcome.done(), None, "no key has a last change of another life");
}

async fn leases_end(store: &dyn Membership, scope: &str) {
    let (kept, lost) = (key(scope, "kept"), key(scope, "lost"));
    // Twice as long: a busy machine must not end it between two renewals.
    let renewed = store.grant(TTL_MIN * 2).await.expect("a lease");
    let silent = store.grant(TTL_MIN).await.expect("a lease");
    put(store, &kept, "", Some(renewed)).await;
    let made = put(store, &lost, "", Some(silent)).await;
    let mut watch = store.watch(text(scope), made).await.expect("a watch");
    let renew = async {
        loop {
            store.keep_alive(renewed).await.expect("renewed in time");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let event = tokio::select! {
        event = next_change(&mut watch) => event,
        () = renew => unreachable!("renews for ever"),
    };
    assert!(matches!(&event, Event::Delete { key, .. } if *key == lost), "{event:?}");
    assert!(get(store, &kept).await.is_some(), "a lease that is renewed doesn't end");
    assert!(store.keep_alive(renewed).await.is_ok());
    assert_eq!(store.keep_alive(silent).await, Err(MembershipError::LeaseNotFound(silent)));
    store.revoke(renewed).await.expect("ended");
}
