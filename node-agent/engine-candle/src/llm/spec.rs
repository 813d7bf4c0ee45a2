//! The network's shape as the GGUF's metadata gives it, every number in its range and every tensor of the shape that follows.

use ingle_engine::{ModelCard, Task};

use super::matrix;
use super::network::SLOWER;
use crate::weights::gguf::Header;
use crate::weights::{HeaderError, bad};

/// Most positions, so that the table of their turns stays below 128 MiB for heads of 256.
const CONTEXT_MAX: usize = 1 << 17;

/// Shape of a llama decoder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
    pub(crate) vocabulary: usize,
    /// Tokens of prompt and answer together.
    pub(crate) context: usize,
    pub(crate) rope_base: f32,
    /// Positions are divided by it.
    pub(crate) rope_factor: f32,
    pub(crate) epsilon: f32,
}

impl Spec {
    /// Reads and checks `llama.*`.
    pub(crate) fn read(header: &Header) -> Result<Self, HeaderError> {
        let number = |key: &str, most: u32| number(header, &format!("llama.{key}"), most);
        let layers = number("block_count", 1024)?;
        let width = number("embedding_length", 1 << 16)?;
        let inner = number("feed_forward_length", 1 << 18)?;
        let heads = number("attention.head_count", 1024)?;
        let kv_heads = match header.metadata.get("llama.attention.head_count_kv") {
            Some(_) => number("attention.head_count_kv", 1024)?,
            None => heads,
        };
        let context = number("context_length", u32::MAX)?.min(CONTEXT_MAX);
        if !width.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) || !(width / heads).is_multiple_of(2) {
            return bad(format!(
                "{heads} heads, {kv_heads} of them for keys and values, don't divide a width of {width} into even parts"
            ));
        }
        let head_size = width / heads;
        for key in ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"] {
            if let Some(value) = header.number(key)
                && value as usize != head_size
            {
                return bad(format!("{key} is {value}, only the size of a head, {head_size}, can be run"));
            }
        }
        if header.number("llama.expert_count").is_some_and(|experts| experts > 1) {
            return bad("mixtures of experts can't be run");
        }
        let rope_factor = match header.text("llama.rope.scaling.type") {
            Some("none") => 1.0,
            // Files from before there was a type have a key of their own.
            None | Some("linear") => match header.metadata.contains_key("llama.rope.scaling.factor") {
                true => positive(header, "llama.rope.scaling.factor", 1.0)?,
                false => positive(header, "llama.rope.scale_linear", 1.0)?,
            },
            Some(other) => {
                return bad(format!(
                    "llama.rope.scaling.type is {other:?}, rotary positions can be scaled by \"linear\" or by {SLOWER}"
                ));
            }
        };
        if let Some(name) = header.tensors.keys().find(|name| name.ends_with(".bias")) {
            return bad(format!("tensor {name:?}: biases can't be run"));
        }
        let Some(table) = header.tensors.get("token_embd.weight") else {
            return bad("has no tensor \"token_embd.weight\"");
        };
        let spec = Self {
            layers,
            width,
            inner,
            heads,
            kv_heads,
            head_size,
            vocabulary: table.shape[0],
            context,
            rope_base: positive(header, "llama.rope.freq_base", 10_000.0)?,
            rope_factor,
            epsilon: positive(header, "llama.attention.layer_norm_rms_epsilon", 1e-5)?,
        };
        spec.check_tensors(header)?;
        Ok(spec)
    }

    fn check_tensors(&self, header: &Header) -> Result<(), HeaderError> {
        let kv = self.kv_heads * self.head_size;
        let (width, inner) = (self.width, self.inner);
        check(header, "token_embd.weight", &[self.vocabulary, width])?;
        check(header, "output_norm.weight", &[width])?;
        if header.tensors.contains_key("output.weight") {
            check(header, "output.weight", &[self.vocabulary, width])?;
        }
        if header.tensors.contains_key(SLOWER) {
            check(header, SLOWER, &[self.head_size / 2])?;
        }
        for layer in 0..self.layers {
            for (name, shape) in [
                ("attn_q", &[width, width][..]),
                ("attn_k", &[kv, width]),
                ("attn_v", &[kv, width]),
                ("attn_output", &[width, width]),
                ("ffn_gate", &[inner, width]),
                ("ffn_up", &[inner, width]),
                ("ffn_down", &[width, inner]),
                ("attn_norm", &[width]),
                ("ffn_norm", &[width]),
            ] {
                check(header, &format!("blk.{layer}.{name}.weight"), shape)?;
            }
        }
        Ok(())
    }

    /// Bytes of KV cache for one token: keys and values of every layer, 32 bits each.
    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        (self.layers * 2 * self.kv_heads * self.head_size * 4) as u64
    }

    /// Bytes of the loaded weights as they are held, and of the positions' turns.
    pub(crate) fn loaded_bytes(&self, header: &Header) -> u64 {
        held_bytes(header) + (self.context * self.head_size * 4) as u64
    }

    /// Bytes needed at most: weights, caches of all slots, buffers.
    pub(crate) fn memory_bytes(&self, header: &Header, slots: u32) -> u64 {
        let kv = self.kv_bytes_per_token().saturating_mul(self.context as u64).saturating_mul(u64::from(slots));
        let weights = self.loaded_bytes(header);
        // While a tensor is packed, the file's bytes of it are there too, of halves and floats twice.
        let packing = header.tensors.values().map(|place| place.length).max().unwrap_or(0).saturating_mul(2);
        weights.saturating_add(weights / 20).saturating_add(packing).saturating_add(kv).saturating_add(32 << 20)
    }

    /// The model's card.
    pub(crate) fn card(&self, header: &Header) -> ModelCard {
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        // With an output matrix of its own, only one row of the token table is read per token.
        let unread = match header.tensors.get("token_embd.weight") {
            Some(table) if header.tensors.contains_key("output.weight") => matrix::bytes(table),
            _ => 0,
        };
        ModelCard {
            task: Task::Generate,
            architecture: "llama".into(),
            quantisation: most_used(header).into(),
            parameters: header.tensors.values().map(|place| place.shape.iter().product::<usize>() as u64).sum(),
            weight_bytes: header.tensors.values().map(|place| place.length).sum(),
            bytes_per_token: held_bytes(header) - unread,
            kv_bytes_per_token: self.kv_bytes_per_token(),
            context: small(self.context),
            dimensions: 0,
            layers: small(self.layers),
            width: small(self.width),
        }
    }
}

