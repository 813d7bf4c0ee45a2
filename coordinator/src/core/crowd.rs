//! Clusters of many nodes: a decision looks at some of those that have room, and what frees no room asks for no decision.
//!
//! Up to [`limits::NODES_ALL_MAX`] nodes every decision weighs all of them. Beyond that it would cost more than what it decides:
//! a piece of work goes to the best of a few that have room, taken in turn, so that all come to be looked at. What only time or
//! a search among all of them can tell (why nothing fits, who is silent) waits for the next tick.

use ingle_proto::NodeId;

use super::event::Event;
use super::{Core, Step};
use crate::limits;

/// What is remembered from one decision to the next.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Where the last look ended.
    after: Option<NodeId>,
    /// So many nodes were silent at the last tick that the fault is likely ours.
    braked: bool,
    /// This step may search among all nodes.
    all: bool,
}

/// How much an event asks of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It frees nothing.
    Nothing,
    /// It frees a place or brings work.
    Some,
    /// It may change who is fit for what.
    All,
}

impl Core {
    fn many(&self) -> bool {
        self.nodes.len() > limits::NODES_ALL_MAX
    }

    pub(super) fn pace_of(&self, event: &Event) -> Pace {
        match event {
            _ if !self.many() => Pace::All,
            Event::Beat { .. } | Event::Progress { .. } | Event::ScanProgress { .. } | Event::ScanSegment { .. } => {
                Pace::Nothing
            }
            Event::Complete { .. }
            | Event::Published { .. }
            | Event::Call { .. }
            | Event::CallEnded { .. }
            | Event::CallGone { .. } => Pace::Some,
            _ => Pace::All,
        }
    }

    pub(super) fn schedule_at(&mut self, step: &mut Step, pace: Pace) {
        self.crowd.all = pace == Pace::All;
        if self.crowd.all && self.many() {
            self.crowd.braked = self.nodes.mass_failure(self.now);
        }
        if pace != Pace::Nothing {
            self.schedule(step);
        }
    }

    /// Whether so many nodes are silent at once that nothing is decided for now.
    pub(super) fn braked(&self) -> bool {
        if self.many() { self.crowd.braked } else { self.nodes.mass_failure(self.now) }
    }

    /// Of many nodes a few that could run the model now, other ones each time; `None` where all of them are looked at.
    pub(super) fn some_of_many(&mut self, model: &str) -> Option<Vec<NodeId>> {
        if !self.many() {
            return None;
        }
        let mut some = Vec::new();
        for id in self.nodes.roomy_after(self.crowd.after.as_ref(), limits::NODES_LOOKED_AT) {
            if self.nodes.get(&id).is_some_and(|node| self.eligible(node, model).is_ok()) {
                some.push(id.clone());
            }
            self.crowd.after = Some(id);
            if some.len() == limits::NODES_WEIGHED {
                break;
            }
        }
        Some(some)
    }

    /// Whether a search among all nodes is worth its time: it isn't where all are busy, and not for each event.
    pub(super) fn looks_at_all(&self) -> bool {
        !self.many() || (self.crowd.all && (self.attempts.is_empty() || self.nodes.any_room()))
    }
}

#[cfg(test)]
mod tests {
    use ingle_proto::{Epoch, v1};

    use super::super::event::{Attached, Effect, Now, ReplyId};
    use super::*;

    const NODES: usize = limits::NODES_ALL_MAX + 36;

    fn id(number: usize) -> NodeId {
        NodeId::parse(&format!("n-{number:04}")).unwrap()
    }

    fn core() -> (Core, Now) {
        let now = Now { mono_ms: 1_000, unix_ms: 1_700_000_000_000 };
        let mut core = Core::load(Epoch { generation: 1, revision: 1 }, now, []).unwrap();
        for number in 0..NODES {
            let model = v1::ModelInfo {
                model: Some(v1::ModelRef { name: "words".into(), digest: vec![7; 32].into() }),
                kind: v1::JobKind::Generate.into(),
                ..Default::default()
            };
            core.step(
                now,
                Event::NodeAttached(Box::new(Attached {
                    node: id(number),
                    incarnation: "i".into(),
                    name: String::new(),
                    address: String::new(),
                    version: String::new(),
                    capacity: v1::Capacity {
                        slots: 1,
                        compute_f32: 1e11,
                        memory_bandwidth: 1e10,
                        ..Default::default()
                    },
                    models: vec![model],
                    loaded: Vec::new(),
                    running: Vec::new(),
                    adopted: Vec::new(),
                })),
            );
        }
        (core, now)
    }

