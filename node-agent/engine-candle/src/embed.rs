//! Encoders that turn text into vectors: the BERT family as sentence-transformers packs it.

mod bert;
pub(crate) mod math;
mod model;
mod settings;
mod texts;

use std::path::Path;
use std::sync::Arc;

use ingle_engine::{EngineError, LoadOptions, Model, ModelCard};

use crate::pool::Pool;

/// `model_type` of config.json.
///
/// # Errors
/// [`EngineError::Model`] if there is none.
pub(crate) fn architecture_name(dir: &Path) -> Result<String, EngineError> {
    #[derive(serde::Deserialize)]
    struct Config {
        model_type: String,
    }
    crate::weights::file::read_json(dir, "config.json").map(|config: Config| config.model_type)
}

/// What is known from the folder's small files and headers.
///
/// # Errors
/// [`EngineError::Model`] names the file and what is wrong with it.
pub(crate) fn inspect(dir: &Path) -> Result<ModelCard, EngineError> {
    let settings = settings::Settings::read(dir)?;
    let weights = bert::Places::read(dir, &settings)?;
    Ok(model::card(&settings, &weights))
}

/// Loads the weights.
///
/// # Errors
/// As [`inspect`], and [`EngineError::Memory`].
pub(crate) fn load(options: &LoadOptions, pool: Arc<Pool>) -> Result<Box<dyn Model>, EngineError> {
    let settings = settings::Settings::read(&options.dir)?;
    let texts =
        texts::Texts::read(&options.dir, settings.max_tokens.min(options.context as usize), settings.vocabulary)?;
    let places = bert::Places::read(&options.dir, &settings)?;
    let card = model::card(&settings, &places);
    crate::memory::require(card.weight_bytes + card.weight_bytes / 20 + model::ACTIVATION_BYTES)?;
    let network = pool.run(|_| bert::Network::load(&places, &settings))?;
    Ok(Box::new(model::EmbedModel::new(card, settings, Arc::new(texts), network, pool, options.slots)))
}
