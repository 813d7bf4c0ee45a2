//! Nodes as the leader sees them: intent (draining) beside what is observed (beats, models, attempts).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use ingle_proto::{NodeId, v1};

use super::breakers::Breakers;
use super::drains::{Cordon, Going};
use super::event::{Attached, Now};
use crate::limits;

/// How alive a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Beats come.
    Ready,
    /// Silent for 3 s: no new work.
    Suspect,
    /// Silent for 4 s: streams move.
    Quiet,
    /// Silent for 10 s: batches run elsewhere.
    Lost,
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    /// As last attached.
    pub attached: Attached,
    /// The leader's stream is open.
    pub connected: bool,
    /// Monotonic milliseconds of the last sign of life.
    pub last_seen: u64,
    /// The same for people.
    pub last_seen_unix: i64,
    /// It is to take no work: a person wants that, or it leaves.
    pub draining: bool,
    /// How far its drain is; none while it may work.
    pub(crate) going: Option<Going>,
    /// Attempts here.
    pub attempts: BTreeSet<u64>,
    /// Attempts that it was told to stop and may still be at, each with the monotonic milliseconds after which that is over.
    pub ending: BTreeMap<u64, u64>,
    /// Milliseconds busy since it started.
    pub busy_ms: u64,
    /// Bytes its models take.
    pub reserved: u64,
    /// Models that it can't run yet: their files are on their way to it, or wait for that.
    pub fetching: Vec<v1::ModelInfo>,
    /// What was done about its silence already.
    pub handled: Health,
    /// Models that failed here, until it sees its models anew.
    pub broken_models: BTreeMap<String, String>,
    /// Monotonic milliseconds before which it gets nothing after a fault of its own.
    pub rest_until: u64,
    /// Its record left membership.
    pub left: bool,
    /// What failures in a row keep from here.
    pub(crate) breakers: Breakers,
    /// Models that left its memory, oldest first.
    pub(crate) evictions: Vec<v1::Eviction>,
    /// Models whose engine stands still there, with the milliseconds that its present step takes.
    pub(crate) stalls: BTreeMap<String, u64>,
}

impl NodeEntry {
    /// How alive it is now.
    #[must_use]
    pub fn health(&self, now: Now) -> Health {
        match now.mono_ms.saturating_sub(self.last_seen) {
            silent if silent < limits::SUSPECT_MS => Health::Ready,
            silent if silent < limits::STREAMS_MOVE_MS => Health::Suspect,
            silent if silent < limits::LOST_MS => Health::Quiet,
            _ => Health::Lost,
        }
    }

    /// The model of this name, if it can be run here.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&v1::ModelInfo> {
        self.attached
            .models
            .iter()
            .find(|info| info.problem.is_empty() && info.model.as_ref().is_some_and(|m| m.name == name))
    }

    /// Whether the model of this name is on its way here.
    #[must_use]
    pub fn fetches(&self, name: &str) -> bool {
        self.fetching.iter().any(|info| info.model.as_ref().is_some_and(|m| m.name == name))
    }

    /// The loaded model of this name.
    #[must_use]
    pub fn loaded(&self, name: &str) -> Option<&v1::LoadedModel> {
        self.attached.loaded.iter().find(|l| l.model.as_ref().is_some_and(|m| m.name == name))
    }

    /// Calls of a model that it computes at once: more of them would wait there, where no other node can help.
    #[must_use]
    pub fn call_places(&self, model: &str) -> usize {
        let slots = self.attached.capacity.slots.clamp(1, 256);
        let of_model = self.loaded(model).map_or(slots, |loaded| loaded.slots.max(1));
        slots.min(of_model) as usize
    }

    /// Whether it may be given something, for all that it has said.
    fn has_room(&self) -> bool {
        self.connected && !self.left && !self.draining && self.attempts.len() < self.attempts_max()
    }

    /// Batches and calls it may hold.
    #[must_use]
    pub fn attempts_max(&self) -> usize {
        (self.attached.capacity.slots.clamp(1, 256) as usize) * limits::ATTEMPTS_PER_SLOT
    }
}

/// Takes those out that aren't there yet.
fn take_fetching(models: &mut Vec<v1::ModelInfo>) -> Vec<v1::ModelInfo> {
    models.extract_if(.., |info| unread(info)).collect()
}

