//! The core by hand: one situation a test, its time and its events chosen, its store kept for restarts.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod blame;
mod breakers;
mod calls;
mod cutting;
mod drains;
mod explained;
mod lateness;
mod leaving;
mod models;
mod outage;
mod outdated;
mod overload;
mod pages;
mod progress;
mod setbacks;
mod silence;
mod spread;
mod standing;
mod tally;
mod unknown;

use std::collections::BTreeMap;

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{
    Answer, Attached, BatchRecord, BatchWork, Change, Core, Effect, Event, Now, ReplyId, Work,
};
use ingle_proto::{Epoch, ErrorCode, NodeId, Problem, v1};

const JOB: u64 = 1;

struct Rig {
    core: Core,
    now: Now,
    epoch: u64,
    live: BTreeMap<String, Vec<u8>>,
    /// Bytes for models on nodes that attach; 0: not told.
    budget: u64,
    /// What nodes have that attach from now on.
    capacity: v1::Capacity,
}

/// A dispatch as it was asked for.
#[derive(Debug, Clone)]
struct Sent {
    node: NodeId,
    attempt: u64,
    allowed_ms: u64,
    batch: Option<BatchWork>,
}

fn node(number: u32) -> NodeId {
    NodeId::parse(&format!("n-{number}")).unwrap()
}

fn blob(tag: u8) -> v1::BlobRef {
    v1::BlobRef { digest: vec![tag; 32].into(), size: 9 }
}

fn scan_done(scan: u64) -> Event {
    Event::ScanDone { job: JOB, scan, done: Box::new(v1::ScanDone { buckets: 1, ..Default::default() }) }
}

fn problem(code: ErrorCode) -> Problem {
    Problem::new(code, "as the test says")
}

fn sent(effects: &[Effect]) -> Vec<Sent> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Dispatch { node, attempt, allowed_ms, work, .. } => {
            let batch = match work {
                Work::Batch { batch, .. } => Some((**batch).clone()),
                Work::Call { .. } => None,
            };
            Some(Sent { node: node.clone(), attempt: *attempt, allowed_ms: *allowed_ms, batch })
        }
        _ => None,
    });
    sent.collect()
}

fn cancelled(effects: &[Effect]) -> Vec<u64> {
    let cancelled = effects.iter().filter_map(|effect| match effect {
        Effect::CancelAttempt { attempt, .. } => Some(*attempt),
        _ => None,
    });
    cancelled.collect()
}

impl Rig {
    fn new() -> Self {
        let now = Now { mono_ms: 5_000, unix_ms: 1_700_000_000_000 };
        let core = Core::load(Epoch { generation: 1, revision: 1 }, now, []).unwrap();
        let capacity = v1::Capacity { slots: 1, compute_f32: 1e11, memory_bandwidth: 1e10, ..Default::default() };
        Self { core, now, epoch: 1, live: BTreeMap::new(), budget: 0, capacity }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let step = self.core.step(self.now, event);
        assert_eq!(self.core.check(), Vec::<String>::new());
        for change in step.changes {
            match change {
                Change::Put { key, value } => drop(self.live.insert(key, value)),
                Change::Delete { key } => drop(self.live.remove(&key)),
                Change::Archive { prefix } | Change::Clear { prefix } => {
                    self.live.retain(|key, _| !key.starts_with(&prefix))
                }
            }
        }
        step.effects
    }

    /// Lets time pass while these nodes beat, and tells the core so.
    fn pass(&mut self, ms: u64, beating: &[u32]) -> Vec<Effect> {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
        let mut effects = Vec::new();
        for number in beating {
            let event = Event::Beat { node: node(*number), incarnation: format!("i{number}"), busy_ms: 1 };
            effects.extend(self.step(event));
        }
        effects.extend(self.step(Event::Tick));
        effects
    }

    /// The leader dies, and another begins with what is durable.
    fn restart(&mut self) {
        self.epoch += 1;
        let records = self.live.iter().map(|(key, value)| (key.clone(), value.clone()));
        self.core = Core::load(Epoch { generation: 1, revision: self.epoch }, self.now, records).unwrap();
        assert_eq!(self.core.check(), Vec::<String>::new());
    }

