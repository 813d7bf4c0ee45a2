//! What a model is to the node: an [`Engine`] opens model folders, a [`Model`] runs requests in short steps.
//!
//! No ML dependency and no async here. A model is owned by one OS thread (the node's executor); requests *join*
//! a running batch and *leave* it, and [`Model::step`] does about [`STEP_TARGET`] of work, so that a person's request
//! enters between two steps of a long batch job.

pub mod batch;
pub mod conformance;
pub mod detokenize;
pub mod fake;
pub mod page;
pub mod request;
pub mod sampling;
pub mod stop;
pub mod turns;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use batch::{PackedTokens, plan_by_tokens};
pub use detokenize::TextStream;
pub use page::{OcrRequest, PageImage, PageText, TextLine};
pub use sampling::{SampleRng, Sampling};
pub use turns::Turns;

/// What one [`Model::step`] should take at most, in wall time. Engines aim at it; they can't promise it.
pub const STEP_TARGET: Duration = Duration::from_millis(20);

/// Names a request within one loaded model. The caller chooses it; it must not be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Who waits. Interactive requests are served before batch ones at every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A person waits.
    Interactive,
    /// A folder job.
    Batch,
}

/// What a model folder can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Text to a vector.
    Embed,
    /// Messages to text.
    Generate,
    /// Page pixels to text.
    Ocr,
}

/// What is known of a model from its headers alone, before any weight is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// What it does.
    pub task: Task,
    /// Architecture as the files name it: `llama`, `bert`.
    pub architecture: String,
    /// Storage of most weights: `Q4_1`, `F32`.
    pub quantisation: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of all weights as stored.
    pub weight_bytes: u64,
    /// Bytes of weights read from memory for each decoded token, in the form they are held there (an engine may store some
    /// kinds anew); equal to `weight_bytes` for encoders.
    pub bytes_per_token: u64,
    /// Bytes of KV cache for one token of context; 0 for encoders.
    pub kv_bytes_per_token: u64,
    /// Longest input in tokens.
    pub context: u32,
    /// Length of the output vector; 0 unless it embeds.
    pub dimensions: u32,
    /// Layers, for estimates of activations.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u32,
}

/// A message of a chat, as the model's template sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Plain text; special tokens in it are text, never control tokens.
    pub content: String,
}

/// How a generation begins.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Rendered through the model's own chat template.
    Messages(Vec<Message>),
    /// Tokens of a stream that began on another node: fed exactly as they are.
    Tokens(Vec<u32>),
}

/// Continue a stream: what was emitted already is replayed through sampler, detokenizer and stop matcher.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resume {
    /// Tokens already emitted, in order.
    pub emitted: Vec<u32>,
    /// Bytes of decided text already delivered; text is emitted from this offset on.
    pub text_offset: u64,
}

/// Generate text.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Where it starts.
    pub prompt: Prompt,
    /// Set when it continues elsewhere.
    pub resume: Resume,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to emit, counted from the first emitted token (so a resumed stream keeps its bound).
    pub max_tokens: u32,
    /// Strings that end the text; they are not part of it. Matched across token borders.
    pub stop: Vec<String>,
    /// Number of most probable alternatives to report per token; 0 for none.
    pub logprobs: u32,
}

/// A text to embed. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedText {
    /// The text.
    pub text: Arc<str>,
    /// What [`Tokens::encode`] makes of it, where that is known already: the model's thread is spared the work.
    pub ids: Option<Arc<[u32]>>,
}

impl EmbedText {
    /// A text with the ids that its model's [`Tokens::encode`] gives it.
    #[must_use]
    pub fn tokenised(text: &str, ids: &[u32]) -> Self {
        Self { text: text.into(), ids: Some(ids.into()) }
    }
}

impl From<&str> for EmbedText {
    fn from(text: &str) -> Self {
        Self { text: text.into(), ids: None }
    }
}

impl From<String> for EmbedText {
    fn from(text: String) -> Self {
        Self { text: text.into(), ids: None }
    }
}

/// Embed texts; each becomes one unit vector.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// The texts, in order.
    pub texts: Vec<EmbedText>,
    /// L2-normalise even if the model's own files don't ask for it.
    pub normalise: bool,
}

/// What a request asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// See [`EmbedRequest`].
    Embed(EmbedRequest),
    /// See [`GenerateRequest`].
    Generate(GenerateRequest),
    /// See [`OcrRequest`].
    Ocr(OcrRequest),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model's end-of-turn token or a stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}

/// Time spent, for `timings` in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Reading the prompt.
    pub prefill: Duration,
    /// Producing tokens.
    pub decode: Duration,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// Its text, as far as it is UTF-8.
    pub text: String,
    /// Natural logarithm of its probability before temperature.
    pub logprob: f32,
}

