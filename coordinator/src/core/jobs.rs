//! A job's life: submitted, listed by the gateway, steered by people, ended.

use ingle_proto::job::job_id;
use ingle_proto::{ErrorCode, Problem, v1};

use super::event::{Answer, Effect, ReplyId};
use super::record::{Change, JobRecord, SegmentRecord, ended, job_key, parts_prefix};
use super::{Core, Job, ScanState, Segment, Step};
use crate::limits;

use v1::JobState;

impl Core {
    pub(super) fn submit(
        &mut self,
        step: &mut Step,
        reply: ReplyId,
        spec: v1::JobSpec,
        idempotency_key: String,
        spec_digest: Vec<u8>,
        principal: String,
    ) {
        let answer = self.accept(step, spec, idempotency_key, spec_digest, principal);
        step.effects.push(Effect::Reply { reply, answer });
    }

    fn accept(
        &mut self,
        step: &mut Step,
        spec: v1::JobSpec,
        idempotency_key: String,
        spec_digest: Vec<u8>,
        principal: String,
    ) -> Result<Answer, Problem> {
        if let Some(number) = self.keys.get(&idempotency_key).copied() {
            let record = self.record(number).ok_or_else(|| lost(number))?;
            if record.spec_digest != spec_digest {
                return Err(Problem::new(
                    ErrorCode::IdempotencyKeyReused,
                    format!(
                        "idempotency key {idempotency_key:?} was used for {} with another specification; choose a new key",
                        job_id(number)
                    ),
                ));
            }
            let job = self.job(number).ok_or_else(|| lost(number))?;
            return Ok(Answer::Job(Box::new(job), true));
        }
        if self.jobs.len() >= limits::JOBS_OPEN_MAX {
            return Err(Problem::new(
                ErrorCode::Overloaded,
                format!("{} jobs are open; wait for some to end or cancel them", self.jobs.len()),
            )
            .retry_after(std::time::Duration::from_secs(30)));
        }
        let number = self.next_job;
        self.next_job += 1;
        self.marks.job = number;
        step.put(super::record::MARKS_KEY.into(), &self.marks);
        let model = spec.model.clone();
        let record = JobRecord {
            number,
            spec: Some(spec),
            state: JobState::Listing.into(),
            created_ms: self.now.unix_ms,
            idempotency_key: idempotency_key.clone(),
            spec_digest,
            principal,
            model,
            ..Default::default()
        };
        let record = JobRecord { standing: record.stands().then(Default::default), ..record };
        let mut job = Job { record, next_batch: 1, ..Default::default() };
        // A model that no node has is refused at once, but only when there are nodes that could know it.
        match self.choose_model(job.record.spec().kind(), &job.record.model) {
            Ok(Some((name, digest))) => (job.record.model, job.record.model_digest) = (name, digest),
            Ok(None) => {}
            Err(problem) => {
                self.next_job -= 1;
                self.marks.job -= 1;
                step.changes.clear();
                return Err(problem);
            }
        }
        step.put_job(&job.record);
        if !idempotency_key.is_empty() {
            self.keys.insert(idempotency_key, number);
        }
        self.jobs.insert(number, job);
        self.start_scans(step);
        let job = self.job(number).ok_or_else(|| lost(number))?;
        Ok(Answer::Job(Box::new(job), false))
    }

    pub(super) fn record(&self, number: u64) -> Option<&JobRecord> {
        self.jobs.get(&number).map(|job| &job.record).or_else(|| self.ended.get(&number))
    }

