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
use super::graph::{Expected, Filter, Trail};
use super::head::Head;
use super::map::{Shape, Slot};
use super::net::{Layer, Network, Run};
use super::onnx::Onnx;
use super::product::Packed;
use super::pyramid::{OUTPUTS, Part, Pyramid};
use super::squeeze::{Dense, Squeeze};

/// Height and width must be multiples of this.
pub const SIDE_STEP: usize = 32;
/// Most pixels of an input: 2048 × 2048.
pub const PIXELS_MAX: usize = 1 << 22;

const BLOCKS: [Block; 14] = [
    Block::new(3, 16, 32, (1, 1)),
    Block::new(3, 32, 48, (2, 2)),
    Block::new(3, 48, 48, (1, 1)),
    Block::new(3, 48, 96, (2, 2)),
    Block::new(3, 96, 96, (1, 1)),
    Block::new(3, 96, 192, (2, 2)),
    Block::new(5, 192, 192, (1, 1)),
    Block::new(5, 192, 192, (1, 1)),
    Block::new(5, 192, 192, (1, 1)),
    Block::new(5, 192, 192, (1, 1)),
    Block::new(5, 192, 384, (2, 2)).squeezed(),
    Block::new(5, 384, 384, (1, 1)).squeezed(),
    Block::new(5, 384, 384, (1, 1)),
    Block::new(5, 384, 384, (1, 1)),
];
/// Index of the block whose result a level of the pyramid reads, its channels, and those between its two 1×1 convolutions.
const LEVELS: [(usize, usize, usize); 4] = [(2, 48, 12), (4, 96, 18), (9, 192, 42), (13, 384, 360)];
/// Channels of the pyramid.
const WIDE: usize = 96;
/// Channels of a level's result.
const NARROW: usize = OUTPUTS;
/// Slope of the hard sigmoids in the pyramid.
const SLOPE: f32 = 0.2;

const SPARE: Spare = Spare { map: Slot(3), gains: Slot(4) };
/// Where the first of the levels' slots are; each level has [`LEVEL_SLOTS`].
const LEVEL_SLOT: usize = 5;
const LEVEL_SLOTS: usize = 5;
const RESULT: Slot = Slot(1);

/// The loaded detector.
pub struct Detector {
    network: Arc<Network>,
}

/// Slots of a level: the backbone's result, the lateral, its gains, the level's result, the gains of that.
fn level_slot(level: usize, part: usize) -> Slot {
    Slot(LEVEL_SLOT + level * LEVEL_SLOTS + part)
}

impl Detector {
    /// Builds the network from a file's bytes; `file` is its name for errors.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the node or tensor, what was expected and what was found.
    pub fn load(bytes: &[u8], file: &str) -> Result<Self, EngineError> {
        let onnx = Onnx::read(bytes).map_err(|error| error.of(file))?;
        let mut trail = Trail::new(&onnx, file);
        let mut layers: Vec<Box<dyn Layer>> = Vec::new();
        let levels = backbone(&mut trail, &mut layers)?;
        let levels = pyramid(&mut trail, &mut layers, &levels)?;
        let value = head(&mut trail, &mut layers, &levels)?;
        trail.finish(&value)?;
        Ok(Self { network: Arc::new(Network::new(layers, LEVEL_SLOT + LEVELS.len() * LEVEL_SLOTS)) })
    }

