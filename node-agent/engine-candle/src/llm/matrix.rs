//! Weight matrices as they are multiplied: 4 or 8 bits a weight with a scale and a least value per block of 32, or plain floats.
//!
//! A vector is multiplied from the packed form, so that a token costs the packed bytes; for more vectors at once, sixteen rows of weights
//! at a time are unpacked into a small buffer that stays in cache and multiplied as floats.

use std::cell::RefCell;

use rayon::prelude::*;

use super::kernels::{Dots, Multiply, SUMMED};
use super::kinds;
use super::packed::{Form, GROUP, Packed, side_by_side};
use super::team::Member;
use crate::floats::Floats;
use crate::weights::gguf::TensorPlace;

/// Groups that a thread takes at a time.
const GROUPS: usize = 3;

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

impl Part {
    fn dots(&self, first: usize, x: &Input<'_>, out: &mut [f32]) {
        pulp::Arch::new().dispatch(Dots { weights: &self.weights, first, x: x.values, sums: &x.sums, out });
    }
}

/// Bytes that a tensor takes here.
pub(super) fn bytes(place: &TensorPlace) -> u64 {
    let (rows, columns) = extent(place);
    kinds::form(place.quantisation.name).bytes(rows, columns)
}

/// Rows and columns; a vector is one row.
fn extent(place: &TensorPlace) -> (usize, usize) {
    let columns = place.shape.last().copied().unwrap_or(0);
    (place.shape.iter().product::<usize>().checked_div(columns).unwrap_or(0), columns)
}

/// A vector with what products with quants need of it.
pub(super) struct Input<'a> {
    values: &'a [f32],
    /// Sum of each 16 columns.
    sums: Vec<f32>,
}

impl<'a> Input<'a> {
    pub(super) fn new(values: &'a [f32]) -> Self {
        Self { values, sums: values.chunks(SUMMED).map(|part| part.iter().sum()).collect() }
    }
}

