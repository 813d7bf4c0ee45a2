//! Batches: cut from segments by measured cost, leased, settled, split around poison, joined into visible files.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::{Effect, PublishedBatch};
use super::record::{BatchRecord, BatchState, Change, batch_key};
use super::{Attempt, Core, Job, Owner, Step};
use crate::core::placement::Size;
use crate::limits;

use v1::JobState;

/// Milliseconds before try number `tries`: doubling, bounded, spread by a hash so that retries don't march in step.
#[must_use]
pub(super) fn backoff(seed: u64, tries: u32) -> i64 {
    let (first, longest) = limits::BACKOFF_MS;
    let full = first.saturating_mul(1i64 << tries.saturating_sub(1).min(16)).min(longest);
    let hash = blake3::hash(&[seed.to_le_bytes(), u64::from(tries).to_le_bytes()].concat());
    // Between half and all of it.
    full / 2 + i64::from(hash.as_bytes()[0]) * (full / 2) / 255
}

impl Job {
    /// A batch over the next `count` entries of a segment.
    pub(super) fn cut(&mut self, segment: u32, count: u32) -> Option<u64> {
        let entry = self.segments.get_mut(&segment)?;
        let info = entry.record.info.as_ref()?;
        let first = entry.cut;
        let count = count.min(info.to_do - first);
        let bytes = info.size_kib[first as usize..(first + count) as usize].iter().map(|k| u64::from(*k) << 10).sum();
        let bucket = info.bucket;
        entry.cut += count;
        if entry.cut >= info.to_do {
            self.uncut.remove(&segment);
        }
        Some(self.add_batch(BatchRecord { segment, first, count, bucket, bytes, ..Default::default() }))
    }

    pub(super) fn add_batch(&mut self, mut batch: BatchRecord) -> u64 {
        batch.id = self.next_batch;
        self.next_batch += 1;
        batch.set_state(BatchState::Queued);
        if !batch.join {
            *self.bucket_open.entry(batch.bucket).or_default() += 1;
        }
        self.queued.insert(batch.id);
        let id = batch.id;
        self.batches.insert(id, batch);
        id
    }

    fn work_settled(&mut self, bucket: u32) {
        if let Some(open) = self.bucket_open.get_mut(&bucket) {
            *open = open.saturating_sub(1);
        }
    }

    pub(super) fn size(&self, batch: &BatchRecord) -> Size {
        let output_tokens = self.record.spec().generate.as_ref().map_or(0, |g| g.max_tokens);
        Size { items: batch.count, bytes: batch.bytes, output_tokens }
    }
}

impl Core {
    pub(super) fn drop_attempt(&mut self, number: u64) -> Option<Attempt> {
        let attempt = self.attempts.remove(&number)?;
        if let Some(node) = self.nodes.get_mut(&attempt.node) {
            node.attempts.remove(&number);
        }
        Some(attempt)
    }

