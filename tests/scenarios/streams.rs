//! Answers whose node is lost before any of their tokens: each goes on elsewhere as if nothing had happened, token by token.

use ingle_node_agent::NodeConfig;
use ingle_proto::v1;
use ingle_tests::client::question;
use ingle_tests::cluster::{Cluster, counted};
use ingle_tests::eventually::eventually;
use ingle_tests::held::{Held, STREAMS, TOKENS};
use ingle_tests::relay::Wire;

/// Another node comes when all streams of the first are held; then the first is lost in some way.
async fn lost(harm: impl AsyncFnOnce(&mut Cluster)) -> (Cluster, Held) {
    let mut held = Held::new();
    let settings = |config: &mut NodeConfig| (config.slots, config.drain_timeout_s) = (STREAMS as u32, 2);
    let mut cluster = Cluster::of(1).with(held.model()).node(settings).wired().start().await;
    let client = cluster.client.clone();
    let harm = Box::pin(async {
        cluster.add_node("node-2").await;
        cluster.client.ready(2, 1).await;
        harm(&mut cluster).await;
    });
    let left = Box::pin(held.lose(&client, harm)).await;
    let second = cluster.nodes.last().expect("the second").metrics.text();
    assert_eq!(counted(&second, "ingle_node_tokens_written_total"), left, "no token is written a second time");
    (cluster, held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_dies_go_on_from_every_token() {
    let (cluster, _held) = Box::pin(lost(async |cluster| cluster.nodes[0].set_wires(Wire::Broken))).await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_is_cut_off_go_on_from_every_token_and_its_late_frames_harm_nobody() {
    let (cluster, held) = Box::pin(lost(async |cluster| cluster.nodes[0].set_wires(Wire::Silent))).await;
    // It goes on alone, and is heard again: nobody waits for what it has to tell, and it is as good as any.
    held.release();
    cluster.nodes[0].set_wires(Wire::Whole);
    cluster.client.ready(2, 1).await;
    eventually("what it ran to end", || async {
        match counted(&cluster.nodes[0].metrics.text(), "ingle_node_attempts_running") {
            0 => Ok(()),
            running => Err(format!("{running} attempts run")),
        }
    })
    .await;
    let answer = cluster.client.generate(question("And now?")).await.expect("an answer");
    assert_eq!(answer.tokens.len(), TOKENS as usize);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_drained_node_go_on_from_every_token_when_its_time_is_over() {
    let (cluster, _held) = Box::pin(lost(async |cluster| {
        let node_id = cluster.client.nodes().await.expect("nodes")["node-1"].node_id.clone();
        // In the past: at once.
        let request = v1::DrainNodeRequest { node_id, deadline_ms: 1, stay: true };
        cluster.client.cluster.clone().drain_node(request).await.expect("drained");
    }))
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_is_upgraded_go_on_from_every_token() {
    let (mut cluster, _held) = Box::pin(lost(async |cluster| {
        // As SIGTERM does; then it comes back under the same identity.
        cluster.nodes.remove(0).stop().await;
    }))
    .await;
    cluster.add_node("node-1").await;
    cluster.client.ready(2, 1).await;
    cluster.stop().await;
}
