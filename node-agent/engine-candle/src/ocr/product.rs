//! Matrix products with constant right sides: [rows, depth] × [depth, columns], plus bias and activation.
//!
//! The right side is packed once, when the model is loaded, in panels as wide as the registers hold. The left side is read
//! where it lies: its rows may overlap, and be of several segments, which makes a convolution over a bordered map a product
//! without any copying (an implicit im2col).

use pulp::Simd;

use super::activation::Activation;
use crate::floats::Floats;
use crate::panel;

/// Vectors of a panel at most where there are 32 registers: with 8 rows they take 24.
const PANEL: usize = 3;
/// The same for 16 registers: with 6 rows they take 12.
const NARROW_PANEL: usize = 2;

/// A constant right side.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// Panel after panel; in each the depth's rows one after the other, `panel vectors · lanes` wide, zeros beyond the columns.
    panels: Floats,
    /// One value per column, zeros beyond.
    bias: Floats,
    /// First vector and number of vectors of each panel.
    parts: Vec<(usize, usize)>,
    depth: usize,
    columns: usize,
    registers: Registers,
}

/// The registers that products are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registers {
    /// Floats in one.
    pub(crate) lanes: usize,
    /// Vectors of a panel at most.
    panel: usize,
}

impl Registers {
    #[inline(always)]
    fn of<S: Simd>() -> Self {
        Self { lanes: S::F32_LANES, panel: if S::REGISTER_COUNT >= 32 { PANEL } else { NARROW_PANEL } }
    }

    /// This machine's widest.
    pub(crate) fn widest() -> Self {
        struct Widest;
        impl pulp::WithSimd for Widest {
            type Output = Registers;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Registers {
                Registers::of::<S>()
            }
        }
        pulp::Arch::new().dispatch(Widest)
    }

    /// Vectors of the panel that comes where `left` vectors are left: as many as there may be, but never a lone one after
    /// three.
    fn panel(self, left: usize) -> usize {
        if left == PANEL + 1 { 2 } else { left.min(self.panel) }
    }
}

impl Packed {
    /// `value(row, column)` gives the right side; `bias` has a value per column.
    pub(crate) fn new(depth: usize, bias: &[f32], value: impl Fn(usize, usize) -> f32) -> Self {
        Self::for_registers(Registers::widest(), depth, bias, value)
    }

    fn for_registers(registers: Registers, depth: usize, bias: &[f32], value: impl Fn(usize, usize) -> f32) -> Self {
        let (columns, lanes) = (bias.len(), registers.lanes);
        let vectors = columns.div_ceil(lanes);
        let mut packed =
            Self { panels: Floats::default(), bias: Floats::default(), parts: Vec::new(), depth, columns, registers };
        packed.panels.resize(vectors * lanes * depth);
        packed.bias.resize(vectors * lanes);
        packed.bias.fill(0.0);
        packed.bias[..columns].copy_from_slice(bias);
        let (mut first, mut at) = (0, 0);
        while first < vectors {
            let wide = registers.panel(vectors - first);
            for row in 0..depth {
                for column in first * lanes..(first + wide) * lanes {
                    packed.panels[at] = if column < columns { value(row, column) } else { 0.0 };
                    at += 1;
                }
            }
            packed.parts.push((first, wide));
            first += wide;
        }
        packed
    }

    /// Columns of the result.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Columns of the left side.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }
}

/// Where the left side's rows lie: row r is the concatenation of `values[segment + r · stride..][..length]` over the segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [f32],
    /// Floats from one row to the next.
    pub(crate) stride: usize,
    /// Where the segments of row 0 begin.
    pub(crate) segments: &'a [usize],
    /// Floats of each segment.
    pub(crate) length: usize,
}

impl<'a> Left<'a> {
    /// Rows of `depth` that lie one after the other.
    pub(crate) fn rows(values: &'a [f32], depth: usize) -> Self {
        Self { values, stride: depth, segments: &[0], length: depth }
    }
}

/// `out[r] = activation(left[r] × right + bias)` for the rows of `out`. To be called where `pulp` has chosen the registers'
/// width. Rows may be computed twice, so `out` must not be read before.
#[inline(always)]
pub(crate) fn product<S: Simd>(simd: S, left: Left<'_>, right: &Packed, activation: Activation, out: &mut [f32]) {
    debug_assert_eq!(right.registers, Registers::of::<S>());
    debug_assert_eq!(right.depth, left.length * left.segments.len());
    let (panels, _) = S::as_simd_f32s(&right.panels);
    let (bias, _) = S::as_simd_f32s(&right.bias);
    // From the last to the first: see `finish`.
    for &(first, wide) in right.parts.iter().rev() {
        let part = Part {
            left,
            panel: &panels[first * right.depth..][..wide * right.depth],
            bias: &bias[first..first + wide],
            activation,
            columns: right.columns,
            column: first * S::F32_LANES,
        };
        match wide {
            1 => part.all::<1>(simd, out),
            2 => part.all::<2>(simd, out),
            _ => part.all::<PANEL>(simd, out),
        }
    }
    activation.finish(out);
}

