//! Blanks between words, put back where the recogniser leaves them out.
//!
//! On long lines the Chinese and English recogniser drops many blanks, but hardly ever makes one up. The pixels know better: on
//! almost every line the narrowest gap between words is wider than the widest one between letters; only where the border lies
//! differs with the font, most of all with monospaced ones. So each page's border is taken from the gaps at which the network did see
//! blanks, each line's from the widest hole among its own gaps near that.

use super::ink::Ink;

/// A character on its strip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) text: String,
    /// Column of the middle of its time steps.
    pub(crate) at: f32,
    pub(crate) confidence: f32,
}

/// Neighbouring characters of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair {
    /// Columns of the widest gap between them; 0 if they touch.
    gap: usize,
    /// The network saw a blank.
    blank: bool,
    /// Both belong to numbers, or one is a mark that joins the other: beside these the gap is wide without a blank.
    close: bool,
}

/// A line's characters without blanks, and what lies between neighbours.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Spacing {
    letters: Vec<Placed>,
    pairs: Vec<Pair>,
}

/// Widest gap that is told apart from wider ones.
const GAP_MAX: usize = 96;
/// Where nothing is known: a quarter of the line's height.
const BORDER_USUAL: f32 = 12.5;
/// No gap narrower than this is a blank, whatever a page looks like.
const BORDER_MIN: f32 = 7.0;
/// A line's border is looked for between these shares of the page's.
const NEAR: (f32, f32) = (0.65, 1.5);
/// How much a gap without a seen blank above the border weighs against a seen blank below it.
const UNSEEN: f32 = 0.25;
/// Columns that a character's time may be off its ink by.
const SLACK: f32 = 8.0;
/// Columns beyond the line's ink where a character is still believed: faint marks aren't seen as ink.
const BEYOND: f32 = 20.0;
/// Blanks seen on a page before they count.
const SEEN_MIN: usize = 4;
/// A gap between close neighbours must exceed the border so many times.
const CLOSE: f32 = 2.0;

impl Spacing {
    /// `glyphs` stand from left to right.
    pub(crate) fn new(ink: &Ink, glyphs: Vec<Placed>) -> Self {
        let mut letters: Vec<Placed> = Vec::with_capacity(glyphs.len());
        let mut pairs: Vec<Pair> = Vec::with_capacity(glyphs.len());
        let mut blank = false;
        for glyph in glyphs.into_iter().filter(|glyph| on_ink(ink, glyph.at)) {
            if glyph.text == " " {
                blank = true;
                continue;
            }
            if let Some(before) = letters.last() {
                pairs.push(Pair { gap: 0, blank, close: close(&before.text, &glyph.text) });
            }
            blank = false;
            letters.push(glyph);
        }
        let mut spacing = Self { letters, pairs };
        for gap in &ink.gaps {
            if let Some(pair) = spacing.pair_at(gap.middle() as f32) {
                let pair = &mut spacing.pairs[pair];
                pair.gap = pair.gap.max(gap.width().min(GAP_MAX));
            }
        }
        spacing
    }

    /// The pair of characters that a gap lies between.
    fn pair_at(&self, middle: f32) -> Option<usize> {
        let after = self.letters.partition_point(|letter| letter.at <= middle);
        let pair = after.checked_sub(1).filter(|pair| *pair < self.pairs.len())?;
        if self.pairs[pair].blank {
            return Some(pair);
        }
        // A wide character's time may lie before its ink, or after it: then the blank that was seen next to it is this gap's.
        let seen = |pair: &usize| self.pairs.get(*pair).is_some_and(|pair| pair.blank && pair.gap == 0);
        let early = (middle - self.letters[pair].at < SLACK).then(|| pair.checked_sub(1)).flatten();
        let late = (self.letters[after].at - middle < SLACK).then_some(pair + 1);
        Some([early, late].into_iter().flatten().find(seen).unwrap_or(pair))
    }

    /// Mean confidence of the characters; 0 if there are none.
    pub(crate) fn confidence(&self) -> f32 {
        self.letters.iter().map(|letter| letter.confidence).sum::<f32>() / self.letters.len().max(1) as f32
    }

