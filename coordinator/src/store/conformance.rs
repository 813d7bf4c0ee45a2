//! What every job store must do; run by each implementation, the doubles too. Panics name what is broken.

use std::sync::Arc;

use async_trait::async_trait;
use ingle_proto::Epoch;

use super::faulty::{Fault, FaultyStore};
use super::{COMMIT_BYTES_MAX, JobStore, StoreError};
use crate::core::record::Change;
use crate::limits::CHANGES_PER_COMMIT;

/// One storage that can be opened again and again; the handle of before is dropped by then.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Starts on what is there.
    async fn open(&self) -> (Arc<dyn JobStore>, Epoch);
}

/// Runs everything; `fresh` makes an empty storage.
pub async fn run(fresh: &(dyn Fn() -> Box<dyn Subject> + Sync)) {
    records_last(&*fresh()).await;
    archives_are_apart(&*fresh()).await;
    older_epochs_are_fenced(&*fresh()).await;
    bounds_hold(&*fresh()).await;
    reads_since_a_revision(&*fresh()).await;
    for at in 1..=SCHEDULE {
        for done in [false, true] {
            a_crash_leaves_a_prefix(&*fresh(), Fault { at, done, dead: true }).await;
        }
    }
}

/// Commits of the crash schedule.
const SCHEDULE: u64 = 8;

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put { key: key.to_owned(), value: value.to_vec() }
}

async fn commit(store: &Arc<dyn JobStore>, epoch: Epoch, changes: Vec<Change>) -> u64 {
    store.commit(epoch, changes).await.expect("a commit within bounds by the newest epoch")
}

async fn live(store: &Arc<dyn JobStore>) -> Vec<(String, Vec<u8>)> {
    store.load().await.expect("a healthy store").records
}

async fn records_last(subject: &dyn Subject) {
    let (store, first) = subject.open().await;
    assert!(live(&store).await.is_empty(), "a new store holds nothing");
    let one = commit(&store, first, vec![put("a", b"1"), put("b", b""), put("c", &[0, 255])]).await;
    let two = commit(&store, first, vec![put("a", b"2"), Change::Delete { key: "b".into() }]).await;
    assert_eq!(two, one + 1, "revisions count commits");
    // Within a commit the order of changes counts.
    commit(&store, first, vec![put("d", b"x"), Change::Delete { key: "d".into() }, put("d", b"y")]).await;
    commit(&store, first, vec![Change::Delete { key: "never".into() }]).await;
    let expected =
        vec![("a".to_owned(), b"2".to_vec()), ("c".to_owned(), vec![0, 255]), ("d".to_owned(), b"y".to_vec())];
    assert_eq!(live(&store).await, expected);
    drop(store);
    let (store, second) = subject.open().await;
    assert!(second > first, "each start is a newer epoch: {second} after {first}");
    assert_eq!(live(&store).await, expected, "records outlive the handle");
}

async fn archives_are_apart(subject: &dyn Subject) {
    let (store, epoch) = subject.open().await;
    commit(
        &store,
        epoch,
        vec![put("parts/1/a", b"1"), put("parts/1/b", b"2"), put("parts/10/a", b"3"), put("z", b"4")],
    )
    .await;
    commit(&store, epoch, vec![put("parts/1/b", b"5"), Change::Archive { prefix: "parts/1/".into() }]).await;
    let archived = vec![("parts/1/a".to_owned(), b"1".to_vec()), ("parts/1/b".to_owned(), b"5".to_vec())];
    let left = vec![("parts/10/a".to_owned(), b"3".to_vec()), ("z".to_owned(), b"4".to_vec())];
    assert_eq!(live(&store).await, left, "archived records aren't live, others stay");
    drop(store);
    let (store, epoch) = subject.open().await;
    let found = store.archived("parts/1/").await.expect("readable");
    assert_eq!(found, archived);
    assert!(store.archived("parts/10/").await.expect("readable").is_empty());
    // What is cleared is gone for good, and is in no archive.
    let again = vec![put("parts/10/b", b"6"), Change::Clear { prefix: "parts/10/".into() }, put("parts/10/c", b"7")];
    commit(&store, epoch, again).await;
    let left = vec![("parts/10/c".to_owned(), b"7".to_vec()), ("z".to_owned(), b"4".to_vec())];
    assert_eq!(live(&store).await, left, "cleared records are gone, and what comes after stays");
    assert!(store.archived("parts/10/").await.expect("readable").is_empty());
    commit(&store, epoch, vec![Change::Clear { prefix: "nobody/".into() }]).await;
    // Archiving nothing is nothing.
    commit(&store, epoch, vec![Change::Archive { prefix: "nobody/".into() }]).await;
    assert_eq!(live(&store).await, left);
}