/// One panel's share of a product.
struct Part<'a, S: Simd> {
    left: Left<'a>,
    panel: &'a [S::f32s],
    bias: &'a [S::f32s],
    activation: Activation,
    columns: usize,
    column: usize,
}

impl<S: Simd> Part<'_, S> {
    #[inline(always)]
    fn all<const V: usize>(&self, simd: S, out: &mut [f32]) {
        if S::REGISTER_COUNT >= 32 {
            self.blocks::<8, V>(simd, out);
        } else if V <= NARROW_PANEL {
            self.blocks::<6, V>(simd, out);
        }
    }

    /// Blocks of M rows; the last is moved up to end with the rows, and does some again.
    #[inline(always)]
    fn blocks<const M: usize, const V: usize>(&self, simd: S, out: &mut [f32]) {
        let rows = out.len() / self.columns;
        let mut row = 0;
        while row < rows {
            if rows >= M {
                let begin = row.min(rows - M);
                self.block::<M, V>(simd, begin, out);
                row = begin + M;
            } else {
                self.block::<1, V>(simd, row, out);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn block<const M: usize, const V: usize>(&self, simd: S, row: usize, out: &mut [f32]) {
        let Left { values, stride, segments, length } = self.left;
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        for (segment, panel) in segments.iter().zip(self.panel.chunks_exact(length * V)) {
            let begin = segment + row * stride;
            let mut rows: [&[f32]; M] = [&[]; M];
            for (m, row) in rows.iter_mut().enumerate() {
                *row = &values[begin + m * stride..][..length];
            }
            panel::add(simd, rows, panel.as_chunks::<V>().0, &mut sums);
        }
        self.finish(simd, row, &sums, out);
    }

    /// Bias, activation and storing.
    ///
    /// Whole registers are stored as long as they end within `out`, since storing a part takes as long as forty products: where
    /// the columns end within a register, the next row's first columns get what is none of theirs. Rows are stored in order and
    /// the panel with the last columns first, so that every place gets its own value after that.
    #[inline(always)]
    fn finish<const M: usize, const V: usize>(&self, simd: S, row: usize, sums: &[[S::f32s; V]; M], out: &mut [f32]) {
        for (m, sums) in sums.iter().enumerate() {
            let out = &mut out[(row + m) * self.columns + self.column..];
            let end = out.len().min(V * S::F32_LANES);
            let (whole, rest) = S::as_mut_simd_f32s(&mut out[..end]);
            for (v, (sum, bias)) in sums.iter().zip(self.bias).enumerate() {
                let value = self.activation.begin(simd, simd.add_f32s(*sum, *bias));
                if let Some(whole) = whole.get_mut(v) {
                    *whole = value;
                } else {
                    simd.partial_store_f32s(rest, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Task<'a>(Left<'a>, &'a Packed, Activation, &'a mut [f32]);

    impl pulp::WithSimd for Task<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            product(simd, self.0, self.1, self.2, self.3);
        }
    }

    fn check<S: Simd>(simd: S, rows: usize, length: usize, stride: usize, segments: &[usize], columns: usize) {
        let sizes = format!("{rows} rows, {segments:?} of {length} by {stride}, {columns} columns");
        let wave = |i: usize| ((i * 7919) % 101) as f32 / 50.0 - 1.0;
        let end = segments.iter().max().unwrap() + (rows - 1) * stride + length;
        let values: Vec<f32> = (0..end).map(wave).collect();
        let bias: Vec<f32> = (0..columns).map(|column| wave(column + 3)).collect();
        let depth = length * segments.len();
        let right = |row: usize, column: usize| wave(row * 31 + column * 17);
        let packed = Packed::for_registers(Registers::of::<S>(), depth, &bias, right);
        assert_eq!((packed.depth(), packed.columns()), (depth, columns));
        let mut out = vec![f32::NAN; rows * columns];
        let activation = Activation::HardSwish { scale: 0.5, shift: 0.25 };
        simd.vectorize(Task(Left { values: &values, stride, segments, length }, &packed, activation, &mut out));
        for row in 0..rows {
            for column in 0..columns {
                let mut sum = f64::from(bias[column]);
                for (s, segment) in segments.iter().enumerate() {
                    for k in 0..length {
                        sum += f64::from(values[segment + row * stride + k]) * f64::from(right(s * length + k, column));
                    }
                }
                let (found, expected) = (out[row * columns + column], activation.of(sum as f32));
                assert!((found - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{sizes}: {found} for {expected}");
            }
        }
    }

    fn check_all<S: Simd>(simd: S) {
        for columns in [1, 2, 4, 15, 16, 17, 24, 32, 47, 48, 60, 64, 96, 120, 130] {
            for rows in [1, 3, 7, 8, 9, 16, 21] {
                check(simd, rows, 5, 5, &[0], columns);
            }
        }
        // Overlapping rows of three segments, as in a 3×3 convolution of 4 channels, strides 1 and 2.
        check(simd, 9, 12, 4, &[0, 100, 200], 24);
        check(simd, 10, 9, 6, &[0, 70, 140], 16);
        check(simd, 1, 1, 1, &[0], 1);
    }

    #[test]
    fn products_are_right_at_all_widths_and_edges() {
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
