//! SIGTERM: daemons finish what they are at, hand back the rest, and end with 0.

use ingle_proto::v1::NodeStatus;
use ingle_tests::eventually::eventually;
use ingle_tests::process::binary;

use crate::world::{Jobs, World};

/// One command takes a node out and another in, in the middle of two jobs: the new one has joined and holds the models by the
/// time the old one gets nothing more, and the old one's process has ended well and is forgotten at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_swapped_for_another_in_the_middle() {
    let mut world = World::start(2, &World::slow_models()).await;
    let jobs = Jobs::in_the_middle(&world).await;
    // The first answers may all be the other's.
    eventually("the old node to hold a model", || async {
        let nodes = world.client.nodes().await.map_err(|status| status.to_string())?;
        if nodes["node-1"].loaded.is_empty() { Err(format!("{nodes:?}")) } else { Ok(()) }
    })
    .await;
    let before = world.client.nodes().await.expect("nodes");
    let mut command = tokio::process::Command::new(binary("ingle"));
    let coordinator = format!("http://{}", world.coordinator.address("grpc"));
    command.args(["nodes", "swap", "node-1", "node-2", "--json", "--coordinator", &coordinator]).kill_on_drop(true);
    let output = command.output().await.expect("ingle runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = world.client.nodes().await.expect("nodes");
    let (old, new) = (&before["node-1"], &nodes["node-2"]);
    assert_eq!((said["old"].as_str(), said["new"].as_str()), (Some(&*old.node_id), Some(&*new.node_id)));
    assert_eq!(said["left"], true, "{said}");
    assert!(!nodes.contains_key("node-1"), "{nodes:?}");
    let status = world.nodes[0].ended().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let held = |node: &NodeStatus| node.loaded.iter().filter_map(|l| Some(l.model.clone()?.name)).collect::<Vec<_>>();
    assert!(said["models"].as_array().is_some_and(|models| !models.is_empty()), "{said}");
    assert!(held(old).iter().all(|model| held(new).contains(model)), "{nodes:?}");
    jobs.end_well(&world).await;
}

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
