//! BERT on packed texts: one [tokens, width] matrix for all of a batch, without padding; weights transposed once.
//!
//! The graph is that of Devlin et al. 2018 with post-layer norms, as Hugging Face stores it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ingle_engine::{EngineError, PackedTokens};
use rayon::prelude::*;

use super::math::{Bias, BiasGelu, BiasResidualNorm, Norm, ScaledSoftmax};
use super::settings::Settings;
use crate::compute;
use crate::weights::file::WeightFile;
use crate::weights::safetensors::{Storage, TensorPlace, read_header};

/// Checked places of the network's tensors in its files.
pub(crate) struct Places {
    files: Vec<WeightFile>,
    /// File index and place, by name without the prefix that some exports carry.
    tensors: BTreeMap<String, (usize, TensorPlace)>,
}

impl Places {
    /// Reads the headers of every `*.safetensors` in `dir` and checks names and shapes against the settings.
    pub(crate) fn read(dir: &Path, settings: &Settings) -> Result<Self, EngineError> {
        let names = crate::folder::names(dir)?;
        let mut places = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names.iter().filter(|name| crate::folder::is_safetensors(name)) {
            let file = WeightFile::open(dir, name)?;
            let header = read_header(file.reader(), file.length()).map_err(|error| error.of(name))?;
            for (tensor, place) in header.tensors {
                let short = tensor.strip_prefix("bert.").unwrap_or(&tensor).to_string();
                if places.tensors.insert(short, (places.files.len(), place)).is_some() {
                    let problem = format!("tensor {tensor:?} is in two files");
                    return Err(EngineError::Model { file: name.clone(), problem });
                }
            }
            places.files.push(file);
        }
        for (name, shape) in shapes(settings) {
            places.check(&name, &shape)?;
        }
        Ok(places)
    }

    /// Bytes of all tensors as stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.values().map(|(_, place)| place.length).sum()
    }

    /// Number of floating-point values.
    pub(crate) fn parameters(&self) -> u64 {
        let floats = self.tensors.values().filter(|(_, place)| !matches!(place.storage, Storage::Other(_)));
        floats.map(|(_, place)| place.length / place.storage.bytes()).sum()
    }

    /// Storage of the word embeddings, for the model's card.
    pub(crate) fn storage(&self) -> Storage {
        self.tensors.get("embeddings.word_embeddings.weight").map_or(Storage::F32, |(_, place)| place.storage)
    }

    fn file_name(&self) -> &str {
        self.files.first().map_or("model.safetensors", WeightFile::name)
    }

    fn check(&self, name: &str, shape: &[usize]) -> Result<(), EngineError> {
        let fail = |problem: String| Err(EngineError::Model { file: self.file_name().into(), problem });
        match self.tensors.get(name) {
            None => fail(format!("has no tensor {name:?}, which config.json asks for")),
            Some((_, place)) if place.shape != shape => {
                fail(format!("tensor {name:?} has shape {:?}, config.json asks for {shape:?}", place.shape))
            }
            Some((_, place)) if matches!(place.storage, Storage::Other(_)) => {
                fail(format!("tensor {name:?} is not of floating-point numbers"))
            }
            Some(_) => Ok(()),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor, EngineError> {
        let (file, place) = self.tensors.get(name).expect("its place was checked when the headers were read");
        let bytes = self.files[*file].read_at(place.begin, place.length)?;
        let kind = match place.storage {
            Storage::F16 => DType::F16,
            Storage::Bf16 => DType::BF16,
            Storage::F32 | Storage::Other(_) => DType::F32,
        };
        let tensor = Tensor::from_raw_buffer(&bytes, kind, &place.shape, &Device::Cpu).map_err(compute)?;
        tensor.to_dtype(DType::F32).map_err(compute)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, EngineError> {
        self.tensor(name)?.flatten_all().and_then(|tensor| tensor.to_vec1()).map_err(compute)
    }

    /// A weight as the right side of a product: [in, out], contiguous.
    fn transposed(&self, name: &str) -> Result<Tensor, EngineError> {
        self.tensor(name)?.t().and_then(|tensor| tensor.contiguous()).map_err(compute)
    }
}

fn shapes(settings: &Settings) -> Vec<(String, Vec<usize>)> {
    let &Settings { width, inner, .. } = settings;
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_string(), vec![settings.vocabulary, width]),
        ("embeddings.position_embeddings.weight".to_string(), vec![settings.positions, width]),
        ("embeddings.token_type_embeddings.weight".to_string(), vec![settings.types, width]),
        ("embeddings.LayerNorm.weight".to_string(), vec![width]),
        ("embeddings.LayerNorm.bias".to_string(), vec![width]),
    ];
    for layer in 0..settings.layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("encoder.layer.{layer}.{name}"), shape.to_vec()));
        for part in ["query", "key", "value"] {
            add(&format!("attention.self.{part}.weight"), &[width, width]);
            add(&format!("attention.self.{part}.bias"), &[width]);
        }
        add("attention.output.dense.weight", &[width, width]);
        add("attention.output.dense.bias", &[width]);
        add("intermediate.dense.weight", &[inner, width]);
        add("intermediate.dense.bias", &[inner]);
        add("output.dense.weight", &[width, inner]);
        add("output.dense.bias", &[width]);
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add(&format!("{norm}.weight"), &[width]);
            add(&format!("{norm}.bias"), &[width]);
        }
    }
    shapes
}

