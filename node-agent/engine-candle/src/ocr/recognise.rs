//! The PP-OCRv4 recogniser (`ch_PP-OCRv4_rec_infer.onnx`): pictures of lines to a class per column of 8 pixels.
//!
//! PP-LCNetV3, a mean over the height, two transformer blocks between convolutions (SVTR, Du et al. 2022), and a class per
//! column; decoding is connectionist temporal classification. Input values are x / 127.5 − 1, in the order blue, green, red of
//! the published pipeline.

use std::sync::Arc;
use std::time::Duration;

use ingle_engine::EngineError;

use super::activation::Activation;
use super::blocks::{Block, Spare, block, stem};
use super::classify::Classify;
use super::conv::Conv;
use super::graph::{Expected, Trail};
use super::map::{Shape, Slot};
use super::net::{Layer, Network, Run};
use super::onnx::Onnx;
use super::pool::{Join, MeanPool};
use super::tokens::Dense;
use super::transformer::{self, TOKEN, TokenSlots};

/// Height of a line's picture.
pub const LINE_HEIGHT: usize = 48;
/// Narrowest picture of a line: it gives one column.
pub const LINE_WIDTH_MIN: usize = 8;
/// Most columns of pixels in one batch, all lines together: about 340 MB of maps.
pub const COLUMNS_MAX: usize = 32 << 10;

const BLOCKS: [Block; 14] = [
    Block::new(3, 16, 32, (1, 1)),
    Block::new(3, 32, 64, (1, 1)),
    Block::new(3, 64, 64, (1, 1)),
    Block::new(3, 64, 128, (2, 1)),
    Block::new(3, 128, 128, (1, 1)),
    Block::new(3, 128, 240, (1, 2)),
    Block::new(5, 240, 240, (1, 1)),
    Block::new(5, 240, 240, (1, 1)),
    Block::new(5, 240, 240, (1, 1)),
    Block::new(5, 240, 240, (1, 1)),
    Block::new(5, 240, 480, (2, 1)).squeezed(),
    Block::new(5, 480, 480, (1, 1)).squeezed(),
    Block::new(5, 480, 480, (2, 1)),
    Block::new(5, 480, 480, (1, 1)),
];
/// Channels of the backbone's result and of the narrow convolutions.
const WIDE: usize = 480;
const NARROW: usize = 60;

const SPARE: Spare = Spare { map: Slot(3), gains: Slot(4) };
const POOLED: Slot = Slot(5);
const TOKENS: TokenSlots =
    TokenSlots { stream: Slot(6), spare: SPARE.map, inner: Slot(7), turned: Slot(8), mixed: Slot(9) };
const JOINED: Slot = Slot(10);
const RESULT: Slot = Slot(11);

/// What a column of a line most likely is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// Index into [`Recogniser::characters`]; 0 is the blank.
    pub class: usize,
    /// 0 to 1.
    pub probability: f32,
}

/// The loaded recogniser.
pub struct Recogniser {
    network: Arc<Network>,
    characters: Vec<String>,
}

impl Recogniser {
    /// Builds the network from a file's bytes; `file` is its name for errors.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the node or tensor, what was expected and what was found.
    pub fn load(bytes: &[u8], file: &str) -> Result<Self, EngineError> {
        let onnx = Onnx::read(bytes).map_err(|error| error.of(file))?;
        let mut trail = Trail::new(&onnx, file);
        let characters = characters(&onnx, &trail)?;
        let mut layers: Vec<Box<dyn Layer>> = Vec::new();
        let value = backbone(&mut trail, &mut layers)?;
        let (pooled, value) = neck(&mut trail, &mut layers, &value)?;
        let value = tail(&mut trail, &mut layers, &pooled, &value, characters.len())?;
        trail.finish(&value)?;
        Ok(Self { network: Arc::new(Network::new(layers, RESULT.0 + 1)), characters })
    }

