//! What a person waits for: vectors, streams of frames, cancellation, and a stream that moved here.

use ingle_proto::v1::{
    self, FailureKind, assign::Work, generate_response::Frame, work_request, work_response::Message,
};

use super::harness::{Leader, Node};

const WRITE: (&str, &str) = ("writer", r#"{"task": "generate", "output_tokens": 24}"#);

fn ask(text: &str, max_tokens: u32) -> v1::GenerateRequest {
    let part = v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) };
    let message = v1::ChatMessage { role: "user".into(), content: vec![part], ..Default::default() };
    let sampling = v1::Sampling { temperature: Some(1.0), seed: Some(11), ..Default::default() };
    v1::GenerateRequest {
        messages: vec![message],
        max_tokens: Some(max_tokens),
        sampling: Some(sampling),
        ..Default::default()
    }
}

#[derive(Default)]
struct Heard {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    text: String,
    /// Offset and text of each delta.
    deltas: Vec<(u64, String)>,
}

async fn hear(leader: &mut Leader, attempt: u64) -> (Heard, v1::GenerateFinished) {
    let mut heard = Heard::default();
    let finished = leader
        .until(|message| {
            let Message::Frame(frame) = message else {
                assert!(!matches!(message, Message::Failed(_)), "{message:?}");
                return None;
            };
            assert_eq!(frame.attempt, attempt);
            match frame.frame?.frame? {
                Frame::Started(started) => {
                    assert_eq!(started.prompt_tokens as usize, frame.prompt_tokens.len());
                    heard.prompt = frame.prompt_tokens;
                }
                Frame::Delta(delta) => {
                    heard.tokens.push(delta.token);
                    heard.text.push_str(&delta.text);
                    heard.deltas.push((delta.text_offset, delta.text));
                }
                Frame::Finished(finished) => {
                    heard.text.push_str(&finished.text);
                    return Some(finished);
                }
            }
            None
        })
        .await;
    (heard, finished)
}

