//! Interactive calls: in memory only, placed at once or refused with a delay, moved when their node dies.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::{Adopted, CallId, Effect};
use super::placement::{self, Size};
use super::{Attempt, Core, Owner, Step};
use crate::limits;

/// A person's call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) kind: v1::JobKind,
    pub(crate) model: String,
    pub(crate) size: Size,
    /// When it came, for queue time.
    pub(crate) since: u64,
    /// Since when it waits for a node, this time.
    pub(crate) waits_since: u64,
    /// Set while a node has it.
    pub(crate) attempt: Option<u64>,
    /// Nodes it was on before.
    pub(crate) moves: u32,
}

/// A call is moved at most this often: past it something about the call itself is wrong.
const MOVES_MAX: u32 = 5;
/// How long a call waits for a node before it is told to come back, milliseconds.
const WAIT_MS: u64 = 60_000;

impl Core {
    pub(super) fn call(
        &mut self,
        step: &mut Step,
        id: CallId,
        kind: v1::JobKind,
        model: String,
        bytes: u64,
        max_tokens: u32,
    ) {
        if self.nodes.iter().all(|(_, node)| !node.connected || node.left) {
            let problem = Problem::new(ErrorCode::NoNode, "no node is connected; see `ingle nodes list`")
                .retry_after(std::time::Duration::from_secs(2));
            step.effects.push(Effect::CallFailed { call: id, problem });
            return;
        }
        let size = Size { items: 1, bytes, output_tokens: max_tokens, pages: 0 };
        if let Err(problem) = self.admit(kind, &model, size) {
            step.effects.push(Effect::CallFailed { call: id, problem });
            return;
        }
        self.calls.insert(
            id,
            Call { kind, model, size, since: self.now.mono_ms, waits_since: self.now.mono_ms, attempt: None, moves: 0 },
        );
    }