/// Whether its bytes are still being read, or wait for that: only then is it known what it is. What can't be run is never
/// on its way.
fn unread(info: &v1::ModelInfo) -> bool {
    let no_digest = info.model.as_ref().is_none_or(|model| model.digest.is_empty());
    info.problem.is_empty() && (info.fetch.is_some() || no_digest)
}

/// All nodes.
#[derive(Debug, Default)]
pub struct NodeTable {
    nodes: BTreeMap<NodeId, NodeEntry>,
    /// Those that shall take no work, attached or not.
    cordoned: BTreeMap<NodeId, Cordon>,
    /// Since when more than half of them are silent.
    brake_since: Option<u64>,
    /// Nodes with room, as far as that doesn't change with time alone; true of all but those in `touched`.
    roomy: BTreeSet<NodeId>,
    /// Nodes that were changed since.
    touched: BTreeSet<NodeId>,
}

impl NodeTable {
    pub(crate) fn get(&self, node: &NodeId) -> Option<&NodeEntry> {
        self.nodes.get(node)
    }

    pub(crate) fn get_mut(&mut self, node: &NodeId) -> Option<&mut NodeEntry> {
        let entry = self.nodes.get_mut(node)?;
        // Whoever asks may change what the index is made of.
        if !self.touched.contains(node) {
            self.touched.insert(node.clone());
        }
        Some(entry)
    }

    /// Whether any had room when that was last asked.
    pub(crate) fn any_room(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// At most `most` nodes that have room, in their order, beginning after one.
    pub(crate) fn roomy_after(&mut self, after: Option<&NodeId>, most: usize) -> Vec<NodeId> {
        for id in std::mem::take(&mut self.touched) {
            if self.nodes.get(&id).is_some_and(NodeEntry::has_room) {
                self.roomy.insert(id);
            } else {
                self.roomy.remove(&id);
            }
        }
        let Some(after) = after else { return self.roomy.iter().take(most).cloned().collect() };
        let behind = self.roomy.range((Bound::Excluded(after), Bound::Unbounded));
        behind.chain(self.roomy.range(..=after)).take(most).cloned().collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &NodeEntry)> {
        self.nodes.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Takes a node's own account. Returns what its entry held before, if it was another process.
    pub(crate) fn attach(&mut self, mut attached: Attached, now: Now) -> Option<NodeEntry> {
        let fetching = take_fetching(&mut attached.models);
        let id = attached.node.clone();
        let before = self.nodes.get(&id);
        let same = before.is_some_and(|entry| entry.attached.incarnation == attached.incarnation);
        let going = before.filter(|_| same).and_then(|entry| entry.going.clone()).map(Going::on_another_stream);
        let draining = self.cordoned.contains_key(&id) || going.as_ref().is_some_and(|going| going.by_itself);
        // A process that ends again and again is what its own is for; what models did wrong ends with a process.
        let mut breakers = before.map(|entry| entry.breakers.clone()).unwrap_or_default();
        if !same {
            breakers.forget_models();
        }
        let entry = NodeEntry {
            connected: true,
            last_seen: now.mono_ms,
            last_seen_unix: now.unix_ms,
            draining,
            going: going.filter(|_| draining),
            attempts: before.filter(|_| same).map(|e| e.attempts.clone()).unwrap_or_default(),
            ending: BTreeMap::new(),
            busy_ms: 0,
            reserved: before.filter(|_| same).map_or(0, |e| e.reserved),
            handled: Health::Ready,
            broken_models: BTreeMap::new(),
            rest_until: 0,
            left: false,
            breakers,
            evictions: before.filter(|_| same).map(|e| e.evictions.clone()).unwrap_or_default(),
            stalls: BTreeMap::new(),
            fetching,
            attached,
        };
        self.touched.insert(id.clone());
        let old = self.nodes.insert(id, entry);
        old.filter(|_| !same)
    }

    pub(crate) fn detached(&mut self, node: &NodeId, _now: Now) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.connected = false;
            self.touched.insert(node.clone());
        }
    }

    pub(crate) fn beat(&mut self, node: &NodeId, incarnation: &str, busy_ms: u64, now: Now) {
        if let Some(entry) = self.nodes.get_mut(node)
            && entry.attached.incarnation == incarnation
        {
            entry.last_seen = now.mono_ms;
            entry.last_seen_unix = now.unix_ms;
            entry.busy_ms = busy_ms;
            entry.handled = Health::Ready;
        }
    }

