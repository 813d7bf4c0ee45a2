//! The running batch of a language model: sequences take turns, interactive ones first.

use std::sync::Arc;
use std::time::Instant;

use ingle_engine::{
    Class, EngineError, Model, ModelCard, Output, Prompt, Request, RequestId, STEP_TARGET, Step, Tokens, Turns,
};

use super::decoder::Decoder;
use super::network::Network;
use super::sequence::{Sequence, Unit};
use super::spec::Spec;
use super::template::Template;
use super::vocabulary::Vocabulary;
use crate::pool::Pool;
use crate::weights::gguf::Header;

/// Buffers of one forward pass, with room for what the allocator keeps.
const BUFFER_BYTES: u64 = 32 << 20;

/// See the module's text.
pub(crate) struct LanguageModel {
    card: ModelCard,
    spec: Spec,
    vocabulary: Arc<Vocabulary>,
    template: Template,
    network: Arc<Network>,
    pool: Arc<Pool>,
    slots: u32,
    loaded_bytes: u64,
    turns: Turns,
    joined: Vec<(RequestId, Sequence)>,
}

impl LanguageModel {
    pub(crate) fn new(
        header: &Header,
        spec: Spec,
        vocabulary: Arc<Vocabulary>,
        template: Template,
        network: Arc<Network>,
        pool: Arc<Pool>,
        slots: u32,
    ) -> Self {
        let loaded_bytes = spec.loaded_bytes(header) + BUFFER_BYTES;
        let card = spec.card(header);
        let joined = Vec::new();
        Self { card, spec, vocabulary, template, network, pool, slots, loaded_bytes, turns: Turns::default(), joined }
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Messages(messages) => {
                let rendered = self.template.render(messages, &self.vocabulary)?;
                self.vocabulary.encode_rendered(&rendered.text, rendered.mark)
            }
        }
    }
}

impl Model for LanguageModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokens(&self) -> Arc<dyn Tokens> {
        Arc::clone(&self.vocabulary) as Arc<dyn Tokens>
    }

    fn memory_bytes(&self) -> u64 {
        let held: u64 = self.joined.iter().map(|(_, sequence)| sequence.tokens_held()).sum();
        self.loaded_bytes + held * self.card.kv_bytes_per_token
    }

    fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.joined.len()).unwrap_or(u32::MAX))
    }

    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError> {
        let Request::Generate(request) = request else {
            return Err(EngineError::Input("this model generates, it doesn't embed".into()));
        };
        request.validate()?;
        if self.joined.iter().any(|(other, _)| *other == id) {
            return Err(EngineError::Input(format!("request {} is in the batch already", id.0)));
        }
        if self.free_slots() == 0 {
            return Err(EngineError::Full { slots: self.slots });
        }
        let prompt = self.prompt(&request.prompt)?;
        let sequence = Sequence::new(
            Decoder::new(Arc::clone(&self.network)),
            request,
            prompt,
            &self.vocabulary,
            self.spec.context,
        )?;
        self.turns.join(id, class);
        self.joined.push((id, sequence));
        Ok(())
    }

    fn leave(&mut self, id: RequestId) {
        self.turns.leave(id);
        self.joined.retain(|(other, _)| *other != id);
    }

    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError> {
        let Some(id) = self.turns.next_turn() else { return Ok(Step::Idle) };
        let (_, sequence) = self.joined.iter_mut().find(|(other, _)| *other == id).expect("who has turns has joined");
        let (vocabulary, context) = (&self.vocabulary, self.spec.context);
        let begun = Instant::now();
        // A token ends the step: it should leave at once, and others wait for theirs.
        let outcome = self.pool.run(|turn| {
            loop {
                match sequence.unit(turn, id, vocabulary, context, out) {
                    Ok(Unit::Read) if begun.elapsed() < STEP_TARGET => {}
                    other => return other,
                }
            }
        });
        match outcome {
            Ok(Unit::Read | Unit::Token) => {}
            Ok(Unit::Ended) => self.leave(id),
            // The fault may be this sequence's alone; the others' caches are their own.
            Err(error) => {
                out.push(Output::Failed { id, error });
                self.leave(id);
            }
        }
        Ok(if self.joined.is_empty() { Step::Idle } else { Step::Busy })
    }
}
