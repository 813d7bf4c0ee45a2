//! Products with packed weights: one vector straight from the packed form, many vectors from sixteen rows unpacked into cache.

use pulp::Simd;

use super::packed::{GROUP, Packed, Quants, brain, half};
use crate::floats::Floats;
use crate::panel;

/// A value for each row of a group.
type Lanes = [f32; GROUP];

/// Columns whose sums an [`Input`] has: the shortest run.
pub(super) const SUMMED: usize = 16;

/// Products of groups from `first` on with a vector; `sums` holds the vector's sum of each 16 columns.
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
                Packed::Half(values) => {
                    for (x, weights) in self.x.iter().zip(values[begin..].as_chunks::<GROUP>().0) {
                        add(simd, &mut totals, *x, &halves(weights));
                    }
                }
                Packed::Brain(values) => {
                    for (x, weights) in self.x.iter().zip(values[begin..].as_chunks::<GROUP>().0) {
                        add(simd, &mut totals, *x, &brains(weights));
                    }
                }
                Packed::Quants { quants, bytes, scales, leasts } => {
                    let runs = Runs::of(*quants, bytes, scales, leasts, begin);
                    match (quants.wide, quants.run) {
                        (false, 32) => four::<S, V, 16>(simd, runs, self.x, self.sums, &mut totals),
                        (false, _) => four::<S, V, 8>(simd, runs, self.x, self.sums, &mut totals),
                        (true, 32) => eight::<S, V, 16>(simd, runs, self.x, self.sums, &mut totals),
                        (true, _) => eight::<S, V, 8>(simd, runs, self.x, self.sums, &mut totals),
                    }
                }
            }
            let mut lanes = [0.0; GROUP];
            *registers_mut::<S, V>(&mut lanes) = totals;
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// Quants, scales and least values from a group's first weight on.
#[derive(Clone, Copy)]
struct Runs<'a> {
    bytes: &'a [[u8; GROUP]],
    scales: &'a [Lanes],
    /// Empty without.
    leasts: &'a [Lanes],
}

impl<'a> Runs<'a> {
    #[inline(always)]
    fn of(quants: Quants, bytes: &'a [u8], scales: &'a [f32], leasts: &'a [f32], begin: usize) -> Self {
        let run = begin / quants.run;
        Self {
            bytes: bytes[quants.bytes(begin)..].as_chunks::<GROUP>().0,
            scales: scales[run..].as_chunks::<GROUP>().0,
            leasts: leasts.get(run..).unwrap_or_default().as_chunks::<GROUP>().0,
        }
    }
}

/// Adds the products of a group of four-bit quants, `P` pairs of columns in a run.
#[inline(always)]
fn four<S: Simd, const V: usize, const P: usize>(
    simd: S,
    runs: Runs<'_>,
    x: &[f32],
    sums: &[f32],
    totals: &mut [S::f32s; V],
) {
    let x = x.as_chunks::<2>().0.as_chunks::<P>().0;
    let parts = runs.bytes.as_chunks::<P>().0.iter().zip(runs.scales).zip(x);
    for (number, ((quants, scales), x)) in parts.enumerate() {
        let mut products = [[simd.splat_f32s(0.0); V]; 2];
        for (quants, x) in quants.iter().zip(x) {
            add(simd, &mut products[0], x[0], &low(quants));
            add(simd, &mut products[1], x[1], &high(quants));
        }
        finish(simd, totals, products, scales, runs.leasts.get(number), sum::<P>(sums, number));
    }
}

/// The same of eight-bit quants.
#[inline(always)]
fn eight<S: Simd, const V: usize, const P: usize>(
    simd: S,
    runs: Runs<'_>,
    x: &[f32],
    sums: &[f32],
    totals: &mut [S::f32s; V],
) {
    let x = x.as_chunks::<2>().0.as_chunks::<P>().0;
    let parts = runs.bytes.as_chunks::<2>().0.as_chunks::<P>().0.iter().zip(runs.scales).zip(x);
    for (number, ((quants, scales), x)) in parts.enumerate() {
        let mut products = [[simd.splat_f32s(0.0); V]; 2];
        for (quants, x) in quants.iter().zip(x) {
            add(simd, &mut products[0], x[0], &widened(&quants[0]));
            add(simd, &mut products[1], x[1], &widened(&quants[1]));
        }
        finish(simd, totals, products, scales, runs.leasts.get(number), sum::<P>(sums, number));
    }
}

