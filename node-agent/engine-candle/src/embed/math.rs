//! The element-wise parts of an encoder, each one pass over memory: bias with GELU, bias with residual and layer norm,
//! scaled soft-maximum. Written so that the compiler can use wide registers; `pulp` picks the widest at run time. What it is given
//! are structures with methods that are always inlined: a closure's call may not be, and stays with narrow registers then.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result};
use rayon::prelude::*;

/// Values that one thread takes at a time: 64 KiB, half of a small core's L2 share.
const GRAIN: usize = 16 << 10;

/// 1.5 × 2^23: adding it rounds a float to a whole number that then stands in its low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x to about 2 ulp for −87 ≤ x ≤ 88; clamped outside. Range reduction to |r| ≤ ln 2 / 2, then a Taylor polynomial of degree 6
/// (error below 2^-24 there).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts, so that the remainder keeps its bits.
    let r = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    p * power
}

/// x · Φ(x) with the error function by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let tail = poly * exp(-z * z);
    // erf(|z|) = 1 − tail; Φ is symmetric.
    let phi = if x >= 0.0 { 1.0 - 0.5 * tail } else { 0.5 * tail };
    x * phi
}

/// gelu(x + bias) over rows of `bias.len()`.
pub(crate) struct BiasGelu<'a>(pub(crate) &'a [f32]);

impl InplaceOp1 for BiasGelu<'_> {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        by_rows(values(storage, layout)?, self.0.len(), self);
        Ok(())
    }
}

impl EachRow for BiasGelu<'_> {
    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        for (x, b) in row.iter_mut().zip(self.0) {
            *x = gelu(*x + *b);
        }
    }
}

/// x + bias over rows of `bias.len()`.
pub(crate) struct Bias<'a>(pub(crate) &'a [f32]);

impl InplaceOp1 for Bias<'_> {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        by_rows(values(storage, layout)?, self.0.len(), self);
        Ok(())
    }
}

impl EachRow for Bias<'_> {
    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        for (x, b) in row.iter_mut().zip(self.0) {
            *x += *b;
        }
    }
}

/// A layer norm's parameters.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) epsilon: f32,
}

impl EachRow for Norm {
    /// Normalises one row in place.
    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        let n = row.len() as f32;
        let mean = sum(row, |x| x) / n;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, g), b) in row.iter_mut().zip(&self.gamma).zip(&self.beta) {
            *x = (*x - mean) * scale * *g + *b;
        }
    }
}

impl Norm {
    /// Normalises rows in place, on all threads of the pool.
    pub(crate) fn rows(&self, values: &mut [f32]) {
        by_rows(values, self.gamma.len(), self);
    }
}

/// Sixteen running sums: one alone would wait for each addition, and would lose bits.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|x| f(*x)).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// norm(x + bias + residual), residual being the second tensor.
pub(crate) struct BiasResidualNorm<'a> {
    pub(crate) bias: &'a [f32],
    pub(crate) norm: &'a Norm,
}

impl InplaceOp2 for BiasResidualNorm<'_> {
    fn name(&self) -> &'static str {
        "bias-residual-norm"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<()> {
        let residual = contiguous(other, other_layout)?;
        let values = values(storage, layout)?;
        let width = self.bias.len();
        if values.len() != residual.len() {
            candle_core::bail!("residual of {} values for {}", residual.len(), values.len());
        }
        let grain = (GRAIN / width).max(1) * width;
        values.par_chunks_mut(grain).zip(residual.par_chunks(grain)).for_each(|(values, residual)| {
            pulp::Arch::new().dispatch(Added { values, residual, bias: self.bias, norm: self.norm });
        });
        Ok(())
    }
}

/// norm(x + bias + residual) row by row.
struct Added<'a> {
    values: &'a mut [f32],
    residual: &'a [f32],
    bias: &'a [f32],
    norm: &'a Norm,
}

impl pulp::WithSimd for Added<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let width = self.bias.len();
        for (row, residual) in self.values.chunks_exact_mut(width).zip(self.residual.chunks_exact(width)) {
            for ((x, r), b) in row.iter_mut().zip(residual).zip(self.bias) {
                *x += *r + *b;
            }
            self.norm.row(row);
        }
    }
}

/// softmax(scale · x) over rows of `width`.
pub(crate) struct ScaledSoftmax {
    pub(crate) width: usize,
    pub(crate) scale: f32,
}

impl InplaceOp1 for ScaledSoftmax {
    fn name(&self) -> &'static str {
        "scaled-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        // Called from within a thread's share of the texts already.
        pulp::Arch::new().dispatch(Rows { values: values(storage, layout)?, width: self.width, each: self });
        Ok(())
    }
}

