//! The PaddleOCR angle classifier (`ch_ppocr_mobile_v2.0_cls_infer.onnx`) says whether a line is upright or turned by 180°.
//!
//! MobileNetV3 small at a scale of 0.35 (Howard et al. 2019) on lines of 48 × 192 pixels. Input values are x / 127.5 − 1, in
//! the order blue, green, red of the published pipeline.

use std::sync::Arc;
use std::time::Duration;

use ingle_engine::EngineError;
use rayon::prelude::*;

use super::activation::Activation;
use super::blocks::stem;
use super::conv::Conv;
use super::depthwise::Depthwise;
use super::graph::{Expected, Trail};
use super::map::{Maps, Shape, Slot};
use super::net::{Layer, Network, Run};
use super::onnx::Onnx;
use super::pool::Add;
use super::separable::Separable;

/// Height of a line's picture.
pub const HEIGHT: usize = 48;
/// Width of a line's picture.
pub const WIDTH: usize = 192;
/// Most lines of a batch.
pub const LINES_MAX: usize = 64;

/// Inverted residuals: size, inputs, inner channels, outputs, halving the height, squeeze-and-excite, hard-swish instead of the
/// rectifier, and adding the input.
struct Inverted {
    size: usize,
    inputs: usize,
    inner: usize,
    outputs: usize,
    halve: bool,
    squeeze: bool,
    swish: bool,
}

const fn inverted(size: usize, channels: [usize; 3], halve: bool, squeeze: bool, swish: bool) -> Inverted {
    Inverted { size, inputs: channels[0], inner: channels[1], outputs: channels[2], halve, squeeze, swish }
}

const BLOCKS: [Inverted; 11] = [
    inverted(3, [8, 8, 8], true, true, false),
    inverted(3, [8, 24, 8], true, false, false),
    inverted(3, [8, 32, 8], false, false, false),
    inverted(5, [8, 32, 16], true, true, true),
    inverted(5, [16, 88, 16], false, true, true),
    inverted(5, [16, 88, 16], false, true, true),
    inverted(5, [16, 40, 16], false, true, true),
    inverted(5, [16, 48, 16], false, true, true),
    inverted(5, [16, 104, 32], true, true, true),
    inverted(5, [32, 200, 32], false, true, true),
    inverted(5, [32, 200, 32], false, true, true),
];
const LAST: usize = 200;
/// Slope of the hard sigmoids.
const SLOPE: f32 = 0.2;
const HARD_SWISH: Activation = Activation::HardSwish { scale: 1.0 / 6.0, shift: 0.0 };

const WIDE: Slot = Slot(3);
const FILTERED: Slot = Slot(4);
const GAINS: Slot = Slot(5);
const RESULT: Slot = Slot(6);

/// The loaded classifier.
pub struct Orienter {
    network: Arc<Network>,
}

impl Orienter {
    /// Builds the network from a file's bytes; `file` is its name for errors.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the node or tensor, what was expected and what was found.
    pub fn load(bytes: &[u8], file: &str) -> Result<Self, EngineError> {
        let onnx = Onnx::read(bytes).map_err(|error| error.of(file))?;
        let mut trail = Trail::new(&onnx, file);
        let mut layers: Vec<Box<dyn Layer>> = Vec::new();
        let filter = stem(&mut trail, 8)?;
        let weights = Conv::pack(&filter.weights, &filter.bias, 3, (3, 3));
        let first = Conv::point(Slot(0), Slot(1), weights, HARD_SWISH);
        layers.push(Box::new(Conv { size: (3, 3), stride: (2, 2), ..first }));
        let mut value = trail.hard_swish(&filter.value)?;
        let (mut here, mut there) = (Slot(1), Slot(2));
        for block in BLOCKS {
            value = block.follow(&mut trail, &mut layers, &value, (here, there))?;
            (here, there) = (there, here);
        }
        let value = last(&mut trail, &mut layers, &value, here)?;
        trail.finish(&value)?;
        Ok(Self { network: Arc::new(Network::new(layers, RESULT.0 + 1)) })
    }

    /// Begins with lines: `input` is [count, 48, 192, 3], normalised as the module says.
    ///
    /// # Errors
    /// [`EngineError::Input`] if there are none or more than [`LINES_MAX`], or the values are not as many as they should be.
    pub fn start(&self, input: &[f32], count: usize) -> Result<Orientation, EngineError> {
        if !(1..=LINES_MAX).contains(&count) || input.len() != count * HEIGHT * WIDTH * 3 {
            return Err(EngineError::Input(format!(
                "the classifier takes 1 to {LINES_MAX} lines of {HEIGHT} × {WIDTH} pixels of 3 values, got {count} with {} values",
                input.len()
            )));
        }
        Ok(Orientation(Run::new(&self.network, Shape::new(count, HEIGHT, WIDTH, 3).bordered(1, 1), input)))
    }
}

/// Lines on their way through the classifier.
pub struct Orientation(Run);

impl Orientation {
    /// Works for about `budget`; true when done. To be called within a thread pool.
    pub fn step(&mut self, budget: Duration) -> bool {
        self.0.step(budget)
    }

    /// For each line the probabilities that it is upright and that it is turned by 180°, once a step has said that it is done.
    pub fn result(&self) -> &[[f32; 2]] {
        self.0.map(RESULT).values.as_chunks::<2>().0
    }
}