struct Layer {
    /// [width, 3 · width]: query, key and value side by side, one product for all three.
    qkv: Tensor,
    qkv_bias: Vec<f32>,
    /// [width, width]
    mix: Tensor,
    mix_bias: Vec<f32>,
    mix_norm: Norm,
    /// [width, inner]
    up: Tensor,
    up_bias: Vec<f32>,
    /// [inner, width]
    down: Tensor,
    down_bias: Vec<f32>,
    down_norm: Norm,
}

/// The loaded network.
pub(crate) struct Network {
    /// [vocabulary · width]
    words: Vec<f32>,
    /// [positions · width], the embedding of token type 0 added already.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    width: usize,
    heads: usize,
}

impl Network {
    /// Reads and transposes all weights.
    pub(crate) fn load(places: &Places, settings: &Settings) -> Result<Self, EngineError> {
        let norm = |name: &str| {
            let gamma = places.values(&format!("{name}.weight"))?;
            let beta = places.values(&format!("{name}.bias"))?;
            Ok::<_, EngineError>(Norm { gamma, beta, epsilon: settings.epsilon })
        };
        let types = places.values("embeddings.token_type_embeddings.weight")?;
        let mut positions = places.values("embeddings.position_embeddings.weight")?;
        for row in positions.chunks_exact_mut(settings.width) {
            row.iter_mut().zip(&types).for_each(|(value, kind)| *value += kind);
        }
        let layers = (0..settings.layers).map(|index| {
            let at = |name: &str| format!("encoder.layer.{index}.{name}");
            let three = ["query", "key", "value"];
            let weights = three
                .iter()
                .map(|part| places.transposed(&at(&format!("attention.self.{part}.weight"))))
                .collect::<Result<Vec<_>, _>>()?;
            let biases = three
                .iter()
                .map(|part| places.values(&at(&format!("attention.self.{part}.bias"))))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(Layer {
                qkv: Tensor::cat(&weights, 1).and_then(|tensor| tensor.contiguous()).map_err(compute)?,
                qkv_bias: biases.concat(),
                mix: places.transposed(&at("attention.output.dense.weight"))?,
                mix_bias: places.values(&at("attention.output.dense.bias"))?,
                mix_norm: norm(&at("attention.output.LayerNorm"))?,
                up: places.transposed(&at("intermediate.dense.weight"))?,
                up_bias: places.values(&at("intermediate.dense.bias"))?,
                down: places.transposed(&at("output.dense.weight"))?,
                down_bias: places.values(&at("output.dense.bias"))?,
                down_norm: norm(&at("output.LayerNorm"))?,
            })
        });
        Ok(Self {
            words: places.values("embeddings.word_embeddings.weight")?,
            positions,
            norm: norm("embeddings.LayerNorm")?,
            layers: layers.collect::<Result<_, EngineError>>()?,
            width: settings.width,
            heads: settings.heads,
        })
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The residual stream before the first layer: [tokens, width].
    ///
    /// Ids must be below the vocabulary, texts no longer than the positions; both are seen to by the tokenizer.
    pub(crate) fn begin(&self, packed: &PackedTokens) -> candle_core::Result<Tensor> {
        let width = self.width;
        let mut stream = vec![0.0f32; packed.ids().len() * width];
        for ((row, id), position) in stream.chunks_exact_mut(width).zip(packed.ids()).zip(packed.positions()) {
            let word = &self.words[*id as usize * width..][..width];
            let position = &self.positions[position as usize * width..][..width];
            for ((value, word), position) in row.iter_mut().zip(word).zip(position) {
                *value = word + position;
            }
        }
        self.norm.rows(&mut stream);
        Tensor::from_vec(stream, (packed.ids().len(), width), &Device::Cpu)
    }

    /// One layer: [tokens, width] to the same.
    pub(crate) fn layer(&self, index: usize, stream: &Tensor, packed: &PackedTokens) -> candle_core::Result<Tensor> {
        let layer = &self.layers[index];
        let qkv = stream.matmul(&layer.qkv)?;
        qkv.inplace_op1(&Bias(&layer.qkv_bias))?;
        let mixed = self.attend(&qkv, packed)?.matmul(&layer.mix)?;
        mixed.inplace_op2(stream, &BiasResidualNorm { bias: &layer.mix_bias, norm: &layer.mix_norm })?;
        let inner = mixed.matmul(&layer.up)?;
        inner.inplace_op1(&BiasGelu(&layer.up_bias))?;
        let out = inner.matmul(&layer.down)?;
        out.inplace_op2(&mixed, &BiasResidualNorm { bias: &layer.down_bias, norm: &layer.down_norm })?;
        Ok(out)
    }

    /// Each text attends to itself: [tokens, 3 · width] to [tokens, width]. Texts of equal length go through together;
    /// a thread takes some of them at a time.
    fn attend(&self, qkv: &Tensor, packed: &PackedTokens) -> candle_core::Result<Tensor> {
        let mut shares = Vec::new();
        for (first, count, length) in packed.runs() {
            // About 64 tokens a share, so that threads end together.
            let step = (64 / length.max(1)).max(1);
            for begin in (first..first + count).step_by(step) {
                shares.push((begin, step.min(first + count - begin), length));
            }
        }
        let parts = shares
            .par_iter()
            .filter(|(_, _, length)| *length > 0)
            .map(|&(first, count, length)| self.attend_run(qkv, packed.starts()[first], count, length))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    fn attend_run(&self, qkv: &Tensor, begin: usize, count: usize, length: usize) -> candle_core::Result<Tensor> {
        let (heads, size) = (self.heads, self.width / self.heads);
        let rows = qkv.narrow(0, begin, count * length)?.reshape((count, length, 3, heads, size))?;
        // [3, count, heads, length, size]
        let rows = rows.permute((2, 0, 3, 1, 4))?;
        let part = |index: usize| rows.get(index)?.contiguous();
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        let scores = query.matmul(&key.t()?)?;
        scores.inplace_op1(&ScaledSoftmax { width: length, scale: 1.0 / (size as f32).sqrt() })?;
        scores.matmul(&value)?.transpose(1, 2)?.reshape((count * length, self.width))
    }
}
