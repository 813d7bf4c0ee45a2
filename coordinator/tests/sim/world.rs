//! The world: virtual time, the driver around the real core, and what every step is held against.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::{Change, Core, Effect, Event, Now, Step, Work};
use ingle_coordinator::limits;
use ingle_proto::{Epoch, NodeId};

use super::clients::{Ask, Command, Plan};
use super::gateway::Gateway;
use super::leaders::Frozen;
use super::nodes::{Machine, Outcome};
use super::store::Store;
use super::streams::Stream;
pub(crate) use super::totals::Totals;
use super::trace::{Trace, Tracing};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Any faults, to the end.
    Safety,
    /// Faults stop, and everything has to end well.
    Liveness,
}

/// What happens at a moment.
pub(crate) enum Happening {
    /// To the leader of that life, if it still lives.
    Deliver(u64, Event),
    Turn(u64),
    Durable(u64),
    Tick(u64),
    Beats,
    Fault,
    Lead,
    Calm,
    Submit(usize),
    Command(Command),
    Publish {
        life: u64,
        job: u64,
        batch: u64,
        request: Box<ingle_proto::v1::PublishRequest>,
    },
    /// To a node over a connection.
    Assign {
        node: usize,
        connection: u64,
        attempt: u64,
        work: Box<Work>,
    },
    CancelAttempt {
        node: usize,
        connection: u64,
        attempt: u64,
    },
    Drain {
        node: usize,
        connection: u64,
        drain: bool,
    },
    Leave {
        node: usize,
        connection: u64,
    },
    Farewell {
        node: usize,
        connection: u64,
    },
    /// A process that ends looks whether it may; and doesn't wait any longer for the answer to its goodbye.
    Ending {
        node: usize,
        start: u32,
    },
    Exit {
        node: usize,
        start: u32,
    },
    /// A node has loaded a model for one that leaves, or could not.
    Warmed {
        life: u64,
        leaves: NodeId,
        name: &'static str,
        node: usize,
        start: u32,
        fails: bool,
    },
    /// Of a node's own, valid for one start and one plan of a task.
    Finish {
        node: usize,
        start: u32,
        attempt: u64,
        plan: u32,
        outcome: Outcome,
    },
    Start {
        node: usize,
        start: u32,
    },
    Heal(usize),
    Dial {
        life: u64,
        node: usize,
    },
    Models {
        node: usize,
        start: u32,
    },
    /// A node writes the next token of a call.
    Token {
        node: usize,
        start: u32,
        attempt: u64,
    },
    /// A token reaches the leader of that life.
    Frame {
        life: u64,
        call: u64,
        attempt: u64,
        index: usize,
        token: u64,
    },
    /// A leader that stood still goes on.
    Thaw(Box<Frozen>),
}

/// How large a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// A handful by chance where none is said.
    pub(crate) nodes: Option<usize>,
    /// Most of one job.
    pub(crate) documents: u32,
    /// Most that are wanted at first.
    pub(crate) jobs: usize,
}

impl Size {
    pub(crate) const SMALL: Self = Self { nodes: None, documents: 36, jobs: 4 };
}

/// What the leader was told of a node in this life.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    pub(crate) at: u64,
    pub(crate) incarnation: String,
    pub(crate) connected: bool,
    pub(crate) left: bool,
    /// It said so since its stream is open.
    pub(crate) leaving: bool,
}

