//! What a page draws, without drawing it: its glyphs with their meaning and place, and how much of it is pictures and curves.

use std::collections::HashMap;

use hayro::hayro_interpret::font::{GlyphRun, PositionedGlyph};
use hayro::hayro_interpret::hayro_cmap::WritingMode;
use hayro::hayro_interpret::{
    BlendMode, ClipPath, Context, Device, DrawMode, DrawProps, Image, ImageDrawProps, InterpreterCache,
    InterpreterSettings, SoftMask, interpret_page,
};
use hayro::hayro_syntax::page::Page;
use hayro::kurbo::{Affine, BezPath, PathEl, Point, Rect, Shape, Vec2};

use super::Frame;
use super::meaning::meaning;
use super::strides::{EM, Strides, width};

/// A page with more glyphs is read from its pixels.
const GLYPHS_MAX: usize = 200_000;
/// Cells to a side of the grid on which pictures are laid, to know how much of the page they cover.
const CELLS: usize = 64;
/// A picture that covers this part of the page hides the text that was drawn before it.
const HIDING: f64 = 0.5;
/// Smaller type, in pixels, is no type.
const SIZE_MIN: f64 = 0.5;
/// Side in pixels of the squares by which glyphs drawn twice are found, and most glyphs remembered in one.
const NEAR: f64 = 8.0;
const NEAR_MAX: usize = 64;

/// A glyph whose meaning is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Glyph {
    /// What it means; one blank for any kind of space.
    pub(super) text: String,
    /// Where its baseline begins and ends, in pixels.
    pub(super) start: Point,
    pub(super) end: Point,
    /// Unit vectors: the way the line runs, and from the baseline to the glyph's top.
    pub(super) along: Vec2,
    pub(super) up: Vec2,
    /// Size of the font in pixels.
    pub(super) size: f64,
}

/// What else was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    /// Glyphs of known meaning, blanks not counted.
    pub(super) good: usize,
    /// Glyphs that stand for nothing that is known.
    pub(super) bad: usize,
    /// Of the good ones, those that a reader can't see: drawn invisibly, or under a picture.
    pub(super) hidden: usize,
    /// Part of the page that pictures cover, 0 to 1.
    pub(super) pictures: f64,
    /// Curves drawn, and straight edges beyond those of boxes and rules.
    pub(super) curves: usize,
    /// More glyphs than are remembered.
    pub(super) overflow: bool,
}

/// Reads a page's drawing instructions.
pub(super) fn gather(page: &Page<'_>, frame: &Frame, settings: &InterpreterSettings) -> (Vec<Glyph>, Seen) {
    let sheet = Rect::new(0.0, 0.0, f64::from(frame.width), f64::from(frame.height));
    let cache = InterpreterCache::new();
    let mut context = Context::new(frame.transform, sheet, &cache, page.xref(), settings.clone());
    let mut gatherer = Gatherer {
        sheet,
        clips: Vec::new(),
        glyphs: Vec::new(),
        seen: Seen::default(),
        covered: vec![false; CELLS * CELLS],
        near: HashMap::new(),
    };
    interpret_page(page, &mut context, &mut gatherer);
    let covered = gatherer.covered.iter().filter(|cell| **cell).count();
    gatherer.seen.pictures = covered as f64 / (CELLS * CELLS) as f64;
    (gatherer.glyphs, gatherer.seen)
}

struct Gatherer {
    sheet: Rect,
    clips: Vec<Rect>,
    glyphs: Vec<Glyph>,
    seen: Seen,
    covered: Vec<bool>,
    near: HashMap<(i32, i32), Vec<u32>>,
}

impl Gatherer {
    fn visible(&self) -> Rect {
        self.clips.last().copied().unwrap_or(self.sheet)
    }

    fn push_clip(&mut self, clip: Rect) {
        // An empty meeting of two must not become a box turned inside out.
        let met = self.visible().intersect(clip);
        self.clips.push(met);
    }

