//! Weight matrices as they are multiplied: 4 or 8 bits a weight with a scale and a least value per block of 32, or plain floats.
//!
//! Activations stay 32-bit floats. GGUF's 32-block kinds are held exactly: w = scale · q + least, with the two in 32 bits so that
//! a product never converts them. A vector is multiplied row by row from the packed form, so that a token costs the packed bytes; for more
//! vectors at once, tiles of weights are unpacked into a small buffer that stays in cache and multiplied as floats.

use std::cell::RefCell;

use ingle_engine::EngineError;
use rayon::prelude::*;

use crate::weights::gguf::TensorPlace;

/// Weights per scale.
const BLOCK: usize = 32;
/// Rows of weights that a thread takes at a time.
const ROWS: usize = 48;

/// A matrix of `rows` × `columns`, or several below each other with equal columns.
#[derive(Debug)]
pub(super) struct Matrix {
    columns: usize,
    rows: usize,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    rows: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// Row by row.
    Floats(Vec<f32>),
    /// A block's byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
    Four {
        quants: Vec<u8>,
        scales: Vec<f32>,
        least: Vec<f32>,
    },
    Eight {
        quants: Vec<i8>,
        scales: Vec<f32>,
        least: Vec<f32>,
    },
}

/// Whether a tensor is well held here: half-precision matrices would double, kinds with blocks of 256 have scales of another shape.
pub(super) fn holds(place: &TensorPlace) -> bool {
    match place.quantisation.name {
        "F32" | "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q8_0" => true,
        "F16" | "BF16" => place.shape.len() == 1,
        _ => false,
    }
}

/// Bytes that a tensor takes here.
pub(super) fn bytes(place: &TensorPlace) -> u64 {
    let values = place.shape.iter().product::<usize>() as u64;
    match place.quantisation.name {
        "Q4_0" | "Q4_1" => values / 2 + values / BLOCK as u64 * 8,
        "Q5_0" | "Q5_1" | "Q8_0" => values + values / BLOCK as u64 * 8,
        _ => values * 4,
    }
}

/// A vector with what products with blocks need of it.
pub(super) struct Input<'a> {
    values: &'a [f32],
    /// Sum of each block of 32.
    sums: Vec<f32>,
}

impl<'a> Input<'a> {
    pub(super) fn new(values: &'a [f32]) -> Self {
        Self { values, sums: values.chunks(BLOCK).map(|block| block.iter().sum()).collect() }
    }
}

