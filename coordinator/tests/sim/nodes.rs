//! Nodes without engines: slots, speeds, batches that take virtual time, processes that die and come back.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::{Attached, BatchWork, Event, Work};
use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::gateway::{Nature, away, full};
use super::leaving::End;
use super::store::number;
use super::streams::Writing;
use super::world::{Happening, Mode, World};

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) up: bool,
    /// Starts of its process.
    pub(crate) starts: u32,
    pub(crate) slots: u32,
    pub(crate) ms_per_document: u64,
    /// It has the models for (embed, generate, ocr).
    has: (bool, bool, bool),
    /// The network to it works.
    pub(crate) link: bool,
    pub(crate) connection: Option<u64>,
    draining: bool,
    pub(crate) tasks: BTreeMap<u64, Task>,
    /// Since when nothing was heard of it; membership drops it after a while.
    pub(crate) gone_since: Option<u64>,
    left_told: bool,
    /// When membership drops it: watches are compacted, and then only the next full list tells.
    pub(crate) leaves_at: u64,
    /// Attach and detach of one node reach the leader in their order.
    pub(crate) ordered_at: u64,
    /// What is sent to it over a stream arrives in its order.
    sent_at: u64,
    /// It stands still until then.
    pub(crate) paused_until: u64,
    /// It takes many times as long until then.
    pub(crate) slow_until: u64,
    /// Calls it writes, by attempt.
    pub(crate) streams: BTreeMap<u64, Writing>,
    /// Work whose result went into a stream that was broken: the leader believes that it is here still.
    vanished: Vec<Work>,
    /// Models in its memory.
    pub(crate) loaded: BTreeSet<&'static str>,
    /// Set while its process winds up.
    pub(crate) end: Option<End>,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) work: Work,
    state: State,
    /// Which of its planned ends is valid.
    plan: u32,
}

#[derive(Debug)]
pub(crate) enum State {
    Waiting,
    /// Ends of its documents, absolute.
    Running(Vec<u64>),
    /// Its result waits for a stream.
    Held(Event),
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// This many documents are done.
    Done(u32),
    Fails(v1::FailureKind),
    Dies,
}

impl Machine {
    /// Whether anything is computed, or waits for that.
    pub(crate) fn works(&self) -> bool {
        self.tasks.values().any(|task| !matches!(task.state, State::Held(_)))
    }
}

/// After this long a silent node leaves membership, milliseconds.
pub(crate) const MEMBERSHIP_MS: u64 = 12_000;

impl World {
    pub(crate) fn make_machines(&mut self) {
        let by_chance = self.rng.usize(1..=5);
        let count = self.size.nodes.unwrap_or(by_chance);
        let mixed = self.rng.u32(..3) == 0;
        for index in 0..count {
            let has = if mixed && index > 0 {
                (self.rng.bool(), self.rng.bool(), self.rng.bool())
            } else {
                (true, true, true)
            };
            let machine = Machine {
                id: NodeId::parse(&format!("n-{index}")).unwrap(),
                up: false,
                starts: 0,
                slots: self.rng.u32(1..=3),
                ms_per_document: self.rng.u64(20..250),
                has,
                link: true,
                connection: None,
                draining: false,
                tasks: BTreeMap::new(),
                gone_since: None,
                left_told: false,
                leaves_at: 0,
                ordered_at: 0,
                sent_at: 0,
                paused_until: 0,
                slow_until: 0,
                streams: BTreeMap::new(),
                vanished: Vec::new(),
                loaded: BTreeSet::new(),
                end: None,
            };
            self.machines.push(machine);
            self.soon(0..4_000, Happening::Start { node: index, start: 0 });
        }
    }

    pub(crate) fn machine(&self, id: &NodeId) -> usize {
        id.as_str().strip_prefix("n-").unwrap().parse().unwrap()
    }

    fn incarnation(&self, node: usize) -> String {
        format!("n-{node}-start-{}", self.machines[node].starts)
    }

    /// The process starts, knowing nothing but what it may have kept.
    pub(crate) fn start(&mut self, node: usize, start: u32) {
        let machine = &mut self.machines[node];
        if machine.up || machine.starts != start {
            return;
        }
        machine.up = true;
        machine.starts += 1;
        machine.draining = false;
        machine.connection = None;
        machine.loaded.clear();
        machine.end = None;
        let life = self.life;
        self.soon(10..800, Happening::Dial { life, node });
    }

