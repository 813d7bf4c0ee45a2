//! One generation on its way: the prompt in chunks, then a token at a time, each through sampler, detokenizer and stop matcher.

use std::time::Instant;

use ingle_engine::{
    EngineError, Finish, GenerateRequest, Output, RequestId, SampleRng, TextStream, Timings, TokenLogprob,
};

use super::decoder::Decoder;
use super::sample::{self, History};
use super::vocabulary::{Vocabulary, too_long};
use crate::pool::Turn;

/// Prompt tokens per chunk. Fixed: a stream that moves to another node must be fed with the same boundaries, for products of
/// other shapes round otherwise. A chunk unpacks all weights once: with fewer tokens that is most of its time, with more a person's
/// request waits longer for its turn.
const CHUNK_TOKENS: usize = 16;

/// What a unit of work came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// More of the prompt or of a resumed stream's past was read.
    Read,
    /// A token came out.
    Token,
    /// It has ended.
    Ended,
}

/// See the module's text.
pub(crate) struct Sequence {
    decoder: Decoder,
    request: GenerateRequest,
    prompt: Vec<u32>,
    emitted: Vec<u32>,
    /// How many of `emitted` came from another node.
    resumed: usize,
    finish: Option<Finish>,
    announced: bool,
    stream: TextStream,
    timings: Timings,
}

impl Sequence {
    /// `prompt` is what the request's prompt became; it must be in the vocabulary.
    pub(crate) fn new(
        decoder: Decoder,
        mut request: GenerateRequest,
        prompt: Vec<u32>,
        vocabulary: &Vocabulary,
        context: usize,
    ) -> Result<Self, EngineError> {
        let emitted = std::mem::take(&mut request.resume.emitted);
        if prompt.is_empty() {
            return Err(EngineError::Input("the prompt is empty".into()));
        }
        if prompt.len() >= context {
            return Err(too_long(prompt.len(), context, ""));
        }
        if prompt.len() + emitted.len() > context {
            return Err(too_long(prompt.len() + emitted.len(), context, "with what was said already "));
        }
        if let Some(id) = prompt.iter().chain(&emitted).find(|id| **id as usize >= vocabulary.len()) {
            return Err(EngineError::Input(format!("token {id} is beyond the vocabulary of {}", vocabulary.len())));
        }
        if let Some((id, _)) = request.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary.len()) {
            return Err(EngineError::Input(format!(
                "logit_bias names token {id}, beyond the vocabulary of {}",
                vocabulary.len()
            )));
        }
        let mut stream = TextStream::new(&request.stop);
        stream.skip_delivered(request.resume.text_offset);
        let mut sequence = Self {
            decoder,
            resumed: emitted.len(),
            prompt,
            emitted: Vec::new(),
            finish: None,
            announced: false,
            stream,
            timings: Timings::default(),
            request,
        };
        for token in emitted {
            sequence.take_in(token, vocabulary, context);
        }
        Ok(sequence)
    }

    /// Tokens in the cache.
    pub(crate) fn tokens_held(&self) -> u64 {
        self.decoder.length() as u64
    }

    /// A chunk of the prompt, a token of a resumed past, or a new token.
    pub(crate) fn unit(
        &mut self,
        turn: &Turn<'_>,
        id: RequestId,
        vocabulary: &Vocabulary,
        context: usize,
        out: &mut Vec<Output>,
    ) -> Result<Unit, EngineError> {
        let begun = Instant::now();
        if !self.announced {
            out.push(Output::PromptTokens { id, ids: self.prompt.clone() });
            self.announced = true;
        }
        if self.finish.is_none() {
            // The unit that reads the last of what was given makes the first token too; its time is reading.
            let given = self.prompt.len() + self.resumed;
            let reading = self.decoder.length() < given;
            let logits = self.feed_next(turn)?;
            let said = match logits {
                None => Unit::Read,
                Some(logits) => self.say(id, logits, vocabulary, context, out)?,
            };
            let spent = begun.elapsed();
            *(if reading { &mut self.timings.prefill } else { &mut self.timings.decode }) += spent;
            if self.finish.is_none() {
                return Ok(said);
            }
        }
        self.end(id, out);
        Ok(Unit::Ended)
    }

    /// Feeds what comes next; logits once everything known has been fed.
    fn feed_next(&mut self, turn: &Turn<'_>) -> Result<Option<Vec<f32>>, EngineError> {
        let fed = self.decoder.length();
        let ids = if fed < self.prompt.len() {
            &self.prompt[fed..self.prompt.len().min(fed + CHUNK_TOKENS)]
        } else {
            // What was said goes through one by one, resumed or not.
            &self.emitted[fed - self.prompt.len()..][..1]
        };
        let last = fed + ids.len() == self.prompt.len() + self.emitted.len();
        self.decoder.feed(turn, ids, last)
    }

    fn say(
        &mut self,
        id: RequestId,
        mut logits: Vec<f32>,
        vocabulary: &Vocabulary,
        context: usize,
        out: &mut Vec<Output>,
    ) -> Result<Unit, EngineError> {
        // Rows beyond the vocabulary are padding.
        logits.truncate(vocabulary.len());
        let index = u32::try_from(self.emitted.len()).unwrap_or(u32::MAX);
        let uniform = SampleRng::new(self.request.sampling.seed).uniform(index);
        let history = History { prompt: &self.prompt, emitted: &self.emitted };
        let token = sample::choose(&logits, &self.request.sampling, history, uniform)?;
        if vocabulary.ends(token) {
            self.finish = Some(Finish::Stop);
            return Ok(Unit::Token);
        }
        self.take_in(token, vocabulary, context);
        let (text_offset, text) = self.stream.take();
        let logprobs = match self.request.logprobs {
            0 => vec![],
            count => sample::logprobs(&logits, token, count as usize)
                .into_iter()
                .map(|(token, logprob)| {
                    let text = String::from_utf8_lossy(vocabulary.bytes(token)).into_owned();
                    TokenLogprob { token, text, logprob }
                })
                .collect(),
        };
        out.push(Output::Token { id, index, token, text_offset, text, logprobs });
        Ok(Unit::Token)
    }

    /// Counts a token as said and sees whether it is the last.
    fn take_in(&mut self, token: u32, vocabulary: &Vocabulary, context: usize) {
        self.emitted.push(token);
        let stopped = self.stream.push(vocabulary.bytes(token));
        let count = self.emitted.len();
        if self.finish.is_some() {
            return;
        }
        if stopped {
            self.finish = Some(Finish::Stop);
        } else if count as u64 >= u64::from(self.request.max_tokens) || self.prompt.len() + count >= context {
            self.finish = Some(Finish::Length);
        }
    }

    fn end(&mut self, id: RequestId, out: &mut Vec<Output>) {
        self.stream.finish();
        let (text_offset, text) = self.stream.take();
        out.push(Output::Done {
            id,
            finish: self.finish.unwrap_or(Finish::Stop),
            text,
            text_offset,
            prompt_tokens: u32::try_from(self.prompt.len()).unwrap_or(u32::MAX),
            output_tokens: u32::try_from(self.emitted.len()).unwrap_or(u32::MAX),
            timings: self.timings,
        });
    }
}
