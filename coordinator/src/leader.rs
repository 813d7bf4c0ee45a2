//! Leading: at once where this coordinator keeps the members itself, by election where etcd does.

use std::sync::Arc;

use ingle_daemon::{OnFailure, Tasks};
use ingle_membership::election::Candidate;
use ingle_membership::{Election, LeaderEvent, Membership};
use ingle_proto::Epoch;
use tokio::sync::mpsc;

use crate::error::RunError;
use crate::store::JobStore;

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
    opened: Epoch,
    tasks: &Tasks,
) -> Result<Epoch, RunError> {
    let (events, mut heard) = mpsc::channel(4);
    let election = Election::new(membership, candidate);
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
    // Both order starts; whichever is ahead, the store holds it before anything is done in its name.
    let epoch = Epoch { generation: opened.generation, revision: opened.revision.max(elected.counter) };
    store.commit(epoch, Vec::new()).await?;
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
    Ok(epoch)
}
