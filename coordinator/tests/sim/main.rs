//! The core under a seeded simulation of faults, and under arbitrary events in arbitrary order.
//!
//! `INGLE_SEED=n` replays one seed and prints its trace; `INGLE_SOAK=1` runs 10,000 seeds instead of 200, with
//! `INGLE_SOAK_MINUTES=n` as many of them as fit into so many minutes of each test.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at once, and prints what it replays")]

mod arbitrary;
mod clients;
mod faults;
mod gateway;
mod leaders;
mod leaving;
mod nodes;
mod results;
mod soak;
mod store;
mod streams;
mod totals;
mod trace;
mod verdict;
mod world;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use trace::Tracing;
use world::{Mode, Size, Totals, World};

fn run(seed: u64, mode: Mode, tracing: Tracing, size: Size) -> (blake3::Hash, Totals) {
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| World::new(seed, mode, tracing, size).run()));
    ran.unwrap_or_else(|cause| {
        let why = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        panic!("seed {seed} ({mode:?}, {size:?}) failed: {why}\nreplay it: INGLE_SEED={seed} cargo test -p ingle-coordinator --test sim");
    })
}

/// A world of a size of its own; the seed printed is that of [`run`].
fn run_world(seed: u64, mode: Mode, size: Size) -> Totals {
    run(seed, mode, Tracing::Off, size).1
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn soaks() -> bool {
    from_environment("INGLE_SOAK") == Some(1)
}

/// When a soak has gone on for long enough.
#[derive(Debug, Clone, Copy)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn from_environment() -> Self {
        let minutes = from_environment("INGLE_SOAK_MINUTES").filter(|_| soaks());
        Self(minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60)))
    }

    fn over(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = from_environment("INGLE_SEED") {
        return seed..seed + 1;
    }
    0..if soaks() { 10_000 } else { 200 }
}

/// Runs every seed, and says how many of them there was time for.
fn all(mode: Mode) -> (u64, Totals) {
    let replays = from_environment("INGLE_SEED").is_some();
    let tracing = if replays { Tracing::Printed } else { Tracing::Off };
    let deadline = Deadline::from_environment();
    let (mut ran, mut totals) = (0, Totals::default());
    for seed in seeds() {
        if deadline.over() {
            println!(
                "skipped: {} of {} seeds ({mode:?}), the time was over",
                seeds().count() as u64 - ran,
                seeds().count()
            );
            break;
        }
        totals.add(run(seed, mode, tracing, Size::SMALL).1);
        ran += 1;
    }
    println!("{mode:?}, {ran} seeds: {totals:?}");
    (ran, totals)
}

#[test]
fn any_faults_break_no_invariant() {
    let (ran, totals) = all(Mode::Safety);
    if ran >= 200 {
        assert!(
            totals.crashes > 100 && totals.deaths > 100 && totals.published > 100,
            "the faults are weak: {totals:?}"
        );
        assert!(
            totals.frozen > 50 && totals.fenced > 20 && totals.paused > 50 && totals.slowed > 20,
            "the faults are weak: {totals:?}"
        );
        assert!(totals.stalls > 20 && totals.jumps > 20, "the faults are weak: {totals:?}");
        assert!(totals.left > 100 && totals.farewells > 50 && totals.warmed > 5, "few nodes left: {totals:?}");
    }
}

#[test]
fn when_faults_stop_every_job_ends_and_its_counts_add_up() {
    let (ran, totals) = all(Mode::Liveness);
    if ran >= 200 {
        assert!(totals.crashes > 100 && totals.deaths > 100, "the faults are weak: {totals:?}");
        assert!(totals.left > 50 && totals.farewells > 20, "few nodes left: {totals:?}");
        assert!(totals.published > 1_000 && totals.quarantined > 20, "little was done: {totals:?}");
        assert!(
            totals.split > 50 && totals.ranges > 3 * totals.split && totals.pages_set_aside > 5,
            "few documents were read in ranges: {totals:?}"
        );
        assert!(
            totals.conflict > 0 && totals.unchanged > 0 && totals.deleted > 0 && totals.cancelled > 0,
            "{totals:?}"
        );
        assert!(totals.streams > 100 && totals.moved > 5 && totals.tokens > 1_000, "few calls were read: {totals:?}");
    }
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    let hash = |seed, mode| run(seed, mode, Tracing::Hashed, Size::SMALL).0;
    for seed in seeds().take(10) {
        for mode in [Mode::Safety, Mode::Liveness] {
            assert_eq!(hash(seed, mode), hash(seed, mode), "seed {seed} ({mode:?}) ran in two ways");
        }
    }
    assert_ne!(hash(1, Mode::Safety), hash(2, Mode::Safety), "the trace says nothing");
}
