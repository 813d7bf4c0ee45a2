//! What the core has decided, counted, and how it stands: numbers for metrics. Nothing is decided by them.

use std::collections::{BTreeMap, VecDeque};

use ingle_proto::v1;

use super::{Attempt, Core, Owner};

use v1::JobState;

/// Ends of attempts that wait to be told; further ones are only counted.
const ENDS_MAX: usize = 1_024;
/// Jobs whose time left is worked out each second: the others' would be guesses behind these.
const JOBS_ESTIMATED: usize = 64;

/// States of items, as metrics name them: each is told, also of no items.
const STATES: [&str; 9] =
    ["queued", "running", "committed", "published", "unchanged", "skipped", "failed", "quarantined", "conflict"];

/// How an attempt ended: what it was, what came of it, and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// `embed`, `generate`, `ocr`, `join`, and the calls of the first three.
    pub kind: &'static str,
    /// `done`, the kind of failure, `died`, `late`, `given_back` or `left`.
    pub outcome: &'static str,
    /// Milliseconds since its dispatch.
    pub took_ms: u64,
    /// Milliseconds that were expected then.
    pub expected_ms: f64,
}

/// Counted since it was last taken. Labels come from closed sets: of kinds, outcomes and error codes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Dispatches by kind, and whether the node held the model.
    pub placed: BTreeMap<(&'static str, bool), u64>,
    /// Attempts that ended.
    pub ends: VecDeque<End>,
    /// Work that is tried again, by why.
    pub retried: BTreeMap<&'static str, u64>,
    /// Items that were set aside, by the code of the last failure.
    pub set_aside: BTreeMap<String, u64>,
}

impl Tally {
    /// Work was placed on a node, which held its model or has to load it.
    pub(super) fn place(&mut self, kind: &'static str, held: bool) {
        *self.placed.entry((kind, held)).or_default() += 1;
    }

    /// Work goes back into a queue.
    pub(super) fn retry(&mut self, why: &'static str) {
        *self.retried.entry(why).or_default() += 1;
    }

    /// So many items are set aside.
    pub(super) fn aside(&mut self, code: &str, items: u32) {
        if items > 0 {
            *self.set_aside.entry(code.to_owned()).or_default() += u64::from(items);
        }
    }

    fn end(&mut self, end: End) {
        if self.ends.len() < ENDS_MAX {
            self.ends.push_back(end);
        }
    }
}

/// How things stand now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stand {
    /// Items of open jobs by state.
    pub items: BTreeMap<&'static str, u64>,
    /// Open jobs that can't go on now, by the code of why.
    pub held: BTreeMap<String, u64>,
    /// How long the oldest work that could run has waited, milliseconds.
    pub oldest_ms: u64,
    /// Calls that wait for a node.
    pub calls_waiting: u64,
    /// Calls on nodes.
    pub calls_running: u64,
    /// Attempts on nodes.
    pub attempts: u64,
    /// Nodes that rest after a fault, and models that nodes failed to run: nothing goes there.
    pub breakers_open: u64,
    /// When the last of the open jobs is expected to be done, milliseconds from now; 0 if that isn't known.
    pub eta_ms: u64,
}

impl Core {
    /// What was counted since the last time.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// What an attempt is, for counting.
    pub(super) fn kind_of(&self, owner: &Owner) -> &'static str {
        let named = |kind, names: [&'static str; 3]| match kind {
            v1::JobKind::Embed => names[0],
            v1::JobKind::Generate => names[1],
            v1::JobKind::Ocr => names[2],
            v1::JobKind::Unspecified => "unknown",
        };
        match owner {
            Owner::Call(call) => match self.calls.get(call) {
                Some(call) => named(call.kind, ["embed_call", "generate_call", "ocr_call"]),
                None => "unknown",
            },
            Owner::Batch { job, batch } => match self.jobs.get(job) {
                Some(job) if job.batches.get(batch).is_some_and(|batch| batch.join) => "join",
                Some(job) => named(job.record.spec().kind(), ["embed", "generate", "ocr"]),
                None => "unknown",
            },
        }
    }

    /// An attempt ended.
    pub(super) fn note_end(&mut self, attempt: &Attempt, outcome: &'static str) {
        let kind = self.kind_of(&attempt.owner);
        let took_ms = self.now.mono_ms.saturating_sub(attempt.started);
        self.tally.end(End { kind, outcome, took_ms, expected_ms: attempt.expected_ms });
    }

    /// How things stand. Looks at every open job: not for every event.
    #[must_use]
    pub fn stand(&self) -> Stand {
        let items = STATES.iter().map(|state| (*state, 0)).collect();
        let mut stand = Stand { items, attempts: self.attempts.len() as u64, ..Stand::default() };
        for job in self.jobs.values() {
            let counts = &job.counts;
            let queued = job.queued.iter().filter_map(|id| job.batches.get(id));
            let queued: u64 = queued.filter(|b| b.takes_documents()).map(|b| u64::from(b.count)).sum();
            let items = [
                queued + job.uncut_items(),
                counts.running,
                counts.committed,
                counts.published,
                counts.unchanged,
                counts.skipped,
                counts.failed,
                counts.quarantined,
                counts.conflict,
            ];
            for (state, items) in STATES.iter().zip(items) {
                *stand.items.entry(*state).or_default() += items;
            }
            let code = match &job.outage {
                _ if !job.hold_code.is_empty() => job.hold_code.as_str(),
                Some(outage) => outage.code.as_str(),
                None if !job.hold.is_empty() => "NO_NODE",
                None => "",
            };
            if !code.is_empty() {
                *stand.held.entry(code.to_owned()).or_default() += 1;
            }
            let waits = job.waiting_since.filter(|_| job.record.state() == JobState::Running);
            stand.oldest_ms = stand.oldest_ms.max(waits.map_or(0, |since| self.now.mono_ms.saturating_sub(since)));
        }
        for (_, node) in self.nodes.iter().filter(|(_, node)| !node.left) {
            let rests = node.rest_until > self.now.mono_ms;
            stand.breakers_open += node.broken_models.len() as u64 + u64::from(rests);
        }
        for call in self.calls.values() {
            if call.attempt.is_some() {
                stand.calls_running += 1;
            } else {
                stand.calls_waiting += 1;
                stand.oldest_ms = stand.oldest_ms.max(self.now.mono_ms.saturating_sub(call.waits_since));
            }
        }
        let estimated = self.jobs.iter().filter(|(_, job)| job.record.state() == JobState::Running);
        for (number, _) in estimated.take(JOBS_ESTIMATED) {
            let eta = self.job(*number).map_or(0, |job| u64::try_from(job.eta_ms).unwrap_or(0));
            stand.eta_ms = stand.eta_ms.max(eta);
        }
        stand
    }
}
