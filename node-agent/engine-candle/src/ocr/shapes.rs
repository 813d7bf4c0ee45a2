//! Characters of one shape told apart by their height and their neighbours: c and C, o and O and 0, l and 1.
//!
//! The recogniser sees a line scaled to a fixed height and guesses the case of such letters, mostly wrong in monospaced type. On the
//! strip their height says it, measured against letters of the same line that can't be mistaken. Where letters touch, nothing is said.

use super::blanks::Placed;
use super::ink::{Blot, Ink};
use super::reading_order::median;

/// Letters as high as an x, without ambiguity and without dots.
const LOW: &str = "aemnru";
/// The same with a descender.
const LOW_HANGING: &str = "gpqy";
/// Letters and digits as high as a capital.
const HIGH: &str = "ABDEFGHIKLMNPRTUYbdhkl123456789";
/// Height of an x by that of a capital where only one of them is known.
const X_BY_CAPITAL: f32 = 0.72;
/// Rows that the two must differ by at least.
const DIFFERENCE_MIN: f32 = 4.0;
/// Share of the difference around its middle where nothing is decided.
const UNSURE: f32 = 0.15;
/// Columns that a character's time may lie outside its ink.
const SLACK: f32 = 5.0;

/// Rows from a line's foot up.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Heights {
    base: f32,
    low: f32,
    high: f32,
}

/// Settles a line's characters, which stand from left to right.
pub(crate) fn settle(ink: &Ink, glyphs: &mut [Placed]) {
    let blots = own_blots(ink, glyphs);
    if let Some(heights) = heights(glyphs, &blots) {
        for (index, blot) in blots.iter().enumerate() {
            let Some(is_high) = blot.and_then(|blot| heights.is_high(&blot)) else { continue };
            if let Some(text) = of_height(glyphs, index, is_high) {
                glyphs[index].text = text.into();
            }
        }
    }
    for index in 0..glyphs.len() {
        if let Some(text) = among_neighbours(glyphs, index) {
            glyphs[index].text = text.into();
        }
    }
}

/// Each character's blot, if it has one to itself.
fn own_blots(ink: &Ink, glyphs: &[Placed]) -> Vec<Option<Blot>> {
    let covers = |blot: &&Blot, at: f32| (blot.begin as f32 - SLACK..blot.end as f32 + SLACK).contains(&at);
    let mut owners: Vec<usize> = vec![0; ink.blots.len()];
    let mut places: Vec<Option<usize>> = vec![None; glyphs.len()];
    for (glyph, place) in glyphs.iter().zip(&mut places).filter(|(glyph, _)| glyph.text != " ") {
        let first = ink.blots.partition_point(|blot| (blot.end as f32 + SLACK) <= glyph.at);
        // Slack makes neighbours overlap: the nearer one.
        let off = |blot: &Blot| (f32::midpoint(blot.begin as f32, blot.end as f32) - glyph.at).abs();
        let near = (first..ink.blots.len()).take(2).filter(|index| covers(&&ink.blots[*index], glyph.at));
        *place = near.min_by(|a, b| off(&ink.blots[*a]).total_cmp(&off(&ink.blots[*b])));
        if let Some(index) = place {
            owners[*index] += 1;
        }
    }
    places.into_iter().map(|place| place.filter(|index| owners[*index] == 1).map(|index| ink.blots[index])).collect()
}

/// What the unmistakable letters say.
fn heights(glyphs: &[Placed], blots: &[Option<Blot>]) -> Option<Heights> {
    let of = |set: &str| -> Vec<Blot> {
        let members = glyphs.iter().zip(blots).filter(|(glyph, _)| set.contains(glyph.text.as_str()));
        members.filter_map(|(_, blot)| *blot).collect()
    };
    let (low, hanging, high) = (of(LOW), of(LOW_HANGING), of(HIGH));
    let base = median(low.iter().chain(&high).map(|blot| blot.bottom as f32))?;
    let rise = |blot: &Blot| base - blot.top as f32;
    let low = median(low.iter().chain(&hanging).map(rise));
    let high = median(high.iter().map(rise));
    let (low, high) = match (low, high) {
        (Some(low), Some(high)) => (low, high),
        (Some(low), None) => (low, low / X_BY_CAPITAL),
        (None, Some(high)) => (high * X_BY_CAPITAL, high),
        (None, None) => return None,
    };
    (high - low >= DIFFERENCE_MIN).then_some(Heights { base, low, high })
}

impl Heights {
    fn is_high(&self, blot: &Blot) -> Option<bool> {
        let share = (self.base - blot.top as f32 - self.low) / (self.high - self.low);
        ((share - 0.5).abs() >= UNSURE).then_some(share > 0.5)
    }
}

