//! What a user may submit, checked field by field: the bounds of `ingle.v1.Jobs` in one place.

use crate::choice::choice;
use crate::error::Problem;
use crate::extent::{validate_exclude, validate_glob};
use crate::prompt;
use crate::storage::{OWN_DIRECTORY, Object};
use crate::v1::{self, input_spec::Input};
use crate::{ErrorCode, JobId};

/// Longest prompt template and system prompt, in bytes.
pub const PROMPT_BYTES_MAX: usize = 64 << 10;
/// Most inline texts in a job.
pub const INLINE_TEXTS_MAX: usize = 10_000;
/// Most bytes of inline texts in a job.
pub const INLINE_BYTES_MAX: usize = 3 << 20;
/// Pause between two looks of a standing job unless it says otherwise, in seconds.
pub const WATCH_INTERVAL_S: u32 = 30;
/// How long a document of a standing job must be still unless it says otherwise, in seconds.
pub const WATCH_SETTLE_S: u32 = 10;
/// Most seconds that a document may have to be still.
pub const SETTLE_S_MAX: u32 = 3600;
/// Tokens generated per document unless the job says otherwise.
pub const MAX_TOKENS_DEFAULT: u32 = 256;

/// What a job does.
pub type JobKind = v1::JobKind;

/// A job's identifier from its number: short enough to type.
///
/// # Panics
/// Never: digits are within the form.
#[must_use]
pub fn job_id(number: u64) -> JobId {
    JobId::parse(&format!("j-{number}")).expect("letters, a dash and digits are within the form")
}

/// Checks a specification and fills in defaults.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field and its bounds; `PATH_REFUSED` for paths.
pub fn validate_spec(mut spec: v1::JobSpec) -> Result<v1::JobSpec, Problem> {
    let kind = choice("spec.kind", spec.kind, JobKind::as_str_name)?;
    bounded("spec.model", spec.model.len(), 0, 255)?;
    no_nul("spec.model", &spec.model)?;
    let input =
        spec.input.as_ref().and_then(|input| input.input.as_ref()).ok_or_else(|| Problem::missing("spec.input"))?;
    let inside = match input {
        Input::Object(object) | Input::Tree(object) => Some(Object::try_from(object.clone())?),
        Input::Glob(glob) => {
            bounded("spec.input.glob.pattern", glob.pattern.len(), 1, 4096)?;
            no_nul("spec.input.glob.pattern", &glob.pattern)?;
            validate_glob("spec.input.glob.pattern", &glob.pattern)?;
            let base = glob.base.clone().ok_or_else(|| Problem::missing("spec.input.glob.base"))?;
            Some(Object::try_from(base)?)
        }
        Input::Inline(_) if kind == JobKind::Ocr => {
            return Err(Problem::invalid("spec.input.inline", "texts have no pages; name documents on an export"));
        }
        Input::Inline(inline) => {
            bounded("spec.input.inline.texts", inline.texts.len(), 1, INLINE_TEXTS_MAX)?;
            bounded("spec.input.inline (bytes)", inline.texts.iter().map(String::len).sum(), 1, INLINE_BYTES_MAX)?;
            None
        }
        Input::Payload(_) => {
            return Err(Problem::invalid(
                "spec.input.payload",
                "is the coordinator's own; give texts as spec.input.inline",
            ));
        }
    };
    let output = spec.output.clone().ok_or_else(|| Problem::missing("spec.output"))?;
    let output = Object::try_from(output)?;
    if output.path.components().any(|c| c == OWN_DIRECTORY)
        || inside.as_ref().is_some_and(|object| object.path.components().any(|c| c == OWN_DIRECTORY))
    {
        return Err(Problem::new(ErrorCode::PathRefused, "a path inside .inglenook can be neither input nor output"));
    }
    if let (Some(Input::Object(_)), Some(inside)) = (spec.input.as_ref().and_then(|i| i.input.as_ref()), &inside)
        && *inside == output
    {
        return Err(Problem::invalid("spec.output", "is the input itself; name a directory for the results"));
    }
    if spec.priority == 0 {
        spec.set_priority(v1::Priority::Batch);
    }
    choice("spec.priority", spec.priority, v1::Priority::as_str_name)?;
    if spec.deadline_ms < 0 {
        return Err(Problem::invalid("spec.deadline_ms", "expected Unix milliseconds, or 0 for none"));
    }
    validate_exclude("spec.exclude", &spec.exclude)?;
    if inside.is_none() && !spec.exclude.is_empty() {
        return Err(Problem::invalid("spec.exclude", "texts given with the job have no names to exclude"));
    }
    let folder = matches!(spec.input.as_ref().and_then(|i| i.input.as_ref()), Some(Input::Tree(_) | Input::Glob(_)));
    if let Some(watch) = &mut spec.watch {
        validate_watch(watch, folder)?;
    }
    bounded("spec.labels", spec.labels.len(), 0, 32)?;
    for (key, value) in &spec.labels {
        bounded("spec.labels (key)", key.len(), 1, 63)?;
        bounded(&format!("spec.labels[{key}]"), value.len(), 0, 255)?;
    }
    match kind {
        JobKind::Generate => {
            spec.embed = None;
            let options = spec.generate.get_or_insert_default();
            validate_generate(options)?;
        }
        JobKind::Ocr => {
            spec.generate = None;
            spec.embed = None;
        }
        _ => {
            spec.generate = None;
            let options = spec.embed.get_or_insert_default();
            if options.passage_tokens != 0 {
                bounded("spec.embed.passage_tokens", options.passage_tokens as usize, 16, 1_000_000)?;
            }
            let half = if options.passage_tokens == 0 { 500_000 } else { options.passage_tokens / 2 };
            if let Some(overlap) = options.overlap_tokens {
                bounded("spec.embed.overlap_tokens", overlap as usize, 0, half as usize)?;
            }
        }
    }
    if let Some(place) = text_from(&spec) {
        let place = Object::try_from(place.clone())?;
        if place.path.components().any(|c| c == OWN_DIRECTORY) {
            return Err(Problem::new(ErrorCode::PathRefused, "text_from can't lie inside .inglenook"));
        }
        if inside.is_none() {
            return Err(Problem::invalid("text_from", "texts given with the job need no other text"));
        }
    }
    Ok(spec)
}

