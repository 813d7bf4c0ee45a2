//! Generating over a batch: each document through the prompt template and the model, to a JSON and a text file beside its name.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use ingle_engine::{Class, EngineError, Finish, GenerateRequest, Message, Prompt, Request, Resume, Task, Tokens};
use ingle_proto::ErrorCode;
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome};
use serde::Serialize;

use super::embed::as_item;
use super::manifest::{Manifest, NoResult};
use super::mirror::{self, Done};
use super::phases::Phases;
use super::source::{self, Document, Wanted};
use super::template::{RenderError, Template, Variables};
use super::texts;
use super::{Attempt, Outcome, sampling};
use crate::error::Failure;
use crate::executor::Event;
use crate::limits;
use crate::loaded::Lease;
use crate::storage::Gateway;

/// Tokens that a chat template may put around one message.
const TOKENS_PER_MESSAGE: usize = 24;
/// How often a document is cut again when its prompt is still too long.
const CUTS: usize = 6;

/// The JSON file.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: u32,
    path: &'a str,
    model: &'a str,
    model_digest: String,
    prompt_digest: &'a str,
    text: &'a str,
    finish_reason: &'static str,
    usage: Usage,
    truncated_input: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Usage {
    prompt_tokens: u32,
    output_tokens: u32,
}

/// What is the same for all documents of a batch.
struct Job<'a> {
    attempt: &'a Attempt,
    gateway: &'a Gateway,
    lease: Lease,
    options: v1::GenerateOptions,
    template: Template,
    prompt_digest: String,
}

/// Generates for the entries of a batch, as many at once as the model has slots.
///
/// # Errors
/// [`Failure`]; documents that can't be done are told in the manifest instead.
pub async fn batch(attempt: &Attempt, work: v1::BatchWork) -> Result<Outcome, Failure> {
    let gateway = attempt.gateway()?;
    attempt.place()?;
    let options = work.generate.clone().unwrap_or_default();
    let template = Template::new(&options.prompt)?;
    let (entries, payload) = source::entries(&gateway, &work).await?;
    let lease = attempt.agent.loaded.acquire(&attempt.model).await?;
    if lease.handle.card().task != Task::Generate {
        return Err(Failure::model(ErrorCode::ModelUnusable, format!("model `{}` doesn't generate", lease.model.name)));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(options.system.len() as u64).to_le_bytes());
    hasher.update(options.system.as_bytes()).update(options.prompt.as_bytes());
    let prompt_digest = hasher.finalize().to_hex().to_string();
    let digest = lease.model.digest;
    let slots = lease.handle.slots().max(1) as usize;
    let job = Job { attempt, gateway: &gateway, lease, options, template, prompt_digest };

    let mut manifest = Manifest::new(attempt, work.segment.clone());
    let mut count = 0u32;
    {
        let documents = source::documents(attempt, &gateway, entries, payload, Wanted::Once)
            // A drain takes no further document; those begun are finished.
            .enumerate()
            .take_while(|(at, _)| std::future::ready(*at == 0 || !attempt.agent.draining()))
            .map(|(_, document)| async { job.document(document?).await })
            .buffered(slots);
        tokio::pin!(documents);
        while let Some(done) = documents.next().await {
            let done = done?;
            count += 1;
            manifest.message.items.push(done.item);
            manifest.message.outputs.extend(done.outputs);
            manifest.bytes += done.bytes;
            manifest.busy_us += done.busy_us;
            attempt.progress(count, manifest.bytes, "generating");
        }
    }
    job.lease.handle.measured_documents(manifest.bytes, manifest.busy_us);
    manifest.complete(attempt, &gateway, count, Some(digest)).await
}