impl Inverted {
    /// Follows the block and adds its layers; gives the name of its result.
    fn follow(
        &self,
        trail: &mut Trail<'_>,
        layers: &mut Vec<Box<dyn Layer>>,
        value: &str,
        (source, target): (Slot, Slot),
    ) -> Result<String, EngineError> {
        let &Self { size, inputs, inner, outputs, halve, squeeze, swish } = self;
        let activation = if swish { HARD_SWISH } else { Activation::Relu };
        let activate = |trail: &mut Trail<'_>, value: &str| match swish {
            true => trail.hard_swish(value),
            false => trail.then(value, "Relu"),
        };
        let point = Expected { inputs, outputs: inner, size: (1, 1), stride: (1, 1), depthwise: false };
        let filter = trail.conv(value, point)?;
        let weights = Conv::pack(&filter.weights, &filter.bias, inputs, (1, 1));
        layers.push(Box::new(Conv::point(source, WIDE, weights, activation)));
        let expanded = activate(trail, &filter.value)?;
        let stride = if halve { (2, 1) } else { (1, 1) };
        let depth = Expected { inputs: inner, outputs: inner, size: (size, size), stride, depthwise: true };
        let filter = trail.conv(&expanded, depth)?;
        let depthwise = Depthwise::new(size, stride, &filter.weights, &filter.bias, activation);
        layers.push(Box::new(Separable { source: WIDE, target: FILTERED, depthwise, point: None }));
        let mut filtered = activate(trail, &filter.value)?;
        let mut gains = None;
        if squeeze {
            let (layer, name) = trail.squeeze(&filtered, (inner, inner / 4), SLOPE, (FILTERED, GAINS))?;
            filtered = trail.both(&filtered, &name, "Mul")?;
            layers.push(Box::new(layer));
            gains = Some(GAINS);
        }
        let filter = trail.conv(&filtered, Expected { inputs: inner, outputs, ..point })?;
        let weights = Conv::pack(&filter.weights, &filter.bias, inner, (1, 1));
        layers.push(Box::new(Conv { gains, ..Conv::point(FILTERED, target, weights, Activation::None) }));
        // The first block keeps its sizes but for the height, the others add their input where all sizes stay.
        if halve || inputs != outputs {
            return Ok(filter.value);
        }
        layers.push(Box::new(Add { source, target }));
        trail.both(value, &filter.value, "Add")
    }
}

/// The last convolution, pooling, and two classes; gives the name of the result.
fn last(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
    source: Slot,
) -> Result<String, EngineError> {
    let inputs = BLOCKS[BLOCKS.len() - 1].outputs;
    let point = Expected { inputs, outputs: LAST, size: (1, 1), stride: (1, 1), depthwise: false };
    let filter = trail.conv(value, point)?;
    let weights = Conv::pack(&filter.weights, &filter.bias, inputs, (1, 1));
    layers.push(Box::new(Conv::point(source, WIDE, weights, HARD_SWISH)));
    let value = trail.hard_swish(&filter.value)?;
    let pool = trail.node(&value, "MaxPool")?;
    trail.ints(pool, "kernel_shape", &[2, 2], &[])?;
    trail.ints(pool, "strides", &[2, 2], &[1, 1])?;
    trail.ints(pool, "pads", &[0; 4], &[0; 4])?;
    trail.ints(pool, "ceil_mode", &[0], &[0])?;
    let mean = trail.then(&pool.outputs[0], "GlobalAveragePool")?;
    let flat = trail.then(&mean, "Reshape")?;
    let product = trail.node(&flat, "MatMul")?;
    let weights = trail.values(product, 1, &[LAST, 2])?.to_vec();
    let sum = trail.node(&product.outputs[0], "Add")?;
    let bias = trail.values(sum, 1, &[2])?;
    let soft = trail.node(&sum.outputs[0], "Softmax")?;
    trail.ints(soft, "axis", &[1], &[])?;
    layers.push(Box::new(Verdict { weights, bias: [bias[0], bias[1]] }));
    Ok(soft.outputs[0].clone())
}

/// Maximum over squares of four pixels, mean over those, a dense layer, softmax.
struct Verdict {
    /// [channels, 2]
    weights: Vec<f32>,
    bias: [f32; 2],
}

impl Layer for Verdict {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(RESULT);
        let source = maps.get(WIDE);
        let Shape { count, height, width, channels, .. } = source.shape;
        target.prepare(Shape::new(count, 1, 1, 2));
        target.values.par_chunks_exact_mut(2).enumerate().for_each(|(line, out)| {
            let value =
                |y: usize, x: usize, channel: usize| source.values[source.shape.at(line, y) + x * channels + channel];
            let scale = 1.0 / ((height / 2) * (width / 2)) as f32;
            let mut scores = self.bias;
            for (channel, weights) in self.weights.as_chunks::<2>().0.iter().enumerate() {
                let mut sum = 0.0;
                for (y, x) in (0..height / 2).flat_map(|y| (0..width / 2).map(move |x| (2 * y, 2 * x))) {
                    let above = value(y, x, channel).max(value(y, x + 1, channel));
                    sum += above.max(value(y + 1, x, channel)).max(value(y + 1, x + 1, channel));
                }
                scores.iter_mut().zip(weights).for_each(|(score, weight)| *score += sum * scale * weight);
            }
            let most = scores[0].max(scores[1]);
            let odds = scores.map(|score| (score - most).exp());
            out.copy_from_slice(&odds.map(|odd| odd / (odds[0] + odds[1])));
        });
        maps.put(RESULT, target);
    }

    fn name(&self) -> String {
        "verdict".into()
    }
}
