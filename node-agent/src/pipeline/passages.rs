//! Splits a text into passages of at most so many tokens, with overlap, at paragraphs, sentences or words where it can. Pure.

use std::collections::VecDeque;
use std::ops::Range;

use ingle_engine::{EngineError, Tokens};

use crate::limits;

/// Tokens that one character may take, and some: read ahead so that a passage's end is seen.
const CHARACTER_TOKENS: usize = 16;

/// Sizes in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Most tokens of a passage.
    pub passage: usize,
    /// Tokens that a passage repeats of the one before.
    pub overlap: usize,
}

impl Sizes {
    /// From a job's options and the model's limit: `passage` at most the limit, `overlap` at most half of it.
    #[must_use]
    pub fn new(passage_tokens: u32, overlap_tokens: Option<u32>, limit: usize) -> Self {
        let limit = limit.max(1);
        let passage = if passage_tokens == 0 { limit } else { (passage_tokens as usize).min(limit) }.max(1);
        let overlap = overlap_tokens.map_or(passage / 8, |overlap| (overlap as usize).min(passage / 2));
        Self { passage, overlap }
    }
}

/// A passage of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// Tokens in it, as the whole text was tokenised.
    pub tokens: usize,
    /// Ids of its text alone, so that nobody has to tokenise it again.
    pub ids: Vec<u32>,
}

/// Makes passages with their ids: those that the whole text's tokens have, where they are the same.
struct Cutter<'a> {
    text: &'a str,
    tokens: &'a dyn Tokens,
    /// Whether ids between blanks are those of the passage alone.
    same: bool,
}

impl Cutter<'_> {
    fn passage(&self, range: Range<usize>, ids: impl ExactSizeIterator<Item = u32>) -> Result<Passage, EngineError> {
        // Not any white space: normalisers delete some kinds, which joins two words.
        let blank = |at: Option<usize>| at.is_some_and(|at| b" \n\t\r".contains(&self.text.as_bytes()[at]));
        let begins = range.start == 0 || blank(Some(range.start)) || blank(range.start.checked_sub(1));
        let ends = range.end == self.text.len() || blank(Some(range.end)) || blank(range.end.checked_sub(1));
        let tokens = ids.len();
        let ids = if self.same && begins && ends {
            ids.collect()
        } else {
            self.tokens.encode(&self.text[range.clone()])?.ids
        };
        Ok(Passage { range, tokens, ids })
    }
}

/// Splits a text. The ranges begin at 0, end at the text's end, ascend, and leave no gap; a text without tokens has none.
///
/// Long texts are tokenised piece by piece, so that memory follows the passages and not the text.
///
/// # Errors
/// What the tokenizer said.
pub fn split(text: &str, tokens: &dyn Tokens, sizes: Sizes) -> Result<Vec<Passage>, EngineError> {
    let mut passages = Vec::new();
    // Tokens from the current passage's begin on, and their ids.
    let mut window: VecDeque<Range<usize>> = VecDeque::new();
    let mut ids: VecDeque<u32> = VecDeque::new();
    let mut cutter = Cutter { text, tokens, same: tokens.same_between_blanks() };
    let mut read = 0usize;
    // End of the last passage.
    let mut settled = 0usize;
    loop {
        while window.len() <= sizes.passage + CHARACTER_TOKENS && read < text.len() {
            let piece = piece(&text[read..]);
            // A word that is cut here has other tokens than in its passage.
            let whole =
                read + piece.len() == text.len() || text[read + piece.len()..].starts_with([' ', '\n', '\t', '\r']);
            cutter.same &= whole;
            let encoding = tokens.encode(piece)?;
            ids.extend(encoding.ids);
            for (start, end) in encoding.offsets {
                let (start, end) = (read + start.min(piece.len()), read + end.min(piece.len()));
                window.push_back(text.floor_char_boundary(start)..text.ceil_char_boundary(end.max(start)));
            }
            read += piece.len();
        }
        let Some(begin) = window.front() else { return Ok(passages) };
        // What stands before the first token belongs to the first passage.
        let start = if passages.is_empty() { 0 } else { begin.start };
        if window.len() <= sizes.passage {
            passages.push(cutter.passage(start..text.len(), ids.iter().copied())?);
            return Ok(passages);
        }
        let cut = match border(text, &window, sizes.passage, settled) {
            Some(cut) => cut,
            // The overlap leaves no room for anything new: go on without it.
            None if begin.start < settled => {
                while window.front().is_some_and(|token| token.start < settled) {
                    window.pop_front();
                    ids.pop_front();
                }
                continue;
            }
            // Nothing but pieces of one character: end where that character does.
            None => (1..window.len()).find(|&at| quality(text, &window, at) > Border::Inside).unwrap_or(window.len()),
        };
        let end = window.get(cut).map_or(text.len(), |token| token.start);
        passages.push(cutter.passage(start..end, ids.range(..cut).copied())?);
        if cut == window.len() {
            return Ok(passages);
        }
        settled = end;
        let next = resume(text, &window, cut, sizes.overlap);
        window.drain(..next);
        ids.drain(..next);
    }
}

