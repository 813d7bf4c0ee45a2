//! The table of a page's words: written by the child, believed by nobody.
//!
//! `u32` counts of lines, words and text bytes; per line a `u32` count of its words and eight `f32` of corners; per word a
//! `u32` length and eight `f32` of corners; then the words' UTF-8 one after the other. Little-endian.

use crate::limits::{LINES_MAX, TEXT_BYTES_MAX, WORD_BYTES_MAX, WORDS_MAX};
use crate::page::{Line, PageWords, Word};
use crate::wire::Unpack;

const HEAD_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4 + 8 * 4;

/// No table is longer.
pub(crate) const TABLE_BYTES_MAX: usize = HEAD_BYTES + (LINES_MAX + WORDS_MAX) * ENTRY_BYTES + TEXT_BYTES_MAX;

/// Whether a page's words fit a table; the child gives pixels where they don't.
pub(crate) fn fits(page: &PageWords) -> bool {
    let words = || page.lines.iter().flat_map(|line| &line.words);
    page.lines.len() <= LINES_MAX
        && words().count() <= WORDS_MAX
        && words().map(|word| word.text.len()).sum::<usize>() <= TEXT_BYTES_MAX
        && words().all(|word| word.text.len() <= WORD_BYTES_MAX)
}

/// The table of words that fit.
pub(crate) fn write(page: &PageWords) -> Vec<u8> {
    let words: Vec<&Word> = page.lines.iter().flat_map(|line| &line.words).collect();
    let text: usize = words.iter().map(|word| word.text.len()).sum();
    let mut table = Vec::with_capacity(HEAD_BYTES + (page.lines.len() + words.len()) * ENTRY_BYTES + text);
    let mut entry = |count: usize, corners: &[[f32; 2]; 4]| {
        table.extend((count as u32).to_le_bytes());
        corners.as_flattened().iter().for_each(|value| table.extend(value.to_le_bytes()));
    };
    let heads = [page.lines.len(), words.len(), text];
    let mut bytes: Vec<u8> = heads.iter().flat_map(|count| (*count as u32).to_le_bytes()).collect();
    page.lines.iter().for_each(|line| entry(line.words.len(), &line.corners));
    words.iter().for_each(|word| entry(word.text.len(), &word.corners));
    bytes.append(&mut table);
    words.iter().for_each(|word| bytes.extend(word.text.as_bytes()));
    bytes
}