    pub(super) fn complete(&mut self, step: &mut Step, node: &NodeId, complete: v1::Complete) {
        let Some(token) = &complete.token else { return };
        let number = token.attempt;
        // A late attempt from a node believed dead, or a replay: its staged files are never looked at.
        let Some(attempt) = self.attempts.get(&number).filter(|attempt| attempt.node == *node) else { return };
        let Owner::Batch { job, batch } = attempt.owner else { return };
        let Some(manifest) = complete.manifest.clone() else {
            let problem = Problem::new(ErrorCode::Internal, "the node completed a batch without a manifest");
            self.failed(step, node, number, v1::FailureKind::Node, &problem);
            return;
        };
        // Every entry it settled has one outcome: a sum that differs would never add up again.
        let sums = [complete.committed, complete.unchanged, complete.skipped, complete.failed];
        let record = self.jobs.get(&job).and_then(|job| job.batches.get(&batch));
        let (assigned, is_join) = record.map_or((0, true), |record| (record.count, record.join));
        let sum: u64 = sums.into_iter().map(u64::from).sum();
        if !is_join && (sum != u64::from(complete.count) || complete.count > assigned) {
            let words = format!("the node says {sum} outcomes for {} of {assigned} documents", complete.count);
            let problem = Problem::new(ErrorCode::Internal, words);
            self.failed(step, node, number, v1::FailureKind::Node, &problem);
            return;
        }
        self.drop_attempt(number);
        let busy_ms = complete.busy_us as f64 / 1e3;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let model = entry.record.model.clone();
        entry.running.remove(&batch);
        entry.record.busy_ms += busy_ms as u64;
        *self.principal_busy.entry(entry.record.principal.clone()).or_default() += busy_ms as u64;
        let Some(record) = entry.batches.get_mut(&batch) else { return };
        let assigned = record.count;
        if !record.join {
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(assigned));
            let done = complete.count.min(assigned);
            if done < assigned {
                // Drained or preempted: what is left becomes a batch of its own, free of charge.
                let info = entry.segments.get(&record.segment).map(super::Segment::info);
                let bytes = |first: u32, end: u32| {
                    info.map_or(0, |i| {
                        i.size_kib[first as usize..end as usize].iter().map(|k| u64::from(*k) << 10).sum()
                    })
                };
                let rest = BatchRecord {
                    segment: record.segment,
                    first: record.first + done,
                    count: assigned - done,
                    bucket: record.bucket,
                    bytes: bytes(record.first + done, record.first + assigned),
                    ..Default::default()
                };
                record.count = done;
                record.bytes = bytes(record.first, record.first + done);
                if done == 0 {
                    record.count = assigned;
                    record.bytes = rest.bytes;
                    record.set_state(BatchState::Queued);
                    entry.queued.insert(batch);
                    step.put_batch(job, record);
                    return;
                }
                let id = entry.add_batch(rest);
                step.put_batch(job, &entry.batches[&id]);
            }
        }
        let record = entry.batches.get_mut(&batch).expect("looked up above; add_batch removes nothing");
        record.set_state(BatchState::Committed);
        record.manifest = Some(manifest);
        record.attempt = number;
        record.committed = complete.committed;
        record.unchanged = complete.unchanged;
        record.skipped = complete.skipped;
        record.failed = complete.failed;
        // What a batch of embeddings made becomes visible through its bucket's join alone.
        let joined = entry.record.spec().kind() == v1::JobKind::Embed && !record.join;
        record.outputs = if joined { 0 } else { complete.outputs.max(u32::from(complete.committed > 0)) };
        // From now on it says when to publish again.
        record.not_before_ms = 0;
        record.reason = String::new();
        record.code = String::new();
        let (id, bucket, is_join, size, outputs) =
            (record.id, record.bucket, record.join, record.bytes, record.outputs);
        if is_join {
            entry.publishing.insert(id);
        } else {
            entry.counts.unchanged += u64::from(complete.unchanged);
            entry.counts.skipped += u64::from(complete.skipped);
            entry.counts.failed += u64::from(complete.failed);
            entry.counts.committed += u64::from(complete.committed);
            entry.counts.bytes_done += size;
            entry.work_settled(bucket);
            if outputs > 0 {
                entry.publishing.insert(id);
            }
            let measured = Size { items: complete.count, bytes: complete.bytes, output_tokens: 0 };
            self.speeds.learn(node, &model, measured, busy_ms);
        }
        let entry = self.jobs.get_mut(&job).expect("looked up above");
        step.put_batch(job, &entry.batches[&id]);
        if entry.publishing.contains(&id) {
            self.publish(step, job, id);
        } else if entry.record.spec().kind() == v1::JobKind::Generate {
            // Nothing to make visible (all failed, skipped or unchanged): it is done.
            let record = entry.batches.get_mut(&id).expect("looked up above");
            record.set_state(BatchState::Published);
            step.put_batch(job, record);
        }
        self.pace(job);
        self.progress_job(step, job);
    }

    /// Asks the gateway to make a committed manifest visible.
    pub(super) fn publish(&mut self, step: &mut Step, job: u64, batch: u64) {
        let Some(entry) = self.jobs.get(&job) else { return };
        let Some(record) = entry.batches.get(&batch) else { return };
        let spec = entry.record.spec();
        step.effects.push(Effect::Publish {
            job,
            batch,
            request: Box::new(v1::PublishRequest {
                epoch: Some(self.epoch.into()),
                job_id: ingle_proto::job::job_id(job).to_string(),
                attempt: record.attempt,
                place: spec.output.clone(),
                manifest: record.manifest.clone(),
                model_digest: entry.record.model_digest.clone().into(),
                parameters_digest: super::jobs::parameters_digest(spec).into(),
                kind: spec.kind,
            }),
        });
    }

    pub(super) fn published(
        &mut self,
        step: &mut Step,
        job: u64,
        batch: u64,
        attempt: u64,
        result: Result<PublishedBatch, Problem>,
    ) {
        let now = self.now;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(record) = entry.batches.get_mut(&batch).filter(|record| record.attempt == attempt) else { return };
        if record.state() != BatchState::Committed || !entry.publishing.contains(&batch) {
            return;
        }
        match result {
            Err(problem) if problem.retryable() => {
                record.tries += 1;
                record.not_before_ms = now.unix_ms + backoff(job ^ batch, record.tries);
                record.reason = format!("publishing failed ({problem}); it is tried again");
                record.code = problem.code.as_str().to_owned();
                step.effects.push(Effect::JobChanged { job });
            }
            Err(problem) => self.end_failed(step, job, &problem),
            Ok(done) => {
                record.set_state(BatchState::Published);
                record.outcomes = Some(done.outcomes);
                record.reason = String::new();
                record.code = String::new();
                entry.publishing.remove(&batch);
                let (is_join, bucket, committed) = (record.join, record.bucket, record.committed);
                let kind = entry.record.spec().kind();
                if is_join {
                    let documents: u64 = if kind == v1::JobKind::Embed { entry.bucket_documents(bucket) } else { 0 };
                    let conflict = if done.conflict > 0 { documents } else { 0 };
                    let deleted = entry.bucket_deleted(bucket);
                    let record = entry.batches.get_mut(&batch).expect("looked up above");
                    record.conflict = conflict as u32;
                    record.deleted = if done.conflict > 0 { 0 } else { deleted as u32 };
                    entry.counts.deleted += u64::from(record.deleted);
                    entry.counts.conflict += conflict;
                    entry.counts.published += documents - conflict;
                    entry.counts.committed = entry.counts.committed.saturating_sub(documents);
                } else {
                    let conflict = u64::from(done.conflict.min(committed));
                    record.conflict = conflict as u32;
                    entry.counts.conflict += conflict;
                    entry.counts.published += u64::from(committed) - conflict;
                    entry.counts.committed = entry.counts.committed.saturating_sub(u64::from(committed));
                }
                step.put_batch(job, &entry.batches[&batch]);
                self.pace(job);
                self.progress_job(step, job);
            }
        }
    }

    pub(super) fn failed(
        &mut self,
        step: &mut Step,
        node: &NodeId,
        number: u64,
        kind: v1::FailureKind,
        problem: &Problem,
    ) {
        if self.attempts.get(&number).is_none_or(|attempt| attempt.node != *node) {
            return;
        }
        let Some(attempt) = self.drop_attempt(number) else { return };
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
            Owner::Call(call) => self.call_failed(step, call, kind, problem),
            Owner::Batch { job, batch } => match kind {
                v1::FailureKind::Input => self.end_failed(step, job, problem),
                v1::FailureKind::Item | v1::FailureKind::Unspecified => {
                    self.charge(step, job, batch, problem, false);
                }
                v1::FailureKind::Storage
                | v1::FailureKind::Node
                | v1::FailureKind::Model
                | v1::FailureKind::Cancelled => {
                    let free = matches!(kind, v1::FailureKind::Cancelled);
                    self.requeue(step, job, batch, problem, free);
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
        if !record.join {
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
        }
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

    /// Something in the batch did it: halve until the poisonous item stands alone, then count against it.
    pub(super) fn charge(&mut self, step: &mut Step, job: u64, batch: u64, problem: &Problem, died: bool) {
        let now = self.now.unix_ms;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let Some(record) = entry.batches.get(&batch).filter(|b| b.state() == BatchState::Running) else { return };
        if record.count > 1 {
            let record = record.clone();
            entry.running.remove(&batch);
            entry.batches.remove(&batch);
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
            entry.work_settled(record.bucket);
            step.changes.push(Change::Delete { key: batch_key(job, batch) });
            let half = record.count.div_ceil(2);
            for (first, count) in [(record.first, half), (record.first + half, record.count - half)] {
                let info = entry.segments[&record.segment].info();
                let bytes =
                    info.size_kib[first as usize..(first + count) as usize].iter().map(|k| u64::from(*k) << 10).sum();
                let part = BatchRecord {
                    segment: record.segment,
                    first,
                    count,
                    bucket: record.bucket,
                    bytes,
                    reason: format!("split after: {}", problem.message),
                    code: problem.code.as_str().to_owned(),
                    suspect: died,
                    ..Default::default()
                };
                let id = entry.add_batch(part);
                step.put_batch(job, &entry.batches[&id]);
            }
            step.effects.push(Effect::JobChanged { job });
            return;
        }
        let record = entry.batches.get_mut(&batch).expect("looked up above");
        record.failures += u32::from(!died);
        record.deaths += u32::from(died);
        record.suspect = died && !record.join;
        record.reason = problem.message.clone();
        record.code = problem.code.as_str().to_owned();
        record.node.clear();
        entry.running.remove(&batch);
        if !record.join {
            entry.counts.running = entry.counts.running.saturating_sub(u64::from(record.count));
        }
        if record.failures >= limits::ITEM_FAILURES_MAX || record.deaths >= limits::ITEM_DEATHS_MAX {
            if record.join {
                // A join that can't be made is the job's own failure: its documents can't become visible.
                step.put_batch(job, record);
                let problem = Problem::new(problem.code, format!("results can't be joined: {}", problem.message));
                self.end_failed(step, job, &problem);
                return;
            }
            record.set_state(BatchState::Quarantined);
            entry.counts.quarantined += u64::from(record.count);
            let bucket = record.bucket;
            entry.work_settled(bucket);
        } else {
            record.set_state(BatchState::Queued);
            let tries = record.failures + record.deaths;
            record.not_before_ms = now + backoff(job ^ batch, tries);
            entry.queued.insert(batch);
        }
        step.put_batch(job, &entry.batches[&batch]);
        step.effects.push(Effect::JobChanged { job });
        self.progress_job(step, job);
    }

    /// Makes the joins that are due and ends the job if nothing is left.
    pub(super) fn progress_job(&mut self, step: &mut Step, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        step.effects.push(Effect::JobChanged { job: number });
        if job.record.state() == JobState::Cancelling {
            if job.running.is_empty() && job.publishing.is_empty() {
                self.end(step, number, JobState::Cancelled);
            }
            return;
        }
        if !job.record.listed {
            return;
        }
        let kind = job.record.spec().kind();
        let cut_off: std::collections::BTreeSet<u32> =
            job.uncut.iter().filter_map(|index| job.segments.get(index)).map(|s| s.info().bucket).collect();
        let ready: Vec<u32> = job
            .joins_due
            .iter()
            .copied()
            .filter(|bucket| !cut_off.contains(bucket) && job.bucket_open.get(bucket).copied().unwrap_or_default() == 0)
            .take(if step.has_room() { limits::CHANGES_PER_COMMIT / 4 } else { 4 })
            .collect();
        for bucket in ready {
            job.joins_due.remove(&bucket);
            let anything = job.bucket_deleted(bucket) > 0
                || (kind == v1::JobKind::Embed
                    && job.batches.values().any(|b| {
                        !b.join
                            && b.bucket == bucket
                            && b.state() == BatchState::Committed
                            && b.committed + b.unchanged > 0
                    }));
            if anything {
                let id = job.add_batch(BatchRecord { join: true, bucket, ..Default::default() });
                step.put_batch(number, &job.batches[&id]);
            }
        }
        if job.uncut.is_empty()
            && job.queued.is_empty()
            && job.running.is_empty()
            && job.publishing.is_empty()
            && job.joins_due.is_empty()
        {
            let bad = job.counts.failed + job.counts.quarantined + job.counts.conflict;
            let state = if bad == 0 { JobState::Succeeded } else { JobState::Failed };
            if bad > 0 {
                job.record.reason = format!(
                    "{} failed, {} quarantined, {} in conflict; see `ingle jobs items {}`",
                    job.counts.failed,
                    job.counts.quarantined,
                    job.counts.conflict,
                    ingle_proto::job::job_id(number)
                );
            }
            self.end(step, number, state);
        }
    }

    /// Publishes again what failed and is due; asked at every tick and after a restart.
    pub(super) fn retry_publishing(&mut self, step: &mut Step) {
        let now = self.now.unix_ms;
        let due: Vec<(u64, u64)> = self
            .jobs
            .iter()
            .flat_map(|(number, job)| job.publishing.iter().map(move |batch| (*number, *batch)))
            .filter(|(number, batch)| {
                let record = &self.jobs[number].batches[batch];
                record.not_before_ms > 0 && record.not_before_ms <= now
            })
            .collect();
        for (number, batch) in due {
            if let Some(record) = self.jobs.get_mut(&number).and_then(|job| job.batches.get_mut(&batch)) {
                record.not_before_ms = 0;
            }
            self.publish(step, number, batch);
        }
    }

    fn pace(&mut self, number: u64) {
        let now = self.now.mono_ms;
        if let Some(job) = self.jobs.get_mut(&number) {
            let settled = job.settled();
            job.pace.push_back((now, settled));
            while job.pace.len() > 2 && job.pace.front().is_some_and(|(at, _)| at + 60_000 < now) {
                job.pace.pop_front();
            }
            while job.pace.len() > 256 {
                job.pace.remove(1);
            }
        }
    }
}

impl Job {
    /// Documents that need nothing more of a node.
    pub(super) fn settled(&self) -> u64 {
        self.batches
            .values()
            .filter(|b| !b.join)
            .map(|b| match b.state() {
                BatchState::Committed | BatchState::Published | BatchState::Quarantined => u64::from(b.count),
                _ => 0,
            })
            .sum()
    }

    pub(super) fn bucket_documents(&self, bucket: u32) -> u64 {
        self.batches
            .values()
            .filter(|b| !b.join && b.bucket == bucket && b.state() == BatchState::Committed)
            .map(|b| u64::from(b.committed))
            .sum()
    }

    pub(super) fn bucket_deleted(&self, bucket: u32) -> u64 {
        self.segments
            .values()
            .map(super::Segment::info)
            .filter(|i| i.bucket == bucket)
            .map(|i| u64::from(i.deleted))
            .sum()
    }
}
