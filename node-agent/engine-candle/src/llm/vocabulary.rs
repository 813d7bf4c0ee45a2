//! The tokenizer inside a GGUF: byte-level BPE as GPT-2 made it, with the splits that its `pre` names.
//!
//! Control tokens exist only for the template: in a person's text their spelling is text like any other.

use std::collections::BTreeSet;

use ingle_engine::{Encoding, EngineError, Tokens};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::spec::Spec;
use crate::weights::gguf::{Header, Value};
use crate::weights::{HeaderError, bad};

const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// How text is split before merges apply, by `tokenizer.ggml.pre`.
const SPLITS: [(&str, SplitKind); 9] = [
    ("gpt-2", SplitKind::Gpt2),
    ("gpt2", SplitKind::Gpt2),
    ("smollm", SplitKind::DigitsGpt2),
    ("starcoder", SplitKind::DigitsGpt2),
    ("refact", SplitKind::DigitsGpt2),
    ("command-r", SplitKind::DigitsGpt2),
    ("llama-bpe", SplitKind::Llama3),
    ("llama3", SplitKind::Llama3),
    ("qwen2", SplitKind::Qwen2),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SplitKind {
    /// Contractions, letters, numbers, others, blanks.
    Gpt2,
    /// Every digit alone, then as GPT-2.
    DigitsGpt2,
    /// Llama 3: numbers in threes, whole words looked up before merges.
    Llama3,
    /// As Llama 3 with single digits.
    Qwen2,
}

/// Spellings that end a turn in models whose metadata names only one of them.
const ENDS: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "</s>"];

/// See the module's text.
pub(crate) struct Vocabulary {
    tokenizer: Tokenizer,
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Vec<u8>>,
    /// Spellings that the template may use, longest first, with their ids.
    specials: Vec<(String, u32)>,
    ends: BTreeSet<u32>,
    begin: Option<u32>,
    longest: usize,
    context: usize,
}

/// The parts of the metadata, checked against each other.
struct Parts<'a> {
    tokens: &'a [String],
    kinds: Vec<i64>,
    merges: &'a [String],
    split: SplitKind,
}

fn parts(header: &Header) -> Result<Parts<'_>, HeaderError> {
    match header.text("tokenizer.ggml.model") {
        Some("gpt2") => {}
        Some(other) => {
            return bad(format!("a tokenizer of kind {other:?} can't be run, \"gpt2\" (byte-level BPE) can"));
        }
        None => return bad("has no tokenizer (tokenizer.ggml.model)"),
    }
    let name = header.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let Some((_, split)) = SPLITS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = SPLITS.iter().map(|(known, _)| *known).collect();
        return bad(format!("tokenizer.ggml.pre {name:?} isn't known, {} are", known.join(", ")));
    };
    let texts = |key: &str| match header.metadata.get(key) {
        Some(Value::Texts(texts)) => Ok(texts.as_slice()),
        other => bad(format!(
            "{key} must be a list of texts, found {}",
            if other.is_some() { "something else" } else { "nothing" }
        )),
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let merges = texts("tokenizer.ggml.merges")?;
    let kinds = match header.metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Ints(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        None => vec![1; tokens.len()],
        Some(_) => return bad(format!("tokenizer.ggml.token_type must have {} entries", tokens.len())),
    };
    if tokens.is_empty() {
        return bad("tokenizer.ggml.tokens is empty");
    }
    Ok(Parts { tokens, kinds, merges, split: *split })
}

impl Vocabulary {
    /// Whether [`Vocabulary::read`] has a chance; cheap.
    pub(crate) fn check(header: &Header) -> Result<(), HeaderError> {
        parts(header).map(|_| ())
    }

