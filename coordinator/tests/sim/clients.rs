//! People: they submit until they are answered, ask again with the same key, cancel, pause, resume, drain.

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Answer, Event, ReplyId};
use ingle_proto::{Problem, v1};

use super::gateway::documents;
use super::world::{Happening, World};

/// One job somebody wants.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) place: usize,
    pub(crate) input: usize,
    pub(crate) embed: bool,
    /// Pages are read; neither this nor `embed` is an answer to each document.
    pub(crate) ocr: bool,
    /// The input does not exist.
    pub(crate) no_input: bool,
    /// Begins when this one has ended: the same place again.
    after: Option<usize>,
    pub(crate) key: String,
    /// Unix milliseconds; 0 for none.
    deadline_ms: i64,
    pub(crate) accepted: Option<u64>,
    pub(crate) may_be_cancelled: bool,
}

/// Inputs of plans that come again are numbered from here.
const AGAIN: usize = 1_000_000;

/// What an answer is for.
pub(crate) enum Ask {
    Submit(usize),
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    /// With so many milliseconds to finish, none for ever; and whether its process is to end.
    Drain(usize, Option<i64>, bool),
    Uncordon(usize),
    Call(u64),
}

pub(crate) fn number_of(job_id: &str) -> u64 {
    job_id.strip_prefix("j-").unwrap().parse().unwrap()
}

impl World {
    pub(crate) fn make_plans(&mut self) {
        let most = self.size.jobs;
        let count = if most > 4 { most } else { self.rng.usize(1..=most) };
        for index in 0..count {
            let size =
                if self.size.nodes.is_some() { self.size.documents } else { self.rng.u32(1..self.size.documents) };
            let mut input = documents(&mut self.rng, 0, size, self.mode);
            self.gateway.inputs.insert(index, input.clone());
            let (embed, ocr) = match self.rng.u32(..3) {
                0 => (true, false),
                1 => (false, true),
                _ => (false, false),
            };
            let place = self.gateway.places.entry(index).or_default();
            for taken in 0..40 {
                if self.rng.u32(..60) == 0 {
                    place.taken.insert(taken);
                }
            }
            let begins = self.rng.u64(0..25_000);
            let mut plan = Plan {
                place: index,
                input: index,
                embed,
                ocr,
                no_input: self.rng.u32(..20) == 0,
                after: None,
                key: format!("key-{index}"),
                deadline_ms: 0,
                accepted: None,
                may_be_cancelled: false,
            };
            if self.rng.u32(..20) == 0 {
                plan.deadline_ms = 1_700_000_000_000 + self.rng.i64(5_000..40_000);
                plan.may_be_cancelled = true;
            }
            let at = self.plans.len();
            self.plans.push(plan);
            self.later(self.now + begins, Happening::Submit(at));
            if self.rng.u32(..3) == 0 {
                // The same again later: some documents left, some are new.
                input.retain(|_| self.rng.u32(..8) > 0);
                let more = self.rng.u32(0..6);
                input.extend(documents(&mut self.rng, size, more, self.mode));
                self.gateway.inputs.insert(AGAIN + index, input);
                let (input, key) = (AGAIN + index, format!("key-{index}-again"));
                let again = Plan {
                    input,
                    key,
                    after: Some(at),
                    place: index,
                    embed,
                    ocr,
                    no_input: false,
                    deadline_ms: 0,
                    accepted: None,
                    may_be_cancelled: false,
                };
                self.plans.push(again);
                self.later(self.now + begins + 5_000, Happening::Submit(at + 1));
            }
        }
    }

    /// The plan whose output place this is; every plan calls its place by a name of its own.
    pub(crate) fn plan_of_place(&self, place: &v1::ObjectRef) -> usize {
        std::str::from_utf8(&place.path).unwrap().strip_prefix("plan-").unwrap().parse().unwrap()
    }

    fn ask(&mut self, ask: Ask) -> ReplyId {
        self.next_reply += 1;
        self.asks.insert(self.next_reply, ask);
        ReplyId(self.next_reply)
    }

    pub(crate) fn ended(&self, plan: usize) -> bool {
        self.plans[plan].accepted.is_some_and(|job| self.store.ended(job))
    }

