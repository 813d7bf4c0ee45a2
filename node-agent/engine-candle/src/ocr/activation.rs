//! What is done to a convolution's result before it is stored.

use pulp::Simd;

use crate::embed::math::exp;

/// Element-wise functions of the networks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    /// x
    None,
    /// max(x, 0)
    Relu,
    /// x · min(max(x + 3, 0), 6) · `scale` + `shift`; the plain hard-swish has 1/6 and 0.
    HardSwish { scale: f32, shift: f32 },
    /// x / (1 + e^−x)
    Swish,
    /// 1 / (1 + e^−x)
    Sigmoid,
}

impl Activation {
    /// The part that is cheap enough to be done in registers; [`Activation::finish`] does the rest.
    #[inline(always)]
    pub(crate) fn begin<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            Self::None | Self::Swish | Self::Sigmoid => x,
            Self::Relu => simd.max_f32s(x, simd.splat_f32s(0.0)),
            Self::HardSwish { scale, shift } => {
                let gate = simd.add_f32s(x, simd.splat_f32s(3.0));
                let gate = simd.min_f32s(simd.max_f32s(gate, simd.splat_f32s(0.0)), simd.splat_f32s(6.0));
                simd.mul_add_f32s(simd.mul_f32s(x, gate), simd.splat_f32s(scale), simd.splat_f32s(shift))
            }
        }
    }

    /// The part over memory that is still in the cache. To be called where `pulp` has chosen the registers' width.
    #[inline(always)]
    pub(crate) fn finish(self, values: &mut [f32]) {
        match self {
            Self::None | Self::Relu | Self::HardSwish { .. } => {}
            Self::Swish => {
                for x in values {
                    *x /= 1.0 + exp(-*x);
                }
            }
            Self::Sigmoid => {
                for x in values {
                    *x = 1.0 / (1.0 + exp(-*x));
                }
            }
        }
    }

    /// The whole of it for one value.
    #[inline(always)]
    pub(crate) fn of(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::HardSwish { scale, shift } => x * (x + 3.0).clamp(0.0, 6.0) * scale + shift,
            Self::Swish => x / (1.0 + exp(-x)),
            Self::Sigmoid => 1.0 / (1.0 + exp(-x)),
        }
    }
}
