//! `chat` and `embed`: tokens as they come, answers that break off, vectors whole.

use std::sync::Mutex;

use ingle_proto::{ErrorCode, Problem, v1};
use tonic::Status;
use v1::generate_response::Frame;

use super::coordinator::{Coordinator, Generated, Script};
use super::{code, json, stderr, stdout};

fn delta(index: u32, text_offset: u64, text: &str) -> Result<v1::GenerateResponse, Status> {
    let delta = v1::GenerateDelta { index, text_offset, text: text.into(), ..Default::default() };
    Ok(v1::GenerateResponse { frame: Some(Frame::Delta(delta)), resume_token: format!("after-{index}") })
}

fn finished(text_offset: u64) -> Result<v1::GenerateResponse, Status> {
    let usage = Some(v1::Usage { prompt_tokens: 9, output_tokens: 3, cached_tokens: 0 });
    let timings = Some(v1::Timings { queue_us: 1000, load_us: 0, prefill_us: 90_000, decode_us: 100_000 });
    let last = v1::GenerateFinished {
        reason: v1::FinishReason::Stop.into(),
        text_offset,
        usage,
        timings,
        ..Default::default()
    };
    Ok(v1::GenerateResponse { frame: Some(Frame::Finished(last)), resume_token: String::new() })
}

