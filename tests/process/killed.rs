//! kill -9 in the middle of two jobs over 300 documents: nothing lost, nothing doubled, and no answer that was visible is put
//! to a model again (counted in tokens; for the coordinator alone: no answer at all). What isn't proven here: how little of
//! the work in flight is repeated beside that, and the same for embeddings, whose tokens no counter tells apart.

use std::time::Duration;

use ingle_proto::v1::NodeState;
use ingle_tests::eventually::eventually;
use rustix::process::Signal;

use crate::world::{ANSWER_TOKENS, DOCUMENTS, Jobs, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_killed_in_the_middle_and_comes_back() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    world.coordinator.kill();
    // Nodes go on meanwhile; what they finish waits for whoever leads next.
    tokio::time::sleep(Duration::from_millis(800)).await;
    world.coordinator.restart().await;
    jobs.end_well(&world).await;
    // Running attempts are adopted: no document was put to the model a second time.
    let all = DOCUMENTS as u64 * u64::from(ANSWER_TOKENS);
    assert_eq!(world.tokens_written().await, all, "{} were visible when it was killed", jobs.visible_before());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_in_the_middle_and_the_other_does_the_rest() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    let before = world.tokens_written_by(1).await;
    world.nodes[0].kill();
    jobs.end_well(&world).await;
    let after = world.tokens_written_by(1).await - before;
    assert!(after <= jobs.tokens_left(), "{after} tokens for what needed {} at most", jobs.tokens_left());
    // It comes back under the same identity and works again.
    world.nodes[0].restart().await;
    world.client.ready(2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_node_is_killed_in_the_middle_and_comes_back() {
    let mut world = World::start(1, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    world.nodes[0].kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.nodes[0].restart().await;
    jobs.end_well(&world).await;
    // Its counters began anew.
    let after = world.tokens_written().await;
    assert!(after <= jobs.tokens_left(), "{after} tokens for what needed {} at most", jobs.tokens_left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_is_killed_in_the_middle_and_comes_back() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    let before = world.tokens_written().await;
    world.gateway.kill();
    // Longer than the first tries of those who call it.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.gateway.restart().await;
    jobs.end_well(&world).await;
    // What was written and could not be staged may be written again, once.
    let (after, most) = (world.tokens_written().await - before, 2 * jobs.tokens_left());
    assert!(after <= most, "{after} tokens for what needed {most} at most");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_killed_at_once_as_by_a_power_failure() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    world.coordinator.kill();
    world.gateway.kill();
    for node in &mut world.nodes {
        node.kill();
    }
    world.gateway.restart().await;
    world.coordinator.restart().await;
    for node in &mut world.nodes {
        node.restart().await;
    }
    jobs.end_well(&world).await;
    let after = world.tokens_written().await;
    assert!(after <= jobs.tokens_left(), "{after} tokens for what needed {} at most", jobs.tokens_left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_freezes_for_longer_than_it_is_waited_for_and_wakes_with_late_results() {
    let world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    world.nodes[0].signal(Signal::STOP);
    // Its batches are leased again by the time it counts as lost, however long that takes here.
    eventually("the node to be lost", || async {
        let nodes = world.client.nodes().await.map_err(|status| status.to_string())?;
        match nodes.get("node-1") {
            Some(node) if node.state() != NodeState::Lost => Err(format!("{node:?}")),
            _ => Ok(()),
        }
    })
    .await;
    world.nodes[0].signal(Signal::CONT);
    jobs.end_well(&world).await;
}