    /// The same where one node beats, by a later start of its process.
    fn pass_of(&mut self, ms: u64, number: u32, start: u32) -> Vec<Effect> {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
        let beat = Event::Beat { node: node(number), incarnation: format!("i{number}-{start}"), busy_ms: 1 };
        let mut effects = self.step(beat);
        effects.extend(self.step(Event::Tick));
        effects
    }

    fn attach(&mut self, number: u32, running: &[u64]) -> Vec<Effect> {
        self.attach_as(number, &format!("i{number}"), running)
    }

    fn attach_with(&mut self, number: u32, slots: u32) -> Vec<Effect> {
        self.attach_slots(number, &format!("i{number}"), slots, &[])
    }

    /// The node has so many bytes for models.
    fn budget(&mut self, number: u32, bytes: u64) -> Vec<Effect> {
        self.budget = bytes;
        self.attach(number, &[])
    }

    /// Its process ended, and another began; both beat as `pass` lets them.
    fn restarted(&mut self, number: u32, time: u32) -> Vec<Effect> {
        self.attach_as(number, &format!("i{number} again {time}"), &[])
    }

    /// A later start of a node's process, which runs nothing.
    fn attach_again(&mut self, number: u32, start: u32) -> Vec<Effect> {
        self.attach_as(number, &format!("i{number}-{start}"), &[])
    }

    /// What every node sees.
    fn models() -> Vec<v1::ModelInfo> {
        let info = |name: &str, kind: v1::JobKind| v1::ModelInfo {
            model: Some(v1::ModelRef { name: name.into(), digest: vec![7; 32].into() }),
            kind: kind.into(),
            parameters: 20_000_000,
            weight_bytes: 80_000_000,
            bytes_per_token: 80_000_000,
            ..Default::default()
        };
        vec![info("pages", v1::JobKind::Ocr), info("words", v1::JobKind::Generate), info("vectors", v1::JobKind::Embed)]
    }

    /// The same as another start of its process.
    fn attach_as(&mut self, number: u32, incarnation: &str, running: &[u64]) -> Vec<Effect> {
        self.attach_slots(number, incarnation, self.capacity.slots, running)
    }

    fn attach_slots(&mut self, number: u32, incarnation: &str, slots: u32, running: &[u64]) -> Vec<Effect> {
        let capacity = v1::Capacity { memory_budget_bytes: self.budget, slots, ..self.capacity.clone() };
        self.step(Event::NodeAttached(Box::new(Attached {
            node: node(number),
            incarnation: incarnation.into(),
            name: format!("machine {number}"),
            address: String::new(),
            version: String::new(),
            capacity,
            models: Self::models(),
            loaded: Vec::new(),
            running: running.to_vec(),
            adopted: Vec::new(),
        })))
    }

    /// Submits a job and lists its documents; what is dispatched at once.
    fn job(&mut self, kind: v1::JobKind, size_kib: &[u32]) -> Vec<Sent> {
        let effects = self.submit(kind);
        let scan = effects.iter().find_map(|effect| match effect {
            Effect::Scan { scan, .. } => Some(*scan),
            _ => None,
        });
        self.listed(scan.expect("a walk"), size_kib)
    }

    fn submit(&mut self, kind: v1::JobKind) -> Vec<Effect> {
        let object = v1::ObjectRef { export: "docs".into(), path: b"x".to_vec().into() };
        let spec = v1::JobSpec { kind: kind.into(), output: Some(object), ..Default::default() };
        self.step(Event::Submit {
            reply: ReplyId(1),
            spec: Box::new(spec),
            idempotency_key: String::new(),
            spec_digest: vec![1],
            principal: "p".into(),
        })
    }

    fn listed(&mut self, scan: u64, size_kib: &[u32]) -> Vec<Sent> {
        let to_do = size_kib.len() as u32;
        let info = v1::SegmentInfo {
            blob: Some(blob(1)),
            entries: to_do,
            to_do,
            to_do_bytes: size_kib.iter().map(|kib| u64::from(*kib) << 10).sum(),
            size_kib: size_kib.to_vec(),
            ..Default::default()
        };
        self.step(Event::ScanSegment { job: JOB, scan, info: Box::new(info) });
        sent(&self.step(scan_done(scan)))
    }

