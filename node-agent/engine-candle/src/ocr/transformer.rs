//! Follows the recogniser's transformer blocks through the file's graph: layer norms spelt out in ten operations, attention in
//! twenty, dense layers in two.

use ingle_engine::EngineError;

use super::activation::Activation;
use super::graph::Trail;
use super::map::Slot;
use super::net::Layer;
use super::product::Packed;
use super::tokens::{Attend, Dense};

/// Channels of a token, heads of its attention and their channels, and channels between its dense layers.
pub(crate) const TOKEN: usize = 120;
const HEADS: usize = 8;
const HEAD: usize = 15;
const INNER: usize = 240;

/// Slots of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenSlots {
    /// The tokens, before a block and after it.
    pub(crate) stream: Slot,
    /// The tokens between a block's halves.
    pub(crate) spare: Slot,
    /// Queries, keys and values.
    pub(crate) inner: Slot,
    /// Keys and values with the tokens innermost.
    pub(crate) turned: Slot,
    /// The attention's result.
    pub(crate) mixed: Slot,
}

/// A dense layer's weights, [inputs, outputs], and biases.
pub(crate) struct Linear {
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    /// Name of the result.
    pub(crate) value: String,
}

impl Linear {
    fn pack(&self) -> Packed {
        let columns = self.bias.len();
        Packed::new(self.weights.len() / columns, &self.bias, |row, column| self.weights[row * columns + column])
    }
}

/// Follows a dense layer: a product and a sum.
pub(crate) fn linear(trail: &mut Trail<'_>, value: &str, inputs: usize, outputs: usize) -> Result<Linear, EngineError> {
    let product = trail.node(value, "MatMul")?;
    let weights = trail.values(product, 1, &[inputs, outputs])?.to_vec();
    let sum = trail.node(&product.outputs[0], "Add")?;
    let bias = trail.values(sum, 1, &[outputs])?.to_vec();
    Ok(Linear { weights, bias, value: sum.outputs[0].clone() })
}

/// A layer norm as the file spells it.
pub(crate) struct Norm<'a> {
    gamma: &'a [f32],
    beta: &'a [f32],
    pub(crate) epsilon: f32,
    /// Name of the result.
    pub(crate) value: String,
}

impl Norm<'_> {
    /// Moves scale and shift into the dense layer that follows; `at(row, column)` is where a weight lies.
    pub(crate) fn fold(&self, weights: &mut [f32], bias: &mut [f32], at: impl Fn(usize, usize) -> usize) {
        for (column, bias) in bias.iter_mut().enumerate() {
            for (row, (gamma, beta)) in self.gamma.iter().zip(self.beta).enumerate() {
                let weight = &mut weights[at(row, column)];
                *bias += beta * *weight;
                *weight *= gamma;
            }
        }
    }

    fn fold_linear(&self, linear: &mut Linear) {
        let columns = linear.bias.len();
        self.fold(&mut linear.weights, &mut linear.bias, |row, column| row * columns + column);
    }
}

/// Follows a layer norm over tokens.
pub(crate) fn norm<'a>(trail: &mut Trail<'a>, value: &str) -> Result<Norm<'a>, EngineError> {
    let mean = trail.node(value, "ReduceMean")?;
    trail.signed(mean, "axes", &[-1])?;
    let centred = trail.both(value, &mean.outputs[0], "Sub")?;
    let squared = trail.with_known(&centred, "Pow", 2.0)?;
    let variance = trail.node(&squared, "ReduceMean")?;
    trail.signed(variance, "axes", &[-1])?;
    let (epsilon, shifted) = trail.with_scalar(&variance.outputs[0], "Add")?;
    if !(1e-9..=1e-3).contains(&epsilon) {
        return Err(trail.error(format!("layer norm of {value:?} has epsilon {epsilon}, 1e-9 to 1e-3 is expected")));
    }
    let deviation = trail.then(&shifted, "Sqrt")?;
    let normed = trail.both(&centred, &deviation, "Div")?;
    let scaled = trail.node(&normed, "Mul")?;
    let gamma = trail.values(scaled, 1, &[TOKEN])?;
    let moved = trail.node(&scaled.outputs[0], "Add")?;
    let beta = trail.values(moved, 1, &[TOKEN])?;
    Ok(Norm { gamma, beta, epsilon, value: moved.outputs[0].clone() })
}

