//! What people may see: jobs, nodes and models as the wire shows them, made from the core's state when asked.

use std::collections::{BTreeMap, BTreeSet};

use ingle_proto::job::job_id;
use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::models::UNREAD;
use super::nodes::{Health, NodeEntry};
use super::placement::{self, Size, Speeds};
use super::record::{BatchRecord, JobRecord, SegmentRecord};
use super::{Attempt, Core, Job, Segment};

impl Core {
    /// A job, open or ended.
    #[must_use]
    pub fn job(&self, number: u64) -> Option<v1::Job> {
        if let Some(record) = self.ended.get(&number) {
            let mut counts = record.final_counts.unwrap_or_default();
            // Batches count in whole KiB.
            counts.bytes_done = counts.bytes_done.min(counts.bytes_total);
            return Some(v1::Job { standing: super::standing::standing(record), ..wire(record, counts) });
        }
        let job = self.jobs.get(&number)?;
        let mut counts = job.counts;
        if !job.record.listed && job.record.state() != v1::JobState::Standing {
            counts.total = job.scan.entries_seen;
        }
        let mut view = wire(&job.record, counts);
        view.standing = job.standing(self.now);
        if view.reason.is_empty() && !job.hold.is_empty() {
            view.reason.clone_from(&job.hold);
            view.code.clone_from(&job.hold_code);
        }
        if view.reason.is_empty()
            && let Some(outage) = &job.outage
        {
            view.reason.clone_from(&outage.reason);
            view.code = outage.code.as_str().to_owned();
        }
        if view.reason.is_empty()
            && let Some(batch) =
                job.publishing.iter().filter_map(|id| job.batches.get(id)).find(|b| !b.reason.is_empty())
        {
            view.reason.clone_from(&batch.reason);
            view.code.clone_from(&batch.code);
        }
        let running: Vec<_> = job
            .running
            .iter()
            .filter_map(|id| job.batches.get(id))
            .filter_map(|b| self.attempts.get(&b.attempt))
            .collect();
        if let Some(counts) = &mut view.counts {
            counts.running += job.split_documents_running();
            counts.bytes_done += running.iter().map(|attempt| attempt.bytes_done).sum::<u64>();
            counts.bytes_done = counts.bytes_done.min(counts.bytes_total);
        }
        let mut nodes: Vec<String> = running.iter().map(|attempt| attempt.node.to_string()).collect();
        nodes.sort();
        nodes.dedup();
        view.nodes = nodes;
        // Nothing runs, since everything that is left has failed and is tried again.
        if view.reason.is_empty()
            && running.is_empty()
            && let Some(batch) = job
                .queued
                .iter()
                .filter_map(|id| job.batches.get(id))
                .find(|b| !b.reason.is_empty() && b.not_before_ms > self.now.unix_ms)
        {
            view.reason = format!("{}; it is tried again", batch.reason);
            view.code.clone_from(&batch.code);
        }
        if let (Some(first), Some(last)) = (job.pace.front(), job.pace.back())
            && last.at > first.at
        {
            let per_second = |first: u64, last: u64, ms: u64| last.saturating_sub(first) as f64 * 1e3 / ms as f64;
            let ms = last.at - first.at;
            view.items_per_second = per_second(first.documents, last.documents, ms);
            let to_do: u64 = job.segments.values().map(|s| u64::from(s.info().to_do)).sum();
            let documents = to_do.saturating_sub(last.documents);
            // One large document takes as long as many small ones, but where an answer is written for each of them.
            let (left, rate) = if job.record.spec().kind() == v1::JobKind::Generate {
                (documents, view.items_per_second)
            } else {
                (job.unfinished_bytes(|number| self.attempts.get(&number)), per_second(first.bytes, last.bytes, ms))
            };
            if rate > 0.0 {
                view.eta_ms = (left as f64 * 1e3 / rate) as i64;
            }
        }
        Some(view)
    }

    /// Whether a job has ended, and not long ago.
    #[must_use]
    pub fn has_ended(&self, number: u64) -> bool {
        self.ended.contains_key(&number)
    }

