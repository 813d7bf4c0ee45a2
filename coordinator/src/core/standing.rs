//! Standing jobs: a look at the folder now and then, a pass where it finds work, and never an end but by a person's hand.
//!
//! Between passes the job keeps the parts of the last pass that had work, so that people can see what became of it; the next
//! such pass clears them. A look that finds nothing new commits nothing.

use ingle_proto::{Problem, v1};

use super::event::Effect;
use super::record::{Change, JobRecord, parts_prefix};
use super::{Core, Job, Now, Step};
use crate::limits;

use v1::JobState;

impl JobRecord {
    /// Whether it goes on after its first pass.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.spec().watch.is_some()
    }

    /// The pass that its next listing is of; 0 of a job that looks once.
    #[must_use]
    pub fn next_pass(&self) -> u64 {
        self.standing.map_or(0, |standing| standing.passes + 1)
    }

    /// What the listing said of documents that are in none of its segments.
    pub(super) fn carried(&self) -> Option<v1::ScanDone> {
        self.standing.and_then(|standing| standing.carried)
    }
}

impl Core {
    /// Everything that a pass listed is settled.
    pub(super) fn pass_ended(&mut self, step: &mut Step, number: u64) {
        let now = self.now;
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let counts = job.counts;
        let standing = job.record.standing.get_or_insert_default();
        standing.passes += 1;
        standing.failed = 0;
        add(standing.done.get_or_insert_default(), &counts);
        job.record.set_state(JobState::Standing);
        job.scan.not_before = now.mono_ms + job.interval_ms();
        job.hold = String::new();
        step.put_job(&job.record);
        step.effects.push(Effect::JobChanged { job: number });
    }

    /// A pass can't be done: what of it is visible stays, the rest is listed again, and the job says why it waits.
    pub(super) fn pass_failed(&mut self, step: &mut Step, number: u64, problem: &Problem) {
        self.stop_running(step, number, "its pass failed");
        let now = self.now.mono_ms;
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let running: Vec<u64> =
            job.running.iter().filter_map(|batch| job.batches.get(batch)).map(|batch| batch.attempt).collect();
        job.stop_scan(step);
        job.clear_parts(step);
        job.record.reason = format!("{}; what is left is tried again at the next look", problem.message);
        job.record.code = problem.code.as_str().to_owned();
        job.record.set_state(JobState::Standing);
        let standing = job.record.standing.get_or_insert_default();
        standing.failed = standing.failed.saturating_add(1);
        let failed = standing.failed;
        let pause = super::batches::backoff(number, failed) as u64;
        job.scan.not_before = now + pause.max(again_ms(job.interval_ms(), failed));
        step.put_job(&job.record);
        step.effects.push(Effect::JobChanged { job: number });
        for attempt in running {
            self.drop_attempt(attempt);
        }
    }

    /// A look between passes failed. Nothing of the last pass changes.
    pub(super) fn look_failed(&mut self, step: &mut Step, number: u64, problem: &Problem) {
        let now = self.now.mono_ms;
        if let Some(job) = self.jobs.get_mut(&number) {
            // Else it is soon enough already.
            if !super::batches::mends(problem) {
                job.scan.not_before = now + job.interval_ms();
            }
        }
        self.hold(step, number, format!("the last look failed ({problem}); it looks again"));
        if let Some(job) = self.jobs.get_mut(&number) {
            problem.code.as_str().clone_into(&mut job.hold_code);
        }
    }
}

impl Job {
    /// Whether a failure of the whole job is one of its pass only: a folder or a model that never was is an error to be told.
    pub(super) fn goes_on(&self) -> bool {
        // Of a first pass that failed nothing is left but what its listing said.
        let looked = self.record.standing.is_some_and(|standing| standing.looked.is_some());
        let begun = self.record.listed || self.record.next_pass() > 1 || looked;
        self.record.stands() && begun && self.record.state() != JobState::Cancelling
    }

    pub(super) fn interval_ms(&self) -> u64 {
        self.record.spec().watch.map_or(0, |watch| u64::from(watch.interval_s) * 1000)
    }

