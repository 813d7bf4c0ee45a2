//! Nodes that are drained: remembered across restarts, for nodes that are away too, until they stay idle or have left.
//!
//! A person drains (a cordon, which is stored), or a node says that it was asked to end. Both go the same way: nothing new,
//! hot models that nobody else holds are loaded elsewhere, what runs ends or goes back, and then the node is told to end.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};
use prost::Message as _;

use super::event::{Answer, Effect, ReplyId};
use super::nodes::NodeEntry;
use super::record::{Change, CordonRecord, cordon_key};
use super::warming::Warming;
use super::{Core, Owner, Step};
use crate::limits;

/// A drain that a person asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cordon {
    /// Unix milliseconds after which its work is taken back; 0 for never.
    pub(crate) deadline_ms: i64,
    /// Its process shall end when it has nothing left.
    pub(crate) leaves: bool,
    /// The start of its process that was told so; empty if none was.
    pub(crate) told: String,
}

impl Cordon {
    fn record(&self, node: &NodeId) -> CordonRecord {
        let Self { deadline_ms, leaves, told } = self.clone();
        CordonRecord { node: node.to_string(), deadline_ms, leaves, told }
    }
}

/// How far the drain of an attached node is. Not stored: another leader begins it anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Going {
    /// It was asked to end, by nobody here.
    pub(crate) by_itself: bool,
    /// What only it held that was hot.
    pub(crate) warming: Vec<Warming>,
    /// Monotonic milliseconds until which that may take.
    pub(crate) warm_until: u64,
    /// When it was last told to end, monotonic milliseconds.
    pub(crate) told_at: Option<u64>,
}

impl Going {
    /// What was told on a stream that broke may not have arrived.
    pub(crate) fn on_another_stream(self) -> Self {
        Self { told_at: None, ..self }
    }

    fn warms(&self) -> bool {
        self.warming.iter().any(|warming| !warming.done)
    }
}

impl Core {
    /// Drains with a deadline (Unix milliseconds, or 0) and for good or not, or lets the node work again.
    pub(super) fn set_drain(&mut self, step: &mut Step, reply: ReplyId, id: &NodeId, drain: Option<(i64, bool)>) {
        let answer = self.steer_node(step, id, drain).map(|node| Answer::Node(Box::new(node)));
        step.effects.push(Effect::Reply { reply, answer });
    }

    fn steer_node(
        &mut self,
        step: &mut Step,
        id: &NodeId,
        drain: Option<(i64, bool)>,
    ) -> Result<v1::NodeStatus, Problem> {
        let before = self.nodes.cordons().get(id).cloned();
        let attached = self.nodes.get(id).is_some();
        // One that may only have been cut off as it ended is not drained any more when it comes back.
        let awaited = drain.is_none() && self.gone.remove(id).is_some();
        if before.is_none() && !attached && !awaited {
            return Err(Problem::new(ErrorCode::NodeNotFound, format!("no node {id}; see `ingle nodes list`")));
        }
        let cordon = match drain {
            Some(_) if before.is_none() && self.nodes.cordons().len() >= limits::CORDONS_MAX => {
                let words = format!("{} nodes are drained already; uncordon those that left", limits::CORDONS_MAX);
                return Err(Problem::new(ErrorCode::Overloaded, words));
            }
            Some((deadline_ms, leaves)) => {
                // Who was told to end already can't be called back by another drain.
                let told = before.map(|cordon| cordon.told).unwrap_or_default();
                let cordon = Cordon { deadline_ms, leaves, told };
                step.put(cordon_key(id), &cordon.record(id));
                Some(cordon)
            }
            None => {
                if before.is_some() {
                    step.changes.push(Change::Delete { key: cordon_key(id) });
                }
                None
            }
        };
        self.nodes.cordon(id, cordon);
        if attached {
            step.effects.push(Effect::SetDrain { node: id.clone(), drain: drain.is_some() });
            self.begin_going(step, id);
        }
        // A deadline in the past means now.
        self.watch_drains(step);
        Ok(self.node(id).unwrap_or_else(|| Self::absent(id, "it may work again, and is not attached")))
    }