pub(crate) struct World {
    pub(crate) mode: Mode,
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: u64,
    pub(crate) calm: bool,
    pub(crate) trace: Trace,
    queue: BTreeMap<(u64, u64), Happening>,
    next: u64,
    pub(crate) core: Option<Core>,
    /// Leaders so far; also the epoch.
    pub(crate) life: u64,
    /// Of this leader's clocks: monotonic base and Unix skew.
    pub(crate) skew: (u64, i64),
    pub(crate) led_since: u64,
    pub(crate) inbox: Vec<Event>,
    /// A turn is planned or a commit under way.
    pub(crate) busy: bool,
    /// What waits for the store, commit by commit, each with its effects.
    pub(crate) pending: Vec<(Vec<Change>, Vec<Effect>)>,
    pub(crate) store: Store,
    pub(crate) gateway: Gateway,
    pub(crate) machines: Vec<Machine>,
    pub(crate) plans: Vec<Plan>,
    pub(crate) asks: BTreeMap<u64, Ask>,
    pub(crate) next_reply: u64,
    pub(crate) heard: BTreeMap<NodeId, Heard>,
    /// Nodes that shall get nothing, as far as this leader was told or found in the store.
    pub(crate) cordoned: BTreeSet<NodeId>,
    /// Nodes whose drain was ever to end them.
    pub(crate) away: BTreeSet<NodeId>,
    /// Attempts that left the coordinator, ever.
    pub(crate) sent: BTreeSet<u64>,
    /// Random misfortunes by (job, document): what an innocent document may be set aside for.
    pub(crate) hits: BTreeMap<(u64, u32), u32>,
    /// The same by (job, document, page).
    pub(crate) page_hits: BTreeMap<(u64, u32, u32), u32>,
    /// People's calls by number.
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) size: Size,
    /// The NAS can't be worked with until then, and why.
    pub(crate) nas_away: (u64, Ill),
    /// Steps so far: large worlds are checked at some of them.
    steps: u64,
    pub(crate) totals: Totals,
}

/// What is wrong with the NAS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ill {
    Stalled,
    Full,
    Corrupt,
}

/// When faults stop in a liveness run, and when a safety run ends, milliseconds.
const FAULTS_MS: u64 = 45_000;
/// How long after that everything has to be over, milliseconds.
const CALM_MS: u64 = 600_000;