    /// Builds the tokenizer.
    pub(crate) fn read(header: &Header, spec: &Spec) -> Result<Self, HeaderError> {
        let parts = parts(header)?;
        if parts.tokens.len() > spec.vocabulary {
            return bad(format!("has {} tokens, but rows for {} of them", parts.tokens.len(), spec.vocabulary));
        }
        let alphabet = byte_alphabet();
        let letters = letters(&alphabet);
        let bytes: Vec<Vec<u8>> =
            parts.tokens.iter().zip(&parts.kinds).map(|(token, kind)| token_bytes(token, *kind, &letters)).collect();
        let mut specials: Vec<(String, u32)> = (0u32..)
            .zip(parts.tokens.iter().zip(&parts.kinds))
            .filter(|(_, (token, kind))| [CONTROL, USER_DEFINED].contains(*kind) && !token.is_empty())
            .map(|(id, (token, _))| (token.clone(), id))
            .collect();
        specials.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let id = |key: &str| header.number(key).filter(|id| (*id as usize) < parts.tokens.len());
        let mut ends: BTreeSet<u32> =
            ["eos", "eot", "eom"].iter().filter_map(|name| id(&format!("tokenizer.ggml.{name}_token_id"))).collect();
        let control = |id: &u32| parts.kinds[*id as usize] == CONTROL;
        ends.extend(
            specials.iter().filter(|(token, id)| ENDS.contains(&token.as_str()) && control(id)).map(|(_, id)| *id),
        );
        let begin = match header.truth("tokenizer.ggml.add_bos_token") {
            Some(true) => id("tokenizer.ggml.bos_token_id"),
            _ => None,
        };
        let longest = bytes.iter().map(Vec::len).max().unwrap_or(1).max(1);
        Ok(Self {
            tokenizer: tokenizer(&parts, &alphabet)?,
            bytes,
            specials,
            ends,
            begin,
            longest,
            context: spec.context,
        })
    }

