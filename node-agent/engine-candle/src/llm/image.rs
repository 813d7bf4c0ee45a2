//! The weights as candle is given them: mostly the file's own bytes, some tensors in another form, made as they are read.
//!
//! Only models that can't be held packed (see `matrix`) come here. Small ones hold every matrix as plain floats: candle rounds activations to 8 bits for quantised products, which moves the logits
//! of SmolLM2-135M by up to 1, and turns right answers into wrong ones. Big models keep what they have, except Q4_1, Q5_0 and
//! Q5_1: candle 0.11 multiplies these without vector instructions on x86, so they become Q8_0, which has every value to 1/254 of
//! its block's largest.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{Device, Shape};
use ingle_engine::EngineError;

use super::matrix;
use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::gguf::{Header, Quantisation, TensorPlace};

/// Most bytes that plain floats may take: up to about 250 million parameters.
const FLOAT_BYTES_MAX: u64 = 1 << 30;

/// In which form a file's matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In matrices of ours, not through this image.
    Packed,
    /// All of them as floats.
    Floats,
    /// As they are, those without a fast product as Q8_0.
    Quantised,
}

impl Form {
    /// Decided by the header alone, so that every node decides alike.
    pub(crate) fn of(header: &Header) -> Self {
        if header.tensors.values().all(matrix::holds) {
            return Self::Packed;
        }
        Self::for_candle(header)
    }

    /// Of the two that candle can run.
    fn for_candle(header: &Header) -> Self {
        let values = |place: &TensorPlace| place.shape.iter().product::<usize>() as u64;
        let matrices: u64 = header.tensors.values().filter(|place| is_quantised(place)).map(values).sum();
        if matrices.saturating_mul(4) <= FLOAT_BYTES_MAX { Self::Floats } else { Self::Quantised }
    }

    /// What a tensor becomes, if it doesn't stay as it is.
    fn becomes(self, place: &TensorPlace) -> Option<GgmlDType> {
        match self {
            Self::Floats if is_quantised(place) => Some(GgmlDType::F32),
            Self::Quantised if place.shape.len() == 2 && SLOW.contains(&place.quantisation.name) => {
                Some(GgmlDType::Q8_0)
            }
            _ => None,
        }
    }

    /// Bytes of a tensor as it is held.
    pub(crate) fn bytes(self, place: &TensorPlace) -> u64 {
        if self == Self::Packed {
            return matrix::bytes(place);
        }
        match self.becomes(place) {
            None => place.length,
            // Blocks of Q8_0 are as long as those of the slow kinds: they divide the shape.
            Some(kind) => (place.shape.iter().product::<usize>() / kind.block_size() * kind.type_size()) as u64,
        }
    }
}

/// Kinds without a fast product.
const SLOW: [&str; 3] = ["Q4_1", "Q5_0", "Q5_1"];

fn is_quantised(place: &TensorPlace) -> bool {
    place.shape.len() == 2 && place.quantisation.block > 1
}

/// A tensor in another form.
struct Anew {
    /// Where it begins and ends in the image.
    begin: u64,
    end: u64,
    kind: GgmlDType,
    place: TensorPlace,
    /// Where it begins in the file.
    source: u64,
}

/// Reads as one file: below the real file's length its bytes, beyond it the tensors in their other form, one after another.
pub(crate) struct Image<'a> {
    file: &'a WeightFile,
    anew: Vec<Anew>,
    /// The one made last, by its number.
    made: Option<(usize, Vec<u8>)>,
    end: u64,
    at: u64,
}

impl<'a> Image<'a> {
    /// The image, and the table that tells candle where each tensor lies in it.
    pub(crate) fn new(file: &'a WeightFile, header: &Header) -> (Self, HashMap<String, TensorInfo>) {
        Self::with_form(file, header, Form::for_candle(header))
    }

