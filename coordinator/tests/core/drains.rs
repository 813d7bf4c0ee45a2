//! Drains: work ends at the deadline, restarts forget none, and nodes that are away can be drained and let work again.

use ingle_coordinator::core::{Effect, Event};
use ingle_proto::{ErrorCode, NodeId, v1};

use super::{Rig, answered, cancelled, node, sent};

fn told(effects: &[Effect]) -> Vec<(NodeId, bool)> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::SetDrain { node, drain } => Some((node.clone(), *drain)),
        _ => None,
    });
    told.collect()
}

#[test]
fn at_the_deadline_batches_and_streams_go_elsewhere_free_of_charge() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stream = sent(&rig.call(7)).remove(0);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    rig.attach(2, &[]);
    let deadline = rig.now.unix_ms + 5_000;
    let effects = rig.drain(1, deadline);
    assert_eq!(told(&effects), [(node(1), true)]);
    assert!(cancelled(&effects).is_empty(), "they may finish until then");
    assert!(cancelled(&rig.pass(4_000, &[1, 2])).is_empty());
    let effects = rig.pass(1_000, &[1, 2]);
    let mut gone = cancelled(&effects);
    gone.sort_unstable();
    assert_eq!(gone, [stream.attempt, batch.attempt]);
    let again = sent(&effects);
    assert!(again.len() == 2 && again.iter().all(|sent| sent.node == node(2)), "{again:?}");
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.deaths, record.tries), (0, 0, 0));
    // What it does all the same is not looked at.
    assert!(rig.complete(&batch, &[]).iter().all(|effect| !matches!(effect, Effect::Publish { .. })));
    assert!(cancelled(&rig.pass(1_000, &[1, 2])).is_empty(), "only once");
}

#[test]
fn a_deadline_in_the_past_is_at_once_and_none_is_never() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    rig.drain(1, 0);
    for _ in 0..60 {
        assert!(cancelled(&rig.pass(2_000, &[1])).is_empty());
    }
    assert_eq!(cancelled(&rig.drain(1, -1)), [batch.attempt]);
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.deaths), (0, 0));
}

#[test]
fn a_restart_in_the_middle_forgets_no_drain() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    let deadline = rig.now.unix_ms + 60_000;
    rig.drain(1, deadline);
    rig.restart();
    let listed = rig.core.nodes();
    assert_eq!(
        listed.iter().map(|node| node.node_id.as_str()).collect::<Vec<_>>(),
        ["n-1"],
        "it can be seen and named"
    );
    assert_eq!(listed[0].state(), v1::NodeState::Lost);
    let effects = rig.attach(1, &[batch.attempt]);
    assert_eq!(told(&effects), [(node(1), true)]);
    assert!(sent(&rig.call(7)).is_empty(), "it gets nothing new");
    assert_eq!(rig.core.node(&node(1)).unwrap().state(), v1::NodeState::Draining);
    for _ in 0..29 {
        assert!(cancelled(&rig.pass(2_000, &[1])).is_empty());
    }
    assert_eq!(cancelled(&rig.pass(3_000, &[1])), [batch.attempt], "the deadline is kept too");
}

#[test]
fn every_attach_tells_the_node_whether_it_is_drained() {
    let mut rig = Rig::new();
    assert_eq!(told(&rig.attach(1, &[])), [(node(1), false)]);
    rig.drain(1, 0);
    rig.step(Event::NodeDetached { node: node(1) });
    // Let work again while it is away: it hears of it when it comes.
    rig.uncordon(1);
    assert_eq!(told(&rig.attach(1, &[])), [(node(1), false)]);
}

#[test]
fn a_node_that_is_stored_and_not_attached_can_be_steered() {
    let mut rig = Rig::new();
    assert_eq!(answered(&rig.drain(1, 0)), Err(ErrorCode::NodeNotFound));
    assert_eq!(answered(&rig.uncordon(1)), Err(ErrorCode::NodeNotFound));
    rig.attach(1, &[]);
    rig.drain(1, 0);
    rig.restart();
    let effects = rig.drain(1, 77);
    assert_eq!(answered(&effects).map(|node| node.node_id), Ok("n-1".to_owned()));
    assert!(told(&effects).is_empty(), "there is nobody to tell");
    assert_eq!(answered(&rig.uncordon(1)).map(|node| node.node_id), Ok("n-1".to_owned()));
    assert!(rig.core.cordoned().is_empty() && rig.core.nodes().is_empty());
    rig.restart();
    assert_eq!(told(&rig.attach(1, &[])), [(node(1), false)]);
    assert_eq!(sent(&rig.call(7)).len(), 1, "it works again");
}

#[test]
fn a_node_that_left_for_good_stays_cordoned_until_somebody_says_otherwise() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.drain(1, 0);
    rig.step(Event::NodeDetached { node: node(1) });
    rig.step(Event::NodeLeft { node: node(1) });
    rig.pass(30_000, &[]);
    assert_eq!(rig.core.nodes().len(), 1, "its cordon can be seen");
    assert_eq!(told(&rig.attach(1, &[])), [(node(1), true)]);
    rig.uncordon(1);
    assert_eq!(sent(&rig.call(7)).len(), 1);
}
