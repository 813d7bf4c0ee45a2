//! A deterministic engine without weights, for tests of everything above the seam.
//!
//! A folder that holds `fake-model.json` is a model:
//!
//! ```json
//! {"task": "embed", "dimensions": 32, "context": 512, "slots": 8, "step_ms": 0, "tokens_per_step": 64}
//! ```
//!
//! Only `task` (`embed`, `generate` or `ocr`) is required. Its pages say what their first channel spells: each row is a line of UTF-8 up to the
//! first zero. `poison` makes requests whose text holds that substring fail, `panic` makes
//! them panic the model's thread, `hang` makes a step with them never come back, `output_tokens` fixes the natural length of a generation, `weight_bytes` the size it claims.
//! `hold_until` names a file: a generation whose text says `hold at N` waits before its token N until that file is there. One that goes on
//! from tokens says nothing and is not held. Any penalty makes each token depend on those before it.
//!
//! A file `weights.bin` beside it, if there, belongs to the model too (so that tests can fetch something big).

mod embed;
mod generate;
mod ocr;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use words::FakeTokens;

use crate::{
    Class, Engine, EngineError, LoadOptions, Model, ModelCard, Output, Request, RequestId, Step, Task, Tokens, Turns,
};

/// Name of the file that makes a folder a fake model.
pub const FAKE_MODEL_FILE: &str = "fake-model.json";
const WEIGHTS_FILE: &str = "weights.bin";
const CONFIG_BYTES_MAX: u64 = 64 << 10;
const KV_BYTES_PER_TOKEN: u64 = 1024;
/// What a text says before the index of the token to wait at.
const HOLD_AT: &str = "hold at ";
/// How long a step takes in which everybody is held.
const HELD_STEP: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    task: TaskName,
    #[serde(default = "default_dimensions")]
    dimensions: u32,
    #[serde(default = "default_context")]
    context: u32,
    #[serde(default = "default_slots")]
    slots: u32,
    #[serde(default)]
    step_ms: u64,
    #[serde(default = "default_tokens_per_step")]
    tokens_per_step: usize,
    #[serde(default = "default_weight_bytes")]
    weight_bytes: u64,
    output_tokens: Option<u32>,
    poison: Option<String>,
    panic: Option<String>,
    hang: Option<String>,
    hold_until: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum TaskName {
    Embed,
    Generate,
    Ocr,
}

fn default_dimensions() -> u32 {
    32
}
fn default_context() -> u32 {
    512
}
fn default_slots() -> u32 {
    8
}
fn default_tokens_per_step() -> usize {
    64
}
fn default_weight_bytes() -> u64 {
    1 << 20
}

/// The engine; see the module's text.
#[derive(Debug, Clone, Copy, Default)]
pub struct FakeEngine;

impl FakeEngine {
    /// The same as any other.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Engine for FakeEngine {
    fn backend(&self) -> String {
        concat!("fake-", env!("CARGO_PKG_VERSION")).into()
    }

    fn files(&self, names: &[String]) -> Option<Vec<String>> {
        let has = |name: &str| names.iter().any(|other| other == name);
        has(FAKE_MODEL_FILE)
            .then(|| [FAKE_MODEL_FILE, WEIGHTS_FILE].into_iter().filter(|name| has(name)).map(String::from).collect())
    }

    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError> {
        Ok(card(&read_config(dir)?))
    }

    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError> {
        let mut config = read_config(&options.dir)?;
        config.context = config.context.min(options.context.max(1));
        config.slots = config.slots.min(options.slots).max(1);
        let tokens = Arc::new(FakeTokens::new(config.context));
        Ok(Box::new(FakeModel { card: card(&config), config, tokens, turns: Turns::default(), joined: Vec::new() }))
    }
}

fn read_config(dir: &Path) -> Result<Config, EngineError> {
    let fail = |problem: String| EngineError::Model { file: FAKE_MODEL_FILE.into(), problem };
    let path = dir.join(FAKE_MODEL_FILE);
    let size = std::fs::metadata(&path).map_err(|error| fail(error.to_string()))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(fail(format!("at most {CONFIG_BYTES_MAX} bytes expected, found {size}")));
    }
    let text = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
    let config: Config = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    if !(1..=65_536).contains(&config.dimensions) || config.context < 4 || config.tokens_per_step == 0 {
        return Err(fail("dimensions must be 1 to 65536, context at least 4, tokens_per_step at least 1".into()));
    }
    Ok(config)
}

fn card(config: &Config) -> ModelCard {
    let embeds = config.task == TaskName::Embed;
    ModelCard {
        task: match config.task {
            TaskName::Embed => Task::Embed,
            TaskName::Generate => Task::Generate,
            TaskName::Ocr => Task::Ocr,
        },
        architecture: "fake".into(),
        quantisation: "F32".into(),
        parameters: config.weight_bytes / 4,
        weight_bytes: config.weight_bytes,
        bytes_per_token: config.weight_bytes,
        kv_bytes_per_token: if config.task == TaskName::Generate { KV_BYTES_PER_TOKEN } else { 0 },
        context: config.context,
        dimensions: if embeds { config.dimensions } else { 0 },
        layers: 1,
        width: config.dimensions,
    }
}

/// A request that has joined.
enum Work {
    Embed(embed::Embedding),
    Ocr(ocr::Reading),
    Generate(Box<generate::Generation>),
}

struct Joined {
    id: RequestId,
    work: Work,
    trap: Option<Trap>,
    /// Index of the token to wait at.
    hold: Option<u32>,
}

