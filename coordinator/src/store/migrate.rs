//! From a store in a state directory to the one in etcd, for a house that gets a second coordinator.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ingle_membership::ConnectOptions;
use ingle_proto::Epoch;

use super::etcd::{EtcdStore, ROOT};
use super::{JobStore, Records, SqliteStore, StoreError};
use crate::core::record::{Change, MIGRATING_KEY};
use crate::limits::CHANGES_PER_COMMIT;

/// Bytes of one commit on the way: well below what a commit may have.
const TOGETHER_BYTES: usize = 512 << 10;
/// What the file is called when its jobs are elsewhere.
const MOVED: &str = "migrated";

/// Moves all records, live and archived, and answers how many. The store in etcd must hold nothing, or what an earlier run left
/// behind; its epoch is then of a newer generation than any that wrote here. The file stays, under another name.
///
/// # Errors
/// Those of either store; nothing is lost then, and it can be run again, wherever it was cut off.
pub async fn to_etcd(directory: &Path, url: &str, options: &ConnectOptions) -> Result<usize, StoreError> {
    // Not guarded by the leader's key: nobody is elected for this. Coordinators that lead there already fence us.
    let (to, _) = EtcdStore::open_at(url, options, ROOT, false).await?;
    let Some(path) = SqliteStore::lies_in(directory) else {
        return Err(StoreError::io(directory.display(), "there is no job store here"));
    };
    let opening = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&opening)).await;
    let (from, ours) = opened.map_err(|error| StoreError::io(path.display(), error))??;
    let note = beside(&path, "migrating");
    let count = between(&from, ours, &to, &note).await?;
    drop(from);
    std::fs::rename(&path, beside(&path, MOVED)).map_err(|error| StoreError::io(path.display(), error))?;
    // Without the file it says nothing any more; left behind it is overwritten by the next move.
    let _ = std::fs::remove_file(note);
    Ok(count)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".{ending}"));
    name.into()
}

/// Copies everything from one store, last opened in the epoch `ours`, to another. `note` is a file beside the one that is left:
/// it says under which generation all was there, so that a run that was cut off after its last commit is known for done.
///
/// # Errors
/// As [`to_etcd`].
pub async fn between(from: &dyn JobStore, ours: Epoch, to: &dyn JobStore, note: &Path) -> Result<usize, StoreError> {
    let there = to.load().await?;
    let (live, archived) = (from.load().await?.records, from.archived("").await?);
    let count = live.len() + archived.len();
    let begun = there.records.iter().any(|(key, _)| key == MIGRATING_KEY);
    if !begun {
        // Of another generation it is a note of another move: etcd was made anew since, and nothing of ours is there.
        if noted(note)? == Some(there.epoch.generation) {
            return Ok(count);
        }
        if !there.records.is_empty() {
            let words =
                format!("it holds {} records already: jobs of two stores can't be put together", there.records.len());
            return Err(StoreError::io(format!("in etcd below {ROOT}"), words));
        }
    }
    let seconds = u64::try_from(ingle_daemon::clock::unix_ms() / 1000).unwrap_or(0);
    let generation = seconds.max(ours.generation + 1).max(there.epoch.generation + 1);
    let epoch = Epoch { generation, revision: 0 };
    put(to, epoch, vec![(MIGRATING_KEY.to_owned(), Vec::new())]).await?;
    // What an earlier run brought may have left the store since: its coordinator may have gone on in between.
    for changes in emptying(&there.records).chunks(CHANGES_PER_COMMIT) {
        to.commit(epoch, changes.to_vec()).await?;
    }
    // What is archived is written, and archived there: so it takes the way that every job takes.
    for (prefix, records) in by_job(archived) {
        put(to, epoch, records).await?;
        to.commit(epoch, vec![Change::Archive { prefix }]).await?;
    }
    put(to, epoch, live).await?;
    write_note(note, generation)?;
    to.commit(epoch, vec![Change::Delete { key: MIGRATING_KEY.to_owned() }]).await?;
    Ok(count)
}

/// Changes that take every record away but the one that says that jobs are on their way.
fn emptying(records: &Records) -> Vec<Change> {
    let kinds: BTreeSet<&str> = records.iter().map(|(key, _)| key.split_inclusive('/').next().unwrap_or(key)).collect();
    let kinds = kinds.into_iter().filter(|kind| *kind != MIGRATING_KEY);
    let change = |kind: &str| {
        if kind.ends_with('/') {
            Change::Clear { prefix: kind.to_owned() }
        } else {
            Change::Delete { key: kind.to_owned() }
        }
    };
    kinds.map(change).collect()
}

/// The generation under which all was there, if a run came so far.
fn noted(note: &Path) -> Result<Option<u64>, StoreError> {
    match std::fs::read_to_string(note) {
        // Half a note was written before the last commit: that run is not done.
        Ok(text) => Ok(text.strip_suffix('\n').and_then(|text| text.parse().ok())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(note.display(), error)),
    }
}

