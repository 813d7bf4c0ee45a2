//! The job store in etcd: the suite that every store runs, and what only several coordinators can do to each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use ingle_coordinator::core::record::{self, Change};
use ingle_coordinator::store::conformance::{self, Subject};
use ingle_coordinator::store::{ArchiveBounds, EtcdStore, JobStore, Room, SqliteStore, StoreError, migrate};
use ingle_membership::etcd::Etcd as Members;
use ingle_membership::records::LEADER;
use ingle_membership::{Condition, ConnectOptions, Membership, PutOutcome};
use ingle_proto::Epoch;
use ingle_tests::etcd::Etcd;
use ingle_tests::eventually::eventually;

/// A store below a root of its own; each opening is a start with the next epoch.
struct InEtcd {
    url: String,
    root: String,
}

async fn open(url: &str, root: &str) -> (EtcdStore, Epoch) {
    // On a busy machine an answer may take its time: these tests take none for lost.
    let options = ConnectOptions { deadline: std::time::Duration::from_secs(30), ..ConnectOptions::default() };
    EtcdStore::open_at(url, &options, root, false).await.expect("etcd answers")
}

#[async_trait]
impl Subject for InEtcd {
    async fn open(&self) -> (Arc<dyn JobStore>, Epoch) {
        let (store, stored) = open(&self.url, &self.root).await;
        let epoch = Epoch { revision: stored.revision + 1, ..stored };
        store.commit(epoch, Vec::new()).await.expect("a newer epoch");
        (Arc::new(store), epoch)
    }
}

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put { key: key.to_owned(), value: value.to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_etcd_conforms() {
    let Some(server) = Etcd::start() else { return };
    let (url, roots) = (server.url(), AtomicU64::new(0));
    conformance::run(&|| {
        let root = format!("/test/{}/", roots.fetch_add(1, Ordering::Relaxed));
        Box::new(InEtcd { url: url.clone(), root })
    })
    .await;
}

/// More records than a transaction takes, and more bytes than a request may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_job_is_archived_whole() {
    let Some(server) = Etcd::start() else { return };
    let (store, stored) = open(&server.url(), "/test/").await;
    let epoch = Epoch { revision: stored.revision + 1, ..stored };
    let key = |n: usize| format!("parts/1/{n:04}");
    for some in (0..500).collect::<Vec<_>>().chunks(90) {
        store.commit(epoch, some.iter().map(|n| put(&key(*n), &[*n as u8; 9000])).collect()).await.expect("taken");
    }
    store.commit(epoch, vec![put("parts/2/0", b"stays"), put(&key(7), b"last")]).await.expect("taken");
    let revision = store.commit(epoch, vec![Change::Archive { prefix: "parts/1/".into() }]).await.expect("taken");
    let there = store.load().await.expect("read");
    assert_eq!((there.revision, there.records), (revision, vec![("parts/2/0".to_owned(), b"stays".to_vec())]));
    let archived = store.archived("parts/1/").await.expect("read");
    assert_eq!(archived.len(), 500);
    assert!(archived.iter().enumerate().all(|(n, (at, value))| {
        *at == key(n) && if n == 7 { value == b"last" } else { *value == [n as u8; 9000] }
    }));
    // As many writes as a commit holds, between what is cleared: over 200 keys for one transaction.
    let many: Vec<Change> = (0..99).map(|n| put(&format!("parts/2/{n:04}"), b"new")).collect();
    store.commit(epoch, many.clone()).await.expect("taken");
    let cleared = std::iter::once(Change::Clear { prefix: "parts/2/".into() }).chain(many).collect();
    let next = store.commit(epoch, cleared).await.expect("taken");
    assert_eq!(next, revision + 2, "one commit, however many transactions");
    let there = store.load().await.expect("read");
    assert_eq!(there.records.len(), 99);
    assert!(there.records.iter().all(|(key, value)| key.starts_with("parts/2/00") && value == b"new"));
}