    /// A call that another leader dispatched, and that its node still has. Its time begins anew.
    pub(super) fn adopt_call(&mut self, node: &NodeId, adopted: Adopted) {
        let Adopted { call, attempt, model, bytes, max_tokens } = adopted;
        if self.calls.contains_key(&call) || self.attempts.contains_key(&attempt) {
            return;
        }
        let now = self.now.mono_ms;
        let size = Size { items: 1, bytes, output_tokens: max_tokens, pages: 0 };
        let expected_ms = self.terms(node, &model, size).output;
        let kind = v1::JobKind::Generate;
        self.calls
            .insert(call, Call { kind, model, size, since: now, waits_since: now, attempt: Some(attempt), moves: 1 });
        self.attempts.insert(
            attempt,
            Attempt {
                owner: Owner::Call(call),
                node: node.clone(),
                started: now,
                expected_ms,
                deadline: now + limits::CALL_WITHIN_MS,
                bytes_done: 0,
                items_done: 0,
                unconfirmed: false,
                decision: None,
                alone: false,
                seen: true,
            },
        );
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.attempts.insert(attempt);
        }
    }

    pub(super) fn call_ended(&mut self, id: CallId) {
        let Some(call) = self.calls.remove(&id) else { return };
        let Some(attempt) = call.attempt.and_then(|number| self.drop_attempt(number)) else { return };
        self.note_end(&attempt, "done");
        self.nodes.worked(&attempt.node, &call.model);
        self.time_call(&attempt, &call.model);
    }

    pub(super) fn call_gone(&mut self, step: &mut Step, id: CallId) {
        if let Some(number) = self.calls.remove(&id).and_then(|call| call.attempt)
            && let Some(attempt) = self.drop_attempt(number)
        {
            step.effects.push(Effect::CancelAttempt {
                node: attempt.node,
                attempt: number,
                reason: "the caller left".into(),
            });
        }
    }

    /// Its attempt is gone: another node may go on with it, unless the call itself is at fault.
    pub(super) fn call_failed(&mut self, step: &mut Step, id: CallId, kind: v1::FailureKind, problem: &Problem) {
        let now = self.now.mono_ms;
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.attempt = None;
        call.waits_since = now;
        call.moves += 1;
        let hopeless = matches!(kind, v1::FailureKind::Input | v1::FailureKind::Item | v1::FailureKind::Unspecified);
        if hopeless || call.moves > MOVES_MAX {
            self.calls.remove(&id);
            step.effects.push(Effect::CallFailed { call: id, problem: problem.clone() });
        }
    }

    /// A call that nothing but a person's doing can help is told so at once. One that has been on a node waits all the same:
    /// its caller has part of the answer, and drains are often short.
    pub(super) fn refuse_hopeless(&mut self, step: &mut Step, id: CallId, model: &str) {
        if self.calls.get(&id).is_some_and(|call| call.moves == 0)
            && let Some(problem) = self.hopeless(model)
        {
            self.calls.remove(&id);
            step.effects.push(Effect::CallFailed { call: id, problem });
        }
    }

    /// A call whose model is on its way is told so at once if it would wait for that longer than it may. One that has been on
    /// a node waits all the same.
    pub(super) fn refuse_early(&mut self, step: &mut Step, id: CallId, model: &str) {
        let Some(call) = self.calls.get(&id).filter(|call| call.moves == 0) else { return };
        let waits_ms = (call.waits_since + WAIT_MS).saturating_sub(self.now.mono_ms);
        let Some(coming) = self.coming(model) else { return };
        if coming.left_ms().is_some_and(|left_ms| left_ms > waits_ms) {
            let problem = coming.problem();
            self.calls.remove(&id);
            step.effects.push(Effect::CallFailed { call: id, problem });
        }
    }

    /// Why no node will take work of a model by itself; `None` while one may.
    fn hopeless(&self, model: &str) -> Option<Problem> {
        let mut drained = Vec::new();
        let mut unfit = None;
        for (id, node) in self.nodes.iter().filter(|(_, node)| !node.left) {
            let Some(info) = node.model(model) else { continue };
            let needed = placement::fit(info, info.context.min(4096), 1).needed;
            let has = node.attached.capacity.memory_budget_bytes;
            // One that ends by itself may be started again in a moment; a person's drain is for longer.
            if self.nodes.cordons().contains_key(id) {
                drained.push(id.as_str());
            } else if let Some(problem) = node.broken_models.get(model) {
                let words = format!("model {model} failed on every node that may run it; {id}: {problem}");
                unfit.get_or_insert(Problem::new(ErrorCode::ModelUnusable, words));
            } else if has > 0 && needed > has {
                let words =
                    format!("model {model} needs {needed} bytes and fits on no node; {id} has {has} for models");
                unfit.get_or_insert(Problem::new(ErrorCode::ModelDoesNotFit, words));
            } else {
                return None;
            }
        }
        match (drained.as_slice(), unfit) {
            ([], unfit) => unfit,
            ([first, ..], _) => Some(Problem::new(
                ErrorCode::NoNode,
                format!(
                    "no node takes {model} now, drained: {}; `ingle nodes uncordon {first}` lets it work again",
                    drained.join(", ")
                ),
            )),
        }
    }

    /// Calls that no node could take in time are told so.
    pub(super) fn watch_calls(&mut self, step: &mut Step) {
        let now = self.now.mono_ms;
        let late: Vec<CallId> = self
            .calls
            .iter()
            .filter(|(_, call)| call.attempt.is_none() && call.waits_since + WAIT_MS < now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(call) = self.calls.remove(&id) else { continue };
            let unread = matches!(self.choose_model(call.kind, &call.model), Ok(None));
            let coming = self.coming(&call.model).filter(|_| unread).map(|coming| coming.problem());
            let problem = coming.unwrap_or_else(|| {
                Problem::new(ErrorCode::NoNode, "no node could take the call within a minute; see `ingle nodes list`")
                    .retry_after(std::time::Duration::from_secs(5))
            });
            step.effects.push(Effect::CallFailed { call: id, problem });
        }
    }
}
