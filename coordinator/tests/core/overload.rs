//! Overload on virtual time: whoever is taken is served nearly as fast as ever, whoever isn't is told when to come back.

use std::collections::BTreeMap;

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Effect, Event};
use ingle_coordinator::limits;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, JobKind};

use super::{Rig, node, sent};

/// A small generator: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    /// Between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn p95(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all[all.len() * 95 / 100]
}

const NODES: u32 = 3;
const SLOTS: u32 = 2;
/// So long that the share of it which a call may wait is more than what any may.
const SERVICE_MS: f64 = 5_000.0;
/// How long calls come: hundreds of them, whatever one takes.
const SECONDS: u64 = 1_500;

/// Nodes with the model in memory, so that no call pays for its load.
fn rig() -> Rig {
    let mut rig = Rig::new();
    for number in 1..=NODES {
        rig.attach_with(number, SLOTS);
        let model = v1::ModelRef { name: "words".into(), digest: vec![7; 32].into() };
        let loaded = v1::LoadedModel { model: Some(model), slots: SLOTS, ..Default::default() };
        let models = rig.core.models().into_iter().filter_map(|status| status.info).collect();
        rig.step(Event::Models { node: node(number), models, loaded: vec![loaded], reserved: 0 });
    }
    rig
}

/// What came of an open loop of calls.
struct Outcome {
    /// From coming to end.
    took: Vec<u64>,
    /// When each that was refused came, and its delay.
    refused: Vec<(u64, u64)>,
    came: usize,
}

/// Calls that come at a rate whatever becomes of them, for so long.
fn open_loop(seed: u64, load: f64, seconds: u64) -> Outcome {
    let mut rig = rig();
    let mut dice = Dice(seed);
    let begun = rig.now.mono_ms;
    let mean_gap = SERVICE_MS / (load * f64::from(NODES * SLOTS));
    let (mut arrival, mut beat) = (begun as f64, begun);
    let mut ends: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut came: BTreeMap<u64, u64> = BTreeMap::new();
    let mut outcome = Outcome { took: Vec::new(), refused: Vec::new(), came: 0 };
    let mut number = 0;
    loop {
        let (next_end, next_arrival) = (ends.keys().next().map_or(u64::MAX, |(at, _)| *at), arrival as u64);
        let over = next_arrival >= begun + seconds * 1_000;
        let at = next_end.min(if over { u64::MAX } else { next_arrival }).min(beat);
        if over && ends.is_empty() {
            assert_eq!(outcome.came, outcome.took.len() + outcome.refused.len(), "seed {seed}: everyone has an answer");
            return outcome;
        }
        let passed = at - rig.now.mono_ms;
        rig.now.mono_ms += passed;
        rig.now.unix_ms += passed as i64;
        let effects = if at == beat {
            beat += 1_000;
            rig.pass(0, &[1, 2, 3])
        } else if at == next_end {
            let (_, call) = ends.pop_first().map(|((_, _), call)| ((), call)).expect("one ends");
            outcome.took.push(at - came[&call]);
            rig.step(Event::CallEnded { call: CallId(call) })
        } else {
            number += 1;
            outcome.came += 1;
            came.insert(number, at);
            arrival += -mean_gap * (1.0 - dice.next()).ln();
            let (kind, model) = (JobKind::Generate, "words".to_owned());
            rig.step(Event::Call { call: CallId(number), kind, model, bytes: 100, max_tokens: 320 })
        };
        for effect in effects {
            match effect {
                Effect::Dispatch { attempt, work: ingle_coordinator::core::Work::Call { call }, .. } => {
                    let service = SERVICE_MS * (0.8 + 0.4 * dice.next());
                    ends.insert((rig.now.mono_ms + service as u64, attempt), call.0);
                }
                Effect::CallFailed { call, problem } => {
                    assert_eq!(problem.code, ErrorCode::Overloaded, "seed {seed}: {problem}");
                    let delay = problem.retry_after.expect("a delay").as_millis() as u64;
                    outcome.refused.push((came[&call.0], delay));
                }
                _ => {}
            }
        }
    }
}

