//! Calls spread over nodes that can all take them, whatever batches run there; speeds are those of the machine there is.

use std::collections::BTreeMap;

use ingle_coordinator::core::Event;
use ingle_proto::v1;

use super::{JOB, Rig, node, sent};

/// Three nodes of which the first two have batches, and so many calls on each, one every so many milliseconds.
fn ten_chats(pause_ms: u64) -> BTreeMap<String, usize> {
    let mut rig = Rig::new();
    rig.capacity.slots = 8;
    for number in [1, 2] {
        rig.attach(number, &[]);
        rig.holds(number, &["words", "pages", "vectors"]);
    }
    let batches = rig.job(v1::JobKind::Ocr, &[900; 24]);
    assert!(batches.iter().any(|sent| sent.node == node(1)) && batches.iter().any(|sent| sent.node == node(2)));
    rig.attach(3, &[]);
    rig.holds(3, &["words", "pages", "vectors"]);
    let mut calls = BTreeMap::new();
    for call in 0..10 {
        let call = sent(&rig.call(call)).into_iter().find(|sent| sent.batch.is_none()).expect("it is taken at once");
        *calls.entry(call.node.to_string()).or_default() += 1;
        for number in 1..=3 {
            rig.now.mono_ms += pause_ms / 3;
            rig.step(Event::Beat { node: node(number), incarnation: format!("i{number}"), busy_ms: 1 });
        }
    }
    calls
}

#[test]
fn ten_chats_spread_over_three_nodes_that_hold_the_model() {
    for pause_ms in [0, 30, 300, 900] {
        let calls = ten_chats(pause_ms);
        assert!(calls.len() == 3 && calls.values().all(|calls| *calls >= 2), "every {pause_ms} ms: {calls:?}");
    }
}

#[test]
fn between_alike_nodes_a_call_goes_where_there_are_no_batches() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.holds(1, &["words", "pages"]);
    assert_eq!(rig.job(v1::JobKind::Ocr, &[900])[0].node, node(1));
    rig.attach(2, &[]);
    rig.holds(2, &["words", "pages"]);
    assert_eq!(sent(&rig.call(7))[0].node, node(2));
    assert_eq!(sent(&rig.call(8))[0].node, node(1), "another call is more in the way than any batch");
}

#[test]
fn other_hardware_under_the_same_identity_is_measured_anew() {
    let mut rig = Rig::new();
    rig.capacity.cores = 4;
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4; 12]).remove(0);
    let reading = |rig: &Rig| rig.core.explain(JOB).expect("an open job").nodes[0].prefill_ms;
    let guessed = reading(&rig);
    assert!(guessed > 0.0);
    rig.complete(&batch, &[]);
    let measured = reading(&rig);
    assert!(measured < guessed, "{measured} and {guessed}");
    // The same machine, as it comes back after it left: what was learned holds.
    rig.step(Event::Goodbye { node: node(1) });
    rig.attach_as(1, "another start", &[]);
    assert!((reading(&rig) - measured).abs() < 1e-9);
    rig.step(Event::Goodbye { node: node(1) });
    rig.capacity.cores = 8;
    rig.attach_as(1, "on another machine", &[]);
    assert!((reading(&rig) - guessed).abs() < 1e-9, "{} and {guessed}", reading(&rig));
}