/// What a step hands back.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// One text's vector.
    Embedding {
        /// Whose.
        id: RequestId,
        /// Which of its texts.
        index: u32,
        /// `dimensions` values.
        vector: Vec<f32>,
        /// Tokens used, special ones included.
        tokens: u32,
        /// The text was longer than the model's limit and was cut.
        truncated: bool,
    },
    /// The text of a page; the only output of an [`OcrRequest`] before `Done`.
    Page {
        /// Whose.
        id: RequestId,
        /// What stands on it.
        page: PageText,
    },
    /// The prompt as the model sees it; first output of every generation.
    PromptTokens {
        /// Whose.
        id: RequestId,
        /// Token ids.
        ids: Vec<u32>,
    },
    /// One generated token.
    Token {
        /// Whose.
        id: RequestId,
        /// Position among the emitted tokens, from 0.
        index: u32,
        /// Its id.
        token: u32,
        /// Byte offset of `text` in the whole decided text.
        text_offset: u64,
        /// Text decided by now: may be empty while a character or a stop string is open.
        text: String,
        /// Chosen token first, then the alternatives asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The request ended well and has left the batch.
    Done {
        /// Whose.
        id: RequestId,
        /// Why; `Stop` for embeddings and pages.
        finish: Finish,
        /// Decided text that the last token left open, at `text_offset`.
        text: String,
        /// Byte offset of `text`.
        text_offset: u64,
        /// Tokens read; 0 for pages.
        prompt_tokens: u32,
        /// Tokens emitted, those of a resumed stream's past included.
        output_tokens: u32,
        /// Time spent here.
        timings: Timings,
    },
    /// The request failed and has left the batch; the model goes on.
    Failed {
        /// Whose.
        id: RequestId,
        /// Why.
        error: EngineError,
    },
}

/// What the executor should do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing has joined: wait for the mailbox.
    Idle,
    /// Call again.
    Busy,
}

/// Where a token begins and ends in the text it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, without special tokens.
    pub ids: Vec<u32>,
    /// Byte ranges in the text, one per id, ascending.
    pub offsets: Vec<(usize, usize)>,
}

/// Counts and splits text as the model would; shared freely between threads.
pub trait Tokens: Send + Sync {
    /// Tokenise without special tokens and without any limit.
    ///
    /// # Errors
    /// [`EngineError::Input`] if the tokenizer refuses the text.
    fn encode(&self, text: &str) -> Result<Encoding, EngineError>;

    /// Most tokens of one input, special tokens already deducted.
    fn max_tokens(&self) -> usize;

    /// Whether a part of a text that begins and ends at blanks has the same ids alone as within the text. False where it isn't
    /// known: then parts are tokenised once more.
    fn same_between_blanks(&self) -> bool {
        false
    }
}

/// Opens model folders. One per process.
pub trait Engine: Send + Sync {
    /// Name and version of the implementation, for the backend class of streams.
    fn backend(&self) -> String;

    /// Files of `dir` that make the model, relative to it, in a fixed order: their contents are its identity.
    /// `None` if the folder holds no model this engine knows.
    ///
    /// `names` are the paths of the folder's files relative to it, with `/`, those of folders below included.
    fn files(&self, names: &[String]) -> Option<Vec<String>>;

    /// Reads headers only, each offset checked against the file's length.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the file, what was expected and what was found.
    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError>;

    /// Loads the weights. `threads` bounds its compute threads.
    ///
    /// # Errors
    /// As [`Engine::inspect`]; [`EngineError::Memory`] if it doesn't fit.
    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError>;
}

/// How to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Folder that holds the files.
    pub dir: PathBuf,
    /// Compute threads at most.
    pub threads: usize,
    /// Context per request in tokens; cut to the model's own.
    pub context: u32,
    /// Requests that may be in the batch at once.
    pub slots: u32,
}

/// A loaded model. Owned by one thread; dropped to unload.
pub trait Model: Send {
    /// What it is.
    fn card(&self) -> &ModelCard;

    /// Its tokenizer.
    fn tokens(&self) -> Arc<dyn Tokens>;

    /// Resident bytes of weights, caches and buffers.
    fn memory_bytes(&self) -> u64;

    /// Requests that may join before one leaves.
    fn free_slots(&self) -> u32;

    /// Enter the running batch.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a request this model can't take, [`EngineError::Full`] without a free slot.
    /// The request is not in the batch then.
    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError>;

    /// Leave the batch and free what it held; unknown ids are no error (the request may just have ended).
    fn leave(&mut self, id: RequestId);

    /// Do about [`STEP_TARGET`] of work and append what came of it.
    ///
    /// # Errors
    /// An error here is the model's own end: everything in the batch failed and the executor reloads it.
    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError>;
}

/// What can go wrong in an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model's files are malformed or of a kind this engine can't run.
    #[error("model file {file}: {problem}")]
    Model {
        /// Which file, relative to the model's folder.
        file: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// The request can't be served by this model; another node would say the same.
    #[error("{0}")]
    Input(String),
    /// No slot is free; try again after one leaves.
    #[error("all {slots} slots of the model are taken")]
    Full {
        /// How many there are.
        slots: u32,
    },
    /// It doesn't fit.
    #[error("{needed} bytes needed, {available} available")]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The computation itself failed.
    #[error("computation failed: {0}")]
    Compute(String),
    /// The engine's code did not come back from a step, and is waited for no more.
    #[error("the engine made no step for {seconds} s")]
    Stalled {
        /// For how long.
        seconds: u64,
        /// The request was in the model then, and so may be what keeps it.
        inside: bool,
    },
}

impl EngineError {
    /// Whether the same request may succeed on another try or another node.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Memory { .. } | Self::Compute(_) | Self::Stalled { .. })
    }
}
