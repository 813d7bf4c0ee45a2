//! The wire's messages as JSON for scripts: names in words, digests in hexadecimal, paths as `nas://` URLs.

use ingle_proto::storage::{Object, display_bytes};
use ingle_proto::v1::{self, input_spec::Input};
use serde_json::{Value, json};

/// A job with its counts.
pub(crate) fn job(job: &v1::Job) -> Value {
    let spec = job.spec.clone().unwrap_or_default();
    json!({
        "job_id": job.job_id,
        "state": job_state(job.state()),
        "kind": kind(spec.kind()),
        "model": spec.model,
        "input": spec.input.as_ref().map(input),
        "output": spec.output.as_ref().map(object),
        "priority": priority(spec.priority()),
        "deadline_ms": none_if_zero(spec.deadline_ms),
        "force": spec.force,
        "watch": spec.watch.map(|watch| json!({ "interval_s": watch.interval_s, "settle_s": watch.settle_s })),
        "standing": job.standing.as_ref().map(standing),
        "labels": spec.labels,
        "counts": counts(&job.counts.unwrap_or_default()),
        "created_ms": none_if_zero(job.created_ms),
        "started_ms": none_if_zero(job.started_ms),
        "ended_ms": none_if_zero(job.ended_ms),
        "reason": job.reason,
        "code": job.code,
        "items_per_second": job.items_per_second,
        "eta_ms": none_if_zero(job.eta_ms),
        "principal": job.principal,
        "model_digest": hex(&job.model_digest),
        "nodes": job.nodes,
    })
}

/// A document's outcome.
pub(crate) fn item(item: &v1::Item) -> Value {
    json!({
        "name": display_bytes(&item.name),
        "outcome": outcome(item.outcome()),
        "code": item.code,
        "reason": item.reason,
        "size": item.size,
        "tokens": item.tokens,
        "passages": item.passages,
        "pages": item.pages,
        "truncated": item.truncated,
    })
}

fn counts(counts: &v1::ItemCounts) -> Value {
    json!({
        "total": counts.total, "settled": crate::commands::wait::settled(counts), "published": counts.published, "unchanged": counts.unchanged,
        "skipped": counts.skipped, "failed": counts.failed, "quarantined": counts.quarantined,
        "conflict": counts.conflict, "incomplete": counts.incomplete, "deleted": counts.deleted, "committed": counts.committed,
        "running": counts.running, "waiting": counts.waiting, "held": counts.held, "bytes_total": counts.bytes_total, "bytes_done": counts.bytes_done,
    })
}

fn standing(standing: &v1::Standing) -> Value {
    json!({
        "passes": standing.passes, "next_ms": none_if_zero(standing.next_ms), "looked_ms": none_if_zero(standing.looked_ms),
        "documents": standing.documents, "waiting": standing.waiting, "held": standing.held,
        "suspected": standing.suspected, "directories": standing.directories,
        "directories_moved": standing.directories_moved, "done": counts(&standing.done.unwrap_or_default()),
    })
}

/// Why a job is where it is.
pub(crate) fn explanation(answer: &v1::ExplainJobResponse) -> Value {
    let batches = answer.batches.iter().map(|b| {
        json!({
            "batch": b.batch, "state": b.state, "items": b.items, "attempts": b.attempts, "node_id": b.node_id,
            "reason": b.reason, "not_before_ms": none_if_zero(b.not_before_ms), "why_here": b.why_here,
            "terms": b.terms.as_ref().map(terms),
        })
    });
    let nodes = answer.nodes.iter().map(terms);
    json!({ "summary": answer.summary, "batches": batches.collect::<Value>(), "nodes": nodes.collect::<Value>() })
}

/// When work would be done on a node.
fn terms(n: &v1::NodeTerms) -> Value {
    json!({
        "node_id": n.node_id, "fits": n.fits, "why_not": n.why_not, "backlog_ms": n.backlog_ms, "load_ms": n.load_ms,
        "prefill_ms": n.prefill_ms, "output_ms": n.output_ms, "finish_ms": n.finish_ms,
    })
}

