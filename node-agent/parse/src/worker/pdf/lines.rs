//! From glyphs in the order in which a file draws them to words and lines.

use hayro::kurbo::{Point, Vec2};

use super::gather::Glyph;
use super::strides::median;
use crate::page::{Line, PageWords, Word};

/// Distances in parts of the font's size. A gap wider than this parts words where the file has no blank: type without blanks
/// sets them at a quarter to a third, and shrinks them to a fifth.
const WORD_GAP: f64 = 0.17;
/// Gaps that are enough to tell that a line is set with its letters apart.
const GAPS_MIN: usize = 4;
/// A gap wider than this parts lines: the next column of a table or of the page.
const LINE_GAP: f64 = 4.0;
/// How far the baseline may move within a line (superscripts do), and how far the pen may move back (accents do).
const SHIFT: f64 = 0.5;
const BACK: f64 = 1.0;
/// How much of the font's size lies above and below the baseline.
const ABOVE: f64 = 0.78;
const BELOW: f64 = 0.22;

/// Puts glyphs together. Corners are kept within `width` × `height`.
pub(super) fn lines(glyphs: &[Glyph], width: u16, height: u16) -> PageWords {
    let mut builder =
        Builder { page: PageWords::default(), line: Vec::new(), last: None, blank: false, size: [width, height] };
    for glyph in glyphs {
        builder.add(glyph);
    }
    builder.end_line();
    builder.page
}

/// A box square to a line: from where to where along it and across it.
#[derive(Debug, Clone, Copy)]
struct Extent {
    from: f64,
    to: f64,
    below: f64,
    above: f64,
}

/// A glyph of the line in the making.
struct Set<'a> {
    glyph: &'a Glyph,
    /// A blank stands before it.
    blank: bool,
    /// From the end of the one before it, in parts of the size.
    gap: f64,
}

struct Builder<'a> {
    page: PageWords,
    line: Vec<Set<'a>>,
    /// The last glyph, blank or not.
    last: Option<&'a Glyph>,
    blank: bool,
    size: [u16; 2],
}

impl<'a> Builder<'a> {
    fn add(&mut self, glyph: &'a Glyph) {
        let mut gap = 0.0;
        if let Some(last) = self.last {
            let jump = glyph.start - last.end;
            let size = last.size.max(glyph.size);
            let shift = jump.dot(last.up).abs() / size;
            gap = jump.dot(last.along) / size;
            let turned = last.along.dot(glyph.along) < 0.98;
            if turned || shift > SHIFT || !(-BACK..=LINE_GAP).contains(&gap) {
                self.end_line();
            }
        }
        if glyph.text == " " {
            self.blank = true;
            // Before any word a blank says nothing about where the line begins.
            self.last = if self.line.is_empty() { None } else { Some(glyph) };
        } else {
            self.line.push(Set { glyph, blank: std::mem::take(&mut self.blank), gap });
            self.last = Some(glyph);
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        (self.last, self.blank) = (None, false);
        let Some(first) = line.first() else { return };
        // Along and across are those of the line's first glyph; the others' differ by a hair at most.
        let axes = (first.glyph.along, first.glyph.up);
        let within: Vec<f64> = line.iter().skip(1).filter(|set| !set.blank).map(|set| set.gap).collect();
        let apart = if within.len() >= GAPS_MIN { median(within).unwrap_or_default().max(0.0) } else { 0.0 };
        let mut words: Vec<(String, Extent)> = Vec::new();
        for set in &line {
            let extent = Extent::of(set.glyph, axes);
            match words.last_mut().filter(|_| !set.blank && set.gap <= WORD_GAP + apart) {
                Some((text, whole)) => {
                    text.push_str(&set.glyph.text);
                    *whole = whole.with(extent);
                }
                None => words.push((set.glyph.text.clone(), extent)),
            }
        }
        let whole = words.iter().skip(1).fold(words[0].1, |whole, (_, extent)| whole.with(*extent));
        let corners = self.corners(whole, axes);
        let words =
            words.into_iter().map(|(text, extent)| Word { text, corners: self.corners(extent, axes) }).collect();
        self.page.lines.push(Line { words, corners });
    }

    fn corners(&self, extent: Extent, (along, across): (Vec2, Vec2)) -> [[f32; 2]; 4] {
        let Extent { from, to, below, above } = extent;
        [(from, above), (to, above), (to, below), (from, below)].map(|(far, high)| {
            let point = along * far + across * high;
            let within = |value: f64, most: u16| (value as f32).clamp(0.0, f32::from(most));
            [within(point.x, self.size[0]), within(point.y, self.size[1])]
        })
    }
}

impl Extent {
    fn of(glyph: &Glyph, (along, across): (Vec2, Vec2)) -> Extent {
        let place = |point: Point, axis: Vec2| point.to_vec2().dot(axis);
        let (from, to) = (place(glyph.start, along), place(glyph.end, along));
        let base = place(glyph.start, across);
        Extent {
            from: from.min(to),
            to: from.max(to),
            below: base - BELOW * glyph.size,
            above: base + ABOVE * glyph.size,
        }
    }

