//! The tokenizer of an embedding model, with the file's own truncation and padding put aside.

use std::path::Path;

use ingle_engine::{EmbedText, Encoding, EngineError, Tokens};
use tokenizers::{ModelWrapper, PreTokenizerWrapper};

use crate::weights::file::{TOKENIZER_BYTES_MAX, read_small};

const FILE: &str = "tokenizer.json";

/// Ids of one text, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokenised {
    pub(crate) ids: Vec<u32>,
    pub(crate) truncated: bool,
}

/// See the module's text.
pub(crate) struct Texts {
    tokenizer: tokenizers::Tokenizer,
    /// Special tokens before and after every text.
    head: Vec<u32>,
    tail: Vec<u32>,
    max_tokens: usize,
    vocabulary: usize,
}

impl Texts {
    /// `max_tokens` counts special tokens; ids must stay below `vocabulary`.
    pub(crate) fn read(dir: &Path, max_tokens: usize, vocabulary: usize) -> Result<Self, EngineError> {
        let fail = |problem: String| EngineError::Model { file: FILE.into(), problem };
        let bytes = read_small(dir, FILE, TOKENIZER_BYTES_MAX)?;
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| fail(format!("is no tokenizer: {error}")))?;
        // all-MiniLM-L6-v2's file carries truncation to 128 and padding to 128; the model takes 256.
        tokenizer.with_truncation(None).map_err(|error| fail(error.to_string()))?;
        tokenizer.with_padding(None);
        let around = tokenizer.encode_fast("", true).map_err(|error| fail(error.to_string()))?;
        let (head, tail) = match around.get_ids() {
            [first, rest @ ..] => (vec![*first], rest.to_vec()),
            [] => (vec![], vec![]),
        };
        if max_tokens <= head.len() + tail.len() {
            return Err(fail(format!(
                "adds {} tokens to each text, the limit is {max_tokens}",
                head.len() + tail.len()
            )));
        }
        if let Some(id) = head.iter().chain(&tail).find(|id| **id as usize >= vocabulary) {
            return Err(fail(format!("special token {id} is beyond the vocabulary of {vocabulary}")));
        }
        Ok(Self { tokenizer, head, tail, max_tokens, vocabulary })
    }

    /// Tokenises, unless that was done, and cuts to the model's limit.
    pub(crate) fn tokenise(&self, text: &EmbedText) -> Result<Tokenised, EngineError> {
        let room = self.max_tokens();
        let body = match &text.ids {
            Some(ids) => self.known(ids)?.to_vec(),
            None => self.body(&text.text, room)?,
        };
        let truncated = body.len() > room;
        let body = &body[..body.len().min(room)];
        let ids = [self.head.as_slice(), body, &self.tail].concat();
        Ok(Tokenised { ids, truncated })
    }

    /// At least the first `room` ids of a text, and one more if there are more.
    fn body(&self, text: &str, room: usize) -> Result<Vec<u32>, EngineError> {
        let mut body = Vec::new();
        // A long text is cut anyway: its beginning is enough, unless that is mostly blank.
        let beginning = beginning(text, room * 32);
        if beginning.len() < text.len() {
            body = self.ids(beginning)?;
        }
        if body.len() <= room {
            body = self.ids(text)?;
        }
        Ok(body)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| EngineError::Input(format!("the text can't be tokenised: {error}")))?;
        self.known(encoding.get_ids()).map(<[u32]>::to_vec)
    }

    /// The ids, if the model has a row for each.
    fn known<'a>(&self, ids: &'a [u32]) -> Result<&'a [u32], EngineError> {
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => Err(EngineError::Model {
                file: FILE.into(),
                problem: format!("gives token {id}, the model knows {}", self.vocabulary),
            }),
            None => Ok(ids),
        }
    }
}

impl Tokens for Texts {
    fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| EngineError::Input(format!("the text can't be tokenised: {error}")))?;
        Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens - self.head.len() - self.tail.len()
    }

    /// BERT's own tokenizer cuts at blanks first and looks at each word by itself.
    fn same_between_blanks(&self) -> bool {
        matches!(self.tokenizer.get_model(), ModelWrapper::WordPiece(_))
            && matches!(self.tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
    }
}

/// About `bytes` of the text, up to a blank: tokens never reach across one. (Other white space than these four may be
/// deleted by the normaliser, which would join two words.)
fn beginning(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    match text.as_bytes()[bytes..].iter().position(|byte| b" \n\t\r".contains(byte)) {
        // An ASCII blank is a character of its own.
        Some(at) => &text[..bytes + at],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_ends_at_a_blank() {
        assert_eq!(beginning("one two three", 5), "one two");
        assert_eq!(beginning("one two three", 7), "one two");
        assert_eq!(beginning("one two three", 8), "one two three");
        assert_eq!(beginning("ééé é", 3), "ééé");
    }
}
