//! Circuit breakers: a node, or a model on a node, that fails one piece of work after another gets none for a while that
//! grows, and then shows with a single attempt whether it works again.
//!
//! Pieces that share a document count once, so that a poisonous one, however it is halved and tried again, opens nothing; and
//! any success closes. Kept in memory alone: a new leader begins with all closed.

use std::collections::BTreeMap;

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::CallId;
use super::record::BatchRecord;
use super::{Attempt, Core, Owner};
use crate::limits;

/// Work, as far as it says whose fault a failure may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A person's call.
    Call(CallId),
    /// Entries of a segment.
    Entries {
        /// Which job.
        job: u64,
        /// Which segment; the greatest number for what is made of a whole bucket.
        segment: u32,
        /// First entry, or the bucket.
        first: u32,
        /// One past the last.
        end: u32,
    },
}

impl Piece {
    fn of_batch(job: u64, batch: &BatchRecord) -> Self {
        let (segment, first, end) = match batch.entry() {
            Some(entry) => (batch.segment, entry, entry.saturating_add(1)),
            None if batch.join => (u32::MAX, batch.bucket, batch.bucket.saturating_add(1)),
            None => (batch.segment, batch.first, batch.end()),
        };
        Self::Entries { job, segment, first, end }
    }

    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Entries { job, segment, first, end }, Self::Entries { job: j, segment: s, first: f, end: e }) => {
                job == j && segment == s && first < e && f < end
            }
            _ => self == other,
        }
    }
}

/// Pieces that one breaker remembers: a node that dies takes several with it.
const PIECES_MAX: usize = 32;

#[derive(Debug, Clone, Default)]
struct Breaker {
    /// What failed since the last success.
    pieces: Vec<Piece>,
    /// Failures whose pieces met none of earlier ones.
    failures: u32,
    /// How often it was opened since the last success.
    opened: u32,
    /// Monotonic milliseconds.
    open_until: u64,
    /// The attempt that shows whether it works again.
    probe: Option<u64>,
    reason: String,
    /// Monotonic milliseconds of the last failure.
    failed_at: u64,
}

impl Breaker {
    fn open(&mut self, now: u64, seed: &str, (first, longest): (u64, u64)) {
        let full = first.saturating_mul(1 << self.opened.min(16)).min(longest);
        let hash = blake3::hash(format!("{seed} {}", self.opened).as_bytes());
        // Between three quarters and all of it, so that what failed together isn't tried together.
        self.open_until = now + full - full / 4 * u64::from(hash.as_bytes()[0]) / 255;
        self.opened += 1;
        self.probe = None;
    }
}

/// Those of one node, by model; the node's own by the empty name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Breakers(BTreeMap<String, Breaker>);

impl Breakers {
    /// Pieces failed together. Returns whether that opened the breaker.
    pub(crate) fn failed(&mut self, seed: &str, model: &str, pieces: &[Piece], reason: &str, now: u64) -> bool {
        let Some(breaker) = self.entry(model) else { return false };
        breaker.failed_at = now;
        if now < breaker.open_until {
            // It was on its way already when the breaker opened.
            return false;
        }
        if pieces.iter().any(|piece| breaker.pieces.iter().any(|known| known.meets(piece))) {
            // What failed here before says nothing new of the place.
            return false;
        }
        let room = PIECES_MAX.saturating_sub(breaker.pieces.len());
        breaker.pieces.extend(pieces.iter().take(room));
        breaker.failures += 1;
        if breaker.opened == 0 && breaker.failures < limits::BREAKER_FAILURES {
            return false;
        }
        reason.clone_into(&mut breaker.reason);
        breaker.open(now, &format!("{seed} {model}"), limits::BREAKER_MS);
        true
    }

    /// The model can't be run here: open at once, and for longer.
    pub(crate) fn unusable(&mut self, seed: &str, model: &str, reason: &str, now: u64) {
        let Some(breaker) = self.entry(model) else { return };
        breaker.failed_at = now;
        reason.clone_into(&mut breaker.reason);
        breaker.open(now, &format!("{seed} {model}"), limits::MODEL_BREAKER_MS);
    }

    /// Work of a model was done here.
    pub(crate) fn succeeded(&mut self, model: &str) {
        self.0.remove("");
        self.0.remove(model);
    }

    /// All that models did wrong is forgotten: others are there.
    pub(crate) fn forget_models(&mut self) {
        self.0.retain(|model, _| model.is_empty());
    }

    /// Whether the model's breaker is open.
    pub(crate) fn is_open(&self, model: &str, now: u64) -> bool {
        self.0.get(model).is_some_and(|breaker| now < breaker.open_until)
    }

