//! Walks under way, by job and number, so that one which nobody wants any more can be told to stop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// See the module.
#[derive(Default)]
pub(super) struct Walks(Mutex<BTreeMap<(u64, u64), CancellationToken>>);

impl Walks {
    /// A walk begins; it ends when the answer is cancelled.
    pub(super) fn begin(&self, job: u64, scan: u64) -> CancellationToken {
        let stop = CancellationToken::new();
        self.lock().insert((job, scan), stop.clone());
        stop
    }

    /// Stops a walk. One that has ended, or that a leader before began, is none.
    pub(super) fn stop(&self, job: u64, scan: u64) {
        if let Some(stop) = self.lock().remove(&(job, scan)) {
            stop.cancel();
        }
    }

    /// A walk has ended, however it did.
    pub(super) fn ended(&self, job: u64, scan: u64) {
        self.lock().remove(&(job, scan));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_walk_that_is_named_stops() {
        let walks = Walks::default();
        let [one, two, three] = [(1, 1), (1, 2), (2, 1)].map(|(job, scan)| walks.begin(job, scan));
        walks.stop(1, 2);
        walks.ended(2, 1);
        walks.stop(2, 1);
        assert_eq!([&one, &two, &three].map(CancellationToken::is_cancelled), [false, true, false]);
        assert_eq!(walks.lock().len(), 1, "nothing is left of those that ended");
    }
}
