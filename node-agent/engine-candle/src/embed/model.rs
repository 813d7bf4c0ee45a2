//! The running batch of an encoder: texts of all requests are tokenised, sorted, packed, and pushed through layer by layer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use ingle_engine::{
    Class, EmbedText, EngineError, Finish, Model, ModelCard, Output, PackedTokens, Request, RequestId, STEP_TARGET,
    Step, Task, Timings, Tokens, plan_by_tokens,
};

use super::bert::{Network, Places};
use super::settings::{Pooling, Settings};
use super::texts::{Texts, Tokenised};
use crate::compute;
use crate::pool::Pool;
use crate::weights::safetensors::Storage;

/// Tokens of one batch: few enough that its activations stay in cache, which beats bigger batches by half.
const BATCH_TOKENS: usize = 1024;
const BATCH_TEXTS: usize = 64;
/// Bytes that a batch's activations take at most, with room for what the allocator keeps.
pub(crate) const ACTIVATION_BYTES: u64 = 64 << 20;

/// The model's card.
pub(crate) fn card(settings: &Settings, places: &Places) -> ModelCard {
    let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    ModelCard {
        task: Task::Embed,
        architecture: settings.architecture.clone(),
        quantisation: match places.storage() {
            Storage::F16 => "F16",
            Storage::Bf16 => "BF16",
            Storage::F32 | Storage::Other(_) => "F32",
        }
        .into(),
        parameters: places.parameters(),
        weight_bytes: places.bytes(),
        bytes_per_token: places.bytes(),
        kv_bytes_per_token: 0,
        context: small(settings.max_tokens),
        dimensions: small(settings.width),
        layers: small(settings.layers),
        width: small(settings.width),
    }
}

/// A request that has joined.
struct Joined {
    id: RequestId,
    class: Class,
    /// Texts not tokenised yet, from the last to the first.
    texts: Vec<EmbedText>,
    /// By index; taken when its batch begins.
    waiting: Vec<Option<Tokenised>>,
    /// Vectors still owed.
    owed: usize,
    normalise: bool,
    tokens: u32,
    spent: Duration,
}

/// A batch on its way through the layers.
struct Running {
    /// Whose text each one is, and its index there, in the batch's order.
    owners: Vec<(RequestId, usize, bool)>,
    packed: PackedTokens,
    stream: Tensor,
    next_layer: usize,
}

/// See the module's text.
pub(crate) struct EmbedModel {
    card: ModelCard,
    settings: Settings,
    texts: Arc<Texts>,
    network: Network,
    pool: Arc<Pool>,
    slots: u32,
    joined: Vec<Joined>,
    /// One per class, so that a person's text overtakes a batch between two layers.
    running: [Option<Running>; 2],
}

impl EmbedModel {
    pub(crate) fn new(
        card: ModelCard,
        settings: Settings,
        texts: Arc<Texts>,
        network: Network,
        pool: Arc<Pool>,
        slots: u32,
    ) -> Self {
        Self { card, settings, texts, network, pool, slots: slots.max(1), joined: Vec::new(), running: [None, None] }
    }

    /// Does one unit of a class's work: some texts tokenised, a batch begun, or a layer.
    fn unit(&mut self, class: Class, out: &mut Vec<Output>) -> Result<(), EngineError> {
        if let Some(at) = self.joined.iter().position(|joined| joined.class == class && !joined.texts.is_empty()) {
            self.tokenise(at, out);
            return Ok(());
        }
        let pool = Arc::clone(&self.pool);
        let Some(mut running) = self.running[class as usize].take() else {
            self.running[class as usize] = pool.run(|_| self.begin(class))?;
            return Ok(());
        };
        let stream = pool.run(|_| self.network.layer(running.next_layer, &running.stream, &running.packed));
        running.stream = stream.map_err(compute)?;
        running.next_layer += 1;
        if running.next_layer == self.network.layers() {
            self.finish(&running, out)?;
        } else {
            self.running[class as usize] = Some(running);
        }
        Ok(())
    }

    /// Tokenises about a step's worth of a request's texts; one that can't be ends the request.
    fn tokenise(&mut self, at: usize, out: &mut Vec<Output>) {
        let joined = &mut self.joined[at];
        let begun = Instant::now();
        while let Some(text) = joined.texts.pop() {
            match self.texts.tokenise(&text) {
                Ok(tokenised) => {
                    joined.tokens =
                        joined.tokens.saturating_add(u32::try_from(tokenised.ids.len()).unwrap_or(u32::MAX));
                    joined.waiting.push(Some(tokenised));
                }
                Err(error) => {
                    let id = joined.id;
                    out.push(Output::Failed { id, error });
                    self.leave(id);
                    return;
                }
            }
            if begun.elapsed() >= STEP_TARGET {
                break;
            }
        }
    }

