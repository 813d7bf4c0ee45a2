//! Whose fault a dead node is: counted against an item only that was alone there and had arrived; never twice for one turn.

use ingle_coordinator::core::{BatchRecord, Effect, Event};
use ingle_coordinator::limits;
use ingle_proto::v1::{JobKind, JobState};

use super::{Rig, Sent, node, sent};

/// The node says that it has it.
fn begun(rig: &mut Rig, sent: &Sent) {
    rig.step(Event::Progress { attempt: sent.attempt, items: 0, bytes: 0 });
}

/// The node's process dies and comes back at once; what is dispatched then.
fn dies(rig: &mut Rig, number: u32, start: u32) -> Vec<Sent> {
    rig.step(Event::NodeDetached { node: node(number) });
    sent(&rig.attach_again(number, start))
}

/// Lets time pass until something is dispatched.
fn next(rig: &mut Rig, start: u32) -> Option<Sent> {
    (0..60).find_map(|_| sent(&rig.pass_of(2_000, 1, start)).into_iter().next())
}

fn record(rig: &Rig, first: u32) -> BatchRecord {
    rig.batches().into_iter().find(|batch| batch.first == first).expect("a batch that begins there")
}

#[test]
fn what_kills_three_nodes_alone_is_set_aside() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for death in 1..=limits::ITEM_DEATHS_MAX {
        begun(&mut rig, &at);
        let again = dies(&mut rig, 1, death);
        if death == limits::ITEM_DEATHS_MAX {
            break;
        }
        let record = record(&rig, 0);
        assert_eq!((record.deaths, record.unseen_deaths, record.suspect), (death, 0, true));
        at = again.into_iter().next().or_else(|| next(&mut rig, death)).expect("it is tried again");
    }
    let job = rig.view();
    assert_eq!((job.state(), job.counts.unwrap().quarantined), (JobState::Failed, 1), "{job:?}");
}

#[test]
fn what_never_arrived_at_a_dead_node_is_hardly_blamed_and_still_ends() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = Some(rig.job(JobKind::Generate, &[4]).remove(0));
    for death in 1..limits::ITEM_UNSEEN_DEATHS_MAX {
        assert!(at.take().is_some(), "death {death}");
        let again = dies(&mut rig, 1, death);
        let record = record(&rig, 0);
        assert_eq!((record.deaths, record.unseen_deaths), (0, death), "nobody said that it was there");
        at = again.into_iter().next().or_else(|| next(&mut rig, death));
    }
    // A new leader knows the count, or it would begin anew with each.
    rig.restart();
    assert_eq!(record(&rig, 0).unseen_deaths, limits::ITEM_UNSEEN_DEATHS_MAX - 1);
    let once_more = sent(&rig.attach_again(1, 90));
    assert_eq!(once_more.len(), 1, "the leader's death is nobody's fault: it is sent again at once");
    dies(&mut rig, 1, 91);
    assert_eq!(rig.view().counts.unwrap().quarantined, 1);
}

#[test]
fn who_stood_beside_it_is_not_blamed_and_stands_alone_the_next_time() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    // One slot takes two attempts: each is of one document.
    let both = rig.job(JobKind::Generate, &[4, 4]);
    assert_eq!(both.len(), 2, "{both:?}");
    for at in &both {
        begun(&mut rig, at);
    }
    let mut again = dies(&mut rig, 1, 1);
    for first in [0, 1] {
        let record = record(&rig, first);
        assert_eq!((record.deaths, record.unseen_deaths, record.suspect), (0, 0, true), "{record:?}");
    }
    again.extend(next(&mut rig, 1).filter(|_| again.is_empty()));
    assert_eq!(again.len(), 1, "one alone: {again:?}");
    begun(&mut rig, &again[0]);
    assert!(sent(&rig.pass_of(5_000, 1, 1)).is_empty(), "the other waits for as long as it runs");
    dies(&mut rig, 1, 2);
    let blamed: Vec<u32> = [0, 1].into_iter().map(|first| record(&rig, first).deaths).collect();
    assert_eq!(blamed.iter().sum::<u32>(), 1, "only the one that was alone: {blamed:?}");
}

#[test]
fn what_a_node_was_told_to_stop_is_company_until_it_has() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let at = rig.job(JobKind::Generate, &[4]).remove(0);
    begun(&mut rig, &at);
    // It is suspect from its first death on.
    let again = dies(&mut rig, 1, 1).into_iter().next().or_else(|| next(&mut rig, 1)).expect("tried again");
    begun(&mut rig, &again);
    let deadline = rig.now.unix_ms - 1;
    let effects = rig.drain(1, deadline);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::CancelAttempt { .. })), "{effects:?}");
    let mut soon = sent(&rig.uncordon(1));
    assert!(soon.is_empty(), "what was called back may be there for a moment: {soon:?}");
    soon.extend(sent(&rig.pass_of(limits::CANCEL_WITHIN_MS - 1_000, 1, 1)));
    assert!(soon.is_empty(), "{soon:?}");
    assert!(next(&mut rig, 1).is_some(), "and not for long");
}

#[test]
fn an_attempt_that_ends_in_the_turn_that_began_it_is_not_sent() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.job(JobKind::Generate, &[4]);
    dies(&mut rig, 1, 1);
    // Events of one turn: none of their effects is carried out before the last of them.
    let mut effects = rig.pass_of(2_900, 1, 1);
    assert_eq!(sent(&effects).len(), 1, "it is tried again");
    assert!(effects.iter().all(|effect| rig.core.wants(effect)));
    rig.step(Event::NodeDetached { node: node(1) });
    effects.extend(rig.attach_again(1, 2));
    let dispatches = effects.iter().filter(|effect| matches!(effect, Effect::Dispatch { .. }));
    let wanted: Vec<&Effect> = dispatches.filter(|effect| rig.core.wants(effect)).collect();
    assert!(wanted.is_empty(), "its node has died since: {wanted:?}");
}

#[test]
fn what_is_called_back_is_company_from_that_moment_on() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let both = rig.job(JobKind::Generate, &[4, 4]);
    assert_eq!(both.len(), 2, "{both:?}");
    for at in &both {
        begun(&mut rig, at);
    }
    let alone = dies(&mut rig, 1, 1).into_iter().next().or_else(|| next(&mut rig, 1)).expect("one alone");
    begun(&mut rig, &alone);
    // It never ends; the other waits for its turn.
    let late = (0..alone.allowed_ms / 2_000 + 2).find_map(|_| {
        let effects = rig.pass_of(2_000, 1, 1);
        effects.iter().any(|effect| matches!(effect, Effect::CancelAttempt { .. })).then_some(effects)
    });
    assert!(sent(&late.expect("it is given up")).is_empty(), "it may still be there");
    assert!(next(&mut rig, 1).is_some(), "and not for long");
}
