//! Why a job is where it is: the terms of the decision, in words and numbers.

use ingle_proto::{NodeId, v1};

use super::Core;
use super::nodes::Health;
use super::placement::{Decision, Size, Terms};
use super::record::{BatchState, ended};

impl Core {
    /// Explains a job; `None` if there is none of that number.
    #[must_use]
    pub fn explain(&self, number: u64) -> Option<v1::ExplainJobResponse> {
        let record = self.record(number)?;
        if ended(record.state()) {
            let counts = record.final_counts.unwrap_or_default();
            return Some(v1::ExplainJobResponse {
                summary: format!(
                    "it {}: {} of {} documents published, {} unchanged, {} skipped, {} failed, {} quarantined, {} in conflict{}",
                    match record.state() {
                        v1::JobState::Succeeded => "succeeded",
                        v1::JobState::Cancelled => "was cancelled",
                        _ => "failed",
                    },
                    counts.published,
                    counts.total,
                    counts.unchanged,
                    counts.skipped,
                    counts.failed,
                    counts.quarantined,
                    counts.conflict,
                    if record.reason.is_empty() { String::new() } else { format!(" ({})", record.reason) },
                ),
                ..Default::default()
            });
        }
        let job = self.jobs.get(&number)?;
        let summary = match record.state() {
            v1::JobState::Listing if job.hold.is_empty() => {
                format!("the gateway walks the input; {} entries seen", job.scan.entries_seen)
            }
            v1::JobState::Listing => format!("it can't be listed yet: {}", job.hold),
            v1::JobState::Standing if record.paused => "a person paused it; `ingle jobs resume` looks again".into(),
            v1::JobState::Standing if job.scan.running => {
                format!("it is standing; the gateway looks at its folder, {} entries seen", job.scan.entries_seen)
            }
            v1::JobState::Standing => {
                let seconds = job.scan.not_before.saturating_sub(self.now.mono_ms).div_ceil(1000);
                let trouble = if record.reason.is_empty() { &job.hold } else { &record.reason };
                let trouble = if trouble.is_empty() { String::new() } else { format!(": {trouble}") };
                format!("it is standing; the next look at its folder is in {seconds} s{trouble}")
            }
            v1::JobState::Paused => "a person paused it; `ingle jobs resume` goes on".into(),
            v1::JobState::Cancelling => format!("it is being cancelled; {} batches have to end", job.running.len()),
            _ if let Some(outage) = &job.outage => {
                let seconds = ((outage.not_before_ms - self.now.unix_ms).max(0) + 999) / 1000;
                match job.running.len() {
                    0 => format!("it waits for the NAS ({}), and tries it in {seconds} s", outage.reason),
                    tries => format!("it waits for the NAS ({}), and {tries} batches try it now", outage.reason),
                }
            }
            _ if self.nodes.mass_failure(self.now) => {
                "more than half of the nodes fell silent at once: the fault is likely this coordinator's own, and nothing new \
                 is started until they are heard again, or were waited for long enough"
                    .into()
            }
            _ if !job.running.is_empty() => format!(
                "{} batches run on {} nodes, {} wait, {} are being published",
                job.running.len(),
                self.job(number).map_or(0, |j| j.nodes.len()),
                job.queued.len(),
                job.publishing.len()
            ),
            _ if !job.publishing.is_empty() => {
                let why = job.publishing.iter().filter_map(|id| job.batches.get(id)).find(|b| !b.reason.is_empty());
                why.map_or_else(|| "its results are being made visible".into(), |b| b.reason.clone())
            }
            _ if !job.hold.is_empty() => format!("it waits: {}", job.hold),
            _ => job
                .queued
                .iter()
                .filter_map(|id| job.batches.get(id))
                .find(|b| !b.reason.is_empty())
                .map_or_else(|| "it waits for a node to be free".into(), |b| format!("it waits: {}", b.reason)),
        };
        let mut batches: Vec<_> = job
            .batches
            .values()
            .filter(|b| b.state() != BatchState::Published)
            .map(|b| {
                let state = match b.state() {
                    BatchState::Queued if b.not_before_ms > self.now.unix_ms => "backing off",
                    BatchState::Queued => "queued",
                    BatchState::Running => "running",
                    BatchState::Committed if job.publishing.contains(&b.id) => "publishing",
                    BatchState::Committed => "committed",
                    BatchState::Quarantined => "quarantined",
                    BatchState::Published => "published",
                };
                let running = self.attempts.get(&b.attempt).filter(|_| b.state() == BatchState::Running);
                let decision = running.and_then(|attempt| attempt.decision.as_ref().map(|d| (&attempt.node, d)));
                v1::BatchExplanation {
                    why_here: decision.map(|(node, decision)| why_here(node, decision)).unwrap_or_default(),
                    terms: decision.map(|(node, decision)| wire_terms(node, Ok(()), &decision.terms)),
                    batch: b.id,
                    state: state.into(),
                    items: b.count,
                    attempts: b.failures + b.deaths + b.tries,
                    node_id: b.node.clone(),
                    reason: b.reason.clone(),
                    not_before_ms: b.not_before_ms,
                }
            })
            .collect();
        let rank = |state: &str| match state {
            "quarantined" => 0,
            "backing off" => 1,
            "publishing" => 2,
            "queued" => 3,
            "running" => 4,
            _ => 5,
        };
        batches.sort_by_key(|b| (rank(&b.state), b.batch));
        batches.truncate(100);
        let size = job
            .queued
            .first()
            .and_then(|id| job.batches.get(id))
            .map_or(Size { items: 1, bytes: 4096, output_tokens: 64, pages: 0 }, |b| job.size(b));
        let nodes = self
            .candidates(&record.model)
            .into_iter()
            .map(|(id, why)| {
                let terms = self.terms(&id, &record.model, size);
                let why = why.map_err(|why| self.with_times(&id, &record.model, why));
                wire_terms(&id, why, &terms)
            })
            .collect();
        Some(v1::ExplainJobResponse { summary, batches, nodes })
    }