/// Where a job takes the text of documents that have none of their own, if anywhere.
#[must_use]
pub fn text_from(spec: &v1::JobSpec) -> Option<&v1::ObjectRef> {
    match spec.kind() {
        JobKind::Embed => spec.embed.as_ref()?.text_from.as_ref(),
        JobKind::Generate => spec.generate.as_ref()?.text_from.as_ref(),
        _ => None,
    }
}

fn validate_watch(watch: &mut v1::WatchOptions, folder: bool) -> Result<(), Problem> {
    if !folder {
        return Err(Problem::invalid("spec.watch", "only a folder can be watched: name a tree or a glob as input"));
    }
    if watch.interval_s == 0 {
        watch.interval_s = WATCH_INTERVAL_S;
    }
    bounded("spec.watch.interval_s", watch.interval_s as usize, 5, 86_400)?;
    let settle_s = *watch.settle_s.get_or_insert(WATCH_SETTLE_S);
    bounded("spec.watch.settle_s", settle_s as usize, 0, SETTLE_S_MAX as usize)
}

fn validate_generate(options: &mut v1::GenerateOptions) -> Result<(), Problem> {
    if options.prompt.is_empty() {
        options.prompt = prompt::DEFAULT.into();
    }
    bounded("spec.generate.prompt", options.prompt.len(), 1, PROMPT_BYTES_MAX)?;
    bounded("spec.generate.system", options.system.len(), 0, PROMPT_BYTES_MAX)?;
    no_nul("spec.generate.prompt", &options.prompt)?;
    prompt::check(&options.prompt)?;
    no_nul("spec.generate.system", &options.system)?;
    if options.max_tokens == 0 {
        options.max_tokens = MAX_TOKENS_DEFAULT;
    }
    bounded("spec.generate.max_tokens", options.max_tokens as usize, 1, 1_000_000)?;
    validate_stop("spec.generate.stop", &options.stop)?;
    if let Some(sampling) = &options.sampling {
        validate_sampling("spec.generate.sampling", sampling)?;
    }
    Ok(())
}

