//! A depthwise convolution and the 1×1 convolution that follows it, in one layer: what lies between them never leaves the
//! cache. Where something stands between the two, each is a layer of its own.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, give_scratch, take_scratch, wide};
use super::depthwise::{Depthwise, Picture};
use super::map::{Map, Maps, Piece, Shape, Slot, piece_pixels};
use super::net::Layer;
use super::product::{Left, Packed, product};

/// Depthwise, then 1×1 if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Separable {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    pub(crate) depthwise: Depthwise,
    pub(crate) point: Option<(Packed, Activation)>,
}

struct SeparablePiece<'a> {
    layer: &'a Separable,
    source: &'a Map,
    /// Columns of the result.
    width: usize,
    /// Of the result seen as one row a picture.
    piece: Piece<'a>,
}

impl SeparablePiece<'_> {
    /// The depthwise part of the piece, row by row.
    #[inline(always)]
    fn depthwise<S: Simd>(&self, simd: S, mut out: &mut [f32]) {
        let from = self.source.shape;
        let values = &self.source.values[self.piece.index * from.picture()..][..from.picture()];
        let picture = Picture { values, height: from.height, width: from.width };
        let (mut at, channels) = (self.piece.x, from.channels);
        while !out.is_empty() {
            let (y, x) = (at / self.width, at % self.width);
            let pixels = (self.width - x).min(out.len() / channels);
            let (row, rest) = out.split_at_mut(pixels * channels);
            self.layer.depthwise.row(simd, picture, y, x, row);
            (at, out) = (at + pixels, rest);
        }
    }
}

impl Wide for SeparablePiece<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let out = std::mem::take(&mut self.piece.out);
        let Some((point, activation)) = &self.layer.point else {
            return self.depthwise(simd, out);
        };
        let channels = point.depth();
        let mut scratch = take_scratch([out.len() / point.columns() * channels, 0]);
        self.depthwise(simd, &mut scratch[0]);
        product(simd, Left::rows(&scratch[0], channels), point, *activation, out);
        give_scratch(scratch);
    }
}

impl Layer for Separable {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let from = source.shape;
        let (height, width) = self.depthwise.extent(from.height, from.width);
        let channels = self.point.as_ref().map_or(from.channels, |(point, _)| point.columns());
        let shape = Shape::new(from.count, height, width, channels);
        target.prepare(shape);
        target.shape = shape.flat();
        let pixels = piece_pixels(shape.pixels(), from.channels);
        target
            .pieces(pixels)
            .into_par_iter()
            .for_each(|piece| wide(SeparablePiece { layer: self, source, width, piece }));
        target.shape = shape;
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        let channels = self.depthwise.channels();
        let columns = self.point.as_ref().map_or(0, |(point, _)| point.columns());
        format!("depthwise {channels}→{columns} {}", self.depthwise.describe())
    }
}