    /// A look found work.
    pub(super) fn begin_pass(&mut self, step: &mut Step) {
        self.clear_parts(step);
        self.record.set_state(JobState::Listing);
        self.record.reason = String::new();
        self.record.code = String::new();
        step.put_job(&self.record);
    }

    fn clear_parts(&mut self, step: &mut Step) {
        step.changes.push(Change::Clear { prefix: parts_prefix(self.record.number) });
        self.record.listed = false;
        if let Some(standing) = &mut self.record.standing {
            standing.carried = None;
        }
        *self = Self {
            record: std::mem::take(&mut self.record),
            scan: self.scan.clone(),
            // Numbers of batches go on, so that what is late of an earlier pass meets none of this one.
            next_batch: self.next_batch,
            looked_ms: self.looked_ms,
            ..Self::default()
        };
    }

    /// A look is complete; what it found is kept where it is news.
    pub(super) fn looked(&mut self, step: &mut Step, done: v1::ScanDone, now: Now) {
        let idle = self.record.state() == JobState::Standing;
        let listed = self.record.listed;
        let interval_ms = self.interval_ms();
        let Some(standing) = &mut self.record.standing else { return };
        self.looked_ms = now.unix_ms;
        let news = standing.looked != Some(done) || !self.record.reason.is_empty() || !listed;
        standing.looked = Some(done);
        if !idle {
            (standing.looked_ms, standing.carried) = (now.unix_ms, Some(done));
            return;
        }
        self.scan.not_before = now.mono_ms + interval_ms;
        let held = !std::mem::take(&mut self.hold).is_empty();
        self.hold_code = String::new();
        if news {
            standing.looked_ms = now.unix_ms;
            standing.failed = 0;
            self.record.reason = String::new();
            self.record.code = String::new();
            if !listed {
                // The pass before failed, and nothing of it was left to do.
                standing.carried = Some(done);
                self.record.listed = true;
                self.index_segments();
            }
            step.put_job(&self.record);
        }
        if news || held {
            step.effects.push(Effect::JobChanged { job: self.record.number });
        }
    }

    /// How it stands, as people see it.
    pub(super) fn standing(&self, now: Now) -> Option<v1::Standing> {
        let waits = self.record.state() == JobState::Standing && !self.scan.running && !self.record.paused;
        let mut view = standing(&self.record)?;
        view.looked_ms = view.looked_ms.max(self.looked_ms);
        if waits {
            let left_ms = self.scan.not_before.saturating_sub(now.mono_ms);
            view.next_ms = now.unix_ms.saturating_add(i64::try_from(left_ms).unwrap_or(i64::MAX));
        }
        Some(view)
    }
}

/// What is recorded of how a job stands, as people see it.
pub(super) fn standing(record: &JobRecord) -> Option<v1::Standing> {
    let standing = record.standing?;
    let looked = standing.looked.unwrap_or_default();
    Some(v1::Standing {
        passes: standing.passes,
        next_ms: 0,
        looked_ms: standing.looked_ms,
        documents: looked.documents,
        waiting: looked.waiting,
        held: looked.held,
        suspected: looked.suspected,
        directories: looked.directories,
        directories_moved: looked.directories_moved,
        done: Some(standing.done.unwrap_or_default()),
    })
}

/// Milliseconds before a pass that has failed so often in a row is tried again: the interval, doubled each time. What can't be
/// done should not be done over and over.
fn again_ms(interval_ms: u64, failed: u32) -> u64 {
    let doubled = interval_ms.saturating_mul(1 << failed.saturating_sub(1).min(16));
    doubled.min(limits::PASS_AGAIN_MS_MAX).max(interval_ms)
}

/// Adds what a pass did. What it found done, or passed over, every pass finds again.
fn add(sum: &mut v1::ItemCounts, pass: &v1::ItemCounts) {
    sum.published += pass.published;
    sum.failed += pass.failed;
    sum.quarantined += pass.quarantined;
    sum.conflict += pass.conflict;
    sum.deleted += pass.deleted;
    sum.incomplete += pass.incomplete;
    sum.bytes_done += pass.bytes_done;
}
