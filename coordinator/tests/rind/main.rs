//! A whole coordinator against nodes and a gateway that the tests play, over gRPC: jobs, calls, commands.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod members;
mod played;

use futures::StreamExt as _;
use ingle_proto::v1::cluster_client::ClusterClient;
use ingle_proto::v1::inference_client::InferenceClient;
use ingle_proto::v1::jobs_client::JobsClient;
use ingle_proto::v1::models_client::ModelsClient;
use ingle_proto::v1::{self, ItemOutcome, assign, generate_response::Frame, input_spec::Input, work_response::Message};
use ingle_proto::{ErrorCode, Problem};
use prost::Message as _;

use played::{Coordinator, Node, Storage};

fn code<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> ErrorCode {
    Problem::from_status(&answer.expect_err("a refusal")).code
}

fn spec(texts: &[&str]) -> v1::JobSpec {
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    v1::JobSpec {
        kind: v1::JobKind::Generate.into(),
        input: Some(v1::InputSpec { input: Some(Input::Inline(v1::InlineInput { texts })) }),
        output: Some(v1::ObjectRef { export: "docs".into(), path: "out".into() }),
        ..Default::default()
    }
}

fn submit(spec: v1::JobSpec, key: &str) -> v1::SubmitJobRequest {
    v1::SubmitJobRequest { spec: Some(spec), idempotency_key: key.into(), ..Default::default() }
}

