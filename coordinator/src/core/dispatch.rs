//! What runs next, and where: interactive before batch with ageing, fair by principal, earliest expected finish.

use std::collections::BTreeMap;

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::{BatchWork, CallId, Effect, Work};
use super::models::UNREAD;
use super::nodes::{Health, NodeEntry};
use super::placement::{Decision, Size, Speeds, Terms, tie};
use super::ranges::DocumentKey;
use super::record::BatchState;
use super::{Attempt, Core, Job, Owner, Step};
use crate::limits;

use v1::JobState;

/// What is cut next.
enum Cut {
    /// So many entries of a segment.
    Entries(u32, u32),
    /// So many pages of a document.
    Pages(DocumentKey, u32),
}

/// After this long in the queue batch work counts as interactive, milliseconds.
const AGEING_MS: u64 = 10 * 60_000;
/// How much of a batch is in the way of a call that enters beside it.
const BATCHES_BESIDE_CALLS: f64 = 0.05;
/// The most of it, as a share of what the call itself takes: between alike nodes it decides, against another call never.
const BATCHES_BESIDE_CALLS_MAX: f64 = 0.05;

impl Core {
    /// Hands out work until no node takes more.
    pub(super) fn schedule(&mut self, step: &mut Step) {
        self.schedule_calls(step);
        if self.braked() {
            return;
        }
        // A commit is bounded: what doesn't fit waits for the next event, at the latest a tick.
        while step.has_room() {
            if !self.schedule_one(step) {
                break;
            }
        }
        let now = self.now;
        for job in self.jobs.values_mut() {
            if job.waiting_since.is_none() && job.has_work(now.unix_ms) {
                job.waiting_since = Some(now.mono_ms);
            }
        }
    }

