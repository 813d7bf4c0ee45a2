//! The weights as candle is given them: mostly the file's own bytes, some tensors stored anew in memory.
//!
//! Candle 0.11 multiplies Q4_1, Q5_0 and Q5_1 without vector instructions on x86, several times slower than Q8_0. Q4_1 also loses
//! digits there: it rounds each block's sum of activations to 16 bits, and SmolLM2-135M then answers nonsense where Q8_0 and
//! plain floats answer well. So these kinds are stored anew as Q8_0, which holds every value of theirs to 1/254 of its block's largest.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{Device, Shape};
use ingle_engine::EngineError;

use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::gguf::{Header, Quantisation, TensorPlace};

/// What the slow kinds become.
const STORED_ANEW: GgmlDType = GgmlDType::Q8_0;

/// Whether a tensor is stored anew: a matrix of a kind without a fast product.
fn is_slow(place: &TensorPlace) -> bool {
    place.shape.len() == 2 && matches!(place.quantisation.name, "Q4_1" | "Q5_0" | "Q5_1")
}

/// Bytes of a tensor as candle holds it.
pub(crate) fn stored_bytes(place: &TensorPlace) -> u64 {
    if !is_slow(place) {
        return place.length;
    }
    let values = place.shape.iter().product::<usize>();
    (values / STORED_ANEW.block_size() * STORED_ANEW.type_size()) as u64
}

/// Reads as one file: below the real file's length its bytes, beyond it what was stored anew.
pub(crate) struct Image<'a> {
    file: &'a WeightFile,
    anew: Vec<u8>,
    at: u64,
}

impl<'a> Image<'a> {
    /// Converts the slow tensors, one at a time; the table tells candle where each one lies in the image.
    pub(crate) fn build(
        file: &'a WeightFile,
        header: &Header,
    ) -> Result<(Self, HashMap<String, TensorInfo>), EngineError> {
        let mut image = Self { file, anew: Vec::new(), at: 0 };
        let mut table = HashMap::new();
        for (name, place) in &header.tensors {
            let begin = header.data_begin + place.offset;
            let (ggml_dtype, offset) = if is_slow(place) {
                let offset = file.length() + image.anew.len() as u64;
                let bytes = file.read_at(begin, place.length)?;
                image.anew.extend_from_slice(&anew(&bytes, place).map_err(compute)?);
                (STORED_ANEW, offset)
            } else {
                (storage(place.quantisation), begin)
            };
            table.insert(name.clone(), TensorInfo { ggml_dtype, shape: Shape::from(place.shape.clone()), offset });
        }
        Ok((image, table))
    }
}

fn anew(bytes: &[u8], place: &TensorPlace) -> candle_core::Result<Vec<u8>> {
    let kind = storage(place.quantisation);
    let tensor =
        ggml_file::qtensor_from_ggml(kind, bytes, place.shape.clone(), &Device::Cpu)?.dequantize(&Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, STORED_ANEW)?.data()?.into_owned())
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.length();
        let count = match self.at.checked_sub(length) {
            None => {
                let count = (length - self.at).min(buffer.len() as u64);
                let bytes = self.file.read_at(self.at, count).map_err(std::io::Error::other)?;
                buffer[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            }
            Some(within) => {
                let rest = usize::try_from(within).ok().and_then(|within| self.anew.get(within..)).unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                count
            }
        };
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let end = self.file.length() + self.anew.len() as u64;
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => end.checked_add_signed(by),
        };
        self.at = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
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
    use candle_core::Tensor;

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
                assert!(error < 0.02, "{} with {count} rows: relative error {error}", kind.name);
            }
        }
    }
}
