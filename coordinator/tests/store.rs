//! The job store's conformance suite over each implementation, and SQLite's files truncated, flipped, and shared.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use ingle_coordinator::core::record::Change;
use ingle_coordinator::store::conformance::{self, Subject};
use ingle_coordinator::store::faulty::{Fault, FaultyStore};
use ingle_coordinator::store::{ArchiveBounds, JobStore, MemoryStore, SqliteStore, StoreError};
use ingle_proto::Epoch;

const FILE: &str = "jobs.sqlite";

struct InMemory(MemoryStore);

#[async_trait]
impl Subject for InMemory {
    async fn open(&self) -> (Arc<dyn JobStore>, Epoch) {
        let (store, epoch) = self.0.open();
        (Arc::new(store), epoch)
    }
}

struct OnDisk(tempfile::TempDir);

#[async_trait]
impl Subject for OnDisk {
    async fn open(&self) -> (Arc<dyn JobStore>, Epoch) {
        let (store, epoch) = SqliteStore::open(self.0.path()).unwrap();
        (Arc::new(store), epoch)
    }
}

/// The wrapper itself, with a fault that never comes.
struct Wrapped(OnDisk);

#[async_trait]
impl Subject for Wrapped {
    async fn open(&self) -> (Arc<dyn JobStore>, Epoch) {
        let (store, epoch) = self.0.open().await;
        (Arc::new(FaultyStore::new(store, Fault { at: u64::MAX, done: false, dead: true })), epoch)
    }
}

fn on_disk() -> OnDisk {
    OnDisk(tempfile::tempdir().unwrap())
}

#[tokio::test]
async fn memory_conforms() {
    conformance::run(&|| Box::new(InMemory(MemoryStore::new()))).await;
}

#[tokio::test]
async fn sqlite_conforms() {
    conformance::run(&|| Box::new(on_disk())).await;
}

#[tokio::test]
async fn the_faulty_wrapper_conforms() {
    conformance::run(&|| Box::new(Wrapped(on_disk()))).await;
}

/// A store that was closed well, with a few pages of live and archived records, and what it holds.
async fn written(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let (store, epoch) = SqliteStore::open(directory).unwrap();
    let put = |number: u64| Change::Put { key: format!("parts/{number:04}"), value: vec![number as u8; 200] };
    store.commit(epoch, (0..60).map(put).collect()).await.unwrap();
    store.commit(epoch, vec![Change::Archive { prefix: "parts/001".into() }]).await.unwrap();
    store.load().await.unwrap().records
}

/// What opening a store says, or what is in it.
async fn opened(directory: &Path) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
    let (store, _) = SqliteStore::open(directory)?;
    Ok(store.load().await?.records)
}

#[tokio::test]
async fn a_truncated_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let path = dir.path().join(FILE);
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 1, 100, 4095, 4096, 8192, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = opened(dir.path()).await.expect_err("truncated");
        let StoreError::Corrupt { place, remedy, .. } = &error else { panic!("{length}: {error}") };
        assert!(place.ends_with(FILE) && remedy.contains("restore"), "{length}: {error}");
        assert!(!error.retryable());
        assert_eq!(std::fs::read(&path).unwrap().len(), length, "nothing was made up");
    }
    std::fs::write(&path, &whole).unwrap();
    assert!(opened(dir.path()).await.is_ok(), "restored");
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let records = written(dir.path()).await;
    let path = dir.path().join(FILE);
    let whole = std::fs::read(&path).unwrap();
    let mut noticed = 0;
    for (round, at) in (0..whole.len()).step_by(61).enumerate() {
        let copy = tempfile::tempdir().unwrap();
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (round % 8);
        std::fs::write(copy.path().join(FILE), flipped).unwrap();
        match opened(copy.path()).await {
            Ok(found) => assert_eq!(found, records, "byte {at}, bit {}", round % 8),
            Err(_) => noticed += 1,
        }
    }
    assert!(noticed > 50, "only {noticed} flips were noticed");
}

#[tokio::test]
async fn a_store_without_its_file_but_with_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(format!("{FILE}-wal")), b"log").unwrap();
    let error = opened(dir.path()).await.expect_err("half a store");
    assert!(matches!(&error, StoreError::Corrupt { reason, .. } if reason.contains("missing")), "{error}");
}

