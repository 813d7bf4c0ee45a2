//! Small layers between the convolutions: pooling, sums, and maps side by side.

use rayon::prelude::*;

use super::map::{Maps, Shape, Slot};
use super::net::Layer;

/// Means over windows of `size` that don't overlap; what is left over at the ends is dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeanPool {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
    pub(crate) size: (usize, usize),
    /// Columns of zeros left and right of the result.
    pub(crate) border: usize,
}

impl Layer for MeanPool {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let Shape { count, height, width, channels, .. } = source.shape;
        let (rows, columns) = self.size;
        target.prepare(Shape::new(count, height / rows, width / columns, channels).bordered(0, self.border));
        let scale = 1.0 / (rows * columns) as f32;
        target.pieces(16).into_par_iter().for_each(|piece| {
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (at, out) in piece.out.chunks_exact_mut(channels).enumerate() {
                        out.fill(0.0);
                        for row in 0..rows {
                            let x = (piece.x + at) * columns;
                            let begin = source.shape.at(piece.index, piece.y * rows + row) + x * channels;
                            for pixel in source.values[begin..][..columns * channels].chunks_exact(channels) {
                                out.iter_mut().zip(pixel).for_each(|(out, value)| *out += value);
                            }
                        }
                        out.iter_mut().for_each(|out| *out *= scale);
                    }
                },
            );
        });
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("mean pool {}×{}", self.size.0, self.size.1)
    }
}

/// Two maps of equal size side by side in the channels, with columns of zeros left and right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Join {
    pub(crate) sources: [Slot; 2],
    pub(crate) target: Slot,
    pub(crate) border: usize,
}

impl Layer for Join {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let sources = self.sources.map(|slot| maps.get(slot));
        let shape = sources[0].shape;
        let channels = sources.iter().map(|map| map.shape.channels).sum();
        target.prepare(Shape { channels, ..shape }.bordered(0, self.border));
        for piece in target.pieces(shape.width.max(1)) {
            for (x, mut out) in piece.out.chunks_exact_mut(channels).enumerate() {
                for map in sources {
                    let own = map.shape.channels;
                    let begin = map.shape.at(piece.index, piece.y) + x * own;
                    let (part, rest) = out.split_at_mut(own);
                    part.copy_from_slice(&map.values[begin..][..own]);
                    out = rest;
                }
            }
        }
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        "join".into()
    }
}

/// Adds one map to another of the same shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Add {
    pub(crate) source: Slot,
    pub(crate) target: Slot,
}

impl Layer for Add {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        target.values.iter_mut().zip(source.values.iter()).for_each(|(out, value)| *out += value);
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        "add".into()
    }
}
