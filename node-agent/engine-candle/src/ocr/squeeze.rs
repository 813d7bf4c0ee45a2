//! Squeeze and excite (Hu et al. 2018): factors per channel from the means over a map.

use rayon::prelude::*;

use super::map::{Maps, Shape, Slot};
use super::net::Layer;

/// A dense layer on a few values.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// [in, out]: a column at a time is added, which the compiler can do in wide registers.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    /// `weights` are [out, in] as ONNX has them.
    pub(crate) fn new(weights: &[f32], bias: &[f32]) -> Self {
        let inputs = weights.len() / bias.len();
        let turned = (0..weights.len()).map(|at| weights[at % bias.len() * inputs + at / bias.len()]).collect();
        Self { weights: turned, bias: bias.to_vec() }
    }

    fn apply(&self, input: &[f32], activation: impl Fn(f32) -> f32) -> Vec<f32> {
        let mut sums = self.bias.clone();
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (x, row) in input.iter().zip(self.weights.chunks_exact(self.bias.len())) {
                    sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += x * weight);
                }
            },
        );
        sums.into_iter().map(activation).collect()
    }
}

/// Means, an inner product, two dense layers with a rectifier between, a hard sigmoid.
#[derive(Debug, Clone)]
pub(crate) struct Squeeze {
    pub(crate) source: Slot,
    /// [count, 1, 1, channels]
    pub(crate) target: Slot,
    /// A linear map of the means first: the mean of a 1×1 convolution is the convolution of the means.
    pub(crate) before: Option<Dense>,
    pub(crate) down: Dense,
    pub(crate) up: Dense,
    /// Slope of the hard sigmoid min(max(slope · x + 1/2, 0), 1).
    pub(crate) slope: f32,
    /// 1 where the scaled map is added to the map itself, else 0.
    pub(crate) residual: f32,
}

/// Means over each picture: [count, channels]. A border of zeros adds nothing.
pub(crate) fn means(values: &[f32], shape: Shape) -> Vec<Vec<f32>> {
    // Rows of a share: sums of shares are added in order, so that results don't depend on threads.
    let share = (32 << 10) / shape.channels.max(1) * shape.channels;
    let picture = |values: &[f32]| {
        let sums: Vec<Vec<f32>> = values
            .par_chunks(share.max(1))
            .map(|rows| {
                let mut sums = vec![0.0f32; shape.channels];
                pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || {
                        for row in rows.chunks_exact(shape.channels) {
                            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                        }
                    },
                );
                sums
            })
            .collect();
        let scale = 1.0 / (shape.height * shape.width) as f32;
        let total = |channel: usize| sums.iter().map(|sums| sums[channel]).sum::<f32>() * scale;
        (0..shape.channels).map(total).collect()
    };
    values.chunks_exact(shape.picture().max(1)).map(picture).collect()
}

impl Layer for Squeeze {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let source = maps.get(self.source);
        let channels = self.up.bias.len();
        target.prepare(Shape::new(source.shape.count, 1, 1, channels));
        let means = means(&source.values, source.shape);
        for (means, out) in means.into_iter().zip(target.values.chunks_exact_mut(channels)) {
            let means = self.before.as_ref().map_or(means.clone(), |before| before.apply(&means, |x| x));
            let inner = self.down.apply(&means, |x| x.max(0.0));
            let gains = self.up.apply(&inner, |x| self.residual + (self.slope * x + 0.5).clamp(0.0, 1.0));
            out.copy_from_slice(&gains);
        }
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("squeeze {}", self.up.bias.len())
    }
}
