//! Batches: cut from segments by measured cost, leased, settled, joined into visible files.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::{Effect, PublishedBatch};
use super::record::{BatchRecord, BatchState, SplitRecord};
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

/// Whether waiting may mend it. `EPOCH_STALE` says something of this leader, which may no longer be the one, and never of a
/// job: members tell such a leader to end, and the next one goes on.
#[must_use]
pub(super) fn mends(problem: &Problem) -> bool {
    problem.retryable() || problem.code == ErrorCode::EpochStale
}

impl Job {
    /// A batch over the next `count` entries of a segment.
    pub(super) fn cut(&mut self, segment: u32, count: u32) -> Option<u64> {
        let entry = self.segments.get_mut(&segment)?;
        let info = entry.record.info.as_ref()?;
        let first = entry.cut;
        let count = count.min(info.to_do - first);
        let bucket = info.bucket;
        entry.cut += count;
        if entry.cut >= info.to_do {
            self.uncut.remove(&segment);
        }
        let bytes = self.range_bytes(segment, None, first, count);
        self.uncut_left.items -= u64::from(count);
        self.uncut_left.bytes = self.uncut_left.bytes.saturating_sub(bytes);
        Some(self.add_batch(BatchRecord { segment, first, count, bucket, bytes, ..Default::default() }))
    }

    pub(super) fn add_batch(&mut self, mut batch: BatchRecord) -> u64 {
        batch.id = self.next_batch;
        self.next_batch += 1;
        batch.set_state(BatchState::Queued);
        if !batch.join {
            *self.bucket_open.entry(batch.bucket).or_default() += 1;
        }
        if let Some(entry) = batch.entry().filter(|_| !batch.join) {
            self.pages_opened((batch.segment, entry));
            self.ranges.entry((batch.segment, entry)).or_default().insert(batch.id);
        }
        self.queued.insert(batch.id);
        let id = batch.id;
        self.batches.insert(id, batch);
        id
    }

    /// A work batch was committed, set aside, or replaced by others that follow at once.
    pub(super) fn work_settled(&mut self, batch: &BatchRecord) {
        if let Some(open) = self.bucket_open.get_mut(&batch.bucket) {
            *open = open.saturating_sub(1);
        }
        if let Some(entry) = batch.entry() {
            self.pages_closed((batch.segment, entry));
        }
    }

