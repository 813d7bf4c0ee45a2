//! Who is in the model and who waits: the order of entry, and how a batch request that made room goes on later.

use std::collections::{BTreeMap, VecDeque};

use ingle_engine::{Class, EmbedRequest, EngineError, OcrRequest, Output, Prompt, Request, RequestId, Timings};

use super::{Event, Join, Reader};

/// A request with what is needed to start it again where it stopped.
pub(super) struct Guest {
    pub(super) class: Class,
    pub(super) reader: Reader,
    progress: Progress,
    /// Order of entry: who came last makes room first.
    entered: u64,
    /// Tokens that it was given here: in all, and since it entered.
    said: (u32, u32),
}

enum Progress {
    Embed {
        request: EmbedRequest,
        /// For each text in the model now, its index in the whole request.
        indices: Vec<u32>,
        done: Vec<bool>,
        tokens: u32,
        timings: Timings,
    },
    Generate {
        request: ingle_engine::GenerateRequest,
        prompt_sent: bool,
        timings: Timings,
    },
    /// A page that made room is read again from its top.
    Ocr(OcrRequest),
}

impl Guest {
    pub(super) fn new(join: Join) -> (RequestId, Self) {
        let progress = match join.request {
            Request::Embed(request) => Progress::Embed {
                done: vec![false; request.texts.len()],
                indices: Vec::new(),
                tokens: 0,
                timings: Timings::default(),
                request,
            },
            Request::Generate(request) => {
                Progress::Generate { request, prompt_sent: false, timings: Timings::default() }
            }
            Request::Ocr(request) => Progress::Ocr(request),
        };
        (join.id, Self { class: join.class, reader: join.reader, progress, entered: 0, said: (0, 0) })
    }

    /// The request to enter the model with: what is left of it.
    fn request(&mut self) -> Request {
        match &mut self.progress {
            Progress::Embed { request, indices, done, .. } => {
                let left: Vec<u32> = (0u32..).zip(done.iter()).filter(|(_, done)| !**done).map(|(i, _)| i).collect();
                let texts = left.iter().map(|&index| request.texts[index as usize].clone()).collect();
                *indices = left;
                Request::Embed(EmbedRequest { texts, normalise: request.normalise })
            }
            Progress::Generate { request, .. } => Request::Generate(request.clone()),
            Progress::Ocr(request) => Request::Ocr(request.clone()),
        }
    }

    /// Translates what the model said and remembers how far the request came. `None` for what the reader knows already.
    fn take(&mut self, output: Output) -> Option<Event> {
        match (&mut self.progress, output) {
            (
                Progress::Embed { indices, done, tokens: sum, .. },
                Output::Embedding { index, vector, tokens, truncated, .. },
            ) => {
                let index = *indices.get(index as usize)?;
                *done.get_mut(index as usize)? = true;
                *sum = sum.saturating_add(tokens);
                Some(Event::Embedding { index, vector, tokens, truncated })
            }
            (Progress::Generate { request, prompt_sent, .. }, Output::PromptTokens { ids, .. }) => {
                request.prompt = Prompt::Tokens(ids.clone());
                (!std::mem::replace(prompt_sent, true)).then_some(Event::Prompt(ids))
            }
            (Progress::Generate { request, .. }, Output::Token { index, token, text_offset, text, logprobs, .. }) => {
                request.resume.emitted.push(token);
                self.said = (self.said.0.saturating_add(1), self.said.1.saturating_add(1));
                request.resume.text_offset = text_offset + text.len() as u64;
                Some(Event::Token { index, token, text_offset, text, logprobs })
            }
            (Progress::Ocr(_), Output::Page { page, .. }) => Some(Event::Page(page)),
            (progress, Output::Done { finish, text, text_offset, prompt_tokens, output_tokens, timings, .. }) => {
                let (before, prompt_tokens) = match progress {
                    Progress::Embed { timings, tokens, .. } => (*timings, *tokens),
                    Progress::Generate { timings, .. } => (*timings, prompt_tokens),
                    Progress::Ocr(_) => (Timings::default(), prompt_tokens),
                };
                let timings =
                    Timings { prefill: before.prefill + timings.prefill, decode: before.decode + timings.decode };
                Some(Event::Done { finish, text, text_offset, prompt_tokens, output_tokens, timings })
            }
            _ => None,
        }
    }
}

/// The requests of one model.
#[derive(Default)]
pub(super) struct Hall {
    pub(super) inside: BTreeMap<RequestId, Guest>,
    interactive: VecDeque<(RequestId, Guest)>,
    batch: VecDeque<(RequestId, Guest)>,
    entries: u64,
}