/// Sum of the vector's values in a run of `2 · P` columns.
#[inline(always)]
fn sum<const P: usize>(sums: &[f32], number: usize) -> f32 {
    let parts = 2 * P / SUMMED;
    sums[number * parts..][..parts].iter().sum()
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

/// `totals += scale · products + least · sum`, for a run.
#[inline(always)]
fn finish<S: Simd, const V: usize>(
    simd: S,
    totals: &mut [S::f32s; V],
    [even, odd]: [[S::f32s; V]; 2],
    scales: &Lanes,
    leasts: Option<&Lanes>,
    sum: f32,
) {
    if let Some(leasts) = leasts {
        add(simd, totals, sum, leasts);
    }
    let scales = registers::<S, V>(scales);
    for v in 0..V {
        totals[v] = simd.mul_add_f32s(scales[v], simd.add_f32s(even[v], odd[v]), totals[v]);
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
fn widened(quants: &[u8; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = f32::from(quants[lane].cast_signed());
    }
    wide
}

#[inline(always)]
fn halves(values: &[u16; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = half(values[lane]);
    }
    wide
}

#[inline(always)]
fn brains(values: &[u16; GROUP]) -> Lanes {
    let mut wide = [0.0; GROUP];
    for lane in 0..GROUP {
        wide[lane] = brain(values[lane]);
    }
    wide
}

/// `out[g, t, row] = Σ_c weights[row, c] · x[t, c]` for the groups from `first` on that `out` has room for: [groups, tokens, 16].
/// `tile` is a buffer to be used again.
pub(super) struct Multiply<'a> {
    pub(super) weights: &'a Packed,
    pub(super) first: usize,
    pub(super) x: &'a [f32],
    pub(super) columns: usize,
    pub(super) tile: &'a mut Floats,
    pub(super) out: &'a mut [f32],
}

impl pulp::WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums at once as there are registers for them, and some to spare. Several groups at a time, where they fit: a token's
        // value that was fetched then serves all of them.
        if const { S::F32_LANES == 16 } {
            self.run::<S, 8, 3, 1>(simd);
        } else if const { S::F32_LANES == 8 } {
            self.run::<S, 6, 1, 2>(simd);
        } else if const { S::F32_LANES == 4 } {
            self.run::<S, 6, 1, 4>(simd);
        } else if const { S::F32_LANES == 1 } {
            self.run::<S, 1, 1, 16>(simd);
        } else {
            unreachable!("registers hold 1, 4, 8 or 16 floats");
        }
    }
}

impl Multiply<'_> {
    /// `M` tokens and `G` groups at a time, `V` registers for a group. Several groups have one register each.
    #[inline(always)]
    fn run<S: Simd, const M: usize, const G: usize, const V: usize>(mut self, simd: S) {
        const { assert!(G == 1 || V == 1) };
        let size = GROUP * (self.x.len() / self.columns);
        while self.out.len() >= G * size {
            let (out, rest) = std::mem::take(&mut self.out).split_at_mut(G * size);
            if const { G == 1 } {
                self.groups::<S, M, V, V>(simd, out);
            } else {
                self.groups::<S, M, G, V>(simd, out);
            }
            (self.first, self.out) = (self.first + G, rest);
        }
        let left = std::mem::take(&mut self.out);
        for out in left.chunks_exact_mut(size) {
            self.groups::<S, M, V, V>(simd, out);
            self.first += 1;
        }
    }

    /// So many groups that `R` registers hold one column of all of them.
    #[inline(always)]
    fn groups<S: Simd, const M: usize, const R: usize, const V: usize>(&mut self, simd: S, out: &mut [f32]) {
        let (columns, groups) = (self.columns, R / V);
        self.tile.resize(groups * GROUP * columns);
        for group in 0..groups {
            let begin = (self.first + group) * GROUP * columns;
            unpack::<S, V>(simd, self.weights, begin, self.tile.as_chunks_mut::<GROUP>().0, group, groups);
        }
        let weights = S::as_simd_f32s(self.tile).0.as_chunks::<R>().0;
        let tokens = self.x.len() / columns;
        let mut token = 0;
        while token < tokens {
            if tokens >= M {
                // The last block is moved up to end with the tokens, and does some again.
                let begin = token.min(tokens - M);
                block::<S, M, R, V>(simd, weights, &self.x[begin * columns..], columns, begin, tokens, out);
                token = begin + M;
            } else {
                block::<S, 1, R, V>(simd, weights, &self.x[token * columns..], columns, token, tokens, out);
                token += 1;
            }
        }
    }
}