fn generate(request: v1::GenerateRequest) -> Work {
    Work::Generate(v1::GenerateWork { request: Some(request), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_vectors_at_once() {
    let node = Node::start(&[("mini", r#"{"task": "embed", "dimensions": 8, "context": 12}"#)]).await;
    let mut leader = node.lead().await;
    let long = "word ".repeat(50);
    let request = v1::EmbedRequest { texts: vec!["good morning".into(), long.clone()], ..Default::default() };
    leader.assign(1, "mini", Work::Embed(request)).await;
    let done = leader
        .until(|message| match message {
            Message::Embed(done) => Some(done),
            _ => None,
        })
        .await;
    let response = done.response.unwrap();
    assert_eq!(response.embeddings.len(), 2);
    assert_eq!(response.embeddings[0].vector.len(), 8);
    assert!(!response.embeddings[0].truncated && response.embeddings[1].truncated);
    assert!(response.usage.unwrap().prompt_tokens > 0);
    assert_eq!(response.timings.unwrap().queue_us, 5);
    assert_eq!(response.model.unwrap().digest.len(), 32);

    let request = v1::EmbedRequest { texts: vec![long], fail_on_truncation: true, ..Default::default() };
    leader.assign(2, "mini", Work::Embed(request)).await;
    assert_eq!(leader.ended(2).await.unwrap_err().kind(), FailureKind::Input);
    leader.assign(3, "mini", Work::Embed(v1::EmbedRequest::default())).await;
    assert_eq!(leader.ended(3).await.unwrap_err().code, "INVALID_ARGUMENT");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_moves_goes_on_with_the_same_tokens() {
    let node = Node::start(&[WRITE]).await;
    let mut leader = node.lead().await;
    leader.assign(1, "writer", generate(ask("tell me a story", 24))).await;
    let (whole, finished) = hear(&mut leader, 1).await;
    assert_eq!(whole.tokens.len(), 24);
    assert!(!whole.prompt.is_empty());
    assert_eq!(finished.usage.unwrap().output_tokens, 24);
    for cut in [0, 1, 7, 23] {
        let delivered: String = whole.deltas[..cut].iter().map(|(_, text)| text.as_str()).collect();
        let work = v1::GenerateWork {
            request: Some(ask("tell me a story", 24)),
            prompt_tokens: whole.prompt.clone(),
            emitted: whole.tokens[..cut].to_vec(),
            text_offset: delivered.len() as u64,
        };
        let attempt = 10 + cut as u64;
        leader.assign(attempt, "writer", Work::Generate(work)).await;
        let (rest, finished) = hear(&mut leader, attempt).await;
        assert_eq!(rest.tokens, whole.tokens[cut..], "cut at {cut}");
        assert_eq!(format!("{delivered}{}", rest.text), whole.text, "cut at {cut}");
        assert_eq!(finished.usage.unwrap().output_tokens, 24, "usage counts each token once");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_stream_stops_between_tokens_and_frees_the_model() {
    let slow = r#"{"task": "generate", "output_tokens": 400, "step_ms": 2, "slots": 1, "context": 2000}"#;
    let node = Node::start(&[("slow", slow)]).await;
    let mut leader = node.lead().await;
    leader.assign(1, "slow", generate(ask("on and on", 400))).await;
    let mut deltas = 0;
    leader
        .until(|message| {
            deltas += u32::from(matches!(message, Message::Frame(_)));
            (deltas > 5).then_some(())
        })
        .await;
    leader.send(work_request::Message::Cancel(v1::CancelAttempt { attempt: 1, reason: "left".into() })).await;
    let failed = leader.ended(1).await.unwrap_err();
    assert_eq!(failed.kind(), FailureKind::Cancelled);
    leader.assign(2, "slow", generate(ask("short", 3))).await;
    assert_eq!(hear(&mut leader, 2).await.0.tokens.len(), 3);
    // A person's call goes before a running batch in a model with one slot: see the executor's tests.
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_calls_are_refused_by_name() {
    let node = Node::start(&[WRITE]).await;
    let mut leader = node.lead().await;
    let nan = v1::Sampling { temperature: Some(f32::NAN), ..Default::default() };
    let cases = [
        ("max_tokens", v1::GenerateRequest { max_tokens: Some(0), ..ask("x", 1) }),
        ("temperature", v1::GenerateRequest { sampling: Some(nan), ..ask("x", 1) }),
        ("stop", v1::GenerateRequest { stop: vec![String::new()], ..ask("x", 1) }),
        ("messages", v1::GenerateRequest::default()),
        ("context", ask(&"word ".repeat(20_000), 1)),
    ];
    for (attempt, (word, request)) in (1..).zip(cases) {
        leader.assign(attempt, "writer", generate(request)).await;
        let failed = leader.ended(attempt).await.unwrap_err();
        assert_eq!(failed.kind(), FailureKind::Input, "{failed:?}");
        assert!(failed.message.contains(word), "{word}: {}", failed.message);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_too_large_for_a_message_is_refused_before_it_is_computed() {
    let node = Node::start(&[("wide", r#"{"task": "embed", "dimensions": 8192}"#)]).await;
    let mut leader = node.lead().await;
    let request = v1::EmbedRequest { texts: vec!["x".into(); 200], ..Default::default() };
    leader.assign(1, "wide", Work::Embed(request)).await;
    let failed = leader.ended(1).await.unwrap_err();
    assert!(failed.kind() == FailureKind::Input && failed.message.contains("at most 1"), "{failed:?}");
    let request = v1::EmbedRequest { texts: vec!["x".into(); 100], ..Default::default() };
    leader.assign(2, "wide", Work::Embed(request)).await;
    let done = leader
        .until(|message| match message {
            Message::Embed(done) => Some(done),
            _ => None,
        })
        .await;
    assert_eq!(done.response.unwrap().embeddings.len(), 100);
    node.stop().await;
}
