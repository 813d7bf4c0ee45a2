//! Fake models: a file each, which says how the engine for tests shall behave.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A model of the deterministic engine.
#[derive(Debug, Clone)]
pub struct FakeModel {
    name: String,
    fields: Map<String, Value>,
}

impl FakeModel {
    /// Texts to vectors of 16 dimensions; passages of at most 62 words.
    #[must_use]
    pub fn that_embeds(name: &str) -> Self {
        Self::new(name, "embed").with("dimensions", 16).with("context", 64)
    }

    /// Prompts to answers of so many tokens.
    #[must_use]
    pub fn that_answers(name: &str, tokens: u32) -> Self {
        Self::new(name, "generate").with("output_tokens", tokens).with("context", 2048)
    }

    /// Pages to what their pixels spell, so many lines in a step.
    #[must_use]
    pub fn that_reads(name: &str) -> Self {
        Self::new(name, "ocr").with("tokens_per_step", 1)
    }

    fn new(name: &str, task: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("task".into(), json!(task));
        Self { name: name.into(), fields }
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.into(), value.into());
        self
    }

    /// Every step takes so long.
    #[must_use]
    pub fn at_ms_per_step(self, ms: u64) -> Self {
        self.with("step_ms", ms)
    }

    /// Texts with this word in them can't be computed.
    #[must_use]
    pub fn poisoned_by(self, word: &str) -> Self {
        self.with("poison", word)
    }

    /// Texts with this word in them make the model's thread panic.
    #[must_use]
    pub fn panicking_at(self, word: &str) -> Self {
        self.with("panic", word)
    }

    /// A step with texts that have this word in them never comes back.
    #[must_use]
    pub fn hanging_at(self, word: &str) -> Self {
        self.with("hang", word)
    }

    /// An answer to a text that says `hold at N` waits before its token N until this file is there.
    #[must_use]
    pub fn held_until(self, released: &Path) -> Self {
        self.with("hold_until", released.display().to_string())
    }

    /// So many requests at once.
    #[must_use]
    pub fn with_slots(self, slots: u32) -> Self {
        self.with("slots", slots)
    }

    /// Puts it into its folder below `root`.
    ///
    /// # Panics
    /// The file system refuses.
    pub fn put(&self, root: &Path) {
        let folder = root.join(&self.name);
        std::fs::create_dir_all(&folder).expect("a folder for the model");
        let text = Value::Object(self.fields.clone()).to_string();
        std::fs::write(folder.join(ingle_engine::fake::FAKE_MODEL_FILE), text).expect("room for the model's file");
    }
}
