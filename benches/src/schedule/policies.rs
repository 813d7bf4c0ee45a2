//! What others do: each call goes to a machine the moment it comes, by turns or by counting what each has.

use super::mix::{Call, Machine};
use super::office::Office;

/// How a machine is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// By turns.
    RoundRobin,
    /// Whoever has the fewest.
    LeastConnections,
    /// Whoever has the fewest for its memory's bandwidth.
    Weighted,
}

impl Policy {
    pub(crate) const ALL: [Self; 3] = [Self::RoundRobin, Self::LeastConnections, Self::Weighted];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least connections",
            Self::Weighted => "least connections by bandwidth",
        }
    }

    fn choose(self, number: usize, office: &Office, machines: &[Machine]) -> usize {
        let has = office.connections();
        let load = |at: usize| match self {
            Self::RoundRobin => f64::from(u8::from(at != number % machines.len())),
            Self::LeastConnections => has[at] as f64,
            // The one that comes counts too, or every idle machine would be as good as any.
            Self::Weighted => (has[at] + 1) as f64 / machines[at].bandwidth,
        };
        // Ties are taken by turns: nobody is preferred for its name.
        let turns = (0..machines.len()).map(|offset| (number + offset) % machines.len());
        turns.min_by(|a, b| load(*a).total_cmp(&load(*b))).unwrap_or(0)
    }

    /// Milliseconds from its coming to its end, of each call.
    pub(crate) fn run(self, machines: &[Machine], calls: &[Call]) -> Vec<f64> {
        let mut office = Office::new(machines);
        let mut took = vec![0.0; calls.len()];
        let mut next = 0;
        loop {
            let comes = calls.get(next).map(|call| call.at);
            let at = match (comes, office.next_end()) {
                (None, None) => return took,
                (Some(comes), Some(ends)) => comes.min(ends),
                (Some(at), None) | (None, Some(at)) => at,
            };
            for ended in office.advance(at) {
                took[ended] = at - calls[ended].at;
            }
            if comes.is_some_and(|comes| comes <= at) {
                let machine = self.choose(next, &office, machines);
                office.give(machine, next, &calls[next]);
                next += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mix;
    use super::*;

    #[test]
    fn every_call_ends_and_counting_beats_turns_on_unlike_machines() {
        let machines = mix::machines(1);
        let calls = mix::calls(1, &machines);
        let [turns, counted, weighted] = Policy::ALL.map(|policy| policy.run(&machines, &calls));
        for took in [&turns, &counted, &weighted] {
            assert!(took.iter().all(|took| *took > 0.0), "every call ends");
        }
        let mean = |took: &[f64]| took.iter().sum::<f64>() / took.len() as f64;
        assert!(mean(&turns) > mean(&counted) && mean(&counted) > mean(&weighted));
    }
}
