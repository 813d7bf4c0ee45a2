//! Language models from GGUF files of the llama family, over packed matrices.

mod attention;
mod decoder;
mod kernels;
mod kinds;
mod matrix;
mod model;
mod network;
mod packed;
mod pymethods;
#[cfg(test)]
mod reference;
mod sample;
mod sequence;
mod spec;
mod team;
mod template;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use ingle_engine::{EngineError, LoadOptions, Model, ModelCard};

use crate::pool::Pool;
use crate::weights::file::WeightFile;
use crate::weights::gguf::{Header, read_header};

/// `general.architecture` of the file.
///
/// # Errors
/// [`EngineError::Model`] if the header is malformed or doesn't say.
pub(crate) fn architecture_name(dir: &Path, file: &str) -> Result<String, EngineError> {
    let header = header(&WeightFile::open(dir, file)?)?;
    header
        .text("general.architecture")
        .map(String::from)
        .ok_or_else(|| EngineError::Model { file: file.into(), problem: "has no general.architecture".into() })
}

/// What the header alone says.
///
/// # Errors
/// [`EngineError::Model`] names what is wrong.
pub(crate) fn inspect(dir: &Path) -> Result<ModelCard, EngineError> {
    let file = open(dir)?;
    let header = header(&file)?;
    let spec = spec::Spec::read(&header).map_err(|error| error.of(file.name()))?;
    // Found out now rather than at the first load.
    vocabulary::Vocabulary::check(&header).map_err(|error| error.of(file.name()))?;
    Ok(spec.card(&header))
}

/// Loads the weights.
///
/// # Errors
/// As [`inspect`], and [`EngineError::Memory`].
pub(crate) fn load(options: &LoadOptions, pool: Arc<Pool>) -> Result<Box<dyn Model>, EngineError> {
    let file = open(&options.dir)?;
    let header = header(&file)?;
    let mut spec = spec::Spec::read(&header).map_err(|error| error.of(file.name()))?;
    spec.context = spec.context.min(options.context.max(1) as usize);
    let slots = options.slots.max(1);
    crate::memory::require(spec.memory_bytes(&header, slots))?;
    let vocabulary = vocabulary::Vocabulary::read(&header, &spec).map_err(|error| error.of(file.name()))?;
    let template = template::Template::read(&header).map_err(|error| error.of(file.name()))?;
    let network = Arc::new(network::Network::load(&pool, &file, &header, &spec)?);
    Ok(Box::new(model::LanguageModel::new(&header, spec, Arc::new(vocabulary), template, network, pool, slots)))
}

fn open(dir: &Path) -> Result<WeightFile, EngineError> {
    match crate::folder::find(&crate::folder::names(dir)?) {
        Ok(crate::folder::Found::Gguf(name)) => WeightFile::open(dir, &name),
        Ok(_) => Err(EngineError::Model { file: ".".into(), problem: "a GGUF file was expected".into() }),
        Err(problem) => Err(EngineError::Model { file: ".".into(), problem }),
    }
}

fn header(file: &WeightFile) -> Result<Header, EngineError> {
    read_header(file.reader(), file.length()).map_err(|error| error.of(file.name()))
}
