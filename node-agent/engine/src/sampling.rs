//! How tokens are chosen: the parameters with their ranges, and a counter-based random source keyed by (seed, token index).

use crate::EngineError;

/// Sampling parameters, in the order they apply: penalties, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy. Range 0 ..= 2.
    pub temperature: f32,
    /// Keep the k most probable; 0 keeps all. Range 0 ..= 1,000,000.
    pub top_k: u32,
    /// Keep the least set whose probability reaches p. Range 0 < p ..= 1.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the best one's. Range 0 ..= 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen (CTRL, arXiv:1909.05858). Range 0 < r ..= 10; 1 is off.
    pub repetition_penalty: f32,
    /// How many of the last tokens `repetition_penalty` looks at. Range 0 ..= 1,000,000; 0 is all.
    pub repetition_window: u32,
    /// Subtracted once from each token already emitted. Range −2 ..= 2.
    pub presence_penalty: f32,
    /// Subtracted per occurrence of each token already emitted. Range −2 ..= 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens. At most 1,024 entries, each −100 ..= 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// The random source's key.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks every range.
    ///
    /// # Errors
    /// [`EngineError::Input`] names the field, its range and the value.
    pub fn validate(&self) -> Result<(), EngineError> {
        fn range(name: &str, value: f32, low: f32, high: f32) -> Result<(), EngineError> {
            if value.is_finite() && (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(EngineError::Input(format!("{name} must be between {low} and {high}, got {value}")))
            }
        }
        range("temperature", self.temperature, 0.0, 2.0)?;
        range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 10.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if self.top_k > 1_000_000 {
            return Err(EngineError::Input(format!("top_k must be at most 1000000, got {}", self.top_k)));
        }
        if self.repetition_window > 1_000_000 {
            return Err(EngineError::Input(format!(
                "repetition_window must be at most 1000000, got {}",
                self.repetition_window
            )));
        }
        if self.logit_bias.len() > 1024 {
            return Err(EngineError::Input(format!(
                "logit_bias takes at most 1024 entries, got {}",
                self.logit_bias.len()
            )));
        }
        for (token, bias) in &self.logit_bias {
            range(&format!("logit_bias[{token}]"), *bias, -100.0, 100.0)?;
        }
        Ok(())
    }
}

/// A random source without state: the number depends on (seed, index) alone, so that a stream that moves to another node
/// goes on with the numbers it would have had. SplitMix64's finaliser over both (Steele, Lea, Flood 2014).
#[derive(Debug, Clone, Copy)]
pub struct SampleRng {
    seed: u64,
}

impl SampleRng {
    /// Keyed by a request's seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Uniform in [0, 1), for the token at `index`.
    #[must_use]
    pub fn uniform(self, index: u32) -> f64 {
        let mut z = mix(self.seed) ^ mix(u64::from(index).wrapping_add(0x9E37_79B9_7F4A_7C15));
        z = mix(z);
        // 53 bits are what a double holds exactly.
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_enforced() {
        let ok = Sampling::default();
        assert!(ok.validate().is_ok());
        for bad in [
            Sampling { temperature: f32::NAN, ..ok.clone() },
            Sampling { temperature: 1e30, ..ok.clone() },
            Sampling { temperature: -0.1, ..ok.clone() },
            Sampling { top_p: 1.5, ..ok.clone() },
            Sampling { top_p: 0.0, ..ok.clone() },
            Sampling { min_p: -1.0, ..ok.clone() },
            Sampling { repetition_penalty: 0.0, ..ok.clone() },
            Sampling { presence_penalty: f32::INFINITY, ..ok.clone() },
            Sampling { top_k: 2_000_000, ..ok.clone() },
            Sampling { logit_bias: vec![(1, 0.0); 1025], ..ok.clone() },
            Sampling { logit_bias: vec![(1, 101.0)], ..ok.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
        // Minus zero is zero.
        assert!(Sampling { temperature: -0.0, ..ok }.validate().is_ok());
    }

    #[test]
    fn random_numbers_depend_on_seed_and_index_alone() {
        let rng = SampleRng::new(7);
        let first: Vec<_> = (0..100).map(|i| rng.uniform(i)).collect();
        assert_eq!(first, (0..100).map(|i| SampleRng::new(7).uniform(i)).collect::<Vec<_>>());
        assert_ne!(first[0], SampleRng::new(8).uniform(0));
        let mean = (0..10_000).map(|i| rng.uniform(i)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "mean {mean}");
        assert!(first.iter().all(|u| (0.0..1.0).contains(u)));
    }
}