/// Checks an interactive generation.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field and its bounds; `UNIMPLEMENTED` names what can't be done yet.
pub fn validate_generate_request(request: &v1::GenerateRequest) -> Result<(), Problem> {
    bounded("model", request.model.len(), 0, 255)?;
    no_nul("model", &request.model)?;
    bounded("messages", request.messages.len(), 1, 1024)?;
    let mut bytes = 0usize;
    for (index, message) in request.messages.iter().enumerate() {
        if !matches!(message.role.as_str(), "system" | "user" | "assistant" | "tool") {
            return Err(Problem::invalid(
                format!("messages[{index}].role"),
                format!("expected system, user, assistant or tool, got {:?}", message.role),
            ));
        }
        if !message.tool_calls.is_empty() {
            return Err(unimplemented("messages with tool_calls"));
        }
        for part in &message.content {
            match &part.part {
                Some(v1::content_part::Part::Text(text)) => bytes += text.len(),
                Some(v1::content_part::Part::Image(_)) => return Err(unimplemented("image content parts")),
                None => return Err(Problem::missing(format!("messages[{index}].content.part"))),
            }
        }
    }
    bounded("messages (bytes)", bytes, 1, 2 << 20)?;
    if let Some(max_tokens) = request.max_tokens {
        bounded("max_tokens", max_tokens as usize, 1, 1_000_000)?;
    }
    if let Some(logprobs) = request.logprobs {
        bounded("logprobs", logprobs as usize, 0, 20)?;
    }
    if let Some(n) = request.n {
        bounded("n", n as usize, 1, 1)?;
    }
    if !request.tools.is_empty() || !request.tool_choice.is_empty() {
        return Err(unimplemented("tools"));
    }
    if request.response_format.as_ref().is_some_and(|format| format.format.is_some()) {
        return Err(unimplemented("response_format"));
    }
    validate_stop("stop", &request.stop)?;
    if let Some(sampling) = &request.sampling {
        validate_sampling("sampling", sampling)?;
    }
    Ok(())
}

/// Checks an interactive embedding call.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field and its bounds.
pub fn validate_embed_request(request: &v1::EmbedRequest) -> Result<(), Problem> {
    bounded("model", request.model.len(), 0, 255)?;
    no_nul("model", &request.model)?;
    bounded("texts", request.texts.len(), 1, 2048)?;
    bounded("texts (bytes)", request.texts.iter().map(String::len).sum(), 0, 2 << 20)
}

/// Most bytes of a document that is text.
pub const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of a document with pages, where settings say nothing else.
pub const DOCUMENT_BYTES_MAX: u64 = 1 << 30;

/// Most bytes of a document in one OCR call.
pub const OCR_CALL_BYTES_MAX: usize = 64 << 20;
/// Most pages of a document in one OCR call.
pub const OCR_CALL_PAGES_MAX: u32 = 100;

/// Checks the first message of an interactive OCR call.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field and its bounds.
pub fn validate_ocr_request(request: &v1::OcrRequest) -> Result<(), Problem> {
    bounded("model", request.model.len(), 0, 255)?;
    no_nul("model", &request.model)?;
    bounded("media_type", request.media_type.len(), 0, 255)?;
    no_nul("media_type", &request.media_type)
}

fn unimplemented(what: &str) -> Problem {
    Problem::new(ErrorCode::Unimplemented, format!("{what} can't be used yet; leave the field empty"))
}