impl Job<'_> {
    async fn document(&self, document: Document) -> Result<Done, Failure> {
        let unchanged = document.unchanged();
        let Document { index, entry, content, .. } = document;
        let content = match content {
            Ok(content) => content,
            Err(why) => return Ok(Done::without(index, &why, 0)),
        };
        let bytes = content.size;
        let input = v1::Provenance {
            name: entry.name.clone(),
            size: content.size,
            mtime_ns: content.mtime_ns,
            content_digest: content.digest.to_wire(),
            gone: false,
        };
        let item = v1::ItemResult {
            index,
            content_digest: content.digest.to_wire(),
            size: content.size,
            mtime_ns: content.mtime_ns,
            ..Default::default()
        };
        if unchanged {
            return Ok(Done::unchanged(item, &input));
        }
        let path = display_bytes(&entry.name);
        let document = match texts::of(self.attempt, &entry, content).await? {
            Ok(text) => text.text,
            Err(why) => return Ok(Done::without(index, &why, bytes)),
        };
        let prompt = match self.prompt(&path, &document)? {
            Ok(prompt) => prompt,
            Err(why) => return Ok(Done::without(index, &why, bytes)),
        };
        let seed = u64::from_le_bytes(seed(&self.attempt.token.job_id, &entry.name));
        let answer = match self.answer(prompt.text, seed).await {
            Ok(answer) => answer,
            Err(EngineError::Input(reason)) => {
                let why = NoResult::failed(ErrorCode::InvalidArgument, reason);
                return Ok(Done::without(index, &why, bytes));
            }
            Err(error) => return Err(as_item(&error)),
        };
        let outputs = self.stage(index, &path, &answer, prompt.truncated, &input).await?;
        let item = v1::ItemResult {
            outcome: ItemOutcome::Committed.into(),
            tokens: answer.usage.prompt_tokens.saturating_add(answer.usage.output_tokens),
            truncated: prompt.truncated,
            ..item
        };
        Ok(Done { item, outputs, bytes, busy_us: answer.busy_us })
    }

    /// The prompt for a document, cut at a token if it is too long for the context.
    fn prompt(&self, path: &str, document: &str) -> Result<Result<Rendered, NoResult>, Failure> {
        let (tokens, template) = (self.lease.handle.tokens(), &self.template);
        let context = self.lease.handle.context() as usize;
        let answer = (self.options.max_tokens as usize).min(context / 2);
        let system = &self.options.system;
        // Rendering and tokenising a large document take a while; the other threads of the runtime go on meanwhile.
        let work = || fitted(template, tokens.as_ref(), system, path, document, context - answer);
        let fitted = if tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread
        {
            tokio::task::block_in_place(work)
        } else {
            work()
        };
        match fitted {
            Ok(rendered) => Ok(Ok(rendered)),
            Err(RenderError::Document(why)) => Ok(Err(why)),
            Err(RenderError::Template(failure)) => Err(failure),
        }
    }

    async fn answer(&self, prompt: String, seed: u64) -> Result<Generated, EngineError> {
        let mut messages = Vec::new();
        if !self.options.system.is_empty() {
            messages.push(Message { role: "system".into(), content: self.options.system.clone() });
        }
        messages.push(Message { role: "user".into(), content: prompt });
        let request = GenerateRequest {
            prompt: Prompt::Messages(messages),
            resume: Resume::default(),
            sampling: sampling(self.options.sampling.as_ref(), seed),
            max_tokens: self.options.max_tokens.max(1),
            stop: self.options.stop.clone(),
            logprobs: 0,
        };
        let metrics = &self.attempt.agent.metrics;
        let mut phases = Phases::begin(metrics, Class::Batch, Duration::ZERO, Instant::now(), false);
        let mut ticket = self.lease.handle.submit(Class::Batch, Request::Generate(request)).await?;
        let mut text = String::new();
        loop {
            let event = ticket.next().await?;
            phases.see(&event);
            match event {
                Event::Token { text: piece, .. } => text.push_str(&piece),
                Event::Done { finish, text: rest, prompt_tokens, output_tokens, .. } => {
                    text.push_str(&rest);
                    let usage = Usage { prompt_tokens, output_tokens };
                    return Ok(Generated { text, finish, usage, busy_us: ticket.busy_us() });
                }
                _ => {}
            }
        }
    }

    async fn stage(
        &self,
        index: u32,
        path: &str,
        answer: &Generated,
        truncated: bool,
        input: &v1::Provenance,
    ) -> Result<Vec<v1::OutputResult>, Failure> {
        let json = Answer {
            schema: 1,
            path,
            model: &self.lease.model.name,
            model_digest: self.lease.model.digest.hex(),
            prompt_digest: &self.prompt_digest,
            text: &answer.text,
            finish_reason: if answer.finish == Finish::Stop { "stop" } else { "length" },
            usage: answer.usage,
            truncated_input: truncated,
        };
        let mut json = serde_json::to_vec_pretty(&json)
            .map_err(|error| Failure::item(ErrorCode::Internal, format!("JSON: {error}")))?;
        json.push(b'\n');
        let mut text = answer.text.clone().into_bytes();
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        let part = format!("b{}-{index}", self.attempt.token.batch);
        mirror::stage(self.attempt, self.gateway, &part, input, [mirror::body(json), mirror::body(text)]).await
    }
}

