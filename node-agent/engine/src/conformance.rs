//! What every engine must do, as a suite that each one runs over its own models; a failing check panics with what was expected.
//!
//! Called from tests only. The checks load the model several times: give them small ones.

pub mod embed;
pub mod generate;

use std::path::Path;

use crate::{Class, Engine, LoadOptions, Model, Output, Request, RequestId, Step};

/// Steps after which a model that hasn't finished is broken.
const STEPS_MAX: usize = 200_000;

/// What is examined.
pub struct Subject<'a> {
    /// The engine.
    pub engine: &'a dyn Engine,
    /// A model folder of the right task.
    pub dir: &'a Path,
    /// How far a value of a vector may be from the same one computed alone.
    pub tolerance: f32,
}

impl Subject<'_> {
    fn load(&self, slots: u32) -> Box<dyn Model> {
        let options = LoadOptions { dir: self.dir.into(), threads: 2, context: 512, slots };
        self.engine.load(&options).unwrap_or_else(|error| panic!("loading {}: {error}", self.dir.display()))
    }
}

/// Steps until nothing has joined.
fn drain(model: &mut dyn Model) -> Vec<Output> {
    let mut out = Vec::new();
    for _ in 0..STEPS_MAX {
        if step(model, &mut out) == Step::Idle {
            return out;
        }
    }
    panic!("still busy after {STEPS_MAX} steps");
}

fn step(model: &mut dyn Model, out: &mut Vec<Output>) -> Step {
    model.step(out).unwrap_or_else(|error| panic!("a step failed: {error}"))
}

fn join(model: &mut dyn Model, id: u64, class: Class, request: Request) {
    model.join(RequestId(id), class, request).unwrap_or_else(|error| panic!("request {id} was refused: {error}"));
}

fn refusal(model: &mut dyn Model, request: Request) -> crate::EngineError {
    let free = model.free_slots();
    let Err(error) = model.join(RequestId(9_999), Class::Batch, request) else {
        panic!("a request was taken that had to be refused");
    };
    assert_eq!(model.free_slots(), free, "a refused request took a slot");
    error
}

fn owner(output: &Output) -> RequestId {
    match output {
        Output::Embedding { id, .. }
        | Output::Page { id, .. }
        | Output::PromptTokens { id, .. }
        | Output::Token { id, .. }
        | Output::Done { id, .. }
        | Output::Failed { id, .. } => *id,
    }
}
