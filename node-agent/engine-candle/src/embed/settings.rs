//! What the small files of a sentence-transformers folder say: shape of the network, pooling, normalisation, longest input.

use std::path::Path;

use ingle_engine::EngineError;

use crate::weights::file::read_json;

const CONFIG: &str = "config.json";
const MODULES: &str = "modules.json";
const SENTENCE: &str = "sentence_bert_config.json";

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Their mean.
    Mean,
    /// The first one's.
    Cls,
    /// The largest of each value.
    Max,
}

/// The network's shape and what is done around it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) architecture: String,
    /// Width of the residual stream.
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Width inside the feed-forward part.
    pub(crate) inner: usize,
    pub(crate) vocabulary: usize,
    pub(crate) positions: usize,
    pub(crate) types: usize,
    pub(crate) epsilon: f32,
    /// Longest input in tokens, special ones included.
    pub(crate) max_tokens: usize,
    pub(crate) pooling: Pooling,
    /// The folder asks for unit vectors.
    pub(crate) normalise: bool,
}

#[derive(serde::Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn two() -> usize {
    2
}
fn epsilon() -> f64 {
    1e-12
}
fn gelu() -> String {
    "gelu".into()
}
fn absolute() -> String {
    "absolute".into()
}

#[derive(serde::Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(serde::Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct PoolingConfig {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
}

fn fail<T>(file: &str, problem: impl Into<String>) -> Result<T, EngineError> {
    Err(EngineError::Model { file: file.into(), problem: problem.into() })
}

impl Settings {
    /// Reads `config.json` and, where they are, the sentence-transformers files. Without those: mean pooling, no normalisation.
    pub(crate) fn read(dir: &Path) -> Result<Self, EngineError> {
        let config: Config = read_json(dir, CONFIG)?;
        check(&config)?;
        let (pooling, normalise) = modules(dir)?;
        let mut max_tokens = config.max_position_embeddings;
        if dir.join(SENTENCE).exists() {
            let sentence: SentenceConfig = read_json(dir, SENTENCE)?;
            max_tokens = sentence.max_seq_length.unwrap_or(max_tokens).min(max_tokens);
        }
        // Two special tokens and one of text at least.
        if max_tokens < 3 {
            return fail(SENTENCE, format!("max_seq_length must be at least 3, found {max_tokens}"));
        }
        Ok(Self {
            architecture: config.model_type,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            inner: config.intermediate_size,
            vocabulary: config.vocab_size,
            positions: config.max_position_embeddings,
            types: config.type_vocab_size,
            epsilon: config.layer_norm_eps as f32,
            max_tokens,
            pooling,
            normalise,
        })
    }
}

fn check(config: &Config) -> Result<(), EngineError> {
    if config.model_type != "bert" {
        return fail(CONFIG, format!("model_type {:?} can't be run, \"bert\" can", config.model_type));
    }
    if config.hidden_act != "gelu" {
        return fail(CONFIG, format!("hidden_act {:?} can't be run, \"gelu\" can", config.hidden_act));
    }
    if config.position_embedding_type != "absolute" {
        return fail(
            CONFIG,
            format!("position_embedding_type {:?} can't be run, \"absolute\" can", config.position_embedding_type),
        );
    }
    for (name, value, most) in [
        ("hidden_size", config.hidden_size, 1 << 14),
        ("num_hidden_layers", config.num_hidden_layers, 1 << 10),
        ("num_attention_heads", config.num_attention_heads, 1 << 10),
        ("intermediate_size", config.intermediate_size, 1 << 17),
        ("vocab_size", config.vocab_size, 1 << 24),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 17),
        ("type_vocab_size", config.type_vocab_size, 1 << 10),
    ] {
        if value == 0 || value > most {
            return fail(CONFIG, format!("{name} must be between 1 and {most}, found {value}"));
        }
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return fail(
            CONFIG,
            format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                config.hidden_size, config.num_attention_heads
            ),
        );
    }
    // Written so that NaN is refused too.
    if !(config.layer_norm_eps >= 0.0 && config.layer_norm_eps < 1.0) {
        return fail(CONFIG, format!("layer_norm_eps must be between 0 and 1, found {}", config.layer_norm_eps));
    }
    Ok(())
}

fn modules(dir: &Path) -> Result<(Pooling, bool), EngineError> {
    if !dir.join(MODULES).exists() {
        return Ok((Pooling::Mean, false));
    }
    let modules: Vec<Module> = read_json(dir, MODULES)?;
    let (mut pooling, mut normalise) = (Pooling::Mean, false);
    for module in &modules {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if module.path.is_empty() => {}
            "Pooling" => pooling = read_pooling(dir, &module.path)?,
            "Normalize" => normalise = true,
            other => return fail(MODULES, format!("a module of type {other:?} at {:?} can't be run", module.path)),
        }
    }
    Ok((pooling, normalise))
}

fn read_pooling(dir: &Path, path: &str) -> Result<Pooling, EngineError> {
    // The path comes from the model's files: it stays below the model's folder.
    if path.is_empty() || path.contains(['/', '\\', '\0']) || path.starts_with('.') {
        return fail(MODULES, format!("the pooling module's path {path:?} is no plain folder name"));
    }
    let file = format!("{path}/{CONFIG}");
    let config: PoolingConfig = read_json(dir, &file)?;
    match config {
        PoolingConfig { pooling_mode_mean_sqrt_len_tokens: true, .. } => {
            fail(&file, "pooling_mode_mean_sqrt_len_tokens can't be run")
        }
        PoolingConfig {
            pooling_mode_cls_token: true,
            pooling_mode_mean_tokens: false,
            pooling_mode_max_tokens: false,
            ..
        } => Ok(Pooling::Cls),
        PoolingConfig {
            pooling_mode_cls_token: false,
            pooling_mode_mean_tokens: true,
            pooling_mode_max_tokens: false,
            ..
        } => Ok(Pooling::Mean),
        PoolingConfig {
            pooling_mode_cls_token: false,
            pooling_mode_mean_tokens: false,
            pooling_mode_max_tokens: true,
            ..
        } => Ok(Pooling::Max),
        _ => fail(&file, "exactly one of cls, mean and max pooling must be chosen"),
    }
}