/// From one coordinator to several: everything comes along, once, under a newer generation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_disk_moves_into_etcd() {
    let Some(server) = Etcd::start() else { return };
    let (dir, options) = (tempfile::tempdir().expect("a directory"), ConnectOptions::default());
    let job = |n: u64| record::job_key(n);
    let (store, epoch) = SqliteStore::open(dir.path()).expect("a new store");
    for number in 1..=300_u64 {
        let parts = (0..3).map(|batch| put(&record::batch_key(number, batch), &[number as u8; 700]));
        let changes = std::iter::once(put(&job(number), b"job")).chain(parts).collect();
        store.commit(epoch, changes).await.expect("room");
        if number % 2 == 0 {
            let prefix = record::parts_prefix(number);
            store.commit(epoch, vec![Change::Archive { prefix }]).await.expect("room");
        }
    }
    let (live, archived) = (store.load().await.expect("read").records, store.archived("").await.expect("read"));
    assert_eq!((live.len(), archived.len()), (300 + 150 * 3, 150 * 3));
    drop(store);

    let count = migrate::to_etcd(dir.path(), &server.url(), &options).await.expect("moved");
    assert_eq!(count, live.len() + archived.len());
    let (moved, stored) = EtcdStore::open(&server.url(), &options).await.expect("etcd answers");
    assert!(stored.generation > epoch.generation, "{stored} after {epoch}");
    assert_eq!(moved.load().await.expect("read").records, live);
    assert_eq!(moved.archived("").await.expect("read"), archived);
    assert!(SqliteStore::lies_in(dir.path()).is_none() && dir.path().join("jobs.sqlite.migrated").exists());

    // A second house's jobs can't be put on top of them.
    let other = tempfile::tempdir().expect("a directory");
    drop(SqliteStore::open(other.path()).expect("a new store"));
    let refused = migrate::to_etcd(other.path(), &server.url(), &options).await.expect_err("two houses");
    assert!(refused.to_string().contains("already"), "{refused}");
    assert!(SqliteStore::lies_in(other.path()).is_some(), "and stay where they are");
}

/// A leader that was frozen for as long as one likes: its writes are refused from the moment another has the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_the_leader_s_key_writes_nothing() {
    let Some(server) = Etcd::start() else { return };
    let (url, options) = (server.url(), ConnectOptions::default());
    let members = Members::connect(&url, &options).await.expect("a URL");
    let elect = async |name: &'static str| {
        let key = bytes::Bytes::from_static(LEADER.as_bytes());
        members.delete(key.clone(), Condition::Always).await.expect("etcd answers");
        match members.put(key, name.into(), None, Condition::Absent).await.expect("etcd answers") {
            PutOutcome::Done(revision) => revision.counter,
            PutOutcome::Refused(_) => panic!("{name}: somebody leads"),
        }
    };
    let (frozen, stored) = EtcdStore::open(&url, &options).await.expect("etcd answers");
    let before = Epoch { revision: elect("frozen").await, ..stored };
    frozen.commit(before, vec![put("a", b"1")]).await.expect("it leads");
    let after = Epoch { revision: elect("next").await, ..stored };
    // The next one has written nothing yet: the key alone tells.
    let refused = frozen.commit(before, vec![put("a", b"2")]).await;
    assert!(matches!(refused, Err(StoreError::Fenced { ours, .. }) if ours == before), "{refused:?}");
    let (next, stored) = EtcdStore::open(&url, &options).await.expect("etcd answers");
    assert_eq!(stored, before, "the store knows who wrote last");
    next.commit(after, vec![put("b", b"3")]).await.expect("it leads");
    for _ in 0..2 {
        let refused = frozen.commit(before, vec![put("a", b"2")]).await;
        assert_eq!(refused, Err(StoreError::Fenced { ours: before, stored: after }));
    }
    // An epoch that nobody was elected for is as bad.
    let made_up = Epoch { revision: after.revision + 100, ..after };
    assert!(matches!(next.commit(made_up, vec![put("c", b"4")]).await, Err(StoreError::Fenced { .. })));
    let records = next.load().await.expect("read").records;
    assert_eq!(records, [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"3".to_vec())]);
}

/// Old jobs leave as a whole, and nothing that lives does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_jobs_leave_the_archive_in_etcd_whole() {
    let Some(server) = Etcd::start() else { return };
    let (store, stored) = open(&server.url(), "/test/").await;
    let store = store.keep(ArchiveBounds { records: 45, bytes: u64::MAX }, 2 << 30);
    let epoch = Epoch { revision: stored.revision + 1, ..stored };
    store.commit(epoch, vec![put("parts/0001/live", b"of a job that goes on")]).await.expect("taken");
    for job in 2..=9_u64 {
        let parts = (0..10).map(|part| put(&format!("parts/{job:04}/{part}"), b"part")).collect();
        store.commit(epoch, parts).await.expect("taken");
        store.commit(epoch, vec![Change::Archive { prefix: format!("parts/{job:04}/") }]).await.expect("taken");
    }
    let left: Vec<String> = store.archived("").await.expect("read").into_iter().map(|(key, _)| key).collect();
    assert!(left.len() <= 45 && left.last().is_some_and(|key| key.starts_with("parts/0009/")), "{left:?}");
    let jobs: std::collections::BTreeSet<&str> = left.iter().map(|key| &key[..11]).collect();
    assert_eq!(jobs.len() * 10, left.len(), "whole jobs alone: {left:?}");
    assert_eq!(store.load().await.expect("read").records.len(), 1);
}

