//! What a page is: its size, and either its own words or its pixels.

use ingle_engine::PageImage;

/// One page of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Columns of pixels at `dpi`.
    pub width: u32,
    /// Rows of pixels at `dpi`.
    pub height: u32,
    /// Pixels per inch; 0 where nobody knows (a picture without a plausible resolution).
    pub dpi: f32,
    /// What stands on it.
    pub content: Content,
}

/// What stands on a page.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// The page brought good text of its own; no words at all where nothing is drawn on it.
    Text(PageWords),
    /// It has to be read from its pixels.
    Pixels(PageImage),
}

/// The words of a page in the order in which the file draws them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PageWords {
    /// Words on one baseline, without a wide gap between them.
    pub lines: Vec<Line>,
}

/// Words on one baseline. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its words, in order.
    pub words: Vec<Word>,
    /// Its corners in pixels of the page, (x, y) from the top left: where the text begins above, ends above, ends below,
    /// begins below.
    pub corners: [[f32; 2]; 4],
}

/// A word: text without blanks. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// What it says.
    pub text: String,
    /// Its corners, as a line's.
    pub corners: [[f32; 2]; 4],
}

impl Line {
    /// Its words with a blank between them.
    #[must_use]
    pub fn text(&self) -> String {
        let words: Vec<&str> = self.words.iter().map(|word| word.text.as_str()).collect();
        words.join(" ")
    }
}

impl PageWords {
    /// Plain text: a newline after each line.
    #[must_use]
    pub fn plain(&self) -> String {
        self.lines.iter().map(|line| line.text() + "\n").collect()
    }
}
