//! Streams that break, leaders that change, nodes that stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ingle_node_agent::pipeline::BEGUN;
use ingle_proto::v1::node_client::NodeClient;
use ingle_proto::v1::{self, JobKind, assign::Work, generate_response::Frame, work_request, work_response::Message};
use ingle_proto::{ErrorCode, Problem};
use tokio_stream::wrappers::ReceiverStream;

use super::harness::{Node, Slow, batch, token};

const EMBED: (&str, &str) = ("mini", r#"{"task": "embed", "dimensions": 8}"#);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_loses_no_work_and_tells_it_once() {
    let node = Node::start(&[EMBED]).await;
    let leader = node.lead().await;
    assert!(leader.welcome.node_id.starts_with("n-") && leader.welcome.capacity.is_some());
    node.gateway.state.slow_ms.store(300, Ordering::SeqCst);
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one"), ("b.md", b"two")]);
    leader.assign(1, "mini", Work::Batch(work.clone())).await;
    node.has_begun().await;
    drop(leader);
    let mut leader = node.lead().await;
    let running: Vec<u64> = leader.welcome.running.iter().map(|token| token.attempt).collect();
    assert_eq!(running, [1], "running attempts are told, to be adopted");
    // Said again: known already, so that nothing runs twice.
    leader.assign(1, "mini", Work::Batch(work.clone())).await;
    let complete = leader.ended(1).await.unwrap();
    assert_eq!(complete.committed, 2);
    leader.assign(1, "mini", Work::Batch(work)).await;
    leader.quiet().await;
    let reads = node.gateway.state.object_reads.load(Ordering::SeqCst);
    assert_eq!(reads, 2, "each document was read once");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_made_while_nobody_listened_is_heard_by_the_next_leader() {
    let node = Node::start(&[EMBED]).await;
    let leader = node.lead().await;
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    node.gateway.state.slow_ms.store(200, Ordering::SeqCst);
    leader.assign(7, "mini", Work::Batch(work)).await;
    node.has_begun().await;
    drop(leader);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut leader = node.lead_at(2).await.unwrap();
    assert_eq!(leader.welcome.running.len(), 1);
    assert_eq!(leader.ended(7).await.unwrap().committed, 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_a_broken_stream_come_again_without_a_gap() {
    let slow = r#"{"task": "generate", "output_tokens": 60, "step_ms": 5}"#;
    let node = Node::start(&[("slow", slow)]).await;
    let mut leader = node.lead().await;
    let part = v1::ContentPart { part: Some(v1::content_part::Part::Text("go".into())) };
    let message = v1::ChatMessage { role: "user".into(), content: vec![part], ..Default::default() };
    let request = v1::GenerateRequest { messages: vec![message], max_tokens: Some(60), ..Default::default() };
    leader.assign(1, "slow", Work::Generate(v1::GenerateWork { request: Some(request), ..Default::default() })).await;
    leader.until(|message| matches!(message, Message::Frame(_)).then_some(())).await;
    drop(leader);
    let mut leader = node.lead().await;
    let mut indices = Vec::new();
    leader
        .until(|message| match message {
            Message::Frame(frame) => match frame.frame?.frame? {
                Frame::Delta(delta) => {
                    indices.push(delta.index);
                    None
                }
                Frame::Finished(_) => Some(()),
                Frame::Started(_) => None,
            },
            _ => None,
        })
        .await;
    assert_eq!(indices, (0..60).collect::<Vec<_>>());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_leader_is_refused_also_after_a_restart() {
    let node = Node::start(&[EMBED]).await;
    let mut first = node.lead_at(4).await.unwrap();
    let second = node.lead_at(5).await.unwrap();
    assert!(loop_until_closed(&mut first).await, "the older stream ends when a newer one comes");
    let status = node.lead_at(4).await.err().expect("refused");
    assert_eq!(Problem::from_status(&status).code, ErrorCode::EpochStale);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let (id, incarnation) = (second.welcome.node_id.clone(), second.welcome.incarnation.clone());
    drop(second);
    let (gateway, models) = (node.gateway.clone(), node.dir.path().join("models").display().to_string());
    let dir = node.stop().await;
    let node = Node::start_in(dir, gateway, &models).await;
    let status = node.lead_at(3).await.err().expect("refused after a restart");
    assert_eq!(Problem::from_status(&status).code, ErrorCode::EpochStale);
    let again = node.lead_at(5).await.unwrap();
    assert_eq!(again.welcome.node_id, id);
    assert_ne!(again.welcome.incarnation, incarnation);
    drop(again);
    node.stop().await;
}

async fn loop_until_closed(leader: &mut super::harness::Leader) -> bool {
    while leader.next().await.is_some() {}
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_hello_is_refused() {
    let node = Node::start(&[EMBED]).await;
    let (to, requests) = tokio::sync::mpsc::channel(1);
    let message = Some(work_request::Message::Refresh(v1::RefreshModels {}));
    to.send(v1::WorkRequest { message }).await.unwrap();
    let status = node.client().await.work(ReceiverStream::new(requests)).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_are_answered_on_their_own_port() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead_at(3).await.unwrap();
    let mut client = NodeClient::connect(format!("http://{}", node.beat)).await.unwrap();
    let beat = |sequence, revision| v1::BeatRequest { epoch: Some(v1::Epoch { generation: 1, revision }), sequence };
    let beats = [beat(1, 3), beat(2, 3), beat(3, 2)];
    let mut answers = client.beat(tokio_stream::iter(beats)).await.unwrap().into_inner();
    for sequence in [1, 2] {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.sequence, answer.node_id), (sequence, leader.welcome.node_id.clone()));
        assert!(answer.memory_available > 0 && !answer.draining);
    }
    let status = answers.message().await.unwrap_err();
    assert_eq!(Problem::from_status(&status).code, ErrorCode::EpochStale);

    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    leader.assign(1, "mini", Work::Batch(work)).await;
    leader.ended(1).await.unwrap();
    let mut answers = client.beat(tokio_stream::iter([beat(9, 3)])).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().steps > 0, "the engine has moved");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_loaded_and_unloaded_on_command() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    let model = |name: &str| Some(v1::ModelRef { name: name.into(), ..Default::default() });
    leader.send(work_request::Message::Load(v1::LoadCommand { request: 1, model: model("mini") })).await;
    let mut command = async |request: u64| {
        leader
            .until(|message| match message {
                Message::Command(done) if done.request == request => Some(done),
                _ => None,
            })
            .await
    };
    let done = command(1).await;
    assert!(done.ok && done.memory_bytes > 0, "{done:?}");
    leader.send(work_request::Message::Load(v1::LoadCommand { request: 2, model: model("absent") })).await;
    let mut command = async |request: u64| {
        leader
            .until(|message| match message {
                Message::Command(done) if done.request == request => Some(done),
                _ => None,
            })
            .await
    };
    assert_eq!(command(2).await.code, "MODEL_NOT_FOUND");
    leader.send(work_request::Message::Unload(v1::UnloadCommand { request: 3, model: model("mini") })).await;
    leader.send(work_request::Message::Unload(v1::UnloadCommand { request: 4, model: model("absent") })).await;
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < 2 {
        let done = leader
            .until(|message| match message {
                Message::Command(done) => Some(done),
                _ => None,
            })
            .await;
        seen.insert(done.request, done);
    }
    assert!(seen[&3].ok);
    assert_eq!(seen[&4].code, "MODEL_NOT_FOUND");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_at_once_is_refused_with_a_delay() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    // None is read before the last one came, however long that takes.
    let state = Arc::clone(&node.gateway.state);
    let gate = state.gate.lock().await;
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    // Two batches and two calls for each slot is what a coordinator hands out, and some may overlap.
    let slots = u64::from(leader.welcome.capacity.as_ref().unwrap().slots);
    let most = 4 * slots + 16;
    for attempt in 1..=most + 1 {
        leader.assign(attempt, "mini", Work::Batch(work.clone())).await;
    }
    let failed = leader
        .until(|message| match message {
            Message::Failed(failed) => Some(failed),
            _ => None,
        })
        .await;
    assert_eq!((failed.kind(), failed.code.as_str()), (v1::FailureKind::Node, "OVERLOADED"));
    assert_eq!(failed.token.unwrap().attempt, most + 1, "the one too many");
    assert!(failed.retry_after_ms > 0);
    drop(gate);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_ends_its_batch_early_and_says_so() {
    let slow = r#"{"task": "generate", "context": 200, "output_tokens": 20, "step_ms": 4, "slots": 1}"#;
    let node = Node::start(&[("slow", slow)]).await;
    let mut leader = node.lead().await;
    let documents: Vec<(String, Vec<u8>)> = (0..40).map(|i| (format!("{i:02}.md"), b"text".to_vec())).collect();
    let documents: Vec<(&str, &[u8])> = documents.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let mut work = batch(&leader.gateway, JobKind::Generate, &documents);
    work.generate = Some(v1::GenerateOptions { prompt: "{{ document }}".into(), max_tokens: 20, ..Default::default() });
    leader.assign(1, "slow", Work::Batch(work)).await;
    leader
        .until(|message| matches!(message, Message::Progress(progress) if progress.stage != BEGUN).then_some(()))
        .await;
    node.begin_stop();
    let complete = leader.ended(1).await.unwrap();
    assert!((1..40).contains(&complete.count));
    node.stop().await;
    assert!(loop_until_closed(&mut leader).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passed_deadline_ends_the_attempt() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    node.gateway.state.slow_ms.store(5_000, Ordering::SeqCst);
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    let deadline_ms = ingle_daemon::clock::unix_ms() + 200;
    let assign = v1::Assign {
        token: Some(v1::AttemptToken { deadline_ms, ..token(1) }),
        model: Some(v1::ModelRef { name: "mini".into(), ..Default::default() }),
        gateway: node.gateway.address.to_string(),
        work: Some(Work::Batch(work)),
        ..Default::default()
    };
    leader.send(work_request::Message::Assign(assign)).await;
    let failed = leader.ended(1).await.unwrap_err();
    assert_eq!((failed.kind(), failed.code.as_str()), (v1::FailureKind::Node, "DEADLINE"), "no document's fault");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_ahead_ends_nothing() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    // As a coordinator an hour behind us says it: a deadline long past, and how long that is from now.
    let deadline_ms = ingle_daemon::clock::unix_ms() - 3_600_000;
    let assign = |attempt, within_ms| v1::Assign {
        token: Some(v1::AttemptToken { deadline_ms, ..token(attempt) }),
        model: Some(v1::ModelRef { name: "mini".into(), ..Default::default() }),
        gateway: node.gateway.address.to_string(),
        work: Some(Work::Batch(work.clone())),
        within_ms,
        ..Default::default()
    };
    leader.send(work_request::Message::Assign(assign(1, 600_000))).await;
    assert_eq!(leader.ended(1).await.unwrap().count, 1);
    node.gateway.state.slow_ms.store(5_000, Ordering::SeqCst);
    leader.send(work_request::Message::Assign(assign(2, 200))).await;
    assert_eq!(leader.ended(2).await.unwrap_err().code, "DEADLINE");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_takes_nothing_whatever_it_is_told_of_drains() {
    let slow = r#"{"task": "generate", "context": 200, "output_tokens": 180, "step_ms": 16, "slots": 1}"#;
    let node = Node::start(&[("slow", slow)]).await;
    let mut leader = node.lead().await;
    let documents: Vec<(String, Vec<u8>)> = (0..40).map(|i| (format!("{i:02}.md"), b"text".to_vec())).collect();
    let documents: Vec<(&str, &[u8])> = documents.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let mut work = batch(&leader.gateway, JobKind::Generate, &documents);
    work.generate =
        Some(v1::GenerateOptions { prompt: "{{ document }}".into(), max_tokens: 180, ..Default::default() });
    leader.assign(1, "slow", Work::Batch(work.clone())).await;
    leader
        .until(|message| matches!(message, Message::Progress(progress) if progress.stage != BEGUN).then_some(()))
        .await;
    // Connected before: it ends with the document that it is at.
    let mut beats = NodeClient::connect(format!("http://{}", node.beat)).await.unwrap();
    node.begin_stop();
    loop {
        let beat = v1::BeatRequest { epoch: Some(v1::Epoch { generation: 1, revision: 1 }), sequence: 1 };
        let mut answers = beats.beat(tokio_stream::iter([beat])).await.unwrap().into_inner();
        if answers.message().await.unwrap().unwrap().draining {
            break;
        }
    }
    // Each attach says so of a node that nobody drained.
    leader.send(work_request::Message::Drain(v1::DrainCommand { drain: false, leave: false })).await;
    leader.assign(2, "slow", Work::Batch(work)).await;
    let mut ends = std::collections::BTreeMap::new();
    while ends.len() < 2 {
        let ended = leader.until(|message| match message {
            Message::Complete(complete) => Some((complete.token.unwrap().attempt, Ok(complete.count))),
            Message::Failed(failed) => Some((failed.token.unwrap().attempt, Err(failed.code))),
            _ => None,
        });
        let (attempt, end) = ended.await;
        ends.insert(attempt, end);
    }
    assert_eq!(ends[&2], Err("SHUTTING_DOWN".to_owned()));
    assert!(matches!(ends[&1], Ok(1..40)), "{ends:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_whose_asker_left_is_still_the_only_one() {
    let (loads, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    super::harness::model(&root, EMBED.0, EMBED.1);
    let engine = Arc::new(Slow { loads: Arc::clone(&loads), go: Arc::clone(&go) });
    let models = root.display().to_string();
    let node = Node::start_over(engine, dir, super::gateway::Gateway::start().await, &models).await;
    let mut leader = node.lead().await;
    let work = batch(&leader.gateway, JobKind::Embed, &[("a.md", b"one")]);
    leader.assign(1, "mini", Work::Batch(work.clone())).await;
    while loads.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let cancel = v1::CancelAttempt { attempt: 1, reason: "nobody wants it".into() };
    leader.send(work_request::Message::Cancel(cancel)).await;
    assert_eq!(leader.ended(1).await.unwrap_err().kind(), v1::FailureKind::Cancelled);
    leader.assign(2, "mini", Work::Batch(work)).await;
    // Long enough for a second load to begin, if it could.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    go.store(true, Ordering::SeqCst);
    assert_eq!(leader.ended(2).await.unwrap().count, 1);
    assert_eq!(loads.load(Ordering::SeqCst), 1, "two at once would both count the same free memory");
    node.stop().await;
}
