//! Nodes that leave: hot models are loaded elsewhere first, work ends, the process is told to end, and the node is forgotten.

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Effect, Event};
use ingle_proto::{ErrorCode, NodeId, v1};

use super::{Rig, answered, cancelled, node, problem, sent};

fn told_to_end(effects: &[Effect]) -> Vec<NodeId> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Leave { node } => Some(node.clone()),
        _ => None,
    });
    told.collect()
}

/// Which model is to be loaded where, and within how many milliseconds.
fn warms(effects: &[Effect]) -> Vec<(String, NodeId, u64)> {
    let warms = effects.iter().filter_map(|effect| match effect {
        Effect::Warm { model, to, within_ms, .. } => Some((model.name.clone(), to.clone(), *within_ms)),
        _ => None,
    });
    warms.collect()
}

fn farewell(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Farewell { .. }))
}

impl Rig {
    fn status(&self, number: u32) -> v1::DrainStatus {
        self.core.node(&node(number)).expect("it is known").drain.expect("it is drained")
    }

    fn goodbye(&mut self, number: u32) -> Vec<Effect> {
        self.step(Event::Goodbye { node: node(number) })
    }

    fn warmed(&mut self, from: u32, to: u32, code: Option<ErrorCode>) -> Vec<Effect> {
        let (node, to, result) = (node(from), node(to), code.map_or(Ok(()), |code| Err(problem(code))));
        self.step(Event::Warmed { node, model: "words".into(), to, result })
    }

    fn cordons(&self) -> usize {
        self.live.keys().filter(|key| key.starts_with("cordons/")).count()
    }
}

#[test]
fn a_node_leaves_when_it_has_nothing_left_and_is_forgotten() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    let mut effects = rig.drain_away(1, 0);
    effects.extend(rig.pass(1_000, &[1]));
    assert!(told_to_end(&effects).is_empty(), "its batch may finish the item it is at");
    let status = rig.status(1);
    assert_eq!((status.phase(), status.batches, status.calls), (v1::DrainPhase::Finishing, 1, 0));
    rig.complete(&batch, &[]);
    assert_eq!(told_to_end(&rig.pass(250, &[1])), [node(1)]);
    assert_eq!(rig.status(1).phase(), v1::DrainPhase::Leaving);
    assert!(told_to_end(&rig.pass(250, &[1])).is_empty(), "not at every tick");
    assert_eq!(told_to_end(&rig.pass(6_000, &[1])), [node(1)], "but again where it may have been lost");
    assert!(farewell(&rig.goodbye(1)));
    assert!(rig.core.nodes().is_empty() && rig.core.cordoned().is_empty() && rig.cordons() == 0);
    rig.step(Event::NodeDetached { node: node(1) });
    rig.step(Event::NodeLeft { node: node(1) });
    // Started again it takes work.
    rig.attach_as(1, "another start", &[]);
    assert_eq!(sent(&rig.call(7)).len(), 1);
}

#[test]
fn a_node_that_may_work_again_in_the_same_turn_is_not_told_to_end() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    // Events of one turn: none of their effects is carried out before the last of them.
    let effects = rig.drain_away(1, 0);
    assert_eq!(told_to_end(&effects), [node(1)]);
    assert!(effects.iter().all(|effect| rig.core.wants(effect)));
    rig.uncordon(1);
    let leave = effects.iter().find(|effect| matches!(effect, Effect::Leave { .. })).expect("it is asked for");
    assert!(!rig.core.wants(leave));
}

#[test]
fn one_that_stays_is_never_told_to_end() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut effects = rig.drain(1, 0);
    effects.extend(rig.pass(250, &[1]));
    effects.extend(rig.pass(10_000, &[1]));
    assert!(told_to_end(&effects).is_empty());
    let status = rig.status(1);
    assert!(status.stays && status.phase() == v1::DrainPhase::Drained, "{status:?}");
    assert_eq!(told_to_end(&rig.drain_away(1, 0)), [node(1)], "until somebody wants that");
}

#[test]
fn the_last_holder_of_a_hot_model_waits_until_another_has_it() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.holds(1, &["words", "vectors"]);
    let stream = sent(&rig.call(7)).remove(0);
    assert_eq!(stream.node, node(1), "where it is loaded");
    let effects = rig.drain_away(1, 0);
    let asked = warms(&effects);
    assert!(asked.len() == 1 && asked[0].0 == "words" && asked[0].1 == node(2), "only what is used: {asked:?}");
    assert_eq!(sent(&rig.call(8))[0].node, node(2), "nothing new meanwhile");
    rig.step(Event::CallEnded { call: CallId(7) });
    assert!(
        told_to_end(&rig.pass(1_000, &[1, 2])).is_empty(),
        "nothing runs there, and the model is not elsewhere yet"
    );
    let status = rig.status(1);
    assert_eq!((status.phase(), status.models.len(), status.models[0].done), (v1::DrainPhase::Warming, 1, false));
    rig.warmed(1, 2, None);
    assert!(rig.status(1).models[0].done);
    assert_eq!(told_to_end(&rig.pass(250, &[1, 2])), [node(1)]);
}

