//! Nodes that register, lose their lease, come back and leave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ingle_membership::connect::{ConnectOptions, connect};
use ingle_membership::seam::Condition;
use ingle_membership::{Membership, NodeRecord, Record as _};
use ingle_proto::v1::cluster_client::ClusterClient;
use ingle_proto::v1::{self, NodeState, work_response::Message};
use tonic::Status;

use super::played::{Coordinator, Node};

struct Member {
    membership: Arc<dyn Membership>,
    record: NodeRecord,
}

impl Member {
    async fn of(coordinator: &Coordinator, node: &Node) -> Self {
        let membership = connect(&coordinator.registry(), &ConnectOptions::default()).await.unwrap();
        let record = NodeRecord {
            id: node.id.clone(),
            incarnation: "1".into(),
            work_address: node.address.clone(),
            beat_address: node.address.clone(),
            ..NodeRecord::default()
        };
        Self { membership, record }
    }

    async fn join(&self) {
        let lease = self.membership.grant(Duration::from_secs(60)).await.unwrap();
        let (key, value): (Bytes, Bytes) = (self.record.key(), self.record.encode());
        self.membership.put(key, value, Some(lease), Condition::Always).await.unwrap();
    }

    async fn leave(&self) {
        self.membership.delete(self.record.key(), Condition::Always).await.unwrap();
    }
}

async fn state(coordinator: &Coordinator, id: &str) -> Option<NodeState> {
    let mut cluster = ClusterClient::new(coordinator.channel().await);
    let nodes = cluster.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    nodes.iter().find(|node| node.node_id == id).map(v1::NodeStatus::state)
}

/// Waits until the node is in this state, or unknown.
async fn until(coordinator: &Coordinator, id: &str, wanted: Option<NodeState>) {
    let within = tokio::time::timeout(Duration::from_secs(20), async {
        while state(coordinator, id).await != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    within.await.unwrap_or_else(|_| panic!("{id} is not {wanted:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_late_end_of_a_dead_stream_says_nothing_of_a_node_that_is_back() {
    let mut node = Node::start("n-1", &[("words", v1::JobKind::Generate)]).await;
    let coordinator = Coordinator::start(&[], None).await;
    let member = Member::of(&coordinator, &node).await;
    member.join().await;
    node.attached().await;
    until(&coordinator, "n-1", Some(NodeState::Ready)).await;
    // Its lease ends while its stream seems to live; then it registers again, and is dialled again.
    let dead = node.stream();
    member.leave().await;
    until(&coordinator, "n-1", Some(NodeState::Lost)).await;
    member.join().await;
    node.attached().await;
    until(&coordinator, "n-1", Some(NodeState::Ready)).await;
    // Only now the first stream is found dead.
    let _ = dead.send(Err(Status::unavailable("the connection timed out"))).await;
    dead.closed().await;
    for _ in 0..40 {
        assert_eq!(state(&coordinator, "n-1").await, Some(NodeState::Ready));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_says_goodbye_after_its_drain_is_answered_and_forgotten() {
    let mut node = Node::start("n-1", &[("words", v1::JobKind::Generate)]).await;
    let coordinator = Coordinator::start(&[], None).await;
    let member = Member::of(&coordinator, &node).await;
    member.join().await;
    node.attached().await;
    until(&coordinator, "n-1", Some(NodeState::Ready)).await;
    let mut cluster = ClusterClient::new(coordinator.channel().await);
    let drain = v1::DrainNodeRequest { node_id: "n-1".into(), ..Default::default() };
    cluster.drain_node(drain).await.unwrap();
    node.told_to_end().await;
    node.say(Message::Leaving(v1::Leaving { within_ms: 25_000 })).await;
    node.say(Message::Goodbye(v1::Goodbye {})).await;
    node.farewell().await;
    assert_eq!(state(&coordinator, "n-1").await, None, "it is durable before it is answered");
    node.break_off();
    member.leave().await;
    // Started again it takes work.
    member.join().await;
    until(&coordinator, "n-1", Some(NodeState::Ready)).await;
    coordinator.end().await;
}
