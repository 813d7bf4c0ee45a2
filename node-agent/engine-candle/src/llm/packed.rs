//! Sixteen rows of weights side by side, column by column: what a product reads lies in the order in which it is read.
//!
//! Activations stay 32-bit floats. GGUF's 32-block kinds are held exactly: w = scale · q + least, with the two in 32 bits so that
//! a product never converts them. A column's sixteen weights fill a register, so that sums stay apart by row and are never added up
//! across lanes.

use pulp::Simd;

use crate::floats::Floats;

/// Rows side by side.
pub(super) const GROUP: usize = 16;
/// Weights per scale.
pub(super) const BLOCK: usize = 32;

/// A value for each row of a group.
type Lanes = [f32; GROUP];

/// Groups of rows, one after the other; rows beyond the last are zeros.
#[derive(Debug)]
pub(super) enum Packed {
    /// [column][row]
    Floats(Vec<f32>),
    /// [pair of columns][row], a byte for both: the even column in the low half. [block][scales of the rows, least values of the rows]
    Four { quants: Vec<u8>, scales: Vec<f32> },
    /// [column][row], [block][scales of the rows, least values of the rows]
    Eight { quants: Vec<i8>, scales: Vec<f32> },
}

/// Rows of floats as groups of [column][row].
pub(super) fn floats(values: &[f32], columns: usize) -> Packed {
    let mut out = vec![0.0; (values.len() / columns).div_ceil(GROUP) * GROUP * columns];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        let group = &mut out[row / GROUP * GROUP * columns..][..GROUP * columns];
        for (value, lanes) in values.iter().zip(group.as_chunks_mut::<GROUP>().0) {
            lanes[row % GROUP] = *value;
        }
    }
    Packed::Floats(out)
}

/// A block as GGUF stores it: scale, least value, quants.
pub(super) type Block = (f32, f32, [i8; BLOCK]);

/// Rows of blocks as groups; `block(row, number)` reads one. `wide`: the quants need more than four bits.
pub(super) fn blocks(rows: usize, blocks: usize, wide: bool, block: impl Fn(usize, usize) -> Block) -> Packed {
    let places = rows.div_ceil(GROUP) * blocks;
    let mut scales = vec![0.0; places * 2 * GROUP];
    let (mut eight, mut four) = (Vec::new(), Vec::new());
    if wide {
        eight = vec![0i8; places * BLOCK * GROUP];
    } else {
        four = vec![0u8; places * BLOCK / 2 * GROUP];
    }
    for row in 0..rows {
        for number in 0..blocks {
            let (scale, least, quants) = block(row, number);
            let (place, lane) = (row / GROUP * blocks + number, row % GROUP);
            let [scales, least_values] = &mut scales.as_chunks_mut::<GROUP>().0.as_chunks_mut::<2>().0[place];
            (scales[lane], least_values[lane]) = (scale, least);
            if wide {
                let columns = eight[place * BLOCK * GROUP..].as_chunks_mut::<GROUP>().0;
                columns.iter_mut().zip(quants).for_each(|(column, quant)| column[lane] = quant);
            } else {
                let pairs = four[place * BLOCK / 2 * GROUP..].as_chunks_mut::<GROUP>().0;
                for (pair, [even, odd]) in pairs.iter_mut().zip(quants.as_chunks::<2>().0) {
                    pair[lane] = (even.cast_unsigned() & 15) | odd.cast_unsigned() << 4;
                }
            }
        }
    }
    if wide { Packed::Eight { quants: eight, scales } } else { Packed::Four { quants: four, scales } }
}

