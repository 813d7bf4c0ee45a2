//! Leading: at once where this coordinator keeps the members itself, by election where etcd does.

use std::sync::Arc;

use ingle_daemon::{OnFailure, Tasks};
use ingle_membership::election::{Candidate, Leadership};
use ingle_membership::records::{COORDINATORS, Record as _};
use ingle_membership::{CoordinatorRecord, Election, LeaderEvent, Membership, MembershipError};
use ingle_proto::Epoch;
use tokio::sync::mpsc;

use crate::error::RunError;
use crate::store::{JobStore, StoreError};

/// A leader's term.
pub struct Reign {
    /// To lead in; the store holds it.
    pub epoch: Epoch,
    /// Tells at any moment whether it lasts.
    pub leadership: Leadership,
}

/// Waits until we lead, by etcd's word, and answers the epoch to lead in; the store holds it by then. Losing leadership
/// later begins the shutdown of `tasks`, and with it of the process: its supervisor starts it again as a candidate, with
/// nothing left over in memory.
///
/// # Errors
/// [`RunError`] of members or store; [`RunError::LeadershipLost`] if shutdown came first.
pub async fn stand(
    membership: Arc<dyn Membership>,
    candidate: Candidate,
    store: &dyn JobStore,
    tasks: &Tasks,
) -> Result<Reign, RunError> {
    let (events, mut heard) = mpsc::channel(4);
    let election = Election::new(membership, candidate);
    let leadership = election.leadership();
    let shutdown = tasks.shutdown();
    tasks.spawn("election", OnFailure::Shutdown, election.run(events, shutdown.clone()));
    let elected = loop {
        tokio::select! {
            () = shutdown.wait() => return Err(RunError::LeadershipLost),
            event = heard.recv() => match event {
                Some(LeaderEvent::Elected(revision)) => break revision,
                Some(LeaderEvent::Lost) => {}
                None => return Err(RunError::LeadershipLost),
            },
        }
    };
    let stored = store.changes_since(u64::MAX).await?.epoch;
    let epoch = next_epoch(stored, elected.counter, ingle_daemon::clock::unix_ms());
    take_over(store, epoch).await?;
    let stop = shutdown.clone();
    tasks.spawn("leadership", OnFailure::Shutdown, async move {
        let lost = async {
            while let Some(event) = heard.recv().await {
                if event == LeaderEvent::Lost {
                    break;
                }
            }
        };
        tokio::select! {
            () = stop.wait() => Ok(()),
            () = lost => if stop.begun() { Ok(()) } else { Err(RunError::LeadershipLost) },
        }
    });
    Ok(Reign { epoch, leadership })
}

/// Shuts out whoever wrote before. Doing it twice is doing it once, so that a lost answer is no matter.
async fn take_over(store: &dyn JobStore, epoch: Epoch) -> Result<(), StoreError> {
    const TRIES: usize = 3;
    for _ in 1..TRIES {
        match store.commit(epoch, Vec::new()).await {
            Err(StoreError::Unknown(reason)) => tracing::warn!(reason, "taking the job store over once more"),
            other => return other.map(drop),
        }
    }
    store.commit(epoch, Vec::new()).await.map(drop)
}

/// The epoch of whoever was elected in a revision of the members' store: its revision, so that the leader's key proves it.
/// Where that isn't greater than what the jobs' store has seen (another etcd, or one that was restored), a new generation
/// begins.
fn next_epoch(stored: Epoch, elected: u64, unix_ms: i64) -> Epoch {
    if elected > stored.revision {
        return Epoch { generation: stored.generation, revision: elected };
    }
    let seconds = u64::try_from(unix_ms / 1000).unwrap_or(0);
    Epoch { generation: seconds.max(stored.generation + 1), revision: elected }
}

