//! Sixteen rows of weights side by side, column by column: what a product reads lies in the order in which it is read.
//!
//! Activations stay 32-bit floats. Weights are held exactly as the file gives them: in 16 or 32 bits, or as w = scale · q + least with
//! the two in 32 bits for a run of 16 or 32 weights, so that a product never converts them. A column's sixteen weights fill a
//! register, so that sums stay apart by row and are never added up across lanes.

use rayon::prelude::*;

/// Rows side by side.
pub(super) const GROUP: usize = 16;
/// Longest run.
const RUN_MAX: usize = 32;

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// 32 bits each.
    Floats,
    /// IEEE 754 half precision.
    Half,
    /// The upper half of a 32-bit float.
    Brain,
    /// Whole numbers with scales.
    Quants(Quants),
}

/// Whole numbers of a row that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quants {
    /// Eight bits with a sign, rather than four without.
    pub(super) wide: bool,
    /// How many share a scale: 16 or 32.
    pub(super) run: usize,
    /// Whether they also share a least value.
    pub(super) least: bool,
}

impl Form {
    /// Bytes that `rows` of `columns` take.
    pub(super) fn bytes(self, rows: usize, columns: usize) -> u64 {
        let values = (rows.next_multiple_of(GROUP) * columns) as u64;
        match self {
            Self::Floats => values * 4,
            Self::Half | Self::Brain => values * 2,
            Self::Quants(quants) => {
                let scales = values / quants.run as u64 * 4;
                quants.bytes(values as usize) as u64 + if quants.least { 2 * scales } else { scales }
            }
        }
    }
}

impl Quants {
    /// Bytes of that many of them.
    pub(super) fn bytes(self, values: usize) -> usize {
        if self.wide { values } else { values / 2 }
    }
}

/// Groups of rows, one after the other; rows beyond the last are zeros.
#[derive(Debug, PartialEq)]
pub(super) enum Packed {
    /// [column][row]
    Floats(Vec<f32>),
    /// [column][row]
    Half(Vec<u16>),
    /// [column][row]
    Brain(Vec<u16>),
    Quants {
        quants: Quants,
        /// Wide: [column][row]. Else [pair of columns][row], the even column in the low half of each byte.
        bytes: Vec<u8>,
        /// [run][row]
        scales: Vec<f32>,
        /// [run][row], empty without.
        leasts: Vec<f32>,
    },
}

/// Rows of values as groups of [column][row].
pub(super) fn side_by_side<T: Copy + Default + Send + Sync>(values: &[T], columns: usize) -> Vec<T> {
    let mut out = vec![T::default(); (values.len() / columns).next_multiple_of(GROUP) * columns];
    out.par_chunks_mut(GROUP * columns).zip(values.par_chunks(GROUP * columns)).for_each(|(out, rows)| {
        for (lane, row) in rows.chunks_exact(columns).enumerate() {
            for (value, lanes) in row.iter().zip(out.as_chunks_mut::<GROUP>().0) {
                lanes[lane] = *value;
            }
        }
    });
    out
}

impl Packed {
    /// Rows of quants as groups. `run(row, number, out)` writes a run's quants and gives its scale and least value.
    pub(super) fn quants(
        quants: Quants,
        rows: usize,
        columns: usize,
        run: impl Fn(usize, usize, &mut [i8]) -> (f32, f32) + Sync,
    ) -> Self {
        let (groups, runs) = (rows.div_ceil(GROUP), columns / quants.run);
        let mut bytes = vec![0; quants.bytes(groups * GROUP * columns)];
        let mut scales = vec![0.0; groups * runs * GROUP];
        let mut leasts = vec![0.0; if quants.least { scales.len() } else { 0 }];
        let mut least_of: Vec<&mut [f32]> = leasts.chunks_mut((runs * GROUP).max(1)).collect();
        least_of.resize_with(groups, || &mut []);
        bytes
            .par_chunks_mut(quants.bytes(GROUP * columns).max(1))
            .zip(scales.par_chunks_mut((runs * GROUP).max(1)))
            .zip(least_of)
            .enumerate()
            .for_each(|(group, ((bytes, scales), leasts))| {
                let first = group * GROUP;
                for (lane, row) in (first..rows.min(first + GROUP)).enumerate() {
                    for number in 0..runs {
                        let mut values = [0; RUN_MAX];
                        let values = &mut values[..quants.run];
                        let place = number * GROUP + lane;
                        let (scale, least) = run(row, number, values);
                        scales[place] = scale;
                        if let Some(place) = leasts.get_mut(place) {
                            *place = least;
                        }
                        let bytes = bytes[quants.bytes(number * quants.run * GROUP)..].as_chunks_mut::<GROUP>().0;
                        if quants.wide {
                            bytes
                                .iter_mut()
                                .zip(values)
                                .for_each(|(column, value)| column[lane] = value.cast_unsigned());
                        } else {
                            for (pair, [even, odd]) in bytes.iter_mut().zip(values.as_chunks::<2>().0) {
                                pair[lane] = (even.cast_unsigned() & 15) | odd.cast_unsigned() << 4;
                            }
                        }
                    }
                }
            });
        Self::Quants { quants, bytes, scales, leasts }
    }