impl Packed {
    /// Puts another's groups after these, if they are of one kind; gives it back otherwise. This one's last group must be full.
    pub(super) fn append(&mut self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Floats(values), Self::Floats(more)) => values.extend(more),
            (Self::Four { quants, scales }, Self::Four { quants: more, scales: more_scales }) => {
                quants.extend(more);
                scales.extend(more_scales);
            }
            (Self::Eight { quants, scales }, Self::Eight { quants: more, scales: more_scales }) => {
                quants.extend(more);
                scales.extend(more_scales);
            }
            (_, other) => return Some(other),
        }
        None
    }

    /// One row as floats.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (group, lane, columns) = (row / GROUP, row % GROUP, out.len());
        for (column, out) in out.iter_mut().enumerate() {
            let place = group * columns + column;
            let blocked = |scales: &[f32], quant: f32| {
                let pair = &scales[place / BLOCK * 2 * GROUP..];
                pair[lane].mul_add(quant, pair[GROUP + lane])
            };
            *out = match self {
                Self::Floats(values) => values[place * GROUP + lane],
                Self::Four { quants, scales } => {
                    blocked(scales, f32::from((quants[place / 2 * GROUP + lane] >> (4 * (column % 2))) & 15))
                }
                Self::Eight { quants, scales } => blocked(scales, f32::from(quants[place * GROUP + lane])),
            };
        }
    }
}

/// Products of groups from `first` on with a vector; `sums` holds the vector's sum of each block.
pub(super) struct Dots<'a> {
    pub(super) weights: &'a Packed,
    pub(super) first: usize,
    pub(super) x: &'a [f32],
    pub(super) sums: &'a [f32],
    /// A value per row; the last group may be cut.
    pub(super) out: &'a mut [f32],
}

// What is dispatched are structures with a method that is always inlined: a closure's call may not be, and would then be compiled
// without the wide registers, with a library call per fused multiplication. The same goes for `array::map`. Sums and scales are the
// registers' own types: over arrays of floats the compiler goes along the columns and gathers bytes one by one.

impl pulp::WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Constant conditions: what doesn't fit the registers isn't even compiled.
        if const { S::F32_LANES == 16 } {
            self.run::<S, 1>(simd);
        } else if const { S::F32_LANES == 8 } {
            self.run::<S, 2>(simd);
        } else if const { S::F32_LANES == 4 } {
            self.run::<S, 4>(simd);
        } else if const { S::F32_LANES == 1 } {
            self.run::<S, 16>(simd);
        } else {
            unreachable!("registers hold 1, 4, 8 or 16 floats");
        }
    }
}

impl Dots<'_> {
    /// `V` registers hold a group.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let columns = self.x.len();
        for (group, out) in self.out.chunks_mut(GROUP).enumerate() {
            let begin = (self.first + group) * GROUP * columns;
            let mut totals = [simd.splat_f32s(0.0); V];
            match self.weights {
                Packed::Floats(values) => {
                    for (x, weights) in self.x.iter().zip(values[begin..].as_chunks::<GROUP>().0) {
                        add(simd, &mut totals, *x, weights);
                    }
                }
                Packed::Four { quants, scales } => {
                    let blocks = quants[begin / 2..].as_chunks::<GROUP>().0.as_chunks::<{ BLOCK / 2 }>().0;
                    let blocks =
                        blocks.iter().zip(pairs(scales, begin)).zip(self.x.as_chunks::<BLOCK>().0).zip(self.sums);
                    for (((quants, scales), x), sum) in blocks {
                        let mut parts = [[simd.splat_f32s(0.0); V]; 2];
                        for (quants, x) in quants.iter().zip(x.as_chunks::<2>().0) {
                            add(simd, &mut parts[0], x[0], &low(quants));
                            add(simd, &mut parts[1], x[1], &high(quants));
                        }
                        finish(simd, &mut totals, parts, scales, *sum);
                    }
                }
                Packed::Eight { quants, scales } => {
                    let blocks = quants[begin..].as_chunks::<GROUP>().0.as_chunks::<BLOCK>().0;
                    let blocks =
                        blocks.iter().zip(pairs(scales, begin)).zip(self.x.as_chunks::<BLOCK>().0).zip(self.sums);
                    for (((quants, scales), x), sum) in blocks {
                        let mut parts = [[simd.splat_f32s(0.0); V]; 2];
                        for (quants, x) in quants.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0) {
                            add(simd, &mut parts[0], x[0], &widened(&quants[0]));
                            add(simd, &mut parts[1], x[1], &widened(&quants[1]));
                        }
                        finish(simd, &mut totals, parts, scales, *sum);
                    }
                }
            }
            let mut lanes = [0.0; GROUP];
            *registers_mut::<S, V>(&mut lanes) = totals;
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// Scales and least values of the blocks from a group's first weight on.
#[inline(always)]
fn pairs(scales: &[f32], begin: usize) -> &[[Lanes; 2]] {
    scales[begin / BLOCK * 2..].as_chunks::<GROUP>().0.as_chunks::<2>().0
}

