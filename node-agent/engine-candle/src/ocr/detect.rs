//! The PP-OCRv4 text detector (`ch_PP-OCRv4_det_infer.onnx`): a picture to a map of how likely each pixel is text.
//!
//! PP-LCNetV3, a feature pyramid with squeeze-and-excite, and the differentiable binarisation head (Liao et al. 2020) without
//! its threshold branch, as PaddleOCR exports it. Input values are (x / 255 − mean) / deviation with the means 0.485, 0.456,
//! 0.406 and the deviations 0.229, 0.224, 0.225, in the order blue, green, red of the published pipeline.

use std::sync::Arc;
use std::time::Duration;

use ingle_engine::EngineError;

use super::activation::Activation;
use super::blocks::{Block, Spare, block, stem};
use super::conv::Conv;
use super::graph::{Expected, Trail};
use super::head::Head;
use super::map::{Shape, Slot};
use super::net::{Layer, Network, Run};
use super::onnx::Onnx;
use super::product::Packed;
use super::pyramid::{Concat, TopDown};
use super::squeeze::{Dense, Squeeze};

/// Height and width must be multiples of this.
pub(crate) const SIDE_STEP: usize = 32;
/// Most pixels of an input: 2048 × 2048.
pub(crate) const PIXELS_MAX: usize = 1 << 22;

/// Size, inputs, outputs, halving, squeeze-and-excite.
const BLOCKS: [(usize, usize, usize, bool, bool); 14] = [
    (3, 16, 32, false, false),
    (3, 32, 48, true, false),
    (3, 48, 48, false, false),
    (3, 48, 96, true, false),
    (3, 96, 96, false, false),
    (3, 96, 192, true, false),
    (5, 192, 192, false, false),
    (5, 192, 192, false, false),
    (5, 192, 192, false, false),
    (5, 192, 192, false, false),
    (5, 192, 384, true, true),
    (5, 384, 384, false, true),
    (5, 384, 384, false, false),
    (5, 384, 384, false, false),
];
/// Index of the block whose result a level of the pyramid reads, its channels, and those between its two 1×1 convolutions.
const LEVELS: [(usize, usize, usize); 4] = [(2, 48, 12), (4, 96, 18), (9, 192, 42), (13, 384, 360)];
/// Channels of the pyramid.
const WIDE: usize = 96;
/// Channels of a level's result.
const NARROW: usize = 24;
/// Slope of the hard sigmoids in the pyramid.
const SLOPE: f32 = 0.2;

const SPARE: Spare = Spare { map: Slot(3), gains: Slot(4) };
/// Where the first of the levels' slots are; each level has [`LEVEL_SLOTS`].
const LEVEL_SLOT: usize = 5;
const LEVEL_SLOTS: usize = 6;
const FUSED: Slot = Slot(LEVEL_SLOT + 4 * LEVEL_SLOTS);
const RESULT: Slot = Slot(1);

/// The loaded detector.
pub(crate) struct Detector {
    network: Arc<Network>,
}

/// Slots of a level: the backbone's result, the inner lateral, its gains, the sum, its convolution, the gains of that.
fn level_slot(level: usize, part: usize) -> Slot {
    Slot(LEVEL_SLOT + level * LEVEL_SLOTS + part)
}

impl Detector {
    /// Builds the network from a file's bytes; `file` is its name for errors.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the node or tensor, what was expected and what was found.
    pub(crate) fn load(bytes: &[u8], file: &str) -> Result<Self, EngineError> {
        let onnx = Onnx::read(bytes).map_err(|error| error.of(file))?;
        let mut trail = Trail::new(&onnx, file);
        let mut layers: Vec<Box<dyn Layer>> = Vec::new();
        let levels = backbone(&mut trail, &mut layers)?;
        let levels = pyramid(&mut trail, &mut layers, &levels)?;
        let value = head(&mut trail, &mut layers, &levels)?;
        trail.finish(&value)?;
        Ok(Self { network: Arc::new(Network::new(layers, FUSED.0 + 1)) })
    }