    fn schedule_one(&mut self, step: &mut Step) -> bool {
        let now = self.now;
        let mut jobs: Vec<(bool, u64, u64)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.record.state() == JobState::Running && job.has_work(now.unix_ms))
            .filter(|(_, job)| job.storage_may_be_tried(now.unix_ms))
            .map(|(number, job)| {
                let interactive = job.record.spec().priority() == v1::Priority::Interactive;
                let waited = job.waiting_since.map_or(0, |since| now.mono_ms.saturating_sub(since));
                let busy = self.principal_busy.get(&job.record.principal).copied().unwrap_or_default();
                (!(interactive || waited > AGEING_MS), busy, *number)
            })
            .collect();
        jobs.sort_unstable();
        jobs.into_iter().any(|(_, _, number)| step.has_room() && self.dispatch_batch(step, number))
    }

    /// Nodes that could run this model now, with why the others can't.
    pub(super) fn candidates(&self, model: &str) -> Vec<(NodeId, Result<(), String>)> {
        self.nodes
            .iter()
            .filter(|(_, node)| !node.left)
            .map(|(id, node)| (id.clone(), self.eligible(node, model)))
            .collect()
    }

    pub(super) fn eligible(&self, node: &NodeEntry, model: &str) -> Result<(), String> {
        if node.draining {
            return Err("it is draining".into());
        }
        if !node.connected {
            return Err("it is not connected".into());
        }
        if node.health(self.now) != Health::Ready {
            return Err("it has been silent for over 3 s".into());
        }
        if node.rest_until > self.now.mono_ms {
            return Err("it rests after a fault of its own".into());
        }
        if let Some(problem) = node.broken_models.get(model) {
            return Err(format!("the model failed there: {problem}"));
        }
        if let Some(why) = node.breakers.refusal(model, self.now.mono_ms, |number| self.attempts.contains_key(&number))
        {
            return Err(why);
        }
        if node.stalls.contains_key(model) {
            return Err("its engine stands still in the middle of a step".into());
        }
        let Some(info) = node.model(model) else {
            return Err(if node.fetches(model) { UNREAD } else { "it doesn't see the model" }.into());
        };
        let capacity = &node.attached.capacity;
        let fit = super::placement::fit(info, info.context.min(4096), 1);
        if capacity.memory_budget_bytes > 0 && fit.needed > capacity.memory_budget_bytes {
            return Err(format!("it needs {} bytes and the node has {}", fit.needed, capacity.memory_budget_bytes));
        }
        Ok(())
    }

    /// The terms of work of this size on a node that can run the model.
    pub(super) fn terms(&self, id: &NodeId, model: &str, size: Size) -> Terms {
        let Some(node) = self.nodes.get(id) else { return Terms::default() };
        let Some(info) = node.model(model) else { return Terms::default() };
        let loaded = node.loaded(model);
        let (prefill, output) = self.speeds.estimate(id, &node.attached.capacity, info, loaded, size);
        let slots = f64::from(node.attached.capacity.slots.max(1));
        let (calls, batches) = self.backlogs(node);
        let backlog = calls + batches;
        Terms { backlog: backlog / slots, load: Speeds::load_ms(info, loaded.is_some()), prefill, output }
    }

    fn dispatch_batch(&mut self, step: &mut Step, number: u64) -> bool {
        let now = self.now;
        let Some(job) = self.jobs.get(&number) else { return false };
        let model = job.record.model.clone();
        // Items that a node died with run alone: a node is emptied for them, the others go on with the rest.
        let suspect = job.due(now.unix_ms, true);
        let ward = suspect.and_then(|_| {
            let wards = self.may_try(number, self.ward_nodes(&model));
            wards.into_iter().find(|node| self.is_empty(node))
        });
        let fit = match &ward {
            Some(node) => vec![node.clone()],
            None => {
                let Some(fit) = self.fit_nodes(step, number, &model) else { return false };
                let wards = self.wards();
                let suspicious = |id: &NodeId| self.batches_on(id).any(|batch| batch.suspect);
                let mut fit = self.may_try(number, fit);
                fit.retain(|id| !wards.contains(id) && !suspicious(id));
                fit
            }
        };
        let Some(job) = self.jobs.get(&number) else { return false };
        if fit.is_empty() {
            return false;
        }
        // The next batch: one that waits already, else a new one cut to what the nodes have shown they can do.
        let waiting = if ward.is_some() { suspect } else { job.due(now.unix_ms, false) };
        let (probe, cut) = match waiting {
            Some(batch) => (job.size(&job.batches[&batch]), None),
            None => match self.next_cut(job, &model, &fit) {
                Some((cut, size)) => (size, Some(cut)),
                None => return false,
            },
        };
        let rest = job.remaining_bytes() as f64 / (probe.bytes.max(1) as f64);
        let seed = number.wrapping_mul(0x9E37_79B9).wrapping_add(job.next_batch);
        let mut scored: Vec<(f64, u64, NodeId, Terms, bool)> = fit
            .iter()
            .map(|id| {
                let terms = self.terms(id, &model, probe);
                let open = self.nodes.get(id).is_some_and(|n| n.attempts.len() < n.attempts_max());
                (terms.finish(), tie(seed, id), id.clone(), terms, open)
            })
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // A slower idle node helps as long as it is done before the others would be through with everything.
        let best = &scored[0];
        let horizon = best.0 + rest * (best.3.prefill + best.3.output);
        let Some(chosen) = scored.iter().find(|(finish, _, _, _, open)| *open && *finish <= horizon + 1.0) else {
            return false;
        };
        let node = chosen.2.clone();
        let decision = Decision {
            terms: chosen.3,
            next: scored.iter().find(|other| other.2 != node).map(|other| (other.2.clone(), other.0)),
            of: scored.len(),
        };
        let expected_ms = chosen.3.load + chosen.3.prefill + chosen.3.output;
        let held = chosen.3.load <= 0.0;
        let made = self.jobs.get_mut(&number).and_then(|job| match cut {
            Some(Cut::Entries(segment, count)) => job.cut(segment, count),
            Some(Cut::Pages(key, count)) => job.cut_pages(key, count),
            None => waiting,
        });
        let Some(batch) = made else { return false };
        let attempt = self.new_attempt(step);
        let allowed_ms = limits::ATTEMPT_FLOOR_MS.max((expected_ms * 20.0).min(8.64e7) as u64);
        self.note_use(&model);
        let Some(job) = self.jobs.get_mut(&number) else { return false };
        let queued_ms = job.waiting_since.take().map_or(0, |since| now.mono_ms.saturating_sub(since));
        job.hold = String::new();
        job.queued.remove(&batch);
        job.running.insert(batch);
        let Some(record) = job.batches.get_mut(&batch) else { return false };
        record.set_state(BatchState::Running);
        record.attempt = attempt;
        record.node = node.to_string();
        record.allowed_ms = allowed_ms;
        if record.takes_documents() {
            job.counts.running += u64::from(record.count);
        }
        step.put_batch(number, record);
        if job.record.started_ms == 0 {
            job.record.started_ms = now.unix_ms;
            step.put_job(&job.record);
        }
        let (join, bucket, first, count, segment) =
            (record.join, record.bucket, record.first, record.count, record.segment);
        let (entry, of_pages) = (record.entry(), record.takes_pages());
        let (parts, document) = match entry.filter(|_| join) {
            Some(entry) => {
                let (parts, document) = job.document_parts((segment, entry));
                (parts, Some(document))
            }
            None => (Vec::new(), None),
        };
        let in_bucket = |index: &u32| job.segments[index].info().bucket == bucket;
        let blobs = |indices: Vec<u32>| -> Vec<v1::BlobRef> {
            indices.iter().filter_map(|index| job.segments[index].info().blob.clone()).collect()
        };
        let work = BatchWork {
            batch,
            spec: job.record.spec().clone(),
            principal: job.record.principal.clone(),
            bucket,
            first: if of_pages { entry.unwrap_or_default() } else { first },
            count: if of_pages { 1 } else { count },
            segments: if join && document.is_none() {
                blobs(job.segments.keys().copied().filter(in_bucket).collect())
            } else {
                blobs(vec![segment])
            },
            manifests: if document.is_some() {
                parts
            } else if join && job.record.spec().kind() == v1::JobKind::Embed {
                job.batches
                    .values()
                    .filter(|b| !b.join && b.bucket == bucket && b.state() == BatchState::Committed)
                    .filter_map(|b| b.manifest.clone())
                    .collect()
            } else {
                Vec::new()
            },
            join,
            pages: of_pages.then_some(v1::PageRange { first, count }),
            document,
        };
        let alone = self.is_empty(&node);
        self.joined_by_another(&node);
        let Some(job) = self.jobs.get(&number) else { return false };
        let priority = job.record.spec().priority();
        let model_ref = v1::ModelRef { name: model, digest: job.record.model_digest.clone().into() };
        self.attempts.insert(
            attempt,
            Attempt {
                owner: Owner::Batch { job: number, batch },
                node: node.clone(),
                started: now.mono_ms,
                expected_ms,
                deadline: now.mono_ms + allowed_ms,
                bytes_done: 0,
                items_done: 0,
                unconfirmed: false,
                decision: Some(decision),
                alone,
                seen: false,
            },
        );
        if let Some(entry) = self.nodes.get_mut(&node) {
            entry.attempts.insert(attempt);
            entry.breakers.sent(&model_ref.name, attempt);
        }
        let kind = self.kind_of(&Owner::Batch { job: number, batch });
        self.tally.place(kind, held);
        step.effects.push(Effect::Dispatch {
            node,
            attempt,
            allowed_ms,
            model: model_ref,
            priority,
            queued_ms,
            work: Work::Batch { job: number, batch: Box::new(work) },
        });
        step.effects.push(Effect::JobChanged { job: number });
        true
    }

    /// Nodes that a job's next batch may be weighed for: all that are fit, or some of many. `None` where there is nothing to be
    /// had now; the job says why, or has failed for good.
    fn fit_nodes(&mut self, step: &mut Step, number: u64, model: &str) -> Option<Vec<NodeId>> {
        if let Some(some) = self.some_of_many(model) {
            if !some.is_empty() {
                return Some(some);
            }
            if !self.looks_at_all() {
                return None;
            }
        }
        let candidates = self.candidates(model);
        let fit: Vec<NodeId> = candidates.iter().filter(|(_, why)| why.is_ok()).map(|(id, _)| id.clone()).collect();
        if !fit.is_empty() {
            return Some(fit);
        }
        if let Some(problem) = self.broken_everywhere(model) {
            self.end_failed(step, number, &problem);
        } else {
            let hold = self.why_no_node(&candidates, model);
            self.hold(step, number, hold);
        }
        None
    }

    /// Where and how much to cut next: about [`limits::BATCH_TARGET_MS`] on the fastest node, and never so much that the
    /// others have nothing left to do.
    fn next_cut(&self, job: &Job, model: &str, fit: &[NodeId]) -> Option<(Cut, Size)> {
        let expected = |size: Size| {
            let of = |id: &NodeId| {
                let terms = self.terms(id, model, size);
                terms.prefill + terms.output
            };
            fit.iter().map(of).fold(f64::INFINITY, f64::min)
        };
        // Documents that were begun come first: their results are the nearest.
        if let Some((key, pages, size)) = job.next_pages(fit.len(), expected) {
            return Some((Cut::Pages(key, pages), size));
        }
        let segment = *job.uncut.first()?;
        let entry = job.segments.get(&segment)?;
        let info = entry.info();
        let left = (info.to_do - entry.cut) as usize;
        let output_tokens = job.record.spec().generate.as_ref().map_or(0, |g| g.max_tokens);
        let measured = fit.iter().any(|id| self.speeds.measured(id, model));
        let ceiling = if measured { limits::BATCH_ITEMS_MAX } else { 4 } as usize;
        // The last of a job is shared out, but not in crumbs.
        let fair = job.uncut_items().div_ceil(2 * fit.len().max(1) as u64).max(1);
        // Sizes of the first so many entries. More of them never take less time: the last that fits is found by halving.
        let mut sizes: Vec<Size> = Vec::new();
        let mut size = Size { items: 0, bytes: 0, output_tokens, pages: 0 };
        for kib in info.size_kib[entry.cut as usize..].iter().take(left.min(ceiling)) {
            size = Size { items: size.items + 1, bytes: size.bytes + (u64::from(*kib) << 10), ..size };
            sizes.push(size);
        }
        let most =
            |size: &Size| if u64::from(size.items) <= fair { limits::BATCH_TARGET_MS } else { limits::BATCH_LEAST_MS };
        let fits = sizes.partition_point(|size| size.items == 1 || expected(*size) <= most(size));
        let size = *sizes.get(fits.checked_sub(1)?)?;
        Some((Cut::Entries(segment, size.items), size))
    }

    /// Every node that sees the model has failed to run it, and none is about to have it: waiting won't help.
    fn broken_everywhere(&self, model: &str) -> Option<Problem> {
        if self.coming(model).is_some() {
            return None;
        }
        let mut seen = self.nodes.iter().filter(|(_, node)| !node.left && node.model(model).is_some()).peekable();
        let (id, first) = seen.peek()?;
        let why = format!("model {model} failed on every node that has it; {id}: {}", first.broken_models.get(model)?);
        seen.all(|(_, node)| node.broken_models.contains_key(model))
            .then(|| Problem::new(ErrorCode::ModelUnusable, why))
    }

    fn why_no_node(&self, candidates: &[(NodeId, Result<(), String>)], model: &str) -> String {
        match candidates {
            [] => "no node has joined yet".into(),
            [(id, Err(why))] => format!("node {id} can't run {model} now: {why}"),
            many => {
                let (id, why) = many.iter().find_map(|(id, r)| r.as_ref().err().map(|w| (id, w))).expect("none is fit");
                format!("none of {} nodes can run {model} now; {id}: {why}", many.len())
            }
        }
    }

    fn schedule_calls(&mut self, step: &mut Step) {
        let waiting: Vec<CallId> = self.calls.iter().filter(|(_, c)| c.attempt.is_none()).map(|(id, _)| *id).collect();
        // What was asked for and found no place, with the model for it if that is known: a pass only takes places.
        let mut unplaced: BTreeMap<(i32, String), Option<String>> = BTreeMap::new();
        for id in waiting {
            let Some(call) = self.calls.get(&id) else { continue };
            let (kind, name, size, since) = (call.kind, call.model.clone(), call.size, call.since);
            let asked = (kind as i32, name.clone());
            match unplaced.get(&asked) {
                Some(Some(model)) => {
                    self.refuse_hopeless(step, id, model);
                    continue;
                }
                Some(None) => {
                    self.refuse_early(step, id, &name);
                    continue;
                }
                None => {}
            }
            let (model, digest) = match self.choose_model(kind, &name) {
                Err(problem) => {
                    self.calls.remove(&id);
                    step.effects.push(Effect::CallFailed { call: id, problem });
                    continue;
                }
                Ok(None) => {
                    self.refuse_early(step, id, &name);
                    unplaced.insert(asked, None);
                    continue;
                }
                Ok(Some(chosen)) => chosen,
            };
            let best = self
                .candidates(&model)
                .into_iter()
                .filter(|(_, why)| why.is_ok())
                .filter(|(node, _)| {
                    // A call enters beside batch work; only calls count against calls.
                    self.nodes.get(node).is_some_and(|entry| {
                        let calls = entry
                            .attempts
                            .iter()
                            .filter(|a| self.attempts.get(a).is_some_and(|a| matches!(a.owner, Owner::Call(_))));
                        calls.count() < entry.call_places(&model)
                    })
                })
                .map(|(node, _)| {
                    let terms = self.call_terms(&node, &model, size);
                    (terms, tie(id.0, &node), node)
                })
                .min_by(|a, b| a.0.finish().total_cmp(&b.0.finish()).then(a.1.cmp(&b.1)));
            let Some((terms, _, node)) = best else {
                self.refuse_hopeless(step, id, &model);
                unplaced.insert(asked, Some(model));
                continue;
            };
            let attempt = self.new_attempt(step);
            self.note_use(&model);
            self.attempts.insert(
                attempt,
                Attempt {
                    owner: Owner::Call(id),
                    node: node.clone(),
                    started: self.now.mono_ms,
                    expected_ms: terms.load + terms.prefill + terms.output,
                    deadline: self.now.mono_ms + limits::CALL_WITHIN_MS,
                    bytes_done: 0,
                    items_done: 0,
                    unconfirmed: false,
                    decision: Some(Decision { terms, next: None, of: 1 }),
                    alone: false,
                    seen: false,
                },
            );
            if let Some(entry) = self.nodes.get_mut(&node) {
                entry.attempts.insert(attempt);
                entry.breakers.sent(&model, attempt);
            }
            if let Some(call) = self.calls.get_mut(&id) {
                call.attempt = Some(attempt);
                call.model = model.clone();
            }
            let kind = self.kind_of(&Owner::Call(id));
            self.tally.place(kind, terms.load <= 0.0);
            step.effects.push(Effect::Dispatch {
                node,
                attempt,
                allowed_ms: limits::CALL_WITHIN_MS,
                model: v1::ModelRef { name: model, digest: digest.into() },
                priority: v1::Priority::Interactive,
                queued_ms: self.now.mono_ms.saturating_sub(since),
                work: Work::Call { call: id },
            });
        }
    }

    /// The terms of a call on a node that can run the model. It enters beside batch work between two steps of the engine:
    /// other calls are in its way, batches only a little, and never so much that calls crowd where there are none. Calls
    /// share a node equally, step by step, and nobody knows which ends first, so that each takes as much from this one as it
    /// takes itself.
    fn call_terms(&self, id: &NodeId, model: &str, size: Size) -> Terms {
        let terms = self.terms(id, model, size);
        let own = terms.prefill + terms.output;
        let Some(node) = self.nodes.get(id) else { return Terms { backlog: 0.0, ..terms } };
        let of_calls =
            |number: &&u64| self.attempts.get(number).is_some_and(|attempt| matches!(attempt.owner, Owner::Call(_)));
        // What takes no time by its figures takes some.
        let calls = own.max(1.0) * node.attempts.iter().filter(of_calls).count() as f64;
        let (_, batches) = self.backlogs(node);
        Terms { backlog: calls + (batches * BATCHES_BESIDE_CALLS).min(own * BATCHES_BESIDE_CALLS_MAX), ..terms }
    }

    /// What a node still has to do, as far as anybody knows, milliseconds: of calls, and of batches.
    fn backlogs(&self, node: &NodeEntry) -> (f64, f64) {
        let mut backlogs = (0.0, 0.0);
        for attempt in node.attempts.iter().filter_map(|number| self.attempts.get(number)) {
            let ran = self.now.mono_ms.saturating_sub(attempt.started) as f64;
            let left = (attempt.expected_ms - ran).max(attempt.expected_ms * 0.1);
            match attempt.owner {
                Owner::Call(_) => backlogs.0 += left,
                Owner::Batch { .. } => backlogs.1 += left,
            }
        }
        backlogs
    }

    /// Attempts that ran far past what was expected, by our clock, are given up, and that counts as a failure of what is in
    /// them: whatever takes so long must stand alone, and end.
    pub(super) fn watch_attempts(&mut self, step: &mut Step) {
        let late: Vec<u64> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.deadline < self.now.mono_ms && !attempt.unconfirmed)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            let Some(attempt) = self.attempts.get(&number).cloned() else { continue };
            self.attempt_failed(&attempt, true, "it ran far longer than expected");
            step.effects.push(Effect::CancelAttempt {
                node: attempt.node,
                attempt: number,
                reason: "it ran far longer than expected".into(),
            });
            let problem = Problem::new(ErrorCode::Deadline, "it ran far longer than expected");
            self.lost.insert(number, (problem, super::members::Loss::Late));
        }
        self.retry_publishing(step);
    }
}

impl Job {
    pub(super) fn has_work(&self, unix_ms: i64) -> bool {
        !self.uncut.is_empty()
            || !self.uncut_pages.is_empty()
            || self.queued.iter().any(|batch| self.batches.get(batch).is_some_and(|b| b.not_before_ms <= unix_ms))
    }

    /// The first batch that may be dispatched now, among the suspect ones or the others.
    pub(super) fn due(&self, unix_ms: i64, suspect: bool) -> Option<u64> {
        let mut due = self.queued.iter().filter_map(|id| self.batches.get(id));
        due.find(|b| b.suspect == suspect && b.not_before_ms <= unix_ms).map(|b| b.id)
    }

    pub(super) fn uncut_items(&self) -> u64 {
        self.uncut_left.items
    }

    /// Of documents that no node has.
    pub(super) fn remaining_bytes(&self) -> u64 {
        self.uncut_left.bytes
            + self.uncut_page_bytes()
            + self.queued.iter().filter_map(|batch| self.batches.get(batch)).map(|b| b.bytes).sum::<u64>()
    }
}