#[test]
fn a_model_that_others_hold_or_nobody_uses_holds_up_nothing() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.holds(1, &["words", "vectors"]);
    rig.holds(2, &["words"]);
    rig.call(7);
    rig.step(Event::CallEnded { call: CallId(7) });
    let effects = rig.drain_away(1, 0);
    assert!(warms(&effects).is_empty());
    assert_eq!(told_to_end(&effects), [node(1)]);
}

#[test]
fn a_model_with_work_that_waits_is_hot_and_one_used_long_ago_is_not() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.holds(1, &["words"]);
    sent(&rig.call(7));
    rig.step(Event::CallEnded { call: CallId(7) });
    for _ in 0..61 {
        rig.pass(10_000, &[1]);
    }
    rig.attach(2, &[]);
    assert!(warms(&rig.drain_away(1, 0)).is_empty(), "ten minutes ago");
    rig.uncordon(1);
    rig.step(Event::NodeDetached { node: node(2) });
    // More work than both take at once: some of it waits.
    let running = rig.job(v1::JobKind::Generate, &[4000; 64]);
    assert!(!running.is_empty());
    rig.attach(2, &[]);
    let asked = warms(&rig.drain_away(1, 0));
    assert!(asked.iter().any(|(model, to, _)| model == "words" && *to == node(2)), "{asked:?}");
}

#[test]
fn a_drain_goes_on_when_nobody_can_load_it_and_says_why() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.holds(1, &["words"]);
    rig.call(7);
    rig.step(Event::CallEnded { call: CallId(7) });
    let effects = rig.drain_away(1, 0);
    assert!(warms(&effects).is_empty());
    assert_eq!(told_to_end(&effects), [node(1)], "it is the only node");
    let models = rig.status(1).models;
    assert!(models[0].done && models[0].problem.contains("no other node"), "{models:?}");
}

#[test]
fn another_node_is_tried_where_one_fails_to_load_it() {
    let mut rig = Rig::new();
    for number in 1..=3 {
        rig.attach(number, &[]);
    }
    rig.holds(1, &["words"]);
    rig.call(7);
    rig.step(Event::CallEnded { call: CallId(7) });
    let first = warms(&rig.drain_away(1, 0)).remove(0).1;
    let number = |id: &NodeId| if *id == node(2) { 2 } else { 3 };
    let second = warms(&rig.warmed(1, number(&first), Some(ErrorCode::ModelDoesNotFit))).remove(0).1;
    assert_ne!(first, second);
    // What comes of it late, or from somebody who was not asked, changes nothing.
    assert!(warms(&rig.warmed(1, number(&first), Some(ErrorCode::Deadline))).is_empty());
    assert!(!rig.status(1).models[0].done);
    assert!(warms(&rig.warmed(1, number(&second), Some(ErrorCode::ModelDoesNotFit))).is_empty());
    let models = rig.status(1).models;
    assert!(models[0].done && models[0].problem.contains("as the test says"), "{models:?}");
    assert_eq!(told_to_end(&rig.pass(250, &[1, 2, 3])), [node(1)]);
}

#[test]
fn nodes_that_leave_together_do_not_wait_for_each_other() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.holds(1, &["words"]);
    rig.call(7);
    rig.step(Event::CallEnded { call: CallId(7) });
    assert_eq!(warms(&rig.step(Event::Leaving { node: node(1), within_ms: 25_000 })).len(), 1);
    assert!(warms(&rig.step(Event::Leaving { node: node(2), within_ms: 25_000 })).is_empty());
    assert_eq!(told_to_end(&rig.pass(250, &[1, 2])), [node(1), node(2)]);
    let models = rig.status(1).models;
    assert!(models[0].done && !models[0].problem.is_empty(), "{models:?}");
}

#[test]
fn loading_elsewhere_takes_no_longer_than_the_deadline() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.holds(1, &["words"]);
    let stream = sent(&rig.call(7)).remove(0);
    let deadline = rig.now.unix_ms + 5_000;
    let asked = warms(&rig.drain_away(1, deadline));
    assert!(asked.len() == 1 && asked[0].2 <= 5_000, "{asked:?}");
    let effects = rig.pass(5_000, &[1, 2]);
    assert_eq!(cancelled(&effects), [stream.attempt]);
    assert_eq!(sent(&effects)[0].node, node(2), "it moves");
    assert!(rig.status(1).models[0].problem.contains("in time"));
    assert_eq!(told_to_end(&rig.pass(250, &[1, 2])), [node(1)]);
    // Less time than the weights need is not begun with.
    rig.holds(2, &["words"]);
    rig.attach(3, &[]);
    let now = rig.now.unix_ms;
    assert!(warms(&rig.drain_away(2, now + 100)).is_empty());
    assert!(rig.status(2).models[0].problem.contains("takes about"));
}

