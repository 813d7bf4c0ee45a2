//! Programs that do the same, run beside us: found or named as missing, never guessed.

pub(crate) mod llama_cpp;
pub(crate) mod ocr;
pub(crate) mod onnx;
pub(crate) mod python;
