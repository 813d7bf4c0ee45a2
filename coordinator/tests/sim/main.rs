//! The core under a seeded simulation of faults, and under arbitrary events in arbitrary order.
//!
//! `INGLE_SEED=n` replays one seed and prints its trace; `INGLE_SOAK=1` runs 10,000 seeds instead of 200.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at once, and prints what it replays")]

mod arbitrary;
mod clients;
mod faults;
mod gateway;
mod nodes;
mod results;
mod store;
mod trace;
mod verdict;
mod world;

use std::panic::AssertUnwindSafe;

use world::{Mode, World};

fn run(seed: u64, mode: Mode, print: bool) -> (blake3::Hash, world::Totals) {
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| World::new(seed, mode, print).run()));
    ran.unwrap_or_else(|cause| {
        let why = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!("seed {seed} ({mode:?}) failed: {why}\nreplay it: INGLE_SEED={seed} cargo test -p ingle-coordinator --test sim");
    })
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = from_environment("INGLE_SEED") {
        return seed..seed + 1;
    }
    0..if from_environment("INGLE_SOAK") == Some(1) { 10_000 } else { 200 }
}

fn all(mode: Mode) -> world::Totals {
    let print = from_environment("INGLE_SEED").is_some();
    let mut totals = world::Totals::default();
    for seed in seeds() {
        totals.add(run(seed, mode, print).1);
    }
    println!("{mode:?}, {} seeds: {totals:?}", seeds().count());
    totals
}

#[test]
fn any_faults_break_no_invariant() {
    let totals = all(Mode::Safety);
    if seeds().count() > 1 {
        assert!(
            totals.crashes > 100 && totals.deaths > 100 && totals.published > 100,
            "the faults are weak: {totals:?}"
        );
    }
}

#[test]
fn when_faults_stop_every_job_ends_and_its_counts_add_up() {
    let totals = all(Mode::Liveness);
    if seeds().count() > 1 {
        assert!(totals.crashes > 100 && totals.deaths > 100, "the faults are weak: {totals:?}");
        assert!(totals.published > 1_000 && totals.quarantined > 20, "little was done: {totals:?}");
        assert!(
            totals.split > 50 && totals.ranges > 3 * totals.split && totals.pages_set_aside > 5,
            "few documents were read in ranges: {totals:?}"
        );
        assert!(
            totals.conflict > 0 && totals.unchanged > 0 && totals.deleted > 0 && totals.cancelled > 0,
            "{totals:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in seeds().take(10) {
        for mode in [Mode::Safety, Mode::Liveness] {
            assert_eq!(run(seed, mode, false).0, run(seed, mode, false).0, "seed {seed} ({mode:?}) ran in two ways");
        }
    }
    assert_ne!(run(1, Mode::Safety, false).0, run(2, Mode::Safety, false).0, "the trace says nothing");
}
