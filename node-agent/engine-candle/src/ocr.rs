//! Pages to text: the PP-OCRv4 networks, and everything around them.
//!
//! The networks (`detect`, `recognise`, `orient`) turn floats into floats. `reading` knows the way of a page: it says what to compute next
//! and takes the answer, so that nothing around the networks depends on them. `model` joins the two.

mod activation;
mod blanks;
mod blocks;
mod classify;
mod compose;
mod conv;
mod ctc;
mod depthwise;
mod detect;
mod files;
mod geometry;
mod graph;
mod head;
mod ink;
mod lines;
mod map;
mod model;
mod net;
mod onnx;
mod orient;
mod orientation;
mod pool;
mod postprocess;
mod prepare;
mod product;
mod pyramid;
mod reading;
mod reading_order;
mod recognise;
mod separable;
mod shapes;
mod squeeze;
mod tokens;
mod transformer;

use std::path::Path;
use std::sync::Arc;

use ingle_engine::{EngineError, LoadOptions, Model, ModelCard};

use crate::pool::Pool;

pub use detect::{Detection, Detector, PIXELS_MAX, SIDE_STEP};
pub(crate) use files::{Files, files};
pub use orient::{HEIGHT, LINES_MAX, Orientation, Orienter, WIDTH};
pub use recognise::{COLUMNS_MAX, Column, LINE_HEIGHT, LINE_WIDTH_MIN, Recogniser, Recognition};

/// What is known of a folder's model.
///
/// # Errors
/// [`EngineError::Model`] names the file and what is wrong with it.
pub(crate) fn inspect(dir: &Path) -> Result<ModelCard, EngineError> {
    files::read(dir)?.card()
}

/// Builds the networks.
///
/// # Errors
/// As [`inspect`], and [`EngineError::Memory`].
pub(crate) fn load(options: &LoadOptions, pool: Arc<Pool>) -> Result<Box<dyn Model>, EngineError> {
    let bytes = files::read(&options.dir)?;
    let card = bytes.card()?;
    crate::memory::require(model::memory_bytes(&card))?;
    let networks = pool.run(|_| model::Networks::load(&bytes))?;
    Ok(Box::new(model::OcrModel::new(card, networks, pool, options.slots)))
}
