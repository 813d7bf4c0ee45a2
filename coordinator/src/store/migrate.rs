//! From a store in a state directory to the one in etcd, for a house that gets a second coordinator.

use std::path::Path;

use ingle_membership::ConnectOptions;
use ingle_proto::Epoch;

use super::etcd::{EtcdStore, ROOT};
use super::{JobStore, Records, SqliteStore, StoreError};
use crate::core::record::Change;
use crate::limits::CHANGES_PER_COMMIT;

/// Bytes of one commit on the way: well below what a commit may have.
const TOGETHER_BYTES: usize = 512 << 10;
/// What the file is called when its jobs are elsewhere.
const MOVED: &str = "migrated";

/// Moves all records, live and archived, and answers how many. The store in etcd must hold nothing; its epoch is then of a newer
/// generation than any that wrote here. The file stays, under another name.
///
/// # Errors
/// Those of either store; nothing is lost then, and it can be run again.
pub async fn to_etcd(directory: &Path, url: &str, options: &ConnectOptions) -> Result<usize, StoreError> {
    // Not guarded by the leader's key: nobody is elected for this. Coordinators that lead there already fence us.
    let (to, stored) = EtcdStore::open_at(url, options, ROOT, false).await?;
    let there = to.load().await?;
    if !there.records.is_empty() && !half_done(&there.records) {
        let reason =
            format!("it holds {} records already: jobs of two stores can't be put together", there.records.len());
        return Err(StoreError::io(format!("in etcd below {ROOT}"), reason));
    }
    let Some(path) = SqliteStore::lies_in(directory) else {
        return Err(StoreError::io(directory.display(), "there is no job store here"));
    };
    let opening = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&opening)).await;
    let (from, ours) = opened.map_err(|error| StoreError::io(path.display(), error))??;
    let seconds = u64::try_from(ingle_daemon::clock::unix_ms() / 1000).unwrap_or(0);
    let generation = seconds.max(ours.generation + 1).max(stored.generation + 1);
    let epoch = Epoch { generation, revision: 0 };

    let (live, archived) = (from.load().await?.records, from.archived("").await?);
    let count = live.len() + archived.len();
    put(&to, epoch, vec![(MARK.to_owned(), Vec::new())]).await?;
    // What is archived is written, and archived there: so it takes the way that every job takes.
    for (prefix, records) in by_job(archived) {
        put(&to, epoch, records).await?;
        to.commit(epoch, vec![Change::Archive { prefix }]).await?;
    }
    put(&to, epoch, live).await?;
    to.commit(epoch, vec![Change::Delete { key: MARK.to_owned() }]).await?;
    drop(from);
    let mut moved = path.clone().into_os_string();
    moved.push(format!(".{MOVED}"));
    std::fs::rename(&path, moved).map_err(|error| StoreError::io(path.display(), error))?;
    Ok(count)
}

/// Stands in the new store while not all is there.
const MARK: &str = "migrating";

fn half_done(records: &Records) -> bool {
    records.iter().any(|(key, _)| key == MARK)
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

async fn put(to: &EtcdStore, epoch: Epoch, records: Records) -> Result<(), StoreError> {
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
