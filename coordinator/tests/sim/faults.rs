//! What goes wrong, and when it stops.

use ingle_proto::{ErrorCode, Problem};

use super::world::{Happening, Ill, Mode, World};

/// A stream to a node that stands still for longer breaks, milliseconds.
const KEEPALIVE_MS: u64 = 4_000;

impl World {
    pub(crate) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let often = if self.mode == Mode::Safety { 50..1_500 } else { 200..4_000 };
        self.soon(often, Happening::Fault);
        let node = self.rng.usize(..self.machines.len());
        // Of many nodes many have something at a time.
        for _ in 0..self.machines.len() / 50 {
            let node = self.rng.usize(..self.machines.len());
            match self.rng.u32(..3) {
                0 => self.die(node, false, false),
                1 => self.cut(node),
                _ => self.pause(node),
            }
        }
        match self.rng.u32(..29) {
            0..3 => self.crash(),
            3..6 => self.die(node, false, false),
            6..9 => self.cut(node),
            9 => {
                // A switch: several at once.
                for node in 0..self.machines.len() {
                    if self.rng.bool() {
                        self.cut(node);
                    }
                }
            }
            10..13 => {
                self.trace.say(self.now, format_args!("the stream to n-{node} breaks"));
                self.hang_up(node);
            }
            13..15 => self.freeze_leader(),
            15 | 16 => self.pause(node),
            17 => {
                self.totals.slowed += 1;
                self.machines[node].slow_until = self.now + self.rng.u64(1_000..15_000);
            }
            18 => self.fall_ill(),
            19 => {
                // The machine's time is set; the other clock goes on as ever.
                self.totals.jumps += 1;
                self.skew.1 += self.rng.i64(-3_000..3_000);
            }
            20 => self.ask_to_leave(node),
            _ => self.whim(),
        }
    }

    /// A node stands still, and goes on as if nothing had been.
    fn pause(&mut self, node: usize) {
        if !self.machines[node].up || self.machines[node].paused_until > self.now {
            return;
        }
        self.totals.paused += 1;
        let long = if self.rng.u32(..3) == 0 { 8_000..25_000 } else { 200..4_000 };
        let until = self.now + self.rng.u64(long);
        self.trace.say(self.now, format_args!("n-{node} stands still until {until}"));
        self.misfortune(node);
        self.machines[node].paused_until = until;
        if until > self.now + KEEPALIVE_MS {
            self.hang_up(node);
        }
    }

    /// What a node that stands still would do waits until it goes on.
    pub(crate) fn unless_paused(&mut self, what: Happening) -> Option<Happening> {
        let node = match &what {
            Happening::Assign { node, .. }
            | Happening::CancelAttempt { node, .. }
            | Happening::Drain { node, .. }
            | Happening::Finish { node, .. }
            | Happening::Models { node, .. }
            | Happening::Dial { node, .. }
            | Happening::Leave { node, .. }
            | Happening::Farewell { node, .. }
            | Happening::Ending { node, .. }
            | Happening::Exit { node, .. }
            | Happening::Warmed { node, .. }
            | Happening::Token { node, .. } => *node,
            _ => return Some(what),
        };
        let until = self.machines[node].paused_until;
        if until <= self.now {
            return Some(what);
        }
        self.later(until, what);
        None
    }

    /// The NAS can't be worked with for a while.
    fn fall_ill(&mut self) {
        self.totals.stalls += 1;
        let how = [Ill::Stalled, Ill::Full, Ill::Corrupt][self.rng.usize(..3)];
        let until = self.now + self.rng.u64(500..15_000);
        self.trace.say(self.now, format_args!("the NAS is {how:?} until {until}"));
        self.nas_away = (until, how);
    }

    /// Why the NAS can't be worked with now.
    pub(crate) fn ill(&self, words: &str) -> Problem {
        match self.nas_away.1 {
            Ill::Stalled => super::gateway::away(words),
            Ill::Full => super::gateway::full(words),
            Ill::Corrupt => Problem::new(ErrorCode::DigestMismatch, words),
        }
    }

    /// Nothing gets through to a node or from it for a while.
    fn cut(&mut self, node: usize) {
        if !self.machines[node].link {
            return;
        }
        self.totals.cuts += 1;
        self.trace.say(self.now, format_args!("n-{node} is cut off"));
        self.misfortune(node);
        self.machines[node].link = false;
        self.hang_up(node);
        let long = if self.rng.u32(..3) == 0 { 8_000..25_000 } else { 200..4_000 };
        self.soon(long, Happening::Heal(node));
    }

    /// No more faults; people undo what they asked for, again and again until it holds.
    pub(crate) fn become_calm(&mut self) {
        if !self.calm {
            self.trace.say(self.now, format_args!("the faults stop"));
        }
        self.calm = true;
        self.nas_away.0 = 0;
        for machine in &mut self.machines {
            machine.paused_until = machine.paused_until.min(self.now);
        }
        self.later(self.now + 5_000, Happening::Calm);
        self.set_right();
    }
}