    /// A job of so many documents; where they go.
    fn job(core: &mut Core, now: Now, documents: u32) -> Vec<(NodeId, u64)> {
        let place = v1::ObjectRef { export: "docs".into(), path: b"x".to_vec().into() };
        let spec = v1::JobSpec { kind: v1::JobKind::Generate.into(), output: Some(place), ..Default::default() };
        let submit = Event::Submit {
            reply: ReplyId(1),
            spec: Box::new(spec),
            idempotency_key: String::new(),
            spec_digest: vec![1],
            principal: "p".into(),
        };
        let mut effects = core.step(now, submit).effects;
        for first in (0..documents).step_by(1_000) {
            let to_do = 1_000.min(documents - first);
            let info = v1::SegmentInfo {
                blob: Some(v1::BlobRef { digest: vec![1; 32].into(), size: 1 }),
                entries: to_do,
                to_do,
                size_kib: vec![4; to_do as usize],
                ..Default::default()
            };
            core.step(now, Event::ScanSegment { job: 1, scan: 1, info: Box::new(info) });
        }
        let done = v1::ScanDone { buckets: 1, ..Default::default() };
        effects.extend(core.step(now, Event::ScanDone { job: 1, scan: 1, done: Box::new(done) }).effects);
        effects.extend((0..40).flat_map(|_| core.step(now, Event::Tick).effects));
        assert_eq!(core.check(), Vec::<String>::new());
        sent(&effects)
    }

    fn sent(effects: &[Effect]) -> Vec<(NodeId, u64)> {
        let sent = effects.iter().filter_map(|effect| match effect {
            Effect::Dispatch { node, attempt, .. } => Some((node.clone(), *attempt)),
            _ => None,
        });
        sent.collect()
    }

    #[test]
    fn all_of_many_nodes_get_work_and_a_place_that_is_free_again_is_taken_at_once() {
        let (mut core, now) = core();
        let first = job(&mut core, now, 50_000);
        let busy: std::collections::BTreeSet<&NodeId> = first.iter().map(|(node, _)| node).collect();
        assert_eq!((busy.len(), first.len()), (NODES, NODES * limits::ATTEMPTS_PER_SLOT), "every place is taken");
        let beat = core.step(now, Event::Beat { node: id(0), incarnation: "i".into(), busy_ms: 1 });
        assert!(beat.changes.is_empty() && beat.effects.is_empty(), "a beat frees nothing: {beat:?}");
        let (node, attempt) = first[7].clone();
        let record = core.parts(1).unwrap().1.into_iter().find(|batch| batch.attempt == attempt).unwrap();
        let complete = v1::Complete {
            token: Some(v1::AttemptToken { attempt, ..Default::default() }),
            manifest: Some(v1::BlobRef { digest: vec![2; 32].into(), size: 1 }),
            count: record.count,
            committed: record.count,
            outputs: record.count,
            busy_us: 1_000,
            ..Default::default()
        };
        let next = core.step(now, Event::Complete { node: node.clone(), complete: Box::new(complete) });
        assert_eq!(sent(&next.effects).into_iter().map(|(node, _)| node).collect::<Vec<_>>(), [node]);
        assert_eq!(core.check(), Vec::<String>::new());
    }

    #[test]
    fn of_many_nodes_that_cannot_do_it_a_job_says_why() {
        let (mut core, now) = core();
        for number in 0..NODES {
            core.step(now, Event::Drain { reply: ReplyId(2), node: id(number), deadline_ms: 0, leaves: false });
        }
        assert_eq!(job(&mut core, now, 10), []);
        let view = core.job(1).unwrap();
        assert!(view.reason.contains("draining"), "{view:?}");
    }
}