/// `M` tokens, the first of which has the number `token` among all `tokens`.
#[inline(always)]
fn block<S: Simd, const M: usize, const R: usize, const V: usize>(
    simd: S,
    weights: &[[S::f32s; R]],
    x: &[f32],
    columns: usize,
    token: usize,
    tokens: usize,
    out: &mut [f32],
) {
    let mut rows: [&[f32]; M] = [&[]; M];
    for (m, row) in rows.iter_mut().enumerate() {
        *row = &x[m * columns..][..columns];
    }
    let mut sums = [[simd.splat_f32s(0.0); R]; M];
    panel::add(simd, rows, weights, &mut sums);
    let (out, _) = S::as_mut_simd_f32s(out);
    for (m, sums) in sums.iter().enumerate() {
        for (group, sums) in sums.as_chunks::<V>().0.iter().enumerate() {
            out[(group * tokens + token + m) * V..][..V].copy_from_slice(sums);
        }
    }
}

/// Weights from `begin` on as floats, [column][group][row], for one `group` of so many.
#[inline(always)]
fn unpack<S: Simd, const V: usize>(
    simd: S,
    weights: &Packed,
    begin: usize,
    tile: &mut [Lanes],
    group: usize,
    groups: usize,
) {
    let columns = tile.iter_mut().skip(group).step_by(groups);
    match weights {
        Packed::Floats(values) => {
            columns.zip(values[begin..].as_chunks::<GROUP>().0).for_each(|(out, values)| *out = *values);
        }
        Packed::Half(values) => {
            columns.zip(values[begin..].as_chunks::<GROUP>().0).for_each(|(out, values)| *out = halves(values));
        }
        Packed::Brain(values) => {
            columns.zip(values[begin..].as_chunks::<GROUP>().0).for_each(|(out, values)| *out = brains(values));
        }
        Packed::Quants { quants, bytes, scales, leasts } => {
            let runs = Runs::of(*quants, bytes, scales, leasts, begin);
            let tile = &mut tile[group..];
            match (quants.wide, quants.run) {
                (false, 32) => unpack_four::<S, V, 16>(simd, runs, tile, groups),
                (false, _) => unpack_four::<S, V, 8>(simd, runs, tile, groups),
                (true, 32) => unpack_eight::<S, V, 32>(simd, runs, tile, groups),
                (true, _) => unpack_eight::<S, V, 16>(simd, runs, tile, groups),
            }
        }
    }
}

#[inline(always)]
fn unpack_four<S: Simd, const V: usize, const P: usize>(simd: S, runs: Runs<'_>, tile: &mut [Lanes], step: usize) {
    let parts = runs.bytes.as_chunks::<P>().0.iter().zip(runs.scales).zip(tile.chunks_mut(2 * P * step));
    for (number, ((quants, scales), tile)) in parts.enumerate() {
        let leasts = runs.leasts.get(number);
        for (pair, quants) in quants.iter().enumerate() {
            scaled::<S, V>(simd, scales, leasts, &low(quants), &mut tile[2 * pair * step]);
            scaled::<S, V>(simd, scales, leasts, &high(quants), &mut tile[(2 * pair + 1) * step]);
        }
    }
}

#[inline(always)]
fn unpack_eight<S: Simd, const V: usize, const C: usize>(simd: S, runs: Runs<'_>, tile: &mut [Lanes], step: usize) {
    let parts = runs.bytes.as_chunks::<C>().0.iter().zip(runs.scales).zip(tile.chunks_mut(C * step));
    for (number, ((quants, scales), tile)) in parts.enumerate() {
        let leasts = runs.leasts.get(number);
        for (column, quants) in quants.iter().enumerate() {
            scaled::<S, V>(simd, scales, leasts, &widened(quants), &mut tile[column * step]);
        }
    }
}