impl Matrix {
    /// Reads a checked tensor's bytes; its shape is [rows, columns], or [columns] for a single row.
    ///
    /// # Errors
    /// [`EngineError::Compute`] for a kind that [`holds`] doesn't name.
    pub(super) fn read(place: &TensorPlace, bytes: &[u8]) -> Result<Self, EngineError> {
        let columns = *place.shape.last().unwrap_or(&0);
        let rows = place.shape.iter().product::<usize>().checked_div(columns).unwrap_or(0);
        let half = |at: &[u8]| f16(u16::from_le_bytes([at[0], at[1]]));
        let blocks = bytes.chunks_exact(place.quantisation.bytes as usize);
        let values = match place.quantisation.name {
            "F32" => Values::Floats(blocks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            "F16" => Values::Floats(blocks.map(half).collect()),
            "BF16" => {
                let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                Values::Floats(blocks.map(wide).collect())
            }
            "Q4_0" | "Q4_1" => {
                let with_least = place.quantisation.name == "Q4_1";
                let count = blocks.len();
                let (mut quants, mut scales, mut least) =
                    (Vec::with_capacity(count * 16), Vec::with_capacity(count), Vec::with_capacity(count));
                for block in blocks {
                    let scale = half(block);
                    scales.push(scale);
                    least.push(if with_least { half(&block[2..]) } else { -8.0 * scale });
                    quants.extend_from_slice(&block[block.len() - 16..]);
                }
                Values::Four { quants, scales, least }
            }
            "Q5_0" | "Q5_1" | "Q8_0" => {
                let count = blocks.len();
                let (mut quants, mut scales, mut least) =
                    (Vec::with_capacity(count * BLOCK), Vec::with_capacity(count), Vec::with_capacity(count));
                for block in blocks {
                    let scale = half(block);
                    scales.push(scale);
                    least.push(match place.quantisation.name {
                        "Q5_1" => half(&block[2..]),
                        "Q5_0" => -16.0 * scale,
                        _ => 0.0,
                    });
                    if place.quantisation.name == "Q8_0" {
                        quants.extend(block[2..].iter().map(|byte| byte.cast_signed()));
                    } else {
                        five_bits(&block[block.len() - 20..], &mut quants);
                    }
                }
                Values::Eight { quants, scales, least }
            }
            other => return Err(EngineError::Compute(format!("weights stored as {other} can't be held packed"))),
        };
        Ok(Self { columns, rows, parts: vec![Part { rows, values }] })
    }

    /// Puts matrices of equal columns below each other.
    pub(super) fn stack(matrices: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self { columns: 0, rows: 0, parts: Vec::new() };
        for matrix in matrices {
            debug_assert!(all.parts.is_empty() || all.columns == matrix.columns);
            all.columns = matrix.columns;
            all.rows += matrix.rows;
            all.parts.extend(matrix.parts);
        }
        all
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `out[r] = Σ_c w[r, c] · x[c]`, on all threads of the pool.
    pub(super) fn times_vector(&self, x: &Input<'_>, out: &mut [f32]) {
        out.par_chunks_mut(ROWS).enumerate().for_each(|(chunk, out)| {
            let first = chunk * ROWS;
            self.segments(first, out.len(), |part, row, at, count| {
                pulp::Arch::new().dispatch(Dots { part, row, x, out: &mut out[at..at + count] });
            });
        });
    }

    /// `out[t, r] = Σ_c w[r, c] · x[t, c]` for `tokens` rows of `x`; `out` is row by row, `turned` a buffer to be used again.
    pub(super) fn times(&self, x: &[f32], tokens: usize, turned: &mut Vec<f32>, out: &mut [f32]) {
        thread_local!(static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let columns = self.columns;
        // A thread writes whole rows of the turned result, [rows, tokens]: no two threads write near each other.
        turned.resize(self.rows * tokens, 0.0);
        turned.par_chunks_mut(ROWS * tokens).enumerate().for_each(|(tile, product)| {
            let (first, count) = (tile * ROWS, product.len() / tokens);
            TILE.with_borrow_mut(|weights| {
                weights.resize(ROWS * columns, 0.0);
                self.segments(first, count, |part, row, at, count| {
                    let out = &mut weights[at * columns..][..count * columns];
                    pulp::Arch::new().dispatch(Unpack { part, row, columns, out });
                });
                let weights = &weights[..count * columns];
                pulp::Arch::new().dispatch(Multiply { weights, x, columns, out: product, tokens });
            });
        });
        let (turned, rows) = (&*turned, self.rows);
        out.par_chunks_mut(rows).enumerate().for_each(|(token, out)| {
            for (value, row) in out.iter_mut().zip(turned.chunks_exact(tokens)) {
                *value = row[token];
            }
        });
    }

    /// One row as floats.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let columns = self.columns;
        self.segments(row, 1, |part, row, _, _| part.unpack(row, columns, out));
    }

    /// Splits rows into those of each part: part, its first row, where they lie among those asked for, how many.
    fn segments(&self, first: usize, count: usize, mut each: impl FnMut(&Part, usize, usize, usize)) {
        let (mut begin, end) = (0, first + count);
        for part in &self.parts {
            let (from, to) = (first.max(begin), end.min(begin + part.rows));
            if from < to {
                each(part, from - begin, from - first, to - from);
            }
            begin += part.rows;
        }
    }
}

// What is dispatched are structures with a method that is always inlined: a closure's call may not be, and would then be compiled
// without the wide registers, with a library call per fused multiplication.

struct Dots<'a> {
    part: &'a Part,
    row: usize,
    x: &'a Input<'a>,
    out: &'a mut [f32],
}

impl pulp::WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.part.dots(self.row, self.x, self.out);
    }
}

