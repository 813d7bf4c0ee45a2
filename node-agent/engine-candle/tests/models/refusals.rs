//! Folders and files that can't be run: each refused by name, before anything is loaded.

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use ingle_engine::{
    Class, Engine, EngineError, GenerateRequest, LoadOptions, Message, Prompt, Request, RequestId, Resume, Sampling,
};
use ingle_engine_candle::CandleEngine;

use crate::tiny::{Changes, write_bert, write_llama};

fn refusal(dir: &Path) -> String {
    let engine = CandleEngine::new(1);
    let options = LoadOptions { dir: dir.into(), threads: 1, context: 128, slots: 1 };
    let inspected = engine.inspect(dir).err();
    let loaded = engine.load(&options).err().expect("it had to be refused");
    if let Some(inspected) = inspected {
        assert_eq!(inspected, loaded, "both say the same");
    }
    assert!(matches!(loaded, EngineError::Model { .. }) && !loaded.retryable(), "{loaded}");
    loaded.to_string()
}

fn llama(changes: Changes<'_>) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_llama(dir.path(), changes);
    refusal(dir.path())
}

fn check(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} expected in: {text}");
}

#[test]
fn folders_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    check(&refusal(dir.path()), &["neither"]);
    write_llama(dir.path(), &[]);
    fs::copy(dir.path().join("tiny.gguf"), dir.path().join("other.gguf")).unwrap();
    check(&refusal(dir.path()), &["2 GGUF files", "tiny.gguf", "other.gguf"]);
    check(&refusal(&dir.path().join("nowhere")), &["can't be listed"]);
}

#[test]
fn ggufs_of_other_kinds() {
    check(&llama(&[("general.architecture", Some(Value::String("mamba".into())))]), &["mamba", "llama"]);
    check(&llama(&[("general.architecture", None)]), &["general.architecture"]);
    check(&llama(&[("tokenizer.ggml.model", Some(Value::String("t5".into())))]), &["t5", "gpt2"]);
    check(&llama(&[("tokenizer.ggml.pre", Some(Value::String("klingon".into())))]), &["klingon", "smollm"]);
    check(&llama(&[("tokenizer.chat_template", Some(Value::String("{% if %}".into())))]), &["chat template"]);
    check(&llama(&[("llama.expert_count", Some(Value::U32(8)))]), &["experts"]);
    check(&llama(&[("llama.rope.scaling.type", Some(Value::String("yarn".into())))]), &["rotary", "yarn", "linear"]);
}

#[test]
fn ggufs_whose_numbers_lie() {
    check(&llama(&[("llama.attention.head_count", Some(Value::U32(0)))]), &["head_count", "1", "0"]);
    check(&llama(&[("llama.attention.head_count", Some(Value::U32(7)))]), &["7 heads"]);
    check(&llama(&[("llama.attention.head_count_kv", Some(Value::U32(3)))]), &["3"]);
    check(&llama(&[("llama.attention.head_count_kv", Some(Value::U32(4)))]), &["attn_k", "shape"]);
    check(&llama(&[("llama.block_count", Some(Value::U32(3)))]), &["blk.2."]);
    check(&llama(&[("llama.block_count", Some(Value::U32(u32::MAX)))]), &["block_count"]);
    check(&llama(&[("llama.rope.dimension_count", Some(Value::U32(8)))]), &["size of a head, 16"]);
    let wide = ("llama.embedding_length", Some(Value::U32(128)));
    check(&llama(&[wide, ("llama.rope.dimension_count", None)]), &["token_embd", "shape", "128"]);
    check(&llama(&[("llama.feed_forward_length", None)]), &["feed_forward_length"]);
    check(&llama(&[("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN)))]), &["epsilon"]);
    check(&llama(&[("tokenizer.ggml.token_type", Some(Value::Array(vec![Value::I32(1)])))]), &["token_type"]);
    let few = Value::Array(vec![Value::String("a".into())]);
    check(&llama(&[("tokenizer.ggml.tokens", Some(few)), ("tokenizer.ggml.token_type", None)]), &["byte"]);
    let merges = Value::Array(vec![Value::String("nothing here".into())]);
    check(&llama(&[("tokenizer.ggml.merges", Some(merges))]), &["merges"]);
}

#[test]
fn a_truncated_gguf_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    write_llama(dir.path(), &[]);
    let path = dir.path().join("tiny.gguf");
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 4096).unwrap();
    check(&refusal(dir.path()), &["tiny.gguf", "needs"]);
}

#[test]
fn berts_whose_files_disagree() {
    let bert = |file: &str, from: &str, to: &str| {
        let dir = tempfile::tempdir().unwrap();
        write_bert(dir.path());
        let path = dir.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        refusal(dir.path())
    };
    check(&bert("config.json", "\"bert\"", "\"t5\""), &["t5", "bert"]);
    check(&bert("config.json", "\"gelu\"", "\"relu\""), &["relu"]);
    check(&bert("config.json", "\"hidden_size\":48", "\"hidden_size\":96"), &["shape"]);
    check(&bert("config.json", "\"hidden_size\":48", "\"hidden_size\":0"), &["hidden_size"]);
    check(&bert("config.json", "\"num_attention_heads\":3", "\"num_attention_heads\":5"), &["num_attention_heads"]);
    check(&bert("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":9"), &["encoder.layer.2"]);
    check(&bert("modules.json", "models.Pooling", "models.Dense"), &["Dense"]);
    check(&bert("modules.json", "1_Pooling", "../../etc"), &["folder name"]);
    check(&bert("1_Pooling/config.json", "true", "false"), &["exactly one"]);
    check(&bert("sentence_bert_config.json", "32", "1"), &["max_seq_length"]);
}

#[test]
fn a_bert_without_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    write_bert(dir.path());
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    check(&refusal(dir.path()), &["tokenizer.json"]);
    fs::File::create(dir.path().join("tokenizer.json")).unwrap().set_len(500 << 20).unwrap();
    check(&refusal(dir.path()), &["tokenizer.json", "524288000"]);
}

#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_llama(dir.path(), &[("tokenizer.chat_template", None)]);
    let options = LoadOptions { dir: dir.path().into(), threads: 1, context: 64, slots: 1 };
    let mut model = CandleEngine::new(1).load(&options).unwrap();
    let base = GenerateRequest {
        prompt: Prompt::Tokens(vec![5, 6]),
        resume: Resume::default(),
        sampling: Sampling::default(),
        max_tokens: 1,
        stop: vec![],
        logprobs: 0,
    };
    let mut refused = |request: GenerateRequest| {
        model.join(RequestId(1), Class::Batch, Request::Generate(request)).unwrap_err().to_string()
    };
    check(&refused(GenerateRequest { prompt: Prompt::Tokens(vec![5, 9999]), ..base.clone() }), &["9999"]);
    let resume = Resume { emitted: vec![8888], text_offset: 0 };
    check(&refused(GenerateRequest { resume, ..base.clone() }), &["8888"]);
    let sampling = Sampling { logit_bias: vec![(7777, 1.0)], ..Sampling::default() };
    check(&refused(GenerateRequest { sampling, ..base.clone() }), &["7777"]);
    check(&refused(GenerateRequest { prompt: Prompt::Tokens(vec![5; 64]), ..base.clone() }), &["64"]);
    let messages = vec![Message { role: "user".into(), content: "hi".into() }];
    check(&refused(GenerateRequest { prompt: Prompt::Messages(messages), ..base }), &["no chat template"]);
}