    fn with_form(file: &'a WeightFile, header: &Header, form: Form) -> (Self, HashMap<String, TensorInfo>) {
        let mut image = Self { file, anew: Vec::new(), made: None, end: file.length(), at: 0 };
        let mut table = HashMap::new();
        for (name, place) in &header.tensors {
            let mut offset = header.data_begin + place.offset;
            let mut ggml_dtype = storage(place.quantisation);
            if let Some(kind) = form.becomes(place) {
                let begin = image.end;
                image.end += form.bytes(place);
                image.anew.push(Anew { begin, end: image.end, kind, place: place.clone(), source: offset });
                (offset, ggml_dtype) = (begin, kind);
            }
            table.insert(name.clone(), TensorInfo { ggml_dtype, shape: Shape::from(place.shape.clone()), offset });
        }
        (image, table)
    }

    fn make(&self, anew: &Anew) -> Result<Vec<u8>, EngineError> {
        let Anew { place, kind, source, .. } = anew;
        let bytes = self.file.read_at(*source, place.length)?;
        let made = ggml_file::qtensor_from_ggml(storage(place.quantisation), &bytes, place.shape.clone(), &Device::Cpu)
            .and_then(|stored| stored.dequantize(&Device::Cpu))
            .and_then(|plain| QTensor::quantize(&plain, *kind));
        made.and_then(|made| Ok(made.data()?.into_owned())).map_err(compute)
    }

    fn read_anew(&mut self, buffer: &mut [u8]) -> Result<usize, EngineError> {
        let Some(index) = self.anew.iter().position(|anew| (anew.begin..anew.end).contains(&self.at)) else {
            return Ok(0);
        };
        let anew = &self.anew[index];
        let begin = anew.begin;
        let bytes = match &self.made {
            Some((made, bytes)) if *made == index => bytes,
            _ => {
                let bytes = self.make(anew)?;
                &self.made.insert((index, bytes)).1
            }
        };
        let rest = usize::try_from(self.at - begin).ok().and_then(|within| bytes.get(within..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.length();
        let count = if self.at < length {
            let count = (length - self.at).min(buffer.len() as u64);
            let bytes = self.file.read_at(self.at, count).map_err(std::io::Error::other)?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            bytes.len()
        } else {
            self.read_anew(buffer).map_err(std::io::Error::other)?
        };
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
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

    #[test]
    fn every_form_gives_the_files_values() {
        use candle_core::quantized::gguf_file;
        let values: Vec<f32> = (0..8 * 64).map(|at| (at as f32 / 7.0).sin() * 3.0).collect();
        let plain = Tensor::from_vec(values, (8, 64), &Device::Cpu).unwrap();
        let kinds = [("a", GgmlDType::Q4_1), ("b", GgmlDType::Q8_0), ("c", GgmlDType::Q5_0), ("d", GgmlDType::F16)];
        let stored = kinds.map(|(name, kind)| (name, QTensor::quantize(&plain, kind).unwrap()));
        let dir = tempfile::tempdir().unwrap();
        let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut out = std::fs::File::create(dir.path().join("m.gguf")).unwrap();
        gguf_file::write(&mut out, &[], &tensors).unwrap();
        drop(out);
        let file = WeightFile::open(dir.path(), "m.gguf").unwrap();
        let header = crate::weights::gguf::read_header(file.reader(), file.length()).unwrap();
        assert_eq!(Form::for_candle(&header), Form::Floats, "a small file");
        for (form, expected, tolerance) in [
            (Form::Floats, [GgmlDType::F32, GgmlDType::F32, GgmlDType::F32, GgmlDType::F16], 0.0),
            (Form::Quantised, [GgmlDType::Q8_0, GgmlDType::Q8_0, GgmlDType::Q8_0, GgmlDType::F16], 3.0 / 200.0),
        ] {
            let (mut image, table) = Image::with_form(&file, &header, form);
            for ((name, original), kind) in stored.iter().zip(expected) {
                let found = table[*name].read(&mut image, 0, &Device::Cpu).unwrap();
                assert_eq!(found.dtype(), kind, "{name}");
                assert_eq!(found.storage_size_in_bytes() as u64, form.bytes(&header.tensors[*name]), "{name}");
                let values =
                    |tensor: &QTensor| tensor.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap().concat();
                for (found, original) in values(&found).iter().zip(values(original)) {
                    assert!((found - original).abs() <= tolerance, "{name}: {found} for {original}");
                }
            }
        }
    }
}
