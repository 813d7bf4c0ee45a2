//! Engines that stand still are noticed: their thread is given up, what was in it fails so that others do it, and the process
//! ends after handing back the rest, for a thread can't be stopped from outside. Its supervisor starts it again.
//!
//! What counts is that the engine's code comes back from a step. Loading weights is no step, and may take its time.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ingle_daemon::Shutdown;

use crate::agent::Agent;
use crate::executor::{ModelHandle, Progress};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long each thread has been seen in the same piece of the engine's code. Pure.
///
/// Time in which nobody looked counts as one look: a process that was frozen as a whole has no stuck engines.
#[derive(Debug, Default)]
struct Stillness(BTreeMap<usize, (u64, Duration)>);

impl Stillness {
    /// Takes what is seen now of each thread, `passed` after the look before. How long each has stood still.
    fn look(&mut self, seen: &[(usize, Progress)], passed: Duration) -> Vec<Duration> {
        let passed = passed.min(2 * LOOK_EVERY);
        let before = std::mem::take(&mut self.0);
        seen.iter()
            .map(|(key, progress)| {
                let still = match before.get(key) {
                    Some((turn, still)) if *turn == progress.turn && progress.in_engine() => *still + passed,
                    _ => Duration::ZERO,
                };
                self.0.insert(*key, (progress.turn, still));
                still
            })
            .collect()
    }
}

/// Looks for ever. Of the first engine that stood still for `bound` it tells `verdict`, and begins `shutdown`.
pub(crate) async fn run(agent: Arc<Agent>, bound: Duration, verdict: Arc<OnceLock<String>>, shutdown: Shutdown) {
    let mut stillness = Stillness::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        let passed = looked.elapsed();
        looked = tokio::time::Instant::now();
        let threads = agent.loaded.executors();
        // The address names a thread while its handle is held; one that takes an address over begins with its own turn.
        let key = |handle: &Arc<ModelHandle>| Arc::as_ptr(handle) as usize;
        let seen: Vec<_> = threads.iter().map(|(_, handle)| (key(handle), handle.progress())).collect();
        let still = stillness.look(&seen, passed);
        for ((model, handle), still) in threads.iter().zip(still) {
            handle.saw_still(still);
            if still < bound || handle.progress().abandoned {
                continue;
            }
            let words = format!("the engine of model `{model}` made no step for {} s", still.as_secs());
            tracing::error!(model, ?still, "the engine stands still; this node hands back its work and starts anew");
            agent.metrics.stalled.inc();
            handle.abandon();
            // A second one adds nothing.
            let _ = verdict.set(words);
            shutdown.begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(turn: u64) -> Progress {
        Progress { turn, ..Progress::default() }
    }

    #[test]
    fn only_code_that_does_not_come_back_stands_still() {
        let mut stillness = Stillness::default();
        let mut look = |turns: &[u64]| {
            let seen: Vec<_> = turns.iter().enumerate().map(|(key, turn)| (key, at(*turn))).collect();
            stillness.look(&seen, LOOK_EVERY).iter().map(|still| still.as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(look(&[1, 4, 7]), [0, 0, 0]);
        assert_eq!(look(&[1, 4, 9]), [500, 0, 0], "in the engine, idle, and moving");
        assert_eq!(look(&[1, 4, 9]), [1000, 0, 500]);
        assert_eq!(look(&[3, 4, 9]), [0, 0, 1000]);
    }

    #[test]
    fn time_in_which_the_whole_process_stood_is_nobodys() {
        let mut stillness = Stillness::default();
        stillness.look(&[(1, at(1))], LOOK_EVERY);
        let still = stillness.look(&[(1, at(1))], Duration::from_secs(600));
        assert_eq!(still, [2 * LOOK_EVERY]);
    }
}
