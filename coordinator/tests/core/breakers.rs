//! Breakers: failures in a row of unlike work keep it from where it fails, poison alone doesn't, one attempt shows whether it
//! works again, and the only node is never shut out for good.

use ingle_coordinator::core::Event;
use ingle_coordinator::core::event::CallId;
use ingle_coordinator::limits;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, BreakerState, FailureKind, JobKind};

use super::{Rig, Sent, node, sent};

fn breakers(rig: &Rig, number: u32) -> Vec<v1::Breaker> {
    rig.core.node(&node(number)).expect("a node").breakers
}

/// Calls that fail in the engine, one after the other.
fn fail_calls(rig: &mut Rig, calls: std::ops::Range<u64>) {
    for call in calls {
        let at = sent(&rig.call(call)).remove(0);
        rig.fail(&at, FailureKind::Item, ErrorCode::ComputeFailed);
    }
}

fn next(rig: &mut Rig) -> Option<(u64, Sent)> {
    let begun = rig.now.mono_ms;
    (0..2_000).find_map(|_| {
        let found = sent(&rig.pass(250, &[1])).into_iter().next()?;
        Some((rig.now.mono_ms - begun, found))
    })
}

#[test]
fn failures_in_a_row_open_it_one_attempt_tries_and_a_success_closes() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    fail_calls(&mut rig, 0..3);
    let open = breakers(&rig, 1);
    assert_eq!((open.len(), open[0].model.as_str(), open[0].state()), (1, "words", BreakerState::Open), "{open:?}");
    assert!(open[0].open_until_ms > rig.now.unix_ms && open[0].reason.contains("as the test says"), "{open:?}");
    assert!(sent(&rig.call(10)).is_empty() && sent(&rig.call(11)).is_empty(), "nothing goes there");
    // Other models do.
    let other = Event::Call { call: CallId(12), kind: JobKind::Embed, model: String::new(), bytes: 9, max_tokens: 0 };
    assert_eq!(sent(&rig.step(other)).len(), 1);
    rig.step(Event::CallGone { call: CallId(12) });
    let (waited, probe) = next(&mut rig).expect("one is let through");
    assert!((limits::BREAKER_MS.0 * 3 / 4..=limits::BREAKER_MS.0 + 250).contains(&waited), "{waited}");
    assert_eq!(breakers(&rig, 1)[0].state(), BreakerState::HalfOpen);
    for _ in 0..8 {
        assert!(sent(&rig.pass(250, &[1])).is_empty(), "only one");
    }
    // It fails as well: the next try comes later.
    rig.fail(&probe, FailureKind::Item, ErrorCode::ComputeFailed);
    let (waited, _) = next(&mut rig).expect("another is let through");
    assert!((limits::BREAKER_MS.0 * 3 / 2..=limits::BREAKER_MS.0 * 2 + 250).contains(&waited), "{waited}");
    rig.step(Event::CallEnded { call: CallId(11) });
    assert_eq!(breakers(&rig, 1), [], "it works");
    assert_eq!(sent(&rig.call(20)).len(), 1);
}

#[test]
fn a_poisonous_document_opens_nothing() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for _ in 0..limits::ITEM_FAILURES_MAX - 1 {
        rig.fail(&at, FailureKind::Item, ErrorCode::ComputeFailed);
        assert_eq!(breakers(&rig, 1), []);
        at = next(&mut rig).expect("tried again").1;
    }
    rig.fail(&at, FailureKind::Item, ErrorCode::ComputeFailed);
    assert_eq!(rig.view().counts.unwrap().quarantined, 1);
    assert_eq!(breakers(&rig, 1), []);
    // Nor do documents that can't be read, however many.
    for call in 0..9 {
        let at = sent(&rig.call(call)).remove(0);
        rig.fail(&at, FailureKind::Item, ErrorCode::DocumentMalformed);
    }
    assert_eq!(breakers(&rig, 1), []);
}

#[test]
fn successes_in_between_keep_it_closed() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    for round in 0..10 {
        fail_calls(&mut rig, 10 * round..10 * round + 2);
        assert_eq!(sent(&rig.call(10 * round + 5)).len(), 1);
        rig.step(Event::CallEnded { call: CallId(10 * round + 5) });
    }
    assert_eq!(breakers(&rig, 1), []);
}

#[test]
fn a_node_that_ends_again_and_again_is_left_alone_for_a_while() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    for round in 0..limits::BREAKER_FAILURES {
        // Calls until one is there.
        let first = u64::from(round) * 10;
        let on_it = (first..first + 10).find(|call| sent(&rig.call(*call)).iter().any(|sent| sent.node == node(1)));
        assert!(on_it.is_some(), "it still gets work in round {round}");
        rig.restarted(1, round + 1);
        for call in first..first + 10 {
            rig.step(Event::CallGone { call: CallId(call) });
        }
    }
    let open = breakers(&rig, 1);
    assert!(open.len() == 1 && open[0].model.is_empty(), "{open:?}");
    assert!(sent(&rig.call(900)).iter().all(|sent| sent.node == node(2)));
    let said = rig.core.explain_model("words").unwrap();
    let first = said.nodes.iter().find(|node| node.node_id == "n-1").unwrap();
    assert!(!first.ready && first.why_not.contains("breaker of the node is open"), "{first:?}");
    assert!(first.why_not.contains("one attempt in"), "{first:?}");
    assert_eq!(first.breakers.len(), 1);
}