    /// Begins with one picture: `input` is [height, width, 3], normalised as the module says.
    ///
    /// # Errors
    /// [`EngineError::Input`] if a side is no multiple of [`SIDE_STEP`], there are more than [`PIXELS_MAX`] pixels, or the
    /// values are not as many as the sides say.
    pub fn start(&self, input: &[f32], height: usize, width: usize) -> Result<Detection, EngineError> {
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
pub struct Detection(Run);

impl Detection {
    /// Works for about `budget`; true when done. To be called within a thread pool.
    pub fn step(&mut self, budget: Duration) -> bool {
        self.0.step(budget)
    }

    /// [height, width] probabilities, once a step has said that it is done.
    pub fn result(&self) -> &[f32] {
        &self.0.map(RESULT).values
    }

    /// For measurements: runs to the end, telling each layer's name and time.
    pub fn profile(&mut self, tell: impl FnMut(&str, Duration)) {
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
    for (index, spec) in BLOCKS.into_iter().enumerate() {
        let level = LEVELS.iter().position(|(block, _, _)| *block == index);
        let target = match level {
            Some(level) => level_slot(level, 0),
            None if here == Slot(1) => Slot(2),
            None => Slot(1),
        };
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

/// A level of the pyramid as it was followed.
struct Level {
    /// The 1×1 convolution to [`WIDE`] channels; none where it is one with the lateral.
    inner: Option<Vec<f32>>,
    /// Name of the level's sum.
    sum: String,
}

/// Adds the pyramid's layers; gives the levels' values, the finest first.
fn pyramid(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    values: &[String],
) -> Result<Vec<String>, EngineError> {
    let mut levels: Vec<Level> = Vec::new();
    for level in (0..LEVELS.len()).rev() {
        let above = levels.last().map(|level| level.sum.clone());
        levels.push(lateral(trail, layers, &values[level], level, above)?);
    }
    levels.reverse();
    let mut results = Vec::new();
    for level in 0..LEVELS.len() {
        let expected = Expected { inputs: WIDE, outputs: NARROW, size: (3, 3), stride: (1, 1), depthwise: false };
        let filter = trail.conv(&levels[level].sum, expected)?;
        let part = |at: usize| Part {
            map: level_slot(at, 1),
            gains: level_slot(at, 2),
            filter: filter.weights.clone(),
            inner: levels[at].inner.clone(),
        };
        layers.push(Box::new(Pyramid {
            parts: (level..LEVELS.len()).map(part).collect(),
            bias: biases(&filter),
            rectify: false,
            target: level_slot(level, 3),
            border: 1,
        }));
        let slots = (level_slot(level, 3), level_slot(level, 4));
        let (gains, result) = residual_squeeze(trail, &filter.value, NARROW, slots)?;
        layers.push(Box::new(gains));
        results.push(result);
    }
    Ok(results)
}

/// Adds a level's lateral and its gains. Its two 1×1 convolutions stay apart where the channels between them are few, since
/// the second is then multiplied into the filters that come later.
fn lateral(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
    level: usize,
    above: Option<String>,
) -> Result<Level, EngineError> {
    let (_, channels, between) = LEVELS[level];
    let mut filter = trail.conv(value, point(channels, between))?;
    let outer = trail.conv(&filter.value, point(between, WIDE))?;
    let slots = (level_slot(level, 1), level_slot(level, 2));
    let (mut gains, mut sum) = residual_squeeze(trail, &outer.value, WIDE, slots)?;
    let few = between < WIDE;
    if few {
        gains.before = Some(Dense::new(&outer.weights, &outer.bias));
    } else {
        filter = joined(&filter, &outer, channels);
    }
    let weights = Conv::pack(&filter.weights, &filter.bias, channels, (1, 1));
    let conv = Conv::point(level_slot(level, 0), slots.0, weights, Activation::None);
    layers.push(Box::new(Conv { border: (1, 1), ..conv }));
    layers.push(Box::new(gains));
    if let Some(above) = above {
        let doubled = enlarge(trail, &above, 2)?;
        sum = trail.both(&sum, &doubled, "Add")?;
    }
    Ok(Level { inner: few.then_some(outer.weights), sum })
}

fn biases(filter: &Filter) -> [f32; OUTPUTS] {
    std::array::from_fn(|out| filter.bias[out])
}

/// Two 1×1 convolutions as one.
fn joined(first: &Filter, second: &Filter, channels: usize) -> Filter {
    let between = first.bias.len();
    let mut weights = vec![0.0; second.bias.len() * channels];
    let mut bias = second.bias.clone();
    for ((row, outer), bias) in
        weights.chunks_exact_mut(channels).zip(second.weights.chunks_exact(between)).zip(&mut bias)
    {
        for ((inner, weight), shift) in first.weights.chunks_exact(channels).zip(outer).zip(&first.bias) {
            row.iter_mut().zip(inner).for_each(|(sum, inner)| *sum += weight * inner);
            *bias += weight * shift;
        }
    }
    Filter { weights, bias, value: second.value.clone() }
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
    let text = |name: &str, expected: &str| matches!(node.attributes.get(name), Some(super::onnx::Attribute::Text(text)) if text == expected);
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
    let mut names = Vec::new();
    for (level, value) in values.iter().enumerate().rev() {
        names.push(if level == 0 { value.clone() } else { enlarge(trail, value, 1 << level)? });
    }
    let joined = trail.node(&values[0], "Concat")?;
    trail.ints(joined, "axis", &[1], &[])?;
    if joined.inputs != names {
        return Err(
            trail.error(format!("Concat {:?} joins {:?}, {names:?} are expected", joined.outputs, joined.inputs))
        );
    }
    let expected = Expected { inputs: WIDE, outputs: NARROW, size: (3, 3), stride: (1, 1), depthwise: false };
    let filter = trail.conv(&joined.outputs[0], expected)?;
    let value = trail.then(&filter.value, "Relu")?;
    // The coarsest level's channels come first.
    let part = |level: usize| {
        let first = (LEVELS.len() - 1 - level) * NARROW * 9;
        let own = |filter: &[f32]| filter[first..first + NARROW * 9].to_vec();
        let filter = filter.weights.chunks_exact(WIDE * 9).flat_map(own).collect();
        Part { map: level_slot(level, 3), gains: level_slot(level, 4), filter, inner: None }
    };
    layers.push(Box::new(Pyramid {
        parts: (0..LEVELS.len()).map(part).collect(),
        bias: biases(&filter),
        rectify: true,
        target: SPARE.map,
        border: 0,
    }));

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
