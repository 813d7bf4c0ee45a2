//! Pages as pixels, and the text read from them.

use std::sync::Arc;

use crate::EngineError;

/// Longest side of a page in pixels.
pub const PAGE_SIDE_MAX: u32 = 20_000;
/// Most pixels of a page: A3 at 400 dpi has 31 million.
pub const PAGE_PIXELS_MAX: u64 = 64 << 20;

/// Pixels of one page: 8 bits a channel, rows from the top, no padding between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u8,
    /// `width · height · channels` bytes.
    pub pixels: Arc<[u8]>,
}

/// Read the text of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OcrRequest {
    /// The page, as it lies: it may be turned by a multiple of 90°.
    pub page: PageImage,
}

impl OcrRequest {
    /// Checks the picture's shape.
    ///
    /// # Errors
    /// [`EngineError::Input`] names the limit and what came.
    pub fn validate(&self) -> Result<(), EngineError> {
        let PageImage { width, height, channels, ref pixels } = self.page;
        if channels != 1 && channels != 3 {
            return Err(EngineError::Input(format!("a page has 1 or 3 channels, got {channels}")));
        }
        let sides = 1..=PAGE_SIDE_MAX;
        let area = u64::from(width) * u64::from(height);
        if !sides.contains(&width) || !sides.contains(&height) || area > PAGE_PIXELS_MAX {
            return Err(EngineError::Input(format!(
                "a page has sides of 1 to {PAGE_SIDE_MAX} and at most {PAGE_PIXELS_MAX} pixels, got {width} × {height}"
            )));
        }
        if pixels.len() as u64 != area * u64::from(channels) {
            return Err(EngineError::Input(format!(
                "{width} × {height} pixels of {channels} channels are {} bytes, got {}",
                area * u64::from(channels),
                pixels.len()
            )));
        }
        Ok(())
    }
}

/// What stands on a page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PageText {
    /// Clockwise turn in degrees that makes the page upright: 0, 90, 180 or 270.
    pub turn: u16,
    /// Its lines in reading order.
    pub lines: Vec<TextLine>,
}

/// One line of text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextLine {
    /// What it says.
    pub text: String,
    /// Mean confidence of its characters, 0 to 1.
    pub confidence: f32,
    /// Its corners in pixels of the page as it came, (x, y) from the top left: where the text begins above, ends above, ends below,
    /// begins below.
    pub corners: [[f32; 2]; 4],
    /// Number of its block (a paragraph or a column's part), ascending in reading order.
    pub block: u32,
}

impl PageText {
    /// Plain text: a newline after each line, an empty line between blocks.
    #[must_use]
    pub fn plain(&self) -> String {
        let mut text = String::new();
        for (index, line) in self.lines.iter().enumerate() {
            if index > 0 && self.lines[index - 1].block != line.block {
                text.push('\n');
            }
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(width: u32, height: u32, channels: u8, bytes: usize) -> Result<(), EngineError> {
        OcrRequest { page: PageImage { width, height, channels, pixels: vec![0; bytes].into() } }.validate()
    }

    #[test]
    fn hostile_pages_are_refused_by_name() {
        assert_eq!(ask(2, 3, 1, 6), Ok(()));
        assert_eq!(ask(2, 3, 3, 18), Ok(()));
        let check = |outcome: Result<(), EngineError>, word: &str| {
            let error = outcome.expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        };
        check(ask(2, 3, 4, 24), "channels");
        check(ask(0, 3, 1, 0), "0 × 3");
        check(ask(100_000, 100_000, 1, 1), "100000");
        check(ask(20_000, 20_000, 1, 1), "pixels");
        check(ask(2, 3, 3, 17), "18 bytes, got 17");
    }

    #[test]
    fn blocks_are_parted_by_an_empty_line() {
        let line = |text: &str, block| TextLine { text: text.into(), confidence: 1.0, corners: [[0.0; 2]; 4], block };
        let page = PageText { turn: 0, lines: vec![line("a", 0), line("b", 0), line("c", 1)] };
        assert_eq!(page.plain(), "a\nb\n\nc\n");
        assert_eq!(PageText::default().plain(), "");
    }
}
