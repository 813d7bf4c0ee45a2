//! A person's call waits a minute each time it has no node, however old it is.

use ingle_coordinator::core::{Effect, Event};

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
