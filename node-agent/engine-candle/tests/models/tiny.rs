//! Models of a few thousand seeded random weights, written into a temporary folder: everything but good answers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use ingle_engine::conformance::{self, Subject};
use ingle_engine_candle::CandleEngine;

const WIDTH: usize = 64;
const INNER: usize = 96;
const LAYERS: usize = 2;
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                        '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Seeded values between −`scale` and `scale`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.next() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

/// The alphabet of byte-level BPE, as the vocabulary of a GGUF spells it.
fn alphabet() -> Vec<String> {
    let mut next = 0x100u32;
    (0..256u32)
        .map(|byte| {
            let code = if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

/// What a test changes of the metadata; `None` leaves a key out.
pub(crate) type Changes<'a> = &'a [(&'a str, Option<Value>)];

/// Writes a llama of two layers.
pub(crate) fn write_llama(dir: &Path, changes: Changes<'_>) {
    let mut tokens: Vec<String> = SPECIALS.iter().map(ToString::to_string).collect();
    tokens.extend(alphabet());
    let merges = ["h e", "t he", "Ġ the", "i n", "o r", "Ġ a"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let kinds: Vec<Value> = (0..tokens.len()).map(|id| Value::I32(if id < SPECIALS.len() { 3 } else { 1 })).collect();
    let vocabulary = tokens.len();
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let mut metadata: BTreeMap<&str, Value> = BTreeMap::from([
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.context_length", Value::U32(512)),
        ("llama.embedding_length", Value::U32(WIDTH as u32)),
        ("llama.feed_forward_length", Value::U32(INNER as u32)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", Value::U32(16)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", texts(merges.iter().map(ToString::to_string).collect())),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.chat_template", Value::String(TEMPLATE.into())),
    ]);
    for (key, value) in changes {
        match value {
            Some(value) => metadata.insert(key, value.clone()),
            None => metadata.remove(key),
        };
    }
    let mut random = Random(7);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], kind: GgmlDType, scale: f32| {
        tensors.push((name, QTensor::quantize(&random.tensor(shape, scale), kind).unwrap()));
    };
    add("token_embd.weight".into(), &[vocabulary, WIDTH], GgmlDType::Q8_0, 1.0);
    add("output_norm.weight".into(), &[WIDTH], GgmlDType::F32, 1.0);
    for layer in 0..LAYERS {
        for (name, shape, kind) in [
            ("attn_q", &[WIDTH, WIDTH][..], GgmlDType::Q4_1),
            ("attn_k", &[WIDTH / 2, WIDTH], GgmlDType::Q4_1),
            ("attn_v", &[WIDTH / 2, WIDTH], GgmlDType::Q8_0),
            ("attn_output", &[WIDTH, WIDTH], GgmlDType::Q4_1),
            ("ffn_gate", &[INNER, WIDTH], GgmlDType::Q4_1),
            ("ffn_up", &[INNER, WIDTH], GgmlDType::F16),
            ("ffn_down", &[WIDTH, INNER], GgmlDType::Q4_0),
            ("attn_norm", &[WIDTH], GgmlDType::F32),
            ("ffn_norm", &[WIDTH], GgmlDType::F32),
        ] {
            add(format!("blk.{layer}.{name}.weight"), shape, kind, 0.4);
        }
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(dir.join("tiny.gguf")).unwrap(), &metadata, &tensors).unwrap();
}

/// Writes a BERT of two layers with a tokenizer that, like all-MiniLM-L6-v2's, asks for truncation and padding nobody wants.
pub(crate) fn write_bert(dir: &Path) {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "kettle", "on", "the", "hob", "hearth", "and", "paper", ".", "one",
        "two", "words", "##s", "quick",
    ];
    let vocabulary: BTreeMap<&str, usize> = words.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let special = |id: usize| serde_json::json!({"id": id, "content": words[id], "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary}
    });
    let config = serde_json::json!({"model_type": "bert", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
        "vocab_size": words.len(), "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"});
    let modules = serde_json::json!([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]);
    fs::create_dir(dir.join("1_Pooling")).unwrap();
    for (name, value) in [
        ("tokenizer.json", &tokenizer),
        ("config.json", &config),
        ("modules.json", &modules),
        ("1_Pooling/config.json", &serde_json::json!({"pooling_mode_mean_tokens": true})),
        ("sentence_bert_config.json", &serde_json::json!({"max_seq_length": 32})),
    ] {
        fs::write(dir.join(name), value.to_string()).unwrap();
    }
    let mut random = Random(11);
    let mut tensors: std::collections::HashMap<String, Tensor> = std::collections::HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let _ = tensors.insert(name, random.tensor(shape, 0.3));
    };
    add("embeddings.word_embeddings.weight".into(), &[words.len(), 48]);
    add("embeddings.position_embeddings.weight".into(), &[64, 48]);
    add("embeddings.token_type_embeddings.weight".into(), &[2, 48]);
    let mut dense = |name: &str, out: usize, into: usize| {
        add(format!("{name}.weight"), &[out, into]);
        add(format!("{name}.bias"), &[out]);
    };
    for layer in 0..2 {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        for name in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            dense(&at(name), 48, 48);
        }
        dense(&at("intermediate.dense"), 80, 48);
        dense(&at("output.dense"), 48, 80);
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add_norm(&mut dense, &at(norm));
        }
    }
    add_norm(&mut dense, "embeddings.LayerNorm");
    for (name, tensor) in &mut tensors {
        // A norm's weight and bias are vectors; `dense` made a matrix of one column.
        if name.contains("LayerNorm") && name.ends_with("weight") {
            *tensor = tensor.flatten_all().unwrap();
        }
    }
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}

fn add_norm(dense: &mut impl FnMut(&str, usize, usize), name: &str) {
    dense(name, 48, 1);
}

#[test]
fn a_tiny_llama_does_what_every_engine_must() {
    let dir = tempfile::tempdir().unwrap();
    write_llama(dir.path(), &[]);
    conformance::generate::run(&Subject { engine: &CandleEngine::new(2), dir: dir.path(), tolerance: 0.0 });
}

#[test]
fn a_tiny_bert_does_what_every_engine_must() {
    let dir = tempfile::tempdir().unwrap();
    write_bert(dir.path());
    conformance::embed::run(&Subject { engine: &CandleEngine::new(2), dir: dir.path(), tolerance: 1e-5 });
}
