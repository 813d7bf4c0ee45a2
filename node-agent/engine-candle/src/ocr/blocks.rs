//! Patterns that the networks are made of, as the files spell them: hard-swish from four operations, scales and shifts of one
//! value, squeeze-and-excite, and the PP-LCNetV3 block (PaddleOCR's `rec_lcnetv3.py`, folded for inference).

use ingle_engine::EngineError;

use super::activation::Activation;
use super::conv::Conv;
use super::depthwise::Depthwise;
use super::graph::{Expected, Filter, Trail};
use super::map::Slot;
use super::net::Layer;
use super::separable::Separable;
use super::squeeze::{Dense, Squeeze};

/// Slope of the hard sigmoid in PP-LCNetV3, 1/6 to four digits.
const SLOPE: f32 = 0.166_666_7;

impl Trail<'_> {
    /// x · clip(x + 3, 0, 6) / 6; gives the name of its result.
    pub(crate) fn hard_swish(&mut self, value: &str) -> Result<String, EngineError> {
        let shifted = self.with_known(value, "Add", 3.0)?;
        let clip = self.node(&shifted, "Clip")?;
        let limits = [self.values(clip, 1, &[])?, self.values(clip, 2, &[])?];
        if limits != [[0.0], [6.0]] {
            return Err(self.error(format!("Clip {:?} has the limits {limits:?}, 0 and 6 are expected", clip.outputs)));
        }
        let gated = self.both(value, &clip.outputs[0], "Mul")?;
        self.with_known(&gated, "Div", 6.0)
    }

    /// Follows an operation on two values in this order; gives the name of its result.
    pub(crate) fn both(&mut self, first: &str, second: &str, op: &str) -> Result<String, EngineError> {
        let node = self.node(second, op)?;
        if node.inputs != [first, second] {
            let problem = format!("{op} {:?} reads {:?}, {:?} is expected", node.outputs, node.inputs, [first, second]);
            return Err(self.error(problem));
        }
        Ok(node.outputs[0].clone())
    }

    /// x · sigmoid(x), with the factor 1 that some exports write before the sigmoid.
    pub(crate) fn swish(&mut self, value: &str) -> Result<String, EngineError> {
        let scaled = self.with_known(value, "Mul", 1.0)?;
        let gate = self.then(&scaled, "Sigmoid")?;
        self.both(value, &gate, "Mul")
    }

    /// A scale and a shift of one value each, folded into the filter.
    fn affine(&mut self, filter: &mut Filter) -> Result<(), EngineError> {
        let (scale, value) = self.with_scalar(&filter.value, "Mul")?;
        let (shift, value) = self.with_scalar(&value, "Add")?;
        filter.fold(|_| scale, |_| shift);
        filter.value = value;
        Ok(())
    }

    /// Hard-swish with a learnt scale and shift after it.
    fn learnt_swish(&mut self, filter: &mut Filter) -> Result<Activation, EngineError> {
        let value = self.hard_swish(&filter.value)?;
        let (scale, value) = self.with_scalar(&value, "Mul")?;
        let (shift, value) = self.with_scalar(&value, "Add")?;
        filter.value = value;
        Ok(Activation::HardSwish { scale: scale / 6.0, shift })
    }

    /// A bias of shape [1, channels, 1, 1] added after the convolution, if there is one.
    pub(crate) fn late_bias(&mut self, filter: &mut Filter) -> Result<(), EngineError> {
        if self.comes(&filter.value, "Add") {
            let node = self.node(&filter.value, "Add")?;
            let bias = self.values(node, 1, &[1, filter.bias.len(), 1, 1])?;
            filter.fold(|_| 1.0, |channel| bias[channel]);
            filter.value.clone_from(&node.outputs[0]);
        }
        Ok(())
    }

    /// Means, two dense layers, a hard sigmoid; gives the layer and the name of the gains.
    pub(crate) fn squeeze(
        &mut self,
        value: &str,
        (channels, inner): (usize, usize),
        slope: f32,
        (source, target): (Slot, Slot),
    ) -> Result<(Squeeze, String), EngineError> {
        let mean = self.then(value, "GlobalAveragePool")?;
        let dense = Expected { inputs: channels, outputs: inner, size: (1, 1), stride: (1, 1), depthwise: false };
        let mut down = self.conv(&mean, dense)?;
        self.late_bias(&mut down)?;
        let relu = self.then(&down.value, "Relu")?;
        let mut up = self.conv(&relu, Expected { inputs: inner, outputs: channels, ..dense })?;
        self.late_bias(&mut up)?;
        let sigmoid = self.node(&up.value, "HardSigmoid")?;
        let found = (self.float(sigmoid, "alpha")?, self.float(sigmoid, "beta")?);
        if (found.0 - slope).abs() > 1e-4 || found.1 != 0.5 {
            let problem = format!("HardSigmoid {:?} has {found:?}, ({slope}, 0.5) is expected", sigmoid.outputs);
            return Err(self.error(problem));
        }
        let down = Dense::new(&down.weights, &down.bias);
        let up = Dense::new(&up.weights, &up.bias);
        let squeeze = Squeeze { source, target, before: None, down, up, slope: found.0, residual: 0.0 };
        Ok((squeeze, sigmoid.outputs[0].clone()))
    }
}