impl Matrix {
    /// Reads a checked tensor's bytes; its shape is [rows, columns], or [columns] for a single row.
    pub(super) fn read(place: &TensorPlace, bytes: &[u8]) -> Self {
        let (rows, columns) = extent(place);
        let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>();
        let kind = place.quantisation;
        let weights = match kinds::form(kind.name) {
            Form::Floats => {
                let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                Packed::Floats(side_by_side(&values, columns))
            }
            Form::Half => Packed::Half(side_by_side(&halves(), columns)),
            Form::Brain => Packed::Brain(side_by_side(&halves(), columns)),
            Form::Quants(quants) => {
                let (runs, size) = (kind.block as usize / quants.run, kind.bytes as usize);
                let blocks = columns / kind.block as usize;
                Packed::quants(quants, rows, columns, |row, number, out| {
                    let block = row * blocks + number / runs;
                    kinds::take_apart(kind.name, &bytes[block * size..][..size], number % runs, out)
                })
            }
        };
        Self { columns, rows, parts: vec![Part { rows, weights }] }
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

    /// `out[r] = Σ_c w[r, c] · x[c]`, on all threads of the pool.
    pub(super) fn times_vector(&self, x: &[f32], mut out: &mut [f32]) {
        let x = Input::new(x);
        for part in &self.parts {
            let (own, rest) = out.split_at_mut(part.rows);
            own.par_chunks_mut(GROUPS * GROUP).enumerate().for_each(|(at, out)| part.dots(at * GROUPS, &x, out));
            out = rest;
        }
    }

    /// A thread's share of the same: `tell` gets rows, and the number of the first of them.
    pub(super) fn share(&self, member: &Member<'_>, x: &Input<'_>, mut tell: impl FnMut(usize, &[f32])) {
        thread_local!(static OWN: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
        let mut above = 0;
        for part in &self.parts {
            let groups = member.share(part.rows.div_ceil(GROUP));
            let rows = groups.start * GROUP..part.rows.min(groups.end * GROUP);
            OWN.with_borrow_mut(|own| {
                own.resize(rows.len(), 0.0);
                part.dots(groups.start, x, own);
                tell(above + rows.start, own);
            });
            above += part.rows;
        }
    }

    /// `out[t, r] = Σ_c w[r, c] · x[t, c]` for `tokens` rows of `x`; `out` is row by row, `apart` a buffer to be used again.
    pub(super) fn times(&self, x: &[f32], tokens: usize, apart: &mut Vec<f32>, out: &mut Vec<f32>) {
        out.resize(tokens * self.rows, 0.0);
        thread_local!(static TILE: RefCell<Floats> = RefCell::default());
        let columns = self.columns;
        // Each group's result lies apart, [tokens, 16]: no two threads write near each other.
        let groups: usize = self.parts.iter().map(|part| part.rows.div_ceil(GROUP)).sum();
        apart.resize(groups * GROUP * tokens, 0.0);
        let mut left = &mut apart[..];
        for part in &self.parts {
            let (own, rest) = left.split_at_mut(part.rows.div_ceil(GROUP) * GROUP * tokens);
            own.par_chunks_mut(GROUPS * GROUP * tokens).enumerate().for_each(|(at, out)| {
                TILE.with_borrow_mut(|tile| {
                    let first = at * GROUPS;
                    pulp::Arch::new().dispatch(Multiply { weights: &part.weights, first, x, columns, tile, out });
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

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::llm::team::{Shared, together};
    use crate::pool::Pool;
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
        (held, Matrix::read(&place, &bytes))
    }

    const KINDS: [(GgmlDType, &str); 14] = [
        (GgmlDType::F32, "F32"),
        (GgmlDType::F16, "F16"),
        (GgmlDType::BF16, "BF16"),
        (GgmlDType::Q4_0, "Q4_0"),
        (GgmlDType::Q4_1, "Q4_1"),
        (GgmlDType::Q5_0, "Q5_0"),
        (GgmlDType::Q5_1, "Q5_1"),
        (GgmlDType::Q8_0, "Q8_0"),
        (GgmlDType::Q2K, "Q2_K"),
        (GgmlDType::Q3K, "Q3_K"),
        (GgmlDType::Q4K, "Q4_K"),
        (GgmlDType::Q5K, "Q5_K"),
        (GgmlDType::Q6K, "Q6_K"),
        (GgmlDType::Q8K, "Q8_K"),
    ];
    /// A whole block of every kind, twice.
    const COLUMNS: usize = 512;

    #[test]
    fn every_kind_is_held_as_candle_reads_it() {
        assert_eq!(KINDS.map(|(_, name)| name).len(), QUANTISATIONS.len());
        for (kind, name) in KINDS {
            let (held, ours) = pair(kind, name, 5, COLUMNS, 1);
            for row in 0..5 {
                let mut unpacked = vec![0.0; COLUMNS];
                ours.row(row, &mut unpacked);
                for (ours, theirs) in unpacked.iter().zip(&held[row * COLUMNS..]) {
                    assert!((ours - theirs).abs() < 1e-6, "{name}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_floats() {
        for (kind, name) in KINDS {
            for (rows, tokens) in [(1, 1), (7, 3), (48, 17), (100, 9)] {
                let (held, ours) = pair(kind, name, rows, COLUMNS, rows);
                let (more, lower) = pair(GgmlDType::Q8_0, "Q8_0", 3, COLUMNS, 5);
                let (held, ours) = ([held, more].concat(), Matrix::stack([ours, lower]));
                let rows = rows + 3;
                let x = values(tokens * COLUMNS, 77);
                let (mut apart, mut all) = (Vec::new(), Vec::new());
                ours.times(&x, tokens, &mut apart, &mut all);
                // A stack of two kinds, whose rows are shared out among three threads.
                let shared = Shared::new(rows);
                Pool::new(3).unwrap().run(|turn| {
                    together(turn, |member| {
                        ours.share(member, &Input::new(&x[..COLUMNS]), |row, values| shared.put(row, values));
                    })
                });
                let (mut shares, mut one) = (Vec::new(), vec![0.0; rows]);
                shared.get(&mut shares);
                ours.times_vector(&x[..COLUMNS], &mut one);
                assert_eq!(shares, one, "{name}, {rows} rows");
                for (token, x) in x.chunks_exact(COLUMNS).enumerate() {
                    let mut one = vec![0.0; rows];
                    ours.times_vector(x, &mut one);
                    for row in 0..rows {
                        let weights = &held[row * COLUMNS..][..COLUMNS];
                        let expected: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        let among = all[token * rows + row];
                        for found in [one[row], among] {
                            assert!((f64::from(found) - expected).abs() < 5e-4, "{name}: {found} for {expected}");
                        }
                    }
                }
            }
        }
    }
}
