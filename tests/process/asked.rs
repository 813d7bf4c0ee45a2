//! SIGTERM: daemons finish what they are at, hand back the rest, and end with 0.

use crate::world::{Jobs, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_to_end_hands_its_work_over_and_ends_well() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    let status = world.nodes[0].end().await;
    assert_eq!(status.code(), Some(0), "{status}");
    jobs.end_well(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_and_the_gateway_end_well_in_the_middle_and_go_on_later() {
    let mut world = World::start(1, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    let status = world.coordinator.end().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let status = world.gateway.end().await;
    assert_eq!(status.code(), Some(0), "{status}");
    world.gateway.restart().await;
    world.coordinator.restart().await;
    jobs.end_well(&world).await;
    for daemon in [&mut world.nodes[0], &mut world.gateway, &mut world.coordinator] {
        let status = daemon.end().await;
        assert_eq!(status.code(), Some(0), "{daemon:?} {status}");
    }
}