fn script(generations: Vec<Generated>) -> Script {
    Script { generations: Mutex::new(generations), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_printed_as_it_comes() {
    let coordinator =
        Coordinator::start(script(vec![vec![delta(0, 0, "Good "), delta(1, 5, "morning."), finished(13)]])).await;
    let output = coordinator
        .ingle(&["chat", "hello", "--system", "Be kind.", "--max-tokens", "9", "--temperature", "0.5", "--stats"])
        .await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output), "Good morning.\n");
    assert!(stderr(&output).contains("wrote 3 (30/s)"), "{}", stderr(&output));
    let asked = coordinator.script.generate_calls.lock().unwrap().remove(0);
    let roles: Vec<&str> = asked.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user"]);
    assert_eq!((asked.max_tokens, asked.sampling.and_then(|s| s.temperature)), (Some(9), Some(0.5)));

    let output = coordinator.ingle(&["chat", "hello", "--json"]).await;
    let frames: Vec<_> = stdout(&output).lines().map(json).collect();
    assert_eq!(frames[1]["delta"]["text"], "morning.");
    assert_eq!(frames[2]["finished"]["reason"], "stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_taken_up_where_it_was() {
    let coordinator = Coordinator::start(script(vec![
        vec![delta(0, 0, "Good "), delta(1, 5, "mor"), Err(Status::unavailable("the coordinator restarts"))],
        // The rest begins a little earlier than what was shown.
        vec![delta(1, 5, "mor"), delta(2, 8, "ning."), finished(13)],
    ]))
    .await;
    let output = coordinator.ingle(&["chat", "hello"]).await;
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "Good morning.\n"), "{}", stderr(&output));
    let tokens: Vec<String> =
        coordinator.script.generate_calls.lock().unwrap().iter().map(|c| c.resume_token.clone()).collect();
    assert_eq!(tokens, ["", "after-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_refused_for_longer_than_anybody_waits_is_not_asked_again() {
    let refused =
        Problem::new(ErrorCode::Overloaded, "64 answers are queued").retry_after(std::time::Duration::from_secs(70));
    let coordinator = Coordinator::start(script(vec![vec![Err(refused.into())]])).await;
    let output = coordinator.ingle(&["chat", "hello"]).await;
    assert_eq!(code(&output), 6);
    assert!(
        stderr(&output).contains("[OVERLOADED]") && stderr(&output).contains("try again in 1 min 10 s"),
        "{}",
        stderr(&output)
    );
    assert_eq!(coordinator.script.generate_calls.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_told_when_to_come_again_comes_again() {
    let refused = || {
        let delay = std::time::Duration::from_millis(150);
        Problem::new(ErrorCode::Overloaded, "64 answers are queued").retry_after(delay)
    };
    let generations = vec![
        vec![Err(refused().into())],
        vec![Err(refused().into())],
        vec![delta(0, 0, "Good "), delta(1, 5, "morning."), finished(13)],
    ];
    let refusals = Mutex::new([refused(), refused()].into());
    let coordinator = Coordinator::start(Script { refusals, ..script(generations) }).await;
    let told = "waiting: 64 answers are queued; asking again in 150 ms";
    let output = coordinator.ingle(&["chat", "hello"]).await;
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "Good morning.\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains(told), "{}", stderr(&output));
    assert_eq!(coordinator.script.generate_calls.lock().unwrap().len(), 3);

    let output = coordinator.ingle(&["embed", "hello"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains(told) && stdout(&output).contains("hello"), "{}", stderr(&output));
    assert!(coordinator.script.refusals.lock().unwrap().is_empty());

    coordinator.script.refusals.lock().unwrap().push_back(refused());
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("page.png");
    std::fs::write(&file, "a page").expect("a file");
    let output = coordinator.ingle(&["ocr", file.to_str().expect("UTF-8")]).await;
    let said = stderr(&output);
    assert!(said.contains("64 answers are queued; asking again in 150 ms"), "{said}");
    assert!(said.contains("[UNIMPLEMENTED]"), "what it is told the second time: {said}");
    assert!(coordinator.script.refusals.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_longer_than_a_call_may_take_is_not_waited() {
    let delay = std::time::Duration::from_secs(20);
    let refused = Problem::new(ErrorCode::Overloaded, "64 texts are queued").retry_after(delay);
    let coordinator = Coordinator::start(Script { refusals: Mutex::new([refused].into()), ..Script::default() }).await;
    let output = coordinator.ingle(&["embed", "hello", "--timeout", "10s"]).await;
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("[OVERLOADED]"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_whole_in_json_and_short_in_a_table() {
    let coordinator = Coordinator::start(Script::default()).await;
    let output = coordinator.ingle(&["embed", "good morning", "hi", "--json"]).await;
    let document = json(&stdout(&output));
    assert_eq!(document["embeddings"][0]["vector"], serde_json::json!([12.0, 0.5]));
    assert_eq!(document["embeddings"][1]["text"], "hi");
    assert_eq!(document["model"]["name"], "m");
    let output = coordinator.ingle(&["embed", "good morning", &"x".repeat(200)]).await;
    let said = stdout(&output);
    assert!(said.contains("DIMENSIONS") && said.contains("+12.0000"), "{said}");
    assert!(stderr(&output).contains("1 texts were longer"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_has_no_answer_yet_says_what_it_waits_for() {
    let silent = v1::NodeStatus {
        node_id: "n-1".into(),
        state: v1::NodeState::Suspect.into(),
        reason: "silent for over 3 s".into(),
        ..Default::default()
    };
    let model = |kind: v1::JobKind| v1::ModelStatus {
        info: Some(v1::ModelInfo {
            model: Some(v1::ModelRef { name: format!("m-{}", i32::from(kind)), ..Default::default() }),
            kind: kind.into(),
            ..Default::default()
        }),
        seen_by: vec!["n-1".into()],
        ..Default::default()
    };
    let coordinator = Coordinator::start(Script {
        until_asked: true,
        nodes: vec![silent],
        models: vec![model(v1::JobKind::Generate), model(v1::JobKind::Embed)],
        ..script(vec![vec![delta(0, 0, "Hello."), finished(6)]])
    })
    .await;
    for (line, kind) in [(["chat", "hello"], v1::JobKind::Generate), (["embed", "hello"], v1::JobKind::Embed)] {
        let output = coordinator.ingle(&line).await;
        let said = stderr(&output);
        assert_eq!(code(&output), 0, "{said}");
        let expected = format!("waiting: no node that has m-{} is ready; n-1 is suspect", i32::from(kind));
        assert!(said.contains(&expected), "{said}");
    }
    let output = coordinator.ingle(&["chat", "hello", "--json"]).await;
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "scripts are told nothing but JSON");
}
