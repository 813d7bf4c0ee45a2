//! What a stranger types: short ids, the same twice, names that are mistyped, prompts from a pipe.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::Mutex;

use ingle_proto::v1::{self, JobState, generate_response::Frame};
use ingle_proto::{ErrorCode, Problem};

use super::coordinator::{Coordinator, Script};
use super::{code, run, stderr, stdout};

const SUBMIT: [&str; 5] = ["submit", "embed", "nas://docs/", "--output", "nas://docs/.index"];

fn ended(id: &str) -> v1::Job {
    v1::Job { job_id: id.into(), state: JobState::Succeeded.into(), ended_ms: 1_000, ..Default::default() }
}

fn refusing(code: ErrorCode, words: &str) -> Script {
    Script { refusal: Some(Problem::new(code, words)), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_number_is_a_job() {
    let coordinator = Coordinator::start(Script { jobs: vec![ended("j-18")], ..Script::default() }).await;
    let output = coordinator.ingle(&["jobs", "show", "18"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("j-18"), "{}", stdout(&output));
    let output = coordinator.ingle(&["jobs", "show", "018"]).await;
    assert_eq!(code(&output), 4, "no job is written so: {}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_not_cancelled_and_that_is_said() {
    let coordinator = Coordinator::start(Script { jobs: vec![ended("j-3")], ..Script::default() }).await;
    let output = coordinator.ingle(&["jobs", "cancel", "j-3"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.starts_with("j-3 ended already, ") && said.contains(" ago: succeeded"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_runs_is_not_submitted_again_unless_told_so() {
    let script = refusing(ErrorCode::JobState, "j-7 does the same already, and has not ended");
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&SUBMIT).await;
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("j-7 does the same already") && said.contains("watch j-7") && said.contains("--again"),
        "{said}"
    );
    let sent = coordinator.script.submissions.lock().unwrap().remove(0);
    assert!(sent.unless_open && sent.look_first, "{sent:?}");

    let coordinator = Coordinator::start(Script::default()).await;
    let again: Vec<&str> = SUBMIT.iter().copied().chain(["--again"]).collect();
    let output = coordinator.ingle(&again).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let sent = coordinator.script.submissions.lock().unwrap().remove(0);
    assert!(!sent.unless_open && sent.look_first, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_mistyped_is_named_by_its_option() {
    for (refused, words, exit, hint) in [
        (ErrorCode::ExportNotFound, "spec.output: no export \"dcos\"; the gateway serves docs", 4, "--output is"),
        (ErrorCode::ExportNotFound, "spec.input: no export \"dcos\"; the gateway serves docs", 4, "INPUT is"),
        (ErrorCode::ObjectNotFound, "text_from: no object ocr", 4, "--text-from is"),
        (ErrorCode::ObjectNotFound, "spec.input: no object letetrs", 4, "check the path"),
    ] {
        let coordinator = Coordinator::start(refusing(refused, words)).await;
        let output = coordinator.ingle(&SUBMIT).await;
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        let said = stderr(&output);
        assert!(
            said.contains(words) && said.lines().any(|line| line.starts_with("hint: ") && line.contains(hint)),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_glob_that_matches_nothing_is_not_found() {
    let spec = |text: &str| {
        let base = Some(v1::ObjectRef { export: "docs".into(), ..Default::default() });
        let glob = v1::Glob { base, pattern: text.into() };
        v1::JobSpec {
            input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Glob(glob)) }),
            ..Default::default()
        }
    };
    for (total, exit) in [(0, 4), (2, 0)] {
        let counts = v1::ItemCounts { total, published: total, ..Default::default() };
        let job = v1::Job { job_id: "j-1".into(), spec: Some(spec("*.mdd")), counts: Some(counts), ..ended("j-1") };
        let watches = Mutex::new(vec![(vec![job], None)]);
        let coordinator = Coordinator::start(Script { watches, ..Script::default() }).await;
        let output = coordinator.ingle(&["jobs", "watch", "1"]).await;
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("no document matches nas://docs/*.mdd"), exit == 4, "{}", stderr(&output));
    }
}

#[test]
fn usage_asks_for_nothing_that_the_environment_gives() {
    let mut command = super::ingle(&["jobs", "show"]);
    let output = command.env("INGLE_COORDINATOR", "http://127.0.0.1:1").output().expect("the binary starts");
    let said = stderr(&output);
    assert_eq!(code(&output), 2, "{said}");
    assert!(said.contains("Usage: ingle jobs show [OPTIONS] <JOB>") && !said.contains("--coordinator"), "{said}");
}

#[test]
fn a_prompt_without_the_document_is_refused_at_once() {
    let line = ["submit", "generate", "nas://docs/", "--output", "nas://docs/x", "--prompt", "Summarise it."];
    // Nobody listens there: it is refused before anybody is asked.
    let output = run(&[&line[..], &["--coordinator", "http://127.0.0.1:1"]].concat());
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("{{ document }}") && said.contains("hint: "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_may_come_from_standard_input() {
    let last =
        v1::GenerateFinished { reason: v1::FinishReason::Stop.into(), text: "Good.".into(), ..Default::default() };
    let frame = v1::GenerateResponse { frame: Some(Frame::Finished(last)), ..Default::default() };
    let script = Script { generations: Mutex::new(vec![vec![Ok(frame)]]), ..Script::default() };
    let coordinator = Coordinator::start(script).await;
    let mut command = super::ingle(&["chat", "-", "--coordinator", &coordinator.endpoint]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    child.stdin.take().expect("piped").write_all(b"How was your day?").expect("it reads");
    let output =
        tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic").expect("it ends");
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "Good.\n"), "{}", stderr(&output));
    let asked = coordinator.script.generate_calls.lock().unwrap().remove(0);
    let text = asked.messages[0].content[0].part.clone();
    assert_eq!(text, Some(v1::content_part::Part::Text("How was your day?".into())));
}