    /// Text of each class: none for the blank (class 0), and a space for the last.
    pub fn characters(&self) -> &[String] {
        &self.characters
    }

    /// Begins with `count` lines of one width: `input` is [count, 48, width, 3], normalised as the module says.
    ///
    /// # Errors
    /// [`EngineError::Input`] if there is no line, a line is narrower than [`LINE_WIDTH_MIN`], there are more than
    /// [`COLUMNS_MAX`] columns in all, or the values are not as many as the sizes say.
    pub fn start(&self, input: &[f32], count: usize, width: usize) -> Result<Recognition, EngineError> {
        let columns = count.checked_mul(width).filter(|columns| (1..=COLUMNS_MAX).contains(columns));
        if width < LINE_WIDTH_MIN || columns.is_none_or(|columns| input.len() != columns * LINE_HEIGHT * 3) {
            return Err(EngineError::Input(format!(
                "the recogniser takes lines of {LINE_HEIGHT} × at least {LINE_WIDTH_MIN} pixels of 3 values with at most \
                 {COLUMNS_MAX} columns in all, got {count} of width {width} with {} values",
                input.len()
            )));
        }
        Ok(Recognition(Run::new(&self.network, Shape::new(count, LINE_HEIGHT, width, 3).bordered(1, 1), input)))
    }
}

/// Lines on their way through the recogniser.
pub struct Recognition(Run);

impl Recognition {
    /// Works for about `budget`; true when done. To be called within a thread pool.
    pub fn step(&mut self, budget: Duration) -> bool {
        self.0.step(budget)
    }

    /// For each line its columns from left to right, once a step has said that it is done.
    pub fn result(&self) -> Vec<Vec<Column>> {
        let map = self.0.map(RESULT);
        // Weights that overflow make no number at all: that is no likelihood.
        let likely = |probability: f32| if probability.is_finite() { probability } else { 0.0 };
        let column = |pair: &[f32; 2]| Column { class: pair[0] as usize, probability: likely(pair[1]) };
        let line = |line: &[f32]| line.as_chunks::<2>().0.iter().map(column).collect();
        map.values.chunks_exact(map.shape.picture().max(1)).map(line).collect()
    }

    /// For measurements: runs to the end, telling each layer's name and time.
    pub fn profile(&mut self, tell: impl FnMut(&str, Duration)) {
        self.0.profile(tell);
    }
}

fn characters(onnx: &Onnx, trail: &Trail<'_>) -> Result<Vec<String>, EngineError> {
    let Some(list) = onnx.metadata.get("character") else {
        return Err(trail.error("its metadata has no \"character\", the list of what it can read"));
    };
    let mut characters = vec![String::new()];
    characters.extend(list.split('\n').map(String::from));
    characters.push(" ".into());
    Ok(characters)
}

/// Adds the backbone's layers; gives the name of its result, which is in [`Slot`] 1.
fn backbone(trail: &mut Trail<'_>, layers: &mut Vec<Box<dyn Layer>>) -> Result<String, EngineError> {
    let filter = stem(trail, 16)?;
    let weights = Conv::pack(&filter.weights, &filter.bias, 3, (3, 3));
    let first = Conv::point(Slot(0), Slot(1), weights, Activation::None);
    layers.push(Box::new(Conv { size: (3, 3), stride: (2, 2), ..first }));
    let mut value = filter.value;
    // An even number of blocks: the last ends in slot 1 again.
    let (mut here, mut there) = (Slot(1), Slot(2));
    for spec in BLOCKS {
        value = block(trail, layers, &value, spec, (here, there), SPARE)?;
        (here, there) = (there, here);
    }
    Ok(value)
}

/// A convolution over columns with its swish, from [source] to [target].
fn column_conv(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
    (inputs, outputs, columns): (usize, usize, usize),
    (source, target): (Slot, Slot),
) -> Result<String, EngineError> {
    let size = (1, columns);
    let filter = trail.conv(value, Expected { inputs, outputs, size, stride: (1, 1), depthwise: false })?;
    let weights = Conv::pack(&filter.weights, &filter.bias, inputs, size);
    layers.push(Box::new(Conv { size, ..Conv::point(source, target, weights, Activation::Swish) }));
    trail.swish(&filter.value)
}

