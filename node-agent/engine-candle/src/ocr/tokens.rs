//! Layers on the recogniser's tokens, one per column of its last map: layer norms with the dense layers after them, residual
//! sums, and the attention between the tokens of a line.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, give_scratch, take_scratch, wide};
use super::map::{Map, Maps, Piece, Shape, Slot, piece_pixels};
use super::net::Layer;
use super::product::{Left, Packed, product};
use crate::embed::math::exp;

/// residual + second(activation(first(norm(x)))), where all but `first` may be left out.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    /// Epsilon of a layer norm whose scale and shift are folded into `first`.
    pub(crate) norm: Option<f32>,
    pub(crate) first: Packed,
    pub(crate) activation: Activation,
    pub(crate) second: Option<Packed>,
    pub(crate) residual: Option<Slot>,
}

struct DensePiece<'a> {
    layer: &'a Dense,
    source: &'a Map,
    residual: Option<&'a Map>,
    piece: Piece<'a>,
}

/// (x − mean) / √(variance + epsilon) for each row.
#[inline(always)]
fn normalise(values: &[f32], width: usize, epsilon: f32, out: &mut [f32]) {
    for (row, out) in values.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = row.iter().sum::<f32>() / width as f32;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        out.iter_mut().zip(row).for_each(|(out, x)| *out = (x - mean) * scale);
    }
}

impl Wide for DensePiece<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, source, residual, piece } = self;
        let Dense { norm, first, activation, second, .. } = layer;
        let (depth, out) = (first.depth(), piece.out);
        let rows = out.len() / second.as_ref().unwrap_or(first).columns();
        let values = &source.values[piece.x * depth..][..rows * depth];
        let mut scratch = take_scratch([rows * depth, rows * first.columns()]);
        let [normed, inner] = &mut scratch;
        let mut left = values;
        if let Some(epsilon) = norm {
            normalise(values, depth, *epsilon, normed);
            left = normed;
        }
        match second {
            None => product(simd, Left::rows(left, depth), first, *activation, out),
            Some(second) => {
                product(simd, Left::rows(left, depth), first, *activation, inner);
                product(simd, Left::rows(inner, second.depth()), second, Activation::None, out);
            }
        }
        give_scratch(scratch);
        if let Some(residual) = residual {
            let begin = piece.x * residual.shape.channels;
            out.iter_mut().zip(&residual.values[begin..]).for_each(|(out, x)| *out += x);
        }
    }
}

impl Layer for Dense {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let columns = self.second.as_ref().unwrap_or(&self.first).columns();
        let shape = Shape { channels: columns, ..source.shape };
        target.prepare(shape);
        target.shape = Shape::new(1, 1, shape.pixels(), columns);
        let residual = self.residual.map(|slot| maps.get(slot));
        let pieces = target.pieces(piece_pixels(shape.pixels(), self.first.depth()));
        pieces.into_par_iter().for_each(|piece| wide(DensePiece { layer: self, source, residual, piece }));
        target.shape = shape;
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("tokens {}→{}", self.first.depth(), self.first.columns())
    }
}

/// Attention between the tokens of each line: [lines, 1, tokens, 3 · heads · size] (queries, keys, values) to
/// [lines, 1, tokens, heads · size].
#[derive(Debug, Clone)]
pub(crate) struct Attend {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    /// Room for keys and values with the tokens innermost.
    pub(crate) turned: Slot,
    pub(crate) heads: usize,
    pub(crate) size: usize,
    /// Factor of the queries.
    pub(crate) scale: f32,
}

/// Tokens whose attention one thread works out at a time.
const QUERIES: usize = 16;

/// e^(x − greatest) in place; gives their sum.
#[inline(always)]
fn soften(scores: &mut [f32]) -> f32 {
    let greater = |most: f32, score: f32| if score > most { score } else { most };
    let (chunks, rest) = scores.as_chunks_mut::<16>();
    let mut most = [f32::NEG_INFINITY; 16];
    for chunk in chunks.iter() {
        for (most, score) in most.iter_mut().zip(chunk) {
            *most = greater(*most, *score);
        }
    }
    let most = most.iter().chain(rest.iter()).fold(f32::NEG_INFINITY, |most, score| greater(most, *score));
    let mut sums = [0.0f32; 16];
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - most);
        *sum += *score;
    }
    sums.iter().sum()
}

/// Sum of products, in sixteen running sums.
#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<16>(), right.as_chunks::<16>());
    let mut sums = [0.0f32; 16];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    sums.iter().sum::<f32>() + left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum::<f32>()
}

impl Attend {
    /// Some tokens of a line: `queries` are whole rows of the source, `turned` is the line's [2 · width, tokens].
    #[inline(always)]
    fn queries(&self, queries: &[f32], turned: &[f32], tokens: usize, scores: &mut [f32], out: &mut [f32]) {
        let width = self.heads * self.size;
        for (query, out) in queries.chunks_exact(3 * width).zip(out.chunks_exact_mut(width)) {
            for head in 0..self.heads {
                let own = head * self.size..(head + 1) * self.size;
                scores.fill(0.0);
                for (q, keys) in query[own.clone()].iter().zip(turned[own.start * tokens..].chunks_exact(tokens)) {
                    let q = q * self.scale;
                    scores.iter_mut().zip(keys).for_each(|(score, key)| *score += q * key);
                }
                let total = soften(scores);
                let values = turned[(width + own.start) * tokens..].chunks_exact(tokens);
                for (out, values) in out[own].iter_mut().zip(values) {
                    *out = dot(scores, values) / total;
                }
            }
        }
    }
}

impl Layer for Attend {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let mut turned = maps.take(self.turned);
        let source = maps.get(self.source);
        let Shape { count, width: tokens, .. } = source.shape;
        let width = self.heads * self.size;
        turned.prepare(Shape::new(count, 2 * width, tokens, 1));
        turned.values.par_chunks_exact_mut(tokens).enumerate().for_each(|(row, out)| {
            let (line, column) = (row / (2 * width), width + row % (2 * width));
            let rows = source.values[line * tokens * 3 * width..].chunks_exact(3 * width);
            out.iter_mut().zip(rows).for_each(|(out, row)| *out = row[column]);
        });
        target.prepare(Shape { channels: width, ..source.shape });
        target.pieces(QUERIES).into_par_iter().for_each(|piece| {
            let begin = (piece.index * tokens + piece.x) * 3 * width;
            let turned = &turned.values[piece.index * 2 * width * tokens..][..2 * width * tokens];
            let mut scratch = take_scratch([tokens, 0]);
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || {
                    self.queries(&source.values[begin..], turned, tokens, &mut scratch[0], piece.out);
                },
            );
            give_scratch(scratch);
        });
        maps.put(self.turned, turned);
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("attention, {} heads of {}", self.heads, self.size)
    }
}
