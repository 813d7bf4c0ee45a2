//! A person's call waits a minute each time it has no node, however old it is.

use ingle_coordinator::core::{Effect, Event};
use ingle_proto::{ErrorCode, Problem};

use super::{Rig, node, sent};

fn told_off(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::CallFailed { .. }))
}

#[test]
fn an_old_stream_whose_node_dies_waits_for_another() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let first = sent(&rig.call(7));
    assert_eq!(first.len(), 1);
    for _ in 0..50 {
        assert!(!told_off(&rig.pass(2_000, &[1])));
    }
    // It is 100 s old when its node falls silent, and nobody else is there.
    rig.step(Event::NodeDetached { node: node(1) });
    for _ in 0..5 {
        assert!(!told_off(&rig.pass(1_000, &[])), "it has not waited yet");
    }
    rig.pass(2_000, &[]);
    let again = sent(&rig.attach(2, &[]));
    assert_eq!(again.iter().map(|sent| &sent.node).collect::<Vec<_>>(), [&node(2)]);
}

#[test]
fn a_call_that_no_node_takes_for_a_minute_is_told_so() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    sent(&rig.call(7));
    rig.step(Event::NodeDetached { node: node(1) });
    rig.pass(5_000, &[]);
    assert!(!told_off(&rig.pass(59_000, &[])));
    assert!(told_off(&rig.pass(2_000, &[])));
}

fn refusal(effects: &[Effect]) -> Option<Problem> {
    effects.iter().find_map(|effect| match effect {
        Effect::CallFailed { problem, .. } => Some(problem.clone()),
        _ => None,
    })
}

#[test]
fn a_call_for_which_every_node_is_drained_is_told_so_at_once() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.drain(1, 0);
    let problem = refusal(&rig.call(7)).expect("refused at once");
    assert_eq!(problem.code, ErrorCode::NoNode);
    assert!(problem.message.contains("ingle nodes uncordon n-1"), "{}", problem.message);
    // With another node about that may only be silent for a moment it waits.
    rig.attach(2, &[]);
    rig.step(Event::NodeDetached { node: node(2) });
    assert!(!told_off(&rig.call(8)));
    assert_eq!(sent(&rig.attach(2, &[])).len(), 1);
}

#[test]
fn a_stream_that_was_begun_waits_for_a_drain_to_end() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stream = sent(&rig.call(7)).remove(0);
    let now = rig.now.unix_ms;
    assert_eq!(super::cancelled(&rig.drain(1, now)), [stream.attempt]);
    assert!(!told_off(&rig.pass(2_000, &[1])));
    assert_eq!(sent(&rig.uncordon(1)).len(), 1);
}
