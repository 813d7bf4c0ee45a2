//! Vectors from hashes: texts that share words are near each other, so that a search over fakes finds what it should.

use std::time::{Duration, Instant};

use super::words::{FakeTokens, hash, mix};
use crate::{EmbedText, EngineError, Finish, Output, RequestId, Timings, Tokens};

pub(super) struct Embedding {
    texts: Vec<Prepared>,
    next: usize,
    dimensions: u32,
    spent: Duration,
}

struct Prepared {
    words: Vec<u64>,
    truncated: bool,
}

impl Embedding {
    pub(super) fn new(texts: Vec<EmbedText>, dimensions: u32, tokens: &FakeTokens) -> Result<Self, EngineError> {
        let prepare = |EmbedText { text, ids }: &EmbedText| {
            let encoding = tokens.encode(text)?;
            // A real model would believe them, and say something else than of the same text without.
            if ids.as_ref().is_some_and(|ids| **ids != encoding.ids) {
                return Err(EngineError::Input(format!("these ids aren't those of the text {text:?}")));
            }
            let limit = tokens.max_tokens();
            let words = encoding
                .offsets
                .iter()
                .take(limit)
                .map(|&(start, end)| hash(text[start..end].trim().to_lowercase().as_bytes()));
            Ok(Prepared { words: words.collect(), truncated: encoding.ids.len() > limit })
        };
        let texts = texts.iter().map(prepare).collect::<Result<_, EngineError>>()?;
        Ok(Self { texts, next: 0, dimensions, spent: Duration::ZERO })
    }

    /// Embeds about `budget` tokens' worth of texts; true once all are done.
    pub(super) fn step(&mut self, id: RequestId, budget: usize, out: &mut Vec<Output>) -> bool {
        let begun = Instant::now();
        let mut left = budget;
        while let Some(text) = self.texts.get(self.next) {
            let cost = text.words.len() + 2;
            if cost > left && left < budget {
                break;
            }
            left = left.saturating_sub(cost);
            out.push(Output::Embedding {
                id,
                index: u32::try_from(self.next).unwrap_or(u32::MAX),
                vector: vector(&text.words, self.dimensions),
                tokens: u32::try_from(cost).unwrap_or(u32::MAX),
                truncated: text.truncated,
            });
            self.next += 1;
            if left == 0 {
                break;
            }
        }
        self.spent += begun.elapsed();
        if self.next < self.texts.len() {
            return false;
        }
        let tokens: usize = self.texts.iter().map(|text| text.words.len() + 2).sum();
        out.push(Output::Done {
            id,
            finish: Finish::Stop,
            text: String::new(),
            text_offset: 0,
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            output_tokens: 0,
            timings: Timings { prefill: self.spent, decode: Duration::ZERO },
        });
        true
    }
}

fn vector(words: &[u64], dimensions: u32) -> Vec<f32> {
    // The sum of the words' own directions, and a small one that all texts share so that the empty text has a direction too.
    let mut sum: Vec<f64> = (0..dimensions).map(|d| 0.01 * direction(0, d)).collect();
    for word in words {
        for (d, value) in sum.iter_mut().enumerate() {
            *value += direction(*word, d as u32);
        }
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.iter().map(|value| (value / length) as f32).collect()
}

/// Between −1 and 1.
fn direction(word: u64, dimension: u32) -> f64 {
    let bits = mix(word ^ mix(u64::from(dimension) + 1)) >> 11;
    bits as f64 / (1u64 << 52) as f64 - 1.0
}
