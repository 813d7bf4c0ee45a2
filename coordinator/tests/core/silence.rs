//! Silence by the core's own clock: no new work at 3 s, streams move by 4 s, batches by 10 s; and where most nodes fall silent
//! at once, the fault is taken for ours.

use ingle_coordinator::core::{BatchState, CallId, Effect, Event};
use ingle_coordinator::limits;
use ingle_proto::v1::{JobKind, NodeState};

use super::{Rig, Sent, node, sent};

/// Ticks as the driver does, until `wanted` takes something; when that was.
fn until<T>(
    rig: &mut Rig,
    beating: &[u32],
    within: u64,
    mut wanted: impl FnMut(&Rig, &[Sent]) -> Option<T>,
) -> (u64, T) {
    let begun = rig.now.mono_ms;
    while rig.now.mono_ms - begun < within {
        let dispatched = sent(&rig.pass(250, beating));
        if let Some(found) = wanted(rig, &dispatched) {
            return (rig.now.mono_ms - begun, found);
        }
    }
    panic!("not within {within} ms");
}

fn state(rig: &Rig, number: u32) -> NodeState {
    rig.core.node(&node(number)).expect("a node").state()
}

#[test]
fn a_silent_node_gets_nothing_after_3_s_its_streams_move_by_4_s_and_its_batches_by_10_s() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stream = sent(&rig.call(7)).remove(0);
    let batch = rig.job(JobKind::Generate, &[4]).remove(0);
    assert_eq!((&stream.node, &batch.node), (&node(1), &node(1)));
    rig.attach(2, &[]);
    rig.pass(0, &[1, 2]);
    let begun = rig.now.mono_ms;
    let (at, ()) = until(&mut rig, &[2], 5_000, |rig, _| (state(rig, 1) == NodeState::Suspect).then_some(()));
    assert_eq!(at, limits::SUSPECT_MS);
    let elsewhere = sent(&rig.call(8));
    assert!(elsewhere.len() == 1 && elsewhere[0].node == node(2), "{elsewhere:?}");
    rig.step(Event::CallEnded { call: CallId(8) });
    let (_, moved) = until(&mut rig, &[2], 3_000, |_, sent| sent.iter().find(|s| s.batch.is_none()).cloned());
    let at = rig.now.mono_ms - begun;
    assert!(moved.node == node(2) && (limits::STREAMS_MOVE_MS..=4_250).contains(&at), "{moved:?} at {at}");
    assert_eq!(rig.batches()[0].node, "n-1", "batches wait longer");
    until(&mut rig, &[2], 8_000, |rig, _| (state(rig, 1) == NodeState::Lost).then_some(()));
    let at = rig.now.mono_ms - begun;
    assert!((limits::LOST_MS..=10_250).contains(&at), "lost at {at}");
    let record = &rig.batches()[0];
    assert_ne!((record.state(), record.node.as_str()), (BatchState::Running, "n-1"), "it is taken back at once");
    let (_, again) = until(&mut rig, &[2], 5_000, |_, sent| sent.iter().find(|s| s.batch.is_some()).cloned());
    assert_eq!(again.node, node(2));
}

#[test]
fn where_most_fall_silent_at_once_nothing_moves_until_they_are_back() {
    let mut rig = Rig::new();
    for number in 1..=3 {
        rig.attach(number, &[]);
    }
    let stream = sent(&rig.call(7)).remove(0);
    let silent = if stream.node == node(1) { [1, 2] } else { [2, 3] };
    let heard = [1, 2, 3].into_iter().find(|number| !silent.contains(number)).unwrap();
    // Jobs that come meanwhile wait, also for the node that is heard.
    let mut dispatched = Vec::new();
    for _ in 0..60 {
        dispatched.extend(sent(&rig.pass(250, &[heard])));
    }
    assert!(dispatched.is_empty(), "after 15 s: {dispatched:?}");
    assert!(rig.job(JobKind::Generate, &[4]).is_empty(), "nothing new either");
    let said = rig.core.explain(super::JOB).unwrap().summary;
    assert!(said.contains("more than half of the nodes fell silent at once"), "{said}");
    let back = sent(&rig.pass(250, &[1, 2, 3]));
    assert_eq!(back.len(), 1, "the job goes on at once: {back:?}");
    let running = |number: u32| rig.core.node(&node(number)).unwrap().running;
    assert_eq!((1..=3).map(running).sum::<u32>(), 2, "and the stream where it was");
}

#[test]
fn nodes_that_stay_silent_are_given_up_in_the_end() {
    let mut rig = Rig::new();
    for number in 1..=3 {
        rig.attach(number, &[]);
    }
    let stream = sent(&rig.call(7)).remove(0);
    let heard = if stream.node == node(3) { 1 } else { 3 };
    let limit = limits::SUSPECT_MS + limits::BRAKE_MS + 1_000;
    let (at, moved) = until(&mut rig, &[heard], limit, |_, sent| sent.first().cloned());
    assert_eq!(moved.node, node(heard));
    assert!(at >= limits::SUSPECT_MS + limits::BRAKE_MS, "only after they were waited for: {at}");
    // They are dealt with: that the last one works is no reason to wait again.
    assert_eq!(rig.job(JobKind::Generate, &[4]).len(), 1);
}

#[test]
fn nodes_that_die_one_after_the_other_are_no_mass_failure() {
    let mut rig = Rig::new();
    for number in 1..=3 {
        rig.attach(number, &[]);
    }
    for _ in 0..60 {
        rig.pass(250, &[2, 3]);
    }
    assert_eq!(state(&rig, 1), NodeState::Lost);
    let other = if sent(&rig.call(7)).remove(0).node == node(2) { 3 } else { 2 };
    let (at, moved) = until(&mut rig, &[other], 5_000, |_, sent| sent.first().cloned());
    assert_eq!(moved.node, node(other));
    assert!(at <= 4_250, "as fast as ever: {at}");
}

#[test]
fn a_coordinator_that_stood_still_itself_blames_nobody() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let stream = sent(&rig.call(7)).remove(0);
    rig.attach(2, &[]);
    rig.now.mono_ms += 30_000;
    rig.now.unix_ms += 30_000;
    let mut effects = rig.step(Event::Stood { ms: 30_000 });
    effects.extend(rig.step(Event::Tick));
    assert_eq!(effects, [], "nothing moves");
    assert_eq!((state(&rig, 1), state(&rig, 2)), (NodeState::Ready, NodeState::Ready));
    // From here on silence counts as ever.
    let (at, moved) = until(&mut rig, &[2], 5_000, |_, sent| sent.first().cloned());
    assert!(at == limits::STREAMS_MOVE_MS && moved.node == node(2) && stream.node == node(1), "{moved:?} at {at}");
}

#[test]
fn nothing_is_late_because_the_coordinator_slept() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(JobKind::Generate, &[4]).remove(0);
    let waiting = sent(&rig.call(1)).len() + sent(&rig.call(2)).len();
    assert_eq!(waiting, 1, "the other waits");
    let slept = 2 * batch.allowed_ms;
    rig.now.mono_ms += slept;
    rig.now.unix_ms += slept as i64;
    let mut effects = rig.step(Event::Stood { ms: slept });
    effects.extend(rig.step(Event::Tick));
    let ends = |effect: &&Effect| matches!(effect, Effect::CancelAttempt { .. } | Effect::CallFailed { .. });
    assert_eq!(effects.iter().find(ends), None);
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.deaths, record.attempt), (0, 0, batch.attempt));
}