struct Unpack<'a> {
    part: &'a Part,
    row: usize,
    columns: usize,
    out: &'a mut [f32],
}

impl pulp::WithSimd for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.part.unpack(self.row, self.columns, self.out);
    }
}

struct Multiply<'a> {
    weights: &'a [f32],
    x: &'a [f32],
    columns: usize,
    out: &'a mut [f32],
    tokens: usize,
}

impl pulp::WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        multiply(simd, self.weights, self.x, self.columns, self.out, self.tokens);
    }
}

impl Part {
    /// Products of rows from `first` on with a vector.
    #[inline(always)]
    fn dots(&self, first: usize, x: &Input<'_>, out: &mut [f32]) {
        let columns = x.values.len();
        let blocks = columns / BLOCK;
        match &self.values {
            Values::Floats(values) => {
                for (row, out) in values[first * columns..].chunks_exact(columns).zip(out) {
                    *out = dot(row, x.values);
                }
            }
            Values::Four { quants, scales, least } => {
                let rows = quants[first * blocks * 16..].chunks_exact(blocks * 16);
                let rows = rows.zip(scales[first * blocks..].chunks_exact(blocks));
                let rows = rows.zip(least[first * blocks..].chunks_exact(blocks));
                for (((quants, scales), least), out) in rows.zip(out) {
                    let mut lanes = [0.0f32; 16];
                    for ((quants, scale), x) in quants.chunks_exact(16).zip(scales).zip(x.values.chunks_exact(BLOCK)) {
                        let (low, high) = x.split_at(16);
                        for lane in 0..16 {
                            let a = f32::from(quants[lane] & 15) * low[lane];
                            let sum = f32::from(quants[lane] >> 4).mul_add(high[lane], a);
                            lanes[lane] = scale.mul_add(sum, lanes[lane]);
                        }
                    }
                    *out = lanes.iter().sum::<f32>() + dot(least, &x.sums);
                }
            }
            Values::Eight { quants, scales, least } => {
                let rows = quants[first * columns..].chunks_exact(columns);
                let rows = rows.zip(scales[first * blocks..].chunks_exact(blocks));
                let rows = rows.zip(least[first * blocks..].chunks_exact(blocks));
                for (((quants, scales), least), out) in rows.zip(out) {
                    let mut lanes = [0.0f32; 16];
                    for ((quants, scale), x) in quants.chunks_exact(BLOCK).zip(scales).zip(x.values.chunks_exact(BLOCK))
                    {
                        let (low, high) = x.split_at(16);
                        for lane in 0..16 {
                            let a = f32::from(quants[lane]) * low[lane];
                            let sum = f32::from(quants[lane + 16]).mul_add(high[lane], a);
                            lanes[lane] = scale.mul_add(sum, lanes[lane]);
                        }
                    }
                    *out = lanes.iter().sum::<f32>() + dot(least, &x.sums);
                }
            }
        }
    }

    /// Rows from `first` on as floats.
    #[inline(always)]
    fn unpack(&self, first: usize, columns: usize, out: &mut [f32]) {
        let (begin, count) = (first * columns / BLOCK, out.len() / BLOCK);
        match &self.values {
            Values::Floats(values) => out.copy_from_slice(&values[first * columns..][..out.len()]),
            Values::Four { quants, scales, least } => {
                let blocks = quants[begin * 16..][..count * 16].chunks_exact(16);
                let blocks = blocks.zip(&scales[begin..]).zip(&least[begin..]);
                for (((quants, scale), least), out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
                    let (low, high) = out.split_at_mut(16);
                    for lane in 0..16 {
                        low[lane] = scale.mul_add(f32::from(quants[lane] & 15), *least);
                        high[lane] = scale.mul_add(f32::from(quants[lane] >> 4), *least);
                    }
                }
            }
            Values::Eight { quants, scales, least } => {
                let blocks = quants[begin * BLOCK..][..count * BLOCK].chunks_exact(BLOCK);
                let blocks = blocks.zip(&scales[begin..]).zip(&least[begin..]);
                for (((quants, scale), least), out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
                    for (out, quant) in out.iter_mut().zip(quants) {
                        *out = scale.mul_add(f32::from(*quant), *least);
                    }
                }
            }
        }
    }
}

