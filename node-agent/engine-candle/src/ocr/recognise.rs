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
use super::product::Packed;
use super::tokens::{Attend, Dense};

/// Height of a line's picture.
pub const LINE_HEIGHT: usize = 48;
/// Narrowest picture of a line: it gives one column.
pub const LINE_WIDTH_MIN: usize = 8;
/// Most columns of pixels in one batch, all lines together: about 340 MB of maps.
pub const COLUMNS_MAX: usize = 32 << 10;

/// Size, inputs, outputs, stride, squeeze-and-excite.
const BLOCKS: [(usize, usize, usize, (usize, usize), bool); 14] = [
    (3, 16, 32, (1, 1), false),
    (3, 32, 64, (1, 1), false),
    (3, 64, 64, (1, 1), false),
    (3, 64, 128, (2, 1), false),
    (3, 128, 128, (1, 1), false),
    (3, 128, 240, (1, 2), false),
    (5, 240, 240, (1, 1), false),
    (5, 240, 240, (1, 1), false),
    (5, 240, 240, (1, 1), false),
    (5, 240, 240, (1, 1), false),
    (5, 240, 480, (2, 1), true),
    (5, 480, 480, (1, 1), true),
    (5, 480, 480, (2, 1), false),
    (5, 480, 480, (1, 1), false),
];
/// Channels of the backbone's result, of the narrow convolutions, of a token, of its attention's heads.
const WIDE: usize = 480;
const NARROW: usize = 60;
const TOKEN: usize = 120;
const HEADS: usize = 8;
const HEAD: usize = 15;
const INNER: usize = 240;

const SPARE: Spare = Spare { map: Slot(3), gains: Slot(4) };
const POOLED: Slot = Slot(5);
const STREAM: Slot = Slot(6);
const INNER_SLOT: Slot = Slot(7);
const TURNED: Slot = Slot(8);
const MIXED: Slot = Slot(9);
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
        let column = |pair: &[f32; 2]| Column { class: pair[0] as usize, probability: pair[1] };
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
    for (size, inputs, outputs, stride, squeeze) in BLOCKS {
        let spec = Block { size, inputs, outputs, stride, squeeze };
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
    let value = column_conv(trail, layers, &pooled, (WIDE, NARROW, 3), (POOLED, MIXED))?;
    let value = column_conv(trail, layers, &value, (NARROW, TOKEN, 1), (MIXED, STREAM))?;
    // [lines, channels, 1, columns] to [lines, columns, channels].
    let value = trail.then(&value, "Reshape")?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 2, 1], &[])?;
    let mut value = turned.outputs[0].clone();
    for _ in 0..2 {
        value = transformer_block(trail, layers, &value)?;
    }
    Ok((pooled, value))
}

/// A dense layer's weights, [inputs, outputs], and biases.
struct Linear {
    weights: Vec<f32>,
    bias: Vec<f32>,
    value: String,
}

impl Linear {
    fn pack(&self) -> Packed {
        let columns = self.bias.len();
        Packed::new(self.weights.len() / columns, &self.bias, |row, column| self.weights[row * columns + column])
    }
}

fn linear(trail: &mut Trail<'_>, value: &str, inputs: usize, outputs: usize) -> Result<Linear, EngineError> {
    let product = trail.node(value, "MatMul")?;
    let weights = trail.values(product, 1, &[inputs, outputs])?.to_vec();
    let sum = trail.node(&product.outputs[0], "Add")?;
    let bias = trail.values(sum, 1, &[outputs])?.to_vec();
    Ok(Linear { weights, bias, value: sum.outputs[0].clone() })
}

/// A layer norm as the file spells it.
struct Norm<'a> {
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    value: String,
}

impl Norm<'_> {
    /// Moves scale and shift into the dense layer that follows; `at(row, column)` is where a weight lies.
    fn fold(&self, weights: &mut [f32], bias: &mut [f32], at: impl Fn(usize, usize) -> usize) {
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

fn norm<'a>(trail: &mut Trail<'a>, value: &str) -> Result<Norm<'a>, EngineError> {
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
fn transformer_block(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    value: &str,
) -> Result<String, EngineError> {
    let first = norm(trail, value)?;
    let mut qkv = linear(trail, &first.value, TOKEN, 3 * TOKEN)?;
    first.fold_linear(&mut qkv);
    let (mixed, scale) = attention(trail, &qkv.value)?;
    let out = linear(trail, &mixed, TOKEN, TOKEN)?;
    let value = trail.both(value, &out.value, "Add")?;
    let plain = Dense {
        source: STREAM,
        target: INNER_SLOT,
        norm: Some(first.epsilon),
        first: qkv.pack(),
        activation: Activation::None,
        second: None,
        residual: None,
    };
    layers.push(Box::new(plain.clone()));
    let attend = Attend { source: INNER_SLOT, target: MIXED, turned: TURNED, heads: HEADS, size: HEAD, scale };
    layers.push(Box::new(attend));
    // The stream goes from its slot to a spare one here and back in the second half.
    layers.push(Box::new(Dense {
        source: MIXED,
        target: SPARE.map,
        norm: None,
        first: out.pack(),
        residual: Some(STREAM),
        ..plain.clone()
    }));
    let second = norm(trail, &value)?;
    let mut up = linear(trail, &second.value, TOKEN, INNER)?;
    second.fold_linear(&mut up);
    let inner = trail.swish(&up.value)?;
    let down = linear(trail, &inner, INNER, TOKEN)?;
    layers.push(Box::new(Dense {
        source: SPARE.map,
        target: STREAM,
        norm: Some(second.epsilon),
        first: up.pack(),
        activation: Activation::Swish,
        second: Some(down.pack()),
        residual: Some(SPARE.map),
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

/// The convolutions after the transformer and the classes; gives the name of the result.
fn tail(
    trail: &mut Trail<'_>,
    layers: &mut Vec<Box<dyn Layer>>,
    pooled: &str,
    value: &str,
    classes: usize,
) -> Result<String, EngineError> {
    let last = norm(trail, value)?;
    let value = trail.reshape(&last.value, &[Some(0), Some(1), None, Some(TOKEN as i64)])?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 3, 1, 2], &[])?;
    let point = Expected { inputs: TOKEN, outputs: WIDE, size: (1, 1), stride: (1, 1), depthwise: false };
    let mut filter = trail.conv(&turned.outputs[0], point)?;
    last.fold(&mut filter.weights, &mut filter.bias, |row, column| column * TOKEN + row);
    layers.push(Box::new(Dense {
        source: STREAM,
        target: MIXED,
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
    layers.push(Box::new(Join { sources: [POOLED, MIXED], target: JOINED, border: 1 }));
    let value = column_conv(trail, layers, &joined.outputs[0], (2 * WIDE, NARROW, 3), (JOINED, INNER_SLOT))?;
    let value = column_conv(trail, layers, &value, (NARROW, TOKEN, 1), (INNER_SLOT, STREAM))?;
    let value = trail.then(&value, "Squeeze")?;
    let turned = trail.node(&value, "Transpose")?;
    trail.ints(turned, "perm", &[0, 2, 1], &[])?;
    let out = linear(trail, &turned.outputs[0], TOKEN, classes)?;
    layers.push(Box::new(Classify::new(STREAM, RESULT, &out.weights, &out.bias)));
    let soft = trail.node(&out.value, "Softmax")?;
    trail.ints(soft, "axis", &[2], &[])?;
    Ok(soft.outputs[0].clone())
}