fn held_bytes(header: &Header) -> u64 {
    header.tensors.values().map(matrix::bytes).sum()
}

/// The storage that most bytes of the layers have.
fn most_used(header: &Header) -> &'static str {
    let mut bytes: std::collections::BTreeMap<&'static str, u64> = std::collections::BTreeMap::new();
    for (_, place) in header.tensors.iter().filter(|(name, _)| name.starts_with("blk.")) {
        *bytes.entry(place.quantisation.name).or_default() += place.length;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("F32", |(name, _)| name)
}

fn number(header: &Header, key: &str, most: u32) -> Result<usize, HeaderError> {
    match header.number(key) {
        Some(value) if (1..=most).contains(&value) => Ok(value as usize),
        Some(value) => bad(format!("{key} must be between 1 and {most}, found {value}")),
        None => bad(format!("{key} must be a whole number, found {:?}", header.metadata.get(key))),
    }
}

fn positive(header: &Header, key: &str, default: f64) -> Result<f32, HeaderError> {
    let whole = || header.number(key).map(f64::from);
    let value = match header.metadata.get(key) {
        None => default,
        Some(held) => header
            .float(key)
            .or_else(whole)
            .ok_or_else(|| HeaderError(format!("{key} must be a number, found {held:?}")))?,
    };
    // As it will be used; NaN is no part of the range.
    let range = 1e-30..1e12;
    if range.contains(&value) {
        Ok(value as f32)
    } else {
        bad(format!("{key} must be between 1e-30 and 1e12, found {value}"))
    }
}

fn check(header: &Header, name: &str, shape: &[usize]) -> Result<(), HeaderError> {
    match header.tensors.get(name) {
        None => bad(format!("has no tensor {name:?}")),
        Some(place) if place.shape != shape => {
            bad(format!("tensor {name:?} has shape {:?}, the metadata asks for {shape:?}", place.shape))
        }
        Some(_) => Ok(()),
    }
}