/// Reads a table that may have been made to hurt. The error says which rule it breaks.
pub(crate) fn read(table: &[u8], width: u32, height: u32) -> Result<PageWords, &'static str> {
    let mut fields = Unpack(table);
    let mut count = |most: usize| fields.u32().map(|count| count as usize).filter(|count| *count <= most);
    let lines = count(LINES_MAX).ok_or("too many lines")?;
    let words = count(WORDS_MAX).ok_or("too many words")?;
    let text = count(TEXT_BYTES_MAX).ok_or("too much text")?;
    if table.len() != HEAD_BYTES + (lines + words) * ENTRY_BYTES + text {
        return Err("its length isn't what its counts make");
    }
    let corners = |fields: &mut Unpack| {
        let mut corners = [[0.0; 2]; 4];
        for corner in &mut corners {
            *corner = [fields.f32(0.0, width as f32)?, fields.f32(0.0, height as f32)?];
        }
        Some(corners)
    };
    let mut shapes = Vec::with_capacity(lines);
    for _ in 0..lines {
        let count = fields.u32().ok_or("it ends early")? as usize;
        shapes.push((count, corners(&mut fields).ok_or("a line lies outside the page")?));
    }
    let mut placed = Vec::with_capacity(words);
    for _ in 0..words {
        let length = fields.u32().ok_or("it ends early")? as usize;
        placed.push((length, corners(&mut fields).ok_or("a word lies outside the page")?));
    }
    let mut placed = placed.into_iter();
    let mut page = PageWords { lines: Vec::with_capacity(lines) };
    for (count, corners) in shapes {
        if count == 0 || count > placed.len() {
            return Err("its lines have other words than it says");
        }
        let words = placed.by_ref().take(count).map(|(length, corners)| {
            if length == 0 || length > WORD_BYTES_MAX {
                return Err("a word's length is out of bounds");
            }
            let bytes = fields.bytes(length).ok_or("its words are longer than its text")?;
            let text = std::str::from_utf8(bytes).map_err(|_| "a word isn't UTF-8")?;
            if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err("a word holds a blank or a control");
            }
            Ok(Word { text: text.into(), corners })
        });
        let words: Vec<Word> = words.collect::<Result<_, _>>()?;
        page.lines.push(Line { words, corners });
    }
    if placed.len() > 0 || !fields.0.is_empty() {
        return Err("something is left over at its end");
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Word {
        Word { text: text.into(), corners: [[1.0, 2.0], [30.0, 2.0], [30.0, 12.5], [1.0, 12.5]] }
    }

    fn page() -> PageWords {
        let line = |words: Vec<Word>| Line { corners: words[0].corners, words };
        PageWords { lines: vec![line(vec![word("Größe"), word("42")]), line(vec![word("漢字")])] }
    }

    #[test]
    fn words_come_back() {
        let table = write(&page());
        assert_eq!(read(&table, 40, 20), Ok(page()));
        assert_eq!(read(&write(&PageWords::default()), 1, 1), Ok(PageWords::default()));
        assert!(fits(&page()));
        assert!(table.len() < TABLE_BYTES_MAX);
    }

    #[test]
    fn what_does_not_fit_is_known_before() {
        let with = |text: String| PageWords { lines: vec![Line { words: vec![word(&text)], corners: [[0.0; 2]; 4] }] };
        assert!(fits(&with("x".repeat(WORD_BYTES_MAX))));
        assert!(!fits(&with("x".repeat(WORD_BYTES_MAX + 1))));
        let line = Line { words: vec![word("x")], corners: [[0.0; 2]; 4] };
        assert!(!fits(&PageWords { lines: vec![line; LINES_MAX + 1] }));
    }

    #[test]
    fn every_lie_is_found() {
        let good = write(&page());
        let check = |change: &dyn Fn(&mut Vec<u8>), rule: &str| {
            let mut table = good.clone();
            change(&mut table);
            let found = read(&table, 40, 20).expect_err(rule);
            assert!(found.contains(rule), "{found}, expected {rule}");
        };
        let put = |table: &mut Vec<u8>, at: usize, value: u32| table[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let first_line = HEAD_BYTES;
        let first_word = HEAD_BYTES + 2 * ENTRY_BYTES;
        check(&|table| put(table, 0, u32::MAX), "too many lines");
        check(&|table| put(table, 4, 100_001), "too many words");
        check(&|table| put(table, 8, u32::MAX), "too much text");
        check(&|table| put(table, 0, 3), "length");
        check(&|table| table.push(0), "length");
        check(&|table| table.truncate(40), "length");
        check(&|table| put(table, first_line, 0), "other words");
        check(&|table| put(table, first_line, 4), "other words");
        check(&|table| put(table, first_line, 1), "left over");
        check(&|table| put(table, first_line + 4, f32::NAN.to_bits()), "line lies outside");
        check(&|table| put(table, first_word + 4, 40.5_f32.to_bits()), "word lies outside");
        check(&|table| put(table, first_word + 8, f32::INFINITY.to_bits()), "word lies outside");
        check(&|table| put(table, first_word + 8, (-0.5_f32).to_bits()), "word lies outside");
        check(&|table| put(table, first_word, 0), "out of bounds");
        check(&|table| put(table, first_word, 2_000), "out of bounds");
        check(&|table| put(table, first_word, 900), "longer than its text");
        check(&|table| put(table, first_word + 2 * ENTRY_BYTES, 3), "left over");
        check(&|table| *table.last_mut().expect("text") = 0xff, "UTF-8");
        let text = good.len() - "Größe42漢字".len();
        check(&|table| table[text] = b'\n', "blank or a control");
        check(&|table| table.clear(), "lines");
    }
}
