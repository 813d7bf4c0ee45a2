//! Nodes that people drain: remembered across restarts, for nodes that are away too, and over at a deadline.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};
use prost::Message as _;

use super::event::{Answer, Effect, ReplyId};
use super::record::{Change, CordonRecord, cordon_key};
use super::{Core, Step};
use crate::limits;

impl Core {
    /// Drains with a deadline (Unix milliseconds, or 0), or lets the node work again.
    pub(super) fn set_drain(&mut self, step: &mut Step, reply: ReplyId, id: &NodeId, drain: Option<i64>) {
        let answer = self.steer_node(step, id, drain).map(|node| Answer::Node(Box::new(node)));
        step.effects.push(Effect::Reply { reply, answer });
    }

    fn steer_node(&mut self, step: &mut Step, id: &NodeId, drain: Option<i64>) -> Result<v1::NodeStatus, Problem> {
        let cordoned = self.nodes.cordons().contains_key(id);
        let attached = self.nodes.get(id).is_some();
        if !cordoned && !attached {
            return Err(Problem::new(ErrorCode::NodeNotFound, format!("no node {id}; see `ingle nodes list`")));
        }
        match drain {
            Some(_) if !cordoned && self.nodes.cordons().len() >= limits::CORDONS_MAX => {
                let words = format!("{} nodes are drained already; uncordon those that left", limits::CORDONS_MAX);
                return Err(Problem::new(ErrorCode::Overloaded, words));
            }
            Some(deadline_ms) => {
                step.put(cordon_key(id), &CordonRecord { node: id.to_string(), deadline_ms });
            }
            None if cordoned => step.changes.push(Change::Delete { key: cordon_key(id) }),
            None => {}
        }
        self.nodes.cordon(id, drain);
        if attached {
            step.effects.push(Effect::SetDrain { node: id.clone(), drain: drain.is_some() });
        }
        // A deadline in the past means now.
        self.watch_drains(step);
        Ok(self.node(id).unwrap_or_else(|| Self::absent(id, "it may work again, and is not attached")))
    }

    /// Takes back what nodes still run past the deadline of their drain: batches wait again free of charge, calls move.
    pub(super) fn watch_drains(&mut self, step: &mut Step) {
        let now = self.now.unix_ms;
        let over = self.nodes.cordons().iter().filter(|(_, deadline)| **deadline != 0 && **deadline <= now);
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
    }

    pub(super) fn load_cordon(&mut self, node: &str, value: &[u8]) -> Result<(), String> {
        let record = CordonRecord::decode(value).map_err(|error| error.to_string())?;
        let id = NodeId::parse(node).map_err(|problem| problem.message)?;
        if record.node != node {
            return Err(format!("holds node {:?}", record.node));
        }
        self.nodes.cordon(&id, Some(record.deadline_ms));
        Ok(())
    }

    /// Nodes that shall take no work, attached or not.
    #[must_use]
    pub fn cordoned(&self) -> Vec<NodeId> {
        self.nodes.cordons().keys().cloned().collect()
    }
}