    /// Begins with one picture: `input` is [height, width, 3], normalised as the module says.
    ///
    /// # Errors
    /// [`EngineError::Input`] if a side is no multiple of [`SIDE_STEP`], there are more than [`PIXELS_MAX`] pixels, or the
    /// values are not as many as the sides say.
    pub(crate) fn start(&self, input: &[f32], height: usize, width: usize) -> Result<Detection, EngineError> {
        let fits = |side: usize| side > 0 && side.is_multiple_of(SIDE_STEP) && side <= PIXELS_MAX;
        if !fits(height) || !fits(width) || height * width > PIXELS_MAX || input.len() != height * width * 3 {
            return Err(EngineError::Input(format!(
                "the detector takes sides that are multiples of {SIDE_STEP} with at most {PIXELS_MAX} pixels of 3 values, \
                 got {height} × {width} with {} values",
                input.len()
            )));
        }
        Ok(Detection(Run::new(&self.network, Shape::new(1, height, width, 3).bordered(1, 1), input)))
    }
}

/// A picture on its way through the detector.
pub(crate) struct Detection(Run);

impl Detection {
    /// Works for about `budget`; true when done. To be called within a thread pool.
    pub(crate) fn step(&mut self, budget: Duration) -> bool {
        self.0.step(budget)
    }

    /// [height, width] probabilities, once a step has said that it is done.
    pub(crate) fn result(&self) -> &[f32] {
        &self.0.map(RESULT).values
    }

    /// Runs to the end, telling each layer's name and time.
    pub(crate) fn profile(&mut self, tell: impl FnMut(&str, Duration)) {
        self.0.profile(tell);
    }
}

/// Adds the backbone's layers; gives the names of the levels' values.
fn backbone(trail: &mut Trail<'_>, layers: &mut Vec<Box<dyn Layer>>) -> Result<Vec<String>, EngineError> {
    let filter = stem(trail, 16)?;
    let weights = Conv::pack(&filter.weights, &filter.bias, 3, (3, 3));
    let mut here = Slot(1);
    let first = Conv::point(Slot(0), here, weights, Activation::None);
    layers.push(Box::new(Conv { size: (3, 3), stride: (2, 2), ..first }));
    let mut value = filter.value;
    let mut levels = Vec::new();
    for (index, (size, inputs, outputs, halve, squeeze)) in BLOCKS.into_iter().enumerate() {
        let stride = if halve { (2, 2) } else { (1, 1) };
        let level = LEVELS.iter().position(|(block, _, _)| *block == index);
        let target = match level {
            Some(level) => level_slot(level, 0),
            None if here == Slot(1) => Slot(2),
            None => Slot(1),
        };
        let spec = Block { size, inputs, outputs, stride, squeeze };
        value = block(trail, layers, &value, spec, (here, target), SPARE)?;
        if level.is_some() {
            levels.push(value.clone());
        }
        here = target;
    }
    Ok(levels)
}

fn point(inputs: usize, outputs: usize) -> Expected {
    Expected { inputs, outputs, size: (1, 1), stride: (1, 1), depthwise: false }
}

/// Adds the pyramid's layers from the top down; gives the levels' values, the finest first.
fn pyramid(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    values: &[String],
) -> Result<Vec<String>, EngineError> {
    let mut results = vec![String::new(); LEVELS.len()];
    let mut above: Option<String> = None;
    for (level, (_, channels, inner)) in LEVELS.into_iter().enumerate().rev() {
        let slot = |part: usize| level_slot(level, part);
        let lateral = trail.conv(&values[level], point(channels, inner))?;
        let weights = Conv::pack(&lateral.weights, &lateral.bias, channels, (1, 1));
        layers.push(Box::new(Conv::point(slot(0), slot(1), weights, Activation::None)));
        let outer = trail.conv(&lateral.value, point(inner, WIDE))?;
        let (gains, summed) = residual_squeeze(trail, &outer.value, WIDE, (slot(1), slot(2)))?;
        let before = Dense::new(&outer.weights, &outer.bias);
        layers.push(Box::new(Squeeze { before: Some(before), ..gains }));
        let mut sum = summed;
        if let Some(above) = &above {
            let doubled = enlarge(trail, above, 2)?;
            sum = trail.both(&sum, &doubled, "Add")?;
        }
        layers.push(Box::new(TopDown {
            source: slot(1),
            gains: slot(2),
            above: above.is_some().then(|| level_slot(level + 1, 3)),
            target: slot(3),
            weights: Conv::pack(&outer.weights, &outer.bias, inner, (1, 1)),
        }));
        let expected = Expected { inputs: WIDE, outputs: NARROW, size: (3, 3), stride: (1, 1), depthwise: false };
        let narrow = trail.conv(&sum, expected)?;
        let weights = Conv::pack(&narrow.weights, &narrow.bias, WIDE, (3, 3));
        let conv = Conv::point(slot(3), slot(4), weights, Activation::None);
        layers.push(Box::new(Conv { size: (3, 3), ..conv }));
        let (gains, result) = residual_squeeze(trail, &narrow.value, NARROW, (slot(4), slot(5)))?;
        layers.push(Box::new(gains));
        results[level] = result;
        above = Some(sum);
    }
    Ok(results)
}

