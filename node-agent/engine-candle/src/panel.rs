//! The innermost loop of every matrix product: rows times a panel of columns, with all sums in registers.

use pulp::Simd;

/// Values of a row that are taken together: one check of the row's length serves them all.
const STEP: usize = 4;

/// `sums[m] += rows[m] × panel`, where row `k` of the panel holds `V` registers and every row has as many values as the panel has
/// rows. To be called where `pulp` has chosen the registers' width.
#[inline(always)]
pub(crate) fn add<S: Simd, const M: usize, const V: usize>(
    simd: S,
    rows: [&[f32]; M],
    panel: &[[S::f32s; V]],
    sums: &mut [[S::f32s; V]; M],
) {
    let mut steps: [&[[f32; STEP]]; M] = [&[]; M];
    for (steps, row) in steps.iter_mut().zip(&rows) {
        *steps = row.as_chunks::<STEP>().0;
    }
    let (panel_steps, panel_rest) = panel.as_chunks::<STEP>();
    let mut local = *sums;
    for (at, right) in panel_steps.iter().enumerate() {
        let mut left = [&[0.0; STEP]; M];
        for (left, steps) in left.iter_mut().zip(&steps) {
            *left = &steps[at];
        }
        for (step, right) in right.iter().enumerate() {
            for (sums, left) in local.iter_mut().zip(&left) {
                let left = simd.splat_f32s(left[step]);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_f32s(left, *right, *sum);
                }
            }
        }
    }
    for (right, at) in panel_rest.iter().zip(panel_steps.len() * STEP..) {
        for (sums, row) in local.iter_mut().zip(&rows) {
            let left = simd.splat_f32s(row[at]);
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = simd.mul_add_f32s(left, *right, *sum);
            }
        }
    }
    *sums = local;
}