#[inline(always)]
fn registers<S: Simd, const V: usize>(lanes: &Lanes) -> &[S::f32s; V] {
    &S::as_simd_f32s(lanes).0.as_chunks::<V>().0[0]
}

#[inline(always)]
fn registers_mut<S: Simd, const V: usize>(lanes: &mut Lanes) -> &mut [S::f32s; V] {
    &mut S::as_mut_simd_f32s(lanes).0.as_chunks_mut::<V>().0[0]
}

/// `sums += x · weights`.
#[inline(always)]
fn add<S: Simd, const V: usize>(simd: S, sums: &mut [S::f32s; V], x: f32, weights: &Lanes) {
    let x = simd.splat_f32s(x);
    for (sum, weights) in sums.iter_mut().zip(registers::<S, V>(weights)) {
        *sum = simd.mul_add_f32s(*weights, x, *sum);
    }
}

/// `totals += scale · parts + least · sum`, for a block.
#[inline(always)]
fn finish<S: Simd, const V: usize>(
    simd: S,
    totals: &mut [S::f32s; V],
    [even, odd]: [[S::f32s; V]; 2],
    [scales, least]: &[Lanes; 2],
    sum: f32,
) {
    let sum = simd.splat_f32s(sum);
    let (scales, least) = (registers::<S, V>(scales), registers::<S, V>(least));
    for v in 0..V {
        let products = simd.add_f32s(even[v], odd[v]);
        totals[v] = simd.mul_add_f32s(scales[v], products, simd.mul_add_f32s(least[v], sum, totals[v]));
    }
}

#[inline(always)]
fn low(quants: &[u8; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = f32::from(quants[lane] & 15);
    }
    wide
}

#[inline(always)]
fn high(quants: &[u8; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = f32::from(quants[lane] >> 4);
    }
    wide
}

#[inline(always)]
fn widened(quants: &[i8; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = f32::from(quants[lane]);
    }
    wide
}

/// `out[t, row] = Σ_c weights[row, c] · x[t, c]` for one group: [tokens, 16]. `tile` is a buffer to be used again.
pub(super) struct Multiply<'a> {
    pub(super) weights: &'a Packed,
    pub(super) group: usize,
    pub(super) x: &'a [f32],
    pub(super) columns: usize,
    pub(super) tile: &'a mut Floats,
    pub(super) out: &'a mut [f32],
}

impl pulp::WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many tokens at once as there are registers for their sums, and some to spare.
        if const { S::F32_LANES == 16 } {
            self.run::<S, 16, 1>(simd);
        } else if const { S::F32_LANES == 8 } {
            self.run::<S, 6, 2>(simd);
        } else if const { S::F32_LANES == 4 } {
            self.run::<S, 6, 4>(simd);
        } else if const { S::F32_LANES == 1 } {
            self.run::<S, 1, 16>(simd);
        } else {
            unreachable!("registers hold 1, 4, 8 or 16 floats");
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize, const V: usize>(self, simd: S) {
        let Self { weights, group, x, columns, tile, out } = self;
        let begin = group * GROUP * columns;
        let unpacked = match weights {
            Packed::Floats(values) => &values[begin..][..GROUP * columns],
            _ => {
                tile.resize(GROUP * columns);
                unpack::<S, V>(simd, weights, begin, tile.as_chunks_mut::<GROUP>().0);
                &**tile
            }
        };
        multiply::<S, M, V>(simd, unpacked, x, columns, out);
    }
}

