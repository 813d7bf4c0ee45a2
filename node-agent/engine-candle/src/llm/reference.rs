//! The llama network in plain loops over 64-bit floats, and files of a few seeded weights for it: what the fast one is held against.

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

pub(super) const VOCABULARY: usize = 40;
const WIDTH: usize = 256;
const INNER: usize = 512;
const LAYERS: usize = 2;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD: usize = WIDTH / HEADS;
const EPSILON: f64 = 1e-5;
const BASE: f64 = 50_000.0;

/// All that can be stored.
pub(super) const KINDS: [GgmlDType; 14] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

/// Rows of weights.
type Rows = Vec<Vec<f64>>;

struct Layer {
    norms: [Vec<f64>; 2],
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
    gate: Rows,
    up: Rows,
    down: Rows,
}

/// The network as candle reads the file's weights.
pub(super) struct Llama {
    table: Rows,
    output: Rows,
    norm: Vec<f64>,
    layers: Vec<Layer>,
    /// What each pair's speed is divided by.
    slower: Vec<f64>,
    /// What every position is divided by.
    factor: f64,
}

/// Writes tensors and keeps what they hold.
struct Writer {
    kind: GgmlDType,
    seed: u64,
    tensors: Vec<(String, QTensor)>,
}

impl Writer {
    fn rows(&mut self, name: String, rows: usize, columns: usize, kind: GgmlDType, middle: f32, size: f32) -> Rows {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            middle + size * ((self.seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        let shape = if rows == 1 { vec![columns] } else { vec![rows, columns] };
        let stored = QTensor::quantize(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap(), kind).unwrap();
        let held = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        self.tensors.push((name, stored));
        held.chunks(columns).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect()
    }

    fn matrix(&mut self, name: String, rows: usize, columns: usize) -> Rows {
        self.rows(name, rows, columns, self.kind, 0.0, (3.0 / columns as f32).sqrt())
    }

    fn vector(&mut self, name: String, columns: usize) -> Vec<f64> {
        self.rows(name, 1, columns, GgmlDType::F32, 1.0, 0.5).remove(0)
    }
}

impl Llama {
    /// Writes a file whose matrices are all of a kind; `turned`: with slower rotary positions, as Llama 3.1 has them, and linearly scaled
    /// ones.
    pub(super) fn write(path: &Path, kind: GgmlDType, turned: bool) -> Self {
        let mut writer = Writer { kind, seed: 7, tensors: Vec::new() };
        let layers = (0..LAYERS).map(|number| {
            let name = |part: &str| format!("blk.{number}.{part}.weight");
            Layer {
                norms: ["attn_norm", "ffn_norm"].map(|part| writer.vector(name(part), WIDTH)),
                q: writer.matrix(name("attn_q"), WIDTH, WIDTH),
                k: writer.matrix(name("attn_k"), KV_HEADS * HEAD, WIDTH),
                v: writer.matrix(name("attn_v"), KV_HEADS * HEAD, WIDTH),
                out: writer.matrix(name("attn_output"), WIDTH, WIDTH),
                gate: writer.matrix(name("ffn_gate"), INNER, WIDTH),
                up: writer.matrix(name("ffn_up"), INNER, WIDTH),
                down: writer.matrix(name("ffn_down"), WIDTH, INNER),
            }
        });
        let layers = layers.collect();
        let llama = Self {
            layers,
            table: writer.matrix("token_embd.weight".into(), VOCABULARY, WIDTH),
            output: writer.matrix("output.weight".into(), VOCABULARY, WIDTH),
            norm: writer.vector("output_norm.weight".into(), WIDTH),
            slower: if turned { writer.vector("rope_freqs.weight".into(), HEAD / 2) } else { vec![1.0; HEAD / 2] },
            factor: if turned { 4.0 } else { 1.0 },
        };
        let number = |value: usize| Value::U32(u32::try_from(value).unwrap());
        let metadata = [
            ("llama.rope.scaling.type", Value::String(if turned { "linear" } else { "none" }.into())),
            ("llama.rope.scaling.factor", number(4)),
            ("llama.attention.head_count", number(HEADS)),
            ("llama.attention.head_count_kv", number(KV_HEADS)),
            ("llama.block_count", number(LAYERS)),
            ("llama.context_length", number(64)),
            ("llama.embedding_length", number(WIDTH)),
            ("llama.feed_forward_length", number(INNER)),
            ("llama.rope.freq_base", Value::F32(BASE as f32)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(EPSILON as f32)),
        ];
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<(&str, &QTensor)> = writer.tensors.iter().map(|(name, held)| (name.as_str(), held)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
        llama
    }

    /// Logits of what follows the tokens.
    pub(super) fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let mut x: Rows = ids.iter().map(|id| self.table[*id as usize].clone()).collect();
        for layer in &self.layers {
            let normed: Rows = x.iter().map(|x| norm(x, &layer.norms[0])).collect();
            let turned = |weights: &Rows| -> Rows {
                normed.iter().enumerate().map(|(at, x)| self.turn(times(weights, x), at)).collect()
            };
            let (queries, keys) = (turned(&layer.q), turned(&layer.k));
            let values: Rows = normed.iter().map(|x| times(&layer.v, x)).collect();
            for (token, x) in x.iter_mut().enumerate() {
                let mixed: Vec<f64> = (0..HEADS).flat_map(|head| look(head, token, &queries, &keys, &values)).collect();
                add(x, &times(&layer.out, &mixed));
                let normed = norm(x, &layer.norms[1]);
                let gate = times(&layer.gate, &normed).into_iter().map(|gate| gate / (1.0 + (-gate).exp()));
                let inner: Vec<f64> = gate.zip(times(&layer.up, &normed)).map(|(gate, up)| gate * up).collect();
                add(x, &times(&layer.down, &inner));
            }
        }
        times(&self.output, &norm(x.last().unwrap(), &self.norm))
    }

    /// Turns neighbouring values by the position.
    fn turn(&self, mut x: Vec<f64>, position: usize) -> Vec<f64> {
        for (index, pair) in x.chunks_exact_mut(2).enumerate() {
            let at = index % (HEAD / 2);
            let angle = position as f64 / self.factor * BASE.powf(-2.0 * at as f64 / HEAD as f64) / self.slower[at];
            let (sine, cosine) = angle.sin_cos();
            (pair[0], pair[1]) = (pair[0] * cosine - pair[1] * sine, pair[0] * sine + pair[1] * cosine);
        }
        x
    }
}

/// What a head of a token takes from the values up to it.
fn look(head: usize, token: usize, queries: &Rows, keys: &Rows, values: &Rows) -> Vec<f64> {
    let begin = head / (HEADS / KV_HEADS) * HEAD;
    let query = &queries[token][head * HEAD..][..HEAD];
    let scores: Vec<f64> =
        keys[..=token].iter().map(|key| (dot(query, &key[begin..begin + HEAD]) / (HEAD as f64).sqrt()).exp()).collect();
    let sum: f64 = scores.iter().sum();
    (begin..begin + HEAD)
        .map(|at| values.iter().zip(&scores).map(|(value, score)| value[at] * score / sum).sum())
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn times(weights: &Rows, x: &[f64]) -> Vec<f64> {
    weights.iter().map(|row| dot(row, x)).collect()
}

fn norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + EPSILON).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
}

fn add(x: &mut [f64], more: &[f64]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}