    /// Begins the walks that are due.
    pub(super) fn start_scans(&mut self, step: &mut Step) {
        let due: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| {
                let looks = job.record.state() == JobState::Standing && !job.record.paused;
                (job.record.state() == JobState::Listing || looks)
                    && !job.scan.running
                    && job.scan.not_before <= self.now.mono_ms
            })
            .map(|(number, _)| *number)
            .collect();
        for number in due {
            if !step.has_room() {
                break;
            }
            self.start_scan(step, number);
        }
    }

    fn start_scan(&mut self, step: &mut Step, number: u64) {
        let Some(job) = self.jobs.get(&number) else { return };
        let spec = job.record.spec().clone();
        match self.choose_model(spec.kind(), &job.record.model) {
            Ok(None) => {
                let hold = if self.nodes.len() == 0 {
                    "no node has joined yet".to_owned()
                } else {
                    self.why_unread(&job.record.model)
                };
                self.hold(step, number, hold);
            }
            // Nodes come back one by one after a change of leader: those that have the model may be on their way.
            Err(problem)
                if !job.record.model_digest.is_empty()
                    || self.now.mono_ms.saturating_sub(self.started) < limits::REATTACH_MS =>
            {
                self.hold(step, number, problem.message);
            }
            Err(problem) => self.end_failed(step, number, &problem),
            Ok(Some((model, digest))) => {
                let epoch = self.epoch;
                let now = self.now.mono_ms;
                let Some(job) = self.jobs.get_mut(&number) else { return };
                let standing = job.record.state() == JobState::Standing;
                // Segments of a walk that broke off are of no use: a new walk writes all of them. What doesn't fit into
                // this commit goes with the next tick.
                while !standing
                    && step.has_room()
                    && let Some((index, _)) = job.segments.pop_last()
                {
                    step.changes.push(Change::Delete { key: super::record::segment_key(number, index) });
                }
                if !standing && !job.segments.is_empty() {
                    return;
                }
                if job.record.model_digest != digest || job.record.model != model {
                    job.record.model = model;
                    job.record.model_digest = digest.clone();
                    step.put_job(&job.record);
                }
                job.scan = ScanState {
                    number: job.scan.number + 1,
                    running: true,
                    tries: job.scan.tries,
                    not_before: now,
                    entries_seen: 0,
                };
                // Why the last walk failed is told until one succeeds; what kept a standing job, until a look has shown that it is over.
                if !standing && job.hold_code.is_empty() {
                    job.hold = String::new();
                }
                let pass = job.record.next_pass();
                let settle_s = spec.watch.and_then(|watch| watch.settle_s).unwrap_or_default();
                step.effects.push(Effect::Scan {
                    job: number,
                    scan: job.scan.number,
                    request: Box::new(v1::ScanRequest {
                        epoch: Some(epoch.into()),
                        job_id: job_id(number).to_string(),
                        input: spec.input.clone(),
                        kind: spec.kind,
                        place: spec.output.clone(),
                        model_digest: digest.into(),
                        parameters_digest: parameters_digest(&spec).into(),
                        // What is done again is done again once, not at every look.
                        force: spec.force && pass <= 1,
                        text_from: ingle_proto::job::text_from(&spec).cloned(),
                        exclude: spec.exclude.clone(),
                        principal: job.record.principal.clone(),
                        settle_s,
                        pass,
                        allow_mass_deletion: spec.allow_mass_deletion,
                    }),
                });
                step.effects.push(Effect::JobChanged { job: number });
            }
        }
    }

    fn current_scan(&mut self, number: u64, scan: u64) -> Option<&mut Job> {
        let listed = |job: &Job| matches!(job.record.state(), JobState::Listing | JobState::Standing);
        self.jobs.get_mut(&number).filter(|job| job.scan.running && job.scan.number == scan && listed(job))
    }

    pub(super) fn scan_progress(&mut self, step: &mut Step, number: u64, scan: u64, entries: u64) {
        if let Some(job) = self.current_scan(number, scan) {
            job.scan.entries_seen = entries;
            if job.record.state() == JobState::Standing {
                return;
            }
            step.effects.push(Effect::JobChanged { job: number });
        }
    }

    pub(super) fn scan_segment(&mut self, step: &mut Step, number: u64, scan: u64, info: v1::SegmentInfo) {
        let Some(job) = self.current_scan(number, scan) else { return };
        // The first that a look tells a standing job begins a pass.
        if job.record.state() == JobState::Standing {
            job.begin_pass(step);
        }
        let index = job.segments.len() as u32;
        let kinds = [info.to_do, info.unchanged, info.skipped, info.deleted, info.conflict, info.waiting];
        let consistent = info.blob.is_some()
            && info.entries <= 1000
            && kinds.into_iter().map(u64::from).sum::<u64>() == u64::from(info.entries)
            && info.size_kib.len() == info.to_do as usize;
        if !consistent || index >= limits::SEGMENTS_MAX {
            let problem = Problem::new(
                ErrorCode::StorageProtocol,
                format!("the gateway's listing segment {index} contradicts itself; is it of another version?"),
            );
            self.end_failed(step, number, &problem);
            return;
        }
        let record = SegmentRecord { index, info: Some(info) };
        step.put(super::record::segment_key(number, index), &record);
        job.segments.insert(index, Segment { record, cut: 0 });
    }

    pub(super) fn scan_done(&mut self, step: &mut Step, number: u64, scan: u64, done: v1::ScanDone) {
        let now = self.now;
        let Some(job) = self.current_scan(number, scan) else { return };
        job.scan.running = false;
        job.scan.tries = 0;
        (job.hold, job.hold_code) = (String::new(), String::new());
        job.looked(step, done, now);
        if job.record.state() == JobState::Standing {
            return;
        }
        job.record.listed = true;
        job.record.buckets = done.buckets.max(1);
        job.record.set_state(if job.record.paused { JobState::Paused } else { JobState::Running });
        job.record.reason = String::new();
        job.record.code = String::new();
        job.index_segments();
        step.put_job(&job.record);
        step.effects.push(Effect::JobChanged { job: number });
        self.progress_job(step, number);
    }

    pub(super) fn scan_failed(&mut self, step: &mut Step, number: u64, scan: u64, problem: &Problem) {
        let now = self.now.mono_ms;
        let Some(job) = self.current_scan(number, scan) else { return };
        job.scan.running = false;
        let mends = super::batches::mends(problem);
        if mends {
            job.scan.tries += 1;
            job.scan.not_before = now + super::batches::backoff(number, job.scan.tries) as u64;
        }
        if job.record.state() == JobState::Standing {
            self.look_failed(step, number, problem);
        } else if mends {
            let hold = format!("the listing failed: {}", super::outage::waiting(problem));
            self.hold(step, number, hold);
            if let Some(job) = self.jobs.get_mut(&number) {
                problem.code.as_str().clone_into(&mut job.hold_code);
            }
        } else {
            let problem = problem.clone();
            self.end_failed(step, number, &problem);
        }
    }

    pub(super) fn hold(&mut self, step: &mut Step, number: u64, why: String) {
        if let Some(job) = self.jobs.get_mut(&number)
            && job.hold != why
        {
            (job.hold, job.hold_code) = (why, String::new());
            step.effects.push(Effect::JobChanged { job: number });
        }
    }

    pub(super) fn cancel(&mut self, step: &mut Step, reply: ReplyId, number: u64) {
        if self.jobs.contains_key(&number) {
            self.begin_cancel(step, number, "cancelled by request");
        }
        self.answer_job(step, reply, number);
    }

    pub(super) fn begin_cancel(&mut self, step: &mut Step, number: u64, why: &str) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        if job.record.state() == JobState::Cancelling {
            return;
        }
        job.record.set_state(JobState::Cancelling);
        job.record.reason = why.to_owned();
        job.record.code = ErrorCode::Cancelled.as_str().to_owned();
        job.stop_scan(step);
        job.give_up_publishing();
        step.put_job(&job.record);
        self.stop_running(step, number, why);
        self.progress_job(step, number);
    }

    pub(super) fn pause(&mut self, step: &mut Step, reply: ReplyId, number: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && !job.record.paused
            && job.record.state() != JobState::Cancelling
        {
            job.record.paused = true;
            if job.record.listed && job.record.state() != JobState::Standing {
                job.record.set_state(JobState::Paused);
            }
            step.put_job(&job.record);
            step.effects.push(Effect::JobChanged { job: number });
        }
        self.answer_steered(step, reply, number, "paused");
    }

    pub(super) fn resume(&mut self, step: &mut Step, reply: ReplyId, number: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && job.record.paused
        {
            job.record.paused = false;
            if job.record.state() == JobState::Paused {
                job.record.set_state(JobState::Running);
            }
            // A standing job has missed looks, it may be.
            if job.record.state() == JobState::Standing {
                job.scan.not_before = self.now.mono_ms;
            }
            step.put_job(&job.record);
            step.effects.push(Effect::JobChanged { job: number });
        }
        self.answer_steered(step, reply, number, "resumed");
    }

    /// To pause or resume what has ended is a mistake, and said.
    fn answer_steered(&self, step: &mut Step, reply: ReplyId, number: u64, verb: &str) {
        if self.ended.contains_key(&number) {
            let words = format!("{} has ended and can't be {verb}; submit it again", job_id(number));
            step.effects.push(Effect::Reply { reply, answer: Err(Problem::new(ErrorCode::JobState, words)) });
        } else {
            self.answer_job(step, reply, number);
        }
    }

    fn answer_job(&self, step: &mut Step, reply: ReplyId, number: u64) {
        let answer = self.job(number).map(|job| Answer::Job(Box::new(job), true)).ok_or_else(|| {
            Problem::new(ErrorCode::JobNotFound, format!("no job {}; see `ingle jobs list`", job_id(number)))
        });
        step.effects.push(Effect::Reply { reply, answer });
    }

    pub(super) fn watch_deadlines(&mut self, step: &mut Step) {
        let now = self.now.unix_ms;
        let late: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| {
                let deadline = job.record.spec().deadline_ms;
                deadline > 0 && deadline < now && job.record.state() != JobState::Cancelling
            })
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if !step.has_room() {
                break;
            }
            self.begin_cancel(step, number, "its deadline has passed");
        }
        // Idempotency keys of jobs that ended a week ago are free again.
        let stale: Vec<u64> = self
            .ended
            .values()
            .filter(|record| !record.idempotency_key.is_empty() && record.ended_ms + limits::IDEMPOTENCY_MS < now)
            .map(|record| record.number)
            .collect();
        for number in stale.into_iter().take(16) {
            if !step.has_room() {
                break;
            }
            if let Some(record) = self.ended.get_mut(&number) {
                self.keys.remove(&std::mem::take(&mut record.idempotency_key));
                step.put_job(record);
            }
        }
        while self.ended.len() > limits::JOBS_ENDED_MAX
            && let Some((number, record)) = self.ended.pop_first()
        {
            self.keys.remove(&record.idempotency_key);
            step.changes.push(Change::Archive { prefix: job_key(number) });
            if step.changes.len() > limits::CHANGES_PER_COMMIT / 2 {
                break;
            }
        }
    }

    /// The whole job can't be done.
    pub(super) fn end_failed(&mut self, step: &mut Step, number: u64, problem: &Problem) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        if job.goes_on() {
            self.pass_failed(step, number, problem);
            return;
        }
        if job.record.state() == JobState::Cancelling {
            // Whoever cancelled it is told so, whatever else went wrong since.
            self.stop_running(step, number, "the job is cancelled");
            self.end(step, number, JobState::Cancelled);
            return;
        }
        job.record.reason = problem.message.clone();
        job.record.code = problem.code.as_str().to_owned();
        self.stop_running(step, number, "the job failed");
        self.end(step, number, JobState::Failed);
    }

    /// Tells the nodes that run batches of a job to stop.
    pub(super) fn stop_running(&self, step: &mut Step, number: u64, why: &str) {
        let Some(job) = self.jobs.get(&number) else { return };
        for batch in job.running.iter().filter_map(|batch| job.batches.get(batch)) {
            if let Some(attempt) = self.attempts.get(&batch.attempt) {
                step.effects.push(Effect::CancelAttempt {
                    node: attempt.node.clone(),
                    attempt: batch.attempt,
                    reason: why.to_owned(),
                });
            }
        }
    }

    /// Closes a job: its parts leave for the archive, its record stays for `jobs list`.
    pub(super) fn end(&mut self, step: &mut Step, number: u64, state: JobState) {
        let Some(mut job) = self.jobs.remove(&number) else { return };
        debug_assert!(ended(state), "a job ends in a state that says so");
        job.stop_scan(step);
        for batch in &job.running {
            if let Some(batch) = job.batches.get(batch) {
                self.drop_attempt(batch.attempt);
            }
        }
        job.counts.running = 0;
        job.record.set_state(state);
        job.record.ended_ms = self.now.unix_ms;
        job.record.paused = false;
        job.record.final_counts = Some(job.counts);
        step.put_job(&job.record);
        step.changes.push(Change::Archive { prefix: parts_prefix(number) });
        step.effects.push(Effect::JobChanged { job: number });
        self.ended.insert(number, job.record);
    }
}

