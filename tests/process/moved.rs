//! A node's process that is killed, frozen or asked to end before every token of its answers: nobody who reads one notices.
//!
//! The node that stays is a library in this process and drained until the other, a real process, has all streams.

use std::ffi::OsString;
use std::fmt::Write as _;

use ingle_node_agent::NodeConfig;
use ingle_proto::v1;
use ingle_tests::cluster::{Cluster, counted};
use ingle_tests::eventually::eventually;
use ingle_tests::held::{Held, STREAMS};
use ingle_tests::process::Process;
use rustix::process::Signal;

use crate::world::node_binary;

async fn lost(harm: impl FnOnce(&mut Process)) {
    let mut held = Held::new();
    let settings = |config: &mut NodeConfig| config.slots = STREAMS as u32;
    let cluster = Cluster::of(1).with(held.model()).node(settings).start().await;
    let client = &cluster.client;
    let stays = client.nodes().await.expect("nodes")["node-1"].node_id.clone();
    let drain = v1::DrainNodeRequest { node_id: stays.clone(), deadline_ms: 0, stay: true };
    client.cluster.clone().drain_node(drain).await.expect("drained");

    let home = tempfile::tempdir().expect("a directory");
    let at = home.path().display();
    let mut text = "name = 'goes'\nlisten = '127.0.0.1:0'\nbeat_listen = '127.0.0.1:0'\n".to_owned();
    let _ = writeln!(text, "membership = 'http://{}'\nmodels = '{}'", cluster.address, cluster.models.display());
    let _ = writeln!(text, "state_dir = '{at}/state'\ncache_dir = '{at}/cache'\nslots = {STREAMS}");
    let _ = writeln!(text, "memory_reserve_bytes = 0\nmeasure_ms = 0\nthreads = 1\ndrain_timeout_s = 2");
    let path = home.path().join("goes.toml");
    std::fs::write(&path, text).expect("room for settings");
    let arguments: Vec<OsString> = vec!["--config".into(), path.into(), "--metrics".into(), "127.0.0.1:0".into()];
    let mut goes = Process::start("goes", node_binary(), arguments, home.path()).await;
    eventually("the process to take work", || async {
        let models = client.models.clone().list_models(v1::ListModelsRequest::default()).await;
        let models = models.map_err(|status| format!("{status:?}"))?.into_inner().models;
        let nodes = client.nodes().await.map_err(|status| format!("{status:?}"))?;
        let ready = nodes.get("goes").is_some_and(|node| node.state() == v1::NodeState::Ready);
        let seen = models.iter().any(|model| model.seen_by.len() == 2);
        if ready && seen { Ok(()) } else { Err(format!("{nodes:?} {models:?}")) }
    })
    .await;

    let harm = async {
        let uncordon = v1::UncordonNodeRequest { node_id: stays };
        client.cluster.clone().uncordon_node(uncordon).await.expect("uncordoned");
        harm(&mut goes);
    };
    let left = Box::pin(held.lose(client, harm)).await;
    let written = counted(&cluster.nodes[0].metrics.text(), "ingle_node_tokens_written_total");
    assert_eq!(written, left, "no token is written a second time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_killed_process_go_on_from_every_token() {
    Box::pin(lost(Process::kill)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_frozen_process_go_on_from_every_token() {
    Box::pin(lost(|process| process.signal(Signal::STOP))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_process_that_is_asked_to_end_go_on_from_every_token() {
    Box::pin(lost(|process| process.signal(Signal::TERM))).await;
}