    pub(crate) fn models(
        &mut self,
        node: &NodeId,
        mut models: Vec<v1::ModelInfo>,
        loaded: Vec<v1::LoadedModel>,
        reserved: u64,
    ) {
        let fetching = take_fetching(&mut models);
        if let Some(entry) = self.nodes.get_mut(node) {
            if entry.attached.models != models {
                entry.broken_models.clear();
                entry.breakers.forget_models();
                entry.attached.models = models;
            }
            entry.attached.loaded = loaded;
            entry.fetching = fetching;
            entry.reserved = reserved;
        }
    }

    /// Work of a model was done there.
    pub(crate) fn worked(&mut self, node: &NodeId, model: &str) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.breakers.succeeded(model);
        }
    }

    /// Takes what left its memory.
    pub(crate) fn evicted(&mut self, node: &NodeId, mut evictions: Vec<v1::Eviction>) {
        if let Some(entry) = self.nodes.get_mut(node) {
            let over = evictions.len().saturating_sub(limits::EVICTIONS_PER_NODE_MAX);
            evictions.drain(..over);
            entry.evictions = evictions;
        }
    }

    /// Takes which engines stand still.
    pub(crate) fn stalled(&mut self, node: &NodeId, stalls: BTreeMap<String, u64>) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.stalls = stalls;
        }
    }

    /// Cordons, or takes the cordon away. A node that leaves by itself takes no work either way.
    pub(crate) fn cordon(&mut self, node: &NodeId, cordon: Option<Cordon>) {
        let cordoned = cordon.is_some();
        match cordon {
            Some(cordon) => drop(self.cordoned.insert(node.clone(), cordon)),
            None => drop(self.cordoned.remove(node)),
        }
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.draining = cordoned || entry.going.as_ref().is_some_and(|going| going.by_itself);
            if !entry.draining {
                entry.going = None;
            }
            self.touched.insert(node.clone());
        }
    }

    /// Forgets a node that has left.
    pub(crate) fn remove(&mut self, node: &NodeId) {
        self.nodes.remove(node);
        self.touched.insert(node.clone());
    }

    /// Nodes that shall take no work, and how they are drained.
    pub(crate) fn cordons(&self) -> &BTreeMap<NodeId, Cordon> {
        &self.cordoned
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut NodeEntry> {
        self.nodes.values_mut()
    }

    /// Whether more than half of the nodes are silent at once: then the fault is likely ours. Nodes whose silence was dealt
    /// with before don't count, and it is believed for a while only: members may be gone for good.
    pub(crate) fn mass_failure(&self, now: Now) -> bool {
        self.half_silent(now)
            && self.brake_since.is_none_or(|since| now.mono_ms.saturating_sub(since) < limits::BRAKE_MS)
    }

    /// Silence of so many milliseconds wasn't the nodes'.
    pub(crate) fn forgive(&mut self, ms: u64, now: Now) {
        for entry in self.nodes.values_mut() {
            entry.last_seen = entry.last_seen.saturating_add(ms).min(now.mono_ms);
        }
    }

    /// Takes note of when that began.
    pub(crate) fn watch_brake(&mut self, now: Now) {
        self.brake_since = if self.half_silent(now) { self.brake_since.or(Some(now.mono_ms)) } else { None };
    }

    fn half_silent(&self, now: Now) -> bool {
        let counted = self.nodes.values().filter(|entry| !entry.left && entry.handled < Health::Lost);
        let (mut all, mut silent) = (0, 0);
        for entry in counted {
            all += 1;
            silent += usize::from(entry.health(now) != Health::Ready);
        }
        all > 2 && silent * 2 > all
    }

    /// Drops nodes that left and hold nothing, and what nodes have had time enough to stop.
    pub(crate) fn forget_departed(&mut self, now: Now) {
        for entry in self.nodes.values_mut() {
            entry.ending.retain(|_, until| *until > now.mono_ms);
        }
        let Self { nodes, touched, .. } = self;
        nodes.retain(|id, entry| {
            let gone = entry.left && entry.attempts.is_empty() && !entry.connected && entry.health(now) == Health::Lost;
            if gone {
                touched.insert(id.clone());
            }
            !gone
        });
    }
}
