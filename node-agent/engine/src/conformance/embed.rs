//! Checks for models that embed.

use super::{Subject, drain, join, owner, refusal, step};
use crate::{Class, EmbedRequest, EmbedText, EngineError, Model, Output, Request, RequestId, Step, Task};

/// All of them.
pub fn run(subject: &Subject) {
    card_is_plausible(subject);
    batch_equals_singles(subject);
    known_ids_change_nothing(subject);
    order_and_counts_are_kept(subject);
    oversize_is_cut_and_said(subject);
    bad_requests_are_refused(subject);
    leaving_frees_the_slot(subject);
    interactive_goes_before_batch(subject);
}

fn request(texts: &[&str]) -> Request {
    Request::Embed(EmbedRequest { texts: texts.iter().map(|text| EmbedText::from(*text)).collect(), normalise: true })
}

fn texts() -> Vec<&'static str> {
    vec![
        "A kettle on the hob.",
        "",
        "The contract ends on the last day of March unless both parties agree in writing that it goes on for another year.",
        "naïve café, Größe, 東京の天気, 🔥",
        "A kettle on the hob.",
        "fn main() { println!(\"{}\", 6 * 7); }",
        "one",
        "two words",
    ]
}

/// A text's vector, its token count, and whether it was cut.
type Found = (Vec<f32>, u32, bool);

/// In the order of the texts.
fn vectors(out: &[Output], id: u64) -> Vec<Found> {
    let mut found: Vec<(u32, Found)> = Vec::new();
    for output in out {
        if let Output::Embedding { id: RequestId(of), index, vector, tokens, truncated } = output
            && *of == id
        {
            found.push((*index, (vector.clone(), *tokens, *truncated)));
        }
    }
    found.sort_by_key(|(index, _)| *index);
    let indices: Vec<u32> = found.iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, (0..found.len() as u32).collect::<Vec<_>>(), "each text has one vector");
    found.into_iter().map(|(_, value)| value).collect()
}

fn embed(model: &mut dyn Model, id: u64, texts: &[&str]) -> Vec<Found> {
    join(model, id, Class::Batch, request(texts));
    let found = vectors(&drain(model), id);
    assert_eq!(found.len(), texts.len(), "each text has a vector");
    found
}

fn card_is_plausible(subject: &Subject) {
    let card = subject.engine.inspect(subject.dir).unwrap_or_else(|error| panic!("inspect: {error}"));
    assert_eq!(card.task, Task::Embed);
    assert!(card.dimensions > 0 && card.weight_bytes > 0 && card.context > 0, "{card:?}");
    let model = subject.load(2);
    assert_eq!(model.card().dimensions, card.dimensions);
    assert_eq!(model.free_slots(), 2);
    assert!(model.memory_bytes() > 0);
}

fn batch_equals_singles(subject: &Subject) {
    let mut model = subject.load(4);
    let together = embed(model.as_mut(), 1, &texts());
    for (index, text) in texts().into_iter().enumerate() {
        let alone = embed(model.as_mut(), 2, &[text]);
        let dimensions = model.card().dimensions as usize;
        assert_eq!(alone[0].0.len(), dimensions);
        let length = alone[0].0.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-3, "text {index}: length {length}, expected 1");
        for (at, (a, b)) in alone[0].0.iter().zip(&together[index].0).enumerate() {
            let distance = (a - b).abs();
            // Written so that NaN fails.
            assert!(distance <= subject.tolerance, "text {index}, value {at}: {a} alone, {b} in the batch");
        }
        assert_eq!((alone[0].1, alone[0].2), (together[index].1, together[index].2), "text {index}: tokens, truncated");
    }
}

