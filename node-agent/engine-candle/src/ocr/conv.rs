//! Full convolutions over whole maps, as matrix products without an im2col copy.

use std::cell::RefCell;

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::map::{Map, Maps, Piece, Shape, Slot, piece_pixels};
use super::net::Layer;
use super::product::{Left, Packed, product};
use crate::floats::Floats;

thread_local! {
    /// A thread's room for one piece's intermediate values; bounded by [`piece_pixels`].
    static SCRATCH: RefCell<[Floats; 2]> = RefCell::default();
}

/// Takes this thread's two scratch buffers; [`give_scratch`] brings them back. No closure: its body would be compiled without
/// the wide registers that `pulp` has chosen around it.
pub(crate) fn take_scratch(lengths: [usize; 2]) -> [Floats; 2] {
    let mut scratch = SCRATCH.take();
    scratch.iter_mut().zip(lengths).for_each(|(floats, length)| floats.resize(length));
    scratch
}

/// Brings back what [`take_scratch`] took.
pub(crate) fn give_scratch(scratch: [Floats; 2]) {
    SCRATCH.set(scratch);
}

/// Runs `work` where `pulp` has chosen the registers' width.
pub(crate) fn wide<W: Wide>(work: W) {
    struct Task<W>(W);
    impl<W: Wide> pulp::WithSimd for Task<W> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.run(simd);
        }
    }
    pulp::Arch::new().dispatch(Task(work));
}

/// Work for [`wide`].
pub(crate) trait Wide {
    fn run<S: Simd>(self, simd: S);
}

/// A full convolution; its input must have a border of half the filter's size. 1×1 needs none.
#[derive(Debug, Clone)]
pub(crate) struct Conv {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    /// Rows and columns of the filter, odd.
    pub(crate) size: (usize, usize),
    /// Down and across.
    pub(crate) stride: (usize, usize),
    /// Depth is rows · columns · channels.
    pub(crate) weights: Packed,
    pub(crate) activation: Activation,
    /// Factors per picture and channel for the input, for 1×1 only.
    pub(crate) gains: Option<Slot>,
    /// Border of the result.
    pub(crate) border: (usize, usize),
}

impl Conv {
    /// Packs weights of [out, channels, rows, columns] as ONNX has them.
    pub(crate) fn pack(weights: &[f32], bias: &[f32], channels: usize, size: (usize, usize)) -> Packed {
        let taps = size.0 * size.1;
        Packed::new(taps * channels, bias, |depth, out| {
            let (tap, channel) = (depth / channels, depth % channels);
            weights[(out * channels + channel) * taps + tap]
        })
    }

    /// A 1×1 convolution without gains or border.
    pub(crate) fn point(source: Slot, target: Slot, weights: Packed, activation: Activation) -> Self {
        Self { source, target, size: (1, 1), stride: (1, 1), weights, activation, gains: None, border: (0, 0) }
    }

    fn left<'a>(&self, source: View<'a>, piece: &Piece<'_>, segments: &'a mut [usize; SIZE_MAX]) -> Left<'a> {
        let shape = source.shape;
        let inset = (self.size.1 / 2) * shape.channels;
        for (row, segment) in segments.iter_mut().take(self.size.0).enumerate() {
            // The filter's first row and column lie half its size up and left: in the border at the edges.
            let y = piece.y * self.stride.0 + row + shape.border.0 - self.size.0 / 2;
            let start = piece.index * shape.picture() + y * shape.row() + shape.border.1 * shape.channels;
            *segment = start + piece.x * self.stride.1 * shape.channels - inset;
        }
        Left {
            values: source.values,
            stride: self.stride.1 * shape.channels,
            segments: &segments[..self.size.0],
            length: self.size.1 * shape.channels,
        }
    }
}

/// Rows of a filter at most.
const SIZE_MAX: usize = 3;

/// A map's values, seen in some shape.
#[derive(Clone, Copy)]
struct View<'a> {
    values: &'a [f32],
    shape: Shape,
}

struct ConvPiece<'a> {
    layer: &'a Conv,
    source: View<'a>,
    gains: Option<&'a Map>,
    piece: Piece<'a>,
}

impl Wide for ConvPiece<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, source, gains, piece } = self;
        let mut segments = [0; SIZE_MAX];
        let left = layer.left(source, &piece, &mut segments);
        let Some(gains) = gains else {
            return product(simd, left, &layer.weights, layer.activation, piece.out);
        };
        let channels = source.shape.channels;
        let gains = &gains.values[piece.index * channels..][..channels];
        let pixels = piece.out.len() / layer.weights.columns();
        let mut scratch = take_scratch([pixels * channels, 0]);
        let scaled: &mut [f32] = &mut scratch[0];
        let values = &source.values[left.segments[0]..][..pixels * channels];
        for (scaled, values) in scaled.chunks_exact_mut(channels).zip(values.chunks_exact(channels)) {
            for ((scaled, value), gain) in scaled.iter_mut().zip(values).zip(gains) {
                *scaled = value * gain;
            }
        }
        product(simd, Left::rows(scaled, channels), &layer.weights, layer.activation, piece.out);
        give_scratch(scratch);
    }
}

impl Layer for Conv {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let from = source.shape;
        let (height, width) = (from.height.div_ceil(self.stride.0), from.width.div_ceil(self.stride.1));
        let shape =
            Shape::new(from.count, height, width, self.weights.columns()).bordered(self.border.0, self.border.1);
        target.prepare(shape);
        let mut source = View { values: &source.values, shape: from };
        if self.size == (1, 1) && self.stride == (1, 1) && from.border == (0, 0) && shape.border == (0, 0) {
            source.shape = from.flat();
            target.shape = shape.flat();
        }
        let pixels = piece_pixels(shape.pixels(), self.weights.depth());
        let gains = self.gains.map(|slot| maps.get(slot));
        target.pieces(pixels).into_par_iter().for_each(|piece| wide(ConvPiece { layer: self, source, gains, piece }));
        target.shape = shape;
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        let (size, columns) = (self.size, self.weights.columns());
        format!("{}×{} {}→{columns}", size.0, size.1, self.weights.depth() / (size.0 * size.1))
    }
}
