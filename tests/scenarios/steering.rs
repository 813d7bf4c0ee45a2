//! Jobs are accepted once, listed, watched, paused, cancelled and explained; nodes are drained under them.

use std::collections::BTreeSet;

use ingle_proto::v1::{self, ItemOutcome, JobState};
use ingle_tests::client::{counts, embed_job, ended, generate_job, object};
use ingle_tests::cluster::Cluster;
use ingle_tests::eventually::{eventually, in_time};
use ingle_tests::models::FakeModel;
use tonic::Code;

use crate::bad_input::code_of;

fn into(mut spec: v1::JobSpec, out: &str) -> v1::JobSpec {
    spec.output = Some(object(out));
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_is_the_same_job() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    cluster.share.documents(3);
    let first = cluster.client.try_submit(embed_job(), "tuesday").await.expect("accepted");
    let id = first.job.expect("a job").job_id;
    assert!(!first.existed);
    let again = cluster.client.try_submit(embed_job(), "tuesday").await.expect("answered");
    assert!(again.existed);
    assert_eq!(again.job.expect("a job").job_id, id);
    cluster.client.end_of(&id).await;
    // After its end too.
    let again = cluster.client.try_submit(embed_job(), "tuesday").await.expect("answered");
    assert_eq!((again.existed, again.job.expect("a job").job_id), (true, id.clone()));
    let refused = cluster.client.try_submit(into(embed_job(), "elsewhere"), "tuesday").await.expect_err("another job");
    assert_eq!((refused.code(), code_of(&refused).as_str()), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"));
    // Many at once with one key make one job.
    let calls = (0..8).map(|_| cluster.client.try_submit(into(embed_job(), "many"), "wednesday"));
    let answers = futures::future::join_all(calls).await;
    let ids: BTreeSet<_> =
        answers.into_iter().map(|answer| answer.expect("answered").job.expect("a job").job_id).collect();
    assert_eq!(ids.len(), 1);
    // Without a key every submission is a job of its own.
    let (one, two) = (cluster.client.submit(embed_job()).await, cluster.client.submit(embed_job()).await);
    assert_ne!(one, two);
    for id in ids.into_iter().chain([one, two]) {
        cluster.client.end_of(&id).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_paused_resumed_and_cancelled() {
    let model = FakeModel::that_answers("talk", 8).at_ms_per_step(2).with_slots(2);
    let cluster = Cluster::of(1).with(model).start().await;
    let documents = cluster.share.documents(120);
    let id = cluster.client.submit(generate_job()).await;
    let request = || v1::PauseJobRequest { job_id: id.clone() };
    cluster.client.job_that(&id, "its first batch", |job| counts(job).running > 0).await;
    let paused = cluster.client.jobs.clone().pause_job(request()).await.expect("paused").into_inner();
    assert_eq!(paused.job.expect("a job").state(), JobState::Paused);
    // What runs may finish; then nothing goes on.
    let idle = |job: &v1::Job| counts(job).running == 0 && counts(job).committed == 0;
    let job = cluster.client.job_that(&id, "running batches to finish", idle).await;
    assert_eq!(job.state(), JobState::Paused, "{job:?}");
    let before = counts(&job).published;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let job = cluster.client.job(&id).await.expect("the job");
    assert_eq!((job.state(), counts(&job).published), (JobState::Paused, before), "{job:?}");
    assert!(before < 120, "it was paused in the middle");
    // Pausing twice changes nothing; resuming goes on to the end.
    cluster.client.jobs.clone().pause_job(request()).await.expect("paused already");
    let resume = v1::ResumeJobRequest { job_id: id.clone() };
    cluster.client.jobs.clone().resume_job(resume.clone()).await.expect("resumed");
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 120), "{job:?}");
    for refused in [
        cluster.client.jobs.clone().pause_job(request()).await.expect_err("it has ended"),
        cluster.client.jobs.clone().resume_job(resume).await.expect_err("it has ended"),
    ] {
        assert_eq!((refused.code(), code_of(&refused).as_str()), (Code::FailedPrecondition, "JOB_STATE"));
    }

    // Cancelled in the middle: what is published stays, and nothing half-done is visible.
    let id = cluster.client.submit(into(generate_job(), "cancelled")).await;
    cluster.client.job_that(&id, "its first batch", |job| counts(job).running > 0).await;
    let cancel = v1::CancelJobRequest { job_id: id.clone() };
    cluster.client.jobs.clone().cancel_job(cancel.clone()).await.expect("cancelled");
    let job = cluster.client.end_of(&id).await;
    assert_eq!(job.state(), JobState::Cancelled, "{job:?}");
    assert_eq!(counts(&job).running, 0);
    let again = cluster.client.jobs.clone().cancel_job(cancel).await.expect("nothing to do").into_inner();
    assert_eq!(again.job.expect("a job").state(), JobState::Cancelled);
    let published = counts(&job).published;
    assert!(published < 120, "it was cancelled in the middle");
    let items = cluster.client.items(&id).await;
    let is = |outcome: ItemOutcome| items.values().filter(|item| item.outcome() == outcome).count();
    assert_eq!((items.len(), is(ItemOutcome::Published) as u64), (120, published));
    assert_eq!(is(ItemOutcome::Cancelled) as u64, 120 - published, "the others say that they were cancelled");
    assert_eq!(cluster.share.names("cancelled").len() as u64, 2 * published);
    // The same job again does the rest.
    let job = cluster.client.success(into(generate_job(), "cancelled")).await;
    let seen = counts(&job);
    assert_eq!(seen.published + seen.unchanged, 120, "{job:?}");
    assert_eq!(cluster.share.names("cancelled").len(), 2 * documents.len());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_their_documents_are_listed_filtered_and_paged() {
    let models = [FakeModel::that_embeds("words"), FakeModel::that_answers("talk", 2)];
    let [words, talk] = models;
    let cluster = Cluster::of(1).with(words).with(talk).start().await;
    cluster.share.documents(7);
    cluster.share.write("in/letter.docx", "PK");
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut spec = into(if number == 2 { generate_job() } else { embed_job() }, &format!("out{number}"));
        spec.labels.insert("team".into(), if number % 2 == 0 { "even" } else { "odd" }.into());
        ids.push(cluster.client.done(spec).await.job_id);
    }
    let list = |request: v1::ListJobsRequest| async {
        cluster.client.jobs.clone().list_jobs(request).await.map(tonic::Response::into_inner)
    };
    let names = |jobs: &[v1::Job]| jobs.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>();
    // In pages of two, newest first, each once.
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListJobsRequest { page_size: 2, page_token, ..Default::default() };
        let page = list(request).await.expect("a page");
        assert!(page.jobs.len() <= 2);
        seen.extend(names(&page.jobs));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(seen, newest_first);
    let by_label = v1::ListJobsRequest { label: "team=odd".into(), ..Default::default() };
    assert_eq!(names(&list(by_label).await.expect("a page").jobs), [ids[3].clone(), ids[1].clone()]);
    let kinds = vec![v1::JobKind::Generate.into()];
    let by_kind = v1::ListJobsRequest { kinds, ..Default::default() };
    assert_eq!(names(&list(by_kind).await.expect("a page").jobs), [ids[2].clone()]);
    let states = vec![JobState::Running.into(), JobState::Listing.into()];
    let by_state = v1::ListJobsRequest { states, ..Default::default() };
    assert!(list(by_state).await.expect("a page").jobs.is_empty());

    let only = |outcome: ItemOutcome| v1::ListItemsRequest {
        job_id: ids[0].clone(),
        outcomes: vec![outcome.into()],
        ..Default::default()
    };
    let page = cluster.client.jobs.clone().list_items(only(ItemOutcome::Skipped)).await.expect("a page").into_inner();
    assert_eq!(page.items.iter().map(|item| item.name.as_ref()).collect::<Vec<_>>(), [b"letter.docx"]);
    let page = cluster.client.jobs.clone().list_items(only(ItemOutcome::Published)).await.expect("a page").into_inner();
    assert_eq!(page.items.len(), 7);
    assert!(page.items.iter().all(|item| item.size > 0 && item.passages == 1 && item.tokens > 0), "{page:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_watched_to_its_end_and_explained() {
    let model = FakeModel::that_answers("talk", 6).at_ms_per_step(2);
    let cluster = Cluster::of(1).with(model).start().await;
    cluster.share.documents(60);
    let id = cluster.client.submit(generate_job()).await;
    let request = v1::WatchJobRequest { job_id: id.clone() };
    let mut stream = cluster.client.jobs.clone().watch_job(request).await.expect("a stream").into_inner();
    let explain = v1::ExplainJobRequest { job_id: id.clone() };
    let told = cluster.client.jobs.clone().explain_job(explain.clone()).await.expect("an explanation").into_inner();
    assert!(!told.summary.is_empty());
    let mut last: Option<v1::Job> = None;
    while let Some(seen) = in_time("the watch", stream.message()).await.expect("no error") {
        let job = seen.job.expect("a job");
        if let Some(before) = &last {
            assert!(counts(&job).published >= counts(before).published, "published documents never become fewer");
            assert!(!ended(before), "nothing comes after the end");
        }
        last = Some(job);
    }
    let last = last.expect("it was seen");
    assert_eq!((last.state(), counts(&last).published), (JobState::Succeeded, 60), "{last:?}");
    let told = cluster.client.jobs.clone().explain_job(explain).await.expect("an explanation").into_inner();
    assert!(told.summary.contains("succeeded") && told.summary.contains("60"), "{told:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_work_over_and_takes_work_again_later() {
    let model = FakeModel::that_answers("talk", 6).at_ms_per_step(2).with_slots(2);
    let cluster = Cluster::of(2).with(model).start().await;
    cluster.share.documents(160);
    let nodes = cluster.client.nodes().await.expect("nodes");
    let (first, second) = (nodes["node-1"].node_id.clone(), nodes["node-2"].node_id.clone());
    let id = cluster.client.submit(generate_job()).await;
    cluster.client.job_that(&id, "both to work", |job| job.nodes.len() == 2).await;
    let drain = v1::DrainNodeRequest { node_id: first.clone(), stay: true, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    eventually("the node to be idle", || async {
        let nodes = cluster.client.nodes().await.map_err(|status| status.to_string())?;
        let node = &nodes["node-1"];
        if node.state() == v1::NodeState::Drained && node.running == 0 { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 160), "{job:?}");
    // While it is drained all new work goes to the other; afterwards it takes work again.
    for _ in 0..4 {
        let answer = cluster.client.generate(ingle_tests::client::question("who are you?")).await.expect("an answer");
        assert_eq!(answer.started.expect("a start").node_id, second);
    }
    let uncordon = v1::UncordonNodeRequest { node_id: first.clone() };
    cluster.client.cluster.clone().uncordon_node(uncordon).await.expect("uncordoned");
    let drain = v1::DrainNodeRequest { node_id: second, stay: true, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    eventually("the first node to be asked", || async {
        let answer = cluster.client.generate(ingle_tests::client::question("and who are you?")).await;
        let node = answer.map_err(|status| format!("{status:?}"))?.started.map(|started| started.node_id);
        if node.as_ref() == Some(&first) { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_outlives_a_restart_of_the_coordinator() {
    let model = FakeModel::that_answers("talk", 6).at_ms_per_step(2).with_slots(2);
    let mut cluster = Cluster::of(2).with(model).start().await;
    cluster.share.documents(160);
    let nodes = cluster.client.nodes().await.expect("nodes");
    let (first, second) = (nodes["node-1"].node_id.clone(), nodes["node-2"].node_id.clone());
    let id = cluster.client.submit(generate_job()).await;
    cluster.client.job_that(&id, "both to work", |job| job.nodes.len() == 2).await;
    let drain = v1::DrainNodeRequest { node_id: first.clone(), stay: true, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    cluster.restart_coordinator().await;
    eventually("both nodes to be back, the first drained", || async {
        let nodes = cluster.client.nodes().await.map_err(|status| status.to_string())?;
        let is = |name: &str, state| nodes.get(name).is_some_and(|node| node.state() == state);
        let as_before = is("node-1", v1::NodeState::Drained) && is("node-2", v1::NodeState::Ready);
        if as_before { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    for _ in 0..4 {
        let answer = cluster.client.generate(ingle_tests::client::question("who are you?")).await.expect("an answer");
        assert_eq!(answer.started.expect("a start").node_id, second);
    }
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 160), "{job:?}");
    // The other is to be done with at once, and the first may work again: also the node itself has heard of it.
    let uncordon = v1::UncordonNodeRequest { node_id: first.clone() };
    cluster.client.cluster.clone().uncordon_node(uncordon).await.expect("uncordoned");
    let drain = v1::DrainNodeRequest { node_id: second, deadline_ms: 1, stay: true };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    cluster.restart_coordinator().await;
    eventually("the first node to be asked", || async {
        let answer = cluster.client.generate(ingle_tests::client::question("and who are you?")).await;
        let node = answer.map_err(|status| format!("{status:?}"))?.started.map(|started| started.node_id);
        if node.as_ref() == Some(&first) { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
    cluster.stop().await;
}

/// Where a model is loaded, by the names of the nodes.
async fn holders(cluster: &Cluster, model: &str) -> Result<Vec<String>, String> {
    let nodes = cluster.client.nodes().await.map_err(|status| format!("{status:?}"))?;
    let holds = |node: &v1::NodeStatus| {
        node.loaded.iter().any(|loaded| loaded.model.as_ref().is_some_and(|loaded| loaded.name == model))
    };
    Ok(nodes.iter().filter(|(_, node)| holds(node)).map(|(name, _)| name.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_hot_model_over_and_ends_and_works_when_it_is_started_again() {
    let mut cluster = Cluster::of(2).with(FakeModel::that_answers("talk", 6).at_ms_per_step(2)).start().await;
    let answer = cluster.client.generate(ingle_tests::client::question("who are you?")).await.expect("an answer");
    let first = answer.started.expect("a start").node_id;
    let nodes = cluster.client.nodes().await.expect("nodes");
    let at = if nodes["node-1"].node_id == first { 0 } else { 1 };
    let (name, other) = (format!("node-{}", at + 1), format!("node-{}", 2 - at));
    eventually("its node to say that it holds the model", || async {
        let holders = holders(&cluster, "talk").await?;
        if holders == [name.clone()] { Ok(()) } else { Err(format!("{holders:?}")) }
    })
    .await;
    let drain = v1::DrainNodeRequest { node_id: first.clone(), ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    cluster.nodes.remove(at).ended().await;
    eventually("it to be forgotten, and its model to be held by the other", || async {
        let nodes = cluster.client.nodes().await.map_err(|status| status.to_string())?;
        let holders = holders(&cluster, "talk").await?;
        let handed_over = !nodes.contains_key(&name) && nodes.len() == 1 && holders == [other.clone()];
        if handed_over { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    cluster.start_node(at + 1).await;
    cluster.client.ready(2, 1).await;
    let nodes = cluster.client.nodes().await.expect("nodes");
    assert_eq!(nodes[&name].node_id, first, "it is who it was, and nobody had to let it work");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drained_in_the_middle_of_a_job_ends_and_loses_nothing_and_a_new_one_gets_work() {
    let model = FakeModel::that_answers("talk", 6).at_ms_per_step(4).with_slots(2);
    let mut cluster = Cluster::of(2).with(model).start().await;
    cluster.share.documents(240);
    let nodes = cluster.client.nodes().await.expect("nodes");
    let (first, second) = (nodes["node-1"].node_id.clone(), nodes["node-2"].node_id.clone());
    let id = cluster.client.submit(generate_job()).await;
    cluster.client.job_that(&id, "both to work", |job| job.nodes.len() == 2).await;
    let deadline_ms = ingle_daemon::clock::unix_ms() + 60_000;
    let drain = v1::DrainNodeRequest { node_id: first.clone(), deadline_ms, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    cluster.nodes.remove(0).ended().await;
    let job = cluster.client.end_of(&id).await;
    assert_eq!((job.state(), counts(&job).published), (JobState::Succeeded, 240), "{job:?}");
    cluster.start_node(3).await;
    let drain = v1::DrainNodeRequest { node_id: second.clone(), stay: true, ..Default::default() };
    cluster.client.cluster.clone().drain_node(drain).await.expect("drained");
    eventually("the new node to answer", || async {
        let answer = cluster.client.generate(ingle_tests::client::question("and who are you?")).await;
        let node = answer.map_err(|status| format!("{status:?}"))?.started.map(|started| started.node_id);
        if node.as_ref().is_some_and(|node| *node != first && *node != second) {
            Ok(())
        } else {
            Err(format!("{node:?}"))
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_to_end_hands_its_hot_model_over_too() {
    let mut cluster = Cluster::of(2).with(FakeModel::that_answers("talk", 6).at_ms_per_step(2)).start().await;
    let answer = cluster.client.generate(ingle_tests::client::question("who are you?")).await.expect("an answer");
    let first = answer.started.expect("a start").node_id;
    let nodes = cluster.client.nodes().await.expect("nodes");
    let at = if nodes["node-1"].node_id == first { 0 } else { 1 };
    let (name, other) = (format!("node-{}", at + 1), format!("node-{}", 2 - at));
    eventually("its node to say that it holds the model", || async {
        let holders = holders(&cluster, "talk").await?;
        if holders == [name.clone()] { Ok(()) } else { Err(format!("{holders:?}")) }
    })
    .await;
    cluster.nodes.remove(at).stop().await;
    eventually("it to be gone, and its model to be held by the other", || async {
        let nodes = cluster.client.nodes().await.map_err(|status| status.to_string())?;
        let holders = holders(&cluster, "talk").await?;
        let handed_over = !nodes.contains_key(&name) && holders == [other.clone()];
        if handed_over { Ok(()) } else { Err(format!("{nodes:?}")) }
    })
    .await;
    cluster.stop().await;
}