impl World {
    pub(crate) fn new(seed: u64, mode: Mode, tracing: Tracing, size: Size) -> Self {
        let salt = if mode == Mode::Safety { 0x5AFE } else { 0x11FE };
        let mut world = Self {
            mode,
            rng: fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt),
            now: 1_000,
            calm: false,
            trace: Trace::new(tracing),
            queue: BTreeMap::new(),
            next: 0,
            core: None,
            life: 0,
            skew: (0, 0),
            led_since: 0,
            inbox: Vec::new(),
            busy: false,
            pending: Vec::new(),
            store: Store::default(),
            gateway: Gateway::default(),
            machines: Vec::new(),
            plans: Vec::new(),
            asks: BTreeMap::new(),
            next_reply: 0,
            heard: BTreeMap::new(),
            cordoned: BTreeSet::new(),
            away: BTreeSet::new(),
            sent: BTreeSet::new(),
            hits: BTreeMap::new(),
            page_hits: BTreeMap::new(),
            streams: BTreeMap::new(),
            size,
            nas_away: (0, Ill::Stalled),
            steps: 0,
            totals: Totals::default(),
        };
        world.make_machines();
        world.make_plans();
        world.later(1_000, Happening::Lead);
        world.later(1_500, Happening::Beats);
        world.later(3_000, Happening::Fault);
        world.later(FAULTS_MS, Happening::Calm);
        world
    }

    pub(crate) fn later(&mut self, at: u64, what: Happening) {
        self.next += 1;
        self.queue.insert((at.max(self.now), self.next), what);
    }

    pub(crate) fn soon(&mut self, delay: std::ops::Range<u64>, what: Happening) {
        let at = self.now + self.rng.u64(delay);
        self.later(at, what);
    }

    pub(crate) fn run(mut self) -> (blake3::Hash, Totals) {
        while let Some(((at, _), what)) = self.queue.pop_first() {
            self.now = at;
            self.happen(what);
            if self.mode == Mode::Safety && self.calm {
                break;
            }
            if self.calm && self.all_ended() && self.streams_ended() {
                break;
            }
            assert!(
                at < FAULTS_MS + CALM_MS,
                "jobs or calls go on long after the faults stopped: {} {:?}",
                self.unfinished(),
                self.open_streams()
            );
        }
        self.judge();
        (self.trace.hash(), self.totals)
    }

    fn happen(&mut self, what: Happening) {
        let Some(what) = self.unless_paused(what) else { return };
        match what {
            Happening::Deliver(life, event) => {
                if life == self.life && self.core.is_some() {
                    self.inbox.push(event);
                    if !self.busy {
                        self.busy = true;
                        self.soon(0..3, Happening::Turn(life));
                    }
                }
            }
            Happening::Turn(life) if life == self.life && self.core.is_some() => self.turn(),
            Happening::Durable(life) if life == self.life && self.core.is_some() => self.durable(),
            Happening::Tick(life) if life == self.life => {
                self.later(self.now, Happening::Deliver(life, Event::Tick));
                self.later(self.now + limits::TICK_MS, Happening::Tick(life));
            }
            Happening::Turn(_) | Happening::Durable(_) | Happening::Tick(_) => {}
            Happening::Beats => self.beats(),
            Happening::Fault => self.fault(),
            Happening::Lead => self.lead(),
            Happening::Calm => self.become_calm(),
            Happening::Submit(plan) => self.submit(plan),
            Happening::Command(command) => self.command(command),
            Happening::Publish { life, job, batch, request } => self.publish(life, job, batch, &request),
            Happening::Assign { node, connection, attempt, work } => self.assign(node, connection, attempt, *work),
            Happening::CancelAttempt { node, connection, attempt } => self.cancel_attempt(node, connection, attempt),
            Happening::Drain { node, connection, drain } => self.drain(node, connection, drain),
            Happening::Leave { node, connection } => self.told_to_leave(node, connection),
            Happening::Farewell { node, connection } => self.farewell(node, connection),
            Happening::Ending { node, start } => self.ending(node, start),
            Happening::Exit { node, start } => self.exit(node, start),
            Happening::Warmed { life, leaves, name, node, start, fails } => {
                self.warmed(life, leaves, name, node, start, fails);
            }
            Happening::Finish { node, start, attempt, plan, outcome } => {
                self.finish(node, start, attempt, plan, outcome)
            }
            Happening::Start { node, start } => self.start(node, start),
            Happening::Heal(node) => self.heal(node),
            Happening::Dial { life, node } => self.dial(life, node),
            Happening::Models { node, start } => self.models(node, start),
            Happening::Token { node, start, attempt } => self.token(node, start, attempt),
            Happening::Frame { life, call, attempt, index, token } => self.frame(life, call, attempt, index, token),
            Happening::Thaw(frozen) => self.thaw(*frozen),
        }
    }

    pub(crate) fn clock(&self) -> Now {
        Now { mono_ms: self.skew.0 + self.now, unix_ms: 1_700_000_000_000 + self.now as i64 + self.skew.1 }
    }

    /// A leader begins with what is durable.
    fn lead(&mut self) {
        assert!(self.core.is_none());
        self.life += 1;
        self.led_since = self.now;
        // What the one before had under way went with it.
        self.busy = false;
        self.pending.clear();
        // Whoever takes over shuts the one before out, before it reads.
        self.store.fence(self.life);
        self.skew = (self.rng.u64(0..1_000_000), self.rng.i64(-2_000..2_000));
        self.heard.clear();
        self.cordoned = self.store.cordoned();
        let epoch = Epoch { generation: 1, revision: self.life };
        let core = Core::load(epoch, self.clock(), self.store.records()).expect("what was committed can be loaded");
        let wrong = core.check();
        assert!(wrong.is_empty(), "after a restart: {wrong:?}");
        self.trace.say(self.now, format_args!("life {} begins", self.life));
        self.core = Some(core);
        let life = self.life;
        self.later(self.now + 1, Happening::Tick(life));
        for node in 0..self.machines.len() {
            self.soon(1..1_500, Happening::Dial { life, node });
        }
    }

    /// As the driver: events become steps, steps become commits, each whole.
    fn turn(&mut self) {
        let events: Vec<Event> = {
            let count = self.inbox.len().min(limits::EVENTS_PER_COMMIT);
            self.inbox.drain(..count).collect()
        };
        let mut changes = Vec::new();
        let mut effects = Vec::new();
        for event in events {
            let step = self.step(event);
            if changes.len() + step.changes.len() > limits::CHANGES_PER_COMMIT {
                self.pending.push((std::mem::take(&mut changes), std::mem::take(&mut effects)));
            }
            changes.extend(step.changes);
            effects.extend(step.effects);
        }
        self.pending.push((changes, effects));
        self.busy = true;
        let life = self.life;
        let slow = if self.calm { 0 } else { self.rng.u32(0..200) };
        // Sometimes the answer is lost and the store must be read first; sometimes the disk is slow.
        let delay = if slow == 1 { self.rng.u64(100..2_000) } else { self.rng.u64(0..8) };
        self.later(self.now + delay, Happening::Durable(life));
    }

    fn step(&mut self, event: Event) -> Step {
        self.hear(&event);
        let now = self.clock();
        if !matches!(event, Event::Tick | Event::Beat { .. }) {
            self.trace.say(self.now, format_args!("-> {event:?}"));
        }
        let about = match &event {
            Event::NodeAttached(attached) => Some(attached.node.clone()),
            Event::Goodbye { node } | Event::NodeLeft { node } => Some(node.clone()),
            _ => None,
        };
        let core = self.core.as_mut().expect("turns are for living leaders");
        self.steps += 1;
        let large = self.size != Size::SMALL;
        let step = core.step(now, event);
        if !large || self.steps.is_multiple_of(64) {
            let wrong = core.check();
            assert!(wrong.is_empty(), "at {}: {wrong:?}", self.now);
        }
        assert!(step.changes.len() <= limits::CHANGES_PER_COMMIT, "one step asks for {} changes", step.changes.len());
        if let Some(node) = about {
            self.follow_cordons(&node);
        }
        for effect in &step.effects {
            if let Effect::Dispatch { node, attempt, .. } = effect {
                let heard = self.heard.get(node).unwrap_or_else(|| panic!("dispatch to {node}, which nobody knows"));
                let silent = self.now - heard.at;
                assert!(
                    heard.connected
                        && !(heard.left || heard.leaving)
                        && !self.cordoned.contains(node)
                        && silent < limits::SUSPECT_MS,
                    "attempt {attempt} is dispatched to {node}, silent for {silent} ms, {heard:?}"
                );
            }
            if !matches!(effect, Effect::JobChanged { .. }) {
                self.trace.say(self.now, format_args!("<- {effect:?}"));
            }
        }
        step
    }

    /// What the leader may know of nodes by now.
    fn hear(&mut self, event: &Event) {
        match event {
            Event::NodeAttached(attached) => {
                let incarnation = attached.incarnation.clone();
                let heard = Heard { at: self.now, incarnation, connected: true, ..Heard::default() };
                self.heard.insert(attached.node.clone(), heard);
            }
            Event::Call { call, .. } => self.begin_stream(call.0),
            Event::CallGone { call } => self.end_stream(call.0, super::streams::End::Left),
            Event::NodeDetached { node } => {
                if let Some(heard) = self.heard.get_mut(node) {
                    heard.connected = false;
                }
            }
            Event::NodeLeft { node } => {
                if let Some(heard) = self.heard.get_mut(node) {
                    heard.left = true;
                }
            }
            Event::Leaving { node, .. } => {
                if let Some(heard) = self.heard.get_mut(node) {
                    heard.leaving = true;
                }
            }
            // Nothing goes there until it is attached again.
            Event::Goodbye { node } => drop(self.heard.remove(node)),
            Event::Beat { node, incarnation, .. } => {
                if let Some(heard) = self.heard.get_mut(node).filter(|heard| heard.incarnation == *incarnation) {
                    heard.at = self.now;
                }
            }
            Event::Drain { node, .. } | Event::Uncordon { node, .. } => {
                if matches!(event, Event::Drain { leaves: true, .. }) {
                    self.away.insert(node.clone());
                }
                // A node that left long ago is unknown, and the person is told so; unless it was drained before.
                let known = self.core.as_ref().is_some_and(|core| core.node(node).is_some());
                if known && matches!(event, Event::Drain { .. }) {
                    self.cordoned.insert(node.clone());
                } else {
                    self.cordoned.remove(node);
                }
            }
            _ => {}
        }
    }

    /// Commits are in the store: their effects are carried out, unless the leader dies meanwhile.
    fn durable(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut effects = Vec::new();
        for (changes, asked) in pending {
            if !changes.is_empty() {
                self.store.commit(self.life, &changes, &self.gateway.segments);
            }
            effects.extend(asked);
        }
        let dies_after = (!self.calm && self.rng.u32(0..1_500) == 0).then(|| self.rng.usize(0..=effects.len()));
        for effect in effects.into_iter().take(dies_after.unwrap_or(usize::MAX)) {
            // What ended in the turn that began it is not sent.
            if !self.core.as_ref().is_some_and(|core| core.wants(&effect)) {
                continue;
            }
            self.perform(effect);
        }
        if dies_after.is_some() {
            self.crash();
            return;
        }
        self.busy = !self.inbox.is_empty();
        if self.busy {
            let life = self.life;
            self.soon(0..3, Happening::Turn(life));
        }
    }

    fn perform(&mut self, effect: Effect) {
        let life = self.life;
        match effect {
            Effect::Reply { reply, answer } => self.answered(reply, answer),
            Effect::Scan { job, scan, request } => self.scan(job, scan, &request),
            Effect::Dispatch { node, attempt, work, .. } => {
                assert!(self.sent.insert(attempt), "attempt number {attempt} is used twice");
                self.totals.dispatches += 1;
                self.nothing_done_again(&work);
                if let Work::Call { call } = &work {
                    self.stream_dispatched(call.0, attempt);
                }
                let node = self.machine(&node);
                if let Some(connection) = self.machines[node].connection {
                    self.tell_node(node, Happening::Assign { node, connection, attempt, work: Box::new(work) });
                }
            }
            Effect::CancelAttempt { node, attempt, .. } => {
                let node = self.machine(&node);
                if let Some(connection) = self.machines[node].connection {
                    self.tell_node(node, Happening::CancelAttempt { node, connection, attempt });
                }
            }
            Effect::SetDrain { node, drain } => {
                let node = self.machine(&node);
                if let Some(connection) = self.machines[node].connection {
                    self.tell_node(node, Happening::Drain { node, connection, drain });
                }
            }
            Effect::Publish { job, batch, request } => {
                let winner = self.store.winners.get(&(job, batch)).copied();
                assert_eq!(
                    winner,
                    Some(request.attempt),
                    "job {job} batch {batch}: only a durable winner is published"
                );
                let happening = |request| Happening::Publish { life, job, batch, request };
                if !self.calm && self.rng.u32(0..20) == 0 {
                    // The request is sent twice.
                    self.soon(1..400, happening(request.clone()));
                }
                self.soon(1..60, happening(request));
            }
            // What a walk has told is on its way, and the leader hears it all the same.
            Effect::CallFailed { call, .. } => self.end_stream(call.0, super::streams::End::Refused),
            Effect::StopScan { .. } | Effect::JobChanged { .. } => {}
            Effect::Leave { node } => {
                let node = self.machine(&node);
                if let Some(connection) = self.machines[node].connection {
                    self.tell_node(node, Happening::Leave { node, connection });
                }
            }
            Effect::Farewell { node } => {
                let node = self.machine(&node);
                if let Some(connection) = self.machines[node].connection {
                    self.tell_node(node, Happening::Farewell { node, connection });
                }
            }
            Effect::Warm { node, model, to, within_ms } => self.warm(node, &model, &to, within_ms),
        }
    }

    pub(crate) fn deliver(&mut self, delay: std::ops::Range<u64>, event: Event) {
        let life = self.life;
        self.soon(delay, Happening::Deliver(life, event));
    }
}
