//! Checked readers of model files: every count, length, offset and product is proven against the file's length before
//! candle sees a byte. Safetensors and GGUF only, never pickle.

pub mod file;
pub mod gguf;
pub mod safetensors;

use ingle_engine::EngineError;

/// Most tensors of one file.
pub const TENSORS_MAX: u64 = 100_000;
/// Longest name of a tensor or key, in bytes.
pub const NAME_BYTES_MAX: u64 = 64 << 10;

/// What is wrong with a header, in a sentence; [`HeaderError::of`] adds the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HeaderError(pub String);

impl HeaderError {
    /// The error of the engine for this file.
    #[must_use]
    pub fn of(self, file: &str) -> EngineError {
        EngineError::Model { file: file.into(), problem: self.0 }
    }
}

pub(crate) fn bad<T>(problem: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError(problem.into()))
}

/// Product of dimensions; refuses none at all, a zero one, and overflow.
pub(crate) fn elements(name: &str, shape: &[u64]) -> Result<u64, HeaderError> {
    if shape.is_empty() {
        return bad(format!("tensor {name:?} has no dimensions"));
    }
    let mut product = 1u64;
    for dimension in shape {
        if *dimension == 0 {
            return bad(format!("tensor {name:?} has a dimension of zero: {shape:?}"));
        }
        let Some(next) = product.checked_mul(*dimension) else {
            return bad(format!("the dimensions of tensor {name:?} overflow: {shape:?}"));
        };
        product = next;
    }
    Ok(product)
}

/// Refuses tensors that share bytes. `ranges` are (begin, end, name).
pub(crate) fn refuse_overlap(ranges: &mut [(u64, u64, &str)]) -> Result<(), HeaderError> {
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(_, end, first), (begin, _, second)] = pair else { continue };
        if begin < end {
            return bad(format!("tensors {first:?} and {second:?} overlap at byte {begin}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