    fn fail(&mut self, sent: &Sent, kind: v1::FailureKind, code: ErrorCode) -> Vec<Effect> {
        self.step(Event::Failed { node: sent.node.clone(), attempt: sent.attempt, kind, problem: problem(code) })
    }

    /// A node has done its batch; documents at `splits` are too long for it.
    fn complete(&mut self, sent: &Sent, splits: &[u32]) -> Vec<Effect> {
        self.complete_with(sent, splits, 0, 1_000)
    }

    /// A node has done its batch of documents of a KiB each, and was busy with it for so long.
    fn complete_in(&mut self, sent: &Sent, busy_us: u64) -> Vec<Effect> {
        let count = sent.batch.as_ref().expect("a batch").count;
        self.complete_with(sent, &[], u64::from(count) << 10, busy_us)
    }

    fn complete_with(&mut self, sent: &Sent, splits: &[u32], bytes: u64, busy_us: u64) -> Vec<Effect> {
        let count = sent.batch.as_ref().expect("a batch").count;
        let splits: Vec<_> = splits.iter().map(|index| v1::SplitDocument { index: *index, pages: 9 }).collect();
        let committed = count - splits.len() as u32;
        let complete = v1::Complete {
            token: Some(v1::AttemptToken { attempt: sent.attempt, ..Default::default() }),
            manifest: Some(blob(2)),
            count,
            committed,
            outputs: committed,
            splits,
            bytes,
            busy_us,
            ..Default::default()
        };
        self.step(Event::Complete { node: sent.node.clone(), complete: Box::new(complete) })
    }

    fn published(&mut self, batch: u64, attempt: u64, code: ErrorCode) -> Vec<Effect> {
        self.step(Event::Published { job: JOB, batch, attempt, result: Err(problem(code)) })
    }

    fn view(&self) -> v1::Job {
        self.core.job(JOB).expect("the job")
    }

    fn batches(&self) -> Vec<BatchRecord> {
        self.core.parts(JOB).expect("an open job").1
    }

    fn drain(&mut self, number: u32, deadline_ms: i64) -> Vec<Effect> {
        self.step(Event::Drain { reply: ReplyId(2), node: node(number), deadline_ms, leaves: false })
    }

    /// Drains it for good: its process is to end.
    fn drain_away(&mut self, number: u32, deadline_ms: i64) -> Vec<Effect> {
        self.step(Event::Drain { reply: ReplyId(2), node: node(number), deadline_ms, leaves: true })
    }

    /// A node says which models it has loaded.
    fn holds(&mut self, number: u32, names: &[&str]) {
        let loaded = names.iter().map(|name| v1::LoadedModel {
            model: Some(v1::ModelRef { name: (*name).into(), digest: vec![7; 32].into() }),
            slots: self.capacity.slots,
            ..Default::default()
        });
        let loaded = loaded.collect();
        self.step(Event::Models { node: node(number), models: Self::models(), loaded, reserved: 0 });
    }

    fn uncordon(&mut self, number: u32) -> Vec<Effect> {
        self.step(Event::Uncordon { reply: ReplyId(2), node: node(number) })
    }

    fn call(&mut self, call: u64) -> Vec<Effect> {
        let kind = v1::JobKind::Generate;
        self.step(Event::Call { call: CallId(call), kind, model: String::new(), bytes: 10, max_tokens: 8 })
    }
}

/// The node in the answer to a drain, or the refusal's code.
fn answered(effects: &[Effect]) -> Result<v1::NodeStatus, ErrorCode> {
    let answer = effects.iter().find_map(|effect| match effect {
        Effect::Reply { answer, .. } => Some(answer.clone()),
        _ => None,
    });
    match answer.expect("an answer") {
        Ok(Answer::Node(node)) => Ok(*node),
        Ok(other) => panic!("{other:?}"),
        Err(problem) => Err(problem.code),
    }
}