    /// What keeps work of a model from here, if anything. In words without times, for whoever waits is told when they change.
    pub(crate) fn refusal(&self, model: &str, now: u64, runs: impl Fn(u64) -> bool) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let shut = [("", "the node"), (model, "the model there")].into_iter().find_map(|(name, what)| {
            let breaker = self.0.get(name).filter(|breaker| breaker.opened > 0)?;
            Some((breaker, what)).filter(|(breaker, _)| now < breaker.open_until || breaker.probe.is_some_and(&runs))
        });
        shut.map(|(breaker, what)| {
            let state = if now < breaker.open_until { "is open" } else { "lets one attempt through, which runs" };
            format!("the breaker of {what} {state}, after failures in a row: {}", breaker.reason)
        })
    }

    /// Whether the node's own breaker lets one attempt through, which decides.
    pub(crate) fn half_open(&self, now: u64) -> bool {
        self.0.get("").is_some_and(|breaker| breaker.opened > 0 && now >= breaker.open_until)
    }

    /// Milliseconds until the breakers that keep work of a model from here let one attempt through; 0 if none is open.
    pub(crate) fn left_ms(&self, model: &str, now: u64) -> u64 {
        let open = ["", model].into_iter().filter_map(|name| self.0.get(name));
        open.map(|breaker| breaker.open_until.saturating_sub(now)).max().unwrap_or(0)
    }

    /// An attempt goes there: where a breaker is half open, it decides.
    pub(crate) fn sent(&mut self, model: &str, attempt: u64) {
        for name in ["", model] {
            if let Some(breaker) = self.0.get_mut(name).filter(|breaker| breaker.opened > 0) {
                breaker.probe = Some(attempt);
            }
        }
    }

    /// What people see: those that were opened; of one model and the node itself if one is named.
    pub(crate) fn view(&self, model: Option<&str>, now: super::Now) -> Vec<v1::Breaker> {
        let wanted = |name: &str| name.is_empty() || model.is_none_or(|model| model == name);
        let opened = self.0.iter().filter(|(name, breaker)| breaker.opened > 0 && wanted(name));
        opened
            .map(|(model, breaker)| {
                let left = breaker.open_until.saturating_sub(now.mono_ms);
                let state = if left > 0 { v1::BreakerState::Open } else { v1::BreakerState::HalfOpen };
                v1::Breaker {
                    model: model.clone(),
                    state: state.into(),
                    opened: breaker.opened,
                    open_until_ms: if left > 0 { now.unix_ms.saturating_add_unsigned(left) } else { 0 },
                    reason: breaker.reason.clone(),
                }
            })
            .collect()
    }

    /// The breaker of this name. Past the bound the one whose last failure is the longest ago makes room.
    fn entry(&mut self, model: &str) -> Option<&mut Breaker> {
        if !self.0.contains_key(model) && self.0.len() >= limits::BREAKERS_PER_NODE_MAX {
            let oldest = self.0.iter().min_by_key(|(_, breaker)| breaker.failed_at).map(|(name, _)| name.clone())?;
            self.0.remove(&oldest);
        }
        Some(self.0.entry(model.to_owned()).or_default())
    }
}

impl Core {
    /// What an attempt is about.
    pub(super) fn piece(&self, attempt: &Attempt) -> Option<Piece> {
        match attempt.owner {
            Owner::Call(call) => Some(Piece::Call(call)),
            Owner::Batch { job, batch } => {
                let record = self.jobs.get(&job)?.batches.get(&batch)?;
                Some(Piece::of_batch(job, record))
            }
        }
    }

    /// Its document has failed alone before, here or elsewhere: it is the likelier culprit.
    fn failed_alone(&self, attempt: &Attempt) -> bool {
        let Owner::Batch { job, batch } = attempt.owner else { return false };
        let record = self.jobs.get(&job).and_then(|job| job.batches.get(&batch));
        record.is_some_and(|record| record.count <= 1 && record.failures + record.deaths > 0)
    }

    /// The model that an attempt needs.
    pub(super) fn model_of(&self, attempt: &Attempt) -> Option<&str> {
        match attempt.owner {
            Owner::Batch { job, .. } => self.jobs.get(&job).map(|job| job.record.model.as_str()),
            Owner::Call(call) => self.calls.get(&call).map(|call| call.model.as_str()),
        }
    }

    /// A node took these attempts with it. One incident, however many they were. What a node died with alone before, here or
    /// elsewhere, is the likelier culprit.
    pub(super) fn node_failed(&mut self, id: &NodeId, attempts: &[u64], reason: &str) {
        let held = attempts.iter().filter_map(|number| self.attempts.get(number));
        let held = held.filter(|attempt| !self.failed_alone(attempt));
        let pieces: Vec<Piece> = held.filter_map(|attempt| self.piece(attempt)).collect();
        let now = self.now.mono_ms;
        if let Some(node) = self.nodes.get_mut(id).filter(|_| !pieces.is_empty()) {
            node.breakers.failed(id.as_str(), "", &pieces, reason, now);
        }
    }

