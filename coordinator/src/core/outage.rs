//! Storage that is away, full or read-only: the job's work waits as a whole, says why, and a few batches try whether it is over.
//!
//! Without it every batch of a job would learn for itself that the NAS is away. Nothing of it is stored: a new leader learns it
//! again from the first batch that fails.

use ingle_proto::{ErrorCode, NodeId, Problem};

use super::batches::backoff;
use super::event::Effect;
use super::{Core, Job, Owner, Step};

/// Why a job's work waits for the NAS.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outage {
    tries: u32,
    /// Unix milliseconds before which nothing is tried.
    pub(super) not_before_ms: i64,
    /// Which export, why, and what to do.
    pub(super) reason: String,
    pub(super) code: ErrorCode,
}

/// Whether a problem is of the NAS as a whole, and passes when somebody mends that: never one object's.
fn of_storage(problem: &Problem) -> bool {
    matches!(problem.code, ErrorCode::StorageUnavailable | ErrorCode::StorageFull | ErrorCode::StorageReadOnly)
}

/// The words for people: what is to be done comes with the problem where there is anything to do.
pub(super) fn waiting(problem: &Problem) -> String {
    if problem.message.ends_with("by itself") {
        problem.message.clone()
    } else {
        format!("{}; it is tried again: the job goes on by itself", problem.message)
    }
}

impl Core {
    /// Something of the job met a NAS that can't be worked with now.
    pub(super) fn storage_failed(&mut self, step: &mut Step, number: u64, problem: &Problem) {
        let now = self.now.unix_ms;
        let Some(job) = self.jobs.get_mut(&number).filter(|_| of_storage(problem)) else { return };
        let before = job.outage.take();
        let mut outage = Outage { tries: 0, not_before_ms: 0, reason: waiting(problem), code: problem.code };
        match before {
            // Several tried at the same time: that counts as one try.
            Some(before) if now < before.not_before_ms => {
                (outage.tries, outage.not_before_ms) = (before.tries, before.not_before_ms);
            }
            before => {
                outage.tries = before.map_or(0, |before| before.tries) + 1;
                outage.not_before_ms = now + backoff(number, outage.tries);
            }
        }
        job.outage = Some(outage);
        step.effects.push(Effect::JobChanged { job: number });
    }

    /// Something of the job was read and written: the rest may go on.
    pub(super) fn storage_works(&mut self, step: &mut Step, number: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && job.outage.take().is_some()
        {
            step.effects.push(Effect::JobChanged { job: number });
        }
    }

    /// Of these nodes those that may try: all, or while the NAS is away those that don't try already. Which node fails is no
    /// reason to leave the others untried: it may be the only one that is cut off.
    pub(super) fn may_try(&self, number: u64, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        if self.jobs.get(&number).is_some_and(|job| job.outage.is_some()) {
            let tries = |node: &NodeId| {
                self.attempts.values().any(|attempt| {
                    attempt.node == *node && matches!(attempt.owner, Owner::Batch { job, .. } if job == number)
                })
            };
            nodes.retain(|node| !tries(node));
        }
        nodes
    }
}

impl Job {
    /// Whether something of it may be tried now.
    pub(super) fn storage_may_be_tried(&self, unix_ms: i64) -> bool {
        self.outage.as_ref().is_none_or(|outage| outage.not_before_ms <= unix_ms)
    }

    /// Publishes that wait for their next try.
    pub(super) fn give_up_publishing(&mut self) {
        let Self { publishing, batches, .. } = self;
        publishing.retain(|id| batches.get(id).is_none_or(|batch| batch.not_before_ms == 0));
    }
}
