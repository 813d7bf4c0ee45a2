//! Checked reader of ONNX files: nodes, constant tensors and metadata, nothing else of the format.
//!
//! Only the fields that the OCR networks need are read from the protocol buffer (onnx.proto3, IR versions 3 to 10); others are
//! skipped. Every length is checked against the bytes that are left before anything is taken, and every count against a limit.

mod wire;

use std::collections::BTreeMap;

use ingle_engine::EngineError;
use wire::{Fields, Value, bad};

/// Longest file read; the largest known one has 11 MB.
pub(crate) const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most nodes of a graph; the largest known one has 860.
const NODES_MAX: usize = 20_000;
/// Most inputs, outputs or attributes of one node.
const NODE_PARTS_MAX: usize = 64;
/// Longest name of a node, value or attribute, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 8;
/// Most values of a list of whole numbers; only weights are longer, and they are floats.
const INTS_MAX: usize = 1 << 16;
/// Most entries of the metadata.
const METADATA_MAX: usize = 256;

/// What is wrong with a file, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OnnxError(pub(crate) String);

impl OnnxError {
    /// The engine's error for this file.
    pub(crate) fn of(self, file: &str) -> EngineError {
        EngineError::Model { file: file.into(), problem: self.0 }
    }
}

/// A tensor's values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    /// 32-bit floats, all finite.
    Floats(Vec<f32>),
    /// 32- and 64-bit whole numbers.
    Ints(Vec<i64>),
}

/// A constant of the graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    /// Empty for a scalar.
    pub(crate) shape: Vec<usize>,
    /// As many values as the shape says.
    pub(crate) data: Data,
}

/// An attribute of a node, if it is of a kind that is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attribute {
    Float(f32),
    Int(i64),
    Text(String),
    Ints(Vec<i64>),
}

/// One operation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Node {
    pub(crate) op: String,
    /// Names of values.
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) attributes: BTreeMap<String, Attribute>,
    /// The tensor of a `Constant`.
    constant: Option<Tensor>,
}

/// A graph's contents. Constants, reshaped ones, and identities are resolved already: `nodes` holds none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Onnx {
    /// In the file's order, which is topological.
    pub(crate) nodes: Vec<Node>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Names of the graph's outputs.
    pub(crate) outputs: Vec<String>,
}

