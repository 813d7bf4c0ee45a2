//! Nodes that leave in order: asked by nobody here or told by the leader, they wind up, say goodbye, end, and are started again.

use std::time::Duration;

use ingle_coordinator::core::{Event, Work};
use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::nodes::{MEMBERSHIP_MS, Machine};
use super::world::{Happening, World};

/// How far a node's end is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// Half of its time, from which on it hands calls back, and waits for the leader no longer.
    half: u64,
    until: u64,
    /// The leader waits for nothing there any more.
    let_go: bool,
    /// Its last word is said.
    goodbye: bool,
}

/// How long a node that the leader tells to end gives its work; the same as after a signal.
const WITHIN_MS: u64 = 25_000;
/// How long a node waits for the answer to its goodbye.
const FAREWELL_MS: u64 = 6_000;

/// The model that a piece of work needs.
fn model_of(work: &Work) -> &'static str {
    match work {
        Work::Call { .. } => "m-llm",
        Work::Batch { batch, .. } => match batch.spec.kind() {
            v1::JobKind::Embed => "m-embed",
            v1::JobKind::Ocr => "m-eyes",
            _ => "m-llm",
        },
    }
}

impl World {
    /// A machine is shut down: its process gets a signal.
    pub(crate) fn ask_to_leave(&mut self, node: usize) {
        let within = self.rng.u64(1_000..WITHIN_MS);
        self.begin_to_leave(node, within, false);
    }

    /// The leader tells a node that it may go, or shall.
    pub(crate) fn told_to_leave(&mut self, node: usize, connection: u64) {
        if self.machines[node].connection != Some(connection) {
            return;
        }
        match &mut self.machines[node].end {
            Some(end) => end.let_go = true,
            None => self.begin_to_leave(node, WITHIN_MS, true),
        }
    }

    fn begin_to_leave(&mut self, node: usize, within: u64, let_go: bool) {
        let now = self.now;
        let machine = &mut self.machines[node];
        if !machine.up || machine.end.is_some() {
            return;
        }
        self.trace.say(now, format_args!("n-{node} ends within {within} ms"));
        machine.end = Some(End { half: now + within / 2, until: now + within, let_go, goodbye: false });
        let start = machine.starts;
        self.tell_leaving(node);
        self.stop_tasks(node);
        self.soon(1..100, Happening::Ending { node, start });
    }

    /// A leader that is there hears that the node ends: when that begins, and over each new stream.
    pub(crate) fn tell_leaving(&mut self, node: usize) {
        let machine = &self.machines[node];
        let (Some(end), Some(_)) = (machine.end, machine.connection) else { return };
        let leaving = Event::Leaving { node: machine.id.clone(), within_ms: end.until.saturating_sub(self.now) };
        self.ordered(node, 1, leaving);
    }

    /// Looks whether the node may end.
    pub(crate) fn ending(&mut self, node: usize, start: u32) {
        let machine = &self.machines[node];
        let Some(end) = machine.end.filter(|end| machine.up && machine.starts == start && !end.goodbye) else { return };
        let writing = machine.streams.iter().filter(|(_, writing)| writing.goes_on());
        let writing: Vec<u64> = writing.map(|(attempt, _)| *attempt).collect();
        let connected = machine.connection.is_some();
        let works = !writing.is_empty() || machine.works();
        let waits = connected && !end.let_go && self.now <= end.half;
        if self.now < end.until && (works || waits) {
            if self.now > end.half {
                self.hand_back(node, &writing);
            }
            self.soon(20..120, Happening::Ending { node, start });
            return;
        }
        if let Some(end) = &mut self.machines[node].end {
            end.goodbye = true;
        }
        if connected {
            let delay = self.rng.u64(1..20);
            self.ordered(node, delay, Event::Goodbye { node: self.machines[node].id.clone() });
        }
        // Sooner if it is answered.
        let at = self.now + if connected { FAREWELL_MS } else { 50 };
        self.later(at, Happening::Exit { node, start });
    }

    /// Calls that are still written go on elsewhere.
    fn hand_back(&mut self, node: usize, writing: &[u64]) {
        for attempt in writing {
            if self.machines[node].connection.is_none() {
                return;
            }
            self.machines[node].streams.remove(attempt);
            let problem = Problem::new(ErrorCode::ShuttingDown, "this node is stopping");
            let event = Event::Failed {
                node: self.machines[node].id.clone(),
                attempt: *attempt,
                kind: v1::FailureKind::Node,
                problem: problem.retry_after(Duration::from_millis(100)),
            };
            self.tell(node, *attempt, event);
        }
    }

