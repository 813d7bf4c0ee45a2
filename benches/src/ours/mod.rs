//! Our engine alone, without any daemon around it.

pub(crate) mod embed;
pub(crate) mod llm;
pub(crate) mod ocr;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ingle_engine::{Class, Engine, LoadOptions, Model, Output, Request, RequestId, Step, Task};
use ingle_engine_candle::CandleEngine;

/// A loaded model, driven as the node's executor drives it.
pub(crate) struct Alone {
    model: Box<dyn Model>,
    next: u64,
}

impl Alone {
    /// Loads the first model below `models` that does `task`.
    pub(crate) fn load(models: &Path, task: Task, threads: usize, context: u32) -> anyhow::Result<Self> {
        let engine = CandleEngine::new(threads);
        let dir = find(&engine, models, task)?;
        let options = LoadOptions { dir: dir.clone(), threads, context, slots: 1 };
        let model = engine.load(&options).with_context(|| format!("loading {}", dir.display()))?;
        Ok(Self { model, next: 0 })
    }

    /// Runs one request to its end; what came of it is handed to `see` as it comes.
    pub(crate) fn run(&mut self, request: Request, mut see: impl FnMut(&Output)) -> anyhow::Result<()> {
        self.next += 1;
        let id = RequestId(self.next);
        self.model.join(id, Class::Interactive, request)?;
        let mut out = Vec::new();
        loop {
            let step = self.model.step(&mut out)?;
            for output in out.drain(..) {
                see(&output);
                match output {
                    Output::Done { .. } => return Ok(()),
                    Output::Failed { error, .. } => return Err(error.into()),
                    _ => {}
                }
            }
            anyhow::ensure!(step == Step::Busy, "the model fell idle before the request was done");
        }
    }
}

/// The folder of the first model that does `task`, in the order of names.
pub(crate) fn find(engine: &dyn Engine, models: &Path, task: Task) -> anyhow::Result<PathBuf> {
    let mut open = vec![models.to_path_buf()];
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("{}: fetch the starter models with tests/setup/models.py", folder.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if engine.files(&names).is_some() && engine.inspect(&folder).is_ok_and(|card| card.task == task) {
            return Ok(folder);
        }
    }
    anyhow::bail!("{} holds no model for {task:?}", models.display())
}