impl Hall {
    pub(super) fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.waiting() == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.interactive.len() + self.batch.len()
    }

    /// Tokens that generations in the model hold: what they were asked and what they have said.
    pub(super) fn tokens_held(&self) -> u64 {
        let held = |guest: &Guest| match &guest.progress {
            Progress::Generate { request, .. } => {
                let prompt = match &request.prompt {
                    Prompt::Tokens(ids) => ids.len(),
                    // Not told yet: that comes with its first step.
                    Prompt::Messages(_) => 0,
                };
                (prompt + request.resume.emitted.len()) as u64
            }
            Progress::Embed { .. } | Progress::Ocr(_) => 0,
        };
        self.inside.values().map(held).sum()
    }

    pub(super) fn interactive_waits(&self) -> bool {
        !self.interactive.is_empty()
    }

    /// Whether there is work, and none of it is a person's.
    pub(super) fn only_batch_inside(&self) -> bool {
        !self.inside.is_empty()
            && !self.interactive_waits()
            && self.inside.values().all(|guest| guest.class == Class::Batch)
    }

    /// Puts a request at the end of its class.
    pub(super) fn enqueue(&mut self, id: RequestId, guest: Guest) {
        match guest.class {
            Class::Interactive => self.interactive.push_back((id, guest)),
            Class::Batch => self.batch.push_back((id, guest)),
        }
    }

    /// Takes a request out wherever it is; true if it was in the model.
    pub(super) fn leave(&mut self, id: RequestId) -> bool {
        self.interactive.retain(|(other, _)| *other != id);
        self.batch.retain(|(other, _)| *other != id);
        self.inside.remove(&id).is_some()
    }

    /// The next request to enter, with what to enter with.
    pub(super) fn next(&mut self) -> Option<(RequestId, Guest, Request)> {
        let (id, mut guest) = self.interactive.pop_front().or_else(|| self.batch.pop_front())?;
        let request = guest.request();
        Some((id, guest, request))
    }

    /// It is in the model.
    pub(super) fn enter(&mut self, id: RequestId, mut guest: Guest) {
        self.entries += 1;
        guest.entered = self.entries;
        guest.said.1 = 0;
        self.inside.insert(id, guest);
    }

    /// Puts a request that found no slot back to the front.
    pub(super) fn put_back(&mut self, id: RequestId, guest: Guest) {
        match guest.class {
            Class::Interactive => self.interactive.push_front((id, guest)),
            Class::Batch => self.batch.push_front((id, guest)),
        }
    }

    /// The batch request that entered last makes room: it goes on from where it stopped. Its id, to take it out of the model.
    pub(super) fn make_room(&mut self) -> Option<RequestId> {
        let (id, _) = self
            .inside
            .iter()
            .filter(|(_, guest)| guest.class == Class::Batch)
            .max_by_key(|(_, guest)| guest.entered)?;
        let id = *id;
        let guest = self.inside.remove(&id)?;
        self.batch.push_front((id, guest));
        Some(id)
    }

    /// Tokens that a request in the model was given here, in all and since it entered: what it brought from another node
    /// isn't among them.
    pub(super) fn said(&self, id: RequestId) -> (u32, u32) {
        self.inside.get(&id).map_or((0, 0), |guest| guest.said)
    }

    /// Hands an output to its request. The id comes back if its reader is gone and it should leave the model.
    pub(super) fn route(&mut self, output: Output) -> Option<RequestId> {
        let (id, last) = match &output {
            Output::Embedding { id, .. }
            | Output::Page { id, .. }
            | Output::PromptTokens { id, .. }
            | Output::Token { id, .. } => (*id, false),
            Output::Done { id, .. } | Output::Failed { id, .. } => (*id, true),
        };
        if let Output::Failed { error, .. } = output {
            if let Some(guest) = self.inside.remove(&id) {
                guest.reader.fail(error);
            }
            return None;
        }
        let guest = self.inside.get_mut(&id)?;
        let reads = guest.take(output).is_none_or(|event| guest.reader.send(event));
        if last {
            self.inside.remove(&id);
            return None;
        }
        if !reads {
            self.inside.remove(&id);
            return Some(id);
        }
        None
    }

    /// Everything in the model failed.
    pub(super) fn fail_inside(&mut self, error: &EngineError) {
        for (_, guest) in std::mem::take(&mut self.inside) {
            guest.reader.fail(error.clone());
        }
    }

    /// Everything failed, those that wait too.
    pub(super) fn fail_all(&mut self, error: &EngineError) {
        self.fail_inside(error);
        for (_, guest) in self.interactive.drain(..).chain(self.batch.drain(..)) {
            guest.reader.fail(error.clone());
        }
    }
}
