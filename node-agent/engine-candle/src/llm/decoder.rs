//! The network itself: candle's stock quantised llama, fed from our checked header. One clone per sequence shares the weights
//! and has its own key-value cache.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use candle_core::{Device, Shape, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use ingle_engine::EngineError;

use super::spec::Spec;
use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::gguf::{Header, Quantisation};

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
        let mut tensor_infos = HashMap::new();
        for (name, place) in &header.tensors {
            let ggml_dtype = storage(place.quantisation);
            let shape = Shape::from(place.shape.clone());
            tensor_infos.insert(name.clone(), TensorInfo { ggml_dtype, shape, offset: place.offset });
        }
        let content =
            Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos, tensor_data_offset: header.data_begin };
        let weights = ModelWeights::from_gguf(content, &mut file.reader(), &Device::Cpu)
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

/// Candle's name for a storage type of ours.
fn storage(quantisation: Quantisation) -> GgmlDType {
    match quantisation.id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        other => unreachable!("storage type {other} was refused with the header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::gguf::QUANTISATIONS;

    #[test]
    fn sizes_are_those_of_candle() {
        for kind in QUANTISATIONS {
            let theirs = storage(kind);
            assert_eq!(
                (theirs.block_size() as u64, theirs.type_size() as u64),
                (kind.block, kind.bytes),
                "{}",
                kind.name
            );
        }
    }

    #[test]
    fn products_are_close_to_those_of_the_dequantised_weights() {
        use candle_core::Module;
        use candle_core::quantized::{QMatMul, QTensor};
        let mut state = 5u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let (rows, columns) = (96, 768);
        let weights: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        let weights = Tensor::from_vec(weights, (rows, columns), &Device::Cpu).unwrap();
        for count in [1, 5] {
            let inputs: Vec<f32> = (0..count * columns).map(|_| next() * 3.0).collect();
            let inputs = Tensor::from_vec(inputs, (1, count, columns), &Device::Cpu).unwrap();
            for kind in QUANTISATIONS {
                let stored = std::sync::Arc::new(QTensor::quantize(&weights, storage(kind)).unwrap());
                let plain = stored.dequantize(&Device::Cpu).unwrap();
                let expected = inputs.broadcast_matmul(&plain.t().unwrap().unsqueeze(0).unwrap()).unwrap();
                let found = QMatMul::from_arc(stored).unwrap().forward(&inputs).unwrap();
                let norm =
                    |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let error = norm(&(found - &expected).unwrap()) / norm(&expected);
                eprintln!("{} x{count} {error}", kind.name);
                assert!(error < 0.02, "{} with {count} rows: relative error {error}", kind.name);
            }
        }
    }
}
