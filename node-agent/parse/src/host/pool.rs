//! Children at rest and children lent: a bounded number of both together.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::child::Child;
use super::keeper::{Keeper, Recipe};
use crate::error::ParseError;
use crate::limits::Limits;

/// The host's children.
#[derive(Debug)]
pub(super) struct Pool {
    recipe: Recipe,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    // Declared before the keeper: they end before the thread that started them does.
    idle: Vec<Child>,
    /// Idle, lent and being started.
    alive: u32,
    keeper: Option<Arc<Keeper>>,
}

/// A child in one document's hands. Dropping it gives the child back, or buries it.
#[derive(Debug)]
pub(super) struct Lent {
    pool: Arc<Pool>,
    child: Option<Child>,
}

impl Pool {
    pub(super) fn new(program: PathBuf, args: Vec<OsString>, limits: Limits) -> Self {
        Pool { recipe: Recipe { program, args, limits }, state: Mutex::default(), freed: Condvar::new() }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.recipe.limits
    }

    pub(super) fn alive(&self) -> u32 {
        self.lock().alive
    }

    /// A thread that panicked holding the lock left numbers that still add up: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A child that rests, or a new one, or the next that comes free.
    pub(super) fn take(self: &Arc<Self>) -> Result<Lent, ParseError> {
        let limits = self.limits();
        let deadline = Instant::now() + limits.wait;
        let mut state = self.lock();
        loop {
            while let Some(mut child) = state.idle.pop() {
                if child.is_alive() {
                    return Ok(Lent { pool: Arc::clone(self), child: Some(child) });
                }
                // Somebody ended it while it rested: no document's fault.
                state.alive -= 1;
            }
            if state.alive < limits.children_max {
                state.alive += 1;
                drop(state);
                // From here the place is the loan's: its drop gives it free again.
                let mut lent = Lent { pool: Arc::clone(self), child: None };
                lent.child = Some(self.start()?);
                return Ok(lent);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ParseError::unavailable(format!(
                    "all {} processes that parse were busy for {} s",
                    limits.children_max,
                    limits.wait.as_secs_f32()
                )));
            }
            state = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start(&self) -> Result<Child, ParseError> {
        let failed = |error: std::io::Error| {
            ParseError::unavailable(format!(
                "can't start {} to parse documents: {error}",
                self.recipe.program.display()
            ))
        };
        let keeper = {
            let mut state = self.lock();
            match &state.keeper {
                Some(keeper) => Arc::clone(keeper),
                None => Arc::clone(state.keeper.insert(Arc::new(Keeper::new(self.recipe.clone()).map_err(failed)?))),
            }
        };
        keeper.start().map_err(failed)
    }
}

impl Lent {
    /// The child; `None` once it was found dead.
    pub(super) fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let most = self.pool.limits().documents_per_child;
        let child = self.child.take().and_then(|child| still_good(child, most));
        let mut state = self.pool.lock();
        match child {
            Some(child) => state.idle.push(child),
            None => state.alive -= 1,
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}

/// A child that is well and may have more documents; any other ends here, outside the lock.
fn still_good(mut child: Child, documents_max: u32) -> Option<Child> {
    (child.documents < documents_max && child.is_alive()).then_some(child)
}
