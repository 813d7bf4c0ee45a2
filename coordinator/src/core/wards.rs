//! Items that a node died with run alone, each on a node that has nothing else: so it shows which of them does it.

use std::collections::BTreeSet;

use ingle_proto::NodeId;
use ingle_proto::v1::JobState;

use super::event::Effect;
use super::nodes::NodeEntry;
use super::{Core, Job, Owner, Step};
use crate::limits;

impl Core {
    /// Where items that a node died with may go, each alone: of few nodes one, so that they don't take all with them.
    pub(super) fn ward_nodes(&self, model: &str) -> Vec<NodeId> {
        let most = (self.nodes.len() / limits::NODES_PER_WARD).max(1);
        let fit = self.nodes.iter().filter(|(_, node)| {
            !node.left && self.eligible(node, model).is_ok() && !self.to_be_tried_with_other_work(node)
        });
        fit.take(most).map(|(id, _)| id.clone()).collect()
    }

    /// One attempt decides whether a node's breaker stays open, and there is work that nothing speaks against: what kills nodes
    /// would keep it open, and all else from there.
    fn to_be_tried_with_other_work(&self, node: &NodeEntry) -> bool {
        let unix_ms = self.now.unix_ms;
        node.breakers.half_open(self.now.mono_ms)
            && self.jobs.values().any(|job| {
                job.record.state() == JobState::Running
                    && job.storage_may_be_tried(unix_ms)
                    && (!job.uncut.is_empty() || !job.uncut_pages.is_empty() || job.due(unix_ms, false).is_some())
                    && self.eligible(node, &job.record.model).is_ok()
            })
    }

    /// Batches that a node holds.
    pub(super) fn batches_on(&self, node: &NodeId) -> impl Iterator<Item = &super::BatchRecord> {
        let attempts = self.nodes.get(node).into_iter().flat_map(|entry| &entry.attempts);
        attempts.filter_map(|number| match self.attempts.get(number)?.owner {
            Owner::Batch { job, batch } => self.jobs.get(&job)?.batches.get(&batch),
            Owner::Call(_) => None,
        })
    }

    /// Whether no batch is at a node, and none that was called back may still be.
    pub(super) fn is_empty(&self, node: &NodeId) -> bool {
        self.batches_on(node).next().is_none() && self.nodes.get(node).is_none_or(|entry| entry.ending.is_empty())
    }

    /// What is at a node gets company: no single item can be blamed any more if the node dies.
    pub(super) fn joined_by_another(&mut self, node: &NodeId) {
        let Self { nodes, attempts, .. } = self;
        for number in nodes.get(node).into_iter().flat_map(|entry| &entry.attempts) {
            if let Some(attempt) = attempts.get_mut(number) {
                attempt.alone = false;
            }
        }
    }

    /// Remembers which batches nodes are told to stop until they have. A call that is given up keeps no node from others.
    pub(super) fn note_cancels(&mut self, step: &Step) {
        let until = self.now.mono_ms + limits::CANCEL_WITHIN_MS;
        for effect in &step.effects {
            if let Effect::CancelAttempt { node, attempt, .. } = effect
                && let Some(entry) = self.nodes.get_mut(node)
            {
                entry.ending.insert(*attempt, until);
            }
        }
    }

    /// Nodes that are kept for suspect batches which wait: no more than there are of those.
    pub(super) fn wards(&self) -> BTreeSet<NodeId> {
        let running = self.jobs.values().filter(|job| job.record.state() == JobState::Running);
        // What waits for the NAS needs no node for now.
        let running = running.filter(|job| job.storage_may_be_tried(self.now.unix_ms));
        let mut wards = BTreeSet::new();
        for job in running {
            let wait = job.suspects_due(self.now.unix_ms);
            if wait > 0 {
                wards.extend(self.ward_nodes(&job.record.model).into_iter().take(wait));
            }
        }
        wards
    }
}

impl Job {
    /// Batches that may be dispatched now, each to a node of its own.
    fn suspects_due(&self, unix_ms: i64) -> usize {
        let queued = self.queued.iter().filter_map(|id| self.batches.get(id));
        queued.filter(|batch| batch.suspect && batch.not_before_ms <= unix_ms).count()
    }
}
