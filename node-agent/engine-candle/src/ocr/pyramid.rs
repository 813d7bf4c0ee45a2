//! The feature pyramid of the detector (PaddleOCR's `RSEFPN`): laterals, sums from the top down, and the concatenation.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, wide};
use super::map::{Map, Maps, Piece, Shape, Slot, piece_pixels};
use super::net::Layer;
use super::product::{Left, Packed, product};

/// gains ⊙ (weights × source), plus a map of half the size doubled, into a map with a border of 1.
#[derive(Debug, Clone)]
pub(crate) struct TopDown {
    pub(crate) source: Slot,
    pub(crate) gains: Slot,
    /// The level above.
    pub(crate) above: Option<Slot>,
    pub(crate) target: Slot,
    pub(crate) weights: Packed,
}

struct TopDownPiece<'a> {
    layer: &'a TopDown,
    source: &'a Map,
    gains: &'a [f32],
    above: Option<&'a Map>,
    piece: Piece<'a>,
}

impl Wide for TopDownPiece<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, source, gains, above, piece } = self;
        let depth = layer.weights.depth();
        let begin = source.shape.at(piece.index, piece.y) + piece.x * depth;
        let left = Left::rows(&source.values[begin..], depth);
        product(simd, left, &layer.weights, Activation::None, piece.out);
        let channels = layer.weights.columns();
        for (at, out) in piece.out.chunks_exact_mut(channels).enumerate() {
            out.iter_mut().zip(gains).for_each(|(out, gain)| *out *= gain);
            if let Some(above) = above {
                let begin = above.shape.at(piece.index, piece.y / 2) + (piece.x + at) / 2 * channels;
                let above = &above.values[begin..][..channels];
                out.iter_mut().zip(above).for_each(|(out, above)| *out += above);
            }
        }
    }
}

impl Layer for TopDown {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let Shape { count, height, width, .. } = source.shape;
        let channels = self.weights.columns();
        target.prepare(Shape::new(count, height, width, channels).bordered(1, 1));
        let gains = maps.get(self.gains);
        let above = self.above.map(|slot| maps.get(slot));
        let pixels = piece_pixels(count * height * width, self.weights.depth());
        target.pieces(pixels).into_par_iter().for_each(|piece| {
            let gains = &gains.values[piece.index * channels..][..channels];
            wide(TopDownPiece { layer: self, source, gains, above, piece });
        });
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("top-down {}→{}", self.weights.depth(), self.weights.columns())
    }
}

/// Maps of falling size, each scaled by its gains and enlarged to the size of the last, side by side in the channels; the
/// result has a border of 1.
#[derive(Debug, Clone)]
pub(crate) struct Concat {
    /// Map and gains; each map is half the size of the next.
    pub(crate) parts: Vec<(Slot, Slot)>,
    pub(crate) target: Slot,
}

impl Layer for Concat {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let parts: Vec<(&Map, &Map)> = self.parts.iter().map(|(map, gains)| (maps.get(*map), maps.get(*gains))).collect();
        let Some((last, _)) = parts.last() else { return };
        let Shape { count, height, width, .. } = last.shape;
        let channels = parts.iter().map(|(map, _)| map.shape.channels).sum();
        target.prepare(Shape::new(count, height, width, channels).bordered(1, 1));
        target.pieces(width).into_par_iter().for_each(|piece| {
            pulp::Arch::new().dispatch(#[inline(always)] || {
                let mut first = 0;
                for (at, (map, gains)) in parts.iter().enumerate() {
                    let own = map.shape.channels;
                    let rate = 1 << (parts.len() - 1 - at);
                    let row = &map.values[map.shape.at(piece.index, piece.y / rate)..];
                    let gains = &gains.values[piece.index * own..][..own];
                    for (x, out) in piece.out.chunks_exact_mut(channels).enumerate() {
                        let values = &row[(piece.x + x) / rate * own..][..own];
                        for ((out, value), gain) in out[first..first + own].iter_mut().zip(values).zip(gains) {
                            *out = value * gain;
                        }
                    }
                    first += own;
                }
            });
        });
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("concat of {}", self.parts.len())
    }
}
