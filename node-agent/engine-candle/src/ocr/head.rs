//! The detector's head: two transposed convolutions of 2×2 by 2×2, each a 1×1 convolution whose results lie in a square of
//! four pixels, and a sigmoid. Both in one layer: the map between them would be the network's largest.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, give_scratch, take_scratch, wide};
use super::map::{Map, Maps, Shape, Slot};
use super::net::Layer;
use super::product::{Left, Packed, product};

/// [height, width, inputs] to [4 · height, 4 · width, 1].
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    /// For the upper and the lower row: inputs → 2 · middle, the left pixel's channels before the right one's.
    pub(crate) first: [Packed; 2],
    /// middle → 4: upper left, upper right, lower left, lower right.
    pub(crate) second: Packed,
}

struct HeadRow<'a> {
    layer: &'a Head,
    /// Two of the result's rows' source.
    source: &'a [f32],
    upper: bool,
    /// Two rows.
    out: &'a mut [f32],
}

impl Wide for HeadRow<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, source, upper, out } = self;
        let first = &layer.first[usize::from(!upper)];
        let pixels = source.len() / first.depth();
        let mut scratch = take_scratch([pixels * first.columns(), 2 * pixels * 4]);
        let [middle, corners] = &mut scratch;
        product(simd, Left::rows(source, first.depth()), first, Activation::Relu, middle);
        product(simd, Left::rows(middle, layer.second.depth()), &layer.second, Activation::Sigmoid, corners);
        let (above, below) = out.split_at_mut(4 * pixels);
        let pairs = above.as_chunks_mut::<2>().0.iter_mut().zip(below.as_chunks_mut::<2>().0);
        for ((above, below), corners) in pairs.zip(corners.as_chunks::<4>().0) {
            *above = [corners[0], corners[1]];
            *below = [corners[2], corners[3]];
        }
        give_scratch(scratch);
    }
}

impl Layer for Head {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source: &Map = maps.get(self.source);
        let Shape { count, height, width, channels, .. } = source.shape;
        target.prepare(Shape::new(count, 4 * height, 4 * width, 1));
        let rows = target.values.par_chunks_mut(2 * 4 * width).enumerate();
        rows.for_each(|(at, out)| {
            let row = &source.values[at / 2 * width * channels..][..width * channels];
            wide(HeadRow { layer: self, source: row, upper: at % 2 == 0, out });
        });
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        "head".into()
    }
}
