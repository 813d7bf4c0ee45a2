//! Models read through the gateway: found, cached by content, read again when they change.

use std::sync::atomic::Ordering;

use ingle_proto::v1::{self, JobKind, assign::Work, work_request, work_response::Message};

use super::gateway::Gateway;
use super::harness::{Leader, Node, batch};

const CONFIG: &str = r#"{"task": "embed", "dimensions": 8}"#;

async fn seen(leader: &mut Leader, enough: impl Fn(&[v1::ModelInfo]) -> bool) -> Vec<v1::ModelInfo> {
    // Those that are still on their way aren't there.
    let there = |models: Vec<v1::ModelInfo>| -> Option<Vec<v1::ModelInfo>> {
        let told = |info: &v1::ModelInfo| !info.problem.is_empty() || !info.model.clone().unwrap().digest.is_empty();
        let models: Vec<_> = models.into_iter().filter(told).collect();
        enough(&models).then_some(models)
    };
    if let Some(models) = there(leader.welcome.models.clone()) {
        return models;
    }
    leader
        .until(|message| match message {
            Message::Models(seen) => there(seen.models),
            _ => None,
        })
        .await
}

async fn start(gateway: &Gateway) -> Node {
    Node::start_in(tempfile::tempdir().unwrap(), gateway.clone(), "nas://m/models").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_come_through_the_gateway_and_stay_in_the_cache() {
    let gateway = Gateway::start().await;
    gateway.put("m/models/text/mini/fake-model.json", CONFIG);
    let weights: Vec<u8> = (0..20_000_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
    gateway.put("m/models/text/mini/weights.bin", weights);
    gateway.put("m/models/broken/fake-model.json", "{nonsense");
    gateway.put("m/models/notes.txt", "nothing");
    let node = start(&gateway).await;
    let mut leader = node.lead().await;
    let models = seen(&mut leader, |models| models.len() == 2).await;
    let name = |info: &v1::ModelInfo| info.model.clone().unwrap().name;
    let mini = models.iter().find(|info| name(info) == "mini").unwrap();
    assert_eq!((mini.kind(), mini.dimensions, mini.problem.as_str()), (JobKind::Embed, 8, ""));
    let digest = mini.model.clone().unwrap().digest;
    assert_eq!(digest.len(), 32);
    let broken = models.iter().find(|info| name(info) == "broken").unwrap();
    assert!(broken.problem.contains("fake-model.json"), "{}", broken.problem);

    let work = batch(&gateway, JobKind::Embed, &[("a.md", b"one")]);
    leader.assign_model(1, mini.model.clone(), Work::Batch(work)).await;
    assert_eq!(leader.ended(1).await.unwrap().model_digest, digest);

    // After a restart nothing of it is read again.
    drop(leader);
    let dir = node.stop().await;
    let before = gateway.state.object_reads.load(Ordering::SeqCst);
    let node = Node::start_in(dir, gateway.clone(), "nas://m/models").await;
    let mut leader = node.lead().await;
    let models = seen(&mut leader, |models| models.len() == 2).await;
    assert!(models.iter().any(|info| info.model.clone().unwrap().digest == digest));
    assert_eq!(gateway.state.object_reads.load(Ordering::SeqCst), before, "only listings");

    // A model that changes becomes another one.
    gateway.put("m/models/text/mini/fake-model.json", r#"{"task": "embed", "dimensions": 16}"#);
    leader.send(work_request::Message::Refresh(v1::RefreshModels {})).await;
    let models = seen(&mut leader, |models| models.iter().any(|info| info.dimensions == 16)).await;
    assert!(models.iter().all(|info| info.model.clone().unwrap().digest != digest));
    let work = batch(&gateway, JobKind::Embed, &[("a.md", b"one")]);
    let old = v1::ModelRef { name: "mini".into(), digest };
    leader.assign_model(2, Some(old), Work::Batch(work)).await;
    let failed = leader.ended(2).await.unwrap_err();
    assert_eq!((failed.kind(), failed.code.as_str()), (v1::FailureKind::Model, "MODEL_NOT_FOUND"));
    assert!(failed.message.contains("changed"), "{}", failed.message);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_cache_files_are_read_again() {
    let gateway = Gateway::start().await;
    gateway.put("m/models/mini/fake-model.json", CONFIG);
    gateway.put("m/models/mini/weights.bin", vec![7; 1000]);
    let node = start(&gateway).await;
    let mut leader = node.lead().await;
    seen(&mut leader, |models| models.len() == 1).await;
    drop(leader);
    let dir = node.stop().await;
    let models = dir.path().join("cache/models");
    let model = std::fs::read_dir(&models).unwrap().next().unwrap().unwrap().path();
    std::fs::write(model.join("weights.bin"), vec![8; 1000]).unwrap();
    let before = gateway.state.object_reads.load(Ordering::SeqCst);
    let node = Node::start_in(dir, gateway.clone(), "nas://m/models").await;
    let mut leader = node.lead().await;
    let models = seen(&mut leader, |models| models.len() == 1).await;
    assert_eq!(models[0].problem, "");
    assert!(gateway.state.object_reads.load(Ordering::SeqCst) > before);
    assert_eq!(std::fs::read(model.join("weights.bin")).unwrap(), vec![7; 1000]);
    drop(leader);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nas_that_is_away_at_first_is_asked_again() {
    let gateway = Gateway::start().await;
    gateway.put("m/models/mini/fake-model.json", CONFIG);
    gateway.state.failing_reads.store(12, Ordering::SeqCst);
    let node = start(&gateway).await;
    let mut leader = node.lead().await;
    let models = seen(&mut leader, |models| models.len() == 1).await;
    assert_eq!(models[0].problem, "");
    node.stop().await;
}