#[test]
fn another_leader_goes_on_with_a_drain() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    rig.drain_away(1, 0);
    rig.restart();
    assert_eq!(rig.status(1).phase(), v1::DrainPhase::Away);
    let mut effects = rig.attach(1, &[batch.attempt]);
    effects.extend(rig.pass(250, &[1]));
    assert!(told_to_end(&effects).is_empty());
    rig.complete(&batch, &[]);
    assert_eq!(told_to_end(&rig.pass(250, &[1])), [node(1)]);
    // It dies in turn, and so may have its word to the node.
    rig.restart();
    let mut effects = rig.attach(1, &[]);
    effects.extend(rig.pass(250, &[1]));
    assert_eq!(told_to_end(&effects), [node(1)]);
    // The third never hears the goodbye: who comes back as another process was started again on purpose.
    rig.restart();
    rig.attach_as(1, "another start", &[]);
    assert!(rig.core.cordoned().is_empty() && rig.cordons() == 0);
    assert_eq!(sent(&rig.call(7)).len(), 1);
}

#[test]
fn a_node_that_was_away_during_its_drain_is_drained_when_it_returns() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    rig.drain_away(1, 0);
    // Cut off for longer than its lease.
    rig.step(Event::NodeDetached { node: node(1) });
    rig.pass(11_000, &[]);
    rig.step(Event::NodeLeft { node: node(1) });
    rig.pass(30_000, &[]);
    assert_eq!(rig.status(1).phase(), v1::DrainPhase::Away);
    let mut effects = rig.attach(1, &[batch.attempt]);
    assert!(sent(&effects).is_empty());
    effects.extend(rig.pass(250, &[1]));
    assert_eq!(told_to_end(&effects), [node(1)]);
    // Now it does leave, and its goodbye is lost.
    rig.step(Event::NodeDetached { node: node(1) });
    assert_eq!(rig.cordons(), 1);
    rig.step(Event::NodeLeft { node: node(1) });
    assert!(rig.core.nodes().is_empty() && rig.cordons() == 0);
    // Or it had not even heard that it should: the same process is still drained.
    let mut effects = rig.attach(1, &[]);
    effects.extend(rig.pass(250, &[1]));
    assert_eq!((told_to_end(&effects), rig.cordons()), (vec![node(1)], 1));
}

#[test]
fn a_node_that_was_asked_to_end_goes_the_same_way_and_nothing_of_it_is_stored() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.holds(1, &["words"]);
    let stream = sent(&rig.call(7)).remove(0);
    let asked = warms(&rig.step(Event::Leaving { node: node(1), within_ms: 25_000 }));
    assert!(asked.len() == 1 && asked[0].2 <= 12_500, "for half of its time: {asked:?}");
    assert_eq!(rig.cordons(), 0);
    assert_eq!(sent(&rig.call(8))[0].node, node(2), "nothing new");
    rig.warmed(1, 2, None);
    assert!(told_to_end(&rig.pass(250, &[1, 2])).is_empty(), "its stream may end");
    assert_eq!(rig.status(1).calls, 1);
    // The same once more, on another stream of the same process.
    rig.attach(1, &[stream.attempt]);
    assert!(warms(&rig.step(Event::Leaving { node: node(1), within_ms: 20_000 })).is_empty());
    rig.step(Event::CallEnded { call: CallId(7) });
    assert_eq!(told_to_end(&rig.pass(250, &[1, 2])), [node(1)]);
    assert!(farewell(&rig.goodbye(1)));
    assert!(rig.core.node(&node(1)).is_none());
    rig.attach_as(1, "another start", &[]);
    assert_eq!(rig.core.node(&node(1)).expect("attached").state(), v1::NodeState::Ready);
}

#[test]
fn what_a_node_still_had_when_it_said_goodbye_is_free_for_others() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stream = sent(&rig.call(7)).remove(0);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    assert_eq!((&stream.node, &batch.node), (&node(1), &node(1)));
    rig.attach(2, &[]);
    rig.step(Event::Leaving { node: node(1), within_ms: 1_000 });
    let again = sent(&rig.goodbye(1));
    assert!(again.len() == 2 && again.iter().all(|sent| sent.node == node(2)), "{again:?}");
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.deaths, record.tries), (0, 0, 0));
}

#[test]
fn a_drain_that_stays_holds_over_a_goodbye() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.drain(1, 0);
    // Its machine is rebooted.
    rig.step(Event::Leaving { node: node(1), within_ms: 25_000 });
    rig.goodbye(1);
    assert_eq!(rig.core.cordoned(), [node(1)]);
    rig.attach_as(1, "another start", &[]);
    assert!(sent(&rig.call(7)).is_empty());
}

#[test]
fn one_that_was_only_cut_off_as_it_ended_may_be_let_work_again() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    assert_eq!(told_to_end(&rig.drain_away(1, 0)), [node(1)]);
    rig.step(Event::NodeDetached { node: node(1) });
    rig.step(Event::NodeLeft { node: node(1) });
    assert_eq!(rig.cordons(), 0);
    assert!(answered(&rig.uncordon(1)).is_ok());
    assert!(told_to_end(&rig.attach(1, &[])).is_empty() && rig.cordons() == 0);
    assert_eq!(sent(&rig.call(7)).len(), 1);
}