/// Sixteen running sums.
type Lanes = [f32; 16];

/// `out[r, t] = Σ_c weights[r, c] · x[t, c]`. Four tokens stay in the first cache while pairs of rows pass by, so that a value that was
/// loaded is used more than once.
#[inline(always)]
fn multiply<S: pulp::Simd>(simd: S, weights: &[f32], x: &[f32], columns: usize, out: &mut [f32], tokens: usize) {
    let whole = tokens / 4 * 4;
    for (four, x) in x.chunks_exact(4 * columns).enumerate() {
        for (rows, out) in weights.chunks(2 * columns).zip(out.chunks_mut(2 * tokens)) {
            let (a, b) = rows.split_at(columns);
            // A last row alone is taken twice.
            let (sums_a, sums_b) = two_by_four(simd, a, if b.is_empty() { a } else { b }, x, columns);
            out[4 * four..][..4].copy_from_slice(&sums_a);
            if !b.is_empty() {
                out[tokens + 4 * four..][..4].copy_from_slice(&sums_b);
            }
        }
    }
    for (row, out) in weights.chunks_exact(columns).zip(out.chunks_exact_mut(tokens)) {
        for (x, out) in x[whole * columns..].chunks_exact(columns).zip(&mut out[whole..]) {
            *out = dot(row, x);
        }
    }
}

#[inline(always)]
fn two_by_four<S: pulp::Simd>(simd: S, a: &[f32], b: &[f32], x: &[f32], columns: usize) -> ([f32; 4], [f32; 4]) {
    let (x0, x) = x.split_at(columns);
    let (x1, x) = x.split_at(columns);
    let (x2, x3) = x.split_at(columns);
    let zero = simd.splat_f32s(0.0);
    let (mut a0, mut a1, mut a2, mut a3) = (zero, zero, zero, zero);
    let (mut b0, mut b1, mut b2, mut b3) = (zero, zero, zero, zero);
    let [(va, ra), (vb, rb)] = [S::as_simd_f32s(a), S::as_simd_f32s(b)];
    let [(v0, r0), (v1, r1), (v2, r2), (v3, r3)] = [x0, x1, x2, x3].map(S::as_simd_f32s);
    for (((((&a, &b), &x0), &x1), &x2), &x3) in va.iter().zip(vb).zip(v0).zip(v1).zip(v2).zip(v3) {
        a0 = simd.mul_add_f32s(a, x0, a0);
        a1 = simd.mul_add_f32s(a, x1, a1);
        a2 = simd.mul_add_f32s(a, x2, a2);
        a3 = simd.mul_add_f32s(a, x3, a3);
        b0 = simd.mul_add_f32s(b, x0, b0);
        b1 = simd.mul_add_f32s(b, x1, b1);
        b2 = simd.mul_add_f32s(b, x2, b2);
        b3 = simd.mul_add_f32s(b, x3, b3);
    }
    let (mut sums_a, mut sums_b) =
        ([a0, a1, a2, a3].map(|sum| simd.reduce_sum_f32s(sum)), [b0, b1, b2, b3].map(|sum| simd.reduce_sum_f32s(sum)));
    for (token, rest) in [r0, r1, r2, r3].into_iter().enumerate() {
        for ((a, b), x) in ra.iter().zip(rb).zip(rest) {
            sums_a[token] += a * x;
            sums_b[token] += b * x;
        }
    }
    (sums_a, sums_b)
}

