//! all-MiniLM-L6-v2 against vectors of sentence-transformers; `fixtures/make_golden_embeddings.py` makes them.

use std::fs;
use std::path::Path;

use ingle_engine::conformance::{self, Subject};
use ingle_engine::{Class, EmbedRequest, Engine, LoadOptions, Output, Request, RequestId, Step, Task};
use ingle_engine_candle::CandleEngine;

use crate::starter;

#[derive(serde::Deserialize)]
struct Golden {
    dimensions: usize,
    texts: Vec<GoldenText>,
}

#[derive(serde::Deserialize)]
struct GoldenText {
    name: String,
    text: String,
    tokens: u32,
    truncated: bool,
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let Some(dir) = starter::embedding() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let golden: Golden = serde_json::from_slice(&fs::read(fixtures.join("golden_embeddings.json")).unwrap()).unwrap();
    let bytes = fs::read(fixtures.join("golden_embeddings.f32")).unwrap();
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values.len(), golden.dimensions * golden.texts.len());
    assert!(golden.texts.len() >= 24);

    let mut model = CandleEngine::new(2).load(&LoadOptions { dir, threads: 2, context: 4096, slots: 1 }).unwrap();
    let texts = golden.texts.iter().map(|entry| entry.text.as_str().into()).collect();
    let request = Request::Embed(EmbedRequest { texts, normalise: false });
    model.join(RequestId(1), Class::Batch, request).unwrap();
    let mut out = Vec::new();
    while model.step(&mut out).unwrap() == Step::Busy {}
    let mut compared = 0;
    for output in &out {
        let Output::Embedding { index, vector, tokens, truncated, .. } = output else { continue };
        let entry = &golden.texts[*index as usize];
        let expected = &values[*index as usize * golden.dimensions..][..golden.dimensions];
        assert_eq!((*tokens, *truncated), (entry.tokens, entry.truncated), "{}: tokens, truncated", entry.name);
        let cosine = cosine(vector, expected);
        assert!(cosine >= 0.9999, "{}: cosine {cosine}", entry.name);
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-4, "{}: length {length}; modules.json asks for unit vectors", entry.name);
        compared += 1;
    }
    assert_eq!(compared, golden.texts.len());
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn parts_between_blanks_have_the_ids_of_the_whole() {
    let Some(dir) = starter::embedding() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let golden: Golden = serde_json::from_slice(&fs::read(fixtures.join("golden_embeddings.json")).unwrap()).unwrap();
    let model = CandleEngine::new(2).load(&LoadOptions { dir, threads: 2, context: 4096, slots: 1 }).unwrap();
    let tokens = model.tokens();
    assert!(tokens.same_between_blanks(), "passages of this model needn't be tokenised twice");
    let mut cuts = 0;
    for GoldenText { name, text, .. } in &golden.texts {
        let whole = tokens.encode(text).unwrap().ids;
        let blanks = text.bytes().enumerate().filter(|(_, byte)| b" \n\t\r".contains(byte));
        for (at, _) in blanks.take(20) {
            let parts = [&text[..at], &text[at..]].map(|part| tokens.encode(part).unwrap().ids);
            assert_eq!(parts.concat(), whole, "{name}, cut at {at}");
            cuts += 1;
        }
    }
    assert!(cuts > 50, "{cuts} cuts");
}

#[test]
fn the_starter_folder_is_known_for_what_it_is() {
    let Some(dir) = starter::embedding() else { return };
    let engine = CandleEngine::new(2);
    let names = [
        "README.md",
        "config.json",
        "1_Pooling/config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "vocab.txt",
    ];
    let files = engine.files(&names.map(String::from)).unwrap();
    assert_eq!(files, ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]);
    let card = engine.inspect(&dir).unwrap();
    assert_eq!((card.task, card.architecture.as_str(), card.quantisation.as_str()), (Task::Embed, "bert", "F32"));
    assert_eq!((card.dimensions, card.context, card.layers, card.width), (384, 256, 6, 384));
    assert!((22_000_000..24_000_000).contains(&card.parameters), "{}", card.parameters);
}

#[test]
fn the_starter_model_does_what_every_engine_must() {
    let Some(dir) = starter::embedding() else { return };
    conformance::embed::run(&Subject { engine: &CandleEngine::new(2), dir: &dir, tolerance: 1e-5 });
}
