//! Weight matrices as they are multiplied: 4 or 8 bits a weight with a scale and a least value per block of 32, or plain floats.
//!
//! A vector is multiplied from the packed form, so that a token costs the packed bytes; for more vectors at once, sixteen rows of weights
//! at a time are unpacked into a small buffer that stays in cache and multiplied as floats.

use std::cell::RefCell;

use ingle_engine::EngineError;
use rayon::prelude::*;

use super::packed::{self, BLOCK, Block, Dots, GROUP, Multiply, Packed};
use crate::floats::Floats;
use crate::weights::gguf::TensorPlace;

/// Groups that a thread takes at a time.
const GROUPS: usize = 3;
/// Weights below which one thread multiplies a vector sooner than a second one wakes up.
const ALONE: usize = 1 << 20;

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
    weights: Packed,
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
    let columns = place.shape.last().copied().unwrap_or(0);
    let rows = place.shape.iter().product::<usize>().checked_div(columns).unwrap_or(0);
    let values = (rows.next_multiple_of(GROUP) * columns) as u64;
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
        let name = place.quantisation.name;
        let values = bytes.chunks_exact(place.quantisation.bytes as usize);
        let floats = |values: Vec<f32>| packed::floats(&values, columns.max(1));
        let weights = match name {
            "F32" => floats(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            "F16" => floats(values.map(half).collect()),
            "BF16" => {
                let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                floats(values.map(wide).collect())
            }
            "Q4_0" | "Q4_1" | "Q5_0" | "Q5_1" | "Q8_0" => {
                let (size, blocks) = (place.quantisation.bytes as usize, columns / BLOCK);
                packed::blocks(rows, blocks, !name.starts_with("Q4"), |row, block| {
                    unblocked(name, &bytes[(row * blocks + block) * size..][..size])
                })
            }
            other => return Err(EngineError::Compute(format!("weights stored as {other} can't be held packed"))),
        };
        Ok(Self { columns, rows, parts: vec![Part { rows, weights }] })
    }

    /// Puts matrices of equal columns below each other.
    pub(super) fn stack(matrices: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self { columns: 0, rows: 0, parts: Vec::new() };
        for matrix in matrices {
            debug_assert!(all.parts.is_empty() || all.columns == matrix.columns);
            all.columns = matrix.columns;
            all.rows += matrix.rows;
            for part in matrix.parts {
                all.add(part);
            }
        }
        all
    }

    /// Rows of one kind become one part, so that threads meet once for all of them.
    fn add(&mut self, mut part: Part) {
        if let Some(last) = self.parts.last_mut().filter(|last| last.rows.is_multiple_of(GROUP)) {
            match last.weights.append(part.weights) {
                None => {
                    last.rows += part.rows;
                    return;
                }
                Some(weights) => part.weights = weights,
            }
        }
        self.parts.push(part);
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// `out[r] = Σ_c w[r, c] · x[c]`, on all threads of the pool if there is enough to do.
    pub(super) fn times_vector(&self, x: &Input<'_>, mut out: &mut [f32]) {
        for part in &self.parts {
            let (own, rest) = out.split_at_mut(part.rows);
            let dots = |first, out| {
                pulp::Arch::new().dispatch(Dots { weights: &part.weights, first, x: x.values, sums: &x.sums, out });
            };
            if part.rows * self.columns < ALONE {
                dots(0, own);
            } else {
                own.par_chunks_mut(GROUPS * GROUP).enumerate().for_each(|(chunk, out)| dots(chunk * GROUPS, out));
            }
            out = rest;
        }
    }

    /// `out[t, r] = Σ_c w[r, c] · x[t, c]` for `tokens` rows of `x`; `out` is row by row, `apart` a buffer to be used again.
    pub(super) fn times(&self, x: &[f32], tokens: usize, apart: &mut Vec<f32>, out: &mut [f32]) {
        thread_local!(static TILE: RefCell<Floats> = RefCell::default());
        let columns = self.columns;
        // Each group's result lies apart, [tokens, 16]: no two threads write near each other.
        let groups: usize = self.parts.iter().map(|part| part.rows.div_ceil(GROUP)).sum();
        apart.resize(groups * GROUP * tokens, 0.0);
        let mut left = &mut apart[..];
        for part in &self.parts {
            let (own, rest) = left.split_at_mut(part.rows.div_ceil(GROUP) * GROUP * tokens);
            own.par_chunks_mut(GROUP * tokens).with_min_len(GROUPS).enumerate().for_each(|(group, out)| {
                TILE.with_borrow_mut(|tile| {
                    pulp::Arch::new().dispatch(Multiply { weights: &part.weights, group, x, columns, tile, out });
                });
            });
            left = rest;
        }
        let apart = &*apart;
        out.par_chunks_mut(self.rows).enumerate().for_each(|(token, mut out)| {
            let mut products = apart.as_chunks::<GROUP>().0.chunks_exact(tokens);
            for part in &self.parts {
                let (own, rest) = out.split_at_mut(part.rows);
                for (out, product) in own.chunks_mut(GROUP).zip(&mut products) {
                    out.copy_from_slice(&product[token][..out.len()]);
                }
                out = rest;
            }
        });
    }

    /// One row as floats.
    pub(super) fn row(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row < part.rows {
                return part.weights.row(row, out);
            }
            row -= part.rows;
        }
    }
}

/// Σ a · b.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks_a, chunks_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = chunks_a.remainder().iter().zip(chunks_b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in chunks_a.zip(chunks_b) {
        for lane in 0..16 {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// A block of a kind that is held packed.
fn unblocked(kind: &str, block: &[u8]) -> Block {
    let half = |at: usize| f16(u16::from_le_bytes([block[at], block[at + 1]]));
    let scale = half(0);
    match kind {
        "Q4_0" => (scale, -8.0 * scale, four_bits(&block[2..])),
        "Q4_1" => (scale, half(2), four_bits(&block[4..])),
        "Q5_0" => (scale, -16.0 * scale, five_bits(&block[2..])),
        "Q5_1" => (scale, half(2), five_bits(&block[4..])),
        _ => (scale, 0.0, std::array::from_fn(|index| block[2 + index].cast_signed())),
    }
}

/// Byte `i` has weight `i` in its low half and weight `i + 16` in its high half.
fn four_bits(block: &[u8]) -> [i8; BLOCK] {
    std::array::from_fn(|index| ((block[index % 16] >> (index / 16 * 4)) & 15).cast_signed())
}

/// The low four bits of a block of 32 follow their fifth bits (bit `i` of the first four bytes).
fn five_bits(block: &[u8]) -> [i8; BLOCK] {
    let high = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let low = four_bits(&block[4..]);
    std::array::from_fn(|index| low[index] | (((high >> index) & 1) << 4) as i8)
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
