//! A document's pages in order: parsed in another process, read by the model where they are pixels, one page ahead of it.

use std::ops::Range;
use std::time::SystemTime;

use ingle_daemon::past::phase;
use ingle_engine::{Class, EngineError, OcrRequest, PageImage, PageText, Request};
use ingle_parse::{Content, Document, Page, PageWords, ParseError};
use ingle_proto::v1::{self, PageSource};
use ingle_proto::{ErrorCode, Problem};
use prost::Message as _;
use tokio::task::JoinHandle;

use super::embed::as_item;
use crate::error::Failure;
use crate::executor::Event;
use crate::limits;
use crate::loaded::Lease;
use crate::parsing::problem;

type Parsed = (Document, u32, Result<Page, ParseError>);

/// Pages that are still to come. At most two pages' pixels are in memory: the one that is read, and the next.
pub(super) struct Pages {
    left: Range<u32>,
    parsing: Option<JoinHandle<Parsed>>,
    /// Microseconds of the model's time so far.
    pub(super) busy_us: u64,
}

impl Pages {
    /// Pages `range` of a document, counted from 0.
    pub(super) fn new(document: Document, range: Range<u32>) -> Self {
        let mut pages = Self { left: range, parsing: None, busy_us: 0 };
        pages.parse_next(document);
        pages
    }

    fn parse_next(&mut self, mut document: Document) {
        self.parsing = self.left.next().map(|index| {
            tokio::task::spawn_blocking(move || {
                let page = document.page(index, limits::OCR_DPI);
                (document, index, page)
            })
        });
    }

    /// The next page; one that can't be read says why. `None` after the last.
    ///
    /// # Errors
    /// [`Failure`]: this node's, or the model's over this page.
    pub(super) async fn next(&mut self, lease: &Lease, class: Class) -> Result<Option<v1::OcrPage>, Failure> {
        let Some(parsing) = self.parsing.take() else { return Ok(None) };
        let (document, index, page) = parsing
            .await
            .map_err(|error| Failure::item(ErrorCode::Internal, format!("parsing a page panicked: {error}")))?;
        // The parser goes on while the model reads.
        self.parse_next(document);
        let number = index + 1;
        let page = match page {
            Ok(page) => page,
            Err(error) => return Ok(Some(unreadable(number, &problem(&error)?))),
        };
        let dpi = if page.dpi.is_finite() { page.dpi.round().clamp(0.0, 65_535.0) as u32 } else { 0 };
        let bounded = |page: v1::OcrPage| {
            if page.encoded_len() <= limits::PAGE_TEXT_BYTES_MAX {
                return page;
            }
            let words = format!("its text is longer than {} MiB", limits::PAGE_TEXT_BYTES_MAX >> 20);
            unreadable(number, &Problem::new(ErrorCode::TooLarge, words))
        };
        let read = v1::OcrPage { number, width: page.width, height: page.height, dpi, ..Default::default() };
        match page.content {
            Content::Text(words) => {
                let lines = own_lines(&words);
                Ok(Some(bounded(v1::OcrPage { source: PageSource::Text.into(), lines, ..read })))
            }
            Content::Pixels(image) => match self.recognise(lease, class, image).await {
                Ok(text) => Ok(Some(bounded(v1::OcrPage {
                    source: PageSource::Ocr.into(),
                    turn: text.turn.into(),
                    lines: text.lines.into_iter().map(line).collect(),
                    ..read
                }))),
                Err(EngineError::Input(reason)) => {
                    Ok(Some(unreadable(number, &Problem::new(ErrorCode::DocumentMalformed, reason))))
                }
                Err(error) => Err(as_item(&error)),
            },
        }
    }

    async fn recognise(&mut self, lease: &Lease, class: Class, page: PageImage) -> Result<PageText, EngineError> {
        let begun = SystemTime::now();
        let mut ticket = lease.handle.submit(class, Request::Ocr(OcrRequest { page })).await?;
        let mut text = None;
        loop {
            match ticket.next().await? {
                Event::Page(page) => text = Some(page),
                Event::Done { .. } => {
                    self.busy_us += ticket.busy_us();
                    phase("page", begun, SystemTime::now(), &[]);
                    return text.ok_or_else(|| EngineError::Compute("the model left out the page".into()));
                }
                _ => {}
            }
        }
    }
}

/// A page that could not be read.
pub(super) fn unreadable(number: u32, problem: &Problem) -> v1::OcrPage {
    let code = problem.code.as_str().to_owned();
    v1::OcrPage { number, code, reason: problem.message.clone(), ..Default::default() }
}

fn line(line: ingle_engine::TextLine) -> v1::OcrLine {
    v1::OcrLine {
        text: line.text,
        confidence: line.confidence,
        r#box: line.corners.into_iter().flatten().collect(),
        block: line.block,
    }
}

/// A page's own lines in the order in which the file draws them. A new block begins after a gap, and above what came before.
fn own_lines(words: &PageWords) -> Vec<v1::OcrLine> {
    let mut lines = Vec::with_capacity(words.lines.len());
    let mut block = 0;
    let mut before: Option<(f32, f32)> = None;
    for line in &words.lines {
        let [top, bottom] = [line.corners[0][1].min(line.corners[1][1]), line.corners[2][1].max(line.corners[3][1])];
        if let Some((above, below)) = before {
            let height = (bottom - top).max(1.0);
            if top - below > height * 0.8 || bottom < above {
                block += 1;
            }
        }
        before = Some((top, bottom));
        lines.push(v1::OcrLine {
            text: line.text(),
            confidence: 1.0,
            r#box: line.corners.into_iter().flatten().collect(),
            block,
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use ingle_parse::{Line, Word};

    use super::*;

    #[test]
    fn own_text_falls_into_blocks_by_its_gaps() {
        let at = |text: &str, top: f32| {
            let corners = [[10.0, top], [90.0, top], [90.0, top + 10.0], [10.0, top + 10.0]];
            Line { words: text.split(' ').map(|w| Word { text: w.into(), corners }).collect(), corners }
        };
        let words = PageWords {
            lines: vec![at("a b", 10.0), at("c", 22.0), at("far below", 60.0), at("d", 72.0), at("next column", 10.0)],
        };
        let lines = own_lines(&words);
        assert_eq!(lines.iter().map(|l| l.block).collect::<Vec<_>>(), [0, 0, 1, 1, 2]);
        assert_eq!((lines[0].text.as_str(), lines[0].confidence), ("a b", 1.0));
        assert_eq!(lines[0].r#box, [10.0, 10.0, 90.0, 10.0, 90.0, 20.0, 10.0, 20.0]);
    }
}