/// What failures have opened.
fn breaker(breaker: &v1::Breaker) -> Value {
    json!({
        "model": breaker.model, "state": word(breaker.state().as_str_name(), "BREAKER_STATE_"), "opened": breaker.opened,
        "open_until_ms": none_if_zero(breaker.open_until_ms), "reason": breaker.reason,
    })
}

/// Why a model is where it is.
pub(crate) fn model_explanation(answer: &v1::ExplainModelResponse) -> Value {
    let nodes = answer.nodes.iter().map(|n| {
        let leaving = n.leaving.iter().map(|l| json!({ "model": l.model, "bytes": l.bytes }));
        let evicted = n.evicted.as_ref().map(
            |e| json!({ "at_ms": e.at_ms, "bytes": e.bytes, "made_room_for": e.made_room_for, "reason": e.reason }),
        );
        json!({
            "node_id": n.node_id, "loaded": n.loaded, "ready": n.ready, "why_not": n.why_not,
            "fit": n.fit.as_ref().map(node_fit), "memory_reserved": n.memory_reserved, "has_room": n.has_room,
            "leaving": leaving.collect::<Value>(), "evicted": evicted,
            "breakers": n.breakers.iter().map(breaker).collect::<Value>(), "terms": n.terms.as_ref().map(terms),
        })
    });
    json!({
        "summary": answer.summary, "model": answer.info.as_ref().map(model_info), "nodes": nodes.collect::<Value>(),
        "calls_running": answer.calls_running, "calls_waiting": answer.calls_waiting, "service_ms": answer.service_ms,
        "wait_ms": answer.wait_ms,
    })
}

/// A node with what it has and does.
pub(crate) fn node(node: &v1::NodeStatus) -> Value {
    let capacity = node.capacity.clone().unwrap_or_default();
    let loaded = node.loaded.iter().map(|l| {
        json!({
            "model": l.model.as_ref().map(model_ref), "memory_bytes": l.memory_bytes, "slots": l.slots,
            "free_slots": l.free_slots, "prefill_tokens_per_second": l.prefill_tokens_per_second,
            "decode_tokens_per_second": l.decode_tokens_per_second,
            "document_bytes_per_second": l.document_bytes_per_second,
        })
    });
    json!({
        "node_id": node.node_id, "name": node.name, "address": node.address, "version": node.version,
        "state": node_state(node.state()), "reason": node.reason, "running": node.running, "busy_ms": node.busy_ms,
        "last_beat_ms": none_if_zero(node.last_beat_ms), "memory_reserved": node.memory_reserved,
        "capacity": {
            "cores": capacity.cores, "memory_bytes": capacity.memory_bytes,
            "memory_budget_bytes": capacity.memory_budget_bytes, "memory_bandwidth": capacity.memory_bandwidth,
            "compute_f32": capacity.compute_f32, "instruction_sets": capacity.instruction_sets, "cpu": capacity.cpu,
            "backend": capacity.backend, "slots": capacity.slots, "devices": capacity.devices,
        },
        "loaded": loaded.collect::<Value>(), "breakers": node.breakers.iter().map(breaker).collect::<Value>(),
        "drain": node.drain.as_ref().map(drain),
        // What has no sensor isn't cold.
        "temperature_celsius": (node.temperature_celsius > 0.0).then_some(node.temperature_celsius),
        "power_watts": (node.power_watts > 0.0).then_some(node.power_watts),
        "memory_pressure": node.memory_pressure, "throttled": node.throttled,
    })
}