    fn see_run(&mut self, run: &GlyphRun<'_, '_>, props: &DrawProps<'_>, invisible: bool) {
        let strides = Strides::of(run, props.transform);
        for placed in run.glyphs() {
            match self.placed(placed, run.writing_mode(), props.transform, &strides) {
                Placed::Unseen => {}
                Placed::Unnamed => self.seen.bad += 1,
                Placed::Here(glyph) => self.remember(glyph, invisible),
            }
        }
    }

    fn placed(&self, placed: &PositionedGlyph<'_>, writing: WritingMode, outer: Affine, strides: &Strides) -> Placed {
        let transform = outer * placed.transform();
        let [a, b, c, d, _, _] = transform.as_coeffs();
        let (right, top) = (Vec2::new(a, b) * EM, Vec2::new(c, d) * EM);
        let (Some(along), Some(upward)) = (unit(right), unit(top)) else { return Placed::Unnamed };
        let start = transform * Point::ORIGIN;
        let size = strides.size.unwrap_or(top.hypot());
        let (along, across, step) = match writing {
            WritingMode::Horizontal => (along, upward, width(placed) / EM * strides.em.unwrap_or(right.hypot())),
            WritingMode::Vertical => (-upward, along, size),
        };
        // Square to the line, even where a font is slanted by its matrix.
        let square = Vec2::new(along.y, -along.x);
        let up = if square.dot(across) < 0.0 { -square } else { square };
        let end = start + along * step;
        if !start.is_finite() || !end.is_finite() || !size.is_finite() || size < SIZE_MIN {
            return Placed::Unnamed;
        }
        if !self.visible().contains(start.midpoint(end) + up * (0.3 * size)) {
            return Placed::Unseen;
        }
        match meaning(placed) {
            Some(text) => Placed::Here(Glyph { text, start, end, along, up, size }),
            None => Placed::Unnamed,
        }
    }

    fn remember(&mut self, glyph: Glyph, invisible: bool) {
        if self.glyphs.len() >= GLYPHS_MAX {
            self.seen.overflow = true;
            return;
        }
        if glyph.text != " " {
            if self.was_drawn(&glyph) {
                return;
            }
            self.seen.good += 1;
            self.seen.hidden += usize::from(invisible);
        }
        self.glyphs.push(glyph);
    }

    /// Bold type is often made by drawing twice with a little offset, or by filling and then stroking.
    fn was_drawn(&mut self, glyph: &Glyph) -> bool {
        let (column, row) = ((glyph.start.x / NEAR) as i32, (glyph.start.y / NEAR) as i32);
        let reach = (0.1 * glyph.size).min(NEAR);
        for cell in (column - 1..=column + 1).flat_map(|column| (row - 1..=row + 1).map(move |row| (column, row))) {
            for index in self.near.get(&cell).into_iter().flatten() {
                let other = &self.glyphs[*index as usize];
                if other.text == glyph.text && other.start.distance(glyph.start) < reach {
                    return true;
                }
            }
        }
        let cell = self.near.entry((column, row)).or_default();
        if cell.len() < NEAR_MAX {
            cell.push(self.glyphs.len() as u32);
        }
        false
    }

    fn cover(&mut self, picture: Rect) {
        let shown = picture.intersect(self.visible()).intersect(self.sheet);
        if shown.area() >= HIDING * self.sheet.area() {
            self.seen.hidden = self.seen.good;
        }
        let cells = CELLS as f64;
        let scale = |place: f64, side: f64| (place / side * cells).round().clamp(0.0, cells) as usize;
        let columns = scale(shown.x0, self.sheet.x1)..scale(shown.x1, self.sheet.x1);
        for row in scale(shown.y0, self.sheet.y1)..scale(shown.y1, self.sheet.y1) {
            for column in columns.clone() {
                self.covered[row * CELLS + column] = true;
            }
        }
    }
}

