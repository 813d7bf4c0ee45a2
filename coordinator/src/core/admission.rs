//! Whether a person's call is taken: by how long it would wait, not by how many wait. Whoever would wait long is told at once,
//! with the time after which it is worth coming again.
//!
//! The wait is predicted from what a call of this model took here, measured from its dispatch to its end: every place that
//! nodes have for it is free now, or when the call in it is expected to end, and those that wait already go first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::placement::Size;
use super::{Attempt, Core, Owner};
use crate::limits;

/// How long calls take, by model: a running mean in which each one weighs a tenth.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<String, f64>);

impl Paces {
    pub(super) fn learn(&mut self, model: &str, ms: f64) {
        if let Some(mean) = self.0.get_mut(model) {
            *mean += (ms - *mean) * 0.1;
        } else if self.0.len() < limits::PACES_MAX {
            self.0.insert(model.to_owned(), ms);
        }
    }

    pub(super) fn get(&self, model: &str) -> Option<f64> {
        self.0.get(model).copied()
    }
}

/// What a call that comes now would meet.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Outlook {
    /// Milliseconds that it would wait.
    pub(super) wait: f64,
    /// Milliseconds that it would take from then on.
    pub(super) service: f64,
    /// Calls that the nodes for it compute, and those that wait for them.
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// Calls that those nodes compute at once.
    pub(super) places: usize,
    /// How long one takes is measured.
    pub(super) measured: bool,
}

impl Core {
    /// Takes a call, or says when to come again.
    pub(super) fn admit(&self, kind: v1::JobKind, name: &str, size: Size) -> Result<(), Problem> {
        let refusal = |words: String, ms: f64| {
            let delay = Duration::from_millis(ms.clamp(50.0, 60_000.0).ceil() as u64);
            Problem::new(ErrorCode::Overloaded, words).retry_after(delay)
        };
        let outlook =
            self.choose_model(kind, name).ok().flatten().and_then(|(model, _)| self.outlook(kind, &model, size));
        let waiting = self.calls.values().filter(|call| call.attempt.is_none()).count();
        if self.calls.len() >= limits::CALLS_MAX || waiting >= limits::CALLS_WAITING_MAX {
            let words = format!("{waiting} calls wait already; come back later");
            return Err(refusal(words, outlook.map_or(5_000.0, |outlook| outlook.wait.max(500.0))));
        }
        // Of a model that no node can run now nothing is predicted: the call waits for one, or is told why it can't.
        let Some(Outlook { wait, service, running, waiting, places, measured }) = outlook else { return Ok(()) };
        let (share, least) = limits::CALL_WAIT;
        let most = (service * share).max(least);
        // Before one call has ended nothing is known, and the model may still be loading: some may wait for that.
        if wait <= most || (!measured && waiting < places) {
            return Ok(());
        }
        let words = format!(
            "{running} calls are under way and {waiting} wait; this one would wait {wait:.0} ms, and one takes {service:.0} ms: \
             come back later"
        );
        Err(refusal(words, wait - most))
    }

    /// What a call of this model would meet; `None` if no node can run it now.
    pub(super) fn outlook(&self, kind: v1::JobKind, model: &str, size: Size) -> Option<Outlook> {
        let fit: Vec<NodeId> =
            self.candidates(model).into_iter().filter(|(_, why)| why.is_ok()).map(|(id, _)| id).collect();
        let predicted = fit.iter().map(|id| {
            let terms = self.terms(id, model, size);
            terms.prefill + terms.output
        });
        let guess = predicted.fold(f64::INFINITY, f64::min);
        let measured = self.paces.get(model);
        let service = measured.unwrap_or(guess);
        if fit.is_empty() || !service.is_finite() {
            return None;
        }
        let now = self.now.mono_ms;
        let mut outlook = Outlook { service, measured: measured.is_some(), ..Outlook::default() };
        // When each place is free, in whole milliseconds from now.
        let mut places: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
        for node in fit.iter().filter_map(|id| self.nodes.get(id)) {
            let attempts = node.attempts.iter().filter_map(|number| self.attempts.get(number));
            let calls = attempts.filter(|attempt| matches!(attempt.owner, Owner::Call(_)));
            let mut taken = 0;
            for attempt in calls {
                let whole =
                    self.model_of(attempt).and_then(|model| self.paces.get(model)).unwrap_or(attempt.expected_ms);
                let left = (whole - now.saturating_sub(attempt.started) as f64).max(whole * 0.1);
                places.push(Reverse(left.max(0.0) as u64));
                taken += 1;
            }
            let most = node.call_places(model);
            outlook.running += taken;
            outlook.places += most;
            places.extend(std::iter::repeat_n(Reverse(0), most.saturating_sub(taken)));
        }
        let before = self.calls.values().filter(|call| call.attempt.is_none());
        outlook.waiting =
            before.filter(|call| call.model == model || (call.model.is_empty() && call.kind == kind)).count();
        for _ in 0..outlook.waiting {
            let Reverse(free) = places.pop()?;
            places.push(Reverse(free.saturating_add(service as u64)));
        }
        outlook.wait = places.peek().map_or(0.0, |Reverse(free)| *free as f64);
        Some(outlook)
    }

    /// A call has ended well. One that loaded its model first says nothing of the others.
    pub(super) fn time_call(&mut self, attempt: &Attempt, model: &str) {
        if attempt.decision.as_ref().is_some_and(|decision| decision.terms.load <= 0.0) {
            let took = self.now.mono_ms.saturating_sub(attempt.started);
            self.paces.learn(model, took as f64);
        }
    }
}