fn known_ids_change_nothing(subject: &Subject) {
    let mut model = subject.load(4);
    let tokens = model.tokens();
    let long = "hearth and paper ".repeat(tokens.max_tokens() + 8);
    let texts: Vec<&str> = texts().into_iter().chain([long.as_str()]).collect();
    let without = embed(model.as_mut(), 1, &texts);
    let known = texts.iter().map(|text| {
        let encoding = tokens.encode(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        EmbedText::tokenised(text, &encoding.ids)
    });
    let request = EmbedRequest { texts: known.collect(), normalise: true };
    join(model.as_mut(), 2, Class::Batch, Request::Embed(request));
    let with = vectors(&drain(model.as_mut()), 2);
    assert_eq!(with.len(), without.len());
    for (index, (with, without)) in with.iter().zip(&without).enumerate() {
        assert_eq!((with.1, with.2), (without.1, without.2), "text {index}: tokens, truncated");
        let near = with.0.iter().zip(&without.0).all(|(a, b)| (a - b).abs() <= subject.tolerance);
        assert!(near, "text {index}: another vector with its ids than without");
    }
}

fn order_and_counts_are_kept(subject: &Subject) {
    let mut model = subject.load(4);
    join(model.as_mut(), 1, Class::Batch, request(&texts()));
    join(model.as_mut(), 2, Class::Batch, request(&["two words", "one"]));
    let out = drain(model.as_mut());
    let (first, second) = (vectors(&out, 1), vectors(&out, 2));
    for id in [1, 2] {
        let last = out.iter().rev().find(|output| owner(output) == RequestId(id));
        let tokens: u32 = if id == 1 { &first } else { &second }.iter().map(|vector| vector.1).sum();
        assert!(
            matches!(last, Some(Output::Done { prompt_tokens, .. }) if *prompt_tokens == tokens),
            "request {id} ends with Done and {tokens} tokens: {last:?}"
        );
    }
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() <= subject.tolerance);
    assert!(near(&second[0].0, &first[7].0) && near(&second[1].0, &first[6].0), "vectors went to the wrong texts");
    assert!(!near(&first[6].0, &first[7].0), "different texts have different vectors");
}

fn oversize_is_cut_and_said(subject: &Subject) {
    let mut model = subject.load(2);
    let long = "hearth and paper ".repeat(model.tokens().max_tokens() + 8);
    let found = embed(model.as_mut(), 1, &["hearth", &long]);
    assert!(!found[0].2 && found[1].2, "only the long text is cut");
    assert!(found[1].1 as usize >= model.tokens().max_tokens(), "it is cut at the limit, not before");
    assert!(found[1].1 <= model.card().context, "it is cut at the limit, not after");
}

fn bad_requests_are_refused(subject: &Subject) {
    let mut model = subject.load(1);
    assert!(matches!(refusal(model.as_mut(), request(&[])), EngineError::Input(_)));
    let generate = super::generate::request("hello", 4);
    assert!(matches!(refusal(model.as_mut(), Request::Generate(generate)), EngineError::Input(_)));
    join(model.as_mut(), 1, Class::Batch, request(&["one"]));
    let full = refusal(model.as_mut(), request(&["two"]));
    assert!(matches!(full, EngineError::Full { slots: 1 }) && full.retryable(), "{full}");
}

fn leaving_frees_the_slot(subject: &Subject) {
    let mut model = subject.load(2);
    let before = model.memory_bytes();
    join(model.as_mut(), 1, Class::Batch, request(&texts()));
    assert!(model.join(RequestId(1), Class::Batch, request(&["again"])).is_err(), "one id, one request");
    join(model.as_mut(), 2, Class::Batch, request(&["stays"]));
    assert_eq!(model.free_slots(), 0);
    let mut out = Vec::new();
    step(model.as_mut(), &mut out);
    model.leave(RequestId(1));
    model.leave(RequestId(77));
    out.clear();
    while step(model.as_mut(), &mut out) == Step::Busy {}
    assert!(out.iter().all(|output| owner(output) == RequestId(2)), "who left says nothing more");
    assert_eq!(model.free_slots(), 2);
    assert!(model.memory_bytes() <= before, "{} bytes held, {before} before", model.memory_bytes());
}

fn interactive_goes_before_batch(subject: &Subject) {
    let mut model = subject.load(4);
    // More than a step can do even of a tiny model.
    let many: Vec<&str> = texts().into_iter().cycle().take(4000).collect();
    join(model.as_mut(), 1, Class::Batch, request(&many));
    let mut out = Vec::new();
    step(model.as_mut(), &mut out);
    join(model.as_mut(), 2, Class::Interactive, request(&["quick"]));
    out.clear();
    while !out.iter().any(|output| matches!(output, Output::Done { id: RequestId(2), .. })) {
        step(model.as_mut(), &mut out);
    }
    // The step that ended the person's request may have gone on with the batch.
    let waited = out.iter().take_while(|output| !matches!(output, Output::Done { id: RequestId(2), .. }));
    assert!(waited.map(owner).all(|id| id == RequestId(2)), "batch work was done while a person waited");
    while step(model.as_mut(), &mut out) == Step::Busy {}
    assert!(
        out.iter().any(|output| matches!(output, Output::Done { id: RequestId(1), .. })),
        "batch work goes on after"
    );
}
