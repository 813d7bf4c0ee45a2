//! The llama network over packed matrices: root-mean-square norms, rotary positions, grouped-query attention with a causal mask,
//! a gated feed-forward part (Touvron et al. 2023, arXiv:2302.13971; GGUF's pairing of rotated values).

mod token;

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock};

use ingle_engine::EngineError;
use rayon::prelude::*;

use self::token::Told;
use super::attention::Look;
use super::attention::dot;
use super::matrix::Matrix;
use super::spec::Spec;
use crate::embed::math::exp;
use crate::pool::{Pool, Turn};
use crate::weights::file::WeightFile;
use crate::weights::gguf::Header;

/// Products of a query's and a key's values below which one thread looks sooner than a second one wakes up.
const ALONE: usize = 1 << 18;
/// What the speed of each pair of rotary positions is divided by.
pub(super) const SLOWER: &str = "rope_freqs.weight";

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values below each other.
    qkv: Matrix,
    attention_out: Matrix,
    inner_norm: Vec<f32>,
    /// Gate and up below each other.
    gate_up: Matrix,
    down: Matrix,
}

/// The weights; shared by all sequences.
pub(super) struct Network {
    spec: Spec,
    table: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// None: the table serves for the output too.
    output: Option<Matrix>,
    /// Cosine and sine by position and pair.
    turns: Vec<(f32, f32)>,
}

/// Keys and values of one sequence by layer.
#[derive(Default)]
pub(super) struct Cache {
    layers: Vec<RwLock<Seen>>,
    length: usize,
    /// From the first single token on.
    told: Option<Told>,
}

/// Keys and values of one layer, position by position.
#[derive(Default)]
struct Seen {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Buffers of one pass, used again by the next.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    added: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    apart: Vec<f32>,
}