/// Σ a · b.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes: Lanes = [0.0; 16];
    let (chunks_a, chunks_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in chunks_a.zip(chunks_b) {
        for lane in 0..16 {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The low four bits of a block of 32 follow their fifth bits (bit `i` of the first four bytes).
fn five_bits(block: &[u8], out: &mut Vec<i8>) {
    let high = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let bit = |index: usize| (((high >> index) & 1) << 4) as u8;
    out.extend((0..16).map(|index| ((block[4 + index] & 15) | bit(index)).cast_signed()));
    out.extend((0..16).map(|index| ((block[4 + index] >> 4) | bit(index + 16)).cast_signed()));
}

/// IEEE 754 half precision to single, exactly.
fn f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) =
        (u32::from(bits >> 15) << 31, u32::from((bits >> 10) & 31), u32::from(bits & 1023));
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * 2.0f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::weights::gguf::QUANTISATIONS;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// A matrix in candle's storage of a kind, what candle says it holds, and ours.
    fn pair(kind: GgmlDType, name: &str, rows: usize, columns: usize, seed: usize) -> (Vec<f32>, Matrix) {
        let plain = Tensor::from_vec(values(rows * columns, seed), (rows, columns), &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&plain, kind).unwrap();
        let quantisation = *QUANTISATIONS.iter().find(|known| known.name == name).unwrap();
        let bytes = stored.data().unwrap().into_owned();
        let place = TensorPlace { shape: vec![rows, columns], quantisation, offset: 0, length: bytes.len() as u64 };
        let held = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (held, Matrix::read(&place, &bytes).unwrap())
    }

    const KINDS: [(GgmlDType, &str); 8] = [
        (GgmlDType::F32, "F32"),
        (GgmlDType::F16, "F16"),
        (GgmlDType::BF16, "BF16"),
        (GgmlDType::Q4_0, "Q4_0"),
        (GgmlDType::Q4_1, "Q4_1"),
        (GgmlDType::Q5_0, "Q5_0"),
        (GgmlDType::Q5_1, "Q5_1"),
        (GgmlDType::Q8_0, "Q8_0"),
    ];

    #[test]
    fn every_kind_is_held_as_candle_reads_it() {
        for (kind, name) in KINDS {
            let (held, ours) = pair(kind, name, 5, 96, 1);
            for row in 0..5 {
                let mut unpacked = vec![0.0; 96];
                ours.row(row, &mut unpacked);
                for (ours, theirs) in unpacked.iter().zip(&held[row * 96..]) {
                    assert!((ours - theirs).abs() < 1e-6, "{name}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_floats() {
        for (kind, name) in KINDS {
            for (rows, tokens) in [(1, 1), (7, 3), (100, 9), (97, 4)] {
                let (held, ours) = pair(kind, name, rows, 96, rows);
                let (more, lower) = pair(GgmlDType::Q8_0, "Q8_0", 3, 96, 5);
                let (held, ours) = ([held, more].concat(), Matrix::stack([ours, lower]));
                let rows = rows + 3;
                let x = values(tokens * 96, 77);
                let (mut turned, mut all) = (Vec::new(), vec![0.0; tokens * rows]);
                ours.times(&x, tokens, &mut turned, &mut all);
                for (token, x) in x.chunks_exact(96).enumerate() {
                    let mut one = vec![0.0; rows];
                    ours.times_vector(&Input::new(x), &mut one);
                    for row in 0..rows {
                        let products = held[row * 96..][..96].iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let expected = products.sum::<f64>() as f32;
                        assert!((one[row] - expected).abs() < 2e-4, "{name}: {} {expected}", one[row]);
                        let among = all[token * rows + row];
                        assert!((among - expected).abs() < 2e-4, "{name}: {among} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x8000, -0.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
        ] {
            assert_eq!(f16(bits).to_bits(), f32::to_bits(value));
        }
        assert!(f16(0x7c00).is_infinite() && f16(0x7e00).is_nan());
    }
}
