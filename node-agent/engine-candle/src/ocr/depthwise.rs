//! Depthwise convolutions: each channel has a filter of its own. Direct, with the channels in the registers' lanes.

use pulp::Simd;

use super::activation::Activation;
use super::product::Registers;
use crate::floats::Floats;

/// Output pixels that share the loads of a filter.
const BLOCK: usize = 4;

/// A filter of `size` × `size` per channel, padded by half its size.
#[derive(Debug, Clone)]
pub(crate) struct Depthwise {
    size: usize,
    /// Down and across: 1 or 2 each.
    stride: (usize, usize),
    channels: usize,
    activation: Activation,
    /// [size, size, channels]: for single pixels.
    by_tap: Floats,
    /// [size, channels / lanes, size, lanes]: for blocks of pixels. Empty if the lanes don't divide the channels.
    by_vector: Floats,
    bias: Floats,
}

/// Pixel `w` of those seen, or the first if there are fewer.
#[inline(always)]
fn pixel<T>(seen: &[T], w: usize, vectors: usize) -> &[T] {
    let w = if (w + 1) * vectors <= seen.len() { w } else { 0 };
    &seen[w * vectors..][..vectors]
}

/// One picture to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture<'a> {
    /// [height, width, channels]
    pub(crate) values: &'a [f32],
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Depthwise {
    /// `weights` are [channels, size, size] as ONNX has them; the size is 3 or 5.
    pub(crate) fn new(
        size: usize,
        stride: (usize, usize),
        weights: &[f32],
        bias: &[f32],
        activation: Activation,
    ) -> Self {
        Self::for_lanes(Registers::widest().lanes, size, stride, weights, bias, activation)
    }

    fn for_lanes(
        lanes: usize,
        size: usize,
        stride: (usize, usize),
        weights: &[f32],
        bias: &[f32],
        activation: Activation,
    ) -> Self {
        let (channels, taps) = (bias.len(), size * size);
        let mut by_tap = Floats::default();
        by_tap.resize(weights.len());
        for (channel, filter) in weights.chunks_exact(taps).enumerate() {
            for (tap, weight) in filter.iter().enumerate() {
                by_tap[tap * channels + channel] = *weight;
            }
        }
        let mut by_vector = Floats::default();
        if channels.is_multiple_of(lanes) {
            by_vector.resize(weights.len());
            for (channel, filter) in weights.chunks_exact(taps).enumerate() {
                for (tap, weight) in filter.iter().enumerate() {
                    let (row, column) = (tap / size, tap % size);
                    let vector = (row * (channels / lanes) + channel / lanes) * size + column;
                    by_vector[vector * lanes + channel % lanes] = *weight;
                }
            }
        }
        Self { size, stride, channels, activation, by_tap, by_vector, bias: Floats::from_slice(bias) }
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// Size and stride, for profiles.
    pub(crate) fn describe(&self) -> String {
        format!("{0}×{0} by {1}×{2}", self.size, self.stride.0, self.stride.1)
    }

    /// Height and width of the result.
    pub(crate) fn extent(&self, height: usize, width: usize) -> (usize, usize) {
        // Padded by (size − 1) / 2 on all sides: only the stride shrinks it.
        (height.div_ceil(self.stride.0), width.div_ceil(self.stride.1))
    }

    /// Neighbouring pixels of row `y` of the result from column `x` on: as many as `out` holds. To be called where `pulp` has
    /// chosen the registers' width.
    #[inline(always)]
    pub(crate) fn row<S: Simd>(&self, simd: S, picture: Picture<'_>, y: usize, x: usize, out: &mut [f32]) {
        match (self.size, self.stride.1) {
            (3, 1) => self.sized::<S, 3, 1, 6>(simd, picture, y, x, out),
            (3, _) => self.sized::<S, 3, 2, 9>(simd, picture, y, x, out),
            (_, 1) => self.sized::<S, 5, 1, 8>(simd, picture, y, x, out),
            _ => self.sized::<S, 5, 2, 11>(simd, picture, y, x, out),
        }
    }

    /// K is the size, X the stride across, W = (BLOCK − 1) · X + K the input pixels that a block sees.
    #[inline(always)]
    fn sized<S: Simd, const K: usize, const X: usize, const W: usize>(
        &self,
        simd: S,
        picture: Picture<'_>,
        y: usize,
        x: usize,
        out: &mut [f32],
    ) {
        let pad = K / 2;
        let end = x + out.len() / self.channels;
        // Filter rows that lie inside the picture.
        let top = y * self.stride.0;
        let first = pad.saturating_sub(top);
        let last = K.min((picture.height + pad).saturating_sub(top));
        // Pixels whose filter lies inside it from left to right.
        let inner_begin = pad.div_ceil(X).clamp(x, end);
        let inner_end = if picture.width + pad >= K { (picture.width + pad - K) / X + 1 } else { 0 };
        let inner_end = inner_end.clamp(inner_begin, end);
        let (by_vector, _) = S::as_simd_f32s(&self.by_vector);
        let vectors = self.channels / S::F32_LANES;
        let blocks = !by_vector.is_empty() && inner_end - inner_begin >= BLOCK && last > first;
        let inner = if blocks { inner_begin..inner_end } else { end..end };
        for at in (x..inner.start).chain(inner.end..end) {
            let out = &mut out[(at - x) * self.channels..][..self.channels];
            self.pixel(simd, picture, (first, last), (y, at), out);
        }
        let mut at = inner.start;
        while at < inner.end {
            // The last block is moved back to end with the row, and does some again.
            let begin = at.min(inner.end - BLOCK);
            let out = &mut out[(begin - x) * self.channels..][..BLOCK * self.channels];
            let (out, _) = S::as_mut_simd_f32s(out);
            for r in first..last {
                let place = (top + r - pad) * picture.width + begin * X - pad;
                let (seen, _) = S::as_simd_f32s(&picture.values[place * self.channels..][..W * self.channels]);
                let (filter, _) = by_vector[r * K * vectors..][..K * vectors].as_chunks::<K>();
                match (r == first, r + 1 == last) {
                    (true, true) => self.block::<S, K, X, W, true, true>(simd, seen, filter, out),
                    (true, false) => self.block::<S, K, X, W, true, false>(simd, seen, filter, out),
                    (false, true) => self.block::<S, K, X, W, false, true>(simd, seen, filter, out),
                    (false, false) => self.block::<S, K, X, W, false, false>(simd, seen, filter, out),
                }
            }
            at = begin + BLOCK;
        }
    }

    /// One row of the filter over W input columns: a share of BLOCK pixels, whose sums lie in `out` between rows. FIRST begins
    /// with the bias, LAST ends with the activation.
    ///
    /// Row by row, since the pointers of all rows together would be more than there are registers.
    #[inline(always)]
    fn block<S: Simd, const K: usize, const X: usize, const W: usize, const FIRST: bool, const LAST: bool>(
        &self,
        simd: S,
        seen: &[S::f32s],
        filter: &[[S::f32s; K]],
        out: &mut [S::f32s],
    ) {
        let vectors = filter.len();
        let (bias, _) = S::as_simd_f32s(&self.bias);
        let bias = &bias[..vectors];
        // Slices of equal length and with names of their own: of those, but not of an array of them, the compiler sees that the
        // loop's accesses are inside. Where fewer than their number are seen, the first stands in and is not used.
        let (p0, p1, p2) = (pixel(seen, 0, vectors), pixel(seen, 1, vectors), pixel(seen, 2, vectors));
        let (p3, p4, p5) = (pixel(seen, 3, vectors), pixel(seen, 4, vectors), pixel(seen, 5, vectors));
        let (p6, p7, p8) = (pixel(seen, 6, vectors), pixel(seen, 7, vectors), pixel(seen, 8, vectors));
        let (p9, p10) = (pixel(seen, 9, vectors), pixel(seen, 10, vectors));
        let (out0, rest) = out.split_at_mut(vectors);
        let (out1, rest) = rest.split_at_mut(vectors);
        let (out2, out3) = rest.split_at_mut(vectors);
        let out3 = &mut out3[..vectors];
        for v in 0..vectors {
            let mut sums = if FIRST { [bias[v]; BLOCK] } else { [out0[v], out1[v], out2[v], out3[v]] };
            let pixels = [p0[v], p1[v], p2[v], p3[v], p4[v], p5[v], p6[v], p7[v], p8[v], p9[v], p10[v]];
            for (w, x) in pixels.iter().enumerate().take(W) {
                for (p, sum) in sums.iter_mut().enumerate() {
                    if w >= p * X && w - p * X < K {
                        *sum = simd.mul_add_f32s(*x, filter[v][w - p * X], *sum);
                    }
                }
            }
            if LAST {
                for sum in &mut sums {
                    *sum = self.activation.begin(simd, *sum);
                }
            }
            [out0[v], out1[v], out2[v], out3[v]] = sums;
        }
    }

    /// One pixel anywhere, with what of its filter lies inside the picture.
    #[inline(always)]
    fn pixel<S: Simd>(
        &self,
        simd: S,
        picture: Picture<'_>,
        (first, last): (usize, usize),
        (y, x): (usize, usize),
        out: &mut [f32],
    ) {
        let (pad, channels) = (self.size / 2, self.channels);
        out.copy_from_slice(&self.bias);
        let left = x * self.stride.1;
        let columns = pad.saturating_sub(left)..self.size.min((picture.width + pad).saturating_sub(left));
        for r in first..last {
            for c in columns.clone() {
                let place = (y * self.stride.0 + r - pad) * picture.width + left + c - pad;
                let pixel = &picture.values[place * channels..][..channels];
                let weights = &self.by_tap[(r * self.size + c) * channels..][..channels];
                for ((sum, x), weight) in out.iter_mut().zip(pixel).zip(weights) {
                    *sum += *x * *weight;
                }
            }
        }
        let (whole, rest) = S::as_mut_simd_f32s(out);
        // Loops, not closures: a closure would be compiled without the wide registers.
        for value in whole {
            *value = self.activation.begin(simd, *value);
        }
        for value in rest {
            *value = self.activation.of(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Task<'a>(&'a Depthwise, Picture<'a>, usize, usize, &'a mut [f32]);

    impl pulp::WithSimd for Task<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.row(simd, self.1, self.2, self.3, self.4);
        }
    }

    fn check<S: Simd>(simd: S, size: usize, stride: (usize, usize), height: usize, width: usize, channels: usize) {
        let what = format!("{size}×{size} by {stride:?} over {height} × {width} × {channels}");
        let wave = |i: usize| ((i * 7919) % 101) as f32 / 50.0 - 1.0;
        let values: Vec<f32> = (0..height * width * channels).map(wave).collect();
        let weights: Vec<f32> = (0..channels * size * size).map(|i| wave(i + 7)).collect();
        let bias: Vec<f32> = (0..channels).map(|i| wave(i + 5)).collect();
        let depthwise = Depthwise::for_lanes(S::F32_LANES, size, stride, &weights, &bias, Activation::Relu);
        let (rows, columns) = depthwise.extent(height, width);
        let pad = size / 2;
        for y in 0..rows {
            // In two pieces, as threads do it.
            let mut out = vec![f32::NAN; columns * channels];
            let cut = columns / 3;
            let (head, tail) = out.split_at_mut(cut * channels);
            let picture = Picture { values: &values, height, width };
            simd.vectorize(Task(&depthwise, picture, y, 0, head));
            simd.vectorize(Task(&depthwise, picture, y, cut, tail));
            for x in 0..columns {
                for channel in 0..channels {
                    let mut sum = bias[channel];
                    for r in 0..size {
                        for c in 0..size {
                            let (sy, sx) = (y * stride.0 + r, x * stride.1 + c);
                            if (pad..height + pad).contains(&sy) && (pad..width + pad).contains(&sx) {
                                let value = values[((sy - pad) * width + sx - pad) * channels + channel];
                                sum += value * weights[(channel * size + r) * size + c];
                            }
                        }
                    }
                    let found = out[x * channels + channel];
                    assert!((found - sum.max(0.0)).abs() < 1e-4, "{what} at {y}, {x}, {channel}: {found} for {sum}");
                }
            }
        }
    }

    fn check_all<S: Simd>(simd: S) {
        for size in [3, 5] {
            for stride in [(1, 1), (2, 2), (2, 1), (1, 2)] {
                for (height, width) in [(1, 1), (2, 3), (3, 12), (6, 17), (7, 8)] {
                    for channels in [8, 16, 48] {
                        check(simd, size, stride, height, width, channels);
                    }
                }
            }
        }
    }

    #[test]
    fn all_sizes_strides_and_edges_are_right() {
        check_all(pulp::Scalar::new());
        #[cfg(target_arch = "x86_64")]
        {
            pulp::x86::V3::try_new().into_iter().for_each(check_all);
            pulp::x86::V4::try_new().into_iter().for_each(check_all);
        }
        #[cfg(target_arch = "aarch64")]
        pulp::aarch64::Neon::try_new().into_iter().for_each(check_all);
    }
}
