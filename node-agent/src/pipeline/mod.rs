//! What attempts do, one file per kind of work: what to fetch, how to split it, what to hand back.

pub mod calls;
pub mod embed;
pub mod generate;
pub mod join;
pub mod manifest;
pub mod mirror;
pub mod ocr;
mod ocr_call;
mod ocr_file;
mod ocr_join;
mod pages;
pub mod passages;
mod phases;
pub mod schema;
pub mod source;
pub mod template;
pub mod text;
mod texts;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ingle_engine::Sampling;
use ingle_proto::v1::{self, assign::Work, work_response::Message};
use ingle_proto::{ErrorCode, Problem};
use tokio::time::Instant;

use crate::agent::Agent;
use crate::error::Failure;
use crate::limits;
use crate::outbox::Keep;
use crate::storage::Gateway;

/// How an attempt ended well.
#[derive(Debug)]
pub enum Outcome {
    /// A batch or join.
    Complete(v1::Complete),
    /// An interactive embedding.
    Embedded(v1::EmbedDone),
    /// An interactive reading of pages.
    Read(v1::OcrDone),
    /// An interactive generation: its frames have said everything.
    Streamed,
}

/// One attempt and what it may use.
pub struct Attempt {
    /// The node.
    pub agent: Arc<Agent>,
    /// Goes with every call made for it.
    pub token: v1::AttemptToken,
    /// The model to run.
    pub model: v1::ModelRef,
    /// Time it waited at the coordinator.
    pub queued: Duration,
    gateway: String,
    told: Mutex<Option<Instant>>,
}

impl Attempt {
    /// Takes what is common to all work.
    #[must_use]
    pub fn new(agent: Arc<Agent>, token: v1::AttemptToken, assign: &v1::Assign) -> Self {
        Self {
            agent,
            token,
            model: assign.model.clone().unwrap_or_default(),
            queued: Duration::from_micros(u64::try_from(assign.queued_us).unwrap_or(0)),
            gateway: assign.gateway.clone(),
            told: Mutex::default(),
        }
    }

    /// Where its bytes are.
    ///
    /// # Errors
    /// Storage that isn't there, or a bad endpoint.
    pub fn gateway(&self) -> Result<Gateway, Failure> {
        self.agent.catalogue.gateway(&self.gateway).map_err(Failure::storage)
    }

    /// The place that results are staged at.
    ///
    /// # Errors
    /// A token without one.
    pub fn place(&self) -> Result<&v1::ObjectRef, Failure> {
        self.token.place.as_ref().ok_or_else(|| Failure::input(Problem::missing("token.place")))
    }

    /// A name below the place's staging area that no other attempt uses.
    #[must_use]
    pub fn staged_name(&self, part: &str, extension: &str) -> String {
        let job: String =
            self.token.job_id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(64).collect();
        format!("{job}-{part}-{}.{extension}", self.token.attempt)
    }

    /// Tells that it is here, whatever else is told within the same moment.
    fn begun(&self) {
        let attempt = self.token.attempt;
        let progress = v1::Progress { attempt, stage: BEGUN.to_owned(), ..v1::Progress::default() };
        self.agent.outbox.push(attempt, Keep::Now, Message::Progress(progress));
    }

    /// Tells how far it is, at most twice a second.
    pub fn progress(&self, items_done: u32, bytes_done: u64, stage: &str) {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|told| told.elapsed() < limits::PROGRESS_EVERY) {
                return;
            }
            *told = Some(Instant::now());
        }
        let attempt = self.token.attempt;
        let progress = v1::Progress { attempt, items_done, bytes_done, stage: stage.to_owned() };
        self.agent.outbox.push(attempt, Keep::Now, Message::Progress(progress));
    }
}

/// The stage of an attempt of which nothing was touched yet.
pub const BEGUN: &str = "begun";

/// For metrics.
#[must_use]
pub fn label(assign: &v1::Assign) -> &'static str {
    match &assign.work {
        Some(Work::Batch(batch)) if batch.kind() == v1::JobKind::Generate => "generate",
        Some(Work::Batch(batch)) if batch.kind() == v1::JobKind::Ocr => "ocr",
        Some(Work::Batch(_)) => "embed",
        Some(Work::Join(_)) => "join",
        Some(Work::Embed(_)) => "embed_call",
        Some(Work::Generate(_)) => "generate_call",
        Some(Work::Ocr(_)) => "ocr_call",
        None => "unknown",
    }
}

/// Does the work.
///
/// # Errors
/// [`Failure`] with whose fault it is.
pub async fn run(attempt: Attempt, assign: v1::Assign) -> Result<Outcome, Failure> {
    if matches!(assign.work, Some(Work::Batch(_) | Work::Join(_))) {
        // Said before anything of it is touched: if this process dies now, the leader knows what it had.
        attempt.begun();
    }
    match assign.work {
        Some(Work::Batch(work)) => match work.kind() {
            v1::JobKind::Embed => Box::pin(embed::batch(&attempt, work)).await,
            v1::JobKind::Generate => Box::pin(generate::batch(&attempt, work)).await,
            v1::JobKind::Ocr => Box::pin(ocr::batch(&attempt, work)).await,
            kind @ v1::JobKind::Unspecified => Err(Failure::input(Problem::new(
                ErrorCode::Unimplemented,
                format!("this node can't do batches of {}", kind.as_str_name()),
            ))),
        },
        Some(Work::Join(work)) => Box::pin(join::bucket(&attempt, work)).await,
        Some(Work::Embed(request)) => Box::pin(calls::embed(&attempt, request)).await,
        Some(Work::Generate(work)) => Box::pin(calls::generate(&attempt, work)).await,
        Some(Work::Ocr(work)) => Box::pin(ocr_call::read(&attempt, work)).await,
        None => Err(Failure::input(Problem::new(
            ErrorCode::Unimplemented,
            "this node doesn't know this kind of work: it comes from a newer coordinator",
        ))),
    }
}

/// Sampling with defaults filled in; `seed` is taken where none is given.
#[must_use]
pub fn sampling(wire: Option<&v1::Sampling>, seed: u64) -> Sampling {
    let default = Sampling { seed, ..Sampling::default() };
    let Some(wire) = wire else { return default };
    let mut logit_bias: Vec<(u32, f32)> = wire.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect();
    logit_bias.sort_by_key(|(token, _)| *token);
    Sampling {
        temperature: wire.temperature.unwrap_or(default.temperature),
        top_k: wire.top_k.unwrap_or(default.top_k),
        top_p: wire.top_p.unwrap_or(default.top_p),
        min_p: wire.min_p.unwrap_or(default.min_p),
        repetition_penalty: wire.repetition_penalty.unwrap_or(default.repetition_penalty),
        repetition_window: wire.repetition_window.unwrap_or(default.repetition_window),
        presence_penalty: wire.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: wire.frequency_penalty.unwrap_or(default.frequency_penalty),
        logit_bias,
        seed: wire.seed.unwrap_or(seed),
    }
}
