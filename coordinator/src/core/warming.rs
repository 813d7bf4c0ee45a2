//! Hot models that only a leaving node holds: loaded on another node first, so that nobody waits for the weights.

use std::collections::BTreeSet;

use ingle_proto::{NodeId, Problem, v1};

use super::event::Effect;
use super::nodes::Health;
use super::placement::{Size, Speeds};
use super::{Core, Step};
use crate::limits;

/// What a model is asked for when nobody knows what will come.
const PROBE: Size = Size { items: 1, bytes: 1024, output_tokens: 64, pages: 0 };

/// A model on its way from one node to another.
#[derive(Debug, Clone)]
pub(crate) struct Warming {
    model: v1::ModelRef,
    to: Option<NodeId>,
    tried: BTreeSet<NodeId>,
    /// It is loaded there, or it was given up.
    pub(crate) done: bool,
    problem: String,
}

impl Warming {
    pub(crate) fn wire(&self) -> v1::ModelWarming {
        v1::ModelWarming {
            model: self.model.name.clone(),
            node_id: self.to.as_ref().map(ToString::to_string).unwrap_or_default(),
            done: self.done,
            problem: self.problem.clone(),
        }
    }

    fn give_up(&mut self, why: String) {
        self.done = true;
        self.to = None;
        self.problem = why;
    }
}

impl Core {
    /// A model is given work now.
    pub(super) fn note_use(&mut self, model: &str) {
        if let Some(at) = self.used.get_mut(model) {
            *at = self.now.mono_ms;
        } else if self.used.len() < limits::MODELS_USED_MAX {
            self.used.insert(model.to_owned(), self.now.mono_ms);
        }
    }

    /// Forgets uses that no longer make a model hot.
    pub(super) fn forget_use(&mut self) {
        let now = self.now.mono_ms;
        self.used.retain(|_, at| now.saturating_sub(*at) < limits::HOT_MS);
    }

    /// Whether somebody would miss it: used lately, or with work that waits or runs.
    fn hot(&self, model: &str) -> bool {
        let lately = self.used.get(model).is_some_and(|at| self.now.mono_ms.saturating_sub(*at) < limits::HOT_MS);
        lately
            || self.calls.values().any(|call| call.model == model)
            || self.jobs.values().any(|job| {
                job.record.model == model
                    && job.record.state() == v1::JobState::Running
                    && (job.has_work(self.now.unix_ms) || !job.queued.is_empty() || !job.running.is_empty())
            })
    }

    /// Whether another node that stays holds the model.
    fn held_elsewhere(&self, id: &NodeId, model: &str) -> bool {
        self.nodes.iter().any(|(other, node)| {
            other != id
                && node.connected
                && !node.left
                && !node.draining
                && node.health(self.now) == Health::Ready
                && node.loaded(model).is_some()
        })
    }

    /// Asks others to load what only this node holds and somebody would miss.
    pub(super) fn plan_warming(&mut self, step: &mut Step, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let held: Vec<v1::ModelRef> = node
            .attached
            .loaded
            .iter()
            .filter_map(|loaded| loaded.model.clone())
            .filter(|model| self.hot(&model.name) && !self.held_elsewhere(id, &model.name))
            .collect();
        for model in held {
            let mut warming = Warming { model, to: None, tried: BTreeSet::new(), done: false, problem: String::new() };
            self.warm_next(step, id, &mut warming);
            if let Some(going) = self.nodes.get_mut(id).and_then(|node| node.going.as_mut()) {
                going.warming.push(warming);
            }
        }
    }

