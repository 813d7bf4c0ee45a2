//! The only crate that compiles candle: opens model folders and runs them behind the seam of `ingle-engine`.
//!
//! Threads. Our own loops and candle's matrix products run in one rayon pool of [`CandleEngine::new`]'s size. What candle does with
//! each value of large tensors uses a pool of its own, which is made at the first use in the process and takes its size from the environment
//! alone: set `CANDLE_NUM_THREADS` (else `RAYON_NUM_THREADS`, else the physical cores count) before the process starts to bound it.

mod embed;
mod floats;
mod folder;
mod llm;
mod memory;
pub mod ocr;
mod panel;
mod pool;
pub mod weights;

use std::path::Path;
use std::sync::{Arc, Mutex};

use ingle_engine::{Engine, EngineError, LoadOptions, Model, ModelCard};

use crate::pool::Pool;

/// Threads at most, whatever is asked for.
const THREADS_MAX: usize = 1024;

type Inspect = fn(&Path) -> Result<ModelCard, EngineError>;
type Load = fn(&LoadOptions, Arc<Pool>) -> Result<Box<dyn Model>, EngineError>;

/// One way to run a folder's model.
struct Architecture {
    /// `general.architecture` of a GGUF, `model_type` of config.json, or our own for what has none.
    name: &'static str,
    inspect: Inspect,
    load: Load,
}

/// Models in GGUF files.
const GGUF: [Architecture; 1] = [Architecture { name: "llama", inspect: llm::inspect, load: llm::load }];

/// Models in safetensors with config.json.
const SAFETENSORS: [Architecture; 1] = [Architecture { name: "bert", inspect: embed::inspect, load: embed::load }];

/// Networks in ONNX files that read pages.
const OCR: [Architecture; 1] = [Architecture { name: "pp-ocrv4", inspect: ocr::inspect, load: ocr::load }];

/// Candle on the CPU.
pub struct CandleEngine {
    threads: usize,
    pools: Mutex<Vec<Arc<Pool>>>,
}

impl CandleEngine {
    /// `threads` bounds the compute threads of each model; [`LoadOptions::threads`] may ask for fewer.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { threads: threads.clamp(1, THREADS_MAX), pools: Mutex::new(Vec::new()) }
    }

    /// Models of one size share a pool.
    fn pool(&self, threads: usize) -> Result<Arc<Pool>, EngineError> {
        let threads = threads.clamp(1, self.threads);
        let mut pools = self.pools.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(pool) = pools.iter().find(|pool| pool.size() == threads) {
            return Ok(Arc::clone(pool));
        }
        let pool = Pool::new(threads)
            .map_err(|error| EngineError::Compute(format!("{threads} compute threads can't be started: {error}")))?;
        let pool = Arc::new(pool);
        pools.push(Arc::clone(&pool));
        Ok(pool)
    }
}

impl Engine for CandleEngine {
    fn backend(&self) -> String {
        concat!("candle-0.11.1-cpu-", env!("CARGO_PKG_VERSION")).into()
    }

    fn files(&self, names: &[String]) -> Option<Vec<String>> {
        folder::files(names)
    }

    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError> {
        (architecture(dir)?.inspect)(dir)
    }

    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError> {
        let architecture = architecture(&options.dir)?;
        (architecture.load)(options, self.pool(options.threads)?)
    }
}

fn architecture(dir: &Path) -> Result<&'static Architecture, EngineError> {
    let found = folder::find(&folder::names(dir)?);
    let (file, name, table) = match found {
        Err(problem) => return Err(EngineError::Model { file: ".".into(), problem }),
        Ok(folder::Found::Gguf(file)) => {
            let name = llm::architecture_name(dir, &file)?;
            (file, name, &GGUF)
        }
        Ok(folder::Found::Safetensors) => ("config.json".into(), embed::architecture_name(dir)?, &SAFETENSORS),
        // Their graphs are compared with the one that is known when they are read.
        Ok(folder::Found::Ocr(files)) => (files.detector, "pp-ocrv4".into(), &OCR),
    };
    table.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        let known: Vec<_> = table.iter().map(|architecture| architecture.name).collect();
        EngineError::Model { file, problem: format!("architecture {name:?} can't be run, {} can", known.join(", ")) }
    })
}

/// An error of candle's.
pub(crate) fn compute(error: candle_core::Error) -> EngineError {
    EngineError::Compute(error.to_string())
}
