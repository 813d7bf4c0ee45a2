//! A person waits: vectors and answers at once, as a stream, also while a job keeps the node busy.

use ingle_proto::v1::{self, FinishReason, JobState, generate_response::Frame};
use ingle_tests::client::{counts, ended, generate_job, question};
use ingle_tests::cluster::{Cluster, counted};
use ingle_tests::eventually::{eventually, in_time};
use ingle_tests::models::FakeModel;
use tonic::Code;

use crate::bad_input::code_of;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_vectors_in_their_order() {
    let cluster = Cluster::of(2).with(FakeModel::that_embeds("words")).start().await;
    let answer = cluster.client.embed(&["a lamp", "a bridge", "a lamp"]).await.expect("vectors");
    assert_eq!(answer.embeddings.len(), 3);
    assert_eq!(answer.embeddings[0].vector, answer.embeddings[2].vector);
    assert_ne!(answer.embeddings[0].vector, answer.embeddings[1].vector);
    let model = answer.model.expect("which model");
    assert_eq!((model.name.as_str(), model.digest.len()), ("words", 32));
    assert!(answer.usage.expect("usage").prompt_tokens > 0);
    // Longer than the model reads: cut and said so, or refused where that was asked for.
    let long = (0..200).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
    let answer = cluster.client.embed(&[&long, "short"]).await.expect("vectors");
    assert_eq!([answer.embeddings[0].truncated, answer.embeddings[1].truncated], [true, false]);
    let request = v1::EmbedRequest { texts: vec![long], fail_on_truncation: true, ..Default::default() };
    let refused = cluster.client.inference.clone().embed(request).await.expect_err("it would be cut");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_streams_and_ends_as_it_should() {
    let cluster = Cluster::of(2).with(FakeModel::that_answers("talk", 40)).start().await;
    let client = &cluster.client;
    let ask = |change: fn(&mut v1::GenerateRequest)| {
        let mut request = question("What is a hearth for?");
        request.sampling = Some(v1::Sampling { seed: Some(7), ..Default::default() });
        change(&mut request);
        request
    };
    let whole = client.generate(ask(|_| {})).await.expect("an answer");
    let started = whole.started.clone().expect("the first frame");
    assert_eq!((started.seed, started.model.expect("which model").name.as_str()), (7, "talk"));
    assert!(started.prompt_tokens > 0 && !started.node_id.is_empty() && !started.request_id.is_empty());
    assert_eq!((whole.tokens.len(), whole.reason()), (40, FinishReason::Stop));
    assert_eq!((whole.usage().output_tokens, whole.usage().prompt_tokens), (40, started.prompt_tokens));
    // The same seed, the same words; another seed, others.
    assert_eq!(client.generate(ask(|_| {})).await.expect("an answer").text, whole.text);
    let other = client.generate(ask(|r| r.sampling.as_mut().expect("set").seed = Some(8))).await.expect("an answer");
    assert_ne!(other.text, whole.text);
    // So many tokens and no more.
    let short = client.generate(ask(|r| r.max_tokens = Some(5))).await.expect("an answer");
    assert_eq!((short.tokens.len(), short.reason(), short.usage().output_tokens), (5, FinishReason::Length, 5));
    assert!(whole.text.starts_with(short.text.trim_end_matches('\u{FFFD}')), "{:?} {:?}", short.text, whole.text);
    // Up to a stop string, which isn't shown.
    let word = whole.text.split_whitespace().nth(3).expect("several words").to_owned();
    let cut = whole.text.find(&word).expect("it is there");
    let mut request = ask(|_| {});
    request.stop = vec![word.clone(), "never said".into()];
    let stopped = client.generate(request).await.expect("an answer");
    assert_eq!((stopped.text.as_str(), stopped.reason()), (&whole.text[..cut], FinishReason::Stop));
    assert!(stopped.usage().output_tokens < 40);
    // A seed is chosen and told where none is given, and repeats the answer.
    let free = client.generate(question("And a kettle?")).await.expect("an answer");
    let mut request = question("And a kettle?");
    let seed = Some(free.started.expect("the first frame").seed);
    request.sampling = Some(v1::Sampling { seed, ..Default::default() });
    assert_eq!(client.generate(request).await.expect("an answer").text, free.text);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_is_answered_while_a_job_keeps_the_node_busy() {
    // The job takes four seconds at least: three answers come in less, also where each call is slow.
    let model = FakeModel::that_answers("talk", 16).at_ms_per_step(6).with_slots(2);
    let cluster = Cluster::of(1).with(model).start().await;
    cluster.share.documents(80);
    let id = cluster.client.submit(generate_job()).await;
    cluster.client.job_that(&id, "its first batch", |job| counts(job).running > 0).await;
    for number in 0..3 {
        let answer = cluster.client.generate(question(&format!("question {number}"))).await.expect("an answer");
        assert_eq!(answer.tokens.len(), 16);
    }
    let job = cluster.client.job(&id).await.expect("the job");
    assert!(!ended(&job) && counts(&job).published < 80, "answers came while the job went on: {job:?}");
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 80), "{job:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_stops_the_work() {
    let model = FakeModel::that_answers("talk", 1000).at_ms_per_step(5);
    let cluster = Cluster::of(1).with(model).start().await;
    let mut stream =
        cluster.client.inference.clone().generate(question("Talk on and on.")).await.expect("a stream").into_inner();
    let mut tokens = 0;
    while tokens < 3 {
        let frame = in_time("a frame", stream.message()).await.expect("no error").expect("more");
        tokens += u32::from(matches!(frame.frame, Some(Frame::Delta(_))));
    }
    drop(stream);
    eventually("the node to be idle", || async {
        let page = cluster.nodes[0].metrics.text();
        match counted(&page, "ingle_node_attempts_running") {
            0 => Ok(()),
            running => Err(format!("{running} attempts run")),
        }
    })
    .await;
    let written = counted(&cluster.nodes[0].metrics.text(), "ingle_node_tokens_written_total");
    assert!(written < 900, "it ended long before its natural end: {written} tokens");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_loaded_explained_and_unloaded() {
    let cluster =
        Cluster::of(2).with(FakeModel::that_embeds("words")).with(FakeModel::that_answers("talk", 4)).start().await;
    let list = |kind: v1::JobKind| async move { v1::ListModelsRequest { kind: kind.into() } };
    let mut models = cluster.client.models.clone();
    let all = models.list_models(list(v1::JobKind::Unspecified).await).await.expect("models").into_inner().models;
    let name = |status: &v1::ModelStatus| status.info.clone().and_then(|info| info.model).unwrap_or_default().name;
    assert_eq!(all.iter().map(name).collect::<Vec<_>>(), ["talk", "words"]);
    assert!(all.iter().all(|status| status.seen_by.len() == 2), "{all:?}");
    let some = models.list_models(list(v1::JobKind::Embed).await).await.expect("models").into_inner().models;
    assert_eq!(some.iter().map(name).collect::<Vec<_>>(), ["words"]);

    let node_id = cluster.client.nodes().await.expect("nodes")["node-2"].node_id.clone();
    let load = v1::LoadModelRequest { model: "talk".into(), node_id: node_id.clone() };
    let loaded = models.load_model(load).await.expect("loaded").into_inner();
    assert_eq!(loaded.node_id, node_id);
    assert!(loaded.memory_bytes > 0);
    let fit = v1::ExplainFitRequest { model: "talk".into(), ..Default::default() };
    let fit = models.explain_fit(fit).await.expect("an explanation").into_inner();
    assert_eq!(fit.nodes.len(), 2);
    assert!(fit.nodes.iter().all(|node| node.fits && node.needed_bytes > 0 && node.tokens_per_second > 0.0), "{fit:?}");
    let why = v1::ExplainModelRequest { model: "talk".into() };
    let explained = eventually("the model to be told as loaded", || async {
        let why = cluster.client.models.clone().explain_model(why.clone()).await.expect("an explanation").into_inner();
        if why.nodes.iter().any(|node| node.loaded) { Ok(why) } else { Err(format!("{why:?}")) }
    })
    .await;
    assert!(explained.nodes.len() == 2 && explained.nodes.iter().all(|node| node.ready && node.has_room));
    assert!(explained.nodes.iter().all(|node| node.loaded == (node.node_id == node_id)), "{explained:?}");
    let unload = v1::UnloadModelRequest { model: "talk".into(), node_id: String::new() };
    let unloaded = models.unload_model(unload).await.expect("unloaded").into_inner();
    assert_eq!(unloaded.node_ids, [node_id.as_str()]);
    eventually("why it left", || async {
        let why = cluster.client.models.clone().explain_model(why.clone()).await.expect("an explanation").into_inner();
        let node = why.nodes.iter().find(|node| node.node_id == node_id).expect("the node");
        match &node.evicted {
            Some(gone) if !node.loaded && gone.reason.contains("asked to be unloaded") => Ok(()),
            _ => Err(format!("{node:?}")),
        }
    })
    .await;
    for refused in [
        models.load_model(v1::LoadModelRequest { model: "none".into(), ..Default::default() }).await.err(),
        models.explain_fit(v1::ExplainFitRequest { model: "none".into(), ..Default::default() }).await.err(),
        models.explain_model(v1::ExplainModelRequest { model: "none".into() }).await.err(),
    ] {
        let refused = refused.expect("no such model");
        assert_eq!((refused.code(), code_of(&refused).as_str()), (Code::NotFound, "MODEL_NOT_FOUND"));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_past_what_can_be_served_soon_are_refused_with_a_delay() {
    let model = FakeModel::that_answers("talk", 20).at_ms_per_step(10).with_slots(2);
    let cluster = Cluster::of(1).with(model).start().await;
    // Loaded and measured.
    for number in 0..3 {
        cluster.client.generate(question(&format!("question {number}"))).await.expect("an answer");
    }
    let calls = (0..40).map(|number| cluster.client.generate(question(&format!("crowd {number}"))));
    let answers = futures::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(answers.len() - refused.len() >= 2, "as many as it computes at once are served: {refused:?}");
    assert!(!refused.is_empty(), "40 at once are too many for one that computes two");
    for status in refused {
        let problem = ingle_proto::Problem::from_status(status);
        assert_eq!((status.code(), problem.code), (Code::ResourceExhausted, ingle_proto::ErrorCode::Overloaded));
        assert!(problem.retry_after.is_some_and(|delay| !delay.is_zero()), "{problem:?}");
    }
    // Once they are through, calls are taken again.
    cluster.client.generate(question("and now?")).await.expect("an answer");
    cluster.stop().await;
}
