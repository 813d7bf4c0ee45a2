//! Embedding a list of texts with our engine.

use std::path::Path;
use std::time::{Duration, Instant};

use ingle_engine::{EmbedRequest, Output, Request, Task};

use super::Alone;

/// Our encoder.
pub(crate) struct Encoder(Alone);

impl Encoder {
    /// Loads it.
    pub(crate) fn load(models: &Path, threads: usize) -> anyhow::Result<Self> {
        Ok(Self(Alone::load(models, Task::Embed, threads, 512)?))
    }

    /// Embeds all texts; the time it took and one vector per text.
    pub(crate) fn embed(&mut self, texts: &[String]) -> anyhow::Result<(Duration, Vec<Vec<f32>>)> {
        let mut vectors = vec![Vec::new(); texts.len()];
        let texts = texts.iter().map(|text| text.as_str().into()).collect();
        let request = Request::Embed(EmbedRequest { texts, normalise: true });
        let begun = Instant::now();
        self.0.run(request, |output| {
            if let Output::Embedding { index, vector, .. } = output {
                vectors[*index as usize].clone_from(vector);
            }
        })?;
        Ok((begun.elapsed(), vectors))
    }
}