    pub(crate) fn submit(&mut self, plan: usize) {
        if self.core.is_none() || self.plans[plan].after.is_some_and(|before| !self.ended(before)) {
            self.soon(500..1_500, Happening::Submit(plan));
            return;
        }
        let reply = self.ask(Ask::Submit(plan));
        let wanted = &self.plans[plan];
        let object = |path: String| v1::ObjectRef { export: "docs".into(), path: path.into_bytes().into() };
        let mut spec = v1::JobSpec {
            model: if plan.is_multiple_of(2) {
                String::new()
            } else if wanted.embed {
                "m-embed".into()
            } else if wanted.ocr {
                "m-eyes".into()
            } else {
                "m-llm".into()
            },
            input: Some(v1::InputSpec {
                input: Some(v1::input_spec::Input::Tree(object(format!("in-{}", wanted.input)))),
            }),
            output: Some(object(format!("plan-{plan}"))),
            deadline_ms: wanted.deadline_ms,
            ..Default::default()
        };
        spec.set_kind(match (wanted.embed, wanted.ocr) {
            (true, _) => v1::JobKind::Embed,
            (_, true) => v1::JobKind::Ocr,
            _ => v1::JobKind::Generate,
        });
        spec.set_priority(if plan.is_multiple_of(3) { v1::Priority::Interactive } else { v1::Priority::Batch });
        if !wanted.embed && !wanted.ocr {
            spec.generate = Some(v1::GenerateOptions { max_tokens: 16, ..Default::default() });
        }
        let event = Event::Submit {
            reply,
            spec: Box::new(spec),
            idempotency_key: wanted.key.clone(),
            spec_digest: (plan as u32).to_le_bytes().to_vec(),
            principal: format!("person-{}", plan % 2),
        };
        self.deliver(0..20, event);
        if self.plans[plan].accepted.is_none() {
            // Nobody answers: ask again with the same key.
            self.soon(3_000..8_000, Happening::Submit(plan));
        }
    }

    pub(crate) fn answered(&mut self, reply: ReplyId, answer: Result<Answer, Problem>) {
        let Some(Ask::Submit(plan)) = self.asks.remove(&reply.0) else { return };
        match answer {
            Ok(Answer::Job(job, existed)) => {
                let number = number_of(&job.job_id);
                let first = *self.plans[plan].accepted.get_or_insert(number);
                assert_eq!(first, number, "the same key named two jobs");
                let known = self.store.job(number);
                assert!(known.is_some(), "{} is acknowledged and not durable", job.job_id);
                if !existed {
                    self.totals.jobs += 1;
                }
                if self.rng.u32(..4) == 0 {
                    self.soon(1_000..20_000, Happening::Submit(plan));
                }
            }
            Ok(other) => panic!("a submission is answered with {other:?}"),
            Err(problem) => {
                assert!(self.plans[plan].accepted.is_none(), "a repeated submission is refused: {problem}");
                self.soon(1_000..3_000, Happening::Submit(plan));
            }
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        if self.core.is_none() {
            self.soon(500..1_500, Happening::Command(command));
            return;
        }
        let reply = self.ask(Ask::Other);
        let job = |plan: usize| self.plans[plan].accepted;
        let event = match command {
            Command::Cancel(plan) => job(plan).map(|job| Event::Cancel { reply, job }),
            Command::Pause(plan) => job(plan).map(|job| Event::Pause { reply, job }),
            Command::Resume(plan) => job(plan).map(|job| Event::Resume { reply, job }),
            Command::Drain(node, finish, leaves) => {
                let deadline_ms = finish.map_or(0, |ms| 1_700_000_000_000 + self.now as i64 + ms);
                Some(Event::Drain { reply, node: self.machines[node].id.clone(), deadline_ms, leaves })
            }
            Command::Uncordon(node) => Some(Event::Uncordon { reply, node: self.machines[node].id.clone() }),
            Command::Call(call) => Some(Event::Call {
                call: CallId(call),
                kind: v1::JobKind::Generate,
                model: String::new(),
                bytes: 100,
                max_tokens: 8,
            }),
        };
        let Some(event) = event else { return };
        if let Command::Cancel(plan) = command {
            self.plans[plan].may_be_cancelled = true;
        }
        self.deliver(0..20, event);
    }

    /// A person does something.
    pub(crate) fn whim(&mut self) {
        let plan = self.rng.usize(..self.plans.len());
        let node = self.rng.usize(..self.machines.len());
        let back = self.now + self.rng.u64(500..12_000);
        match self.rng.u32(..12) {
            0 => self.command(Command::Cancel(plan)),
            1..4 => {
                self.command(Command::Pause(plan));
                self.later(back, Happening::Command(Command::Resume(plan)));
            }
            4..8 => {
                let finish = self.rng.bool().then(|| self.rng.i64(-3_000..6_000));
                let leaves = self.rng.u32(..3) == 0;
                self.command(Command::Drain(node, finish, leaves));
                self.later(back, Happening::Command(Command::Uncordon(node)));
            }
            _ => {
                let call = self.rng.u64(1..1 << 40);
                self.command(Command::Call(call));
                if self.rng.u32(..4) == 0 {
                    self.deliver(50..3_000, Event::CallGone { call: CallId(call) });
                }
            }
        }
    }

    pub(crate) fn set_right(&mut self) {
        for plan in 0..self.plans.len() {
            self.command(Command::Resume(plan));
        }
        for node in 0..self.machines.len() {
            self.command(Command::Uncordon(node));
        }
    }
}
