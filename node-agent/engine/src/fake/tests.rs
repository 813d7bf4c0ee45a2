//! The fake engine against its own promises, and against the suite that every engine runs.

use std::fs;

use super::*;
use crate::conformance::{self, Subject};
use crate::{EmbedRequest, EmbedText, GenerateRequest, Message, Prompt, Resume, Sampling};

fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FAKE_MODEL_FILE), config).unwrap();
    dir
}

fn load(dir: &tempfile::TempDir) -> Box<dyn Model> {
    let options = LoadOptions { dir: dir.path().into(), threads: 1, context: 4096, slots: 8 };
    FakeEngine.load(&options).unwrap()
}

fn drain(model: &mut dyn Model) -> Vec<Output> {
    let mut out = Vec::new();
    while model.step(&mut out).unwrap() == Step::Busy {}
    out
}

#[test]
fn the_fake_embeds_as_every_engine_must() {
    let dir = folder(r#"{"task":"embed","dimensions":16,"context":64,"tokens_per_step":16}"#);
    conformance::embed::run(&Subject { engine: &FakeEngine, dir: dir.path(), tolerance: 1e-6 });
}

#[test]
fn the_fake_generates_as_every_engine_must() {
    let dir = folder(r#"{"task":"generate","context":256,"tokens_per_step":4,"output_tokens":40}"#);
    conformance::generate::run(&Subject { engine: &FakeEngine, dir: dir.path(), tolerance: 0.0 });
}

#[test]
fn only_its_own_folders_are_models() {
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(FakeEngine.files(&names(&["model.gguf"])), None);
    assert_eq!(FakeEngine.files(&names(&["x/fake-model.json"])), None);
    let files = FakeEngine.files(&names(&["weights.bin", "README.md", "fake-model.json"]));
    assert_eq!(files, Some(names(&["fake-model.json", "weights.bin"])));
}

#[test]
fn a_bad_model_file_says_what_is_wrong() {
    for (text, word) in [
        ("{}", "task"),
        (r#"{"task":"embed","colour":1}"#, "colour"),
        (r#"{"task":"embed","dimensions":0}"#, "dimensions"),
        ("[", "EOF"),
    ] {
        let error = FakeEngine.inspect(folder(text).path()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(FAKE_MODEL_FILE), "{error}");
    }
}

#[test]
fn a_poisonous_text_fails_its_own_request_and_no_other() {
    let dir = folder(r#"{"task":"embed","poison":"arsenic"}"#);
    let mut model = load(&dir);
    let embed = |text: &str| Request::Embed(EmbedRequest { texts: vec!["fine".into(), text.into()], normalise: true });
    model.join(RequestId(1), Class::Batch, embed("a glass of arsenic")).unwrap();
    model.join(RequestId(2), Class::Batch, embed("a glass of milk")).unwrap();
    let out = drain(model.as_mut());
    assert!(out.iter().any(|o| matches!(o, Output::Failed { id: RequestId(1), error: EngineError::Compute(_) })));
    assert!(out.iter().any(|o| matches!(o, Output::Done { id: RequestId(2), .. })));
    assert_eq!(model.free_slots(), 8);
}

#[test]
fn the_panic_word_panics() {
    let dir = folder(r#"{"task":"generate","panic":"earthquake"}"#);
    let mut model = load(&dir);
    let request = GenerateRequest {
        prompt: Prompt::Messages(vec![Message { role: "user".into(), content: "an earthquake".into() }]),
        resume: Resume::default(),
        sampling: Sampling::default(),
        max_tokens: 4,
        stop: vec![],
        logprobs: 0,
    };
    model.join(RequestId(1), Class::Batch, Request::Generate(request)).unwrap();
    let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.step(&mut Vec::new())));
    assert!(step.is_err());
}

#[test]
fn texts_that_share_words_are_near() {
    let dir = folder(r#"{"task":"embed","dimensions":64}"#);
    let mut model = load(&dir);
    let texts = ["the red fox", "a red fox", "tax return 2019"].map(EmbedText::from).to_vec();
    model.join(RequestId(1), Class::Batch, Request::Embed(EmbedRequest { texts, normalise: true })).unwrap();
    let vectors: Vec<Vec<f32>> = drain(model.as_mut())
        .into_iter()
        .filter_map(|o| match o {
            Output::Embedding { vector, .. } => Some(vector),
            _ => None,
        })
        .collect();
    let dot = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum::<f32>();
    assert!(dot(0, 1) > dot(0, 2) + 0.2, "{} {}", dot(0, 1), dot(0, 2));
}

fn talk(text: &str, sampling: Sampling, resume: Resume) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Messages(vec![Message { role: "user".into(), content: text.into() }]),
        resume,
        sampling,
        max_tokens: 100,
        stop: vec![],
        logprobs: 0,
    }
}

fn said(out: &[Output], of: u64) -> Vec<u32> {
    let token = |output: &Output| match output {
        Output::Token { id: RequestId(id), token, .. } if *id == of => Some(*token),
        _ => None,
    };
    out.iter().filter_map(token).collect()
}

#[test]
fn a_generation_is_held_before_its_token_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let released = dir.path().join("released");
    let text = serde_json::json!({"task": "generate", "output_tokens": 9, "hold_until": released}).to_string();
    std::fs::write(dir.path().join(FAKE_MODEL_FILE), text).unwrap();
    let mut model = load(&dir);
    let ask = |text: &str| Request::Generate(talk(text, Sampling::default(), Resume::default()));
    model.join(RequestId(1), Class::Interactive, ask("please hold at 4, then go on")).unwrap();
    model.join(RequestId(2), Class::Interactive, ask("no holding")).unwrap();
    model.join(RequestId(3), Class::Interactive, ask("hold at 0")).unwrap();
    let mut out = Vec::new();
    for _ in 0..40 {
        assert_eq!(model.step(&mut out).unwrap(), Step::Busy);
    }
    assert_eq!([1, 2, 3].map(|id| said(&out, id).len()), [4, 9, 0]);
    assert!(out.iter().any(|output| matches!(output, Output::PromptTokens { id: RequestId(3), .. })));
    std::fs::write(released, "").unwrap();
    while model.step(&mut out).unwrap() == Step::Busy {}
    assert_eq!([1, 2, 3].map(|id| said(&out, id).len()), [9, 9, 9]);
}

#[test]
fn with_penalties_a_token_depends_on_those_before_it() {
    let dir = folder(r#"{"task":"generate","output_tokens":30}"#);
    let mut model = load(&dir);
    let mut run = |sampling: Sampling, emitted: Vec<u32>| {
        let resume = Resume { emitted, text_offset: 0 };
        model.join(RequestId(1), Class::Batch, Request::Generate(talk("tell me", sampling, resume))).unwrap();
        said(&drain(model.as_mut()), 1)
    };
    let penal = Sampling { repetition_penalty: 1.2, seed: 3, ..Sampling::default() };
    let whole = run(penal.clone(), vec![]);
    assert_ne!(whole, run(Sampling { seed: 3, ..Sampling::default() }, vec![]));
    for cut in 0..30 {
        assert_eq!(run(penal.clone(), whole[..cut].to_vec()), whole[cut..], "after a cut at {cut}");
    }
    let mut other = whole[..10].to_vec();
    other[2] += 1;
    assert_ne!(run(penal, other), whole[10..], "a past that was lost shows");
}

#[test]
fn ids_of_another_text_are_refused() {
    let dir = folder(r#"{"task":"embed"}"#);
    let mut model = load(&dir);
    let ids = model.tokens().encode("a glass of milk").unwrap().ids;
    let mut embed = |text: &str| {
        let texts = vec![EmbedText::tokenised(text, &ids)];
        model.join(RequestId(1), Class::Batch, Request::Embed(EmbedRequest { texts, normalise: true }))
    };
    assert!(matches!(embed("a glass of water"), Err(EngineError::Input(_))));
    assert!(embed("a glass of milk").is_ok());
}

#[test]
fn token_offsets_cover_the_text() {
    let text = "  Über-langeszusammengesetztes Wort,\n\nende 🔥 ";
    let encoding = FakeTokens::new(64).encode(text).unwrap();
    let joined: String = encoding.offsets.iter().map(|&(start, end)| &text[start..end]).collect();
    assert_eq!(joined, text);
    assert!(encoding.ids.len() > 4);
}

#[test]
fn pages_say_what_their_pixels_spell() {
    let mut pixels = vec![0u8; 3 * 8];
    pixels[..5].copy_from_slice(b"hello");
    pixels[16..20].copy_from_slice(b"page");
    let page = crate::PageImage { width: 8, height: 3, channels: 1, pixels: pixels.into() };
    let dir = folder(r#"{"task": "ocr", "tokens_per_step": 1}"#);
    let mut model = load(&dir);
    model.join(RequestId(1), Class::Batch, Request::Ocr(crate::OcrRequest { page })).unwrap();
    let mut out = Vec::new();
    assert_eq!(model.step(&mut out).unwrap(), Step::Busy);
    assert!(out.is_empty());
    assert_eq!(model.step(&mut out).unwrap(), Step::Idle);
    let Output::Page { page, .. } = &out[0] else { panic!("{out:?}") };
    assert_eq!(page.plain(), "hello\npage\n");
    assert_eq!(page.lines[1].corners[0], [0.0, 2.0]);
    assert!(matches!(out[1], Output::Done { .. }));
}