    /// Number of tokens that have a meaning; the network may have rows beyond.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of a token's text; none for control tokens.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether the token ends a turn.
    pub(crate) fn ends(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Spellings of control tokens, longest first.
    pub(crate) fn specials(&self) -> impl Iterator<Item = &str> {
        self.specials.iter().map(|(token, _)| token.as_str())
    }

    /// Spelling of a token by the metadata's key, for templates.
    pub(crate) fn spelling(&self, token: Option<u32>) -> &str {
        let found = self.specials.iter().find(|(_, id)| Some(*id) == token);
        found.map_or("", |(spelling, _)| spelling.as_str())
    }

    /// A rendered template: control tokens' spellings are control tokens, except where `mark` breaks them.
    pub(crate) fn encode_rendered(&self, rendered: &str, mark: char) -> Result<Vec<u32>, EngineError> {
        let least = rendered.len() / self.longest;
        if least > self.context {
            return Err(too_long(least, self.context, "at least "));
        }
        let mut ids: Vec<u32> = Vec::new();
        let mut rest = rendered;
        while !rest.is_empty() {
            let next = self.next_special(rest);
            let (text, special) = next.map_or((rest, None), |(at, special)| (&rest[..at], Some(special)));
            if !text.is_empty() {
                ids.extend(self.plain(&text.replace(mark, ""))?);
            }
            rest = &rest[text.len()..];
            if let Some((spelling, id)) = special {
                ids.push(*id);
                rest = &rest[spelling.len()..];
            }
        }
        match self.begin {
            Some(begin) if ids.first() != Some(&begin) => ids.insert(0, begin),
            _ => {}
        }
        Ok(ids)
    }

    fn next_special(&self, text: &str) -> Option<(usize, &(String, u32))> {
        for (at, _) in text.char_indices() {
            // Longest first, so that a spelling that begins with another one is found whole.
            let found =
                self.specials.iter().find(|(spelling, _)| text.as_bytes()[at..].starts_with(spelling.as_bytes()));
            if let Some(special) = found {
                return Some((at, special));
            }
        }
        None
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| EngineError::Input(format!("the text can't be tokenised: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The refusal of a prompt beyond the context.
pub(crate) fn too_long(tokens: usize, context: usize, least: &str) -> EngineError {
    EngineError::Input(format!(
        "the prompt has {least}{tokens} tokens, the context holds {context}, the answer included"
    ))
}

impl Tokens for Vocabulary {
    fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| EngineError::Input(format!("the text can't be tokenised: {error}")))?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    fn max_tokens(&self) -> usize {
        // One for the answer.
        self.context.saturating_sub(1 + usize::from(self.begin.is_some()))
    }
}

fn tokenizer(parts: &Parts<'_>, alphabet: &[char; 256]) -> Result<Tokenizer, HeaderError> {
    let mut vocabulary = Vocab::default();
    for ((token, kind), id) in parts.tokens.iter().zip(&parts.kinds).zip(0u32..) {
        if *kind != CONTROL && *kind != UNUSED {
            vocabulary.insert(token.clone(), id);
        }
    }
    // Some vocabularies lack bytes that no text holds, and drop them as the ecosystem's tokenizers do; one without plain
    // letters would drop everything.
    let lacks = |byte: &usize| !vocabulary.contains_key(alphabet[*byte].encode_utf8(&mut [0; 4]) as &str);
    if let Some(missing) = (0x20..0x7F).find(lacks) {
        return bad(format!("the vocabulary has no token for byte {missing}"));
    }
    let mut merges = Vec::with_capacity(parts.merges.len());
    for merge in parts.merges {
        match merge.split_once(' ') {
            Some((left, right)) => merges.push((left.to_string(), right.to_string())),
            None => return bad(format!("merge {merge:?} isn't two tokens with a blank between them")),
        }
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(parts.split == SplitKind::Llama3)
        .build()
        .map_err(|error| HeaderError(format!("the vocabulary and its merges don't fit together: {error}")))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(splitter(parts.split)?));
    Ok(tokenizer)
}

fn splitter(kind: SplitKind) -> Result<PreTokenizerWrapper, HeaderError> {
    let pattern = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| HeaderError(format!("the tokenizer's pattern can't be built: {error}")))
    };
    let bytes = |own_pattern: bool| PreTokenizerWrapper::from(ByteLevel::new(false, false, own_pattern));
    let words = |digits: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let steps = match kind {
        SplitKind::Gpt2 => return Ok(bytes(true)),
        SplitKind::DigitsGpt2 => vec![Digits::new(true).into(), bytes(true)],
        SplitKind::Llama3 => vec![pattern(&words("{1,3}"))?.into(), bytes(false)],
        SplitKind::Qwen2 => vec![pattern(&words(""))?.into(), bytes(false)],
    };
    Ok(Sequence::new(steps).into())
}

/// The characters that stand for bytes in byte-level BPE: printable Latin-1 for itself, the others from U+0100 on.
fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let itself = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if itself {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).expect("codes below 0x200 are characters")
    })
}

/// The byte that each character below U+0200 stands for.
fn letters(alphabet: &[char; 256]) -> [Option<u8>; 512] {
    let mut letters = [None; 512];
    for (byte, c) in (0u8..=255).zip(alphabet) {
        letters[*c as usize] = Some(byte);
    }
    letters
}

fn token_bytes(token: &str, kind: i64, letters: &[Option<u8>; 512]) -> Vec<u8> {
    match kind {
        CONTROL | UNUSED => Vec::new(),
        USER_DEFINED => token.as_bytes().to_vec(),
        _ => {
            let mut bytes = Vec::with_capacity(token.len());
            for c in token.chars() {
                match letters.get(c as usize).copied().flatten() {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt_2s() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet[b'A' as usize], 'A');
        assert_eq!(alphabet[b' ' as usize], 'Ġ');
        assert_eq!(alphabet[b'\n' as usize], 'Ċ');
        assert_eq!(alphabet[0xAD], 'Ń');
        assert_eq!(alphabet.iter().collect::<BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn tokens_read_as_their_bytes() {
        let letters = letters(&byte_alphabet());
        assert_eq!(token_bytes("Ġkettle", 1, &letters), b" kettle");
        assert_eq!(token_bytes("Ã©", 1, &letters), "é".as_bytes());
        assert_eq!(token_bytes("<|im_end|>", CONTROL, &letters), b"");
        assert_eq!(token_bytes("<think>", USER_DEFINED, &letters), b"<think>");
    }
}