impl Onnx {
    /// Reads a whole file's bytes.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, OnnxError> {
        let mut onnx = Self::default();
        let mut graphs = 0;
        for field in Fields::new(bytes, "the model") {
            match field? {
                (7, Value::Bytes(graph)) => {
                    graphs += 1;
                    onnx.graph(graph)?;
                }
                (14, Value::Bytes(entry)) => onnx.metadata_entry(entry)?,
                _ => {}
            }
        }
        if graphs != 1 {
            return bad(format!("has {graphs} graphs, one is expected: is it an ONNX file?"));
        }
        onnx.resolve()?;
        Ok(onnx)
    }

    fn graph(&mut self, bytes: &[u8]) -> Result<(), OnnxError> {
        for field in Fields::new(bytes, "the graph") {
            match field? {
                (1, Value::Bytes(node)) => {
                    if self.nodes.len() == NODES_MAX {
                        return bad(format!("has more than {NODES_MAX} nodes"));
                    }
                    self.nodes.push(read_node(node)?);
                }
                (5, Value::Bytes(tensor)) => {
                    let (name, tensor) = read_tensor(tensor)?;
                    self.add_tensor(name, tensor)?;
                }
                (12, Value::Bytes(output)) => {
                    if self.outputs.len() == NODE_PARTS_MAX {
                        return bad(format!("has more than {NODE_PARTS_MAX} outputs"));
                    }
                    for field in Fields::new(output, "an output") {
                        if let (1, Value::Bytes(text)) = field? {
                            self.outputs.push(name(text)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_tensor(&mut self, name: String, tensor: Tensor) -> Result<(), OnnxError> {
        if self.tensors.len() == NODES_MAX {
            return bad(format!("has more than {NODES_MAX} tensors"));
        }
        match self.tensors.insert(name.clone(), tensor) {
            None => Ok(()),
            Some(_) => bad(format!("tensor {name:?} is there twice")),
        }
    }

    fn metadata_entry(&mut self, bytes: &[u8]) -> Result<(), OnnxError> {
        let (mut key, mut text) = (String::new(), String::new());
        for field in Fields::new(bytes, "an entry of the metadata") {
            match field? {
                (1, Value::Bytes(bytes)) => key = name(bytes)?,
                (2, Value::Bytes(bytes)) => text = utf8(bytes)?.to_string(),
                _ => {}
            }
        }
        if self.metadata.len() == METADATA_MAX {
            return bad(format!("has more than {METADATA_MAX} entries of metadata"));
        }
        self.metadata.insert(key, text);
        Ok(())
    }

    /// A constant in another shape, which must be said in full.
    fn reshaped(&self, input: &str, shape: &str) -> Result<Tensor, OnnxError> {
        let (Some(tensor), Some(Tensor { data: Data::Ints(to), .. })) =
            (self.tensors.get(input), self.tensors.get(shape))
        else {
            return bad(format!("constant {input:?} is reshaped by {shape:?}, which is no constant of whole numbers"));
        };
        let to: Vec<usize> = to.iter().map_while(|dimension| usize::try_from(*dimension).ok()).collect();
        let product =
            |shape: &[usize]| shape.iter().try_fold(1usize, |product, dimension| product.checked_mul(*dimension));
        if to.len() > DIMENSIONS_MAX || product(&to) != product(&tensor.shape) {
            return bad(format!("constant {input:?} of shape {:?} is reshaped to {to:?}", tensor.shape));
        }
        Ok(Tensor { shape: to, data: tensor.data.clone() })
    }

    /// Turns `Constant` nodes and reshaped constants into tensors, and names that `Identity` nodes give into what they stand for.
    fn resolve(&mut self) -> Result<(), OnnxError> {
        let mut stands_for: BTreeMap<String, String> = BTreeMap::new();
        for mut node in std::mem::take(&mut self.nodes) {
            for input in &mut node.inputs {
                if let Some(original) = stands_for.get(input) {
                    input.clone_from(original);
                }
            }
            match (node.op.as_str(), node.inputs.as_slice(), node.outputs.as_slice()) {
                ("Constant", _, [output]) => {
                    let Some(tensor) = node.constant.take() else {
                        return bad(format!("constant {output:?} is no tensor of floats or whole numbers"));
                    };
                    self.add_tensor(output.clone(), tensor)?;
                }
                ("Reshape", [input, shape], [output]) if self.tensors.contains_key(input) => {
                    let reshaped = self.reshaped(input, shape)?;
                    self.add_tensor(output.clone(), reshaped)?;
                }
                ("Identity", [input], [output]) => {
                    stands_for.insert(output.clone(), input.clone());
                }
                _ => self.nodes.push(node),
            }
        }
        for output in &mut self.outputs {
            if let Some(original) = stands_for.get(output) {
                output.clone_from(original);
            }
        }
        Ok(())
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, OnnxError> {
    std::str::from_utf8(bytes).or_else(|error| bad(format!("has text that is not UTF-8: {error}")))
}

fn name(bytes: &[u8]) -> Result<String, OnnxError> {
    if bytes.len() > NAME_BYTES_MAX {
        return bad(format!("has a name of {} bytes, at most {NAME_BYTES_MAX} are read", bytes.len()));
    }
    Ok(utf8(bytes)?.to_string())
}

fn read_node(bytes: &[u8]) -> Result<Node, OnnxError> {
    let mut node = Node::default();
    for field in Fields::new(bytes, "a node") {
        match field? {
            (1, Value::Bytes(text)) => node.inputs.push(name(text)?),
            (2, Value::Bytes(text)) => node.outputs.push(name(text)?),
            (4, Value::Bytes(text)) => node.op = name(text)?,
            (5, Value::Bytes(attribute)) => read_attribute(attribute, &mut node)?,
            _ => {}
        }
        if node.inputs.len().max(node.outputs.len()).max(node.attributes.len()) > NODE_PARTS_MAX {
            return bad(format!("has a node of more than {NODE_PARTS_MAX} inputs, outputs or attributes"));
        }
    }
    Ok(node)
}

fn read_attribute(bytes: &[u8], node: &mut Node) -> Result<(), OnnxError> {
    let mut key = String::new();
    let mut attribute = None;
    let mut ints = Vec::new();
    for field in Fields::new(bytes, "an attribute") {
        match field? {
            (1, Value::Bytes(text)) => key = name(text)?,
            (2, Value::Fixed32(bytes)) => attribute = Some(Attribute::Float(f32::from_le_bytes(bytes))),
            (3, Value::Varint(value)) => attribute = Some(Attribute::Int(value.cast_signed())),
            (4, Value::Bytes(text)) => attribute = Some(Attribute::Text(name(text)?)),
            (5, Value::Bytes(tensor)) => node.constant = Some(read_tensor(tensor)?.1),
            (8, value) => value.whole_numbers(&mut ints)?,
            _ => {}
        }
    }
    if !ints.is_empty() {
        attribute = Some(Attribute::Ints(ints));
    }
    if let Some(attribute) = attribute {
        node.attributes.insert(key, attribute);
    }
    Ok(())
}

fn read_tensor(bytes: &[u8]) -> Result<(String, Tensor), OnnxError> {
    let (mut called, mut kind) = (String::new(), 0);
    let (mut dimensions, mut floats, mut ints) = (Vec::new(), Vec::new(), Vec::new());
    let mut raw = None;
    for field in Fields::new(bytes, "a tensor") {
        match field? {
            (1, value) => value.whole_numbers(&mut dimensions)?,
            (2, Value::Varint(value)) => kind = value,
            (4, value) => value.floats(&mut floats)?,
            (5 | 7, value) => value.whole_numbers(&mut ints)?,
            (8, Value::Bytes(text)) => called = name(text)?,
            (9, Value::Bytes(bytes)) => raw = Some(bytes),
            (13 | 14, _) => return bad(format!("tensor {called:?} keeps its values in another file")),
            _ => {}
        }
    }
    let shape = shape(&called, &dimensions)?;
    let data = match (kind, raw) {
        (1, None) => Data::Floats(floats),
        (1, Some(raw)) => Data::Floats(numbers(&called, raw, f32::from_le_bytes)?),
        (6 | 7, None) => Data::Ints(ints),
        (6, Some(raw)) => Data::Ints(numbers(&called, raw, |bytes| i64::from(i32::from_le_bytes(bytes)))?),
        (7, Some(raw)) => Data::Ints(numbers(&called, raw, i64::from_le_bytes)?),
        (other, _) => return bad(format!("tensor {called:?} is of kind {other}; floats and whole numbers are read")),
    };
    let found = match &data {
        Data::Floats(values) if !values.iter().all(|value| value.is_finite()) => {
            return bad(format!("tensor {called:?} has a value that is not finite"));
        }
        Data::Floats(values) => values.len(),
        Data::Ints(values) => values.len(),
    };
    let expected = shape.iter().try_fold(1usize, |product, dimension| product.checked_mul(*dimension));
    if expected != Some(found) {
        return bad(format!("tensor {called:?} of shape {shape:?} has {found} values"));
    }
    Ok((called, Tensor { shape, data }))
}

fn shape(called: &str, dimensions: &[i64]) -> Result<Vec<usize>, OnnxError> {
    if dimensions.len() > DIMENSIONS_MAX {
        return bad(format!(
            "tensor {called:?} has {} dimensions, at most {DIMENSIONS_MAX} are read",
            dimensions.len()
        ));
    }
    dimensions
        .iter()
        .map(|dimension| usize::try_from(*dimension))
        .collect::<Result<_, _>>()
        .or_else(|_| bad(format!("tensor {called:?} has a negative dimension: {dimensions:?}")))
}

fn numbers<T, const N: usize>(called: &str, raw: &[u8], convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>, OnnxError> {
    let (whole, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return bad(format!("tensor {called:?} has {} bytes, which is no multiple of {N}", raw.len()));
    }
    Ok(whole.iter().map(|bytes| convert(*bytes)).collect())
}

#[cfg(test)]
mod tests;