    fn with(self, other: Extent) -> Extent {
        Extent {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
            below: self.below.min(other.below),
            above: self.above.max(other.above),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Glyphs of half their size's width, the text's blanks being real ones; `_` moves on without drawing.
    fn typed(text: &str, x: f64, y: f64) -> Vec<Glyph> {
        let (along, up) = (Vec2::new(1.0, 0.0), Vec2::new(0.0, -1.0));
        let mut start = Point::new(x, y);
        let mut glyphs = Vec::new();
        for c in text.chars() {
            let end = start + along * 10.0;
            if c != '_' {
                glyphs.push(Glyph { text: c.to_string(), start, end, along, up, size: 20.0 });
            }
            start = end;
        }
        glyphs
    }

    fn read(glyphs: &[Glyph]) -> Vec<String> {
        lines(glyphs, 1_000, 1_000).lines.iter().map(Line::text).collect()
    }

    #[test]
    fn blanks_and_gaps_part_words() {
        assert_eq!(read(&typed("ab cd", 10.0, 50.0)), ["ab cd"]);
        assert_eq!(read(&typed("ab_cd", 10.0, 50.0)), ["ab cd"]);
        assert_eq!(read(&typed("  ab  ", 10.0, 50.0)), ["ab"]);
        assert_eq!(read(&typed("ab_ _cd", 10.0, 50.0)), ["ab cd"]);
        assert_eq!(read(&typed("ab_________cd", 10.0, 50.0)), ["ab", "cd"], "nine halves are a column's gap");
        assert_eq!(read(&[]), Vec::<String>::new());
        assert_eq!(read(&typed("s_p_a_c_e_d___o_u_t", 10.0, 50.0)), ["spaced out"]);
        assert_eq!(read(&typed("a_b_c", 10.0, 50.0)), ["a b c"], "three letters may be three words");
    }

    #[test]
    fn lines_end_where_the_pen_leaves_them() {
        let two = [typed("first", 10.0, 50.0), typed("second", 10.0, 75.0)].concat();
        assert_eq!(read(&two), ["first", "second"]);
        let raised = [typed("x", 10.0, 50.0), typed("2", 20.0, 43.0), typed("y", 30.0, 50.0)].concat();
        assert_eq!(read(&raised), ["x2y"]);
        let back = [typed("right", 500.0, 50.0), typed("left", 10.0, 50.0)].concat();
        assert_eq!(read(&back), ["right", "left"]);
    }

    #[test]
    fn boxes_lie_around_words_and_within_the_page() {
        let page = lines(&typed("ab cd", 10.0, 50.0), 1_000, 1_000);
        let line = &page.lines[0];
        assert_eq!(line.corners, [[10.0, 34.4], [60.0, 34.4], [60.0, 54.4], [10.0, 54.4]]);
        assert_eq!(line.words[1].corners, [[40.0, 34.4], [60.0, 34.4], [60.0, 54.4], [40.0, 54.4]]);
        let cut = lines(&typed("ab", 10.0, 5.0), 25, 1_000);
        assert_eq!(cut.lines[0].corners, [[10.0, 0.0], [25.0, 0.0], [25.0, 9.4], [10.0, 9.4]]);
    }

    #[test]
    fn turned_lines_keep_their_direction() {
        // Read from below to above: a table set sideways.
        let turn = |glyph: Glyph| {
            let turned = |point: Point| Point::new(point.y, 900.0 - point.x);
            let (along, up) = (Vec2::new(0.0, -1.0), Vec2::new(-1.0, 0.0));
            Glyph { start: turned(glyph.start), end: turned(glyph.end), along, up, ..glyph }
        };
        let glyphs: Vec<Glyph> = typed("ab cd", 10.0, 50.0).into_iter().map(turn).collect();
        let page = lines(&glyphs, 1_000, 1_000);
        assert_eq!(page.plain(), "ab cd\n");
        assert_eq!(page.lines[0].corners, [[34.4, 890.0], [34.4, 840.0], [54.4, 840.0], [54.4, 890.0]]);
        let both = [typed("flat", 10.0, 50.0), glyphs].concat();
        assert_eq!(read(&both), ["flat", "ab cd"]);
    }
}
