//! Follows an ONNX graph from its input, layer by layer, and takes the weights on the way.
//!
//! A builder says what must come next, with all its sizes; what is found otherwise is refused by name. In the end every
//! arithmetic node of the file must have been followed: what runs here is the file's network and nothing else.

use ingle_engine::EngineError;

use super::onnx::{Attribute, Data, Node, Onnx, OnnxError, Tensor};

/// Operations that only carry shapes around.
const PLUMBING: [&str; 7] = ["Shape", "Cast", "Slice", "Concat", "Reshape", "Transpose", "Squeeze"];

/// A walk through a graph.
pub(crate) struct Trail<'a> {
    onnx: &'a Onnx,
    file: &'a str,
    followed: Vec<bool>,
}

/// What a convolution must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) size: (usize, usize),
    pub(crate) stride: (usize, usize),
    /// One filter per channel.
    pub(crate) depthwise: bool,
}

/// Weights of a convolution with what scales and shifts its result folded in.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    /// As ONNX has them: [out, in, rows, columns].
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    /// Name of the result.
    pub(crate) value: String,
}

impl Filter {
    /// Scales and shifts each output channel.
    pub(crate) fn fold(&mut self, scale: impl Fn(usize) -> f32, shift: impl Fn(usize) -> f32) {
        let per_channel = self.weights.len() / self.bias.len();
        for (channel, bias) in self.bias.iter_mut().enumerate() {
            let weights = &mut self.weights[channel * per_channel..][..per_channel];
            weights.iter_mut().for_each(|weight| *weight *= scale(channel));
            *bias = *bias * scale(channel) + shift(channel);
        }
    }
}

impl<'a> Trail<'a> {
    /// A walk that has not begun. `file` is for errors.
    pub(crate) fn new(onnx: &'a Onnx, file: &'a str) -> Self {
        Self { onnx, file, followed: vec![false; onnx.nodes.len()] }
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> EngineError {
        OnnxError(problem.into()).of(self.file)
    }

    fn find(&self, value: &str, op: &str) -> Option<usize> {
        let mut nodes = self.onnx.nodes.iter().enumerate();
        nodes
            .find(|(at, node)| !self.followed[*at] && node.op == op && node.inputs.iter().any(|input| input == value))
            .map(|(at, _)| at)
    }

    /// Whether an `op` that was not followed yet reads `value`.
    pub(crate) fn comes(&self, value: &str, op: &str) -> bool {
        self.find(value, op).is_some()
    }

    /// Follows the next `op` that reads `value`; gives the node.
    pub(crate) fn node(&mut self, value: &str, op: &str) -> Result<&'a Node, EngineError> {
        let Some(at) = self.find(value, op) else {
            let readers: Vec<&str> = self
                .onnx
                .nodes
                .iter()
                .filter(|node| node.inputs.iter().any(|input| input == value))
                .map(|node| node.op.as_str())
                .collect();
            let found = if readers.is_empty() { "nothing".into() } else { readers.join(", ") };
            return Err(self.error(format!("{op} is expected to read value {value:?}, found {found}")));
        };
        self.followed[at] = true;
        let node = &self.onnx.nodes[at];
        if node.outputs.len() != 1 {
            return Err(self.error(format!("{op} on {value:?} has {} outputs, 1 is expected", node.outputs.len())));
        }
        Ok(node)
    }

    /// As [`Trail::node`]; gives the name of its result.
    pub(crate) fn then(&mut self, value: &str, op: &str) -> Result<String, EngineError> {
        Ok(self.node(value, op)?.outputs[0].clone())
    }

    /// The tensor that is input `index` of a node.
    fn input(&self, node: &Node, index: usize) -> Result<(&'a str, &'a Tensor), EngineError> {
        let name = node.inputs.get(index).map_or("", String::as_str);
        match self.onnx.tensors.get_key_value(name) {
            Some((name, tensor)) => Ok((name, tensor)),
            None => Err(self.error(format!(
                "input {index} of {} {:?} is expected to be a constant, found {name:?}",
                node.op, node.outputs
            ))),
        }
    }