#[tokio::test]
async fn something_else_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), "what a person keeps here ".repeat(1000)).unwrap();
    assert!(matches!(opened(dir.path()).await, Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn a_making_that_was_cut_short_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(format!("{FILE}.making")), b"half").unwrap();
    assert_eq!(opened(dir.path()).await, Ok(Vec::new()));
}

#[tokio::test]
async fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (store, epoch) = SqliteStore::open(dir.path()).unwrap();
    store.commit(epoch, vec![Change::Put { key: "k".into(), value: b"a prompt".to_vec() }]).await.unwrap();
    for name in [FILE.to_owned(), format!("{FILE}-wal")] {
        let mode = std::fs::metadata(dir.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn two_coordinators_on_one_store_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first) = SqliteStore::open(dir.path()).unwrap();
    let error = SqliteStore::open(dir.path()).expect_err("locked");
    assert!(error.retryable(), "the other may end");
    let words = error.to_string();
    assert!(words.contains(&format!("process {}", std::process::id())), "{words}");
    store.commit(first, vec![]).await.unwrap();
    drop(store);
    let (_store, second) = SqliteStore::open(dir.path()).unwrap();
    assert_eq!(second.generation, first.generation);
    assert!(second.revision > first.revision);
}

#[tokio::test]
async fn a_store_of_a_newer_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    // What a later version does when it changes the schema so that we can't read it; its sum is right.
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    let (generation, epoch, revision): (i64, i64, i64) = connection
        .query_row("SELECT generation, epoch, revision FROM meta", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    let text = format!("9/9/{generation}.{epoch}/{revision}");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    let sum = hasher.finalize().as_bytes()[..8].to_vec();
    connection.execute("UPDATE meta SET schema = 9, least_reader = 9, sum = ?1", [sum]).unwrap();
    connection.close().unwrap();
    let error = opened(dir.path()).await.expect_err("from the future");
    assert!(error.to_string().contains("newer"), "{error}");
}

#[tokio::test]
async fn old_jobs_leave_the_archive_whole() {
    let dir = tempfile::tempdir().unwrap();
    let key = |job: u64, part: u64| format!("parts/{job:04}/{part}");
    let left = async |store: &SqliteStore| {
        let keys = store.archived("parts/").await.unwrap().into_iter().map(|(key, _)| key[..10].to_owned());
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        keys.for_each(|job| *counts.entry(job).or_default() += 1);
        counts
    };
    let whole = |jobs: std::ops::RangeInclusive<u64>| {
        jobs.map(|job| (format!("parts/{job:04}"), 10)).collect::<std::collections::BTreeMap<String, usize>>()
    };
    // Forty records are four jobs of ten; as many bytes are fewer of larger ones.
    for (bounds, last, kept) in [
        (ArchiveBounds { records: 45, bytes: u64::MAX }, 9, 6..=9),
        (ArchiveBounds { records: 1000, bytes: 10_000 }, 12, 11..=12),
    ] {
        let (store, epoch) = SqliteStore::open_with(dir.path(), bounds).unwrap();
        let first = left(&store).await.keys().map(|job| job[6..].parse::<u64>().unwrap()).max().unwrap_or(0) + 1;
        for job in first..=last {
            let size = if bounds.records == 45 { 20 } else { 400 };
            let parts = (0..10).map(|part| Change::Put { key: key(job, part), value: vec![1; size] }).collect();
            store.commit(epoch, parts).await.unwrap();
            store.commit(epoch, vec![Change::Archive { prefix: format!("parts/{job:04}/") }]).await.unwrap();
        }
        assert_eq!(left(&store).await, whole(kept), "{bounds:?}");
    }
    // One job larger than all that is kept stays until the next one ends, and what lives is never touched.
    let (store, epoch) = SqliteStore::open_with(dir.path(), ArchiveBounds { records: 3, bytes: 100 }).unwrap();
    let parts = (0..10).map(|part| Change::Put { key: key(20, part), value: vec![1; 50] }).collect();
    store.commit(epoch, parts).await.unwrap();
    store.commit(epoch, vec![Change::Put { key: key(5, 0), value: vec![1; 500] }]).await.unwrap();
    store.commit(epoch, vec![Change::Archive { prefix: "parts/0020/".into() }]).await.unwrap();
    assert_eq!(left(&store).await, whole(20..=20));
    assert_eq!(store.load().await.unwrap().records.len(), 1);
}