impl JobRecord {
    /// The specification.
    ///
    /// # Panics
    /// Never: a job is recorded with its specification.
    #[must_use]
    pub fn spec(&self) -> &v1::JobSpec {
        self.spec.as_ref().expect("a job is recorded with its specification")
    }
}

impl Job {
    /// Nobody wants any more what the walk under way finds, if there is one.
    pub(super) fn stop_scan(&mut self, step: &mut Step) {
        if std::mem::take(&mut self.scan.running) {
            step.effects.push(Effect::StopScan { job: self.record.number, scan: self.scan.number });
        }
    }

    /// Counts the listing and finds what is to be cut and joined; after the walk and after a restart.
    pub(super) fn index_segments(&mut self) {
        let joins = |kind| matches!(kind, v1::JobKind::Embed);
        let kind = self.record.spec().kind();
        self.counts = v1::ItemCounts::default();
        if let Some(carried) = self.record.carried() {
            self.counts.total = carried.unchanged + carried.skipped + carried.held;
            (self.counts.unchanged, self.counts.skipped, self.counts.held) =
                (carried.unchanged, carried.skipped, carried.held);
        }
        self.uncut.clear();
        self.uncut_left = super::Left::default();
        self.joins_due.clear();
        for (index, segment) in &self.segments {
            let info = segment.info();
            self.counts.total += u64::from(info.entries - info.deleted.min(info.entries));
            self.counts.unchanged += u64::from(info.unchanged);
            self.counts.skipped += u64::from(info.skipped);
            self.counts.conflict += u64::from(info.conflict);
            self.counts.waiting += u64::from(info.waiting);
            self.counts.bytes_total += info.to_do_bytes;
            if segment.cut < info.to_do {
                self.uncut.insert(*index);
                self.uncut_left.items += u64::from(info.to_do - segment.cut);
                let kib = info.size_kib[segment.cut as usize..].iter().map(|kib| u64::from(*kib));
                self.uncut_left.bytes += kib.sum::<u64>() << 10;
            }
            if (joins(kind) && info.to_do > 0) || info.deleted > 0 {
                self.joins_due.insert(info.bucket);
            }
        }
    }
}

/// Results made with other parameters are done again: BLAKE3 over what shapes a result besides model and document.
#[must_use]
pub(super) fn parameters_digest(spec: &v1::JobSpec) -> Vec<u8> {
    use prost::Message as _;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&spec.kind.to_le_bytes());
    if let Some(options) = &spec.embed {
        hasher.update(&options.encode_to_vec());
    }
    if let Some(options) = &spec.generate {
        let mut options = options.clone();
        // A map has no order on the wire: hash its entries sorted.
        let bias = options.sampling.as_mut().map(|sampling| std::mem::take(&mut sampling.logit_bias));
        hasher.update(&options.encode_to_vec());
        let sorted: std::collections::BTreeMap<u32, f32> = bias.into_iter().flatten().collect();
        for (token, value) in sorted {
            hasher.update(&token.to_le_bytes()).update(&value.to_le_bytes());
        }
    }
    hasher.finalize().as_bytes().to_vec()
}

fn lost(number: u64) -> Problem {
    Problem::new(ErrorCode::Internal, format!("{} is known by its key but has no record", job_id(number)))
}