/// Completes a batch as a node does: a result for every entry.
async fn complete(node: &Node, storage: &Storage, assign: v1::Assign) {
    let Some(assign::Work::Batch(batch)) = assign.work else { panic!("a batch, not {:?}", assign.work) };
    let segment: v1::Segment = storage.message(&batch.segment.clone().unwrap());
    let payload: v1::InlineInput = storage.message(&batch.payload.clone().expect("inline texts are a payload"));
    let range = batch.first..batch.first + batch.count;
    let entries = || range.clone().map(|index| (index, &segment.entries[index as usize]));
    assert!(entries().all(|(_, entry)| payload.texts.len() > entry.inline_index.unwrap() as usize));
    let manifest = v1::ResultManifest {
        token: assign.token.clone(),
        segment: batch.segment.clone(),
        items: entries()
            .map(|(index, _)| v1::ItemResult {
                index,
                outcome: ItemOutcome::Committed.into(),
                tokens: 3,
                ..Default::default()
            })
            .collect(),
        outputs: entries()
            .map(|(_, entry)| v1::OutputResult {
                name: [entry.name.as_ref(), b".txt"].concat().into(),
                inputs: vec![v1::Provenance { name: entry.name.clone(), ..Default::default() }],
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let done = v1::Complete {
        token: assign.token,
        manifest: Some(storage.keep(manifest.encode_to_vec())),
        count: batch.count,
        busy_us: 1000,
        committed: batch.count,
        outputs: batch.count,
        bytes: 10,
        ..Default::default()
    };
    node.say(Message::Complete(done)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_done_and_every_document_accounted_for() {
    let storage = Storage::start().await;
    let mut node = Node::start("n-1", &[("words", v1::JobKind::Generate)]).await;
    let coordinator = Coordinator::start(&[&node], Some(&storage)).await;
    let mut jobs = JobsClient::new(coordinator.channel().await);

    let given = spec(&["one", "taken", "skip me"]);
    let job = jobs.submit_job(submit(given.clone(), "k")).await.unwrap().into_inner();
    assert!(!job.existed);
    let id = job.job.unwrap().job_id;
    let again = jobs.submit_job(submit(given, "k")).await.unwrap().into_inner();
    assert_eq!((again.existed, &again.job.unwrap().job_id), (true, &id));
    assert_eq!(code(jobs.submit_job(submit(spec(&["other"]), "k")).await), ErrorCode::IdempotencyKeyReused);

    let watched = jobs.watch_job(v1::WatchJobRequest { job_id: id.clone() }).await.unwrap().into_inner();
    let work = async {
        let mut done = 0;
        while done < 2 {
            let assign = node.assigned().await;
            let token = assign.token.clone().unwrap();
            assert_eq!((token.job_id.as_str(), token.node_id.as_str()), (id.as_str(), "n-1"));
            assert_eq!(token.place.as_ref().map(|place| place.path.as_ref()), Some(b"out".as_slice()));
            assert_eq!(assign.gateway, storage.address);
            if let Some(assign::Work::Batch(batch)) = &assign.work {
                done += batch.count;
            }
            complete(&node, &storage, assign).await;
        }
    };
    let (states, ()) = tokio::join!(watched.collect::<Vec<_>>(), work);
    let last = states.last().unwrap().as_ref().unwrap().job.clone().unwrap();
    assert_eq!(last.state(), v1::JobState::Failed, "one document met a person's file: {last:?}");
    let counts = last.counts.unwrap();
    assert_eq!((counts.total, counts.published, counts.conflict, counts.skipped), (3, 1, 1, 1), "{counts:?}");

    // In pages of one, from the archive.
    let mut request = v1::ListItemsRequest { job_id: id.clone(), page_size: 1, ..Default::default() };
    let mut outcomes = Vec::new();
    loop {
        let page = jobs.list_items(request.clone()).await.unwrap().into_inner();
        outcomes.extend(page.items.iter().map(|item| (item.name.to_vec(), item.outcome())));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected = [
        (b"0".to_vec(), ItemOutcome::Published),
        (b"1".to_vec(), ItemOutcome::Conflict),
        (b"2".to_vec(), ItemOutcome::Skipped),
    ];
    assert_eq!(outcomes, expected);
    let only =
        v1::ListItemsRequest { job_id: id.clone(), outcomes: vec![ItemOutcome::Conflict.into()], ..Default::default() };
    assert_eq!(jobs.list_items(only).await.unwrap().into_inner().items.len(), 1);

    let listed = jobs.list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(listed.len(), 1);
    let explained = jobs.explain_job(v1::ExplainJobRequest { job_id: id }).await.unwrap().into_inner();
    assert!(explained.summary.contains("1 in conflict"), "{}", explained.summary);
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_waits_for_a_node_and_can_be_steered() {
    let storage = Storage::start().await;
    let coordinator = Coordinator::start(&[], Some(&storage)).await;
    let mut jobs = JobsClient::new(coordinator.channel().await);
    let job = jobs.submit_job(submit(spec(&["one"]), "")).await.unwrap().into_inner().job.unwrap();
    let job_id = job.job_id.clone();
    let paused = jobs.pause_job(v1::PauseJobRequest { job_id: job_id.clone() }).await.unwrap().into_inner();
    assert_eq!(paused.job.unwrap().state(), v1::JobState::Paused);
    jobs.resume_job(v1::ResumeJobRequest { job_id: job_id.clone() }).await.unwrap();
    jobs.cancel_job(v1::CancelJobRequest { job_id: job_id.clone() }).await.unwrap();
    let watched = jobs.watch_job(v1::WatchJobRequest { job_id }).await.unwrap().into_inner();
    let states: Vec<_> = watched.collect().await;
    let last = states.last().unwrap().as_ref().unwrap().job.clone().unwrap();
    assert_eq!(last.state(), v1::JobState::Cancelled);

    for (bad, expected) in
        [("", ErrorCode::InvalidArgument), ("j-x", ErrorCode::InvalidArgument), ("j-9", ErrorCode::JobNotFound)]
    {
        assert_eq!(code(jobs.get_job(v1::GetJobRequest { job_id: bad.into() }).await), expected, "{bad:?}");
    }
    let page = v1::ListJobsRequest { page_size: 1001, ..Default::default() };
    assert_eq!(code(jobs.list_jobs(page).await), ErrorCode::InvalidArgument);
    let label = v1::ListJobsRequest { label: "no value".into(), ..Default::default() };
    assert_eq!(code(jobs.list_jobs(label).await), ErrorCode::InvalidArgument);
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_gateway_inline_jobs_are_told_to_come_back() {
    let coordinator = Coordinator::start(&[], None).await;
    let mut jobs = JobsClient::new(coordinator.channel().await);
    let refused = jobs.submit_job(submit(spec(&["one"]), "")).await.expect_err("no gateway");
    let problem = Problem::from_status(&refused);
    assert_eq!(problem.code, ErrorCode::StorageUnavailable);
    assert!(problem.retryable() && problem.message.contains("gateway"), "{problem}");
    let status = ClusterClient::new(coordinator.channel().await).get_status(v1::GetStatusRequest {}).await;
    assert!(!status.unwrap().into_inner().gateway_ready);
    coordinator.end().await;
}

fn ask(text: &str) -> v1::GenerateRequest {
    let part = v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) };
    let message = v1::ChatMessage { role: "user".into(), content: vec![part], ..Default::default() };
    v1::GenerateRequest { messages: vec![message], max_tokens: Some(8), ..Default::default() }
}

fn frame(attempt: u64, frame: Frame) -> Message {
    let frame = v1::GenerateResponse { frame: Some(frame), resume_token: String::new() };
    Message::Frame(v1::GenerateFrame { attempt, prompt_tokens: vec![7, 8, 9], frame: Some(frame) })
}

fn delta(attempt: u64, index: u32, text_offset: u64, text: &str) -> Message {
    let delta = v1::GenerateDelta { index, token: 50 + index, text_offset, text: text.into(), ..Default::default() };
    frame(attempt, Frame::Delta(delta))
}

fn text(frame: &v1::GenerateResponse) -> &str {
    match &frame.frame {
        Some(Frame::Started(_)) => "<start>",
        Some(Frame::Delta(delta)) => &delta.text,
        Some(Frame::Finished(finished)) => &finished.text,
        None => "",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_moves_to_another_node_without_a_seam_and_can_be_resumed() {
    let models = [("words", v1::JobKind::Generate)];
    let (mut one, mut two) = (Node::start("n-1", &models).await, Node::start("n-2", &models).await);
    let coordinator = Coordinator::start(&[&one, &two], None).await;
    let mut calls = InferenceClient::new(coordinator.channel().await);
    let mut frames = calls.generate(ask("hello")).await.unwrap().into_inner();

    let (first, on_one) = tokio::select! {
        assign = one.assigned() => (assign, true),
        assign = two.assigned() => (assign, false),
    };
    let (from, to) = if on_one { (&one, &mut two) } else { (&two, &mut one) };
    let token = first.token.clone().unwrap();
    let Some(assign::Work::Generate(work)) = first.work else { panic!("a generation") };
    assert!(work.emitted.is_empty() && work.prompt_tokens.is_empty());
    let seed = work.request.unwrap().sampling.unwrap().seed.expect("the coordinator chooses one");
    from.say(frame(token.attempt, Frame::Started(v1::GenerateStarted::default()))).await;
    from.say(delta(token.attempt, 0, 0, "go")).await;
    from.say(delta(token.attempt, 1, 2, "od ")).await;
    let failed = v1::Failed {
        token: Some(token.clone()),
        kind: v1::FailureKind::Node.into(),
        code: "SHUTTING_DOWN".into(),
        message: "this node is being drained".into(),
        retry_after_ms: 60_000,
    };
    from.say(Message::Failed(failed)).await;

    let second = to.assigned().await;
    let next = second.token.clone().unwrap().attempt;
    assert_ne!(next, token.attempt);
    let Some(assign::Work::Generate(work)) = second.work else { panic!("a generation") };
    assert_eq!((work.prompt_tokens, work.emitted, work.text_offset), (vec![7, 8, 9], vec![50, 51], 5));
    assert_eq!(work.request.unwrap().sampling.unwrap().seed, Some(seed));
    to.say(frame(next, Frame::Started(v1::GenerateStarted::default()))).await;
    from.say(delta(token.attempt, 2, 5, "bad")).await;
    to.say(delta(next, 2, 5, "mor")).await;
    let usage = Some(v1::Usage { prompt_tokens: 99, output_tokens: 1, cached_tokens: 0 });
    let finished = v1::GenerateFinished {
        reason: v1::FinishReason::Stop.into(),
        text: "ning".into(),
        text_offset: 8,
        usage,
        ..Default::default()
    };
    to.say(frame(next, Frame::Finished(finished))).await;

    let mut all = Vec::new();
    while let Some(frame) = frames.message().await.unwrap() {
        all.push(frame);
    }
    let texts: Vec<&str> = all.iter().map(text).collect();
    assert_eq!(texts, ["<start>", "go", "od ", "mor", "ning"]);
    let Some(Frame::Started(started)) = &all[0].frame else { panic!("the first frame") };
    assert_eq!(started.seed, seed);
    let Some(Frame::Finished(finished)) = &all[4].frame else { panic!("the last frame") };
    let usage = finished.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.output_tokens), (3, 3));

    // Whoever lost the end gets it again.
    let resume = v1::GenerateRequest { resume_token: all[2].resume_token.clone(), ..Default::default() };
    let rest: Vec<_> = calls.generate(resume).await.unwrap().into_inner().collect().await;
    assert_eq!(rest.iter().map(|frame| text(frame.as_ref().unwrap())).collect::<Vec<_>>(), ["mor", "ning"]);
    for (token, expected) in [("1.0", ErrorCode::StreamGone), ("x", ErrorCode::InvalidArgument)] {
        let request = v1::GenerateRequest { resume_token: token.into(), ..Default::default() };
        assert_eq!(code(calls.generate(request).await.map(drop)), expected, "{token}");
    }
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_answered_and_a_caller_who_leaves_is_noticed() {
    let mut node = Node::start("n-1", &[("vectors", v1::JobKind::Embed)]).await;
    let coordinator = Coordinator::start(&[&node], None).await;
    let mut calls = InferenceClient::new(coordinator.channel().await);
    let request = v1::EmbedRequest { texts: vec!["good morning".into()], ..Default::default() };

    let mut asking = calls.clone();
    let asked = asking.embed(request.clone());
    let answer = async {
        let assign = node.assigned().await;
        let Some(assign::Work::Embed(embed)) = assign.work else { panic!("texts") };
        assert_eq!(embed.texts, ["good morning"]);
        assert_eq!(assign.model.unwrap().name, "vectors", "the only one");
        let embedding = v1::Embedding { vector: vec![1.0, 0.0], tokens: 2, truncated: false };
        let response = v1::EmbedResponse { embeddings: vec![embedding], ..Default::default() };
        node.say(Message::Embed(v1::EmbedDone { token: assign.token, response: Some(response), busy_us: 5 })).await;
    };
    let (answered, ()) = tokio::join!(asked, answer);
    let answered = answered.unwrap().into_inner();
    assert_eq!(answered.embeddings[0].vector, [1.0, 0.0]);
    assert!(answered.timings.is_some());

    // The caller gives up while the node works.
    let attempt = {
        let asked = calls.embed(request);
        tokio::pin!(asked);
        tokio::select! {
            answer = &mut asked => panic!("nobody answered: {answer:?}"),
            assign = node.assigned() => assign.token.unwrap().attempt,
        }
    };
    assert_eq!(node.cancelled().await, attempt);

    let none = v1::EmbedRequest::default();
    assert_eq!(code(calls.embed(none).await), ErrorCode::InvalidArgument);
    let unknown = v1::EmbedRequest { model: "nonesuch".into(), texts: vec!["x".into()], ..Default::default() };
    assert_eq!(code(calls.embed(unknown).await), ErrorCode::ModelNotFound);
    assert_eq!(code(calls.ocr(futures::stream::empty()).await), ErrorCode::InvalidArgument);
    coordinator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_shown_drained_and_given_commands() {
    let mut node = Node::start("n-1", &[("words", v1::JobKind::Generate)]).await;
    let coordinator = Coordinator::start(&[&node], None).await;
    let mut cluster = ClusterClient::new(coordinator.channel().await);
    let mut models = ModelsClient::new(coordinator.channel().await);

    let load = v1::LoadModelRequest { model: "words".into(), node_id: String::new() };
    let asked = models.load_model(load);
    let answer = async {
        let request = node.loading().await;
        let done = v1::CommandDone { request, ok: true, memory_bytes: 77, load_ms: 5, ..Default::default() };
        node.say(Message::Command(done)).await;
    };
    let (loaded, ()) = tokio::join!(asked, answer);
    let loaded = loaded.unwrap().into_inner();
    assert_eq!((loaded.node_id.as_str(), loaded.memory_bytes, loaded.load_ms), ("n-1", 77, 5));

    let asked = models.load_model(v1::LoadModelRequest { model: "words".into(), node_id: "n-1".into() });
    let answer = async {
        let request = node.loading().await;
        let code = "MODEL_DOES_NOT_FIT".to_owned();
        node.say(Message::Command(v1::CommandDone { request, code, message: "too big".into(), ..Default::default() }))
            .await;
    };
    let (refused, ()) = tokio::join!(asked, answer);
    assert_eq!(code(refused), ErrorCode::ModelDoesNotFit);
    for (model, on, expected) in [
        ("", "", ErrorCode::InvalidArgument),
        ("nonesuch", "", ErrorCode::ModelNotFound),
        ("words", "n-9", ErrorCode::NodeNotFound),
    ] {
        let load = v1::LoadModelRequest { model: model.into(), node_id: on.into() };
        assert_eq!(code(models.load_model(load).await), expected, "{model} on {on}");
    }
    let fit = v1::ExplainFitRequest { model: "words".into(), ..Default::default() };
    assert!(models.explain_fit(fit).await.unwrap().into_inner().nodes[0].fits);

    let drain = v1::DrainNodeRequest { node_id: "n-1".into(), stay: true, ..Default::default() };
    cluster.drain_node(drain).await.unwrap();
    assert!(node.draining().await, "the node is told");
    let uncordon = v1::UncordonNodeRequest { node_id: "n-1".into() };
    cluster.uncordon_node(uncordon).await.unwrap();
    assert!(!node.draining().await, "and told again");
    let unknown = v1::DrainNodeRequest { node_id: "n-9".into(), ..Default::default() };
    assert_eq!(code(cluster.drain_node(unknown).await), ErrorCode::NodeNotFound);

    // A stream that breaks is opened again, and the node stays what it was.
    node.break_off();
    let mut calls = InferenceClient::new(coordinator.channel().await);
    node.opened_again().await;
    coordinator.until_attached(1).await;
    let frames = calls.generate(ask("after the break")).await.unwrap();
    let assign = node.assigned().await;
    let finished = v1::GenerateFinished { text: "well".into(), ..Default::default() };
    node.say(frame(assign.token.unwrap().attempt, Frame::Finished(finished))).await;
    let all: Vec<_> = frames.into_inner().collect().await;
    assert_eq!(text(all[0].as_ref().unwrap()), "well");
    coordinator.end().await;
}
