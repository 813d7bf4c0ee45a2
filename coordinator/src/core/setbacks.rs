//! Attempts that failed: whose fault it was decides whether a batch waits, is halved around its poison, or is set aside.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::batches::{backoff, mends};
use super::event::Effect;
use super::members::Loss;
use super::record::{BatchRecord, BatchState, Change, batch_key};
use super::{Core, Owner, Step};
use crate::limits;

/// As metrics name it.
fn outcome(kind: v1::FailureKind) -> &'static str {
    match kind {
        v1::FailureKind::Item => "item",
        v1::FailureKind::Storage => "storage",
        v1::FailureKind::Model => "model",
        v1::FailureKind::Node => "node",
        v1::FailureKind::Cancelled => "cancelled",
        v1::FailureKind::Input => "input",
        v1::FailureKind::Unspecified => "unspecified",
    }
}

impl Core {
    pub(super) fn failed(
        &mut self,
        step: &mut Step,
        node: &NodeId,
        number: u64,
        kind: v1::FailureKind,
        problem: &Problem,
    ) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.ending.remove(&number);
        }
        if self.attempts.get(&number).is_none_or(|attempt| attempt.node != *node) {
            return;
        }
        let Some(attempt) = self.drop_attempt(number) else { return };
        self.note_end(&attempt, outcome(kind));
        let kind = match kind {
            v1::FailureKind::Input | v1::FailureKind::Item if problem.code == ErrorCode::EpochStale => {
                v1::FailureKind::Storage
            }
            // What storage refuses for good (a listing or a payload that is gone, a place that may not be written) is
            // refused the next time too: it counts, so that it ends.
            v1::FailureKind::Storage if !mends(problem) => v1::FailureKind::Item,
            kind => kind,
        };
        self.hold_against(&attempt, kind, problem);
        match kind {
            v1::FailureKind::Node => {
                if let Some(entry) = self.nodes.get_mut(node) {
                    let pause = problem.retry_after.map_or(2_000, |d| d.as_millis().min(60_000) as u64);
                    entry.rest_until = self.now.mono_ms + pause;
                }
            }
            v1::FailureKind::Model => {
                let model = match attempt.owner {
                    Owner::Batch { job, .. } => self.jobs.get(&job).map(|job| job.record.model.clone()),
                    Owner::Call(call) => self.calls.get(&call).map(|call| call.model.clone()),
                };
                if let (Some(model), Some(entry)) = (model, self.nodes.get_mut(node)) {
                    entry.broken_models.insert(model, problem.message.clone());
                }
            }
            _ => {}
        }
        match attempt.owner {
            Owner::Call(call) => {
                if problem.code == ErrorCode::EngineStalled
                    && let Some(call) = self.calls.get_mut(&call)
                {
                    // Two engines that it brought to a stand are enough.
                    call.moves += 2;
                }
                self.call_failed(step, call, kind, problem);
            }
            // As if the node had died with it: it has to, and what brings engines to a stand must not wander through all.
            Owner::Batch { job, batch } if problem.code == ErrorCode::EngineStalled => {
                let loss = if attempt.alone { Loss::Died } else { Loss::Among };
                self.charge(step, job, batch, problem, loss);
            }
            Owner::Batch { job, batch } => match kind {
                v1::FailureKind::Input => self.end_failed(step, job, problem),
                v1::FailureKind::Item | v1::FailureKind::Unspecified => {
                    self.charge(step, job, batch, problem, Loss::Late);
                }
                v1::FailureKind::Storage
                | v1::FailureKind::Node
                | v1::FailureKind::Model
                | v1::FailureKind::Cancelled => {
                    let free = matches!(kind, v1::FailureKind::Cancelled);
                    self.requeue(step, job, batch, problem, free);
                    if kind == v1::FailureKind::Storage {
                        self.storage_failed(step, job, problem);
                    }
                }
            },
        }
    }

    /// Back into the queue free of charge: storage, drain, preemption, another node's fault.
    pub(super) fn requeue(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem, at_once: bool) {
        let now = self.now.unix_ms;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        entry.running.remove(&batch);
        let Some(record) = entry.batches.get_mut(&batch).filter(|b| b.state() == BatchState::Running) else { return };
        if record.takes_documents() {
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
        }
        self.tally.retry("free");
        record.set_state(BatchState::Queued);
        record.node.clear();
        record.reason = problem.message.clone();
        record.code = problem.code.as_str().to_owned();
        if !at_once {
            record.tries += 1;
            let wait = problem.retry_after.map_or_else(|| backoff(job ^ batch, record.tries), |d| d.as_millis() as i64);
            record.not_before_ms = now + wait.clamp(0, limits::BACKOFF_MS.1);
        }
        entry.queued.insert(batch);
        step.put_batch(job, record);
        step.effects.push(Effect::JobChanged { job });
        self.progress_job(step, job);
    }

    /// Something in the batch did it: halve until the poisonous item stands alone, then count against it. A node's death
    /// counts only against an item that was alone there; one that had company must be alone the next time.
    pub(super) fn charge(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem, loss: Loss) {
        let died = loss != Loss::Late;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(record) = entry.batches.get(&batch).filter(|b| b.state() == BatchState::Running) else { return };
        if record.count > 1 {
            let record = record.clone();
            entry.running.remove(&batch);
            entry.remove_batch(batch);
            if record.takes_documents() {
                entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
            }
            entry.work_settled(&record);
            step.changes.push(Change::Delete { key: batch_key(job, batch) });
            self.tally.retry("halved");
            let half = record.count.div_ceil(2);
            for (first, count) in [(record.first, half), (record.first + half, record.count - half)] {
                let bytes = entry.range_bytes(record.segment, record.entry(), first, count);
                let part = BatchRecord {
                    segment: record.segment,
                    document: record.document,
                    first,
                    count,
                    bucket: record.bucket,
                    bytes,
                    reason: format!("split after: {}", problem.message),
                    code: problem.code.as_str().to_owned(),
                    suspect: died || record.suspect,
                    ..Default::default()
                };
                let id = entry.add_batch(part);
                step.put_batch(job, &entry.batches[&id]);
            }
            step.effects.push(Effect::JobChanged { job });
            return;
        }
        if record.takes_documents() {
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
        }
        entry.running.remove(&batch);
        self.count_against(step, job, batch, problem, loss);
    }

    /// What a batch had staged is gone (swept while no coordinator ran for a day): all of it is done again, and that counts,
    /// so that it can't go on for ever.
    pub(super) fn redo(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        entry.publishing.remove(&batch);
        let Some(record) = entry.batches.get_mut(&batch) else { return };
        let before = record.clone();
        (record.manifest, record.outputs) = (None, 0);
        (record.committed, record.unchanged, record.skipped, record.failed) = (0, 0, 0, 0);
        record.incomplete = 0;
        entry.settled = entry.settled.saturating_sub(u64::from(before.stands_for()));
        if before.takes_documents() || before.joins_document() {
            let counts = &mut entry.counts;
            counts.unchanged = counts.unchanged.saturating_sub(u64::from(before.unchanged));
            counts.skipped = counts.skipped.saturating_sub(u64::from(before.skipped));
            counts.failed = counts.failed.saturating_sub(u64::from(before.failed));
            counts.committed = counts.committed.saturating_sub(u64::from(before.committed));
            counts.incomplete = counts.incomplete.saturating_sub(u64::from(before.incomplete));
        }
        let mut again = vec![batch];
        if !before.join {
            entry.counts.bytes_done = entry.counts.bytes_done.saturating_sub(before.bytes);
            if before.splits.is_empty() {
                *entry.bucket_open.entry(before.bucket).or_default() += 1;
            } else {
                // Pages of its long documents are batches of their own and stay as they are.
                again = entry.around_splits(step, &before);
            }
        }
        for batch in again {
            self.count_against(step, job, batch, problem, Loss::Late);
        }
    }

    /// Another job replaced the visible part that a join was made from: it is made again from the one that is there now, free
    /// of charge, for nothing is wrong with it.
    pub(super) fn join_anew(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem) {
        let now = self.now.unix_ms;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        entry.publishing.remove(&batch);
        let Some(record) = entry.batches.get_mut(&batch) else { return };
        (record.manifest, record.outputs) = (None, 0);
        record.set_state(BatchState::Queued);
        record.node.clear();
        record.reason = problem.message.clone();
        record.code = problem.code.as_str().to_owned();
        record.tries += 1;
        record.not_before_ms = now + backoff(job ^ batch, record.tries);
        entry.queued.insert(batch);
        step.put_batch(job, record);
        step.effects.push(Effect::JobChanged { job });
        self.progress_job(step, job);
    }

    /// Counts a failure against a batch that is in no queue, and sets it aside if it was one too many.
    fn count_against(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem, loss: Loss) {
        let now = self.now.unix_ms;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(record) = entry.batches.get_mut(&batch) else { return };
        match loss {
            Loss::Late => record.failures += 1,
            Loss::Died => record.deaths += 1,
            Loss::Unseen => record.unseen_deaths += 1,
            // Joins are not sent to empty nodes: their company must not keep them going for ever.
            Loss::Among if record.join => record.unseen_deaths += 1,
            Loss::Among | Loss::Free => {}
        }
        record.suspect = (record.suspect || loss != Loss::Late) && !record.join;
        record.reason = problem.message.clone();
        record.code = problem.code.as_str().to_owned();
        record.node.clear();
        let blamed = record.failures >= limits::ITEM_FAILURES_MAX
            || record.deaths >= limits::ITEM_DEATHS_MAX
            || record.deaths + record.unseen_deaths >= limits::ITEM_UNSEEN_DEATHS_MAX;
        if blamed {
            if record.join && !record.joins_document() {
                // A join that can't be made is the job's own failure: its documents can't become visible.
                step.put_batch(job, record);
                let problem = Problem::new(problem.code, format!("results can't be joined: {}", problem.message));
                self.end_failed(step, job, &problem);
                return;
            }
            record.set_state(BatchState::Quarantined);
            let record = record.clone();
            self.tally.aside(&record.code, record.stands_for());
            // A page that is set aside is its document's shortcoming, which the document's join tells of.
            entry.counts.quarantined += u64::from(record.stands_for());
            entry.settled += u64::from(record.stands_for());
            if !record.join {
                entry.work_settled(&record);
            }
        } else {
            self.tally.retry("charged");
            record.set_state(BatchState::Queued);
            let tries = record.failures + record.deaths + record.unseen_deaths + u32::from(loss == Loss::Among);
            record.not_before_ms = now + backoff(job ^ batch, tries);
            entry.queued.insert(batch);
        }
        step.put_batch(job, &entry.batches[&batch]);
        step.effects.push(Effect::JobChanged { job });
        self.progress_job(step, job);
    }
}