/// `scale · quant + least`.
#[inline(always)]
fn scaled<S: Simd, const V: usize>(simd: S, scales: &Lanes, leasts: Option<&Lanes>, quants: &Lanes, out: &mut Lanes) {
    let (scales, quants) = (registers::<S, V>(scales), registers::<S, V>(quants));
    let leasts = leasts.map_or([simd.splat_f32s(0.0); V], |leasts| *registers::<S, V>(leasts));
    for (v, out) in registers_mut::<S, V>(out).iter_mut().enumerate() {
        *out = simd.mul_add_f32s(scales[v], quants[v], leasts[v]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: usize = 96;

    /// Weights of every form, `rows` of them.
    fn forms(rows: usize) -> Vec<Packed> {
        let wave = |at: usize| ((at * 7919) % 101) as f32 / 50.0 - 1.0;
        let floats: Vec<f32> = (0..rows.next_multiple_of(GROUP) * COLUMNS).map(wave).collect();
        // Halves from the smallest on to 1.25, and the upper halves of floats.
        let halves = (0..floats.len()).map(|at| ((at * 7919 % 0x3d00) | ((at & 1) << 15)) as u16).collect();
        let brains = floats.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
        let mut all = vec![Packed::Floats(floats), Packed::Half(halves), Packed::Brain(brains)];
        for wide in [false, true] {
            for run in [16, 32] {
                for least in [false, true] {
                    let quants = Quants { wide, run, least };
                    all.push(Packed::quants(quants, rows, COLUMNS, |row, number, out| {
                        let quant = |at: usize| (row * 31 + number * 7 + at * 5) % if wide { 256 } else { 16 };
                        out.iter_mut().enumerate().for_each(|(at, out)| *out = (quant(at) as u8).cast_signed());
                        (wave(row + number), wave(row * 3 + number))
                    }));
                }
            }
        }
        all
    }

    fn check<S: Simd>(simd: S) {
        let x: Vec<f32> = (0..19 * COLUMNS).map(|at| ((at * 104_729) % 97) as f32 / 48.0 - 1.0).collect();
        let rows = 5 * GROUP + 5;
        for weights in forms(rows) {
            let expected = |row: usize, x: &[f32]| -> (f64, f64) {
                let mut floats = [0.0; COLUMNS];
                weights.row(row, &mut floats);
                let products = floats.iter().zip(x).map(|(weight, x)| f64::from(*weight) * f64::from(*x));
                (products.clone().sum(), products.map(f64::abs).sum())
            };
            let close = |found: f32, (expected, size): (f64, f64), what: &str| {
                assert!(
                    (f64::from(found) - expected).abs() <= 1e-6 * size,
                    "{what}: {found} for {expected}, {weights:?}"
                );
            };
            let one = &x[..COLUMNS];
            let sums: Vec<f32> = one.chunks(SUMMED).map(|part| part.iter().sum()).collect();
            let mut out = vec![f32::NAN; rows - GROUP];
            simd.vectorize(Dots { weights: &weights, first: 1, x: one, sums: &sums, out: &mut out });
            out.iter().zip(GROUP..).for_each(|(found, row)| close(*found, expected(row, one), "dots"));
            // Fewer tokens than are taken at once, as many, and some over.
            for tokens in [1, 5, 6, 7, 8, 16, 19] {
                for groups in 1..=rows.div_ceil(GROUP) - 1 {
                    let (x, tile) = (&x[..tokens * COLUMNS], &mut Floats::default());
                    let mut out = vec![f32::NAN; groups * tokens * GROUP];
                    simd.vectorize(Multiply { weights: &weights, first: 1, x, columns: COLUMNS, tile, out: &mut out });
                    for (group, out) in out.chunks_exact(tokens * GROUP).enumerate() {
                        for (x, out) in x.chunks_exact(COLUMNS).zip(out.as_chunks::<GROUP>().0) {
                            let rows = ((1 + group) * GROUP..).zip(out).take_while(|(row, _)| *row < rows);
                            rows.for_each(|(row, found)| close(*found, expected(row, x), "multiply"));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_right_in_every_form_and_at_all_widths() {
        check(pulp::Scalar::new());
        #[cfg(target_arch = "x86_64")]
        {
            pulp::x86::V3::try_new().into_iter().for_each(check);
            pulp::x86::V4::try_new().into_iter().for_each(check);
        }
        #[cfg(target_arch = "aarch64")]
        pulp::aarch64::Neon::try_new().into_iter().for_each(check);
    }
}