impl EachRow for ScaledSoftmax {
    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        softmax(row, self.scale);
    }
}

/// softmax(scale · x) in place.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let most = lanes.iter().copied().fold(rest, f32::max);
    for x in row.iter_mut() {
        *x = exp((*x - most) * scale);
    }
    let scale = 1.0 / sum(row, |x| x);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

/// What is done to each row. Implementations are always inlined.
trait EachRow: Sync {
    fn row(&self, row: &mut [f32]);
}

struct Rows<'a, E> {
    values: &'a mut [f32],
    width: usize,
    each: &'a E,
}

impl<E: EachRow> pulp::WithSimd for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for row in self.values.chunks_exact_mut(self.width) {
            self.each.row(row);
        }
    }
}

fn by_rows(values: &mut [f32], width: usize, each: &impl EachRow) {
    let grain = (GRAIN / width).max(1) * width;
    values.par_chunks_mut(grain).for_each(|values| pulp::Arch::new().dispatch(Rows { values, width, each }));
}

fn values<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((begin, end)) = layout.contiguous_offsets() else { candle_core::bail!("contiguous values expected") };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[begin..end]),
        _ => candle_core::bail!("32-bit floats expected"),
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((begin, end)) = layout.contiguous_offsets() else { candle_core::bail!("contiguous values expected") };
    match storage {
        CpuStorage::F32(values) => Ok(&values[begin..end]),
        _ => candle_core::bail!("32-bit floats expected"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn exp_is_close_to_the_librarys() {
        let mut worst = 0.0f64;
        for step in -8700..8800 {
            let x = step as f32 / 100.0 + 0.001_3;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < 4e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }

    #[test]
    fn gelu_is_close_to_candles() {
        let xs: Vec<f32> = (-800..800).map(|step| step as f32 / 100.0).collect();
        let theirs = Tensor::new(xs.as_slice(), &Device::Cpu).unwrap().gelu_erf().unwrap().to_vec1::<f32>().unwrap();
        for (x, expected) in xs.iter().zip(theirs) {
            assert!((gelu(*x) - expected).abs() < 1e-6, "gelu({x}) = {} expected {expected}", gelu(*x));
        }
    }

    #[test]
    fn softmax_rows_sum_to_one() {
        for width in [1, 3, 16, 37] {
            let row: Vec<f32> = (0..width).map(|i| ((i * 7919) % 13) as f32 - 6.0).collect();
            let tensor = Tensor::from_vec(row.clone(), (1, width), &Device::Cpu).unwrap();
            tensor.inplace_op1(&ScaledSoftmax { width, scale: 0.5 }).unwrap();
            let powers: Vec<f64> = row.iter().map(|value| (f64::from(*value) * 0.5).exp()).collect();
            for (ours, power) in tensor.to_vec2::<f32>().unwrap()[0].iter().zip(&powers) {
                assert!((f64::from(*ours) - power / powers.iter().sum::<f64>()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn sums_are_normed_by_row() {
        let width = 40;
        let norm = Norm {
            gamma: (0..width).map(|i| 1.0 + i as f32 / 50.0).collect(),
            beta: (0..width).map(|i| i as f32 / 9.0 - 2.0).collect(),
            epsilon: 1e-12,
        };
        let bias: Vec<f32> = (0..width).map(|i| (i % 5) as f32).collect();
        let x = Tensor::arange(0f32, 120.0, &Device::Cpu).unwrap().reshape((3, width)).unwrap().sin().unwrap();
        let residual = x.cos().unwrap();
        let summed = (&x + &residual).unwrap().to_vec2::<f32>().unwrap();
        let ours = x.copy().unwrap();
        ours.inplace_op2(&residual, &BiasResidualNorm { bias: &bias, norm: &norm }).unwrap();
        for (ours, summed) in ours.to_vec2::<f32>().unwrap().iter().zip(summed) {
            let row: Vec<f64> = summed.iter().zip(&bias).map(|(x, bias)| f64::from(x + bias)).collect();
            let mean = row.iter().sum::<f64>() / width as f64;
            let deviation = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64).sqrt();
            for (at, (ours, x)) in ours.iter().zip(&row).enumerate() {
                let expected = (x - mean) / deviation * f64::from(norm.gamma[at]) + f64::from(norm.beta[at]);
                assert!((f64::from(*ours) - expected).abs() < 1e-4, "{ours} for {expected}");
            }
        }
    }
}