struct Generated {
    text: String,
    finish: Finish,
    usage: Usage,
    busy_us: u64,
}

struct Rendered {
    text: String,
    truncated: bool,
}

/// A seed that is the same whichever node and attempt does the document.
fn seed(job: &str, name: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(job.as_bytes()).update(&[0]).update(name);
    let mut seed = [0; 8];
    hasher.finalize_xof().fill(&mut seed);
    seed
}

/// Renders the prompt so that it has at most `room` tokens with the system prompt; the document is cut if need be.
fn fitted(
    template: &Template,
    tokens: &dyn Tokens,
    system: &str,
    path: &str,
    document: &str,
    room: usize,
) -> Result<Rendered, RenderError> {
    let malformed = |reason| RenderError::Document(NoResult::failed(ErrorCode::DocumentMalformed, reason));
    let count = |text: &str| -> Result<usize, RenderError> {
        tokens.encode(text).map(|encoding| encoding.ids.len()).map_err(|error| malformed(error.to_string()))
    };
    let around = if system.is_empty() { 0 } else { count(system)? + TOKENS_PER_MESSAGE } + TOKENS_PER_MESSAGE;
    let room = room.saturating_sub(around);
    // A first cut by bytes: no token is longer than a few dozen, and megabytes needn't be tokenised to be cut away.
    let most = room.saturating_mul(64).min(limits::PROMPT_BYTES_MAX / 4);
    let mut end = document.floor_char_boundary(most.min(document.len()));
    for _ in 0..CUTS {
        let text = template.render(Variables { document: &document[..end], path })?;
        let used = count(&text)?;
        if used <= room && text.len() <= limits::PROMPT_BYTES_MAX {
            return Ok(Rendered { text, truncated: end < document.len() });
        }
        if end == 0 {
            break;
        }
        let offsets = tokens.encode(&document[..end]).map_err(|error| malformed(error.to_string()))?.offsets;
        // A template may show the document several times, or parts of it: what it adds is shared out in proportion.
        let fixed = count(&template.render(Variables { document: "", path })?)?;
        let Some(left) = room.checked_sub(fixed) else { break };
        let keep = (offsets.len() * left / used.saturating_sub(fixed).max(1)).min(offsets.len().saturating_sub(1));
        end = offsets.get(keep).map_or(0, |(start, _)| document.floor_char_boundary((*start).min(end)));
    }
    Err(RenderError::Document(NoResult::failed(
        ErrorCode::TooLarge,
        format!("the prompt alone needs more than the {room} tokens that the model's context leaves for it"),
    )))
}

#[cfg(test)]
mod tests {
    use super::super::passages::tests::fake_tokens;
    use super::*;

    fn fit(template: &str, document: &str, room: usize) -> Result<Rendered, RenderError> {
        let template = Template::new(template).unwrap();
        fitted(&template, fake_tokens().as_ref(), "", "a.md", document, room)
    }

    #[test]
    fn long_documents_are_cut_so_that_the_prompt_fits() {
        let words = "word ".repeat(5000);
        for template in ["Say: {{ document }} end", "{{ document }} and again {{ document }}"] {
            let rendered = fit(template, &words, 300).unwrap();
            let used = fake_tokens().encode(&rendered.text).unwrap().ids.len();
            assert!(rendered.truncated && used <= 300 - TOKENS_PER_MESSAGE, "{used}");
            assert!(used > 100, "not more than needed is cut: {used}");
        }
        let short = fit("Say: {{ document }}", "hello there", 300).unwrap();
        assert!(!short.truncated && short.text == "Say: hello there");
    }

    #[test]
    fn a_prompt_without_room_says_so() {
        let template = format!("{} {{{{ document }}}}", "instruction ".repeat(500));
        match fit(&template, "hello", 100) {
            Err(RenderError::Document(why)) => assert_eq!(why.problem.code, ErrorCode::TooLarge),
            _ => panic!("must not fit"),
        }
    }

    #[test]
    fn seeds_follow_job_and_name() {
        assert_eq!(seed("j-1", b"a"), seed("j-1", b"a"));
        assert_ne!(seed("j-1", b"a"), seed("j-2", b"a"));
        assert_ne!(seed("j-1", b"a"), seed("j-1", b"b"));
    }
}