fn write_note(note: &Path, generation: u64) -> Result<(), StoreError> {
    let write = || {
        let mut file = File::create(note)?;
        writeln!(file, "{generation}")?;
        file.sync_all()?;
        note.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().map_err(|error: std::io::Error| StoreError::io(note.display(), error))
}

/// Archived records by the prefix that each job's are archived under.
fn by_job(archived: Records) -> Vec<(String, Records)> {
    let mut jobs: Vec<(String, Records)> = Vec::new();
    for (key, value) in archived {
        let end = key.match_indices('/').nth(1).map_or(key.len(), |(at, _)| at + 1);
        let prefix = key[..end].to_owned();
        match jobs.last_mut() {
            Some((last, records)) if *last == prefix => records.push((key, value)),
            _ => jobs.push((prefix, vec![(key, value)])),
        }
    }
    jobs
}

async fn put(to: &dyn JobStore, epoch: Epoch, records: Records) -> Result<(), StoreError> {
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for (key, value) in records {
        let size = key.len() + value.len();
        if !changes.is_empty() && (changes.len() == CHANGES_PER_COMMIT || bytes + size > TOGETHER_BYTES) {
            to.commit(epoch, std::mem::take(&mut changes)).await?;
            bytes = 0;
        }
        bytes += size;
        changes.push(Change::Put { key, value });
    }
    if changes.is_empty() { Ok(()) } else { to.commit(epoch, changes).await.map(drop) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ingle_proto::NodeId;

    use super::*;
    use crate::core::record::{batch_key, cordon_key, job_key, parts_prefix};
    use crate::store::MemoryStore;
    use crate::store::faulty::{Fault, FaultyStore};

    /// Jobs that ended, and one in the middle.
    async fn house() -> (MemoryStore, Epoch) {
        let (store, epoch) = MemoryStore::new().open();
        let put = |key: String, value: &[u8]| Change::Put { key, value: value.to_vec() };
        for job in 1..=4_u64 {
            let parts = (1..=70).map(|batch| put(batch_key(job, batch), &[job as u8; 300]));
            store.commit(epoch, std::iter::once(put(job_key(job), b"job")).chain(parts).collect()).await.unwrap();
            if job < 3 {
                store.commit(epoch, vec![Change::Archive { prefix: parts_prefix(job) }]).await.unwrap();
            }
        }
        let cordon = cordon_key(&NodeId::parse("n-1").unwrap());
        store.commit(epoch, vec![put("marks".into(), b"m"), put(cordon, b"c")]).await.unwrap();
        (store, epoch)
    }

    async fn all(store: &dyn JobStore) -> (Records, Records) {
        (store.load().await.unwrap().records, store.archived("").await.unwrap())
    }

    #[tokio::test]
    async fn wherever_a_move_is_cut_off_it_can_be_run_again() {
        let (from, ours) = house().await;
        let expected = all(&from).await;
        let mut cut = 0;
        for at in 1.. {
            let mut whole = false;
            for done in [false, true] {
                let (dir, to) = (tempfile::tempdir().unwrap(), MemoryStore::new());
                let note = dir.path().join("note");
                let faulty = FaultyStore::new(Arc::new(to.clone()), Fault { at, done, dead: true });
                let first = between(&from, ours, &faulty, &note).await;
                whole = first.is_ok();
                let reached = to.load().await.unwrap().epoch;
                let moved = between(&from, ours, &to, &note).await.unwrap_or_else(|e| panic!("{at} {done}: {e}"));
                assert_eq!(moved, expected.0.len() + expected.1.len());
                assert_eq!(all(&to).await, expected, "cut off at commit {at}, done: {done}");
                let epoch = to.load().await.unwrap().epoch;
                assert!(epoch.generation > ours.generation && epoch >= reached, "{epoch} after {reached} and {ours}");
                cut += usize::from(!whole);
                // Run once more, as after a crash before the file is renamed: nothing is written.
                let revision = to.load().await.unwrap().revision;
                between(&from, ours, &to, &note).await.unwrap();
                assert_eq!(to.load().await.unwrap().revision, revision);
            }
            if whole {
                break;
            }
        }
        assert!(cut >= 12, "only {cut} commits were cut off");
    }

    #[tokio::test]
    async fn what_left_the_store_between_two_runs_is_not_brought_back() {
        let (from, ours) = house().await;
        let (dir, to) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        let note = dir.path().join("note");
        let last = Fault { at: 6, done: false, dead: true };
        for at in 2..last.at {
            let faulty = FaultyStore::new(Arc::new(to.clone()), Fault { at, ..last });
            between(&from, ours, &faulty, &note).await.unwrap_err();
        }
        // Its coordinator was started again meanwhile, and ended a job.
        let gone = vec![Change::Clear { prefix: parts_prefix(3) }, Change::Delete { key: job_key(3) }];
        from.commit(ours, gone).await.unwrap();
        between(&from, ours, &to, &note).await.unwrap();
        assert_eq!(all(&to).await, all(&from).await);
    }

    #[tokio::test]
    async fn the_note_of_a_move_elsewhere_is_no_proof() {
        let ((from, ours), dir) = (house().await, tempfile::tempdir().unwrap());
        let note = dir.path().join("note");
        between(&from, ours, &MemoryStore::new(), &note).await.unwrap();
        // etcd was made anew before the file was renamed, and is younger than the note.
        let to = MemoryStore::new();
        let anew = Epoch { generation: noted(&note).unwrap().unwrap() + 60, revision: 0 };
        to.commit(anew, Vec::new()).await.unwrap();
        between(&from, ours, &to, &note).await.unwrap();
        assert_eq!(all(&to).await, all(&from).await);
    }

    #[tokio::test]
    async fn jobs_of_two_houses_are_not_put_together() {
        let ((from, ours), (to, _)) = (house().await, house().await);
        let dir = tempfile::tempdir().unwrap();
        let refused = between(&from, ours, &to, &dir.path().join("note")).await.unwrap_err();
        assert!(refused.to_string().contains("already"), "{refused}");
        assert_eq!(all(&to).await, all(&from).await, "neither was touched");
    }
}