#[test]
fn a_model_that_could_not_be_loaded_is_tried_again_in_the_end() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    let at = rig.job(JobKind::Generate, &[4]).remove(0);
    rig.fail(&at, FailureKind::Model, ErrorCode::ModelUnusable);
    let broken = if at.node == node(1) { 1 } else { 2 };
    assert_eq!(breakers(&rig, broken).len(), 1);
    let explained = |rig: &Rig| {
        let nodes = rig.core.explain_model("words").unwrap().nodes;
        nodes.into_iter().find(|n| n.node_id == format!("n-{broken}")).unwrap()
    };
    assert!(explained(&rig).why_not.contains("the model failed there"), "{:?}", explained(&rig));
    let mut passed = 0;
    while !explained(&rig).ready {
        rig.pass(500, &[1, 2]);
        passed += 500;
        assert!(passed <= limits::MODEL_BREAKER_MS.0 + 500, "{:?}", explained(&rig));
    }
    assert!(passed >= limits::MODEL_BREAKER_MS.0 * 3 / 4, "{passed}");
}

#[test]
fn an_engine_that_stands_still_takes_its_work_for_a_death_and_no_call_wanders_for_ever() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for _ in 0..limits::ITEM_DEATHS_MAX {
        rig.fail(&at, FailureKind::Node, ErrorCode::EngineStalled);
        match (0..400).find_map(|_| sent(&rig.pass(500, &[1, 2])).into_iter().next()) {
            Some(again) => at = again,
            None => break,
        }
    }
    assert_eq!(rig.view().counts.unwrap().quarantined, 1, "{:?}", rig.view());
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    let mut at = sent(&rig.call(1)).remove(0);
    let mut stalled = 0;
    loop {
        stalled += 1;
        let effects = rig.fail(&at, FailureKind::Node, ErrorCode::EngineStalled);
        if effects.iter().any(|effect| matches!(effect, ingle_coordinator::core::Effect::CallFailed { .. })) {
            break;
        }
        let again = sent(&effects).into_iter().next();
        at = again.or_else(|| (0..40).find_map(|_| sent(&rig.pass(250, &[1, 2])).into_iter().next())).unwrap();
    }
    assert_eq!(stalled, 2);
}

#[test]
fn a_model_whose_engine_stands_still_gets_nothing_and_that_is_told() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stalls = [("words".to_owned(), 40_000)].into();
    rig.step(Event::Stalled { node: node(1), stalls });
    assert!(sent(&rig.call(1)).is_empty());
    let status = rig.core.node(&node(1)).unwrap();
    assert!(status.reason.contains("words has stood still for 40 s"), "{status:?}");
    let gone = rig.step(Event::Stalled { node: node(1), stalls: Default::default() });
    assert_eq!(sent(&gone).len(), 1);
}

#[test]
fn the_rest_of_a_job_that_is_all_poison_ends_in_time() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at: Vec<Sent> = rig.job(JobKind::Generate, &[4; 12]);
    let begun = rig.now.mono_ms;
    while rig.view().state() == v1::JobState::Running {
        for each in std::mem::take(&mut at) {
            at.extend(sent(&rig.fail(&each, FailureKind::Item, ErrorCode::ComputeFailed)));
        }
        at.extend(sent(&rig.pass(250, &[1])));
        let passed = rig.now.mono_ms - begun;
        assert!(passed < 20 * 60_000, "{:?}", rig.view().counts);
    }
    assert_eq!(rig.view().counts.unwrap().quarantined, 12);
}

#[test]
fn a_node_is_tried_with_other_work_than_what_may_have_ended_it() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let last = limits::BREAKER_FAILURES;
    for start in 1..=last {
        let call = u64::from(start);
        assert_eq!(sent(&rig.call(call)).len(), 1);
        rig.attach_again(1, start);
        rig.step(Event::CallGone { call: CallId(call) });
    }
    let next = |rig: &mut Rig, start| {
        let next = (0..400).find_map(|_| sent(&rig.pass_of(250, 1, start)).into_iter().next());
        next.expect("one is let through")
    };
    let first = |sent: &Sent| sent.batch.as_ref().map(|batch| batch.first);
    assert!(rig.job(JobKind::Generate, &[1; 12]).is_empty(), "its breaker is open");
    let probe = next(&mut rig, last);
    assert_eq!(first(&probe), Some(0));
    rig.attach_again(1, last + 1);
    // Halves of what it ended with wait, and so do documents that nobody has tried.
    let other = next(&mut rig, last + 1);
    assert_eq!(first(&other), Some(4));
    let then = sent(&rig.complete(&other, &[]));
    assert_eq!(then.first().map(first), Some(Some(0)), "it works: the halves come first again");
}

#[test]
fn another_start_may_try_its_models_again() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let at = rig.job(JobKind::Generate, &[4]).remove(0);
    rig.fail(&at, FailureKind::Model, ErrorCode::ModelDoesNotFit);
    assert!(breakers(&rig, 1).iter().any(|breaker| breaker.model == "words"));
    rig.attach_again(1, 1);
    assert_eq!(breakers(&rig, 1), []);
}
