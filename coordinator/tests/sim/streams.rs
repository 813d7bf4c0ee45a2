//! People's calls: nodes write tokens one after another, readers take each of them once, in order, whatever dies meanwhile.

use std::collections::BTreeMap;

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Adopted, Event};

use super::world::{Happening, World};

/// A call as its reader sees it.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Tokens it is to have.
    total: u32,
    /// What it has been given.
    taken: Vec<u64>,
    /// Attempt that it listens to.
    attempt: Option<u64>,
    /// Leader that knows of it.
    life: u64,
    pub(crate) end: Option<End>,
    /// What each attempt was given to go on from.
    given: BTreeMap<u64, Vec<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it was read.
    Whole,
    /// Its reader left.
    Left,
    /// The leader said that it can't go on.
    Refused,
    /// Leader and node went together: no other leader knows it.
    Gone,
}

/// The same as its node sees it.
#[derive(Debug)]
pub(crate) struct Writing {
    call: u64,
    /// Tokens it began with, and those that it wrote.
    tokens: Vec<u64>,
    began: usize,
    total: u32,
    /// Frames of one stream arrive in their order.
    told_at: u64,
}

impl Writing {
    /// Whether there is more to write.
    pub(crate) fn goes_on(&self) -> bool {
        self.tokens.len() < self.total as usize
    }
}

