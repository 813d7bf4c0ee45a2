//! Models on their way to a node: jobs wait for them, calls that can't wait are told how far they are, and nobody is told that
//! there are none.

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Answer, Effect, Event, ReplyId};
use ingle_proto::v1::{self, FailureKind, JobKind, JobState};
use ingle_proto::{ErrorCode, Problem};

use super::{Rig, node, sent};

fn there(name: &str, kind: JobKind) -> v1::ModelInfo {
    let model = v1::ModelRef { name: name.into(), digest: vec![7; 32].into() };
    v1::ModelInfo {
        model: Some(model),
        kind: kind.into(),
        parameters: 20_000_000,
        weight_bytes: 80_000_000,
        bytes_per_token: 80_000_000,
        ..Default::default()
    }
}

/// As a node tells of one that it can't run yet.
fn coming(name: &str, fetch: Option<v1::ModelFetch>) -> v1::ModelInfo {
    let model = v1::ModelRef { name: name.into(), ..Default::default() };
    v1::ModelInfo { model: Some(model), fetch, ..Default::default() }
}

/// So many GB of so many, at 100 MB a second.
fn copied(gb: u64, of_gb: u64) -> Option<v1::ModelFetch> {
    const GB: u64 = 1_000_000_000;
    Some(v1::ModelFetch { bytes: gb * GB, bytes_total: of_gb * GB, bytes_per_second: 1e8 })
}

/// Queued, about to begin, under way.
fn ways() -> [Option<v1::ModelFetch>; 3] {
    [None, Some(v1::ModelFetch::default()), copied(1, 40)]
}

fn walks(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Scan { .. })).count()
}

fn accepted(effects: &[Effect]) -> Result<v1::Job, ErrorCode> {
    let answer = effects.iter().find_map(|effect| match effect {
        Effect::Reply { answer, .. } => Some(answer.clone()),
        _ => None,
    });
    match answer.expect("an answer") {
        Ok(Answer::Job(job, _)) => Ok(*job),
        Ok(other) => panic!("{other:?}"),
        Err(problem) => Err(problem.code),
    }
}

fn refusal(effects: &[Effect]) -> Option<Problem> {
    effects.iter().find_map(|effect| match effect {
        Effect::CallFailed { problem, .. } => Some(problem.clone()),
        _ => None,
    })
}

impl Rig {
    fn sees(&mut self, number: u32, models: &[v1::ModelInfo]) -> Vec<Effect> {
        let models = models.to_vec();
        self.step(Event::Models { node: node(number), models, loaded: Vec::new(), reserved: 0 })
    }

    fn submit_by(&mut self, model: &str) -> Vec<Effect> {
        let object = v1::ObjectRef { export: "docs".into(), path: b"x".to_vec().into() };
        let spec = v1::JobSpec {
            kind: JobKind::Generate.into(),
            model: model.into(),
            output: Some(object),
            ..Default::default()
        };
        self.step(Event::Submit {
            reply: ReplyId(1),
            spec: Box::new(spec),
            idempotency_key: String::new(),
            spec_digest: vec![1],
            principal: "p".into(),
        })
    }

    fn call_by(&mut self, call: u64, model: &str) -> Vec<Effect> {
        let (kind, model) = (JobKind::Generate, model.to_owned());
        self.step(Event::Call { call: CallId(call), kind, model, bytes: 10, max_tokens: 8 })
    }
}