    /// Asks the next node, or says why none is asked.
    fn warm_next(&self, step: &mut Step, id: &NodeId, warming: &mut Warming) {
        let name = &warming.model.name;
        let until = self.nodes.get(id).and_then(|node| node.going.as_ref()).map_or(0, |going| going.warm_until);
        let left_ms = until.saturating_sub(self.now.mono_ms);
        if warming.tried.len() >= limits::WARM_TRIES_MAX {
            let problem = std::mem::take(&mut warming.problem);
            warming.give_up(format!("{} nodes could not load it; the last: {problem}", limits::WARM_TRIES_MAX));
            return;
        }
        let candidates = self.candidates(name);
        let fit = candidates.iter().filter(|(to, why)| why.is_ok() && to != id && !warming.tried.contains(to));
        let best = fit
            .map(|(to, _)| (self.terms(to, name, PROBE).finish(), to))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)))
            .map(|(_, to)| to.clone());
        let Some(to) = best else {
            let mut others = candidates.iter().filter(|(to, _)| to != id && !warming.tried.contains(to));
            let why = others.find_map(|(to, why)| Some(format!("{to}: {}", why.as_ref().err()?)));
            let last = std::mem::take(&mut warming.problem);
            let why = why.or((!last.is_empty()).then_some(last)).unwrap_or_else(|| "there is none".to_owned());
            warming.give_up(format!("no other node can hold it now; {why}"));
            return;
        };
        let info = self.nodes.get(&to).and_then(|node| node.model(name));
        let needs_ms = info.map_or(0.0, |info| Speeds::load_ms(info, false)) as u64;
        if needs_ms > left_ms || left_ms == 0 {
            let words =
                format!("loading it takes about {} s and {} s are left", needs_ms.div_ceil(1000), left_ms / 1000);
            warming.give_up(words);
            return;
        }
        warming.tried.insert(to.clone());
        warming.to = Some(to.clone());
        step.effects.push(Effect::Warm { node: id.clone(), model: warming.model.clone(), to, within_ms: left_ms });
    }

    /// What came of loading it there; the next node is asked if it failed.
    pub(super) fn warmed(
        &mut self,
        step: &mut Step,
        id: &NodeId,
        model: &str,
        to: &NodeId,
        result: Result<(), Problem>,
    ) {
        let waits = |warming: &Warming| !warming.done && warming.model.name == model && warming.to.as_ref() == Some(to);
        let going = self.nodes.get(id).and_then(|node| node.going.as_ref());
        let Some(at) = going.and_then(|going| going.warming.iter().position(waits)) else { return };
        let mut warming = going.expect("looked into above").warming[at].clone();
        match result {
            Ok(()) => warming.done = true,
            Err(problem) => {
                warming.problem = format!("{to}: {}", problem.message);
                self.warm_next(step, id, &mut warming);
            }
        }
        self.put_warming(id, at, warming);
    }

    fn put_warming(&mut self, id: &NodeId, at: usize, warming: Warming) {
        let going = self.nodes.get_mut(id).and_then(|node| node.going.as_mut());
        if let Some(place) = going.and_then(|going| going.warming.get_mut(at)) {
            *place = warming;
        }
    }

    /// A drain goes on without what was not loaded in time; what another node has meanwhile needs no more waiting; where the
    /// one that loads it leaves too, or is gone, another is asked.
    pub(super) fn watch_warming(&mut self, step: &mut Step, id: &NodeId) {
        let Some(going) = self.nodes.get(id).and_then(|node| node.going.clone()) else { return };
        let over = self.now.mono_ms >= going.warm_until;
        for (at, mut warming) in going.warming.into_iter().enumerate().filter(|(_, warming)| !warming.done) {
            let to = warming.to.as_ref().and_then(|to| self.nodes.get(to));
            if self.held_elsewhere(id, &warming.model.name) {
                warming.done = true;
            } else if over {
                warming.give_up("it was not loaded elsewhere in time".to_owned());
            } else if to.is_none_or(|to| to.draining || to.left || !to.connected) {
                "the node that was to load it left too".clone_into(&mut warming.problem);
                self.warm_next(step, id, &mut warming);
            } else {
                continue;
            }
            self.put_warming(id, at, warming);
        }
    }
}