    /// Packs the batch that holds the oldest text of the class.
    fn begin(&mut self, class: Class) -> Result<Option<Running>, EngineError> {
        let mut candidates = Vec::new();
        for joined in self.joined.iter().filter(|joined| joined.class == class) {
            for (index, tokenised) in joined.waiting.iter().enumerate() {
                if let Some(tokenised) = tokenised {
                    candidates.push((joined.id, index, tokenised.ids.len()));
                }
            }
        }
        let lengths: Vec<usize> = candidates.iter().map(|candidate| candidate.2).collect();
        let plan = plan_by_tokens(&lengths, BATCH_TOKENS, BATCH_TEXTS);
        let Some(chosen) = plan.into_iter().find(|batch| batch.contains(&0)) else { return Ok(None) };
        let mut owners = Vec::with_capacity(chosen.len());
        let mut texts = Vec::with_capacity(chosen.len());
        for (id, index, _) in chosen.iter().map(|&at| candidates[at]) {
            let joined = self.joined.iter_mut().find(|joined| joined.id == id);
            let tokenised = joined.and_then(|joined| joined.waiting[index].take());
            let tokenised = tokenised.expect("candidates were listed from those that wait");
            owners.push((id, index, tokenised.truncated));
            texts.push(tokenised.ids);
        }
        let packed = PackedTokens::new(texts.iter().map(Vec::as_slice));
        let stream = self.network.begin(&packed).map_err(compute)?;
        Ok(Some(Running { owners, packed, stream, next_layer: 0 }))
    }

    /// Pools a finished batch and hands out its vectors.
    fn finish(&mut self, running: &Running, out: &mut Vec<Output>) -> Result<(), EngineError> {
        let rows = running.stream.flatten_all().and_then(|rows| rows.to_vec1::<f32>()).map_err(compute)?;
        let width = self.settings.width;
        for (position, (id, index, truncated)) in running.owners.iter().enumerate() {
            // It may have left meanwhile.
            let Some(at) = self.joined.iter().position(|joined| joined.id == *id) else { continue };
            let (begin, end) = (running.packed.starts()[position], running.packed.starts()[position + 1]);
            let mut vector = pool_rows(&rows[begin * width..end * width], width, self.settings.pooling);
            let joined = &mut self.joined[at];
            if joined.normalise {
                normalise(&mut vector);
            }
            if vector.iter().any(|value| !value.is_finite()) {
                let error = EngineError::Compute(format!("the vector of text {index} isn't finite"));
                out.push(Output::Failed { id: *id, error });
                self.leave(*id);
                continue;
            }
            out.push(Output::Embedding {
                id: *id,
                index: u32::try_from(*index).unwrap_or(u32::MAX),
                vector,
                tokens: u32::try_from(end - begin).unwrap_or(u32::MAX),
                truncated: *truncated,
            });
            joined.owed -= 1;
        }
        Ok(())
    }

    fn hand_out_finished(&mut self, out: &mut Vec<Output>) {
        self.joined.retain(|joined| {
            if joined.owed > 0 {
                return true;
            }
            out.push(Output::Done {
                id: joined.id,
                finish: Finish::Stop,
                text: String::new(),
                text_offset: 0,
                prompt_tokens: joined.tokens,
                output_tokens: 0,
                timings: Timings { prefill: joined.spent, decode: Duration::ZERO },
            });
            false
        });
    }
}

fn pool_rows(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let (first, rest) = rows.split_at(width);
    let mut vector = first.to_vec();
    match pooling {
        Pooling::Cls => {}
        Pooling::Max => {
            for row in rest.chunks_exact(width) {
                vector.iter_mut().zip(row).for_each(|(value, x)| *value = value.max(*x));
            }
        }
        Pooling::Mean => {
            for row in rest.chunks_exact(width) {
                vector.iter_mut().zip(row).for_each(|(value, x)| *value += x);
            }
            let count = (rows.len() / width) as f32;
            vector.iter_mut().for_each(|value| *value /= count);
        }
    }
    vector
}

fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    // As sentence-transformers does: no division by less than this.
    let length = length.max(1e-12) as f32;
    vector.iter_mut().for_each(|value| *value /= length);
}

impl Model for EmbedModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokens(&self) -> Arc<dyn Tokens> {
        Arc::clone(&self.texts) as Arc<dyn Tokens>
    }

    fn memory_bytes(&self) -> u64 {
        self.card.parameters * 4 + ACTIVATION_BYTES
    }

    fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.joined.len()).unwrap_or(u32::MAX))
    }

    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError> {
        let Request::Embed(request) = request else {
            return Err(EngineError::Input("this model embeds, it doesn't generate".into()));
        };
        request.validate()?;
        if self.joined.iter().any(|joined| joined.id == id) {
            return Err(EngineError::Input(format!("request {} is in the batch already", id.0)));
        }
        if self.free_slots() == 0 {
            return Err(EngineError::Full { slots: self.slots });
        }
        let mut texts = request.texts;
        texts.reverse();
        self.joined.push(Joined {
            id,
            class,
            waiting: Vec::with_capacity(texts.len()),
            owed: texts.len(),
            texts,
            normalise: request.normalise || self.settings.normalise,
            tokens: 0,
            spent: Duration::ZERO,
        });
        Ok(())
    }

    fn leave(&mut self, id: RequestId) {
        self.joined.retain(|joined| joined.id != id);
        for running in &mut self.running {
            let owned = running.as_ref().is_some_and(|running| {
                running.owners.iter().any(|(owner, _, _)| self.joined.iter().any(|joined| joined.id == *owner))
            });
            if !owned {
                *running = None;
            }
        }
    }

    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError> {
        let begun = Instant::now();
        while begun.elapsed() < STEP_TARGET && !self.joined.is_empty() {
            let interactive = self.joined.iter().any(|joined| joined.class == Class::Interactive);
            let class = if interactive { Class::Interactive } else { Class::Batch };
            let unit = Instant::now();
            self.unit(class, out)?;
            let spent = unit.elapsed();
            self.joined.iter_mut().filter(|joined| joined.class == class).for_each(|joined| joined.spent += spent);
            self.hand_out_finished(out);
        }
        Ok(if self.joined.is_empty() { Step::Idle } else { Step::Busy })
    }
}