/// Before etcd is full no job is accepted any more; when it is, nothing is written, and it says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_ends_admission_first() {
    let quota: u64 = 64 << 20;
    let Some(server) = Etcd::start_with(&["--quota-backend-bytes", &quota.to_string()]) else { return };
    let (store, stored) = open(&server.url(), "/test/").await;
    let store = store.keep(ArchiveBounds::default(), quota);
    let epoch = Epoch { revision: stored.revision + 1, ..stored };
    assert_eq!(store.tend().await.expect("etcd says"), Room::Enough);
    let (mut little_at, mut full_at) = (None, None);
    for n in 0..2000_u32 {
        if little_at.is_none() && matches!(store.tend().await.expect("etcd says"), Room::Little(_)) {
            little_at = Some(n);
        }
        match store.commit(epoch, vec![put(&format!("parts/1/{n:04}"), &vec![n as u8; 64 << 10])]).await {
            Ok(_) => {}
            Err(error @ StoreError::Full(_)) => {
                let words = error.to_string();
                assert!(error.retryable() && words.contains("defrag") && words.contains("disarm"), "{words}");
                full_at = Some(n);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let (little_at, full_at) = (little_at.expect("it fills"), full_at.expect("it is full"));
    assert!(little_at < full_at, "admission ends ({little_at}) while what goes on is still written ({full_at})");
    // The alarm comes by itself, a moment after the first refusal.
    let words = eventually("the alarm", || async {
        match store.tend().await {
            Ok(Room::Little(words)) if words.contains("NOSPACE") => Ok(words),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(words.contains("docs/operations"), "{words}");
    assert_eq!(store.load().await.expect("a full etcd reads").records.len(), full_at as usize);
}

/// Where nothing is committed for some time, etcd forgets the revision of the last commit, and members go on writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_rests_is_read_after_etcd_forgot_its_history() {
    let Some(server) = Etcd::start() else { return };
    let (url, options) = (server.url(), ConnectOptions::default());
    let (store, stored) = open(&url, "/test/").await;
    let epoch = Epoch { revision: stored.revision + 1, ..stored };
    store.commit(epoch, vec![put("k", b"v")]).await.expect("taken");
    let members = Members::connect(&url, &options).await.expect("a URL");
    let mut newest = 0;
    for _ in 0..3 {
        let written = members.put("member".into(), "m".into(), None, Condition::Always).await.expect("etcd answers");
        newest = written.done().expect("always").counter;
    }
    let mut raw = ingle_membership::etcd::client(&url, &options).await.expect("a URL");
    raw.compact(i64::try_from(newest).expect("small"), None).await.expect("compacted");
    let (reader, _) = open(&url, "/test/").await;
    assert_eq!(reader.load().await.expect("read").records, [("k".to_owned(), b"v".to_vec())]);
    assert_eq!(reader.changes_since(0).await.expect("read").records.len(), 1);
}

/// etcd freezes under a commit: nobody knows whether it came through, and the answer that comes late changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_etcd_did_is_learned_before_anything_else() {
    let Some(server) = Etcd::start() else { return };
    let options = ConnectOptions { deadline: std::time::Duration::from_millis(700), ..ConnectOptions::default() };
    let (store, stored) = EtcdStore::open_at(&server.url(), &options, "/test/", false).await.expect("etcd answers");
    let epoch = Epoch { revision: stored.revision + 1, ..stored };
    let settled = || async { store.changes_since(u64::MAX).await.map_err(|error| error.to_string()) };
    let mut expected = Vec::new();
    let mut happened = 0;
    for n in 0..4_u32 {
        // On a busy machine the deadline may pass of itself: until a commit is answered nothing is taken for certain.
        let (name, before) = (format!("k/{n}"), eventually("etcd", settled).await.revision);
        server.freeze();
        let commit = store.commit(epoch, vec![put(&name, b"frozen")]).await;
        // Nothing can be learned while it stands still, and nothing is made up.
        let looked = store.changes_since(u64::MAX).await;
        server.thaw();
        assert!(matches!(commit, Err(StoreError::Unknown(_) | StoreError::Io { .. })), "{commit:?}");
        assert!(matches!(looked, Err(StoreError::Io { .. })), "{looked:?}");
        // Whether it came through is for the store to say, once; the next commit can't slip in before a late one.
        let revision = eventually("the outcome", settled).await.revision;
        let after = eventually("the next commit", || async {
            match store.commit(epoch, vec![put("after", name.as_bytes())]).await {
                Ok(revision) => Ok(revision),
                Err(error) if error.retryable() => Err(error.to_string()),
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        assert!(after > before && after >= revision, "{before}, {revision}, {after}");
        let records = eventually("what is there", || async {
            store.load().await.map(|there| there.records).map_err(|error| error.to_string())
        })
        .await;
        let came = records.iter().any(|(key, _)| *key == name);
        if came {
            expected.push((name.clone(), b"frozen".to_vec()));
            happened += 1;
        }
        let mut all = vec![("after".to_owned(), name.into_bytes())];
        all.extend(expected.clone());
        assert_eq!(records, all, "what came late came before what followed it, or never");
    }
    println!("{happened} of 4 commits under a frozen etcd came through");
}