    /// The leader has answered the goodbye.
    pub(crate) fn farewell(&mut self, node: usize, connection: u64) {
        let machine = &self.machines[node];
        if machine.connection == Some(connection) && machine.end.is_some_and(|end| end.goodbye) {
            self.totals.farewells += 1;
            self.go(node);
        }
    }

    /// Nobody has answered it.
    pub(crate) fn exit(&mut self, node: usize, start: u32) {
        let machine = &self.machines[node];
        if machine.up && machine.starts == start && machine.end.is_some() {
            // What it still had may be taken for dead.
            self.misfortune(node);
            self.go(node);
        }
    }

    /// The process ends; its record goes with it, as a rule. Somebody starts it again.
    fn go(&mut self, node: usize) {
        self.totals.left += 1;
        self.trace.say(self.now, format_args!("n-{node} has ended"));
        let lapses = if self.rng.u32(..4) == 0 { MEMBERSHIP_MS } else { 0 };
        let now = self.now;
        let machine = &mut self.machines[node];
        machine.up = false;
        machine.streams.clear();
        machine.tasks.clear();
        (machine.gone_since, machine.leaves_at) = (Some(now), now + lapses);
        let start = machine.starts;
        self.hang_up(node);
        self.soon(500..8_000, Happening::Start { node, start });
    }

    /// A node is given work: it has loaded the model for it from then on.
    pub(crate) fn load_for(&mut self, node: usize, work: &Work) {
        if self.machines[node].loaded.insert(model_of(work)) {
            let start = self.machines[node].starts;
            self.models(node, start);
        }
    }

    /// The leader asks a node to load what only another holds, which leaves.
    pub(crate) fn warm(&mut self, leaves: NodeId, model: &v1::ModelRef, to: &NodeId, within_ms: u64) {
        let (life, until) = (self.life, self.now + within_ms);
        let node = self.machine(to);
        let name = ["m-embed", "m-llm", "m-eyes"].into_iter().find(|name| *name == model.name);
        let name = name.expect("only models that nodes said they hold");
        let takes = self.rng.u64(50..4_000);
        let fails = self.rng.u32(..6) == 0 || self.machines[node].connection.is_none();
        let start = self.machines[node].starts;
        let at = (self.now + takes).min(until);
        let fails = fails || self.now + takes > until;
        self.later(at, Happening::Warmed { life, leaves, name, node, start, fails });
    }

    /// It has, or could not.
    pub(crate) fn warmed(
        &mut self,
        life: u64,
        leaves: NodeId,
        name: &'static str,
        node: usize,
        start: u32,
        fails: bool,
    ) {
        let machine = &mut self.machines[node];
        let there = machine.up && machine.starts == start && machine.connection.is_some();
        let result = if fails || !there {
            Err(Problem::new(ErrorCode::ModelDoesNotFit, "it was not loaded"))
        } else {
            machine.loaded.insert(name);
            self.totals.warmed += 1;
            self.models(node, start);
            Ok(())
        };
        let to = self.machines[node].id.clone();
        let event = Event::Warmed { node: leaves, model: name.into(), to, result };
        self.soon(1..40, Happening::Deliver(life, event));
    }

    /// A node came, said goodbye or left: only then may the leader forget a drain, or remember it again, and only of that
    /// node, and only a drain that was to end it.
    pub(crate) fn follow_cordons(&mut self, node: &NodeId) {
        let core = self.core.as_ref().expect("events are for living leaders");
        let now: std::collections::BTreeSet<NodeId> = core.cordoned().into_iter().collect();
        for id in self.cordoned.symmetric_difference(&now) {
            assert!(id == node && self.away.contains(id), "the drain of {id} began or ended with the event of {node}");
        }
        self.cordoned = now;
    }
}

impl Machine {
    /// What it holds in memory, as it reports it.
    pub(crate) fn loaded(&self) -> Vec<v1::LoadedModel> {
        let loaded = self.loaded.iter().map(|name| v1::LoadedModel {
            model: Some(v1::ModelRef { name: (*name).into(), digest: vec![7; 32].into() }),
            slots: self.slots,
            ..Default::default()
        });
        loaded.collect()
    }
}
