//! Bounded exponential back-off with full jitter over a random source that the caller gives.

use std::time::Duration;

/// Delays that double from `first` up to `max`, each drawn evenly between half of itself and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Starts at `first` and never exceeds `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempt: 0 }
    }

    /// How often [`Self::next`] was called since the last success.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The next delay. `random` answers evenly in 0 ..= 1.
    pub fn next(&mut self, mut random: impl FnMut() -> f64) -> Duration {
        let ceiling = self.first.saturating_mul(2_u32.saturating_pow(self.attempt.min(31))).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(0.5 + random().clamp(0.0, 1.0) / 2.0)
    }

    /// [`Self::next`] over the thread's random generator.
    pub fn next_random(&mut self) -> Duration {
        self.next(fastrand::f64)
    }

    /// It worked: start over at `first`.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_bound_within_its_jitter() {
        let ms = Duration::from_millis;
        let mut high = Backoff::new(ms(100), ms(1000));
        let delays: Vec<_> = (0..6).map(|_| high.next(|| 1.0)).collect();
        assert_eq!(delays, [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]);
        high.reset();
        assert_eq!(high.next(|| 0.0), ms(50));
        let mut long = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for _ in 0..10_000 {
            let delay = long.next(|| f64::INFINITY);
            assert!(delay <= Duration::from_secs(30));
        }
    }
}