    /// The line with a blank wherever the network saw one or a gap exceeds the line's border.
    pub(crate) fn text(&self, page_border: f32) -> String {
        let border = self.border(page_border);
        let mut text = String::new();
        for (index, letter) in self.letters.iter().enumerate() {
            if let Some(pair) = index.checked_sub(1).and_then(|before| self.pairs.get(before)) {
                let least = if pair.close { border * CLOSE } else { border };
                if pair.blank || pair.gap as f32 > least {
                    text.push(' ');
                }
            }
            text.push_str(&letter.text);
        }
        text
    }

    /// The middle of the relatively widest hole between neighbouring widths of gaps, if it lies near the page's border.
    fn border(&self, page: f32) -> f32 {
        let mut gaps: Vec<usize> = self.pairs.iter().filter(|pair| !pair.close).map(|pair| pair.gap).collect();
        gaps.sort_unstable();
        let (low, high) = ((page * NEAR.0).max(BORDER_MIN), page * NEAR.1);
        let mut best = (0.0, page);
        for two in gaps.windows(2) {
            let (narrow, wide) = (two[0] as f32, two[1] as f32);
            // A hole counts as far as it lies in the window.
            let (narrow, wide) = (narrow.max(low), wide.min(high));
            let width = (wide - narrow) / (narrow + 4.0);
            if wide > narrow && width > best.0 {
                best = (width, f32::midpoint(narrow, wide));
            }
        }
        best.1
    }
}

/// The border between letters' and words' gaps that fits a page's seen blanks best, in columns of strips.
pub(crate) fn page_border<'a>(lines: impl IntoIterator<Item = &'a Spacing>) -> f32 {
    let (mut seen, mut unseen) = ([0usize; GAP_MAX + 1], [0usize; GAP_MAX + 1]);
    for pair in lines.into_iter().flat_map(|line| &line.pairs).filter(|pair| !pair.close) {
        if pair.blank { seen[pair.gap] += 1 } else { unseen[pair.gap] += 1 }
    }
    if seen.iter().sum::<usize>() < SEEN_MIN {
        return BORDER_USUAL;
    }
    // Cost of a border just above each width: seen blanks at or below it, other gaps beyond it.
    let mut cost = UNSEEN * unseen.iter().sum::<usize>() as f32;
    let (mut least, mut first, mut last) = (f32::INFINITY, 0, 0);
    for gap in 0..GAP_MAX {
        cost += seen[gap] as f32 - UNSEEN * unseen[gap] as f32;
        if cost < least {
            (least, first, last) = (cost, gap, gap);
        } else if cost == least && last + 1 == gap {
            last = gap;
        }
    }
    (f32::midpoint(first as f32, last as f32) + 0.5).max(BORDER_MIN)
}

/// Whether something can stand at a column: on empty paper the network sometimes repeats what it has just read.
fn on_ink(ink: &Ink, at: f32) -> bool {
    ink.end == 0 || (ink.begin as f32 - BEYOND..ink.end as f32 + BEYOND).contains(&at)
}