/// A block of PP-LCNetV3: depthwise, perhaps squeeze-and-excite, 1×1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) size: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) stride: (usize, usize),
    pub(crate) squeeze: bool,
}

impl Block {
    /// Without squeeze-and-excite.
    pub(crate) const fn new(size: usize, inputs: usize, outputs: usize, stride: (usize, usize)) -> Self {
        Self { size, inputs, outputs, stride, squeeze: false }
    }

    /// The same with it.
    pub(crate) const fn squeezed(self) -> Self {
        Self { squeeze: true, ..self }
    }
}

/// Slots that a chain of blocks may use beside its source and target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spare {
    pub(crate) map: Slot,
    pub(crate) gains: Slot,
}

/// Follows one block and adds its layers; gives the name of its result.
///
/// Blocks that halve both sides have no activation after their depthwise part.
pub(crate) fn block(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
    block: Block,
    (source, target): (Slot, Slot),
    spare: Spare,
) -> Result<String, EngineError> {
    let Block { size, inputs, outputs, stride, squeeze } = block;
    let expected = Expected { inputs, outputs: inputs, size: (size, size), stride, depthwise: true };
    let mut depth = trail.conv(value, expected)?;
    trail.affine(&mut depth)?;
    let activation = if stride == (2, 2) { Activation::None } else { trail.learnt_swish(&mut depth)? };
    let depthwise = Depthwise::new(size, stride, &depth.weights, &depth.bias, activation);
    let mut between = depth.value;
    let mut gains = None;
    if squeeze {
        let places = (spare.map, spare.gains);
        let (layer, name) = trail.squeeze(&between, (inputs, inputs / 4), SLOPE, places)?;
        between = trail.both(&between, &name, "Mul")?;
        gains = Some(layer);
    }
    let expected = Expected { inputs, outputs, size: (1, 1), stride: (1, 1), depthwise: false };
    let mut point = trail.conv(&between, expected)?;
    trail.affine(&mut point)?;
    let activation = trail.learnt_swish(&mut point)?;
    let packed = Conv::pack(&point.weights, &point.bias, inputs, (1, 1));
    match gains {
        None => layers.push(Box::new(Separable { source, target, depthwise, point: Some((packed, activation)) })),
        Some(gains) => {
            let slot = Some(gains.target);
            layers.push(Box::new(Separable { source, target: spare.map, depthwise, point: None }));
            layers.push(Box::new(gains));
            layers.push(Box::new(Conv { gains: slot, ..Conv::point(spare.map, target, packed, activation) }));
        }
    }
    Ok(point.value)
}

/// The first convolution of all networks: 3×3 over 3 channels by 2×2, on an input with a border of 1.
pub(crate) fn stem(trail: &mut Trail<'_>, outputs: usize) -> Result<Filter, EngineError> {
    trail.conv("x", Expected { inputs: 3, outputs, size: (3, 3), stride: (2, 2), depthwise: false })
}