    /// Adds to what refuses a node the times that change while one looks.
    pub(super) fn with_times(&self, id: &NodeId, model: &str, why: String) -> String {
        let Some(node) = self.nodes.get(id) else { return why };
        let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
        let now = self.now.mono_ms;
        let mut words = why;
        if node.health(self.now) != Health::Ready {
            words += &format!("; last heard {} ago", seconds(now.saturating_sub(node.last_seen)));
        }
        if node.rest_until > now {
            words += &format!("; for {} more", seconds(node.rest_until - now));
        }
        match node.breakers.left_ms(model, now) {
            0 => {}
            left => words += &format!("; one attempt in {}", seconds(left)),
        }
        if let Some(ms) = node.stalls.get(model) {
            words += &format!("; for {}", seconds(*ms));
        }
        words
    }
}

/// Never below zero, and never a negative zero, which sums of nothing are.
pub(super) fn shown(ms: f64) -> f64 {
    if ms > 0.0 { ms } else { 0.0 }
}

/// The terms as they are shown.
pub(super) fn wire_terms(id: &NodeId, why: Result<(), String>, terms: &Terms) -> v1::NodeTerms {
    v1::NodeTerms {
        node_id: id.to_string(),
        fits: why.is_ok(),
        why_not: why.err().unwrap_or_default(),
        backlog_ms: shown(terms.backlog),
        load_ms: shown(terms.load),
        prefill_ms: shown(terms.prefill),
        output_ms: shown(terms.output),
        finish_ms: shown(terms.finish()),
    }
}

fn why_here(node: &NodeId, decision: &Decision) -> String {
    let seconds = |ms: f64| format!("{:.1} s", shown(ms) / 1e3);
    let terms = &decision.terms;
    let (why, other) = match &decision.next {
        None => (format!("{node} alone could take it"), String::new()),
        Some((other, finish)) if *finish < terms.finish() => {
            let words = format!("; {other} would be done in {}, and takes no more now", seconds(*finish));
            (format!("{node} was free, and soon enough"), words)
        }
        Some((other, finish)) => (
            format!("of {} nodes {node} would be done first", decision.of),
            format!("; the next is {other} with {}", seconds(*finish)),
        ),
    };
    format!(
        "{why}: {} = backlog {} + load {} + prefill {} + output {}{other}",
        seconds(terms.finish()),
        seconds(terms.backlog),
        seconds(terms.load),
        seconds(terms.prefill),
        seconds(terms.output),
    )
}
