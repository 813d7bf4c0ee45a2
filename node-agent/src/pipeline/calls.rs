//! Interactive work: a person's texts to vectors, a person's messages to a stream of frames that can move to another node.

use std::time::{Duration, Instant};

use ingle_engine::{Class, EmbedText, Finish, GenerateRequest, Message, Prompt, Request, Resume, Task};
use ingle_proto::job::{validate_embed_request, validate_generate_request};
use ingle_proto::v1::{self, generate_response::Frame, work_response};
use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, Problem};

use super::phases::Phases;
use super::{Attempt, Outcome, embed, sampling};
use crate::error::Failure;
use crate::executor::Event;
use crate::loaded::Lease;
use crate::outbox::Keep;

/// Tokens generated unless the request says otherwise, or the context ends before.
const MAX_TOKENS_DEFAULT: u32 = 4096;

/// Embeds a person's texts.
///
/// # Errors
/// [`Failure`].
pub async fn embed(attempt: &Attempt, request: v1::EmbedRequest) -> Result<Outcome, Failure> {
    validate_embed_request(&request).map_err(Failure::input)?;
    let lease = lease(attempt, Task::Embed).await?;
    // The answer travels in one message: 4 bytes a value, and some around each vector.
    let bytes = request.texts.len() * (lease.handle.card().dimensions as usize * 4 + 32);
    if bytes > MESSAGE_BYTES_MAX - (64 << 10) {
        let most = (MESSAGE_BYTES_MAX - (64 << 10)) / (lease.handle.card().dimensions as usize * 4 + 32);
        return Err(Failure::input(Problem::invalid(
            "texts",
            format!("at most {most} texts of this model's vectors fit one answer, got {}", request.texts.len()),
        )));
    }
    let texts = request.texts.into_iter().map(EmbedText::from).collect();
    let answer = embed::vectors(&lease, Class::Interactive, texts).await.map_err(|e| Failure::engine(&e))?;
    if request.fail_on_truncation
        && let Some(at) = answer.vectors.iter().position(|(_, _, truncated)| *truncated)
    {
        let limit = lease.handle.tokens().max_tokens();
        return Err(Failure::input(Problem::invalid(
            format!("texts[{at}]"),
            format!("is longer than the model's limit of {limit} tokens"),
        )));
    }
    let embeddings = answer
        .vectors
        .into_iter()
        .map(|(vector, tokens, truncated)| v1::Embedding { vector, tokens, truncated })
        .collect();
    let response = v1::EmbedResponse {
        embeddings,
        model: Some(model(&lease)),
        usage: Some(v1::Usage { prompt_tokens: answer.tokens, ..Default::default() }),
        timings: Some(timings(attempt, &lease, answer.prefill, Duration::ZERO)),
    };
    Ok(Outcome::Embedded(v1::EmbedDone {
        token: Some(attempt.token.clone()),
        response: Some(response),
        busy_us: answer.busy_us,
    }))
}