impl Joined {
    /// Whether it waits for the file that releases it.
    fn held(&self) -> bool {
        match &self.work {
            Work::Generate(work) => self.hold.is_some_and(|at| work.next_token() == Some(at)),
            Work::Embed(_) | Work::Ocr(_) => false,
        }
    }
}

/// What the model's file asks to happen to a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trap {
    Poison,
    Panic,
    Hang,
}

struct FakeModel {
    card: ModelCard,
    config: Config,
    tokens: Arc<FakeTokens>,
    turns: Turns,
    joined: Vec<Joined>,
}

impl FakeModel {
    fn trap<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Option<Trap> {
        let holds = |text: &str, word: &Option<String>| word.as_ref().is_some_and(|word| text.contains(word.as_str()));
        texts.into_iter().find_map(|text| match () {
            () if holds(text, &self.config.panic) => Some(Trap::Panic),
            () if holds(text, &self.config.hang) => Some(Trap::Hang),
            () if holds(text, &self.config.poison) => Some(Trap::Poison),
            () => None,
        })
    }

    fn hold(&self, request: &Request) -> Option<u32> {
        self.config.hold_until.as_ref()?;
        let Request::Generate(crate::GenerateRequest { prompt: crate::Prompt::Messages(messages), .. }) = request
        else {
            return None;
        };
        let at = messages.iter().find_map(|message| Some(message.content.split_once(HOLD_AT)?.1))?;
        at.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    /// Whose turn it is of those that aren't held; none if all of them are.
    fn next_turn(&mut self) -> Option<RequestId> {
        let waits = self.joined.iter().any(Joined::held)
            && !self.config.hold_until.as_ref().is_none_or(|released| released.exists());
        if !waits {
            return self.turns.next_turn();
        }
        // Each has had its turn after so many; a held one lets it pass.
        (0..self.joined.len()).find_map(|_| {
            let id = self.turns.next_turn()?;
            let held = self.joined.iter().any(|joined| joined.id == id && joined.held());
            (!held).then_some(id)
        })
    }

    fn work_on(&mut self, at: usize, out: &mut Vec<Output>) -> bool {
        let joined = &mut self.joined[at];
        match joined.trap {
            Some(Trap::Panic) => panic!("the fake model panics, as its file asks"),
            Some(Trap::Hang) => loop {
                std::thread::park();
            },
            Some(Trap::Poison) => {
                let error = EngineError::Compute("poisonous text, as the model's file asks".into());
                out.push(Output::Failed { id: joined.id, error });
                return true;
            }
            None => {}
        }
        match &mut joined.work {
            Work::Embed(work) => work.step(joined.id, self.config.tokens_per_step, out),
            Work::Ocr(work) => work.step(joined.id, self.config.tokens_per_step, out),
            Work::Generate(work) => work.step(joined.id, self.config.tokens_per_step, out),
        }
    }
}

impl Model for FakeModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokens(&self) -> Arc<dyn Tokens> {
        Arc::clone(&self.tokens) as Arc<dyn Tokens>
    }

    fn memory_bytes(&self) -> u64 {
        let held = self.joined.iter().map(|joined| match &joined.work {
            Work::Embed(_) | Work::Ocr(_) => 0,
            Work::Generate(work) => work.tokens_held() * KV_BYTES_PER_TOKEN,
        });
        self.card.weight_bytes + held.sum::<u64>()
    }

    fn free_slots(&self) -> u32 {
        self.config.slots.saturating_sub(u32::try_from(self.joined.len()).unwrap_or(u32::MAX))
    }

    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError> {
        if self.joined.iter().any(|joined| joined.id == id) {
            return Err(EngineError::Input(format!("request {} is in the batch already", id.0)));
        }
        if self.free_slots() == 0 {
            return Err(EngineError::Full { slots: self.config.slots });
        }
        let hold = self.hold(&request);
        let (work, trap) = match request {
            Request::Embed(request) if self.card.task == Task::Embed => {
                request.validate()?;
                let trap = self.trap(request.texts.iter().map(|text| text.text.as_ref()));
                (Work::Embed(embed::Embedding::new(request.texts, self.config.dimensions, &self.tokens)?), trap)
            }
            Request::Generate(request) if self.card.task == Task::Generate => {
                request.validate()?;
                let trap = match &request.prompt {
                    crate::Prompt::Messages(messages) => self.trap(messages.iter().map(|m| m.content.as_str())),
                    crate::Prompt::Tokens(_) => None,
                };
                let work = generate::Generation::new(request, self.config.output_tokens, &self.tokens)?;
                (Work::Generate(Box::new(work)), trap)
            }
            Request::Ocr(request) if self.card.task == Task::Ocr => {
                request.validate()?;
                let reading = ocr::Reading::new(&request.page);
                let trap = self.trap(reading.lines());
                (Work::Ocr(reading), trap)
            }
            _ => return Err(EngineError::Input("this model doesn't do what the request asks".into())),
        };
        self.turns.join(id, class);
        self.joined.push(Joined { id, work, trap, hold });
        Ok(())
    }

    fn leave(&mut self, id: RequestId) {
        self.turns.leave(id);
        self.joined.retain(|joined| joined.id != id);
    }

    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError> {
        if self.joined.is_empty() {
            return Ok(Step::Idle);
        }
        let Some(id) = self.next_turn() else {
            std::thread::sleep(HELD_STEP);
            return Ok(Step::Busy);
        };
        if self.config.step_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.config.step_ms));
        }
        let at = self.joined.iter().position(|joined| joined.id == id).expect("who has turns has joined");
        if self.work_on(at, out) {
            self.leave(id);
        }
        Ok(if self.joined.is_empty() { Step::Idle } else { Step::Busy })
    }
}

#[cfg(test)]
mod tests;