#[test]
fn at_three_times_the_load_those_who_are_taken_are_served_nearly_as_fast_as_ever() {
    for seed in [3, 77, 4_321] {
        const { assert!(SERVICE_MS * limits::CALL_WAIT.0 > limits::CALL_WAIT.1, "the share decides") };
        let calm = open_loop(seed, 0.2, SECONDS);
        assert!(calm.refused.len() * 100 <= calm.came, "seed {seed}: {} of {} refused", calm.refused.len(), calm.came);
        let wild = open_loop(seed, 3.0, SECONDS);
        let (unloaded, loaded) = (p95(calm.took), p95(wild.took.clone()));
        assert!(loaded * 2 <= unloaded * 3, "seed {seed}: p95 {loaded} ms, unloaded {unloaded} ms");
        // The nodes are kept busy all the same.
        let capacity = SECONDS as f64 * 1_000.0 / SERVICE_MS * f64::from(NODES * SLOTS);
        assert!(wild.took.len() as f64 >= 0.9 * capacity, "seed {seed}: {} of {capacity} served", wild.took.len());
        assert!(wild.refused.iter().all(|(_, delay)| (1..=60_000).contains(delay)), "seed {seed}");
        // Nobody who keeps coming is refused for ever: in each stretch of two services some are taken, whoever they are.
        let worst = *wild.took.iter().max().expect("some are served");
        assert!(worst as f64 <= 2.5 * SERVICE_MS, "seed {seed}: one took {worst} ms");
    }
}

#[test]
fn a_burst_of_short_calls_that_are_soon_done_is_no_overload() {
    const SHORT_MS: u64 = 20;
    let mut rig = Rig::new();
    rig.attach_with(1, SLOTS);
    let model = v1::ModelRef { name: "vectors".into(), digest: vec![7; 32].into() };
    let loaded = vec![v1::LoadedModel { model: Some(model), slots: SLOTS, ..Default::default() }];
    rig.step(Event::Models { node: node(1), models: Rig::models(), loaded, reserved: 0 });
    let embed = |rig: &mut Rig, call: u64| {
        let (kind, model) = (JobKind::Embed, "vectors".to_owned());
        rig.step(Event::Call { call: CallId(call), kind, model, bytes: 100, max_tokens: 0 })
    };
    let refused = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::CallFailed { .. }));
    let pass = |rig: &mut Rig| {
        rig.now.mono_ms += SHORT_MS;
        rig.now.unix_ms += SHORT_MS as i64;
    };
    // It is known how long they take.
    for call in 0..20 {
        assert_eq!(sent(&embed(&mut rig, call)).len(), 1);
        pass(&mut rig);
        rig.step(Event::CallEnded { call: CallId(call) });
    }
    let mut running = Vec::new();
    for call in 100..164 {
        let effects = embed(&mut rig, call);
        assert!(!refused(&effects), "call {call} of the burst");
        running.extend(calls(&effects));
    }
    let (begun, mut done) = (rig.now.mono_ms, 0);
    while !running.is_empty() {
        pass(&mut rig);
        for call in std::mem::take(&mut running) {
            done += 1;
            running.extend(calls(&rig.step(Event::CallEnded { call })));
        }
    }
    assert_eq!(done, 64);
    assert!(rig.now.mono_ms - begun <= limits::CALL_WAIT.1 as u64, "{} ms", rig.now.mono_ms - begun);
    // One that is several times as large is.
    let told_off = (1_000..1_250).filter(|call| refused(&embed(&mut rig, *call))).count();
    assert!((100..200).contains(&told_off), "{told_off} of 250");
}

/// Calls that were given to a node.
fn calls(effects: &[Effect]) -> Vec<CallId> {
    let calls = effects.iter().filter_map(|effect| match effect {
        Effect::Dispatch { work: ingle_coordinator::core::Work::Call { call }, .. } => Some(*call),
        _ => None,
    });
    calls.collect()
}

#[test]
fn the_count_is_still_a_bound() {
    let mut rig = rig();
    // Nobody can run the model: calls wait for a node that can, and only so many.
    for number in 1..=NODES {
        rig.step(Event::NodeDetached { node: node(number) });
    }
    rig.attach_with(9, 1);
    let stalls: BTreeMap<String, u64> = [("words".to_owned(), 40_000)].into();
    rig.step(Event::Stalled { node: node(9), stalls });
    let refused = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::CallFailed { problem, .. } => Some(problem.clone()),
            _ => None,
        })
    };
    for call in 0..limits::CALLS_WAITING_MAX as u64 {
        assert_eq!(refused(&rig.call(call)), None);
    }
    let problem = refused(&rig.call(100_000)).expect("one too many");
    assert_eq!(problem.code, ErrorCode::Overloaded);
    assert!(problem.retry_after.is_some_and(|delay| !delay.is_zero()));
}