    pub(super) fn size(&self, batch: &BatchRecord) -> Size {
        let output_tokens = self.record.spec().generate.as_ref().map_or(0, |g| g.max_tokens);
        let (items, pages) = if batch.takes_pages() { (0, batch.count) } else { (batch.count, 0) };
        Size { items, bytes: batch.bytes, output_tokens, pages }
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
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.ending.remove(&number);
        }
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
        let sum = sums.into_iter().map(u64::from).sum::<u64>() + complete.splits.len() as u64;
        let fault = record.and_then(|record| {
            let assigned = if record.joins_document() { 1 } else { record.count };
            let end = record.first.saturating_add(complete.count.min(assigned));
            if (!record.join || record.joins_document())
                && (sum != u64::from(complete.count) || complete.count > assigned)
            {
                Some(format!("the node says {sum} outcomes for {} of {assigned} items", complete.count))
            } else if !record.takes_documents() && !complete.splits.is_empty() {
                Some("the node splits what is no document".to_owned())
            } else {
                super::ranges::faulty_splits(&complete.splits, record.first, end)
            }
        });
        if let Some(words) = fault {
            let problem = Problem::new(ErrorCode::Internal, words);
            self.failed(step, node, number, v1::FailureKind::Node, &problem);
            return;
        }
        if let Some(attempt) = self.drop_attempt(number) {
            self.note_end(&attempt, "done");
        }
        self.storage_works(step, job);
        let busy_ms = complete.busy_us as f64 / 1e3;
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        let model = entry.record.model.clone();
        entry.running.remove(&batch);
        entry.record.busy_ms += busy_ms as u64;
        *self.principal_busy.entry(entry.record.principal.clone()).or_default() += busy_ms as u64;
        let Some(record) = entry.batches.get_mut(&batch) else { return };
        let assigned = record.count;
        if !record.join && complete.count > 0 {
            self.nodes.worked(node, &model);
        }
        if !record.join {
            if record.takes_documents() {
                entry.counts.running = entry.counts.running.saturating_sub(u64::from(assigned));
            }
            let done = complete.count.min(assigned);
            if done == 0 {
                // Drained before its first item: it waits again, free of charge.
                record.set_state(BatchState::Queued);
                entry.queued.insert(batch);
                step.put_batch(job, record);
                return;
            }
            if done < assigned {
                // Drained or preempted: what is left becomes a batch of its own, free of charge.
                let (segment, document, first, bucket) = (record.segment, record.document, record.first, record.bucket);
                // It was not reached: what it may do to a node is as unknown as before.
                let suspect = record.suspect;
                let bytes = |from, count| entry.range_bytes(segment, document.checked_sub(1), from, count);
                let rest = BatchRecord {
                    segment,
                    document,
                    first: first + done,
                    count: assigned - done,
                    bucket,
                    bytes: bytes(first + done, assigned - done),
                    suspect,
                    ..Default::default()
                };
                let kept = bytes(first, done);
                let record = entry.batches.get_mut(&batch).expect("looked up above");
                (record.count, record.bytes) = (done, kept);
                let id = entry.add_batch(rest);
                step.put_batch(job, &entry.batches[&id]);
            }
        }
        // Bytes of a document in ranges count with its ranges.
        let splits: Vec<SplitRecord> =
            complete.splits.iter().map(|split| SplitRecord { index: split.index, pages: split.pages }).collect();
        let segment = entry.batches[&batch].segment;
        let split_bytes: u64 = splits.iter().map(|split| entry.range_bytes(segment, None, split.index, 1)).sum();
        for split in &splits {
            entry.split(segment, split);
        }
        let record = entry.batches.get_mut(&batch).expect("looked up above; add_batch removes nothing");
        record.bytes = record.bytes.saturating_sub(split_bytes);
        record.splits = splits;
        record.set_state(BatchState::Committed);
        record.manifest = Some(manifest);
        record.attempt = number;
        record.committed = complete.committed;
        record.unchanged = complete.unchanged;
        record.skipped = complete.skipped;
        record.failed = complete.failed;
        record.incomplete = complete.incomplete.min(complete.committed);
        // What a batch of embeddings or of pages made becomes visible through a join alone.
        let joined = (entry.record.spec().kind() == v1::JobKind::Embed && !record.join) || record.takes_pages();
        record.outputs = if joined { 0 } else { complete.outputs.max(u32::from(complete.committed > 0)) };
        // From now on it says when to publish again.
        record.not_before_ms = 0;
        record.reason = String::new();
        record.code = String::new();
        let record = record.clone();
        if record.join || record.outputs > 0 {
            entry.publishing.insert(batch);
        }
        if record.takes_documents() || record.joins_document() {
            entry.counts.unchanged += u64::from(complete.unchanged);
            entry.counts.skipped += u64::from(complete.skipped);
            entry.counts.failed += u64::from(complete.failed);
            entry.counts.committed += u64::from(complete.committed);
            entry.counts.incomplete += u64::from(record.incomplete);
        }
        entry.settled += u64::from(record.stands_for());
        if !record.join {
            entry.counts.bytes_done += record.bytes;
            entry.work_settled(&record);
            let items = if record.takes_pages() { 0 } else { complete.count - complete.splits.len() as u32 };
            let measured = Size { items, bytes: complete.bytes, output_tokens: 0, pages: complete.pages };
            self.speeds.learn(node, &model, measured, busy_ms);
        }
        let id = record.id;
        let entry = self.jobs.get_mut(&job).expect("looked up above");
        step.put_batch(job, &entry.batches[&id]);
        if entry.publishing.contains(&id) {
            self.publish(step, job, id);
        } else if entry.record.spec().kind() != v1::JobKind::Embed && !record.takes_pages() {
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
                principal: entry.record.principal.clone(),
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
            // What began is finished when the place is used next; nobody who cancelled waits for that, or asks why it failed.
            Err(_) if entry.record.state() == JobState::Cancelling => {
                entry.publishing.remove(&batch);
                self.progress_job(step, job);
            }
            Err(problem) if problem.code == ErrorCode::ResultOutdated && record.join => {
                self.join_anew(step, job, batch, &problem);
            }
            Err(problem) if mends(&problem) => {
                record.tries += 1;
                record.not_before_ms = now.unix_ms + backoff(job ^ batch, record.tries);
                record.reason = format!("publishing failed: {}", super::outage::waiting(&problem));
                record.code = problem.code.as_str().to_owned();
                step.effects.push(Effect::JobChanged { job });
                self.storage_failed(step, job, &problem);
            }
            Err(problem) if problem.code == ErrorCode::ObjectNotFound => self.redo(step, job, batch, &problem),
            Err(problem) => self.end_failed(step, job, &problem),
            Ok(done) => {
                record.set_state(BatchState::Published);
                record.outcomes = Some(done.outcomes);
                record.reason = String::new();
                record.code = String::new();
                entry.publishing.remove(&batch);
                let (of_bucket, bucket, committed) =
                    (record.join && !record.joins_document(), record.bucket, record.committed);
                let kind = entry.record.spec().kind();
                if of_bucket {
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
                self.storage_works(step, job);
                self.pace(job);
                self.progress_job(step, job);
            }
        }
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
        if !job.record.listed || job.record.state() == JobState::Standing {
            return;
        }
        job.join_documents(step);
        let kind = job.record.spec().kind();
        // Segments are walked only for buckets of which nothing is open: the last of them, as a rule.
        let cut_off = |bucket: u32| {
            job.uncut.iter().filter_map(|index| job.segments.get(index)).any(|segment| segment.info().bucket == bucket)
        };
        let ready: Vec<u32> = job
            .joins_due
            .iter()
            .copied()
            .filter(|bucket| job.bucket_open.get(bucket).copied().unwrap_or_default() == 0 && !cut_off(*bucket))
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
            && job.uncut_pages.is_empty()
            && job.ready_documents.is_empty()
        {
            if job.record.stands() {
                self.pass_ended(step, number);
                return;
            }
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
            let pace = super::Pace { at: now, documents: job.settled, bytes: job.counts.bytes_done };
            job.pace.push_back(pace);
            while job.pace.len() > 2 && job.pace.front().is_some_and(|pace| pace.at + 60_000 < now) {
                job.pace.pop_front();
            }
            while job.pace.len() > 256 {
                job.pace.remove(1);
            }
        }
    }
}

impl Job {
    /// Documents that need nothing more of a node, counted anew.
    pub(super) fn settled_anew(&self) -> u64 {
        self.batches
            .values()
            .map(|b| match b.state() {
                BatchState::Committed | BatchState::Published | BatchState::Quarantined => u64::from(b.stands_for()),
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