fn validate_stop(field: &str, stop: &[String]) -> Result<(), Problem> {
    bounded(field, stop.len(), 0, 16)?;
    for (index, text) in stop.iter().enumerate() {
        bounded(&format!("{field}[{index}]"), text.len(), 1, 256)?;
    }
    Ok(())
}

/// Checks every range of the sampling parameters.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field, its range and the value.
pub fn validate_sampling(field: &str, sampling: &v1::Sampling) -> Result<(), Problem> {
    let range = |name: &str, value: Option<f32>, low: f32, high: f32, open: bool| match value {
        Some(v) if !v.is_finite() || v > high || v < low || (open && v <= low) => Err(Problem::invalid(
            format!("{field}.{name}"),
            format!("expected {low} {} {name} <= {high}, got {v}", if open { "<" } else { "<=" }),
        )),
        _ => Ok(()),
    };
    range("temperature", sampling.temperature, 0.0, 2.0, false)?;
    range("top_p", sampling.top_p, 0.0, 1.0, true)?;
    range("min_p", sampling.min_p, 0.0, 1.0, false)?;
    range("repetition_penalty", sampling.repetition_penalty, 0.0, 10.0, true)?;
    range("presence_penalty", sampling.presence_penalty, -2.0, 2.0, false)?;
    range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0, false)?;
    bounded(&format!("{field}.top_k"), sampling.top_k.unwrap_or(0) as usize, 0, 1_000_000)?;
    bounded(&format!("{field}.repetition_window"), sampling.repetition_window.unwrap_or(0) as usize, 0, 1_000_000)?;
    bounded(&format!("{field}.logit_bias"), sampling.logit_bias.len(), 0, 1024)?;
    for (token, bias) in &sampling.logit_bias {
        range(&format!("logit_bias[{token}]"), Some(*bias), -100.0, 100.0, false)?;
    }
    Ok(())
}

pub(crate) fn bounded(field: &str, value: usize, low: usize, high: usize) -> Result<(), Problem> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(Problem::invalid(field, format!("expected {low} to {high}, got {value}")))
    }
}