/// How far a node's drain is.
fn drain(drain: &v1::DrainStatus) -> Value {
    let models = drain.models.iter().map(|warming| {
        json!({
            "model": warming.model, "node_id": warming.node_id, "done": warming.done, "problem": warming.problem,
        })
    });
    json!({
        "phase": word(drain.phase().as_str_name(), "DRAIN_PHASE_"), "stays": drain.stays,
        "deadline_ms": none_if_zero(drain.deadline_ms), "batches": drain.batches, "calls": drain.calls,
        "models": models.collect::<Value>(),
    })
}

/// A model and where it lies.
pub(crate) fn model(status: &v1::ModelStatus) -> Value {
    let mut value = status.info.as_ref().map_or_else(|| json!({}), model_info);
    value["loaded_on"] = json!(status.loaded_on);
    value["seen_by"] = json!(status.seen_by);
    let fetching = status.fetching.iter().map(|node| {
        let fetch = node.fetch.unwrap_or_default();
        json!({
            "node_id": node.node_id, "bytes": fetch.bytes, "bytes_total": fetch.bytes_total,
            "bytes_per_second": fetch.bytes_per_second,
        })
    });
    value["fetching"] = fetching.collect();
    value
}

fn model_info(info: &v1::ModelInfo) -> Value {
    json!({
        "name": info.model.as_ref().map(|m| m.name.clone()),
        "digest": info.model.as_ref().map(|m| hex(&m.digest)),
        "kind": kind(info.kind()), "architecture": info.architecture, "quantisation": info.quantisation,
        "parameters": info.parameters, "weight_bytes": info.weight_bytes, "bytes_per_token": info.bytes_per_token,
        "kv_bytes_per_token": info.kv_bytes_per_token, "context": info.context, "dimensions": info.dimensions,
        "layers": info.layers, "width": info.width, "problem": info.problem,
    })
}

/// What a model needs and each node has.
pub(crate) fn fit(answer: &v1::ExplainFitResponse) -> Value {
    let nodes = answer.nodes.iter().map(node_fit);
    json!({ "model": answer.info.as_ref().map(model_info), "nodes": nodes.collect::<Value>() })
}

fn node_fit(n: &v1::NodeFit) -> Value {
    json!({
        "node_id": n.node_id, "fits": n.fits, "why_not": n.why_not, "weights_bytes": n.weights_bytes,
        "kv_bytes": n.kv_bytes, "activation_bytes": n.activation_bytes, "needed_bytes": n.needed_bytes,
        "available_bytes": n.available_bytes, "tokens_per_second": n.tokens_per_second,
        "prefill_tokens_per_second": n.prefill_tokens_per_second, "load_ms": n.load_ms,
    })
}

/// A model's name and digest.
pub(crate) fn model_ref(model: &v1::ModelRef) -> Value {
    json!({ "name": model.name, "digest": hex(&model.digest) })
}

/// A frame of a generation.
pub(crate) fn frame(response: &v1::GenerateResponse) -> Value {
    use v1::generate_response::Frame;
    match &response.frame {
        Some(Frame::Started(s)) => json!({ "started": {
            "request_id": s.request_id, "model": s.model.as_ref().map(model_ref), "prompt_tokens": s.prompt_tokens,
            "seed": s.seed, "node_id": s.node_id,
        }}),
        Some(Frame::Delta(d)) => json!({ "delta": {
            "index": d.index, "token": d.token, "text_offset": d.text_offset, "text": d.text,
        }}),
        Some(Frame::Finished(f)) => json!({ "finished": {
            "reason": finish_reason(f.reason()), "text": f.text, "text_offset": f.text_offset,
            "usage": f.usage.as_ref().map(usage), "timings": f.timings.as_ref().map(timings),
        }}),
        None => json!({}),
    }
}

