//! An engine that stands still: its work fails so that others do it, the rest is handed back, and the node ends for its
//! supervisor to start it anew. And what left memory is told.

use ingle_node_agent::StartError;
use ingle_proto::v1::node_client::NodeClient;
use ingle_proto::v1::{self, FailureKind, JobKind, assign::Work, work_request, work_response::Message};

use super::harness::{Leader, Node, batch};

const HANGS: (&str, &str) = ("writer", r#"{"task": "generate", "slots": 1, "output_tokens": 4, "hang": "quicksand"}"#);

async fn executors(node: &Node) -> Vec<v1::ExecutorProgress> {
    let mut client = NodeClient::connect(format!("http://{}", node.beat)).await.unwrap();
    let beat = v1::BeatRequest { epoch: Some(v1::Epoch { generation: 1, revision: 1 }), sequence: 1 };
    let mut answers = client.beat(tokio_stream::iter([beat])).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().executors
}

/// Waits until beats show what is wanted of the one executor.
async fn shown(node: &Node, wanted: impl Fn(&v1::ExecutorProgress) -> bool) {
    let looks = async {
        while !executors(node).await.iter().any(&wanted) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::harness::PATIENCE, looks).await.expect("it is shown in time");
}

fn write(leader: &Leader, name: &str, text: &str) -> Work {
    let mut work = batch(&leader.gateway, JobKind::Generate, &[(name, text.as_bytes())]);
    work.generate = Some(v1::GenerateOptions { prompt: "{{ document }}".into(), max_tokens: 4, ..Default::default() });
    Work::Batch(work)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_engine_ends_the_node_after_its_work_was_handed_back() {
    let node = Node::start_with(&[HANGS], |config| config.engine_stall_s = 3).await;
    let mut leader = node.lead().await;
    let work = write(&leader, "a.md", "fine");
    leader.assign(1, "writer", work).await;
    assert_eq!(leader.ended(1).await.unwrap().committed, 1);
    let work = write(&leader, "b.md", "quicksand");
    leader.assign(2, "writer", work).await;
    shown(&node, |executor| executor.model == "writer" && executor.inside == 1 && executor.step_ms > 0).await;
    let work = write(&leader, "c.md", "behind it");
    leader.assign(3, "writer", work).await;
    let mut ends = std::collections::BTreeMap::new();
    while ends.len() < 2 {
        let failed = leader
            .until(|message| match message {
                Message::Failed(failed) => Some(failed),
                Message::Complete(complete) => panic!("{complete:?}"),
                _ => None,
            })
            .await;
        ends.insert(failed.token.as_ref().unwrap().attempt, (failed.kind(), failed.code.clone()));
    }
    assert_eq!(ends[&2], (FailureKind::Node, "ENGINE_STALLED".to_owned()), "what was in it");
    assert_eq!(ends[&3], (FailureKind::Node, "SHUTTING_DOWN".to_owned()), "what waited for it");
    match node.ends().await {
        Err(StartError::Task(reason)) => assert!(reason.contains("`writer` made no step for 3 s"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_engine_is_noticed_as_well_once_its_model_was_to_leave_memory() {
    let node = Node::start_with(&[HANGS], |config| config.engine_stall_s = 3).await;
    let mut leader = node.lead().await;
    let work = write(&leader, "a.md", "quicksand");
    leader.assign(1, "writer", work).await;
    shown(&node, |executor| executor.model == "writer" && executor.inside == 1).await;
    let cancel = v1::CancelAttempt { attempt: 1, reason: "nobody waits for it".into() };
    leader.send(work_request::Message::Cancel(cancel)).await;
    assert_eq!(leader.ended(1).await.unwrap_err().kind(), FailureKind::Cancelled);
    // Nobody uses it any more, and its thread never ends by itself.
    let model = Some(v1::ModelRef { name: "writer".into(), ..Default::default() });
    leader.send(work_request::Message::Unload(v1::UnloadCommand { request: 1, model })).await;
    match node.ends().await {
        Err(StartError::Task(reason)) => assert!(reason.contains("`writer` made no step for 3 s"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_left_memory_is_told_with_the_reason() {
    let big = |task: &str| format!(r#"{{"task": "{task}", "weight_bytes": 50000000, "context": 64, "slots": 1}}"#);
    let (first, second) = (big("embed"), big("generate"));
    let node = Node::start_with(&[("first", &first), ("second", &second)], |config| {
        let device = ingle_node_agent::device::Device::measure(1, std::time::Duration::ZERO);
        // Room for one of them.
        config.memory_reserve_bytes = Some(device.memory_bytes.saturating_sub(90_000_000));
    })
    .await;
    let mut leader = node.lead().await;
    assert!(leader.welcome.evictions.is_empty());
    for (request, name) in [(1, "first"), (2, "second")] {
        let model = Some(v1::ModelRef { name: name.into(), ..Default::default() });
        leader.send(work_request::Message::Load(v1::LoadCommand { request, model })).await;
        leader
            .until(|message| match message {
                Message::Command(done) if done.request == request => {
                    assert!(done.ok, "{done:?}");
                    Some(())
                }
                _ => None,
            })
            .await;
    }
    drop(leader);
    let leader = node.lead().await;
    let told: Vec<_> = leader.welcome.evictions.iter().map(|gone| (&gone.model, gone.made_room_for.as_str())).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let gone = &leader.welcome.evictions[0];
    assert_eq!((gone.model.as_ref().unwrap().name.as_str(), told[0].1), ("first", "second"));
    assert!(gone.bytes > 50_000_000 && gone.at_ms > 0 && gone.reason.contains("bytes were needed"), "{gone:?}");
    let loaded = &leader.welcome.loaded;
    assert!(loaded.len() == 1 && loaded[0].last_used_ms > 0 && !loaded[0].in_use, "{loaded:?}");
    node.stop().await;
}