/// stream + attention(norm(stream)), then stream + dense(swish(dense(norm(stream)))).
pub(crate) fn block(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
    slots: TokenSlots,
) -> Result<String, EngineError> {
    let first = norm(trail, value)?;
    let mut qkv = linear(trail, &first.value, TOKEN, 3 * TOKEN)?;
    first.fold_linear(&mut qkv);
    let (mixed, scale) = attention(trail, &qkv.value)?;
    let out = linear(trail, &mixed, TOKEN, TOKEN)?;
    let value = trail.both(value, &out.value, "Add")?;
    let plain = Dense {
        source: slots.stream,
        target: slots.inner,
        norm: Some(first.epsilon),
        first: qkv.pack(),
        activation: Activation::None,
        second: None,
        residual: None,
    };
    layers.push(Box::new(plain.clone()));
    let attend =
        Attend { source: slots.inner, target: slots.mixed, turned: slots.turned, heads: HEADS, size: HEAD, scale };
    layers.push(Box::new(attend));
    // The stream goes from its slot to a spare one here and back in the second half.
    layers.push(Box::new(Dense {
        source: slots.mixed,
        target: slots.spare,
        norm: None,
        first: out.pack(),
        residual: Some(slots.stream),
        ..plain.clone()
    }));
    let second = norm(trail, &value)?;
    let mut up = linear(trail, &second.value, TOKEN, INNER)?;
    second.fold_linear(&mut up);
    let inner = trail.swish(&up.value)?;
    let down = linear(trail, &inner, INNER, TOKEN)?;
    layers.push(Box::new(Dense {
        source: slots.spare,
        target: slots.stream,
        norm: Some(second.epsilon),
        first: up.pack(),
        activation: Activation::Swish,
        second: Some(down.pack()),
        residual: Some(slots.spare),
    }));
    trail.both(&value, &down.value, "Add")
}

/// Follows the attention from the joint projection to the mixed values; gives their name and the factor of the queries.
fn attention(trail: &mut Trail<'_>, value: &str) -> Result<(String, f32), EngineError> {
    let sizes = [Some(0), None, Some(3), Some(HEADS as i64), Some(HEAD as i64)];
    let parted = trail.reshape(value, &sizes)?;
    let turned = trail.node(&parted, "Transpose")?;
    trail.ints(turned, "perm", &[2, 0, 3, 1, 4], &[])?;
    let mut parts = Vec::new();
    for part in 0..3i64 {
        let slice = trail.node(&turned.outputs[0], "Slice")?;
        let found = [trail.whole(slice, 1)?, trail.whole(slice, 2)?, trail.whole(slice, 3)?];
        if found != [[part].as_slice(), &[part + 1], &[0]] {
            return Err(trail.error(format!("Slice {:?} takes {found:?}, part {part} is expected", slice.outputs)));
        }
        parts.push(trail.then(&slice.outputs[0], "Squeeze")?);
    }
    let (scale, queries) = trail.with_scalar(&parts[0], "Mul")?;
    let keys = trail.node(&parts[1], "Transpose")?;
    trail.ints(keys, "perm", &[0, 1, 3, 2], &[])?;
    let scores = trail.both(&queries, &keys.outputs[0], "MatMul")?;
    let soft = trail.node(&scores, "Softmax")?;
    trail.ints(soft, "axis", &[3], &[])?;
    let mixed = trail.both(&soft.outputs[0], &parts[2], "MatMul")?;
    let turned = trail.node(&mixed, "Transpose")?;
    trail.ints(turned, "perm", &[0, 2, 1, 3], &[])?;
    let value = trail.reshape(&turned.outputs[0], &[Some(0), None, Some(TOKEN as i64)])?;
    Ok((value, scale))
}