/// Pooling, two convolutions, two transformer blocks; gives the names of the pooled value and of the stream's end.
fn neck(trail: &mut Trail<'_>, layers: &mut Vec<Box<dyn Layer>>, value: &str) -> Result<(String, String), EngineError> {
    let pool = trail.node(value, "AveragePool")?;
    trail.ints(pool, "kernel_shape", &[3, 2], &[])?;
    trail.ints(pool, "strides", &[3, 2], &[1, 1])?;
    trail.ints(pool, "pads", &[0; 4], &[0; 4])?;
    trail.ints(pool, "ceil_mode", &[0], &[0])?;
    layers.push(Box::new(MeanPool { source: Slot(1), target: POOLED, size: (3, 2), border: 1 }));
    let pooled = pool.outputs[0].clone();
    let value = column_conv(trail, layers, &pooled, (WIDE, NARROW, 3), (POOLED, TOKENS.mixed))?;
    let value = column_conv(trail, layers, &value, (NARROW, TOKEN, 1), (TOKENS.mixed, TOKENS.stream))?;
    // [lines, channels, 1, columns] to [lines, columns, channels].
    let value = trail.then(&value, "Reshape")?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 2, 1], &[])?;
    let mut value = turned.outputs[0].clone();
    for _ in 0..2 {
        value = transformer::block(trail, layers, &value, TOKENS)?;
    }
    Ok((pooled, value))
}

/// The convolutions after the transformer and the classes; gives the name of the result.
fn tail(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    pooled: &str,
    value: &str,
    classes: usize,
) -> Result<String, EngineError> {
    let last = transformer::norm(trail, value)?;
    let value = trail.reshape(&last.value, &[Some(0), Some(1), None, Some(TOKEN as i64)])?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 3, 1, 2], &[])?;
    let point = Expected { inputs: TOKEN, outputs: WIDE, size: (1, 1), stride: (1, 1), depthwise: false };
    let mut filter = trail.conv(&turned.outputs[0], point)?;
    last.fold(&mut filter.weights, &mut filter.bias, |row, column| column * TOKEN + row);
    layers.push(Box::new(Dense {
        source: TOKENS.stream,
        target: TOKENS.mixed,
        norm: Some(last.epsilon),
        first: Conv::pack(&filter.weights, &filter.bias, TOKEN, (1, 1)),
        activation: Activation::Swish,
        second: None,
        residual: None,
    }));
    let value = trail.swish(&filter.value)?;
    let joined = trail.node(&value, "Concat")?;
    trail.ints(joined, "axis", &[1], &[])?;
    if joined.inputs != [pooled, value.as_str()] {
        return Err(trail.error(format!(
            "Concat {:?} joins {:?}, {pooled:?} and {value:?} are expected",
            joined.outputs, joined.inputs
        )));
    }
    layers.push(Box::new(Join { sources: [POOLED, TOKENS.mixed], target: JOINED, border: 1 }));
    let value = column_conv(trail, layers, &joined.outputs[0], (2 * WIDE, NARROW, 3), (JOINED, TOKENS.inner))?;
    let value = column_conv(trail, layers, &value, (NARROW, TOKEN, 1), (TOKENS.inner, TOKENS.stream))?;
    let value = trail.then(&value, "Squeeze")?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 2, 1], &[])?;
    let out = transformer::linear(trail, &turned.outputs[0], TOKEN, classes)?;
    layers.push(Box::new(Classify::new(TOKENS.stream, RESULT, &out.weights, &out.bias)));
    let soft = trail.node(&out.value, "Softmax")?;
    trail.ints(soft, "axis", &[2], &[])?;
    Ok(soft.outputs[0].clone())
}
