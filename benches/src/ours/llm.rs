//! Reading a prompt and producing tokens with our engine.

use std::path::Path;
use std::time::{Duration, Instant};

use ingle_engine::{GenerateRequest, Message, Output, Prompt, Request, Resume, Sampling, Task};

use super::Alone;

/// Tokens of SmolLM2's vocabulary that end a text; suppressed, so that every sample has the same length.
const ENDS: [u32; 2] = [0, 2];
const BEGIN: u32 = 1;

/// Our decoder.
pub(crate) struct Decoder(Alone);

impl Decoder {
    /// Loads it.
    pub(crate) fn load(models: &Path, threads: usize) -> anyhow::Result<Self> {
        Ok(Self(Alone::load(models, Task::Generate, threads, 2048)?))
    }

    /// Tokens per second while reading a prompt of `tokens`.
    pub(crate) fn prefill(&mut self, tokens: u32) -> anyhow::Result<f64> {
        // Ordinary words' ids: which ones doesn't matter to the time.
        let prompt = Prompt::Tokens((0..tokens).map(|index| 1000 + index * 37 % 20_000).collect());
        let (prefill, _, _) = self.timed(prompt, 1)?;
        Ok(f64::from(tokens) / prefill.as_secs_f64())
    }

    /// Tokens per second while producing `tokens` from an empty context.
    pub(crate) fn decode(&mut self, tokens: u32) -> anyhow::Result<f64> {
        // The first token comes out of the prompt's pass: the others are decoded.
        let (_, decode, produced) = self.timed(Prompt::Tokens(vec![BEGIN]), tokens + 1)?;
        anyhow::ensure!(produced == tokens + 1, "{produced} tokens came instead of {}", tokens + 1);
        Ok(f64::from(tokens) / decode.as_secs_f64())
    }

    fn timed(&mut self, prompt: Prompt, max_tokens: u32) -> anyhow::Result<(Duration, Duration, u32)> {
        let request = GenerateRequest {
            prompt,
            resume: Resume::default(),
            sampling: Sampling { logit_bias: ENDS.map(|end| (end, -100.0)).to_vec(), ..Sampling::default() },
            max_tokens,
            stop: Vec::new(),
            logprobs: 0,
        };
        let (begun, mut first, mut last, mut produced) = (Instant::now(), None, None, 0);
        self.0.run(Request::Generate(request), |output| {
            if let Output::Token { .. } = output {
                let now = Instant::now();
                first.get_or_insert(now);
                last = Some(now);
                produced += 1;
            }
        })?;
        let (Some(first), Some(last)) = (first, last) else { anyhow::bail!("no token came") };
        Ok((first - begun, last - first, produced))
    }

    /// Milliseconds from asking to the first token of an answer.
    pub(crate) fn first_token_ms(&mut self, question: &str) -> anyhow::Result<f64> {
        let message = Message { role: "user".into(), content: question.to_owned() };
        let request = GenerateRequest {
            prompt: Prompt::Messages(vec![message]),
            resume: Resume::default(),
            sampling: Sampling::default(),
            max_tokens: 1,
            stop: Vec::new(),
            logprobs: 0,
        };
        let (begun, mut first) = (Instant::now(), None);
        self.0.run(Request::Generate(request), |output| {
            if let Output::Token { .. } = output {
                first.get_or_insert_with(|| begun.elapsed());
            }
        })?;
        first.map(|first| first.as_secs_f64() * 1000.0).ok_or_else(|| anyhow::anyhow!("no token came"))
    }
}