async fn older_epochs_are_fenced(subject: &dyn Subject) {
    let (store, epoch) = subject.open().await;
    commit(&store, epoch, vec![put("a", b"ours")]).await;
    let newer = Epoch { revision: epoch.revision + 7, ..epoch };
    commit(&store, newer, vec![]).await;
    for older in [epoch, Epoch { generation: epoch.generation - 1, revision: u64::from(u32::MAX) }] {
        let refused = store.commit(older, vec![put("a", b"theirs")]).await;
        assert_eq!(refused, Err(StoreError::Fenced { ours: older, stored: newer }));
    }
    assert_eq!(live(&store).await, vec![("a".to_owned(), b"ours".to_vec())], "a fenced commit writes nothing");
    commit(&store, newer, vec![put("a", b"newer")]).await;
    drop(store);
    let (_store, again) = subject.open().await;
    assert!(again > newer, "a start is newer than every epoch that wrote: {again} after {newer}");
}

async fn bounds_hold(subject: &dyn Subject) {
    let (store, epoch) = subject.open().await;
    let many = |count: usize| (0..count).map(|n| put(&format!("k{n:04}"), b"v")).collect::<Vec<_>>();
    let revision = commit(&store, epoch, many(CHANGES_PER_COMMIT)).await;
    let large = vec![0; COMMIT_BYTES_MAX];
    let long = "k".repeat(super::KEY_BYTES_MAX + 1);
    for beyond in [
        many(CHANGES_PER_COMMIT + 1),
        vec![put("k", &large)],
        vec![put("", b"v")],
        vec![put(&long, b"v")],
        vec![put("line\nbreak", b"v")],
        vec![put("é", b"v")],
        vec![Change::Archive { prefix: String::new() }],
        vec![Change::Clear { prefix: String::new() }],
    ] {
        let refused = store.commit(epoch, beyond).await;
        assert!(matches!(&refused, Err(error @ StoreError::Bounds(_)) if !error.retryable()), "{refused:?}");
    }
    assert_eq!(live(&store).await.len(), CHANGES_PER_COMMIT);
    let next = commit(&store, epoch, vec![put("k", &large[..COMMIT_BYTES_MAX - 1])]).await;
    assert_eq!(next, revision + 1, "what was refused counts for nothing");
}

async fn reads_since_a_revision(subject: &dyn Subject) {
    let (store, epoch) = subject.open().await;
    let one = commit(&store, epoch, vec![put("a", b"1"), put("b", b"1")]).await;
    let two = commit(&store, epoch, vec![put("b", b"2")]).await;
    let since = |revision| {
        let store = Arc::clone(&store);
        async move { store.changes_since(revision).await.expect("readable") }
    };
    let after_one = since(one).await;
    assert_eq!((after_one.revision, after_one.epoch), (two, epoch));
    assert_eq!(after_one.records, vec![("b".to_owned(), b"2".to_vec())]);
    assert!(since(two).await.records.is_empty());
    assert_eq!(since(one - 1).await.records.len(), 2);
    assert!(since(u64::MAX).await.records.is_empty());
}

/// The state after any crash is that of some prefix of the commits: all that were answered, and at most one more.
async fn a_crash_leaves_a_prefix(subject: &dyn Subject, fault: Fault) {
    let step = |number: u64| {
        let mut changes = vec![put("count", number.to_string().as_bytes()), put(&format!("k/{number}"), b"v")];
        if number.is_multiple_of(3) {
            changes.push(Change::Delete { key: format!("k/{}", number - 2) });
            changes.push(Change::Archive { prefix: format!("k/{}", number - 1) });
            changes.push(put(&format!("passing/{number}"), b"v"));
            changes.push(Change::Clear { prefix: "passing/".into() });
        }
        changes
    };
    let (inner, epoch) = subject.open().await;
    let store: Arc<dyn JobStore> = Arc::new(FaultyStore::new(inner, fault));
    let mut answered = 0;
    for number in 1..=SCHEDULE {
        match store.commit(epoch, step(number)).await {
            Ok(_) => answered = number,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    }
    assert_eq!(answered, fault.at - 1, "a crashed store takes nothing more");
    drop(store);
    let (store, _) = subject.open().await;
    let done = if fault.done { fault.at } else { fault.at - 1 };
    let (mut records, mut archive) = (std::collections::BTreeMap::new(), Vec::new());
    for number in 1..=done {
        for change in step(number) {
            match change {
                Change::Put { key, value } => drop(records.insert(key, value)),
                Change::Delete { key } => drop(records.remove(&key)),
                Change::Archive { prefix } => archive.extend(records.remove_entry(&prefix)),
                Change::Clear { prefix } => records.retain(|key, _| !key.starts_with(&prefix)),
            }
        }
    }
    assert_eq!(live(&store).await, records.into_iter().collect::<Vec<_>>(), "{fault:?}");
    assert_eq!(store.archived("k/").await.expect("readable"), archive, "{fault:?}");
}