    /// Whether an idempotency key names a job.
    #[must_use]
    pub fn knows_key(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// An open job that does what this one asks for: the same work on the same documents into the same place, whatever it is
    /// called and however soon it is wanted.
    #[must_use]
    pub fn twin(&self, spec: &v1::JobSpec) -> Option<u64> {
        let same = |other: &v1::JobSpec| {
            (other.kind, &other.model, &other.input, &other.output)
                == (spec.kind, &spec.model, &spec.input, &spec.output)
                && (&other.generate, &other.embed) == (&spec.generate, &spec.embed)
                && (&other.exclude, &other.watch, other.force) == (&spec.exclude, &spec.watch, spec.force)
        };
        self.jobs.iter().find(|(_, job)| same(job.record.spec())).map(|(number, _)| *number)
    }

    /// Whether an open job puts its results there.
    #[must_use]
    pub fn is_made(&self, place: &v1::ObjectRef) -> bool {
        self.jobs.values().any(|job| job.record.spec().output.as_ref() == Some(place))
    }

    /// At most `limit` jobs with numbers below `before`, newest first.
    pub fn list_jobs(&self, before: u64, limit: usize, filter: &dyn Fn(&v1::Job) -> bool) -> Vec<v1::Job> {
        let mut numbers: Vec<u64> =
            self.jobs.range(..before).map(|(n, _)| *n).chain(self.ended.range(..before).map(|(n, _)| *n)).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.into_iter().filter_map(|number| self.job(number)).filter(|job| filter(job)).take(limit).collect()
    }

    /// An open job's listing and batches; `None` for ended ones, whose parts are in the archive.
    #[must_use]
    pub fn parts(&self, number: u64) -> Option<(Vec<SegmentRecord>, Vec<BatchRecord>)> {
        let job = self.jobs.get(&number)?;
        Some((
            job.segments.values().map(|s: &Segment| s.record.clone()).collect(),
            job.batches.values().cloned().collect(),
        ))
    }

    /// The same of at most `most` segments from one on, with the joins of their buckets: what a page of items is made of.
    #[must_use]
    pub fn parts_from(&self, number: u64, first: u32, most: usize) -> Option<(Vec<SegmentRecord>, Vec<BatchRecord>)> {
        let job = self.jobs.get(&number)?;
        let segments: BTreeMap<u32, &Segment> =
            job.segments.range(first..).take(most).map(|(index, segment)| (*index, segment)).collect();
        let buckets: BTreeSet<u32> = segments.values().map(|segment| segment.info().bucket).collect();
        let of_them = |batch: &&BatchRecord| {
            let of_bucket = batch.join && !batch.joins_document();
            if of_bucket { buckets.contains(&batch.bucket) } else { segments.contains_key(&batch.segment) }
        };
        let batches = job.batches.values().filter(of_them).cloned().collect();
        Some((segments.values().map(|segment| segment.record.clone()).collect(), batches))
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<v1::NodeStatus> {
        let known = self.nodes.iter().map(|(id, _)| id);
        let away = self.nodes.cordons().keys().filter(|id| self.nodes.get(id).is_none());
        known.chain(away).filter_map(|id| self.node(id)).collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<v1::NodeStatus> {
        let Some(node) = self.nodes.get(id) else {
            let cordoned = self.nodes.cordons().contains_key(id);
            let drain = self.drain_status(id);
            return cordoned.then(|| v1::NodeStatus { drain, ..Self::absent(id, "it is cordoned, and not attached") });
        };
        let health = node.health(self.now);
        let (state, reason) = self.node_state(node, health);
        Some(v1::NodeStatus {
            node_id: id.to_string(),
            name: node.attached.name.clone(),
            address: node.attached.address.clone(),
            version: node.attached.version.clone(),
            state: state.into(),
            capacity: Some(node.attached.capacity.clone()),
            loaded: node.attached.loaded.clone(),
            running: node.attempts.len() as u32,
            busy_ms: node.busy_ms,
            last_beat_ms: node.last_seen_unix,
            memory_reserved: node.reserved,
            reason,
            breakers: node.breakers.view(None, self.now),
            drain: self.drain_status(id),
            // Heat and power are the rind's to fill in.
            ..Default::default()
        })
    }

    /// A node of which only a cordon is known.
    pub(super) fn absent(id: &NodeId, reason: &str) -> v1::NodeStatus {
        let state = v1::NodeState::Lost.into();
        v1::NodeStatus { node_id: id.to_string(), state, reason: reason.to_owned(), ..Default::default() }
    }

    fn node_state(&self, node: &NodeEntry, health: Health) -> (v1::NodeState, String) {
        if health == Health::Lost || node.left {
            let why = if node.left { "it left the cluster" } else { "silent for over 10 s" };
            return (v1::NodeState::Lost, why.into());
        }
        if node.draining {
            return Self::draining_state(node);
        }
        if health != Health::Ready || !node.connected {
            return (v1::NodeState::Suspect, "silent for over 3 s or not connected".into());
        }
        if node.rest_until > self.now.mono_ms {
            return (v1::NodeState::Ready, "rests after a fault of its own".into());
        }
        if let Some((model, ms)) = node.stalls.first_key_value() {
            return (v1::NodeState::Ready, format!("the engine of {model} has stood still for {} s", ms / 1000));
        }
        if let Some(why) = node.breakers.refusal("", self.now.mono_ms, |number| self.attempts.contains_key(&number)) {
            return (v1::NodeState::Ready, why);
        }
        (v1::NodeState::Ready, String::new())
    }

    /// Every model some node sees.
    #[must_use]
    pub fn models(&self) -> Vec<v1::ModelStatus> {
        let mut all: BTreeMap<String, v1::ModelStatus> = BTreeMap::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| !node.left) {
            for info in &node.attached.models {
                let Some(model) = &info.model else { continue };
                let status = all.entry(model.name.clone()).or_default();
                let better = status.info.as_ref().is_none_or(|known| {
                    !known.problem.is_empty() || known.model.as_ref().is_none_or(|m| m.digest.is_empty())
                });
                if better {
                    status.info = Some(info.clone());
                }
                status.seen_by.push(id.to_string());
                if node.loaded(&model.name).is_some() {
                    status.loaded_on.push(id.to_string());
                }
            }
        }
        for (id, node) in self.nodes.iter().filter(|(_, node)| !node.left) {
            for info in &node.fetching {
                let Some(model) = &info.model else { continue };
                let status = all.entry(model.name.clone()).or_default();
                status.info.get_or_insert_with(|| v1::ModelInfo { fetch: None, ..info.clone() });
                status.fetching.push(v1::NodeFetch { node_id: id.to_string(), fetch: info.fetch });
            }
        }
        all.into_values().collect()
    }

    /// Memory and predicted speed of a model on every node.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` if no node sees it.
    pub fn explain_fit(&self, name: &str, context: u32, slots: u32) -> Result<v1::ExplainFitResponse, Problem> {
        let info = self
            .models()
            .into_iter()
            .filter_map(|status| status.info)
            .find(|info| info.model.as_ref().is_some_and(|m| m.name == name))
            .ok_or_else(|| Problem::new(ErrorCode::ModelNotFound, format!("no node sees a model named {name:?}")))?;
        let context = if context == 0 { 4096 } else { context };
        let slots = slots.max(1);
        let nodes = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.left)
            .map(|(id, node)| {
                let capacity = &node.attached.capacity;
                let fit = placement::fit(&info, context, slots);
                let (prefill, decode) = placement::llm_speed(capacity, &info, node.loaded(name));
                let generates = info.kind() == v1::JobKind::Generate;
                let why_not = if node.fetches(name) {
                    UNREAD.to_owned()
                } else if node.model(name).is_none() {
                    "it doesn't see the model".to_owned()
                } else if fit.needed > capacity.memory_budget_bytes {
                    format!("needs {} bytes, the node has {} for models", fit.needed, capacity.memory_budget_bytes)
                } else if !info.problem.is_empty() {
                    info.problem.clone()
                } else {
                    String::new()
                };
                v1::NodeFit {
                    node_id: id.to_string(),
                    fits: why_not.is_empty(),
                    why_not,
                    weights_bytes: fit.weights,
                    kv_bytes: fit.kv,
                    activation_bytes: fit.activations,
                    needed_bytes: fit.needed,
                    available_bytes: capacity.memory_budget_bytes,
                    tokens_per_second: if generates { decode } else { 0.0 },
                    prefill_tokens_per_second: prefill,
                    load_ms: Speeds::load_ms(&info, node.loaded(name).is_some()) as u64,
                }
            })
            .collect();
        Ok(v1::ExplainFitResponse { info: Some(info), nodes })
    }

    /// Where a model is loaded best.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` or `NO_NODE` with the first reason.
    pub fn place_model(&self, name: &str) -> Result<NodeId, Problem> {
        if self.models().iter().all(|s| s.info.as_ref().and_then(|i| i.model.as_ref()).is_none_or(|m| m.name != name)) {
            return Err(Problem::new(ErrorCode::ModelNotFound, format!("no node sees a model named {name:?}")));
        }
        let candidates = self.candidates(name);
        let best = candidates
            .iter()
            .filter(|(_, why)| why.is_ok())
            .min_by(|a, b| {
                let finish =
                    |id| self.terms(id, name, Size { items: 1, bytes: 1024, output_tokens: 64, pages: 0 }).finish();
                finish(&a.0).total_cmp(&finish(&b.0))
            })
            .map(|(id, _)| id.clone());
        best.ok_or_else(|| {
            let why = candidates.first().map_or_else(
                || "no node has joined".into(),
                |(id, why)| format!("{id}: {}", why.as_ref().err().cloned().unwrap_or_default()),
            );
            Problem::new(ErrorCode::NoNode, format!("no node can hold {name} now; {why}"))
        })
    }

    /// The cluster in numbers; version and gateway are the rind's to fill in.
    #[must_use]
    pub fn status(&self) -> v1::GetStatusResponse {
        let ready = self
            .nodes
            .iter()
            .filter(|(_, n)| n.connected && !n.draining && !n.left && n.health(self.now) == Health::Ready);
        v1::GetStatusResponse {
            epoch: Some(self.epoch.into()),
            nodes_ready: ready.count() as u32,
            nodes_total: self.nodes.iter().filter(|(_, n)| !n.left).count() as u32,
            jobs_open: self.jobs.len() as u32,
            items_queued: self
                .jobs
                .values()
                .map(|job| {
                    let queued = job.queued.iter().filter_map(|b| job.batches.get(b));
                    let queued = queued.map(|b| if b.takes_documents() { u64::from(b.count) } else { 0 });
                    job.uncut_items() + queued.sum::<u64>()
                })
                .sum(),
            items_running: self.jobs.values().map(|job| job.counts.running).sum(),
            ..Default::default()
        }
    }
}

impl Job {
    /// Bytes that no node has yet, and those of running batches that aren't done.
    fn unfinished_bytes<'a>(&self, attempt: impl Fn(u64) -> Option<&'a Attempt>) -> u64 {
        let running = self.running.iter().filter_map(|id| self.batches.get(id)).filter(|batch| !batch.join);
        let at = running.map(|b| b.bytes.saturating_sub(attempt(b.attempt).map_or(0, |attempt| attempt.bytes_done)));
        self.remaining_bytes() + at.sum::<u64>()
    }
}

fn wire(record: &JobRecord, counts: v1::ItemCounts) -> v1::Job {
    // A job that left the choice of model to us shows what was chosen.
    let spec = record.spec.clone().map(|spec| v1::JobSpec { model: record.model.clone(), ..spec });
    v1::Job {
        job_id: job_id(record.number).to_string(),
        spec,
        state: if record.paused && !super::record::ended(record.state()) {
            v1::JobState::Paused.into()
        } else {
            record.state
        },
        counts: Some(counts),
        created_ms: record.created_ms,
        started_ms: record.started_ms,
        ended_ms: record.ended_ms,
        reason: record.reason.clone(),
        code: record.code.clone(),
        principal: record.principal.clone(),
        model_digest: record.model_digest.clone().into(),
        ..Default::default()
    }
}