pub(crate) fn no_nul(field: &str, text: &str) -> Result<(), Problem> {
    if text.contains('\0') { Err(Problem::invalid(field, "holds a NUL character")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str) -> v1::ObjectRef {
        v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() }
    }

    fn embed() -> v1::JobSpec {
        v1::JobSpec {
            kind: JobKind::Embed.into(),
            input: Some(v1::InputSpec { input: Some(Input::Tree(object("in"))) }),
            output: Some(object("out")),
            ..Default::default()
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let spec = validate_spec(embed()).unwrap();
        assert_eq!(spec.priority(), v1::Priority::Batch);
        let spec = validate_spec(v1::JobSpec { kind: JobKind::Generate.into(), ..embed() }).unwrap();
        let options = spec.generate.unwrap();
        assert_eq!(options.max_tokens, MAX_TOKENS_DEFAULT);
        assert!(options.prompt.contains("{{ document }}"));
        let spec = v1::JobSpec { embed: Some(v1::EmbedOptions::default()), ..embed() };
        let spec = validate_spec(v1::JobSpec { kind: JobKind::Ocr.into(), ..spec }).unwrap();
        assert!(spec.embed.is_none() && spec.generate.is_none(), "options of other kinds don't count");
    }

    #[test]
    fn text_is_taken_from_a_place_of_a_job_that_reads_documents() {
        let from = |path: &str| Some(v1::EmbedOptions { text_from: Some(object(path)), ..Default::default() });
        let spec = validate_spec(v1::JobSpec { embed: from("ocr"), ..embed() }).unwrap();
        assert_eq!(text_from(&spec), Some(&object("ocr")));
        assert_eq!(text_from(&v1::JobSpec { kind: JobKind::Ocr.into(), ..spec }), None);
        for path in ["a/.inglenook", "../a", "a//b"] {
            let problem = validate_spec(v1::JobSpec { embed: from(path), ..embed() }).expect_err(path);
            assert_eq!(problem.code, ErrorCode::PathRefused, "{path}");
        }
        let inline = v1::InlineInput { texts: vec!["a".into()] };
        let texts = v1::JobSpec {
            input: Some(v1::InputSpec { input: Some(Input::Inline(inline)) }),
            embed: from("ocr"),
            ..embed()
        };
        assert!(validate_spec(texts.clone()).expect_err("texts").message.contains("text_from"));
        let texts = v1::JobSpec { kind: JobKind::Ocr.into(), ..texts };
        assert!(validate_spec(texts).expect_err("texts").message.contains("pages"));
    }

    #[test]
    fn bad_specifications_name_their_field() {
        let generate = |options: v1::GenerateOptions| v1::JobSpec {
            kind: JobKind::Generate.into(),
            generate: Some(options),
            ..embed()
        };
        let sampling =
            |sampling: v1::Sampling| generate(v1::GenerateOptions { sampling: Some(sampling), ..Default::default() });
        let cases: Vec<(&str, v1::JobSpec)> = vec![
            ("JOB_KIND_UNSPECIFIED (0)", v1::JobSpec { kind: 0, ..embed() }),
            ("kind", v1::JobSpec { kind: 99, ..embed() }),
            ("input", v1::JobSpec { input: None, ..embed() }),
            ("output", v1::JobSpec { output: None, ..embed() }),
            ("model", v1::JobSpec { model: "a\0".into(), ..embed() }),
            ("deadline_ms", v1::JobSpec { deadline_ms: -1, ..embed() }),
            ("PRIORITY_BATCH, got 99", v1::JobSpec { priority: 99, ..embed() }),
            ("JOB_KIND_GENERATE, got -3", v1::JobSpec { kind: -3, ..embed() }),
            (
                "passage_tokens",
                v1::JobSpec { embed: Some(v1::EmbedOptions { passage_tokens: 3, ..Default::default() }), ..embed() },
            ),
            (
                "overlap",
                v1::JobSpec {
                    embed: Some(v1::EmbedOptions {
                        passage_tokens: 32,
                        overlap_tokens: Some(17),
                        ..Default::default()
                    }),
                    ..embed()
                },
            ),
            (
                "texts",
                v1::JobSpec {
                    input: Some(v1::InputSpec { input: Some(Input::Inline(v1::InlineInput { texts: vec![] })) }),
                    ..embed()
                },
            ),
            (
                "inline",
                v1::JobSpec {
                    input: Some(v1::InputSpec {
                        input: Some(Input::Inline(v1::InlineInput { texts: vec!["x".repeat(INLINE_BYTES_MAX + 1)] })),
                    }),
                    ..embed()
                },
            ),
            ("max_tokens", generate(v1::GenerateOptions { max_tokens: u32::MAX, ..Default::default() })),
            (
                "prompt",
                generate(v1::GenerateOptions { prompt: "x".repeat(PROMPT_BYTES_MAX + 1), ..Default::default() }),
            ),
            (
                "`titel` is unknown",
                generate(v1::GenerateOptions { prompt: "{{ titel }}".into(), ..Default::default() }),
            ),
            ("blank", generate(v1::GenerateOptions { prompt: " ".into(), ..Default::default() })),
            ("stop", generate(v1::GenerateOptions { stop: vec!["a".into(); 17], ..Default::default() })),
            ("stop[0]", generate(v1::GenerateOptions { stop: vec![String::new()], ..Default::default() })),
            ("temperature", sampling(v1::Sampling { temperature: Some(f32::NAN), ..Default::default() })),
            ("temperature", sampling(v1::Sampling { temperature: Some(1e30), ..Default::default() })),
            ("top_p", sampling(v1::Sampling { top_p: Some(1.1), ..Default::default() })),
            ("top_p", sampling(v1::Sampling { top_p: Some(0.0), ..Default::default() })),
            (
                "logit_bias",
                sampling(v1::Sampling { logit_bias: (0..1025).map(|i| (i, 0.0)).collect(), ..Default::default() }),
            ),
        ];
        for (field, spec) in cases {
            let problem = validate_spec(spec).expect_err(field);
            assert!(problem.message.contains(field), "{field}: {}", problem.message);
        }
        assert!(validate_spec(sampling(v1::Sampling { temperature: Some(-0.0), ..Default::default() })).is_ok());
    }

    #[test]
    fn exclusions_of_a_folder_are_taken() {
        let exclude = vec!["*.log".into(), "node_modules".into(), "drafts/".into(), "a/**/b.md".into()];
        let spec = v1::JobSpec { exclude: exclude.clone(), ..embed() };
        assert_eq!(validate_spec(spec.clone()).unwrap().exclude, exclude);
        let inline = Input::Inline(v1::InlineInput { texts: vec!["a".into()] });
        let texts = v1::JobSpec { input: Some(v1::InputSpec { input: Some(inline) }), ..spec };
        assert!(validate_spec(texts).expect_err("texts").message.contains("spec.exclude"));
    }

    #[test]
    fn folders_alone_are_watched_and_within_bounds() {
        let watched = |watch: v1::WatchOptions| v1::JobSpec { watch: Some(watch), ..embed() };
        let spec = validate_spec(watched(v1::WatchOptions::default())).unwrap();
        assert_eq!(spec.watch, Some(v1::WatchOptions { interval_s: 30, settle_s: Some(10) }));
        let at_once = v1::WatchOptions { interval_s: 5, settle_s: Some(0) };
        assert_eq!(validate_spec(watched(at_once)).unwrap().watch, Some(at_once), "0 is a choice, not a default");
        for (interval_s, settle_s, field) in
            [(4, 0, "interval_s"), (86_401, 0, "interval_s"), (30, 3601, "settle_s"), (30, u32::MAX, "settle_s")]
        {
            let bad = watched(v1::WatchOptions { interval_s, settle_s: Some(settle_s) });
            assert!(validate_spec(bad).expect_err(field).message.contains(field), "{field}");
        }
        let inline = Input::Inline(v1::InlineInput { texts: vec!["a".into()] });
        for input in [inline, Input::Object(object("in/a.md"))] {
            let one = v1::JobSpec { input: Some(v1::InputSpec { input: Some(input) }), ..watched(at_once) };
            assert!(validate_spec(one).expect_err("no folder").message.contains("spec.watch"));
        }
    }

    #[test]
    fn interactive_requests_are_bounded() {
        let text = |t: &str| v1::ContentPart { part: Some(v1::content_part::Part::Text(t.into())) };
        let ok = v1::GenerateRequest {
            messages: vec![v1::ChatMessage { role: "user".into(), content: vec![text("hi")], ..Default::default() }],
            ..Default::default()
        };
        assert!(validate_generate_request(&ok).is_ok());
        for (field, bad) in [
            ("messages", v1::GenerateRequest { messages: vec![], ..ok.clone() }),
            ("max_tokens", v1::GenerateRequest { max_tokens: Some(0), ..ok.clone() }),
            ("n", v1::GenerateRequest { n: Some(1 << 31), ..ok.clone() }),
            ("logprobs", v1::GenerateRequest { logprobs: Some(21), ..ok.clone() }),
            ("tools", v1::GenerateRequest { tools: vec![v1::ToolDefinition::default()], ..ok.clone() }),
            (
                "role",
                v1::GenerateRequest {
                    messages: vec![v1::ChatMessage { role: "boss".into(), ..Default::default() }],
                    ..ok.clone()
                },
            ),
        ] {
            assert!(validate_generate_request(&bad).expect_err(field).message.contains(field), "{field}");
        }
        assert!(validate_embed_request(&v1::EmbedRequest::default()).is_err());
        let many = v1::EmbedRequest { texts: vec!["x".into(); 1_000_000], ..Default::default() };
        assert!(validate_embed_request(&many).is_err());
        let big = v1::EmbedRequest { texts: vec!["x".repeat(50_000_000)], ..Default::default() };
        assert!(validate_embed_request(&big).is_err());
    }
}