impl Cache {
    /// Positions held.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl Network {
    /// Reads all weights. Those who compute meanwhile wait for one tensor at a time to be packed.
    pub(super) fn load(pool: &Pool, file: &WeightFile, header: &Header, spec: &Spec) -> Result<Self, EngineError> {
        let matrix = |name: &str| {
            let missing =
                || EngineError::Model { file: file.name().into(), problem: format!("has no tensor {name:?}") };
            let place = header.tensors.get(name).ok_or_else(missing)?;
            let bytes = file.read_at(header.data_begin + place.offset, place.length)?;
            Ok(pool.run(|_| Matrix::read(place, &bytes)))
        };
        let vector = |name: &str, length: usize| {
            let matrix = matrix(name)?;
            let mut values = vec![0.0; length];
            matrix.row(0, &mut values);
            Ok::<_, EngineError>(values)
        };
        let stack = |names: &[String]| {
            Ok::<_, EngineError>(Matrix::stack(names.iter().map(|name| matrix(name)).collect::<Result<Vec<_>, _>>()?))
        };
        let mut layers = Vec::with_capacity(spec.layers);
        for number in 0..spec.layers {
            let name = |part: &str| format!("blk.{number}.{part}.weight");
            layers.push(Layer {
                attention_norm: vector(&name("attn_norm"), spec.width)?,
                qkv: stack(&["attn_q", "attn_k", "attn_v"].map(name))?,
                attention_out: matrix(&name("attn_output"))?,
                inner_norm: vector(&name("ffn_norm"), spec.width)?,
                gate_up: stack(&["ffn_gate", "ffn_up"].map(name))?,
                down: matrix(&name("ffn_down"))?,
            });
        }
        let output = header.tensors.contains_key("output.weight").then(|| matrix("output.weight")).transpose()?;
        let pairs = spec.head_size / 2;
        // Llama 3.1 and later turn slow pairs even slower.
        let slower = match header.tensors.contains_key(SLOWER) {
            true => vector(SLOWER, pairs)?,
            false => vec![1.0; pairs],
        };
        if let Some(value) = slower.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
            let problem = format!("{SLOWER} holds {value}, positive numbers were expected");
            return Err(EngineError::Model { file: file.name().into(), problem });
        }
        let turn = |index: usize| {
            let (position, pair) = (index / pairs, index % pairs);
            let speed = f64::from(spec.rope_base).powf(-2.0 * pair as f64 / spec.head_size as f64);
            let speed = speed / f64::from(slower[pair]) / f64::from(spec.rope_factor);
            let (sine, cosine) = (position as f64 * speed).sin_cos();
            (cosine as f32, sine as f32)
        };
        Ok(Self {
            table: matrix("token_embd.weight")?,
            norm: vector("output_norm.weight", spec.width)?,
            turns: (0..spec.context * pairs).map(turn).collect(),
            spec: spec.clone(),
            layers,
            output,
        })
    }

    /// Positions that there are turns for.
    pub(super) fn context(&self) -> usize {
        self.spec.context
    }

    /// Appends tokens to a sequence; logits of what follows the last one, if they are `wanted`. The caller keeps within the context and the
    /// vocabulary. One token takes the path that reads packed weights once; so does every replay of it on another node.
    pub(super) fn feed(&self, turn: &Turn<'_>, ids: &[u32], wanted: bool, cache: &mut Cache) -> Option<Vec<f32>> {
        cache.layers.resize_with(self.layers.len(), RwLock::default);
        if let [id] = ids {
            return self.token(turn, *id, wanted, cache);
        }
        thread_local!(static BUFFERS: RefCell<Buffers> = RefCell::default());
        BUFFERS.with_borrow_mut(|buffers| {
            self.pass(ids, cache, buffers);
            wanted.then(|| self.logits(ids.len(), buffers))
        })
    }

    fn pass(&self, ids: &[u32], cache: &mut Cache, buffers: &mut Buffers) {
        let (tokens, width) = (ids.len(), self.spec.width);
        let Buffers { x, normed, qkv, mixed, added, gate_up, gated, apart } = buffers;
        x.resize(tokens * width, 0.0);
        for (id, row) in ids.iter().zip(x.chunks_exact_mut(width)) {
            self.table.row(*id as usize, row);
        }
        for (layer, seen) in self.layers.iter().zip(&mut cache.layers) {
            let seen = seen.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.norm(x, &layer.attention_norm, normed);
            layer.qkv.times(normed, tokens, apart, qkv);
            for (position, row) in (cache.length..).zip(qkv.chunks_exact_mut(layer.qkv.rows())) {
                self.turn(position, row);
                seen.append(self.kept(row));
            }
            self.attend(qkv, cache.length, seen, mixed);
            layer.attention_out.times(mixed, tokens, apart, added);
            add(x, added);
            self.norm(x, &layer.inner_norm, normed);
            layer.gate_up.times(normed, tokens, apart, gate_up);
            gate(gate_up, self.spec.inner, gated);
            layer.down.times(gated, tokens, apart, added);
            add(x, added);
        }
        cache.length += tokens;
    }

    /// What follows is asked of the last position alone.
    fn logits(&self, tokens: usize, buffers: &mut Buffers) -> Vec<f32> {
        let Buffers { x, normed, .. } = buffers;
        self.norm(&x[(tokens - 1) * self.spec.width..], &self.norm, normed);
        let output = self.output.as_ref().unwrap_or(&self.table);
        let mut logits = vec![0.0; output.rows()];
        output.times_vector(normed, &mut logits);
        logits
    }

    fn norm(&self, x: &[f32], weight: &[f32], out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        pulp::Arch::new().dispatch(Norm { x, weight, epsilon: self.spec.epsilon, out });
    }

    /// Turns a row's queries and keys by its position.
    fn turn(&self, position: usize, row: &mut [f32]) {
        let Spec { heads, kv_heads, head_size, .. } = self.spec;
        let pairs = head_size / 2;
        let turns = &self.turns[position * pairs..][..pairs];
        for head in row[..(heads + kv_heads) * head_size].chunks_exact_mut(head_size) {
            for (pair, (cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                *pair = [pair[0] * cosine - pair[1] * sine, pair[0] * sine + pair[1] * cosine];
            }
        }
    }

    /// A row's keys and values.
    fn kept<'a>(&self, row: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        row[self.spec.heads * self.spec.head_size..].split_at(self.spec.kv_heads * self.spec.head_size)
    }

    /// Mixes the values that each token looks at. `before` tokens came before the first row.
    fn attend(&self, qkv: &[f32], before: usize, seen: &Seen, out: &mut Vec<f32>) {
        let Spec { heads, kv_heads, head_size, .. } = self.spec;
        let width = heads * head_size;
        let stride = width + 2 * kv_heads * head_size;
        let tokens = qkv.len() / stride;
        out.resize(tokens * width, 0.0);
        let look = |(index, out): (usize, &mut [f32])| {
            let (token, head) = (index / heads, index % heads);
            // A token sees itself and what came before it.
            self.look(head, &qkv[token * stride..][..width], before + token + 1, seen, out);
        };
        if tokens * width * (before + tokens) < ALONE {
            out.chunks_mut(head_size).enumerate().for_each(look);
        } else {
            out.par_chunks_mut(head_size).enumerate().for_each(look);
        }
    }

    /// One head of a token that sees so many positions.
    fn look(&self, head: usize, queries: &[f32], positions: usize, seen: &Seen, out: &mut [f32]) {
        thread_local!(static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let Spec { heads, kv_heads, head_size, .. } = self.spec;
        let kv = kv_heads * head_size;
        let query = &queries[head * head_size..][..head_size];
        let place = head / (heads / kv_heads) * head_size;
        let scale = 1.0 / (head_size as f32).sqrt();
        let (keys, values) = (&seen.keys[..positions * kv], &seen.values[..positions * kv]);
        SCORES.with_borrow_mut(|scores| {
            pulp::Arch::new().dispatch(Look { query, keys, values, kv, place, scale, scores, out });
        });
    }
}

impl Seen {
    fn append(&mut self, (keys, values): (&[f32], &[f32])) {
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }
}

fn add(x: &mut [f32], added: &[f32]) {
    for (x, added) in x.iter_mut().zip(added) {
        *x += added;
    }
}

/// silu(gate) · up, where each row holds the gate's values and then up's.
fn gate(gate_up: &[f32], inner: usize, out: &mut Vec<f32>) {
    out.resize(gate_up.len() / 2, 0.0);
    let gate = |(out, row): (&mut [f32], &[f32])| pulp::Arch::new().dispatch(Gate { row, inner, out });
    if out.len() == inner {
        gate((out, gate_up));
    } else {
        out.par_chunks_mut(inner).zip(gate_up.par_chunks(2 * inner)).for_each(gate);
    }
}

// Structures rather than closures, for the reason given in `kernels`.

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl pulp::WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot(simd, x, x) / width as f32 + self.epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                *out = x * scale * weight;
            }
        }
    }
}

/// silu(gate) · up.
struct Gate<'a> {
    row: &'a [f32],
    inner: usize,
    out: &'a mut [f32],
}

impl pulp::WithSimd for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let (gate, up) = self.row.split_at(self.inner);
        for ((out, gate), up) in self.out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}