/// Up to [`limits::TOKENISE_BYTES`] of the text, ended at a line or a blank if there is one.
fn piece(text: &str) -> &str {
    if text.len() <= limits::TOKENISE_BYTES {
        return text;
    }
    let most = &text[..text.floor_char_boundary(limits::TOKENISE_BYTES)];
    let half = most.floor_char_boundary(most.len() / 2);
    let at = most[half..].rfind('\n').or_else(|| most[half..].rfind(char::is_whitespace));
    at.map_or(most, |at| &most[..half + at])
}

/// How good a place to cut before `token` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Border {
    /// Inside a character's tokens: never, unless nothing else is there.
    Inside,
    Word,
    Blank,
    Line,
    Sentence,
    Paragraph,
}

fn quality(text: &str, window: &VecDeque<Range<usize>>, at: usize) -> Border {
    let (before, after) = (&window[at - 1], &window[at]);
    if after.start <= before.start || after.start < before.end {
        return Border::Inside;
    }
    // Tokenizers differ in whether a blank belongs to the token before, after, or none.
    let word_start = after.start + (text[after.start..].len() - text[after.start..].trim_start().len());
    let word_end = text[..after.start].trim_end().len();
    let gap = &text[word_end..word_start];
    if gap.is_empty() {
        return Border::Word;
    }
    if gap.bytes().filter(|byte| *byte == b'\n').count() > 1 {
        return Border::Paragraph;
    }
    if text[..word_end].ends_with(['.', '!', '?', '…', '。', '！', '？']) {
        return Border::Sentence;
    }
    if gap.contains('\n') { Border::Line } else { Border::Blank }
}

/// The token to end before: the best border in the second half, the latest among equals; else the last one at all.
/// Only what lies beyond `settled` is new.
fn border(text: &str, window: &VecDeque<Range<usize>>, most: usize, settled: usize) -> Option<usize> {
    let good = |at: &usize| window[*at].start > settled && quality(text, window, *at) > Border::Inside;
    let late = (most / 2 + 1..=most).filter(good).max_by_key(|&at| quality(text, window, at));
    late.or_else(|| (1..=most / 2).rev().find(good))
}

