//! The network itself: candle's stock quantised llama, fed from our checked header. One clone per sequence shares the weights
//! and has its own key-value cache.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use ingle_engine::EngineError;

use super::image::Image;
use super::spec::Spec;
use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::gguf::Header;

/// Weights with an empty cache; cloned for each sequence.
#[derive(Clone)]
pub(crate) struct Decoder {
    weights: ModelWeights,
    /// Positions in the cache.
    length: usize,
    context: usize,
}

impl Decoder {
    /// Reads all weights. Candle gets names, shapes and offsets from our header, never the file's own bytes for them.
    pub(crate) fn load(file: &WeightFile, header: &Header, spec: &Spec) -> Result<Self, EngineError> {
        let small = |value: usize| Value::U32(u32::try_from(value).unwrap_or(u32::MAX));
        let metadata = HashMap::from([
            ("general.architecture".to_string(), Value::String("llama".into())),
            ("llama.attention.head_count".into(), small(spec.heads)),
            ("llama.attention.head_count_kv".into(), small(spec.kv_heads)),
            ("llama.block_count".into(), small(spec.layers)),
            ("llama.embedding_length".into(), small(spec.width)),
            ("llama.rope.dimension_count".into(), small(spec.head_size)),
            ("llama.rope.freq_base".into(), Value::F32(spec.rope_base)),
            ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(spec.epsilon)),
        ]);
        let (mut image, tensor_infos) = Image::new(file, header);
        let content = Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos, tensor_data_offset: 0 };
        let weights = ModelWeights::from_gguf(content, &mut image, &Device::Cpu)
            .map_err(|error| EngineError::Model { file: file.name().into(), problem: error.to_string() })?;
        Ok(Self { weights, length: 0, context: spec.context })
    }

    /// Tokens in the cache.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Appends tokens; logits of what follows the last one, one per entry of the vocabulary.
    pub(crate) fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        if self.length + ids.len() > self.context {
            return Err(EngineError::Compute(format!(
                "{} tokens after {} don't fit the context of {}",
                ids.len(),
                self.length,
                self.context
            )));
        }
        let input = Tensor::new(ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).map_err(compute)?;
        let logits = self.weights.forward(&input, self.length).map_err(compute)?;
        self.length += ids.len();
        logits.flatten_all().and_then(|logits| logits.to_vec1()).map_err(compute)
    }
}