/// The token that follows: it depends on all that were before, as with a real model.
fn next_token(call: u64, before: &[u64]) -> u64 {
    let last = before.last().copied().unwrap_or(call);
    (last ^ before.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
}

/// A leader has had this long to hear from nodes of streams that go on, milliseconds.
const GONE_AFTER_MS: u64 = 30_000;
/// How long a node keeps what it wrote, milliseconds.
const KEPT_MS: u64 = 60_000;

impl World {
    pub(crate) fn begin_stream(&mut self, call: u64) {
        let total = self.rng.u32(1..120);
        let life = self.life;
        let stream = Stream { total, taken: Vec::new(), attempt: None, life, end: None, given: BTreeMap::new() };
        self.streams.entry(call).or_insert(stream);
    }

    pub(crate) fn end_stream(&mut self, call: u64, end: End) {
        if let Some(stream) = self.streams.get_mut(&call) {
            stream.end.get_or_insert(end);
        }
    }

    /// The leader sends it to a node: what its reader has goes with it.
    pub(crate) fn stream_dispatched(&mut self, call: u64, attempt: u64) {
        if let Some(stream) = self.streams.get_mut(&call) {
            stream.attempt = Some(attempt);
            stream.given.insert(attempt, stream.taken.clone());
        }
    }

    /// The leader takes up what another began.
    pub(crate) fn stream_adopted(&mut self, adopted: &Adopted) {
        let life = self.life;
        if let Some(stream) = self.streams.get_mut(&adopted.call.0)
            && stream.life != life
        {
            (stream.life, stream.attempt) = (life, Some(adopted.attempt));
        }
    }

    /// A node begins to write.
    pub(crate) fn write_stream(&mut self, node: usize, attempt: u64, call: u64) {
        let Some(stream) = self.streams.get(&call) else { return };
        let Some(tokens) = stream.given.get(&attempt).cloned() else { return };
        let writing = Writing { call, began: tokens.len(), tokens, total: stream.total, told_at: self.now };
        self.machines[node].streams.insert(attempt, writing);
        let start = self.machines[node].starts;
        self.soon(20..400, Happening::Token { node, start, attempt });
    }

    pub(crate) fn token(&mut self, node: usize, start: u32, attempt: u64) {
        let machine = &mut self.machines[node];
        if !machine.up || machine.starts != start {
            return;
        }
        let Some(writing) = machine.streams.get_mut(&attempt) else { return };
        if writing.tokens.len() >= writing.total as usize {
            // Kept for a while for a leader that comes.
            machine.streams.remove(&attempt);
            return;
        }
        writing.tokens.push(next_token(writing.call, &writing.tokens));
        let whole = writing.tokens.len() >= writing.total as usize;
        let last = writing.tokens.len() - 1;
        self.tell_tokens(node, attempt, last);
        let wait = if whole { KEPT_MS..KEPT_MS + 1 } else { 20..120 };
        self.soon(wait, Happening::Token { node, start, attempt });
    }

    /// Sends what was written from one token on, if there is a stream to the leader.
    fn tell_tokens(&mut self, node: usize, attempt: u64, from: usize) {
        let life = self.life;
        let delay = self.rng.u64(1..20);
        let machine = &mut self.machines[node];
        if machine.connection.is_none() {
            return;
        }
        let Some(writing) = machine.streams.get_mut(&attempt) else { return };
        let mut at = (self.now + delay).max(writing.told_at).max(machine.ordered_at);
        let mut frames = Vec::new();
        for (index, token) in writing.tokens.iter().enumerate().skip(from) {
            at += 1;
            frames.push((at, Happening::Frame { life, call: writing.call, attempt, index, token: *token }));
        }
        writing.told_at = at;
        for (at, frame) in frames {
            self.later(at, frame);
        }
    }

    /// Over a new stream to the leader a node sends again all that it wrote.
    pub(crate) fn tell_again(&mut self, node: usize) {
        let all: Vec<(u64, usize)> =
            self.machines[node].streams.iter().map(|(attempt, writing)| (*attempt, writing.began)).collect();
        for (attempt, from) in all {
            self.tell_tokens(node, attempt, from);
        }
    }

    /// Generations that this leader can't know, as a node tells it of them.
    pub(crate) fn adoptable(&self, node: usize) -> Vec<Adopted> {
        let streams = self.machines[node].streams.iter().filter(|(_, writing)| {
            self.streams.get(&writing.call).is_some_and(|stream| stream.life != self.life && stream.end.is_none())
        });
        let adopted = streams.map(|(attempt, writing)| Adopted {
            call: CallId(writing.call),
            attempt: *attempt,
            model: String::new(),
            bytes: 100,
            max_tokens: 8,
        });
        adopted.collect()
    }

    /// A frame reaches the leader, and the reader.
    pub(crate) fn frame(&mut self, life: u64, call: u64, attempt: u64, index: usize, token: u64) {
        if life != self.life || self.core.is_none() {
            return;
        }
        let Some(stream) = self.streams.get_mut(&call) else { return };
        if stream.life != life || stream.attempt != Some(attempt) || stream.end.is_some() {
            return;
        }
        if let Some(before) = stream.taken.get(index) {
            assert_eq!(*before, token, "call {call}: token {index} of attempt {attempt} is another one than before");
            return;
        }
        assert_eq!(index, stream.taken.len(), "call {call}: attempt {attempt} left tokens out");
        assert_eq!(token, next_token(call, &stream.taken), "call {call}: token {index} doesn't follow");
        stream.taken.push(token);
        self.totals.tokens += 1;
        if stream.taken.len() == stream.total as usize {
            stream.end = Some(End::Whole);
            self.totals.streams += 1;
            self.totals.moved += u64::from(stream.given.len() > 1);
            self.deliver(0..3, Event::CallEnded { call: CallId(call) });
        }
    }

    /// Readers that come back to a leader which knows nothing of their stream are told so.
    pub(crate) fn look_for_gone_streams(&mut self) {
        if self.core.is_none() || self.now < self.led_since + GONE_AFTER_MS {
            return;
        }
        for stream in self.streams.values_mut().filter(|stream| stream.life != self.life && stream.end.is_none()) {
            stream.end = Some(End::Gone);
        }
    }

    pub(crate) fn streams_ended(&self) -> bool {
        self.streams.values().all(|stream| stream.end.is_some())
    }

    pub(crate) fn open_streams(&self) -> Vec<String> {
        let open = self.streams.iter().filter(|(_, stream)| stream.end.is_none());
        open.map(|(call, stream)| format!("call {call} of life {}: {stream:?}", self.life)).take(5).collect()
    }
}
