//! The recorded mix: unlike nodes as a small office has them, and calls as its people make them; all of it from constants and a seed.

use ingle_proto::v1;

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machine {
    /// Bytes per second that its memory moves: what writing an answer is bound by.
    pub(crate) bandwidth: f64,
    /// Operations per second: what reading a prompt is bound by.
    pub(crate) compute: f64,
    /// Answers it writes at once.
    pub(crate) slots: u32,
    /// What it really reaches of what its figures promise: its cooling, its memory's timing, its neighbours.
    pub(crate) reaches: f64,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Call {
    /// When it comes, milliseconds.
    pub(crate) at: f64,
    /// Bytes of its prompt.
    pub(crate) bytes: u64,
    /// Tokens it may write: all that the scheduler is told.
    pub(crate) max_tokens: u32,
    /// Tokens it writes.
    pub(crate) tokens: u32,
}

/// Parameters and bytes of the model: three billion at four bits and some.
pub(crate) const PARAMETERS: u64 = 3_200_000_000;
pub(crate) const MODEL_BYTES: u64 = 2_000_000_000;
/// Calls of one run.
pub(crate) const CALLS: usize = 2_000;
/// Share of what all machines together can do that is asked for.
const LOAD: f64 = 0.6;
const BYTES_PER_TOKEN: f64 = 4.0;
/// Tokens of a chat's template, as the scheduler counts them too.
const TEMPLATE_TOKENS: f64 = 32.0;

/// Five mini-PCs, four desktops, two with wide memory, one with a graphics card.
const KINDS: [(usize, Machine); 4] = [
    (5, Machine { bandwidth: 20e9, compute: 0.3e12, slots: 2, reaches: 1.0 }),
    (4, Machine { bandwidth: 60e9, compute: 1.2e12, slots: 2, reaches: 1.0 }),
    (2, Machine { bandwidth: 200e9, compute: 5e12, slots: 4, reaches: 1.0 }),
    (1, Machine { bandwidth: 900e9, compute: 60e12, slots: 8, reaches: 1.0 }),
];

impl Machine {
    /// Tokens per second that it reads and writes.
    pub(crate) fn speed(&self) -> (f64, f64) {
        let read = self.compute * 0.3 / (2.0 * PARAMETERS as f64);
        let write = self.bandwidth * 0.5 / MODEL_BYTES as f64;
        (read * self.reaches, write * self.reaches)
    }

    /// Milliseconds that a call takes here alone.
    pub(crate) fn alone_ms(&self, call: &Call) -> f64 {
        let (read, write) = self.speed();
        let prompt = call.bytes as f64 / BYTES_PER_TOKEN + TEMPLATE_TOKENS;
        1e3 * (prompt / read + f64::from(call.tokens) / write)
    }

    pub(crate) fn capacity(&self) -> v1::Capacity {
        v1::Capacity {
            memory_bandwidth: self.bandwidth,
            compute_f32: self.compute,
            slots: self.slots,
            cpu: "recorded".into(),
            ..Default::default()
        }
    }
}

/// The machines.
pub(crate) fn machines(seed: u64) -> Vec<Machine> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x4D41);
    let all = KINDS.iter().flat_map(|(count, machine)| std::iter::repeat_n(*machine, *count));
    all.map(|machine| Machine { reaches: 0.8 + 0.4 * rng.f64(), ..machine }).collect()
}

/// The calls, in the order they come.
pub(crate) fn calls(seed: u64, machines: &[Machine]) -> Vec<Call> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x4341);
    let mut calls: Vec<Call> = (0..CALLS)
        .map(|_| {
            // Most are chats; some have a document with them, some ask for one word.
            let (bytes, max_tokens) = match rng.u32(..10) {
                0 => (rng.u64(6_000..14_000), rng.u32(64..512)),
                1 | 2 => (rng.u64(200..2_000), rng.u32(4..17)),
                _ => (rng.u64(100..3_000), rng.u32(64..384)),
            };
            // Answers often end before their bound.
            let tokens = (f64::from(max_tokens) * (0.3 + 0.7 * rng.f64())).ceil() as u32;
            Call { at: 0.0, bytes, max_tokens, tokens }
        })
        .collect();
    // Alone on all machines, each taking its share, they would take this long.
    let rate: f64 = machines
        .iter()
        .map(|machine| {
            let mean = calls.iter().map(|call| machine.alone_ms(call)).sum::<f64>() / calls.len() as f64;
            1.0 / mean
        })
        .sum();
    let gap = 1.0 / (rate * LOAD);
    let mut at = 0.0;
    for call in &mut calls {
        at += -gap * (1.0 - rng.f64()).ln();
        call.at = at;
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_mix_and_the_load_is_as_said() {
        let machines_ = machines(7);
        assert_eq!(machines_, machines(7));
        assert_ne!(machines_, machines(8));
        let calls_ = calls(7, &machines_);
        assert_eq!(calls_, calls(7, &machines_));
        assert_eq!((machines_.len(), calls_.len()), (12, CALLS));
        assert!(calls_.windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert!(calls_.iter().all(|call| (1..=call.max_tokens).contains(&call.tokens)));
        let fastest = machines_.iter().max_by(|a, b| a.bandwidth.total_cmp(&b.bandwidth)).unwrap();
        let slowest = machines_.iter().min_by(|a, b| a.bandwidth.total_cmp(&b.bandwidth)).unwrap();
        assert!(slowest.alone_ms(&calls_[0]) > 20.0 * fastest.alone_ms(&calls_[0]), "they are unlike");
    }
}