    /// An attempt failed on a node whose fault it may be. With `of_model` it is held against the model there.
    pub(super) fn attempt_failed(&mut self, attempt: &Attempt, of_model: bool, reason: &str) {
        let Some(piece) = self.piece(attempt).filter(|_| !self.failed_alone(attempt)) else { return };
        let Some(model) = self.model_of(attempt).map(str::to_owned) else { return };
        let (id, now) = (attempt.node.clone(), self.now.mono_ms);
        if let Some(node) = self.nodes.get_mut(&id) {
            let name = if of_model { model.as_str() } else { "" };
            node.breakers.failed(id.as_str(), name, &[piece], reason, now);
        }
    }

    /// Holds a failure against the node, or the model on it, unless it is the work's own, or in the order of things.
    pub(super) fn hold_against(&mut self, attempt: &Attempt, kind: v1::FailureKind, problem: &Problem) {
        use v1::FailureKind as Kind;
        match (kind, problem.code) {
            (Kind::Item | Kind::Unspecified, ErrorCode::ComputeFailed)
            | (Kind::Node, ErrorCode::EngineStalled | ErrorCode::Deadline | ErrorCode::ComputeFailed) => {
                self.attempt_failed(attempt, true, &problem.message);
            }
            (Kind::Node, ErrorCode::Overloaded | ErrorCode::ShuttingDown | ErrorCode::NoNode) => {}
            (Kind::Node, _) => self.attempt_failed(attempt, false, &problem.message),
            (Kind::Model, _) => {
                let Some(model) = self.model_of(attempt).map(str::to_owned) else { return };
                let (id, now) = (attempt.node.clone(), self.now.mono_ms);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.breakers.unusable(id.as_str(), &model, &problem.message, now);
                }
            }
            _ => {}
        }
    }

    /// Models whose time is over may be tried again.
    pub(super) fn mend_models(&mut self) {
        let now = self.now.mono_ms;
        for node in self.nodes.values_mut().filter(|node| !node.broken_models.is_empty()) {
            let breakers = &node.breakers;
            node.broken_models.retain(|model, _| breakers.is_open(model, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(first: u32, end: u32) -> [Piece; 1] {
        [Piece::Entries { job: 1, segment: 0, first, end }]
    }

    fn idle(_: u64) -> bool {
        false
    }

    #[test]
    fn what_shares_a_document_counts_once() {
        let mut breakers = Breakers::default();
        for (first, end) in [(0, 8), (0, 4), (2, 4), (3, 4), (3, 4), (3, 4)] {
            assert!(!breakers.failed("n", "m", &entries(first, end), "x", 0));
        }
        assert!(!breakers.failed("n", "m", &entries(9, 10), "x", 0));
        assert!(breakers.failed("n", "m", &entries(10, 11), "x", 0), "the third that shares nothing");
        assert!(breakers.refusal("m", 1, idle).is_some());
        assert!(breakers.refusal("other", 1, idle).is_none());
    }

    #[test]
    fn it_grows_within_bounds_lets_one_through_and_closes_with_a_success() {
        let mut breakers = Breakers::default();
        let (first, longest) = limits::BREAKER_MS;
        let mut now = 1_000;
        for call in 0..limits::BREAKER_FAILURES {
            breakers.failed("n", "", &[Piece::Call(CallId(call.into()))], "x", now);
        }
        let mut before = 0;
        for round in 0..12u64 {
            let left = breakers.left_ms("m", now);
            assert!(left >= before * 3 / 4 && left >= first * 3 / 4 && left <= longest, "{round}: {left}");
            before = left;
            now += left;
            assert!(!breakers.half_open(now - 1) && breakers.half_open(now));
            assert_eq!(breakers.refusal("m", now, idle), None);
            breakers.sent("m", round);
            assert!(breakers.refusal("m", now, |attempt| attempt == round).is_some(), "one at a time");
            // One that ended without saying anything lets another try.
            assert!(breakers.refusal("m", now, idle).is_none());
            assert!(breakers.failed("n", "", &[Piece::Call(CallId(100 + round))], "x", now));
        }
        assert!(before >= longest * 3 / 4);
        breakers.succeeded("m");
        assert_eq!((breakers.refusal("m", now, idle), breakers.0.len()), (None, 0));
    }

    #[test]
    fn there_is_a_bound() {
        let mut breakers = Breakers::default();
        for number in 0..10 * limits::BREAKERS_PER_NODE_MAX as u64 {
            breakers.unusable("n", &format!("m{number}"), "x", number);
        }
        assert_eq!(breakers.0.len(), limits::BREAKERS_PER_NODE_MAX);
        breakers.forget_models();
        assert_eq!(breakers.0.len(), 0);
    }
}