/// Another reading of a character whose height is known.
fn of_height(glyphs: &[Placed], index: usize, is_high: bool) -> Option<&'static str> {
    const CASES: [(&str, &str); 7] =
        [("c", "C"), ("o", "O"), ("s", "S"), ("v", "V"), ("w", "W"), ("x", "X"), ("z", "Z")];
    let text = glyphs[index].text.as_str();
    if text == "0" {
        // Some digits are as low as an x: only between letters a low one is an o.
        let (digits, letters) = neighbours(glyphs, index);
        return (!is_high && letters > 0 && digits == 0).then_some("o");
    }
    let (low, high) = CASES.into_iter().find(|(low, high)| text == *low || text == *high)?;
    match is_high {
        true => (text == low).then_some(high),
        false => (text == high).then_some(low),
    }
}

/// Another reading of a character that fits its neighbours better.
fn among_neighbours(glyphs: &[Placed], index: usize) -> Option<&'static str> {
    let (digits, letters) = neighbours(glyphs, index);
    let digit_follows = glyphs.get(index + 1).is_some_and(|next| is_digit(&next.text));
    match glyphs[index].text.as_str() {
        "O" if digits > 0 && letters == 0 => Some("0"),
        "0" if digits == 0 && in_word(glyphs, index) => Some("O"),
        "l" | "I" | "|" if digit_follows && letters == 0 => Some("1"),
        _ => None,
    }
}

/// Numbers of digits and letters right beside a character; an O says nothing about another.
fn neighbours(glyphs: &[Placed], index: usize) -> (usize, usize) {
    let beside = [index.checked_sub(1).and_then(|before| glyphs.get(before)), glyphs.get(index + 1)];
    let count = |is: &dyn Fn(&str) -> bool| beside.iter().flatten().filter(|glyph| is(&glyph.text)).count();
    (count(&is_digit), count(&|text| text != "O" && text.chars().all(char::is_alphabetic)))
}

/// Letters on both sides, or a word's beginning and a letter after it: there an O stands rather than a 0. At a word's end it may be a
/// code's digit.
fn in_word(glyphs: &[Placed], index: usize) -> bool {
    let side = |at: Option<usize>| at.and_then(|at| glyphs.get(at)).and_then(|glyph| glyph.text.chars().next());
    let (before, after) = (side(index.checked_sub(1)), side(Some(index + 1)));
    before.is_none_or(|c| c == ' ' || c.is_alphabetic()) && after.is_some_and(char::is_alphabetic)
}

fn is_digit(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settles `read` where the ink shows `written`: capitals, digits and ascenders 28 rows high, others 20, on a foot at row 38.
    fn settled(written: &str, read: &str) -> String {
        let mut ink = Ink::default();
        let mut glyphs = Vec::new();
        for (index, (shown, seen)) in written.chars().zip(read.chars()).enumerate() {
            let begin = index * 20;
            if shown != ' ' {
                let high = shown.is_uppercase() || shown.is_ascii_digit() || "bdfhklt".contains(shown);
                let bottom = if "gpqy".contains(shown) { 45 } else { 38 };
                ink.blots.push(Blot { begin, end: begin + 14, top: if high { 10 } else { 18 }, bottom });
            }
            glyphs.push(Placed { text: seen.into(), at: begin as f32 + 9.0, confidence: 0.9 });
        }
        settle(&ink, &mut glyphs);
        glyphs.iter().map(|glyph| glyph.text.as_str()).collect()
    }

    #[test]
    fn height_settles_the_case() {
        for (written, read) in [
            ("Cash", "cash"),
            ("Whole milk", "whole milk"),
            ("Olive oil", "olive Oil"),
            ("account", "acc0unt"),
            ("no vowels", "nO voWels"),
            ("x 2", "X 2"),
            ("sparse", "sparse"),
            ("COVER", "cOvER"),
        ] {
            assert_eq!(settled(written, read), written, "{read}");
        }
    }

    #[test]
    fn neighbours_settle_digits() {
        for (written, read, expected) in [
            ("1800.", "18oo.", "1800."),
            ("80%", "8O%", "80%"),
            ("7.13", "7.l3", "7.13"),
            ("213", "2l3", "213"),
            ("FLOUR", "FL0UR", "FLOUR"),
            ("Oil", "0il", "Oil"),
            ("1.5l", "1.5l", "1.5l"),
            ("A0", "A0", "A0"),
            ("E 0", "E 0", "E 0"),
        ] {
            assert_eq!(settled(written, read), expected, "{read}");
        }
    }

    #[test]
    fn without_evidence_nothing_changes() {
        let mut glyphs = vec![Placed { text: "c".into(), at: 5.0, confidence: 0.9 }];
        settle(&Ink::default(), &mut glyphs);
        assert_eq!(glyphs[0].text, "c");
        // Two characters on one blot: neither is measured.
        let blot = Blot { begin: 0, end: 40, top: 10, bottom: 38 };
        let ink = Ink { blots: vec![blot], end: 40, ..Ink::default() };
        let mut touching: Vec<Placed> =
            [("c", 10.0), ("a", 30.0)].map(|(text, at)| Placed { text: text.into(), at, confidence: 0.9 }).to_vec();
        settle(&ink, &mut touching);
        assert_eq!(touching[0].text, "c");
        settle(&ink, &mut []);
    }
}