impl<'a> Device<'a> for Gatherer {
    fn draw_path(&mut self, path: &BezPath, _: DrawProps<'a>, _: &DrawMode) {
        let elements = path.elements();
        let curves = elements.iter().filter(|step| matches!(step, PathEl::CurveTo(..) | PathEl::QuadTo(..))).count();
        // Boxes and rules have at most five elements.
        let edges = if elements.len() > 5 { elements.len() - curves } else { 0 };
        self.seen.curves = self.seen.curves.saturating_add(curves + edges);
    }

    fn draw_rect(&mut self, _: &Rect, _: DrawProps<'a>, _: &DrawMode) {}

    fn push_clip_path(&mut self, clip_path: &ClipPath) {
        self.push_clip(clip_path.path.bounding_box());
    }

    fn push_clip_rect(&mut self, rect: &Rect) {
        self.push_clip(*rect);
    }

    fn pop_clip(&mut self) {
        self.clips.pop();
    }

    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}

    fn pop_transparency_group(&mut self) {}

    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, mode: &DrawMode) {
        self.see_run(run, &props, matches!(mode, DrawMode::Invisible));
    }

    fn draw_image(&mut self, image: Image<'a, '_>, props: ImageDrawProps<'a>) {
        let own = Rect::new(0.0, 0.0, f64::from(image.width()), f64::from(image.height()));
        let placed = props.transform.transform_rect_bbox(own);
        if placed.is_finite() {
            self.cover(placed);
        }
    }
}

/// What a glyph of a run came to.
enum Placed {
    /// Outside the page or what is cut out of it.
    Unseen,
    /// Drawn, but nobody can tell what it means.
    Unnamed,
    Here(Glyph),
}

fn unit(vector: Vec2) -> Option<Vec2> {
    let length = vector.hypot();
    (length.is_finite() && length > 1e-9).then(|| vector / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gatherer() -> Gatherer {
        Gatherer {
            sheet: Rect::new(0.0, 0.0, 640.0, 640.0),
            clips: Vec::new(),
            glyphs: Vec::new(),
            seen: Seen::default(),
            covered: vec![false; CELLS * CELLS],
            near: HashMap::new(),
        }
    }

    fn glyph(text: &str, x: f64) -> Glyph {
        let start = Point::new(x, 100.0);
        let (along, up) = (Vec2::new(1.0, 0.0), Vec2::new(0.0, -1.0));
        Glyph { text: text.into(), start, end: start + along * 10.0, along, up, size: 20.0 }
    }

    #[test]
    fn a_glyph_drawn_twice_counts_once() {
        let mut gatherer = gatherer();
        for (text, x) in [("a", 50.0), ("a", 50.8), ("a", 47.9), ("b", 50.0), ("a", 60.0), ("l", 63.0), ("l", 67.0)] {
            gatherer.remember(glyph(text, x), false);
        }
        let kept: String = gatherer.glyphs.iter().map(|glyph| glyph.text.as_str()).collect();
        // 47.9 is a tenth of the size away, which is too far for a shadow.
        assert_eq!(kept, "aaball");
    }

    #[test]
    fn pictures_cover_and_hide() {
        let mut gatherer = gatherer();
        gatherer.remember(glyph("a", 50.0), false);
        gatherer.cover(Rect::new(0.0, 0.0, 320.0, 320.0));
        assert_eq!((gatherer.seen.hidden, gatherer.covered.iter().filter(|cell| **cell).count()), (0, 1_024));
        gatherer.push_clip(Rect::new(0.0, 0.0, 640.0, 32.0));
        gatherer.cover(Rect::new(-1e9, -1e9, 1e9, 1e9));
        assert_eq!(gatherer.seen.hidden, 0, "clipped to a strip");
        gatherer.pop_clip();
        gatherer.cover(Rect::new(0.0, 0.0, 640.0, 600.0));
        assert_eq!(gatherer.seen.hidden, 1);
    }
}