#[test]
fn a_job_waits_while_its_model_is_on_its_way() {
    for (name, fetch) in ways().into_iter().flat_map(|fetch| [("words", fetch), ("", fetch)]) {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        rig.sees(1, &[there("vectors", JobKind::Embed), coming("words", fetch)]);
        let effects = rig.submit_by(name);
        assert!(accepted(&effects).is_ok() && walks(&effects) == 0, "{name:?} {fetch:?}: {effects:?}");
        // For as long as it takes, and whoever leads.
        for _ in 0..3 {
            assert_eq!(walks(&rig.pass(30_000, &[1])), 0);
            let job = rig.view();
            assert_eq!(job.state(), JobState::Listing, "{name:?} {fetch:?}: {job:?}");
            let told = if name.is_empty() { "reading their models" } else { "its weights are being read" };
            assert!(job.reason.contains(told), "{}", job.reason);
        }
        rig.restart();
        rig.attach(1, &[]);
        rig.sees(1, &[there("vectors", JobKind::Embed), coming("words", fetch)]);
        rig.pass(30_000, &[1]);
        assert_eq!(rig.view().state(), JobState::Listing);
        rig.sees(1, &[there("vectors", JobKind::Embed), there("words", JobKind::Generate)]);
        assert_eq!(walks(&rig.pass(250, &[1])), 1, "{name:?} {fetch:?}: it is there");
    }
    // What nobody brings is still refused.
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.sees(1, &[there("vectors", JobKind::Embed)]);
    assert_eq!(accepted(&rig.submit_by("")), Err(ErrorCode::ModelNotFound));
    rig.sees(1, &[there("vectors", JobKind::Embed), coming("others", None)]);
    assert_eq!(accepted(&rig.submit_by("words")), Err(ErrorCode::ModelNotFound));
}

#[test]
fn the_node_that_has_it_works_and_the_one_that_waits_for_it_does_not() {
    for fetch in ways() {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        rig.attach(2, &[]);
        rig.sees(1, &[coming("words", fetch)]);
        let work = rig.job(JobKind::Generate, &[1; 200]);
        assert!(!work.is_empty() && work.iter().all(|sent| sent.node == node(2)), "{fetch:?}: {work:?}");
        let explained = rig.core.explain(super::JOB).unwrap();
        let first = explained.nodes.iter().find(|terms| terms.node_id == "n-1").unwrap();
        assert!(!first.fits && first.why_not.contains("being read"), "{first:?}");
    }
}

#[test]
fn a_model_that_fails_on_one_node_is_waited_for_on_another() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.sees(2, &[coming("words", copied(1, 40))]);
    for at in rig.job(JobKind::Generate, &[4]) {
        rig.fail(&at, FailureKind::Model, ErrorCode::ModelUnusable);
    }
    for _ in 0..5 {
        assert!(sent(&rig.pass(2_000, &[1, 2])).is_empty());
    }
    assert_eq!(rig.view().state(), JobState::Running, "{:?}", rig.view());
    let work = sent(&rig.sees(2, &[there("words", JobKind::Generate)]));
    assert_eq!(work.iter().map(|sent| &sent.node).collect::<Vec<_>>(), [&node(2)]);
}

#[test]
fn a_call_that_can_not_wait_for_its_model_is_told_how_far_it_is() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.sees(1, &[there("vectors", JobKind::Embed), coming("words", copied(1, 40))]);
    for (call, model) in [(1, "words"), (2, "")] {
        let problem = refusal(&rig.call_by(call, model)).expect("refused at once: six minutes are left");
        assert_eq!(problem.code, ErrorCode::NoNode);
        assert!(problem.retryable() && problem.retry_after.is_some());
        for part in ["words is on its way to n-1", "1000 of 40000 MB", "390 s left"] {
            assert!(problem.message.contains(part), "{part}: {problem}");
        }
    }
    // Ten seconds are worth waiting for.
    rig.sees(1, &[there("vectors", JobKind::Embed), coming("words", copied(39, 40))]);
    assert_eq!(refusal(&rig.call_by(3, "words")), None);
    assert_eq!(refusal(&rig.pass(10_000, &[1])), None);
    let work = rig.sees(1, &[there("vectors", JobKind::Embed), there("words", JobKind::Generate)]);
    assert_eq!(sent(&work).len(), 1);
}

#[test]
fn a_call_that_waited_in_vain_for_its_model_is_told_why() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.sees(1, &[there("vectors", JobKind::Embed), coming("words", None)]);
    assert_eq!(refusal(&rig.call_by(1, "words")), None, "it may be there in a moment");
    assert_eq!(refusal(&rig.pass(59_000, &[1])), None);
    let problem = refusal(&rig.pass(2_000, &[1])).expect("after a minute");
    assert!(problem.retryable() && problem.message.contains("words is on its way to n-1"), "{problem}");
}
