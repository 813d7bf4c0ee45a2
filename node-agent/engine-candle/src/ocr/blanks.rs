//! Blanks between words: where a line is cut before it is recognised, and where blanks are put back afterwards.

use super::ink::Ink;

/// A character on its strip.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) text: String,
    /// Column of the middle of its time steps.
    pub(crate) at: f32,
    pub(crate) confidence: f32,
}

/// Joins a line's characters to text.
pub(crate) fn compose(_ink: &Ink, glyphs: &[Placed]) -> String {
    glyphs.iter().map(|glyph| glyph.text.as_str()).collect()
}