/// Generates for a person, frame by frame. A stream that moved here goes on where it was.
///
/// # Errors
/// [`Failure`].
pub async fn generate(attempt: &Attempt, work: v1::GenerateWork) -> Result<Outcome, Failure> {
    let came = Instant::now();
    let request = work.request.ok_or_else(|| Failure::input(Problem::missing("generate.request")))?;
    validate_generate_request(&request).map_err(Failure::input)?;
    let lease = lease(attempt, Task::Generate).await?;
    let prompt = if work.prompt_tokens.is_empty() {
        Prompt::Messages(messages(&request)?)
    } else {
        Prompt::Tokens(work.prompt_tokens)
    };
    let sampling = sampling(request.sampling.as_ref(), attempt.token.attempt);
    let seed = sampling.seed;
    let resumed = !work.emitted.is_empty();
    let ask = GenerateRequest {
        prompt,
        resume: Resume { emitted: work.emitted, text_offset: work.text_offset },
        sampling,
        max_tokens: request.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT),
        stop: request.stop,
        logprobs: request.logprobs.unwrap_or(0),
    };
    let metrics = &attempt.agent.metrics;
    let mut phases = Phases::begin(metrics, Class::Interactive, attempt.queued, came, resumed);
    let mut ticket =
        lease.handle.submit(Class::Interactive, Request::Generate(ask)).await.map_err(|e| Failure::engine(&e))?;
    let frames = Frames { attempt };
    loop {
        let event = ticket.next().await.map_err(|error| Failure::engine(&error))?;
        phases.see(&event);
        match event {
            Event::Prompt(ids) => {
                let started = v1::GenerateStarted {
                    request_id: String::new(),
                    model: Some(model(&lease)),
                    prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
                    seed,
                    node_id: attempt.agent.identity.node_id().to_string(),
                };
                frames.push(ids, Frame::Started(started));
            }
            Event::Token { index, token, text_offset, text, logprobs } => {
                let logprobs = logprobs
                    .into_iter()
                    .map(|each| v1::TokenLogprob { token: each.token, text: each.text, logprob: each.logprob })
                    .collect();
                let delta = v1::GenerateDelta { index, token, text_offset, text, logprobs, tool_call: None };
                frames.push(Vec::new(), Frame::Delta(delta));
            }
            Event::Done { finish, text, text_offset, prompt_tokens, output_tokens, timings: spent } => {
                let reason = match finish {
                    Finish::Stop => v1::FinishReason::Stop,
                    Finish::Length => v1::FinishReason::Length,
                };
                let finished = v1::GenerateFinished {
                    reason: reason.into(),
                    text,
                    text_offset,
                    usage: Some(v1::Usage { prompt_tokens, output_tokens, cached_tokens: 0 }),
                    timings: Some(timings(attempt, &lease, spent.prefill, spent.decode)),
                };
                frames.push(Vec::new(), Frame::Finished(finished));
                return Ok(Outcome::Streamed);
            }
            Event::Embedding { .. } | Event::Page(_) => {}
        }
    }
}

struct Frames<'a> {
    attempt: &'a Attempt,
}

impl Frames<'_> {
    fn push(&self, prompt_tokens: Vec<u32>, frame: Frame) {
        let attempt = self.attempt.token.attempt;
        let frame = v1::GenerateResponse { frame: Some(frame), resume_token: String::new() };
        let frame = v1::GenerateFrame { attempt, prompt_tokens, frame: Some(frame) };
        self.attempt.agent.outbox.push(attempt, Keep::AMinute, work_response::Message::Frame(frame));
    }
}

pub(super) async fn lease(attempt: &Attempt, task: Task) -> Result<Lease, Failure> {
    let lease = attempt.agent.loaded.acquire(&attempt.model).await?;
    if lease.handle.card().task == task {
        return Ok(lease);
    }
    let does = match task {
        Task::Embed => "embed",
        Task::Generate => "generate",
        Task::Ocr => "read pages",
    };
    Err(Failure::model(ErrorCode::ModelUnusable, format!("model `{}` doesn't {does}", lease.model.name)))
}

pub(super) fn model(lease: &Lease) -> v1::ModelRef {
    v1::ModelRef { name: lease.model.name.clone(), digest: lease.model.digest.to_wire() }
}

pub(super) fn timings(attempt: &Attempt, lease: &Lease, prefill: Duration, decode: Duration) -> v1::Timings {
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    v1::Timings {
        queue_us: us(attempt.queued),
        load_us: us(lease.load),
        prefill_us: us(prefill),
        decode_us: us(decode),
    }
}

fn messages(request: &v1::GenerateRequest) -> Result<Vec<Message>, Failure> {
    request
        .messages
        .iter()
        .map(|message| {
            let mut content = String::new();
            for part in &message.content {
                match &part.part {
                    Some(v1::content_part::Part::Text(text)) => content.push_str(text),
                    _ => {
                        return Err(Failure::input(Problem::new(
                            ErrorCode::Unimplemented,
                            "content parts other than text can't be read yet",
                        )));
                    }
                }
            }
            Ok(Message { role: message.role.clone(), content })
        })
        .collect()
}
