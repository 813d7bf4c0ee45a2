//! The recogniser's last layer: which class each token is, and how likely. The softmax over thousands of classes is never
//! stored: a running maximum and sum are enough.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, give_scratch, take_scratch, wide};
use super::map::{Map, Maps, Piece, Shape, Slot, piece_pixels};
use super::net::Layer;
use super::product::{Left, Packed, product};
use crate::embed::math::exp;

/// Classes whose scores a thread keeps at a time.
const SHARE: usize = 480;

/// [.., channels] to [.., 2]: the most likely class and its probability.
#[derive(Debug, Clone)]
pub(crate) struct Classify {
    source: Slot,
    target: Slot,
    /// The classes in shares of [`SHARE`].
    shares: Vec<Packed>,
}

impl Classify {
    /// `weights` are [channels, classes].
    pub(crate) fn new(source: Slot, target: Slot, weights: &[f32], bias: &[f32]) -> Self {
        let classes = bias.len();
        let share = |(index, bias): (usize, &[f32])| {
            let depth = weights.len() / classes;
            Packed::new(depth, bias, |row, column| weights[row * classes + index * SHARE + column])
        };
        Self { source, target, shares: bias.chunks(SHARE).enumerate().map(share).collect() }
    }
}

struct ClassifyPiece<'a> {
    layer: &'a Classify,
    source: &'a Map,
    piece: Piece<'a>,
}

/// The greatest score so far, its class, and the sum of e^(score − greatest).
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    class: usize,
    sum: f32,
}

impl Best {
    /// Goes on with the scores of the classes from `first` on.
    #[inline(always)]
    fn take(&mut self, scores: &[f32], first: usize) {
        let (chunks, rest) = scores.as_chunks::<16>();
        let mut most = [f32::NEG_INFINITY; 16];
        for chunk in chunks {
            for (most, score) in most.iter_mut().zip(chunk) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let most =
            most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, score| if *score > most { *score } else { most });
        if most > self.score {
            self.sum *= exp(self.score - most);
            self.score = most;
            self.class = first + scores.iter().position(|score| *score == most).unwrap_or(0);
        }
        let mut sums = [0.0f32; 16];
        for chunk in chunks {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *sum += exp(*score - self.score);
            }
        }
        self.sum += sums.iter().sum::<f32>() + rest.iter().map(|score| exp(*score - self.score)).sum::<f32>();
    }
}

impl Wide for ClassifyPiece<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, source, piece } = self;
        let rows = piece.out.len() / 2;
        let depth = source.shape.channels;
        let left = Left::rows(&source.values[piece.x * depth..][..rows * depth], depth);
        let mut best = vec![Best { score: f32::NEG_INFINITY, class: 0, sum: 0.0 }; rows];
        for (share, right) in layer.shares.iter().enumerate() {
            let columns = right.columns();
            let mut scratch = take_scratch([rows * columns, 0]);
            product(simd, left, right, Activation::None, &mut scratch[0]);
            for (best, scores) in best.iter_mut().zip(scratch[0].chunks_exact(columns)) {
                best.take(scores, share * SHARE);
            }
            give_scratch(scratch);
        }
        for (best, out) in best.iter().zip(piece.out.as_chunks_mut::<2>().0) {
            // Classes are far below 2^24, so a float holds them exactly.
            *out = [best.class as f32, 1.0 / best.sum];
        }
    }
}

impl Layer for Classify {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let shape = Shape { channels: 2, ..source.shape };
        target.prepare(shape);
        target.shape = Shape::new(1, 1, shape.pixels(), 2);
        let pieces = target.pieces(piece_pixels(shape.pixels(), source.shape.channels));
        pieces.into_par_iter().for_each(|piece| wide(ClassifyPiece { layer: self, source, piece }));
        target.shape = shape;
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("{} classes", self.shares.iter().map(Packed::columns).sum::<usize>())
    }
}
