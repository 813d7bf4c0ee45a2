//! The fake's tokenizer and its vocabulary of answers.

use crate::{Encoding, EngineError, Tokens};

/// Longest token in bytes; longer words are cut.
const WORD_BYTES_MAX: usize = 12;

/// Words with their leading blanks, at most 12 bytes of word each; ids are hashes, so that nothing is unknown.
#[derive(Debug)]
pub struct FakeTokens {
    context: u32,
}

impl FakeTokens {
    pub(super) fn new(context: u32) -> Self {
        Self { context }
    }
}

impl Tokens for FakeTokens {
    fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
        let mut encoding = Encoding { ids: Vec::new(), offsets: Vec::new() };
        let mut start = 0;
        let mut word = 0;
        let mut end_token = |start: usize, end: usize| {
            if end > start {
                // Answers' ids stay below this bit.
                encoding.ids.push((hash(&text.as_bytes()[start..end]) as u32) | 0x8000_0000);
                encoding.offsets.push((start, end));
            }
        };
        for (at, c) in text.char_indices() {
            let ends_here = if c.is_whitespace() { word > 0 } else { word + c.len_utf8() > WORD_BYTES_MAX };
            if ends_here {
                end_token(start, at);
                (start, word) = (at, 0);
            }
            if !c.is_whitespace() {
                word += c.len_utf8();
            }
        }
        end_token(start, text.len());
        Ok(encoding)
    }

    fn max_tokens(&self) -> usize {
        // Two special tokens, as with BERT.
        self.context.saturating_sub(2) as usize
    }
}

/// Bytes of the answers' tokens. Each of the last three pairs is one character cut in two.
const ANSWERS: [&[u8]; 22] = [
    b" the",
    b" a",
    b" hearth",
    b" keeps",
    b" warm",
    b" and",
    b" paper",
    b" is",
    b" read",
    b".",
    b"\n",
    b" by",
    b" light",
    b" of",
    b" embers",
    b",",
    b"\xF0\x9F",
    b"\x94\xA5",
    b"\xE2\x82",
    b"\xAC",
    b"\xC3",
    b"\xA9",
];
const WORDS: u64 = 16;
const CUT_CHARACTERS: u64 = 3;

/// Number of tokens an answer may consist of.
pub(super) const VOCABULARY: u32 = ANSWERS.len() as u32;

/// The token at `index` of the answer to `prompt` under `seed`: a function of these alone, so that a stream goes on anywhere.
pub(super) fn answer_token(prompt: u64, seed: u64, index: u32) -> u32 {
    let pair = mix(prompt ^ mix(seed) ^ mix(u64::from(index / 2)));
    let second = index % 2;
    if pair.is_multiple_of(5) {
        return (WORDS + 2 * ((pair >> 8) % CUT_CHARACTERS)) as u32 + second;
    }
    (mix(pair ^ u64::from(second)) % WORDS) as u32
}

/// Bytes of an answer's token; a question's token reads as its number.
pub(super) fn token_bytes(token: u32) -> Vec<u8> {
    ANSWERS.get(token as usize).map_or_else(|| format!(" #{token}").into_bytes(), |bytes| bytes.to_vec())
}

/// FNV-1a, 64 bits.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// Of a sequence of ids.
pub(super) fn hash_ids(ids: &[u32]) -> u64 {
    ids.iter().fold(1, |state, id| mix(state ^ u64::from(*id)))
}

/// SplitMix64's finaliser.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
