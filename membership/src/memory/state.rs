//! The registry's keys, leases and history as plain data: no clock, no locks, no waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;

use crate::limits::{
    ENTRY_OVERHEAD_BYTES, HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX, KEYS_MAX, LEASES_MAX, TOTAL_BYTES_MAX,
};
use crate::seam::{Condition, Entry, Event, LeaseId, Listing, MembershipError, PutOutcome, Revision};

struct Lease {
    ttl: Duration,
    ends: Duration,
    keys: BTreeSet<Bytes>,
}

pub(super) struct State {
    epoch: u64,
    counter: u64,
    settled: Duration,
    next_lease: u64,
    keys: BTreeMap<Bytes, Entry>,
    bytes: usize,
    leases: BTreeMap<LeaseId, Lease>,
    by_end: BTreeSet<(Duration, LeaseId)>,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// Number of the last change that is no longer in `history`.
    forgotten: u64,
}

impl State {
    pub(super) fn new(epoch: u64, settled: Duration) -> Self {
        Self {
            epoch,
            counter: 0,
            settled,
            // Leases of an earlier epoch must not be mistaken for ours.
            next_lease: ((epoch & 0xffff_ffff) << 31) + 1,
            keys: BTreeMap::new(),
            bytes: 0,
            leases: BTreeMap::new(),
            by_end: BTreeSet::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            forgotten: 0,
        }
    }

    pub(super) fn settled(&self) -> Duration {
        self.settled
    }

    pub(super) fn revision(&self) -> Revision {
        Revision { epoch: self.epoch, counter: self.counter }
    }

    /// When the next lease ends unless it is renewed.
    pub(super) fn next_end(&self) -> Option<Duration> {
        self.by_end.first().map(|(ends, _)| *ends)
    }

    pub(super) fn expire(&mut self, now: Duration) {
        while let Some((ends, lease)) = self.by_end.first().copied() {
            if ends > now {
                break;
            }
            self.revoke(lease);
        }
    }

    pub(super) fn grant(&mut self, now: Duration, ttl: Duration) -> Result<LeaseId, MembershipError> {
        if self.leases.len() >= LEASES_MAX {
            return Err(MembershipError::Full { reason: format!("{LEASES_MAX} leases are held") });
        }
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        let ends = self.end(now, ttl);
        self.leases.insert(id, Lease { ttl, ends, keys: BTreeSet::new() });
        self.by_end.insert((ends, id));
        Ok(id)
    }

    pub(super) fn keep_alive(&mut self, now: Duration, id: LeaseId) -> Result<Duration, MembershipError> {
        let settled = self.settled;
        let lease = self.leases.get_mut(&id).ok_or(MembershipError::LeaseNotFound(id))?;
        self.by_end.remove(&(lease.ends, id));
        lease.ends = now.saturating_add(lease.ttl).max(settled);
        self.by_end.insert((lease.ends, id));
        Ok(lease.ttl)
    }

    fn end(&self, now: Duration, ttl: Duration) -> Duration {
        now.saturating_add(ttl).max(self.settled)
    }

    pub(super) fn revoke(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.by_end.remove(&(lease.ends, id));
        for key in lease.keys {
            self.remove(&key);
        }
    }

    pub(super) fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        condition: Condition,
    ) -> Result<PutOutcome, MembershipError> {
        if let Some(id) = lease
            && !self.leases.contains_key(&id)
        {
            return Err(MembershipError::LeaseNotFound(id));
        }
        let before = self.keys.get(&key);
        if !holds(before, condition) {
            return Ok(PutOutcome::Refused(self.revision()));
        }
        let freed = before.map_or(0, cost);
        let bytes = self.bytes - freed + key.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        if bytes > TOTAL_BYTES_MAX {
            return Err(MembershipError::Full { reason: format!("keys and values take {TOTAL_BYTES_MAX} bytes") });
        }
        if before.is_none() && self.keys.len() >= KEYS_MAX {
            return Err(MembershipError::Full { reason: format!("{KEYS_MAX} keys are held") });
        }
        let (created, old_lease) = before.map_or((None, None), |entry| (Some(entry.created), entry.lease));
        if let Some(held) = old_lease.and_then(|id| self.leases.get_mut(&id)) {
            held.keys.remove(&key);
        }
        if let Some(held) = lease.and_then(|id| self.leases.get_mut(&id)) {
            held.keys.insert(key.clone());
        }
        self.counter += 1;
        let modified = self.revision();
        let entry = Entry { key: key.clone(), value, created: created.unwrap_or(modified), modified, lease };
        self.bytes = bytes;
        self.keys.insert(key, entry.clone());
        self.remember(Event::Put(entry));
        Ok(PutOutcome::Done(modified))
    }

    pub(super) fn delete(&mut self, key: &Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        if condition == Condition::Absent {
            return Err(MembershipError::invalid("condition", "can't be absence: there would be nothing to delete"));
        }
        let before = self.keys.get(key);
        if !holds(before, condition) {
            return Ok(PutOutcome::Refused(self.revision()));
        }
        self.remove(key);
        Ok(PutOutcome::Done(self.revision()))
    }

    fn remove(&mut self, key: &Bytes) {
        let Some(entry) = self.keys.remove(key) else { return };
        self.bytes -= cost(&entry);
        if let Some(held) = entry.lease.and_then(|id| self.leases.get_mut(&id)) {
            held.keys.remove(key);
        }
        self.counter += 1;
        self.remember(Event::Delete { key: entry.key, revision: self.revision() });
    }

    pub(super) fn list(&self, prefix: &Bytes) -> Listing {
        let entries = self
            .keys
            .range::<Bytes, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Listing { revision: self.revision(), entries }
    }

    fn remember(&mut self, event: Event) {
        self.history_bytes += weight(&event);
        self.history.push_back(event);
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= weight(&oldest);
            self.forgotten = oldest.revision().map_or(self.forgotten, |revision| revision.counter);
        }
    }

    /// At most `max` changes below a prefix after `after`, and the revision reached; `None` if they are forgotten or
    /// belong to another life of the registry.
    pub(super) fn since(&self, prefix: &Bytes, after: Revision, max: usize) -> Option<(Vec<Event>, Revision)> {
        if after.epoch != self.epoch || after.counter < self.forgotten || after.counter > self.counter {
            return None;
        }
        // Every change has the next number, so the place in history follows from it.
        let skip = usize::try_from(after.counter - self.forgotten).unwrap_or(usize::MAX);
        let mut events = Vec::new();
        for event in self.history.iter().skip(skip) {
            let key = match event {
                Event::Put(entry) => &entry.key,
                Event::Delete { key, .. } => key,
                Event::Reset | Event::Progress(_) => continue,
            };
            if key.starts_with(prefix) {
                events.push(event.clone());
                if events.len() == max {
                    let reached = event.revision().unwrap_or(after);
                    return Some((events, reached));
                }
            }
        }
        Some((events, self.revision()))
    }
}

fn holds(entry: Option<&Entry>, condition: Condition) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => entry.is_none(),
        Condition::Revision(revision) => entry.is_some_and(|entry| entry.modified == revision),
    }
}

fn cost(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len() + ENTRY_OVERHEAD_BYTES
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Put(entry) => cost(entry),
        Event::Delete { key, .. } => key.len() + ENTRY_OVERHEAD_BYTES,
        Event::Reset | Event::Progress(_) => 0,
    }
}