    /// Puts another's groups after these, if they are of one form; gives it back otherwise. This one's last group must be full.
    pub(super) fn append(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Floats(values), Self::Floats(more)) => values.extend(more),
            (Self::Half(values), Self::Half(more)) | (Self::Brain(values), Self::Brain(more)) => values.extend(more),
            (
                Self::Quants { quants, bytes, scales, leasts },
                Self::Quants { quants: same, bytes: more_bytes, scales: more_scales, leasts: more_leasts },
            ) if *quants == same => {
                bytes.extend(more_bytes);
                scales.extend(more_scales);
                leasts.extend(more_leasts);
            }
            (_, other) => return Some(other),
        }
        None
    }

    /// One row as floats.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (group, lane, columns) = (row / GROUP, row % GROUP, out.len());
        for (column, out) in out.iter_mut().enumerate() {
            let at = group * columns + column;
            *out = match self {
                Self::Floats(values) => values[at * GROUP + lane],
                Self::Half(values) => half(values[at * GROUP + lane]),
                Self::Brain(values) => brain(values[at * GROUP + lane]),
                Self::Quants { quants, bytes, scales, leasts } => {
                    let place = at / quants.run * GROUP + lane;
                    let quant = if quants.wide {
                        f32::from(bytes[at * GROUP + lane].cast_signed())
                    } else {
                        f32::from((bytes[at / 2 * GROUP + lane] >> (4 * (column % 2))) & 15)
                    };
                    scales[place].mul_add(quant, leasts.get(place).copied().unwrap_or(0.0))
                }
            };
        }
    }
}

/// IEEE 754 half precision to single, exactly, without a branch; infinities and what is no number become 65536 and beyond.
#[inline(always)]
pub(super) fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // The exponents' zero points lie 112 apart.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// The upper half of a single.
#[inline(always)]
pub(super) fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x8000, -0.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
        ] {
            assert_eq!(half(bits).to_bits(), f32::to_bits(value));
        }
        assert!(half(0x7c00) >= 65536.0 && half(0xfe00) <= -65536.0);
    }

    #[test]
    fn bytes_are_counted_as_they_are_held() {
        let quants = |wide, run, least| Quants { wide, run, least };
        for quants in
            [quants(false, 32, true), quants(false, 16, true), quants(true, 32, true), quants(true, 16, false)]
        {
            for rows in [1, 16, 17] {
                let held = Packed::quants(quants, rows, 64, |row, number, out| {
                    out.fill((row % 8) as i8);
                    (number as f32, 1.0)
                });
                let Packed::Quants { bytes, scales, leasts, .. } = &held else { panic!("{held:?}") };
                let bytes = bytes.len() + 4 * (scales.len() + leasts.len());
                assert_eq!(Form::Quants(quants).bytes(rows, 64), bytes as u64);
                let mut row = [0.0; 64];
                held.row(rows - 1, &mut row);
                let least = if quants.least { 1.0 } else { 0.0 };
                assert_eq!(row[63], (64 / quants.run - 1) as f32 * ((rows - 1) % 8) as f32 + least);
            }
        }
    }
}
