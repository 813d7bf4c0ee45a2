//! The scheduling suite: who is served when, ours beside what others do, in virtual time; and what a decision costs.

mod mix;
mod office;
mod ours;
mod policies;
mod scale;

use policies::Policy;

use crate::report::{Better, Measure, Peer, Report, median};
use crate::{Options, say, suite};

const P95: &str = "schedule.p95_vs_least_connections";
const P95_TURNS: &str = "schedule.p95_vs_round_robin";
const P95_WEIGHTED: &str = "schedule.p95_vs_weighted";
const EVENT_P99: &str = "core.event_p99_us";
const MEMORY: &str = "core.memory_mib";
/// Of the first sample's mix; each further one is of the next seed.
const SEED: u64 = 20_261_123;
/// What is promised with 2,000 nodes and 1,000,000 queued documents.
const EVENT_AIM_US: f64 = 50.0;
const MEMORY_AIM_MIB: f64 = 2_000.0;

/// The smallest sample that this share of them doesn't exceed; 0 of none.
fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0.0)
}

/// The suite.
///
/// # Errors
/// The core refuses what it should take.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (root, mut report, _) = suite::begin(options, "schedule")?;
    if options.group("schedule.") {
        compare(options, &mut report)?;
    }
    if options.group("core.") {
        cost(options, &mut report)?;
    }
    suite::end(options, &root, &report)
}

fn compare(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    say(&format!("scheduling: {} calls over unlike machines, in virtual time", mix::CALLS));
    let mut ours: Vec<(f64, f64)> = Vec::new();
    let mut theirs: Vec<Vec<(f64, f64)>> = vec![Vec::new(); Policy::ALL.len()];
    for sample in 0..u64::from(options.samples) {
        let machines = mix::machines(SEED + sample);
        let calls = mix::calls(SEED + sample, &machines);
        let both = |took: &[f64]| (quantile(took, 0.5), quantile(took, 0.95));
        ours.push(both(&ours::run(&machines, &calls)?));
        for (policy, samples) in Policy::ALL.iter().zip(&mut theirs) {
            samples.push(both(&policy.run(&machines, &calls)));
        }
    }
    let of = |samples: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| samples.iter().map(which).collect::<Vec<_>>();
    let named = Policy::ALL.iter().map(|policy| policy.name()).zip(&theirs);
    for (name, samples) in named.chain([("ours", &ours)]) {
        let p50 = median(&of(samples, |sample| sample.0));
        let p95 = median(&of(samples, |sample| sample.1));
        report.notes.push(format!(
            "{name}: p50 {:.1} s, p95 {:.1} s from coming to the last token",
            p50 / 1e3,
            p95 / 1e3
        ));
    }
    for (name, policy) in
        [(P95, Policy::LeastConnections), (P95_TURNS, Policy::RoundRobin), (P95_WEIGHTED, Policy::Weighted)]
    {
        let at = Policy::ALL.iter().position(|known| *known == policy).unwrap_or(0);
        let peer = Peer::Measured(policy.name().into(), of(&theirs[at], |sample| sample.1));
        let ours = of(&ours, |sample| sample.1);
        report.measures.push(Measure { name, unit: "ms", better: Better::Lower, ours, peer });
    }
    Ok(())
}

fn cost(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    say(&format!("the core with {} nodes and a million queued documents", scale::NODES));
    let (mut events, mut memory) = (Vec::new(), Vec::new());
    for sample in 0..u64::from(options.samples) {
        let found = scale::run(SEED + sample)?;
        events.push(found.p99_us);
        // Later samples take what earlier ones gave back.
        if memory.is_empty() {
            memory.push(found.memory_mib);
        }
        report.notes.push(format!(
            "{} events, {} documents queued, {} batches sent: p50 {:.1} us, p99 {:.1} us, longest {:.0} us; ticks p99 {:.0} us",
            found.events, found.queued, found.dispatched, found.p50_us, found.p99_us, found.max_us, found.tick_p99_us
        ));
    }
    let aim = |value: f64, unit: &str| Peer::Measured(format!("what is promised, {value} {unit}"), vec![value]);
    let (better, peer) = (Better::Lower, aim(EVENT_AIM_US, "us"));
    report.measures.push(Measure { name: EVENT_P99, unit: "us", better, ours: events, peer });
    let peer = aim(MEMORY_AIM_MIB, "MiB");
    report.measures.push(Measure { name: MEMORY, unit: "MiB", better, ours: memory, peer });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.95, 0.99, 1.0].map(|share| quantile(&samples, share)), [1.0, 50.0, 95.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[7.0], 0.01), 7.0);
    }
}