/// x + x ⊙ gains: one factor of 1 + gain.
fn residual_squeeze(
    trail: &mut Trail<'_>,
    value: &str,
    channels: usize,
    slots: (Slot, Slot),
) -> Result<(Squeeze, String), EngineError> {
    let (squeeze, gains) = trail.squeeze(value, (channels, channels / 4), SLOPE, slots)?;
    let scaled = trail.both(value, &gains, "Mul")?;
    let sum = trail.both(value, &scaled, "Add")?;
    Ok((Squeeze { residual: 1.0, ..squeeze }, sum))
}

/// Nearest neighbour by a whole factor.
fn enlarge(trail: &mut Trail<'_>, value: &str, factor: u16) -> Result<String, EngineError> {
    let node = trail.node(value, "Resize")?;
    let index = node.inputs.len().saturating_sub(1);
    let scales = trail.values(node, index, &[4])?;
    let factor = f32::from(factor);
    let text = |name: &str, expected: &str| {
        matches!(node.attributes.get(name), Some(super::onnx::Attribute::Text(text)) if text == expected)
    };
    let nearest = text("mode", "nearest") && text("nearest_mode", "floor");
    if !nearest || !text("coordinate_transformation_mode", "asymmetric") || scales != [1.0, 1.0, factor, factor] {
        return Err(trail.error(format!(
            "Resize {:?} by {scales:?} is expected to be nearest, asymmetric, rounding down, by {factor}",
            node.outputs
        )));
    }
    Ok(node.outputs[0].clone())
}

/// Adds the concatenation and the head; gives the name of the result.
fn head(trail: &mut Trail<'_>, layers: &mut Vec<Box<dyn Layer>>, values: &[String]) -> Result<String, EngineError> {
    let mut parts = Vec::new();
    let mut joined = None;
    for (level, value) in values.iter().enumerate().rev() {
        let large = if level == 0 { value.clone() } else { enlarge(trail, value, 1 << level)? };
        parts.push((level_slot(level, 4), level_slot(level, 5)));
        joined = Some(large);
    }
    let joined = trail.node(&joined.unwrap_or_default(), "Concat")?;
    trail.ints(joined, "axis", &[1], &[])?;
    layers.push(Box::new(Concat { parts, target: FUSED }));
    let expected = Expected { inputs: WIDE, outputs: NARROW, size: (3, 3), stride: (1, 1), depthwise: false };
    let filter = trail.conv(&joined.outputs[0], expected)?;
    let value = trail.then(&filter.value, "Relu")?;
    let weights = Conv::pack(&filter.weights, &filter.bias, WIDE, (3, 3));
    let conv = Conv::point(FUSED, SPARE.map, weights, Activation::Relu);
    layers.push(Box::new(Conv { size: (3, 3), ..conv }));

    let first = trail.transposed(&value, NARROW, NARROW)?;
    let value = trail.then(&first.value, "Relu")?;
    let second = trail.transposed(&value, NARROW, 1)?;
    let value = trail.then(&second.value, "Sigmoid")?;
    // Filters are [out, in, 2, 2] here.
    let pixels = |down: usize| {
        let bias = [first.bias.as_slice(), first.bias.as_slice()].concat();
        Packed::new(NARROW, &bias, |input, column| {
            let (across, out) = (column / NARROW, column % NARROW);
            first.weights[(out * NARROW + input) * 4 + down * 2 + across]
        })
    };
    layers.push(Box::new(Head {
        source: SPARE.map,
        target: RESULT,
        first: [pixels(0), pixels(1)],
        second: Packed::new(NARROW, &[second.bias[0]; 4], |input, corner| second.weights[input * 4 + corner]),
    }));
    Ok(value)
}