/// The token to go on with: `overlap` before the cut, moved forward to the beginning of a word.
fn resume(text: &str, window: &VecDeque<Range<usize>>, cut: usize, overlap: usize) -> usize {
    let from = cut.saturating_sub(overlap).max(1);
    (from..cut).find(|&at| quality(text, window, at) >= Border::Blank).unwrap_or(cut)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use ingle_engine::fake::FakeEngine;
    use ingle_engine::{Encoding, Engine as _, LoadOptions};
    use proptest::prelude::*;

    use super::*;

    /// One token per byte, each with its character's range: what byte-level vocabularies do to rare characters.
    struct Bytes;

    impl Tokens for Bytes {
        fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
            let offsets: Vec<(usize, usize)> =
                text.char_indices().flat_map(|(at, c)| vec![(at, at + c.len_utf8()); c.len_utf8()]).collect();
            Ok(Encoding { ids: vec![0; offsets.len()], offsets })
        }

        fn max_tokens(&self) -> usize {
            100
        }
    }

    /// A token per word, without its blanks; each has the same id wherever it stands. Counts how often it is asked.
    #[derive(Default)]
    struct Words(std::sync::atomic::AtomicUsize);

    impl Tokens for Words {
        fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut encoding = Encoding { ids: Vec::new(), offsets: Vec::new() };
            for word in text.split_whitespace() {
                let start = word.as_ptr() as usize - text.as_ptr() as usize;
                encoding.offsets.push((start, start + word.len()));
                encoding.ids.push(word.bytes().fold(7, |id: u32, byte| id.wrapping_mul(31) ^ u32::from(byte)));
            }
            Ok(encoding)
        }

        fn max_tokens(&self) -> usize {
            100
        }

        fn same_between_blanks(&self) -> bool {
            true
        }
    }

    /// The fake engine's tokenizer.
    pub(crate) fn fake_tokens() -> Arc<dyn Tokens> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("fake-model.json"), r#"{"task": "embed"}"#).unwrap();
        let options = LoadOptions { dir: dir.path().to_owned(), threads: 1, context: 64, slots: 1 };
        FakeEngine::new().load(&options).unwrap().tokens()
    }

    fn sizes(passage: usize, overlap: usize) -> Sizes {
        Sizes { passage, overlap }
    }

    fn covers(text: &str, passages: &[Passage]) {
        let Some(first) = passages.first() else { return };
        assert_eq!(first.range.start, 0);
        assert_eq!(passages.last().map(|last| last.range.end), Some(text.len()));
        for pair in passages.windows(2) {
            assert!(pair[1].range.start <= pair[0].range.end, "no gap");
            assert!(pair[1].range.start > pair[0].range.start && pair[1].range.end > pair[0].range.end, "ascending");
        }
        for passage in passages {
            assert!(text.get(passage.range.clone()).is_some(), "whole characters");
        }
    }

    #[test]
    fn options_are_cut_to_the_model() {
        assert_eq!(Sizes::new(0, None, 254), sizes(254, 31));
        assert_eq!(Sizes::new(1000, Some(1000), 254), sizes(254, 127));
        assert_eq!(Sizes::new(64, Some(0), 254), sizes(64, 0));
        assert_eq!(Sizes::new(0, None, 0), sizes(1, 0));
    }

    #[test]
    fn short_and_empty_texts() {
        let tokens = fake_tokens();
        assert_eq!(split("", tokens.as_ref(), sizes(8, 2)).unwrap(), []);
        let one = split("  hello world \n", tokens.as_ref(), sizes(8, 2)).unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].range, 0..15);
    }

    #[test]
    fn passages_end_at_paragraphs_then_sentences() {
        let tokens = fake_tokens();
        let text = "one two three four.\n\nfive six seven eight nine ten. eleven twelve thirteen";
        let got: Vec<&str> =
            split(text, tokens.as_ref(), sizes(6, 0)).unwrap().iter().map(|p| text[p.range.clone()].trim()).collect();
        assert_eq!(got[0], "one two three four.");
        covers(text, &split(text, tokens.as_ref(), sizes(6, 2)).unwrap());
    }

    #[test]
    fn a_text_is_tokenised_once_where_its_words_stand_for_themselves() {
        let text = "Some words. And others\nof which it has a few. ".repeat(50);
        let tokens = Words::default();
        let got = split(&text, &tokens, sizes(20, 4)).unwrap();
        assert_eq!(tokens.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(got.len() > 10);
        for passage in &got {
            assert_eq!(passage.ids, tokens.encode(&text[passage.range.clone()]).unwrap().ids);
            assert_eq!(passage.ids.len(), passage.tokens);
        }
        // A word without an end is cut where a piece ends: what stands beside it isn't trusted.
        let unbroken = format!("some words {} and more", "x".repeat(3 * limits::TOKENISE_BYTES));
        for passage in split(&unbroken, &tokens, sizes(20, 4)).unwrap() {
            assert_eq!(passage.ids, tokens.encode(&unbroken[passage.range.clone()]).unwrap().ids);
        }
    }

    #[test]
    fn pieces_of_one_character_stay_together() {
        let text = "🦀🦀🦀🦀🦀";
        for passage in 1..9 {
            let got = split(text, &Bytes, sizes(passage, passage / 2)).unwrap();
            covers(text, &got);
        }
    }

    #[test]
    fn a_text_longer_than_a_piece_is_covered() {
        let text = "some words in a line that repeats\n".repeat(6000);
        let tokens = fake_tokens();
        let got = split(&text, tokens.as_ref(), sizes(200, 25)).unwrap();
        assert!(text.len() > 2 * limits::TOKENISE_BYTES && got.len() > 100);
        covers(&text, &got);
        let unbroken = "x".repeat(300_000);
        covers(&unbroken, &split(&unbroken, tokens.as_ref(), sizes(200, 25)).unwrap());
    }

    proptest! {
        #[test]
        fn any_text_is_covered_without_gaps(text in "[a-c .\n🦀é]{0,400}", passage in 1usize..40, overlap in 0usize..20) {
            let sizes = sizes(passage, overlap.min(passage / 2));
            for tokens in [fake_tokens(), Arc::new(Bytes), Arc::new(Words::default())] {
                let got = split(&text, tokens.as_ref(), sizes).unwrap();
                covers(&text, &got);
                for passage in &got {
                    prop_assert_eq!(&passage.ids, &tokens.encode(&text[passage.range.clone()]).unwrap().ids);
                }
                let total = tokens.encode(&text).unwrap().ids.len();
                prop_assert_eq!(got.is_empty(), total == 0);
                prop_assert!(got.iter().all(|p| p.tokens <= passage.max(4)), "only a character's own tokens may exceed it");
            }
        }
    }
}