    /// The process dies. `poison`: by its own document, which is no misfortune of the others.
    pub(crate) fn die(&mut self, node: usize, poison: bool, calm_restart: bool) {
        if !self.machines[node].up {
            return;
        }
        self.totals.deaths += 1;
        self.trace.say(self.now, format_args!("n-{node} dies"));
        if !poison {
            self.misfortune(node);
        }
        let keeps = !poison && self.rng.u32(..8) == 0;
        let machine = &mut self.machines[node];
        machine.up = false;
        machine.streams.clear();
        machine.paused_until = 0;
        // Finished results may be on its disk.
        machine.tasks.retain(|_, task| keeps && matches!(task.state, State::Held(_)));
        let start = machine.starts;
        self.hang_up(node);
        let down = if calm_restart || self.rng.u32(..4) > 0 { 200..3_000 } else { 3_000..20_000 };
        self.soon(down, Happening::Start { node, start });
    }

    /// Everything here was hit by something that is not a document's doing.
    pub(crate) fn misfortune(&mut self, node: usize) {
        let tasks = self.machines[node].tasks.values().map(|task| &task.work);
        for work in tasks.chain(&self.machines[node].vanished) {
            if let Work::Batch { job, batch } = work {
                for document in self.documents_of(batch) {
                    match &batch.pages {
                        None => *self.hits.entry((*job, document)).or_default() += 1,
                        Some(range) => {
                            for page in range.first..range.first + range.count {
                                *self.page_hits.entry((*job, document, page)).or_default() += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn documents_of(&self, batch: &BatchWork) -> Vec<u32> {
        let blob = number(&batch.segments[0].digest);
        if let Some(join) = &batch.document {
            return vec![self.gateway.segments[&blob][join.index as usize]];
        }
        if batch.join {
            return Vec::new();
        }
        self.gateway.segments[&blob][batch.first as usize..(batch.first + batch.count) as usize].to_vec()
    }

    /// The stream breaks; the leader learns it soon, or late.
    pub(crate) fn hang_up(&mut self, node: usize) {
        if self.machines[node].connection.take().is_none() {
            return;
        }
        let delay = if self.rng.bool() { self.rng.u64(0..50) } else { self.rng.u64(50..5_000) };
        self.ordered(node, delay, Event::NodeDetached { node: self.machines[node].id.clone() });
        let (life, at) = (self.life, self.machines[node].ordered_at + 1);
        let again = self.rng.u64(1..1_000);
        self.later(at + again, Happening::Dial { life, node });
    }

    pub(crate) fn ordered(&mut self, node: usize, delay: u64, event: Event) {
        let at = (self.now + delay).max(self.machines[node].ordered_at + 1);
        self.machines[node].ordered_at = at;
        let life = self.life;
        self.later(at, Happening::Deliver(life, event));
    }

    /// Sends to a node over the stream there is.
    pub(crate) fn tell_node(&mut self, node: usize, what: Happening) {
        let delay = self.rng.u64(1..30);
        let machine = &mut self.machines[node];
        machine.sent_at = (self.now + delay).max(machine.sent_at + 1);
        let at = machine.sent_at;
        self.later(at, what);
    }

    pub(crate) fn heal(&mut self, node: usize) {
        self.machines[node].link = true;
    }

    /// The leader dials, and dials again until it is answered.
    pub(crate) fn dial(&mut self, life: u64, node: usize) {
        if life != self.life || self.core.is_none() || self.machines[node].connection.is_some() {
            return;
        }
        if !self.machines[node].up || !self.machines[node].link || self.machines[node].ordered_at > self.now {
            self.soon(300..1_000, Happening::Dial { life, node });
            return;
        }
        let connection = self.rng.u64(..);
        let ready = self.rng.u32(..4) > 0;
        self.machines[node].connection = Some(connection);
        self.machines[node].gone_since = None;
        self.machines[node].left_told = false;
        self.machines[node].vanished.clear();
        let adopted = self.adoptable(node);
        for adopted in &adopted {
            self.stream_adopted(adopted);
        }
        let attached = Attached {
            node: self.machines[node].id.clone(),
            incarnation: self.incarnation(node),
            name: format!("machine {node}"),
            address: String::new(),
            version: "0".into(),
            capacity: v1::Capacity {
                slots: self.machines[node].slots,
                compute_f32: 1e11,
                memory_bandwidth: 1e10,
                ..Default::default()
            },
            models: self.sees(node, ready),
            loaded: self.machines[node].loaded(),
            running: self.machines[node].tasks.keys().chain(self.machines[node].streams.keys()).copied().collect(),
            adopted,
        };
        self.ordered(node, 5, Event::NodeAttached(Box::new(attached)));
        self.tell_leaving(node);
        self.tell_again(node);
        if !ready {
            let start = self.machines[node].starts;
            self.soon(100..3_000, Happening::Models { node, start });
        }
        let held: Vec<u64> = self.machines[node]
            .tasks
            .iter()
            .filter(|(_, t)| matches!(t.state, State::Held(_)))
            .map(|(n, _)| *n)
            .collect();
        for attempt in held {
            if let Some(Task { state: State::Held(event), .. }) = self.machines[node].tasks.remove(&attempt) {
                self.tell(node, attempt, event);
            }
        }
    }

    /// Models as the node reports them; `ready`: their bytes have been read.
    fn sees(&self, node: usize, ready: bool) -> Vec<v1::ModelInfo> {
        let (embed, generate, ocr) = self.machines[node].has;
        let info = |name: &str, kind: v1::JobKind| v1::ModelInfo {
            model: Some(v1::ModelRef {
                name: name.into(),
                digest: if ready { vec![7; 32].into() } else { Vec::new().into() },
            }),
            kind: kind.into(),
            parameters: 20_000_000,
            weight_bytes: 80_000_000,
            bytes_per_token: 80_000_000,
            ..Default::default()
        };
        let mut models = Vec::new();
        models.extend(embed.then(|| info("m-embed", v1::JobKind::Embed)));
        models.extend(generate.then(|| info("m-llm", v1::JobKind::Generate)));
        models.extend(ocr.then(|| info("m-eyes", v1::JobKind::Ocr)));
        models
    }

    pub(crate) fn models(&mut self, node: usize, start: u32) {
        if self.machines[node].starts != start || self.machines[node].connection.is_none() {
            return;
        }
        let (models, loaded) = (self.sees(node, true), self.machines[node].loaded());
        self.ordered(node, 1, Event::Models { node: self.machines[node].id.clone(), models, loaded, reserved: 0 });
    }

    pub(crate) fn beats(&mut self) {
        self.later(self.now + 500, Happening::Beats);
        self.look_for_gone_streams();
        for node in 0..self.machines.len() {
            let machine = &self.machines[node];
            if machine.up && machine.link && machine.paused_until <= self.now {
                let event =
                    Event::Beat { node: machine.id.clone(), incarnation: self.incarnation(node), busy_ms: self.now };
                if self.calm || self.rng.u32(..50) > 0 {
                    self.deliver(0..40, event);
                }
                if self.machines[node].connection.is_some() {
                    self.machines[node].gone_since = None;
                }
            } else {
                if self.machines[node].gone_since.is_none() {
                    let listed = if self.rng.u32(..4) == 0 { self.rng.u64(..60_000) } else { 0 };
                    let machine = &mut self.machines[node];
                    (machine.gone_since, machine.leaves_at) = (Some(self.now), self.now + MEMBERSHIP_MS + listed);
                }
                if self.now > self.machines[node].leaves_at && !self.machines[node].left_told && self.core.is_some() {
                    self.machines[node].left_told = true;
                    self.ordered(node, 5, Event::NodeLeft { node: self.machines[node].id.clone() });
                }
            }
        }
    }

    pub(crate) fn assign(&mut self, node: usize, connection: u64, attempt: u64, work: Work) {
        let machine = &mut self.machines[node];
        if !machine.up || machine.connection != Some(connection) {
            return;
        }
        if machine.draining {
            let event = self.failure(node, attempt, v1::FailureKind::Cancelled);
            self.tell(node, attempt, event);
            return;
        }
        self.load_for(node, &work);
        if let Work::Call { call } = work {
            self.write_stream(node, attempt, call.0);
            return;
        }
        self.machines[node].tasks.insert(attempt, Task { work, state: State::Waiting, plan: 0 });
        self.start_tasks(node);
    }

    fn start_tasks(&mut self, node: usize) {
        loop {
            let machine = &self.machines[node];
            let running = machine.tasks.values().filter(|task| matches!(task.state, State::Running(_))).count();
            let waiting = machine.tasks.iter().find(|(_, task)| matches!(task.state, State::Waiting)).map(|(n, _)| *n);
            let Some(attempt) = waiting.filter(|_| running < machine.slots as usize && !machine.draining) else {
                return;
            };
            self.start_task(node, attempt);
        }
    }

    fn start_task(&mut self, node: usize, attempt: u64) {
        let slow = if self.machines[node].slow_until > self.now { 12 } else { 1 };
        let pace = self.machines[node].ms_per_document * slow;
        if self.machines[node].connection.is_some() {
            // Before anything of it is touched.
            self.deliver(1..20, Event::Progress { attempt, items: 0, bytes: 0 });
        }
        let natures = match &self.machines[node].tasks[&attempt].work {
            Work::Batch { batch, .. } => self.natures(batch),
            Work::Call { .. } => Vec::new(),
        };
        let mut at = self.now + self.rng.u64(1..pace);
        let mut ends = Vec::new();
        let mut outcome = Outcome::Done(natures.len() as u32);
        for nature in natures {
            at += self.rng.u64(pace / 2..pace * 2);
            match nature {
                Nature::Killer => {
                    outcome = Outcome::Dies;
                    break;
                }
                Nature::Failing => {
                    outcome = Outcome::Fails(v1::FailureKind::Item);
                    break;
                }
                _ => ends.push(at),
            }
        }
        if self.nas_away.0 > self.now && matches!(outcome, Outcome::Done(_)) && self.rng.u32(..10) > 0 {
            outcome = Outcome::Fails(v1::FailureKind::Storage);
        }
        if !self.calm && matches!(outcome, Outcome::Done(_)) {
            match self.rng.u32(..200) {
                0..4 => outcome = Outcome::Fails(v1::FailureKind::Storage),
                4..6 => outcome = Outcome::Fails(v1::FailureKind::Node),
                6 if self.mode == Mode::Safety => outcome = Outcome::Fails(v1::FailureKind::Model),
                7 if self.mode == Mode::Safety => outcome = Outcome::Fails(v1::FailureKind::Input),
                _ => {}
            }
        }
        let start = self.machines[node].starts;
        let task = self.machines[node].tasks.get_mut(&attempt).unwrap();
        task.state = State::Running(ends);
        let plan = task.plan;
        self.later(at, Happening::Finish { node, start, attempt, plan, outcome });
    }

    /// What each item of a batch does to the node: documents, or pages of one.
    fn natures(&self, batch: &BatchWork) -> Vec<Nature> {
        let plan = self.plan_of_place(batch.spec.output.as_ref().unwrap());
        let documents = self.documents_of(batch);
        match &batch.pages {
            None if batch.document.is_some() => vec![Nature::Good],
            None => documents.into_iter().map(|id| self.nature(plan, id)).collect(),
            Some(range) => {
                let bad = self.document(plan, documents[0]).and_then(|document| document.bad_page);
                let of = |page| bad.filter(|(bad, _)| *bad == page).map_or(Nature::Good, |(_, nature)| nature);
                (range.first..range.first + range.count).map(of).collect()
            }
        }
    }

    pub(crate) fn document(&self, plan: usize, id: u32) -> Option<&super::gateway::Document> {
        self.gateway.inputs[&self.plans[plan].input].iter().find(|document| document.id == id)
    }

    pub(crate) fn nature(&self, plan: usize, id: u32) -> Nature {
        let input = &self.gateway.inputs[&self.plans[plan].input];
        input.iter().find(|document| document.id == id).map_or(Nature::Good, |document| document.nature)
    }

    pub(crate) fn finish(&mut self, node: usize, start: u32, attempt: u64, plan: u32, outcome: Outcome) {
        let machine = &self.machines[node];
        let valid = machine.up
            && machine.starts == start
            && machine.tasks.get(&attempt).is_some_and(|t| t.plan == plan && matches!(t.state, State::Running(_)));
        if !valid {
            return;
        }
        let event = match outcome {
            Outcome::Dies => {
                self.die(node, true, self.calm);
                return;
            }
            Outcome::Fails(kind) => self.failure(node, attempt, kind),
            Outcome::Done(count) => self.complete(node, attempt, count),
        };
        self.tell(node, attempt, event);
        self.start_tasks(node);
    }

    /// Sends what an attempt came to, or keeps it until there is a stream.
    pub(crate) fn tell(&mut self, node: usize, attempt: u64, event: Event) {
        let task = self.machines[node].tasks.remove(&attempt);
        if self.machines[node].connection.is_none() {
            if let Some(task) = task {
                let held = Task { state: State::Held(event), plan: task.plan + 1, work: task.work };
                self.machines[node].tasks.insert(attempt, held);
            }
            return;
        }
        // Over a stream: in order as a rule; but an old stream's last words may come late, or twice.
        let luck = if self.calm { 100 } else { self.rng.u32(..100) };
        if luck < 3 {
            self.deliver(100..12_000, event.clone());
        }
        if luck == 5 {
            // Sent into a connection that was broken already.
            let kept = self.rng.bool();
            if let Some(task) = task {
                if kept {
                    let held = Task { state: State::Held(event), plan: task.plan + 1, work: task.work };
                    self.machines[node].tasks.insert(attempt, held);
                } else {
                    self.machines[node].vanished.push(task.work);
                }
            }
            self.hang_up(node);
            return;
        }
        self.deliver(10..40, event);
    }

    fn failure(&self, node: usize, attempt: u64, kind: v1::FailureKind) -> Event {
        let problem = match kind {
            v1::FailureKind::Storage if self.nas_away.0 > self.now => self.ill("while it was read"),
            v1::FailureKind::Storage if attempt.is_multiple_of(2) => full("no space left"),
            v1::FailureKind::Storage => away("the NAS went away"),
            v1::FailureKind::Cancelled => Problem::new(ErrorCode::Cancelled, "as asked"),
            _ => Problem::new(ErrorCode::ComputeFailed, "it does not work"),
        };
        Event::Failed { node: self.machines[node].id.clone(), attempt, kind, problem }
    }

    pub(crate) fn cancel_attempt(&mut self, node: usize, connection: u64, attempt: u64) {
        if self.machines[node].connection != Some(connection) {
            return;
        }
        let writes = self.machines[node].streams.remove(&attempt).is_some();
        if !writes && !self.machines[node].tasks.contains_key(&attempt) {
            return;
        }
        let event = self.failure(node, attempt, v1::FailureKind::Cancelled);
        self.tell(node, attempt, event);
        self.start_tasks(node);
    }

    /// As the leader says: running work stops after the document it is at and what waits goes back, or it goes on.
    pub(crate) fn drain(&mut self, node: usize, connection: u64, drain: bool) {
        // Whoever ends takes nothing new, whatever the leader says.
        if self.machines[node].connection != Some(connection) || self.machines[node].end.is_some() {
            return;
        }
        if drain {
            self.stop_tasks(node);
        } else {
            self.machines[node].draining = false;
            self.start_tasks(node);
        }
    }

    /// Takes nothing new from now on.
    pub(crate) fn stop_tasks(&mut self, node: usize) {
        self.machines[node].draining = true;
        let attempts: Vec<u64> = self.machines[node].tasks.keys().copied().collect();
        for attempt in attempts {
            let Some(task) = self.machines[node].tasks.get_mut(&attempt) else { continue };
            match &task.state {
                State::Waiting => {
                    let event = self.failure(node, attempt, v1::FailureKind::Cancelled);
                    self.tell(node, attempt, event);
                }
                State::Running(ends) => {
                    let done = ends.iter().filter(|end| **end <= self.now).count();
                    if ends.is_empty() || done + 1 >= ends.len() {
                        continue;
                    }
                    // The one it is at is finished, or thrown away.
                    let keep = self.rng.bool();
                    let (count, at) = if keep { (done as u32 + 1, ends[done]) } else { (done as u32, self.now + 1) };
                    task.plan += 1;
                    let (plan, start) = (task.plan, self.machines[node].starts);
                    self.later(at, Happening::Finish { node, start, attempt, plan, outcome: Outcome::Done(count) });
                }
                State::Held(_) => {}
            }
        }
    }
}
