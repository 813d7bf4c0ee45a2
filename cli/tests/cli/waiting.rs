//! `submit` and `--wait`: what is sent, how it ends, and that a coordinator may go away meanwhile.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ingle_proto::v1::{self, ItemOutcome, JobState};
use tonic::Status;

use super::coordinator::{Coordinator, Script, Watched};
use super::{code, json, stderr, stdout};

const SUBMIT: [&str; 5] = ["submit", "embed", "nas://docs/", "--output", "nas://docs/.index"];

fn job(state: JobState, counts: v1::ItemCounts) -> v1::Job {
    let spec = v1::JobSpec {
        output: Some(v1::ObjectRef { export: "docs".into(), path: b".index".to_vec().into() }),
        ..Default::default()
    };
    v1::Job {
        job_id: "j-1".into(),
        state: state.into(),
        counts: Some(counts),
        spec: Some(spec),
        created_ms: 1_000,
        ended_ms: 3_000,
        ..Default::default()
    }
}

fn counts(published: u64, failed: u64, total: u64) -> v1::ItemCounts {
    v1::ItemCounts { published, failed, total, ..Default::default() }
}

fn watches(list: Vec<Watched>) -> Script {
    Script { watches: Mutex::new(list), ..Script::default() }
}

fn with_wait(more: &[&'static str]) -> Vec<&'static str> {
    SUBMIT.iter().copied().chain(["--wait"]).chain(more.iter().copied()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_documents_all_made_it_exits_with_0() {
    let seen = vec![
        job(JobState::Listing, counts(0, 0, 0)),
        job(JobState::Running, counts(1, 0, 3)),
        job(JobState::Succeeded, v1::ItemCounts { published: 2, skipped: 1, total: 3, ..Default::default() }),
    ];
    let coordinator = Coordinator::start(watches(vec![(seen, None)])).await;
    let output = coordinator.ingle(&with_wait(&[])).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = stdout(&output);
    for word in ["j-1", "succeeded", "published", "skipped", "nas://docs/.index", "1.0/s"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let sent = coordinator.script.submissions.lock().unwrap().remove(0);
    assert!(sent.idempotency_key.starts_with("cli-"), "a key of its own makes it safe to send again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_failed_exit_with_1_and_are_listed() {
    let item = |i: usize| v1::Item {
        name: format!("notes/{i:02}.txt").into_bytes().into(),
        outcome: if i < 24 { ItemOutcome::Failed } else { ItemOutcome::Published }.into(),
        code: "DOCUMENT_MALFORMED".into(),
        reason: "not UTF-8 and not Latin-1".into(),
        ..Default::default()
    };
    let script = Script {
        items: (0..30).map(item).collect(),
        ..watches(vec![(vec![job(JobState::Failed, counts(6, 24, 30))], None)])
    };
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&with_wait(&[])).await;
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("notes/00.txt") && said.contains("notes/19.txt") && !said.contains("notes/20.txt"), "{said}");
    assert!(said.contains("not UTF-8") && said.contains("4 more"), "{said}");
    assert!(stderr(&output).contains("error: 24 of j-1's documents"), "{}", stderr(&output));

    let output = coordinator.ingle(&with_wait(&["--json"])).await;
    assert_eq!(code(&output), 1);
    let document = json(&stdout(&output));
    assert_eq!(document["job"]["counts"]["failed"], 24);
    assert_eq!(document["problems"].as_array().map(Vec::len), Some(20));
    assert_eq!(document["problems"][0]["code"], "DOCUMENT_MALFORMED");
    assert_eq!(json(&stderr(&output))["error"]["exit_code"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_wrong_decides_the_exit_code() {
    let whole = |code: &str, reason: &str| v1::Job {
        reason: reason.into(),
        code: code.into(),
        ..job(JobState::Failed, counts(0, 0, 0))
    };
    for (exit, last) in [
        (1, job(JobState::Failed, v1::ItemCounts { quarantined: 1, total: 1, ..Default::default() })),
        (1, job(JobState::Failed, v1::ItemCounts { conflict: 1, total: 1, ..Default::default() })),
        (1, job(JobState::Cancelled, counts(1, 0, 3))),
        (5, whole("MODEL_DOES_NOT_FIT", "fits on no node")),
        (4, whole("OBJECT_NOT_FOUND", "nodir: no such object")),
        (1, whole("", "nobody knows")),
    ] {
        let coordinator = Coordinator::start(watches(vec![(vec![last.clone()], None)])).await;
        let output = coordinator.ingle(&["jobs", "watch", "j-1"]).await;
        assert_eq!(code(&output), exit, "{last:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(&last.reason));
    }
    let nothing = job(JobState::Succeeded, counts(0, 0, 0));
    let coordinator = Coordinator::start(watches(vec![(vec![nothing], None)])).await;
    let output = coordinator.ingle(&with_wait(&[])).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing was done"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_is_taken_up_again() {
    let running = |n| job(JobState::Running, counts(n, 0, 3));
    let coordinator = Coordinator::start(watches(vec![
        (vec![running(0)], Some(Status::unavailable("transport error"))),
        (
            vec![running(1)],
            Some(ingle_proto::Problem::new(ingle_proto::ErrorCode::ShuttingDown, "shutting down").into()),
        ),
        (vec![running(2), job(JobState::Succeeded, counts(3, 0, 3))], None),
    ]))
    .await;
    let output = coordinator.ingle(&["jobs", "watch", "j-1", "--json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(coordinator.script.watch_calls.load(Ordering::SeqCst), 3);
    let lines: Vec<_> = stdout(&output).lines().map(json).collect();
    let published: Vec<_> = lines.iter().map(|l| l["counts"]["published"].as_u64()).collect();
    assert_eq!(published, [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(lines.last().map(|l| l["state"].clone()), Some("succeeded".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_survives_a_restart_of_the_coordinator() {
    let script = watches(vec![
        (vec![job(JobState::Running, counts(1, 0, 3))], None),
        (vec![job(JobState::Succeeded, counts(3, 0, 3))], None),
    ]);
    let coordinator = Coordinator::start(script).await;
    let mut command = super::ingle(&with_wait(&["--coordinator"]));
    command.arg(&coordinator.endpoint);
    let waiting = tokio::task::spawn_blocking(move || command.output());
    while coordinator.script.watch_calls.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let coordinator = coordinator.restart().await;
    let output = waiting.await.expect("no panic").expect("the binary starts");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(coordinator.script.watch_calls.load(Ordering::SeqCst), 2);
    assert_eq!(coordinator.script.submissions.lock().unwrap().len(), 1, "it is not submitted twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submission_is_sent_again_with_the_same_key() {
    let script = Script { submit_failures: 2.into(), ..Script::default() };
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&SUBMIT).await;
    assert_eq!((code(&output), stdout(&output).trim()), (0, "j-1"), "{}", stderr(&output));
    let sent = coordinator.script.submissions.lock().unwrap().clone();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|s| s == &sent[0]), "key and specification stay the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_carry_their_code() {
    let coordinator = Coordinator::start(Script::default()).await;
    let used: Vec<&str> = SUBMIT.iter().copied().chain(["--idempotency-key", "used"]).collect();
    for (line, exit, word) in [
        (&["jobs", "show", "j-9"][..], 4, "JOB_NOT_FOUND"),
        (&["jobs", "watch", "j-9"], 4, "JOB_NOT_FOUND"),
        (&["jobs", "pause", "j-1"], 5, "JOB_STATE"),
        (&["embed", "x", "--model", "absent"], 4, "MODEL_NOT_FOUND"),
        (&used, 5, "IDEMPOTENCY_KEY_REUSED"),
    ] {
        let output = coordinator.ingle(line).await;
        assert_eq!(code(&output), exit, "{line:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.starts_with("error: ") && said.contains(&format!("[{word}]")) && said.contains("\nhint: "),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_listed_page_by_page() {
    let item = |i: usize| v1::Item {
        name: format!("{i}").into_bytes().into(),
        outcome: ItemOutcome::Published.into(),
        ..Default::default()
    };
    let mut items: Vec<v1::Item> = (0..2345).map(item).collect();
    items[2300].code = "DOCUMENT_MALFORMED".into();
    let script = Script { items, ..Script::default() };
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&["jobs", "items", "j-1", "--all", "--json"]).await;
    let names: Vec<String> =
        stdout(&output).lines().map(|l| json(l)["name"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(names, (0..2345).map(|i| i.to_string()).collect::<Vec<_>>());
    // Those asked for lie far behind: the pages before are empty.
    let output = coordinator.ingle(&["jobs", "items", "j-1", "--incomplete", "--json"]).await;
    let names: Vec<String> = stdout(&output).lines().map(|l| json(l)["name"].to_string()).collect();
    assert_eq!(names, ["\"2300\""]);
    let output = coordinator.ingle(&["jobs", "items", "j-1", "--limit", "5"]).await;
    assert_eq!(stdout(&output).lines().count(), 7, "headings, five, and that there is more: {}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_waits_for_is_said_once_each() {
    let listing = |reason: &str| v1::Job { reason: reason.into(), ..job(JobState::Listing, counts(0, 0, 0)) };
    let running = |reason: &str| v1::Job { reason: reason.into(), ..job(JobState::Running, counts(1, 0, 3)) };
    let away = "the listing failed (docs: no route to host); it is tried again";
    let full = "publishing failed (disk full); it is tried again";
    let seen = vec![
        listing(away),
        listing(away),
        listing(""),
        running(full),
        running(full),
        job(JobState::Succeeded, counts(3, 0, 3)),
    ];
    let coordinator = Coordinator::start(watches(vec![(seen, None)])).await;
    let output = coordinator.ingle(&with_wait(&[])).await;
    let said = stderr(&output);
    assert_eq!(code(&output), 0, "{said}");
    for reason in [away, full] {
        assert_eq!(said.matches(&format!("j-1: waiting: {reason}")).count(), 1, "{said}");
    }
}

#[test]
fn numbers_out_of_range_are_refused_with_their_range() {
    for (line, word) in [
        (&["chat", "hi", "--max-tokens", "-1"][..], "1..=1000000"),
        (&["chat", "hi", "--max-tokens", "0"], "1..=1000000"),
        (&["chat", "hi", "--temperature", "-0.5"], "from 0 to 2"),
        (&["chat", "hi", "--top-k", "-3"], "0..=1000000"),
        (&["submit", "embed", "nas://d/", "--output", "nas://d/o", "--passage-tokens", "-1"], "16..=1000000"),
    ] {
        let output = super::run(line);
        assert_eq!(code(&output), 2, "{line:?}");
        assert!(stderr(&output).contains(word), "{line:?}: {}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_explained_in_units_that_people_use() {
    let node = v1::NodeTerms {
        node_id: "n-1".into(),
        fits: true,
        backlog_ms: 200_000.0,
        load_ms: 0.0,
        prefill_ms: 1500.0,
        finish_ms: f64::INFINITY,
        ..Default::default()
    };
    let explained = v1::ExplainJobResponse { summary: "it waits".into(), nodes: vec![node], ..Default::default() };
    let coordinator = Coordinator::start(Script { explained: Some(explained), ..Script::default() }).await;
    let said = stdout(&coordinator.ingle(&["jobs", "explain", "j-1"]).await);
    assert!(said.contains("3 min 20 s") && said.contains("1.5 s") && said.contains("–"), "{said}");
    let document = json(&stdout(&coordinator.ingle(&["jobs", "explain", "j-1", "--json"]).await));
    assert_eq!(document["nodes"][0]["backlog_ms"], 200_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standing_job_tells_each_pass_until_it_is_cancelled() {
    let standing = |passes: u64, published: u64| {
        let standing = v1::Standing { passes, documents: 9, waiting: 1, ..Default::default() };
        v1::Job { standing: Some(standing), ..job(JobState::Standing, counts(published, 0, 9)) }
    };
    let seen = || {
        let cancelled = v1::Job { state: JobState::Cancelled.into(), ..standing(2, 1) };
        vec![job(JobState::Running, counts(1, 0, 9)), standing(1, 4), standing(1, 4), standing(2, 1), cancelled]
    };
    let coordinator = Coordinator::start(watches(vec![(seen(), None)])).await;
    let output = coordinator.ingle(&with_wait(&["--watch", "--every", "20s"])).await;
    assert_eq!(code(&output), 1, "it was cancelled: {}", stderr(&output));
    let said = stderr(&output);
    assert_eq!(said.matches("pass 1 done: 4 published; 9 documents, 1 waiting").count(), 1, "{said}");
    assert_eq!(said.matches("pass 2 done: 1 published").count(), 1, "{said}");
    let sent = coordinator.script.submissions.lock().unwrap().remove(0).spec.expect("a job");
    assert_eq!(sent.watch, Some(v1::WatchOptions { interval_s: 20, settle_s: Some(10) }));

    let coordinator = Coordinator::start(watches(vec![(seen(), None)])).await;
    let output = coordinator.ingle(&with_wait(&["--watch", "--json"])).await;
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let passes: Vec<u64> = lines.iter().filter_map(|line| line["standing"]["passes"].as_u64()).collect();
    assert_eq!(passes, [1, 2], "a line per pass: {}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_explained_in_words_and_json() {
    let fit = v1::NodeFit { fits: true, needed_bytes: 2 << 30, available_bytes: 3 << 30, ..Default::default() };
    let leaving = v1::LeavingModel { model: "pages".into(), bytes: 1 << 30 };
    let evicted = v1::Eviction {
        bytes: 2 << 30,
        made_room_for: "pages".into(),
        reason: "it was the longest unused".into(),
        at_ms: 1_000,
        ..Default::default()
    };
    let breaker = v1::Breaker {
        model: "words".into(),
        state: v1::BreakerState::HalfOpen.into(),
        reason: "it ran out of memory".into(),
        ..Default::default()
    };
    let node = v1::ModelOnNode {
        node_id: "n-1".into(),
        why_not: "it is draining".into(),
        fit: Some(fit),
        leaving: vec![leaving],
        has_room: true,
        evicted: Some(evicted),
        breakers: vec![breaker],
        terms: Some(v1::NodeTerms { backlog_ms: -0.0, ..Default::default() }),
        ..Default::default()
    };
    let explained = v1::ExplainModelResponse {
        summary: "it is loaded nowhere".into(),
        nodes: vec![node],
        calls_waiting: 2,
        service_ms: 1500.0,
        ..Default::default()
    };
    let coordinator = Coordinator::start(Script { explained_model: Some(explained), ..Script::default() }).await;
    let said = stdout(&coordinator.ingle(&["models", "explain", "words"]).await);
    for part in [
        "it is loaded nowhere",
        "2 wait; one takes 1.5 s",
        "n-1 takes no work of it: it is draining",
        "would make room: pages (",
        "to make room for pages: it was the longest unused",
        "half open",
        "it ran out of memory",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("-0"), "{said}");
    let document = json(&stdout(&coordinator.ingle(&["models", "explain", "words", "--json"]).await));
    assert_eq!(document["nodes"][0]["leaving"][0]["model"], "pages");
    assert_eq!(document["nodes"][0]["breakers"][0]["state"], "half_open");
    assert_eq!(document["nodes"][0]["evicted"]["made_room_for"], "pages");
}
