//! How wide the glyphs of a run are and how large its font is, where single glyphs don't tell it truly.

use hayro::hayro_interpret::font::{Glyph, GlyphRun, PositionedGlyph};
use hayro::kurbo::{Affine, Point, Vec2};

/// Units of a font's em.
pub(super) const EM: f64 = 1_000.0;

/// What the single glyphs of a run don't tell truly about its measures.
pub(super) struct Strides {
    /// Pixels of one em along the line, where glyphs of a substitute font were stretched to fit.
    pub(super) em: Option<f64>,
    /// Size of the font in pixels, where the font's own matrix makes its nominal size meaningless.
    pub(super) size: Option<f64>,
}

impl Strides {
    pub(super) fn of(run: &GlyphRun<'_, '_>, outer: Affine) -> Self {
        let glyphs = run.glyphs();
        let across = |placed: &PositionedGlyph<'_>| {
            let [a, b, ..] = (outer * placed.transform()).as_coeffs();
            Vec2::new(a, b).hypot() * EM
        };
        let ems: Vec<f64> = glyphs.iter().map(across).collect();
        let (least, most) = ems.iter().fold((f64::MAX, 0.0_f64), |(least, most), em| (least.min(*em), most.max(*em)));
        let em = (most > least * 1.01).then(|| {
            // From one glyph's start to the next is its true width: the ratio to its nominal one is the em.
            let starts = glyphs.windows(2).zip(&ems).map(|(pair, em)| {
                let step =
                    (outer * pair[1].transform() * Point::ORIGIN) - (outer * pair[0].transform() * Point::ORIGIN);
                let nominal = width(&pair[0]) / EM;
                if nominal > 0.05 { step.hypot() / nominal } else { *em }
            });
            median(starts.collect()).unwrap_or(most)
        });
        // Bitmap fonts are often set at a size of one and scaled by their matrix: widths tell how large they are.
        let drawn = glyphs.iter().any(|placed| matches!(&**placed, Glyph::Type3(_)));
        let mean =
            glyphs.iter().zip(&ems).map(|(placed, em)| width(placed) / EM * em).sum::<f64>() / glyphs.len() as f64;
        let nominal = median(ems).unwrap_or_default();
        Strides { em, size: (drawn && mean > 1.5 * nominal).then_some(2.0 * mean) }
    }
}

/// Width of a glyph in thousandths of an em.
pub(super) fn width(placed: &PositionedGlyph<'_>) -> f64 {
    let width = match &**placed {
        Glyph::Outline(outline) => outline.advance_width(),
        Glyph::Type3(drawn) => drawn.advance_width(),
    };
    f64::from(width.unwrap_or(500.0))
}

/// The upper one of two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