/// A page that was read, in the words of `docs/ocr-json.md`.
pub(crate) fn page(page: &v1::OcrPage) -> Value {
    let lines = page.lines.iter().map(|line| {
        let corners: Vec<&[f32]> = line.r#box.chunks_exact(2).collect();
        json!({ "text": line.text, "confidence": line.confidence, "box": corners, "block": line.block })
    });
    let mut value = json!({
        "number": page.number, "width": page.width, "height": page.height,
        "dpi": (page.dpi > 0).then_some(page.dpi), "turn": page.turn,
        "source": match page.source() {
            v1::PageSource::Ocr => Some("ocr"),
            v1::PageSource::Text => Some("text"),
            v1::PageSource::Unspecified => None,
        },
        "lines": lines.collect::<Vec<_>>(),
    });
    if page.source() == v1::PageSource::Unspecified {
        value["error"] = json!({ "code": page.code, "reason": page.reason });
    }
    value
}

/// Tokens read and written.
pub(crate) fn usage(usage: &v1::Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens, "cached_tokens": usage.cached_tokens,
    })
}

/// Where the time went.
pub(crate) fn timings(timings: &v1::Timings) -> Value {
    json!({
        "queue_us": timings.queue_us, "load_us": timings.load_us, "prefill_us": timings.prefill_us,
        "decode_us": timings.decode_us,
    })
}

fn input(spec: &v1::InputSpec) -> Value {
    Value::String(input_text(spec))
}

/// An input as a person would type it.
pub(crate) fn input_text(spec: &v1::InputSpec) -> String {
    match &spec.input {
        Some(Input::Object(at) | Input::Tree(at)) => object(at),
        Some(Input::Glob(glob)) => {
            let base = glob.base.as_ref().map(object).unwrap_or_default();
            format!("{}/{}", base.trim_end_matches('/'), glob.pattern)
        }
        Some(Input::Inline(inline)) => format!("{} texts", inline.texts.len()),
        Some(Input::Payload(blob)) => format!("texts of {}", crate::human::bytes(blob.size)),
        None => String::new(),
    }
}

/// An object as `nas://EXPORT/path`.
pub(crate) fn object(at: &v1::ObjectRef) -> String {
    Object::try_from(at.clone())
        .map_or_else(|_| format!("nas://{}/{}", at.export, display_bytes(&at.path)), |o| o.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn none_if_zero(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

/// The wire's name of an enum value, in lower case and without its prefix: `JOB_STATE_RUNNING` is `running`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

pub(crate) fn job_state(state: v1::JobState) -> String {
    word(state.as_str_name(), "JOB_STATE_")
}

pub(crate) fn node_state(state: v1::NodeState) -> String {
    word(state.as_str_name(), "NODE_STATE_")
}

pub(crate) fn kind(kind: v1::JobKind) -> String {
    word(kind.as_str_name(), "JOB_KIND_")
}

pub(crate) fn outcome(outcome: v1::ItemOutcome) -> String {
    word(outcome.as_str_name(), "ITEM_OUTCOME_")
}

pub(crate) fn finish_reason(reason: v1::FinishReason) -> String {
    word(reason.as_str_name(), "FINISH_REASON_")
}

fn priority(priority: v1::Priority) -> String {
    word(priority.as_str_name(), "PRIORITY_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_read_as_words() {
        assert_eq!(job_state(v1::JobState::Running), "running");
        assert_eq!(node_state(v1::NodeState::Drained), "drained");
        assert_eq!(kind(v1::JobKind::Embed), "embed");
        assert_eq!(outcome(v1::ItemOutcome::Quarantined), "quarantined");
        assert_eq!(finish_reason(v1::FinishReason::Length), "length");
    }

    #[test]
    fn names_that_are_not_utf8_survive() {
        let item = v1::Item { name: b"caf\xe9.md".to_vec().into(), ..Default::default() };
        assert_eq!(super::item(&item)["name"], "caf%E9.md");
    }

    #[test]
    fn inputs_read_back_as_typed() {
        for text in ["nas://docs/", "nas://docs/a/b", "nas://docs/a/**/*.md", "nas://docs/*.md"] {
            let spec = crate::input::parse(text, std::io::empty()).expect(text);
            assert_eq!(input_text(&spec), text);
        }
    }
}
