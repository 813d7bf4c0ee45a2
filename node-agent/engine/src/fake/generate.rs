//! Scripted answers: each token is a function of the prompt's ids, the seed and the token's index.

use std::time::Instant;

use super::words::{FakeTokens, VOCABULARY, answer_token, hash_ids, mix, token_bytes};
use crate::{
    EngineError, Finish, GenerateRequest, Output, Prompt, RequestId, TextStream, Timings, TokenLogprob, Tokens,
};

pub(super) struct Generation {
    prompt: Vec<u32>,
    key: u64,
    /// Prompt tokens read so far.
    fed: usize,
    /// Tokens emitted, those of a resumed stream's past included.
    emitted: u32,
    last: Option<Finish>,
    natural_end: u32,
    context: usize,
    announced: bool,
    stream: TextStream,
    timings: Timings,
    request: GenerateRequest,
}

impl Generation {
    pub(super) fn new(
        request: GenerateRequest,
        output_tokens: Option<u32>,
        tokens: &FakeTokens,
    ) -> Result<Self, EngineError> {
        let prompt = match &request.prompt {
            Prompt::Tokens(ids) => ids.clone(),
            Prompt::Messages(messages) => {
                let turns = messages.iter().map(|message| format!("{}: {}\n", message.role, message.content));
                tokens.encode(&turns.collect::<String>())?.ids
            }
        };
        let context = tokens.max_tokens() + 2;
        if prompt.len() + request.resume.emitted.len() >= context {
            return Err(EngineError::Input(format!(
                "the prompt has {} tokens, the context holds {context}",
                prompt.len() + request.resume.emitted.len()
            )));
        }
        let key = hash_ids(&prompt);
        let natural_end = output_tokens.unwrap_or(16 + (mix(key ^ request.sampling.seed) % 48) as u32);
        let mut stream = TextStream::new(&request.stop);
        stream.skip_delivered(request.resume.text_offset);
        let mut last = None;
        for token in &request.resume.emitted {
            if stream.push(&token_bytes(*token)) {
                last = Some(Finish::Stop);
            }
        }
        Ok(Self {
            key,
            fed: 0,
            emitted: u32::try_from(request.resume.emitted.len()).unwrap_or(u32::MAX),
            last,
            natural_end,
            context,
            announced: false,
            stream,
            timings: Timings::default(),
            prompt,
            request,
        })
    }

    /// Tokens a real model would hold in its cache.
    pub(super) fn tokens_held(&self) -> u64 {
        self.fed as u64 + u64::from(self.emitted)
    }

    /// The index of the token that it says next; none while it reads.
    pub(super) fn next_token(&self) -> Option<u32> {
        (self.announced && self.fed >= self.prompt.len()).then_some(self.emitted)
    }

    /// What the answer so far does to the next token: penalties look back. The two tokens of a pair see the same past, so that
    /// characters stay whole.
    fn past(&self, index: u32) -> u64 {
        let sampling = &self.request.sampling;
        let off =
            sampling.repetition_penalty == 1.0 && sampling.presence_penalty == 0.0 && sampling.frequency_penalty == 0.0;
        if off {
            return 0;
        }
        let pairs = self.request.resume.emitted.len().min((index - index % 2) as usize);
        hash_ids(&self.request.resume.emitted[..pairs])
    }

    /// Reads up to `budget` tokens of the prompt or says one token; true once it has ended.
    pub(super) fn step(&mut self, id: RequestId, budget: usize, out: &mut Vec<Output>) -> bool {
        let begun = Instant::now();
        if !self.announced {
            out.push(Output::PromptTokens { id, ids: self.prompt.clone() });
            self.announced = true;
        }
        if self.fed < self.prompt.len() {
            self.fed = (self.fed + budget).min(self.prompt.len());
            self.timings.prefill += begun.elapsed();
            return false;
        }
        let ended = self.end();
        if ended.is_none() {
            self.say(id, out);
        }
        self.timings.decode += begun.elapsed();
        let Some(finish) = ended.or_else(|| self.end()) else { return false };
        self.stream.finish();
        let (text_offset, text) = self.stream.take();
        out.push(Output::Done {
            id,
            finish,
            text,
            text_offset,
            prompt_tokens: u32::try_from(self.prompt.len()).unwrap_or(u32::MAX),
            output_tokens: self.emitted,
            timings: self.timings,
        });
        true
    }

    fn end(&self) -> Option<Finish> {
        match self.last {
            Some(finish) => Some(finish),
            None if self.emitted >= self.natural_end => Some(Finish::Stop),
            None if self.emitted >= self.request.max_tokens => Some(Finish::Length),
            None if self.prompt.len() + self.emitted as usize >= self.context => Some(Finish::Length),
            None => None,
        }
    }

    fn say(&mut self, id: RequestId, out: &mut Vec<Output>) {
        let index = self.emitted;
        let token = answer_token(self.key ^ self.past(index), self.request.sampling.seed, index);
        self.emitted += 1;
        self.request.resume.emitted.push(token);
        if self.stream.push(&token_bytes(token)) {
            self.last = Some(Finish::Stop);
        }
        let (text_offset, text) = self.stream.take();
        let logprobs = if self.request.logprobs == 0 { vec![] } else { self.logprobs(token) };
        out.push(Output::Token { id, index, token, text_offset, text, logprobs });
    }

    fn logprobs(&self, chosen: u32) -> Vec<TokenLogprob> {
        (0..self.request.logprobs.min(VOCABULARY - 1) + 1)
            .map(|rank| {
                let token = (chosen + rank) % VOCABULARY;
                let text = String::from_utf8_lossy(&token_bytes(token)).into_owned();
                TokenLogprob { token, text, logprob: -0.5 - rank as f32 }
            })
            .collect()
    }
}