/// Whether two characters hardly ever have a blank between them: both in a number, a mark after a word, a bracket before one.
fn close(before: &str, after: &str) -> bool {
    let numeric = |text: &str| text.chars().all(|c| c.is_ascii_digit() || ".,:/-%'".contains(c));
    let ends = |text: &str| text.chars().all(|c| ".,:;!?)]}%".contains(c));
    let begins = |text: &str| text.chars().all(|c| "([{$£".contains(c));
    numeric(before) && numeric(after) || ends(after) || begins(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocr::ink::Gap;

    /// A line set from words with `letter` columns between letters and `word` between words; each letter is 10 wide. Blanks are seen
    /// where `seen` says so, by number.
    fn line(words: &[&str], letter: usize, word: usize, seen: impl Fn(usize) -> bool) -> Spacing {
        let (mut ink, mut glyphs, mut x) = (Ink::default(), Vec::new(), 0);
        let place = |text: String, at: f32| Placed { text, at, confidence: 0.9 };
        for (number, each) in words.iter().enumerate() {
            for (index, c) in each.chars().enumerate() {
                if index > 0 || number > 0 {
                    let gap = if index == 0 { word } else { letter };
                    ink.gaps.push(Gap { begin: x, end: x + gap });
                    if index == 0 && seen(number) {
                        glyphs.push(place(" ".into(), (x + gap / 2) as f32));
                    }
                    x += gap;
                }
                glyphs.push(place(c.into(), x as f32 + 5.0));
                x += 10;
            }
        }
        ink.end = x;
        Spacing::new(&ink, glyphs)
    }

    const WORDS: [&str; 6] = ["no", "familiar", "family", "carried", "the", "moment"];

    #[test]
    fn dropped_blanks_come_back_at_any_spacing() {
        for (letter, word) in [(2, 12), (4, 14), (0, 9), (18, 30), (3, 20), (6, 11)] {
            let lines: Vec<Spacing> =
                (0..6).map(|at| line(&WORDS, letter, word, |number| (number + at) % 3 == 0)).collect();
            let border = page_border(&lines);
            for line in &lines {
                assert_eq!(line.text(border), WORDS.join(" "), "{letter} {word} {border}");
            }
        }
    }

    #[test]
    fn a_line_on_which_none_was_seen_follows_its_page() {
        let seen: Vec<Spacing> = (0..3).map(|_| line(&WORDS, 18, 30, |number| number % 2 == 0)).collect();
        let border = page_border(&seen);
        assert_eq!(line(&["oat", "milk"], 18, 30, |_| false).text(border), "oat milk");
        assert_eq!(line(&["mushrooms"], 18, 0, |_| false).text(border), "mushrooms");
    }

    #[test]
    fn numbers_keep_together() {
        let border = page_border(&[line(&WORDS, 3, 10, |_| true), line(&WORDS, 3, 10, |_| true)]);
        let mut amount = line(&["1,111.19"], 9, 0, |_| false);
        assert_eq!(amount.text(border), "1,111.19");
        amount.pairs[5].gap = 30;
        assert_eq!(amount.text(border), "1,111. 19");
        assert_eq!(line(&["Tel", ".", "(", "see", ")"], 3, 12, |_| false).text(border), "Tel. (see)");
    }

    #[test]
    fn a_seen_blank_takes_the_gap_beside_a_character_that_was_timed_early() {
        let mut ink = Ink { gaps: vec![Gap { begin: 30, end: 44 }], end: 80, ..Ink::default() };
        let place = |text: &str, at: f32| Placed { text: text.into(), at, confidence: 0.9 };
        let glyphs = vec![place("a", 20.0), place(" ", 28.0), place("H", 36.0), place("e", 68.0)];
        assert_eq!(Spacing::new(&ink, glyphs.clone()).text(12.0), "a He");
        // Without the seen blank the gap counts where it lies.
        let unseen = glyphs.iter().filter(|glyph| glyph.text != " ").cloned().collect();
        assert_eq!(Spacing::new(&ink, unseen).text(12.0), "aH e");
        // A blank that was seen already has its gap.
        ink.gaps.insert(0, Gap { begin: 22, end: 29 });
        assert_eq!(Spacing::new(&ink, glyphs).text(12.0), "a H e");
    }

    #[test]
    fn what_is_read_on_empty_paper_is_dropped() {
        let ink = Ink { end: 60, ..Ink::default() };
        let place = |text: &str, at: f32| Placed { text: text.into(), at, confidence: 0.9 };
        let glyphs = vec![place("o", 12.0), place("k", 40.0), place(".", 66.0), place(" ", 80.0), place("k", 100.0)];
        assert_eq!(Spacing::new(&ink, glyphs).text(12.0), "ok.");
    }

    #[test]
    fn without_anything_seen_a_quarter_of_the_height_decides() {
        let plain = line(&WORDS, 3, 16, |_| false);
        let border = page_border([&plain]);
        assert_eq!(border, BORDER_USUAL);
        assert_eq!(plain.text(border), WORDS.join(" "));
        assert_eq!(line(&["x"], 0, 0, |_| false).text(border), "x");
        assert_eq!(Spacing::default().text(border), "");
        assert_eq!(Spacing::default().confidence(), 0.0);
    }
}
