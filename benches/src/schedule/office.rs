//! Machines in virtual time: each works on as many calls at once as it has slots, equally on each; others wait in their order.

use std::collections::VecDeque;

use super::mix::{Call, Machine};

/// A call at a machine, and what is left of it in milliseconds of the machine alone.
#[derive(Debug, Clone, Copy)]
struct Task {
    call: usize,
    left_ms: f64,
}

#[derive(Debug, Default)]
struct Desk {
    active: Vec<Task>,
    waiting: VecDeque<Task>,
}

/// All machines at one moment.
pub(crate) struct Office {
    machines: Vec<Machine>,
    desks: Vec<Desk>,
    now: f64,
}

/// Less than this is nothing, milliseconds: sums of fractions leave dust.
const DUST_MS: f64 = 1e-6;

impl Office {
    pub(crate) fn new(machines: &[Machine]) -> Self {
        let desks = machines.iter().map(|_| Desk::default()).collect();
        Self { machines: machines.to_vec(), desks, now: 0.0 }
    }

    /// Calls that each machine has, at work or waiting.
    pub(crate) fn connections(&self) -> Vec<usize> {
        self.desks.iter().map(|desk| desk.active.len() + desk.waiting.len()).collect()
    }

    pub(crate) fn give(&mut self, machine: usize, number: usize, call: &Call) {
        let task = Task { call: number, left_ms: self.machines[machine].alone_ms(call) };
        let desk = &mut self.desks[machine];
        if desk.active.len() < self.machines[machine].slots as usize {
            desk.active.push(task);
        } else {
            desk.waiting.push_back(task);
        }
    }

    /// When the next call ends if none comes before.
    pub(crate) fn next_end(&self) -> Option<f64> {
        let ends = self.desks.iter().filter_map(|desk| {
            let least = desk.active.iter().map(|task| task.left_ms).min_by(f64::total_cmp)?;
            Some(self.now + least * desk.active.len() as f64)
        });
        ends.min_by(f64::total_cmp)
    }

    /// Goes on to a moment, which is no later than the next end; which calls end then.
    pub(crate) fn advance(&mut self, to: f64) -> Vec<usize> {
        let passed = (to - self.now).max(0.0);
        self.now = to;
        let mut ended = Vec::new();
        for (desk, machine) in self.desks.iter_mut().zip(&self.machines) {
            let share = passed / desk.active.len().max(1) as f64;
            desk.active.iter_mut().for_each(|task| task.left_ms -= share);
            ended.extend(desk.active.extract_if(.., |task| task.left_ms <= DUST_MS).map(|task| task.call));
            while desk.active.len() < machine.slots as usize
                && let Some(task) = desk.waiting.pop_front()
            {
                desk.active.push(task);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_shared_and_none_is_lost() {
        let machine = Machine { bandwidth: 20e9, compute: 1e12, slots: 2, reaches: 1.0 };
        let mut office = Office::new(&[machine]);
        let call = Call { at: 0.0, bytes: 400, max_tokens: 100, tokens: 50 };
        let alone = machine.alone_ms(&call);
        for number in 0..3 {
            office.give(0, number, &call);
        }
        assert_eq!(office.connections(), [3]);
        let first = office.next_end().unwrap();
        assert!((first - 2.0 * alone).abs() < 1e-3, "two at once take twice as long: {first}, alone {alone}");
        assert_eq!(office.advance(first), [0, 1]);
        let last = office.next_end().unwrap();
        assert!((last - 3.0 * alone).abs() < 1e-3);
        assert_eq!(office.advance(last), [2]);
        assert_eq!((office.next_end(), office.connections()), (None, vec![0]));
    }
}