    /// Looks, the first time, at what is to be done before a draining node may go.
    pub(super) fn begin_going(&mut self, step: &mut Step, id: &NodeId) {
        let now = self.now;
        let deadline_ms = self.nodes.cordons().get(id).map_or(0, |cordon| cordon.deadline_ms);
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.draining) else { return };
        let left_ms = match deadline_ms {
            0 => limits::WARM_WITHIN_MS,
            _ => u64::try_from(deadline_ms.saturating_sub(now.unix_ms)).unwrap_or(0).min(limits::WARM_WITHIN_MS),
        };
        let warm_until = now.mono_ms.saturating_add(left_ms);
        if let Some(going) = &mut node.going {
            // Drained again with another deadline. One that ends by itself has its own.
            going.warm_until = if going.by_itself { going.warm_until.min(warm_until) } else { warm_until };
            return;
        }
        node.going = Some(Going { warm_until, ..Going::default() });
        self.plan_warming(step, id);
    }

    /// A node was asked to end. What only it holds may be loaded elsewhere for half of the time that it gives itself.
    pub(super) fn node_leaving(&mut self, step: &mut Step, id: &NodeId, within_ms: u64) {
        let warm_until = self.now.mono_ms.saturating_add((within_ms / 2).min(limits::WARM_WITHIN_MS));
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.draining = true;
        if let Some(going) = &mut node.going {
            going.by_itself = true;
            going.warm_until = going.warm_until.min(warm_until);
            return;
        }
        node.going = Some(Going { by_itself: true, warm_until, ..Going::default() });
        self.plan_warming(step, id);
    }

    /// It has nothing left and told everything: what it still had is free for others, and it is forgotten.
    pub(super) fn node_goodbye(&mut self, step: &mut Step, id: &NodeId) {
        self.forget_node(step, id);
        step.effects.push(Effect::Farewell { node: id.clone() });
    }

    /// A node whose record is gone was told to end before: it did, and is forgotten. Answers whether that is so.
    pub(super) fn node_gone(&mut self, step: &mut Step, id: &NodeId) -> bool {
        if self.nodes.get(id).is_some_and(|node| node.connected) {
            return false;
        }
        let cordon = self.nodes.cordons().get(id).filter(|cordon| cordon.leaves && !cordon.told.is_empty());
        let Some(cordon) = cordon.cloned() else { return false };
        // Nobody heard its goodbye: should the same process come back, its drain goes on.
        if self.gone.len() >= limits::CORDONS_MAX {
            self.gone.pop_first();
        }
        self.gone.insert(id.clone(), cordon);
        self.forget_node(step, id);
        true
    }

    /// Forgets a node, and its cordon unless it was to stay: started again it takes work.
    pub(super) fn forget_node(&mut self, step: &mut Step, id: &NodeId) {
        let problem = Problem::new(ErrorCode::NoNode, format!("node {id} left"));
        let its: Vec<u64> =
            self.attempts.iter().filter(|(_, attempt)| attempt.node == *id).map(|(number, _)| *number).collect();
        for number in its {
            self.give_back(number, &problem);
        }
        self.uncordon_gone(step, id, |cordon| cordon.leaves);
        self.nodes.remove(id);
    }

    /// A node that was told to end and comes back as another process has been started again on purpose; as the same one it had
    /// not heard.
    pub(super) fn came_back(&mut self, step: &mut Step, id: &NodeId, incarnation: &str) {
        if let Some(cordon) = self.gone.remove(id).filter(|cordon| cordon.told == incarnation) {
            step.put(cordon_key(id), &cordon.record(id));
            self.nodes.cordon(id, Some(cordon));
        }
        self.uncordon_gone(step, id, |cordon| cordon.leaves && !cordon.told.is_empty() && cordon.told != incarnation);
    }

    fn uncordon_gone(&mut self, step: &mut Step, id: &NodeId, gone: impl FnOnce(&Cordon) -> bool) {
        if self.nodes.cordons().get(id).is_some_and(gone) {
            step.changes.push(Change::Delete { key: cordon_key(id) });
            self.nodes.cordon(id, None);
        }
    }

    /// Takes back what nodes still run past the deadline of their drain: batches wait again free of charge, calls move. Tells
    /// nodes to end that have nothing left.
    pub(super) fn watch_drains(&mut self, step: &mut Step) {
        let now = self.now.unix_ms;
        let over = self.nodes.cordons().iter().filter(|(_, c)| c.deadline_ms != 0 && c.deadline_ms <= now);
        let left: Vec<(NodeId, u64)> = over
            .filter_map(|(id, _)| Some((id, self.nodes.get(id)?)))
            .flat_map(|(id, node)| node.attempts.iter().map(|number| (id.clone(), *number)))
            .filter(|(_, number)| !self.lost.contains_key(number))
            .collect();
        for (node, attempt) in left {
            let words = format!("node {node} is drained, and its time to finish is over");
            self.give_back(attempt, &Problem::new(ErrorCode::NoNode, words.clone()));
            step.effects.push(Effect::CancelAttempt { node, attempt, reason: words });
        }
        let draining: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| node.going.is_some()).map(|(id, _)| id.clone()).collect();
        for id in draining {
            if !step.has_room() {
                break;
            }
            self.watch_warming(step, &id);
            self.let_go(step, &id);
        }
        self.forget_use();
    }

    /// Tells a node to end that shall, once nothing is waited for.
    fn let_go(&mut self, step: &mut Step, id: &NodeId) {
        let now = self.now.mono_ms;
        let cordon = self.nodes.cordons().get(id).cloned();
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.connected && node.attempts.is_empty()) else {
            return;
        };
        let Some(going) = node.going.as_mut().filter(|going| !going.warms()) else { return };
        if !going.by_itself && !cordon.as_ref().is_some_and(|cordon| cordon.leaves) {
            return;
        }
        // A stream that takes nothing for a moment may have lost it.
        if going.told_at.is_some_and(|at| now < at.saturating_add(limits::LEAVE_AGAIN_MS)) {
            return;
        }
        going.told_at = Some(now);
        let incarnation = node.attached.incarnation.clone();
        if let Some(cordon) = cordon.filter(|cordon| cordon.leaves && cordon.told != incarnation) {
            let cordon = Cordon { told: incarnation, ..cordon };
            step.put(cordon_key(id), &cordon.record(id));
            self.nodes.cordon(id, Some(cordon));
        }
        step.effects.push(Effect::Leave { node: id.clone() });
    }

    pub(super) fn load_cordon(&mut self, node: &str, value: &[u8]) -> Result<(), String> {
        let record = CordonRecord::decode(value).map_err(|error| error.to_string())?;
        let id = NodeId::parse(node).map_err(|problem| problem.message)?;
        if record.node != node {
            return Err(format!("holds node {:?}", record.node));
        }
        let CordonRecord { deadline_ms, leaves, told, .. } = record;
        self.nodes.cordon(&id, Some(Cordon { deadline_ms, leaves, told }));
        Ok(())
    }

    /// Nodes that shall take no work, attached or not.
    #[must_use]
    pub fn cordoned(&self) -> Vec<NodeId> {
        self.nodes.cordons().keys().cloned().collect()
    }

    /// The state of an attached node that takes no work, with what is waited for.
    pub(super) fn draining_state(node: &NodeEntry) -> (v1::NodeState, String) {
        let warming = node.going.iter().flat_map(|going| &going.warming).filter(|warming| !warming.done).count();
        let idle = node.attempts.is_empty() && warming == 0;
        let state = if idle { v1::NodeState::Drained } else { v1::NodeState::Draining };
        let mut reason = format!("{} attempts left", node.attempts.len());
        if warming > 0 {
            reason.push_str(&format!(", {warming} models are being loaded elsewhere"));
        }
        if node.going.as_ref().is_some_and(|going| going.told_at.is_some()) {
            reason.push_str("; it was told to end");
        }
        (state, reason)
    }

    /// How far a node's drain is; `None` if it may work.
    pub(super) fn drain_status(&self, id: &NodeId) -> Option<v1::DrainStatus> {
        let cordon = self.nodes.cordons().get(id);
        let leaves = cordon.is_some_and(|cordon| cordon.leaves);
        let deadline_ms = cordon.map_or(0, |cordon| cordon.deadline_ms);
        let Some(node) = self.nodes.get(id).filter(|node| node.connected && !node.left) else {
            let phase = v1::DrainPhase::Away.into();
            return cordon.map(|_| v1::DrainStatus { phase, stays: !leaves, deadline_ms, ..Default::default() });
        };
        let going = node.going.as_ref()?;
        let stays = !leaves && !going.by_itself;
        let calls = node
            .attempts
            .iter()
            .filter(|number| self.attempts.get(number).is_some_and(|attempt| matches!(attempt.owner, Owner::Call(_))));
        let calls = calls.count();
        let phase = if going.warms() {
            v1::DrainPhase::Warming
        } else if node.attempts.is_empty() && stays {
            v1::DrainPhase::Drained
        } else if node.attempts.is_empty() && going.told_at.is_some() {
            v1::DrainPhase::Leaving
        } else {
            v1::DrainPhase::Finishing
        };
        Some(v1::DrainStatus {
            phase: phase.into(),
            stays,
            deadline_ms,
            batches: (node.attempts.len() - calls) as u32,
            calls: calls as u32,
            models: going.warming.iter().map(Warming::wire).collect(),
        })
    }
}
