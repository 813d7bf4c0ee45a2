//! What goes wrong, and when it stops.

use super::world::{Happening, Mode, World};

impl World {
    pub(crate) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let often = if self.mode == Mode::Safety { 50..1_500 } else { 200..4_000 };
        self.soon(often, Happening::Fault);
        let node = self.rng.usize(..self.machines.len());
        match self.rng.u32(..20) {
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
            _ => self.whim(),
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
        self.later(self.now + 5_000, Happening::Calm);
        self.set_right();
    }
}
