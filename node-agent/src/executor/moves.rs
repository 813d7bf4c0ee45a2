//! Whether a model's thread moves: who was in the model when it last entered the engine's code, and whether it came back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ingle_engine::{EngineError, RequestId};
use tokio_util::sync::CancellationToken;

/// See the module. The thread writes it, whoever watches reads it.
#[derive(Default)]
pub(super) struct Moves {
    /// Grows as the engine's code is entered and as it comes back: odd while it is in there.
    turn: AtomicU64,
    steps: AtomicU64,
    /// Who was in the model at the last step, and so may be what keeps it.
    inside: Mutex<BTreeSet<RequestId>>,
    /// How long it has been in there, as the watchdog counts; 0 while it moves. Milliseconds.
    still_ms: AtomicU64,
    /// Nothing of the thread is waited for any more.
    pub(super) abandoned: CancellationToken,
}

/// How far a model's thread has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Changes whenever the thread moves; odd while the engine's code runs.
    pub turn: u64,
    /// Engine steps since it was loaded.
    pub steps: u64,
    /// Requests in the model while the engine's code runs.
    pub inside: u32,
    /// How long the engine's code has not come back, milliseconds.
    pub still_ms: u64,
    /// Nothing of it is waited for any more.
    pub abandoned: bool,
}

impl Progress {
    /// Whether the engine's code runs.
    #[must_use]
    pub fn in_engine(&self) -> bool {
        self.turn % 2 == 1
    }
}

/// Counts the engine's code as left, however it was.
struct Back<'a>(&'a AtomicU64);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Moves {
    /// Runs code of the engine that should come back soon. A panic that leaves it ends the thread, and is a way to come back.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        self.turn.fetch_add(1, Ordering::Release);
        let _back = Back(&self.turn);
        work()
    }

    /// A step is about to be made with these in the model.
    pub(super) fn step<'a>(&self, inside: impl Iterator<Item = &'a RequestId> + Clone) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let mut known = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().eq(inside.clone()) {
            *known = inside.copied().collect();
        }
    }

    /// A request is about to enter.
    pub(super) fn enters(&self, id: RequestId) {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// It was not let in.
    pub(super) fn refused(&self, id: RequestId) {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    pub(super) fn progress(&self) -> Progress {
        let turn = self.turn.load(Ordering::Acquire);
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner).len();
        Progress {
            turn,
            steps: self.steps.load(Ordering::Relaxed),
            inside: if turn % 2 == 1 { u32::try_from(inside).unwrap_or(u32::MAX) } else { 0 },
            still_ms: self.still_ms.load(Ordering::Relaxed),
            abandoned: self.abandoned.is_cancelled(),
        }
    }

    /// The watchdog has seen it stand for so long; zero: it moves.
    pub(super) fn saw_still(&self, still: Duration) {
        self.still_ms.store(u64::try_from(still.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn abandon(&self) {
        self.abandoned.cancel();
    }

    /// Why a request ends that was with the thread.
    pub(super) fn stalled(&self, id: RequestId) -> EngineError {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        EngineError::Stalled { seconds: self.still_ms.load(Ordering::Relaxed) / 1000, inside }
    }
}