    /// The values of a constant input of this shape.
    pub(crate) fn values(&self, node: &Node, index: usize, shape: &[usize]) -> Result<&'a [f32], EngineError> {
        let (name, tensor) = self.input(node, index)?;
        match &tensor.data {
            Data::Floats(values) if tensor.shape == shape => Ok(values),
            Data::Floats(_) => {
                Err(self.error(format!("tensor {name:?} has shape {:?}, {shape:?} is expected", tensor.shape)))
            }
            Data::Ints(_) => Err(self.error(format!("tensor {name:?} is of whole numbers, floats are expected"))),
        }
    }

    /// The whole numbers of a constant input.
    pub(crate) fn whole(&self, node: &Node, index: usize) -> Result<&'a [i64], EngineError> {
        match self.input(node, index)? {
            (_, Tensor { data: Data::Ints(values), .. }) => Ok(values),
            (name, _) => Err(self.error(format!("tensor {name:?} is of floats, whole numbers are expected"))),
        }
    }

    /// The one value of the constant among a node's two inputs.
    fn scalar(&self, node: &Node) -> Result<f32, EngineError> {
        let mut constants = (0..node.inputs.len()).filter_map(|index| self.input(node, index).ok());
        match constants.next() {
            Some((_, Tensor { data: Data::Floats(values), .. })) if values.len() == 1 => Ok(values[0]),
            _ => Err(self.error(format!("{} {:?} is expected to have a constant of one value", node.op, node.outputs))),
        }
    }

    /// Follows an operation with a constant of one value; gives the constant and the result's name.
    pub(crate) fn with_scalar(&mut self, value: &str, op: &str) -> Result<(f32, String), EngineError> {
        let node = self.node(value, op)?;
        Ok((self.scalar(node)?, node.outputs[0].clone()))
    }

    /// As [`Trail::with_scalar`], for a constant that is known.
    pub(crate) fn with_known(&mut self, value: &str, op: &str, expected: f32) -> Result<String, EngineError> {
        let (found, value) = self.with_scalar(value, op)?;
        if (found - expected).abs() > 1e-6 * expected.abs().max(1e-3) {
            return Err(self.error(format!("{op} {value:?} has the constant {found}, {expected} is expected")));
        }
        Ok(value)
    }

    /// Refuses a node whose attribute isn't as expected; one that is missing has the value `absent`.
    pub(crate) fn ints(
        &self,
        node: &Node,
        name: &str,
        expected: &[usize],
        absent: &[usize],
    ) -> Result<(), EngineError> {
        let equal = |found: &[i64]| {
            found.iter().map(|value| usize::try_from(*value).ok()).eq(expected.iter().map(|value| Some(*value)))
        };
        let fits = match node.attributes.get(name) {
            None => expected == absent,
            Some(Attribute::Ints(found)) => equal(found),
            Some(Attribute::Int(found)) => equal(&[*found]),
            Some(_) => false,
        };
        if fits {
            return Ok(());
        }
        let found = node.attributes.get(name);
        Err(self.error(format!("{} {:?} has {name} {found:?}, {expected:?} is expected", node.op, node.outputs)))
    }

    /// As [`Trail::ints`], for a list that may hold negative numbers and must be there.
    pub(crate) fn signed(&self, node: &Node, name: &str, expected: &[i64]) -> Result<(), EngineError> {
        match node.attributes.get(name) {
            Some(Attribute::Ints(found)) if found == expected => Ok(()),
            found => {
                Err(self
                    .error(format!("{} {:?} has {name} {found:?}, {expected:?} is expected", node.op, node.outputs)))
            }
        }
    }

    /// Refuses a reshape to other sizes than these; `None` is one that the graph computes.
    pub(crate) fn reshape(&mut self, value: &str, expected: &[Option<i64>]) -> Result<String, EngineError> {
        let node = self.node(value, "Reshape")?;
        let maker = |name: &str| self.onnx.nodes.iter().find(|node| node.outputs.iter().any(|output| output == name));
        let joined = node.inputs.get(1).and_then(|name| maker(name)).filter(|node| node.op == "Concat");
        let sizes: Vec<Option<i64>> = joined
            .iter()
            .flat_map(|joined| &joined.inputs)
            .map(|name| match self.whole(maker(name)?, 0).ok()? {
                [size] => Some(*size),
                _ => None,
            })
            .collect();
        if sizes != expected {
            return Err(self.error(format!("Reshape {:?} is to {sizes:?}, {expected:?} is expected", node.outputs)));
        }
        Ok(node.outputs[0].clone())
    }

    /// A float attribute.
    pub(crate) fn float(&self, node: &Node, name: &str) -> Result<f32, EngineError> {
        match node.attributes.get(name) {
            Some(Attribute::Float(value)) if value.is_finite() => Ok(*value),
            found => {
                Err(self.error(format!("{} {:?} has {name} {found:?}, a float is expected", node.op, node.outputs)))
            }
        }
    }

    /// Follows a convolution, and the batch norm after it if there is one.
    pub(crate) fn conv(&mut self, value: &str, expected: Expected) -> Result<Filter, EngineError> {
        let node = self.node(value, "Conv")?;
        let Expected { inputs, outputs, size, stride, depthwise } = expected;
        let (groups, per_group) = if depthwise { (inputs, 1) } else { (1, inputs) };
        let pads = [size.0 / 2, size.1 / 2, size.0 / 2, size.1 / 2];
        self.ints(node, "kernel_shape", &[size.0, size.1], &[size.0, size.1])?;
        self.ints(node, "strides", &[stride.0, stride.1], &[1, 1])?;
        self.ints(node, "pads", &pads, &[0; 4])?;
        self.ints(node, "dilations", &[1, 1], &[1, 1])?;
        self.ints(node, "group", &[groups], &[1])?;
        if !matches!(node.attributes.get("auto_pad"), None | Some(Attribute::Text(_))) {
            return Err(self.error(format!("Conv {:?} has an auto_pad that is no text", node.outputs)));
        }
        if let Some(Attribute::Text(pad)) = node.attributes.get("auto_pad")
            && pad != "NOTSET"
        {
            return Err(self.error(format!("Conv {:?} has auto_pad {pad:?}, NOTSET is expected", node.outputs)));
        }
        let weights = self.values(node, 1, &[outputs, per_group, size.0, size.1])?.to_vec();
        let bias = match node.inputs.len() {
            2 => vec![0.0; outputs],
            _ => self.values(node, 2, &[outputs])?.to_vec(),
        };
        let mut filter = Filter { weights, bias, value: node.outputs[0].clone() };
        self.batch_norm(&mut filter)?;
        Ok(filter)
    }

    /// Follows a transposed convolution of 2×2 by 2×2, its bias and its batch norm; the weights come as [out, in, 2, 2].
    pub(crate) fn transposed(&mut self, value: &str, inputs: usize, outputs: usize) -> Result<Filter, EngineError> {
        let node = self.node(value, "ConvTranspose")?;
        self.ints(node, "strides", &[2, 2], &[1, 1])?;
        self.ints(node, "pads", &[0; 4], &[0; 4])?;
        self.ints(node, "dilations", &[1, 1], &[1, 1])?;
        self.ints(node, "group", &[1], &[1])?;
        self.ints(node, "output_padding", &[0, 0], &[0, 0])?;
        let weights = self.values(node, 1, &[inputs, outputs, 2, 2])?;
        let mut turned = Vec::with_capacity(weights.len());
        for out in 0..outputs {
            for input in 0..inputs {
                turned.extend_from_slice(&weights[(input * outputs + out) * 4..][..4]);
            }
        }
        let mut filter = Filter { weights: turned, bias: vec![0.0; outputs], value: node.outputs[0].clone() };
        self.late_bias(&mut filter)?;
        self.batch_norm(&mut filter)?;
        Ok(filter)
    }

    /// Folds a batch norm that reads the filter's result, if one does.
    pub(crate) fn batch_norm(&mut self, filter: &mut Filter) -> Result<(), EngineError> {
        if !self.comes(&filter.value, "BatchNormalization") {
            return Ok(());
        }
        let node = self.node(&filter.value, "BatchNormalization")?;
        let shape = [filter.bias.len()];
        let (gamma, beta) = (self.values(node, 1, &shape)?, self.values(node, 2, &shape)?);
        let (mean, variance) = (self.values(node, 3, &shape)?, self.values(node, 4, &shape)?);
        let epsilon = self.float(node, "epsilon")?;
        if variance.iter().any(|variance| *variance + epsilon <= 0.0) {
            return Err(self.error(format!("batch norm {:?} has a negative variance", node.outputs)));
        }
        let scale = |channel: usize| gamma[channel] / (variance[channel] + epsilon).sqrt();
        filter.fold(scale, |channel| beta[channel] - mean[channel] * scale(channel));
        filter.value.clone_from(&node.outputs[0]);
        Ok(())
    }

    /// Refuses a file with arithmetic that was not followed, or with another result.
    pub(crate) fn finish(&self, value: &str) -> Result<(), EngineError> {
        let left = self.onnx.nodes.iter().zip(&self.followed);
        let mut left = left.filter(|(node, followed)| !**followed && !PLUMBING.contains(&node.op.as_str()));
        if let Some((node, _)) = left.next() {
            return Err(self.error(format!("has {} {:?}, which the network doesn't have", node.op, node.outputs)));
        }
        if self.onnx.outputs != [value] {
            return Err(
                self.error(format!("gives {:?}, {value:?} is expected to be its one result", self.onnx.outputs))
            );
        }
        Ok(())
    }
}