/// Weights from `begin` on as floats, [column][row].
#[inline(always)]
fn unpack<S: Simd, const V: usize>(simd: S, weights: &Packed, begin: usize, out: &mut [Lanes]) {
    let blocks = out.as_chunks_mut::<BLOCK>().0.iter_mut();
    match weights {
        Packed::Floats(_) => {}
        Packed::Four { quants, scales } => {
            let quants = quants[begin / 2..].as_chunks::<GROUP>().0.as_chunks::<{ BLOCK / 2 }>().0;
            for ((out, quants), scales) in blocks.zip(quants).zip(pairs(scales, begin)) {
                for ([even, odd], quants) in out.as_chunks_mut::<2>().0.iter_mut().zip(quants) {
                    scaled::<S, V>(simd, scales, &low(quants), even);
                    scaled::<S, V>(simd, scales, &high(quants), odd);
                }
            }
        }
        Packed::Eight { quants, scales } => {
            let quants = quants[begin..].as_chunks::<GROUP>().0.as_chunks::<BLOCK>().0;
            for ((out, quants), scales) in blocks.zip(quants).zip(pairs(scales, begin)) {
                for (out, quants) in out.iter_mut().zip(quants) {
                    scaled::<S, V>(simd, scales, &widened(quants), out);
                }
            }
        }
    }
}

/// `scale · quant + least`.
#[inline(always)]
fn scaled<S: Simd, const V: usize>(simd: S, [scales, least]: &[Lanes; 2], quants: &Lanes, out: &mut Lanes) {
    let (scales, least, quants) = (registers::<S, V>(scales), registers::<S, V>(least), registers::<S, V>(quants));
    for (v, out) in registers_mut::<S, V>(out).iter_mut().enumerate() {
        *out = simd.mul_add_f32s(scales[v], quants[v], least[v]);
    }
}

/// All tokens, `M` at a time; the last are taken one by one. V registers hold a group.
#[inline(always)]
fn multiply<S: Simd, const M: usize, const V: usize>(
    simd: S,
    weights: &[f32],
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    let (weights, _) = S::as_simd_f32s(weights);
    let (weights, _) = weights.as_chunks::<V>();
    let tokens = x.len() / columns;
    let mut token = 0;
    while token < tokens {
        if tokens >= M {
            // The last block is moved up to end with the tokens, and does some again.
            let begin = token.min(tokens - M);
            block::<S, M, V>(simd, weights, &x[begin * columns..], columns, &mut out[begin * GROUP..]);
            token = begin + M;
        } else {
            block::<S, 1, V>(simd, weights, &x[token * columns..], columns, &mut out[token * GROUP..]);
            token += 1;
        }
    }
}

/// Columns that are taken together: one check of a row's length serves them all.
const STEP: usize = 4;

#[inline(always)]
fn block<S: Simd, const M: usize, const V: usize>(
    simd: S,
    weights: &[[S::f32s; V]],
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    let mut rows: [&[f32]; M] = [&[]; M];
    let mut steps: [&[[f32; STEP]]; M] = [&[]; M];
    for (m, (row, steps)) in rows.iter_mut().zip(&mut steps).enumerate() {
        *row = &x[m * columns..][..columns];
        *steps = row.as_chunks::<STEP>().0;
    }
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    let (weight_steps, weight_rest) = weights.as_chunks::<STEP>();
    for (at, weights) in weight_steps.iter().enumerate() {
        let mut left = [&[0.0; STEP]; M];
        for (left, steps) in left.iter_mut().zip(&steps) {
            *left = &steps[at];
        }
        for (step, weights) in weights.iter().enumerate() {
            for (sums, left) in sums.iter_mut().zip(&left) {
                let left = simd.splat_f32s(left[step]);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_f32s(left, *weights, *sum);
                }
            }
        }
    }
    for (weights, at) in weight_rest.iter().zip(weight_steps.len() * STEP..) {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let left = simd.splat_f32s(row[at]);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = simd.mul_add_f32s(left, *weights, *sum);
            }
        }
    }
    let (out, _) = S::as_mut_simd_f32s(&mut out[..M * GROUP]);
    for (out, sums) in out.as_chunks_mut::<V>().0.iter_mut().zip(&sums) {
        *out = *sums;
    }
}
