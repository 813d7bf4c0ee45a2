//! Pages whose pixels spell their text, so that a test knows what a page says.

use std::time::{Duration, Instant};

use crate::{Finish, Output, PageImage, PageText, RequestId, TextLine, Timings};

pub(super) struct Reading {
    /// Row and text.
    lines: Vec<(u32, String)>,
    width: u32,
    next: usize,
    spent: Duration,
}

impl Reading {
    pub(super) fn new(page: &PageImage) -> Self {
        let channels = usize::from(page.channels);
        let rows = page.pixels.chunks_exact(page.width as usize * channels);
        let spelt = rows.map(|row| row.iter().step_by(channels).copied().take_while(|byte| *byte != 0).collect());
        let lines = (0u32..).zip(spelt).filter(|(_, bytes): &(u32, Vec<u8>)| !bytes.is_empty());
        let lines = lines.map(|(row, bytes)| (row, String::from_utf8_lossy(&bytes).into_owned())).collect();
        Self { lines, width: page.width, next: 0, spent: Duration::ZERO }
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(_, text)| text.as_str())
    }

    /// Reads `budget` lines; true once the page is read.
    pub(super) fn step(&mut self, id: RequestId, budget: usize, out: &mut Vec<Output>) -> bool {
        let begun = Instant::now();
        self.next = self.lines.len().min(self.next + budget);
        if self.next < self.lines.len() {
            self.spent += begun.elapsed();
            return false;
        }
        let width = self.width as f32;
        let line = |(row, text): (u32, String)| {
            let (top, bottom) = (row as f32, row as f32 + 1.0);
            let corners = [[0.0, top], [width, top], [width, bottom], [0.0, bottom]];
            TextLine { text, confidence: 1.0, corners, block: 0 }
        };
        let lines = std::mem::take(&mut self.lines).into_iter().map(line).collect();
        out.push(Output::Page { id, page: PageText { turn: 0, lines } });
        self.spent += begun.elapsed();
        out.push(Output::Done {
            id,
            finish: Finish::Stop,
            text: String::new(),
            text_offset: 0,
            prompt_tokens: 0,
            output_tokens: 0,
            timings: Timings { prefill: self.spent, decode: Duration::ZERO },
        });
        true
    }
}
