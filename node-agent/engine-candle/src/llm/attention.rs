//! One head of one token: scores over the positions that it sees, their soft maximum, and the values mixed by it.

use pulp::Simd;

use crate::embed::math::softmax;

/// A query against all keys that it may see.
pub(super) struct Look<'a> {
    pub(super) query: &'a [f32],
    /// `kv` values per position each.
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) kv: usize,
    /// Where the head's values begin among those of a position.
    pub(super) place: usize,
    pub(super) scale: f32,
    /// A buffer to be used again.
    pub(super) scores: &'a mut Vec<f32>,
    /// As long as the query.
    pub(super) out: &'a mut [f32],
}

impl pulp::WithSimd for Look<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { query, keys, values, kv, place, scale, scores, out } = self;
        let of = place..place + query.len();
        scores.clear();
        for keys in keys.chunks_exact(kv) {
            scores.push(dot(simd, &keys[of.clone()], query));
        }
        softmax(scores, scale);
        // Four registers of sums at a time go along all positions.
        let (registers, rest) = S::as_mut_simd_f32s(out);
        let (fours, ones) = registers.as_chunks_mut::<4>();
        let mut from = place;
        for four in fours {
            mix::<S, 4>(simd, values, kv, from, scores, four);
            from += 4 * S::F32_LANES;
        }
        for one in ones {
            mix::<S, 1>(simd, values, kv, from, scores, std::array::from_mut(one));
            from += S::F32_LANES;
        }
        for (out, at) in rest.iter_mut().zip(from..) {
            *out = values.chunks_exact(kv).zip(&*scores).map(|(values, score)| values[at] * score).sum();
        }
    }
}

/// `out = Σ_position score · values[position, from..]`.
#[inline(always)]
fn mix<S: Simd, const V: usize>(
    simd: S,
    values: &[f32],
    kv: usize,
    from: usize,
    scores: &[f32],
    out: &mut [S::f32s; V],
) {
    let mut sums = [simd.splat_f32s(0.0); V];
    for (values, score) in values.chunks_exact(kv).zip(scores) {
        let score = simd.splat_f32s(*score);
        let (values, _) = S::as_simd_f32s(&values[from..from + V * S::F32_LANES]);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = simd.mul_add_f32s(*value, score, *sum);
        }
    }
    *out = sums;
}

/// Σ a · b.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((pairs_a, last_a), (pairs_b, last_b)) = (a.as_chunks::<2>(), b.as_chunks::<2>());
    let (mut even, mut odd) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    for (a, b) in pairs_a.iter().zip(pairs_b) {
        even = simd.mul_add_f32s(a[0], b[0], even);
        odd = simd.mul_add_f32s(a[1], b[1], odd);
    }
    for (a, b) in last_a.iter().zip(last_b) {
        even = simd.mul_add_f32s(*a, *b, even);
    }
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(even, odd));
    for (a, b) in rest_a.iter().zip(rest_b) {
        sum += a * b;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(index: usize) -> f32 {
        ((index * 7919) % 101) as f32 / 50.0 - 1.0
    }

    fn check<S: Simd>(simd: S) {
        // Head sizes below, at and beyond four registers, and one that no register divides.
        for (size, heads, seen) in [(8, 1, 1), (64, 3, 9), (80, 2, 33), (100, 2, 5), (14, 1, 3)] {
            let kv = size * heads;
            let query: Vec<f32> = (0..size).map(wave).collect();
            let keys: Vec<f32> = (0..seen * kv).map(|index| wave(index + 13)).collect();
            let values: Vec<f32> = (0..seen * kv).map(|index| wave(index * 3 + 5)).collect();
            let (place, scale) = ((heads - 1) * size, 0.3);
            let mut out = vec![f32::NAN; size];
            let (query, scores) = (&query[..], &mut vec![1.0; 4]);
            let look = Look { query, keys: &keys, values: &values, kv, place, scale, scores, out: &mut out };
            simd.vectorize(look);
            let score = |position: usize| {
                let key = &keys[position * kv + place..][..size];
                let product: f64 = key.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (product * f64::from(scale)).exp()
            };
            let total: f64 = (0..seen).map(score).sum();
            for (at, out) in out.iter().enumerate() {
                let mixed = (0..seen).map(|position| score(position) * f64::from(values[position * kv + place + at]));
                let expected = mixed.sum::<f64>() / total;
                assert!((f64::from(*out) - expected).abs() < 1e-5, "size {size}, place {at}: {out} for {expected}");
            }
        }
    }

    #[test]
    fn values_are_mixed_by_the_soft_maximum_of_scores() {
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