/// Coordinators beside `own` that are registered now. Until there is a shared job store each has one of its own, and whoever
/// leads next knows nothing of the jobs of the one before: whoever runs two should know.
///
/// # Errors
/// [`MembershipError`] if the members can't be asked.
pub async fn others(members: &dyn Membership, own: &str) -> Result<Vec<CoordinatorRecord>, MembershipError> {
    let listing = members.list(bytes::Bytes::from_static(COORDINATORS.as_bytes())).await?;
    let records = listing.entries.iter().filter_map(|entry| {
        // One of a newer version that we can't read is a coordinator all the same, but we can't name it.
        CoordinatorRecord::decode(&entry.key, &entry.value).ok()
    });
    Ok(records.filter(|record| record.id != own).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ingle_daemon::Shutdown;
    use ingle_membership::Memory;
    use ingle_membership::records::LEADER;
    use ingle_membership::seam::Condition;

    use super::*;
    use crate::store::MemoryStore;

    fn candidate(id: &str) -> Candidate {
        Candidate { id: id.into(), incarnation: "i".into(), address: "h:1".into() }
    }

    #[tokio::test]
    async fn a_leader_fences_its_store_and_ends_when_it_leads_no_more() {
        let (members, memory) = (Memory::new(), MemoryStore::new());
        let (store, opened) = memory.open();
        // Others led before: their keys came and went.
        for _ in 0..5 {
            let key = bytes::Bytes::from_static(LEADER.as_bytes());
            members.put(key.clone(), bytes::Bytes::new(), None, Condition::Always).await.unwrap();
            members.delete(key, Condition::Always).await.unwrap();
        }
        let tasks = Tasks::new(Shutdown::new());
        let reign = stand(Arc::new(members.clone()), candidate("c-1"), &store, &tasks).await.unwrap();
        let epoch = reign.epoch;
        assert_eq!(reign.leadership.epoch().map(|epoch| epoch.counter), Some(epoch.revision));
        assert!(epoch.revision > 10 && epoch.generation == opened.generation, "{epoch}");
        assert_eq!(store.commit(opened, vec![]).await, Err(StoreError::Fenced { ours: opened, stored: epoch }));
        assert!(!tasks.shutdown().begun());
        members.delete(bytes::Bytes::from_static(LEADER.as_bytes()), Condition::Always).await.unwrap();
        tasks.shutdown().wait().await;
        assert!(tasks.shutdown_all(Duration::from_secs(5)).await.is_empty());
        assert!(tasks.failure().unwrap().contains("leadership"), "{:?}", tasks.failure());
    }

    #[test]
    fn epochs_rise_even_over_another_etcd() {
        let stored = Epoch { generation: 100, revision: 7 };
        assert_eq!(next_epoch(stored, 8, 0), Epoch { generation: 100, revision: 8 });
        for elected in [1, 7] {
            assert_eq!(next_epoch(stored, elected, 0), Epoch { generation: 101, revision: elected });
            assert_eq!(next_epoch(stored, elected, 500_000), Epoch { generation: 500, revision: elected });
        }
    }

    #[tokio::test]
    async fn a_coordinator_beside_us_is_seen() {
        let members = Memory::new();
        for id in ["c-1", "c-2"] {
            let record = CoordinatorRecord { id: id.into(), address: format!("{id}:7700"), ..Default::default() };
            members.put(record.key(), record.encode(), None, Condition::Always).await.unwrap();
        }
        let seen = others(&members, "c-1").await.unwrap();
        assert_eq!(seen.iter().map(|record| record.address.as_str()).collect::<Vec<_>>(), ["c-2:7700"]);
    }

    #[tokio::test]
    async fn a_candidate_that_is_stopped_never_leads() {
        let (members, memory) = (Memory::new(), MemoryStore::new());
        let (store, opened) = memory.open();
        let key = bytes::Bytes::from_static(LEADER.as_bytes());
        members.put(key, bytes::Bytes::from_static(b"another"), None, Condition::Always).await.unwrap();
        let tasks = Tasks::new(Shutdown::new());
        let (standing, stop) = (stand(Arc::new(members), candidate("c-1"), &store, &tasks), tasks.shutdown());
        let (outcome, ()) = tokio::join!(standing, async {
            tokio::task::yield_now().await;
            stop.begin();
        });
        assert!(matches!(outcome, Err(RunError::LeadershipLost)));
        store.commit(opened, vec![]).await.expect("nobody took the store over");
    }
}
