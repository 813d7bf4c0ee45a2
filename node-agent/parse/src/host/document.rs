//! A document that is open in a child, and its pages.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ingle_engine::PageImage;
use ingle_engine::page::{PAGE_PIXELS_MAX, PAGE_SIDE_MAX};

use super::child::KILL;
use super::pool::{Lent, Pool};
use crate::channel;
use crate::error::{ErrorKind, ParseError};
use crate::kinds::Kind;
use crate::limits::{DEATHS_IN_A_ROW_MAX, DEATHS_MAX, DPI_MAX, DPI_MIN, PAGES_MAX};
use crate::page::{Content, Page};
use crate::table::{self, TABLE_BYTES_MAX};
use crate::wire::{Reply, Request};

/// An open document. It holds a child until it is dropped.
///
/// Should the child die over a page, that page is an error and the next one is asked of a new child, a few times over.
#[derive(Debug)]
pub struct Document {
    kind: Kind,
    pages: u32,
    file: Arc<File>,
    bytes: u64,
    pool: Arc<Pool>,
    lent: Option<Lent>,
    deaths: u32,
    deaths_in_a_row: u32,
}

impl Document {
    pub(super) fn open(pool: Arc<Pool>, kind: Kind, file: Arc<File>, bytes: u64) -> Result<Self, ParseError> {
        let mut document = Document { kind, pages: 0, file, bytes, pool, lent: None, deaths: 0, deaths_in_a_row: 0 };
        document.pages = document.open_in_child()?;
        Ok(document)
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many pages it has, 1 to [`PAGES_MAX`].
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Page `index`, counted from 0. A PDF's page comes at `dpi_target` (36 to 1,200; taken into that range), at less where
    /// it would have more than 64 million pixels or a side above 20,000. A picture keeps its own pixels, but is shrunk by a
    /// whole number while it has at least twice the target's resolution, or too many pixels. Blocks for at most
    /// [`crate::Limits::page`], and as long as `open` where a new child has to open it first.
    ///
    /// # Errors
    /// [`ParseError`] says what is wrong with the page. Other pages may still be had.
    pub fn page(&mut self, index: u32, dpi_target: f32) -> Result<Page, ParseError> {
        if index >= self.pages {
            let message = format!("the document has {} pages, page {} was asked for", self.pages, u64::from(index) + 1);
            return Err(ParseError::malformed(message));
        }
        let dpi = if dpi_target.is_finite() { dpi_target.clamp(DPI_MIN, DPI_MAX) } else { 200.0 };
        if self.lent.is_none() {
            self.reopen()?;
        }
        let within = self.pool.limits().page;
        let (reply, file) = self.ask(Request::Page { index, dpi }, within)?;
        match received(reply, file) {
            Ok(outcome) => {
                if outcome.is_ok() {
                    self.deaths_in_a_row = 0;
                }
                outcome
            }
            Err(rule) => Err(self.broke(rule)),
        }
    }

    fn reopen(&mut self) -> Result<(), ParseError> {
        if self.deaths_in_a_row >= DEATHS_IN_A_ROW_MAX || self.deaths >= DEATHS_MAX {
            let message =
                format!("the process that parses it died {} times over it: it isn't tried again", self.deaths);
            return Err(ParseError::new(ErrorKind::Crashed { signal: 0 }, message));
        }
        match self.open_in_child()? {
            pages if pages == self.pages => Ok(()),
            _ => Err(self.broke("it counted other pages than before")),
        }
    }

    /// A child that rested may have been killed a moment ago without the kernel being through with it: that is not this
    /// document's doing, and a new child tells.
    fn open_in_child(&mut self) -> Result<u32, ParseError> {
        let deaths = (self.deaths, self.deaths_in_a_row);
        let (outcome, rested) = self.try_to_open()?;
        match outcome {
            Err(ParseError { kind: ErrorKind::Crashed { signal: KILL }, .. }) if rested => {
                (self.deaths, self.deaths_in_a_row) = deaths;
                self.try_to_open()?.0
            }
            outcome => outcome,
        }
    }

    /// The flag tells whether the child had served another document before. The outer error is that there is no child.
    fn try_to_open(&mut self) -> Result<(Result<u32, ParseError>, bool), ParseError> {
        let mut lent = self.pool.take()?;
        let child = lent.child().expect("a loan begins with a child");
        child.documents += 1;
        let rested = child.documents > 1;
        self.lent = Some(lent);
        Ok((self.opened(), rested))
    }

    fn opened(&mut self) -> Result<u32, ParseError> {
        let within = self.pool.limits().open;
        let (reply, _) = self.ask(Request::Open { kind: self.kind, bytes: self.bytes }, within)?;
        match reply {
            Reply::Opened { pages } if (1..=PAGES_MAX).contains(&pages) => Ok(pages),
            Reply::Failed { error, .. } if !error.blames_document() && can_be_read(&self.file, self.bytes) => {
                Err(self.broke("it could not read a document that can be read"))
            }
            Reply::Failed { error, .. } => {
                // Nothing is open there: the child is free for others.
                self.lent = None;
                Err(error)
            }
            _ => Err(self.broke("it answered something else than was asked")),
        }
    }

    fn ask(&mut self, request: Request, within: std::time::Duration) -> Result<(Reply, Option<OwnedFd>), ParseError> {
        let gone = || ParseError::unavailable("the process that parses is gone");
        let child = self.lent.as_mut().and_then(Lent::child).ok_or_else(gone)?;
        let file = matches!(request, Request::Open { .. }).then(|| self.file.as_fd());
        let answer = child.ask(request, file, within);
        if !child.is_alive() {
            self.lent = None;
            self.count_death();
        }
        answer
    }

    fn count_death(&mut self) {
        self.deaths += 1;
        self.deaths_in_a_row += 1;
    }

    /// Ends a child that broke the protocol.
    fn broke(&mut self, rule: &str) -> ParseError {
        self.count_death();
        let mut lent = self.lent.take();
        match lent.as_mut().and_then(Lent::child) {
            Some(child) => child.lied(rule),
            None => ParseError::unavailable(rule),
        }
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        if let Some(child) = self.lent.as_mut().and_then(Lent::child) {
            child.tell(Request::Close);
        }
    }
}

/// Turns a reply to [`Request::Page`] into a page, believing nothing. The outer error is a broken rule of the protocol.
fn received(reply: Reply, file: Option<OwnedFd>) -> Result<Result<Page, ParseError>, &'static str> {
    let sized = |width: u32, height: u32| {
        let sides = 1..=PAGE_SIDE_MAX;
        let area = u64::from(width) * u64::from(height);
        let fits = sides.contains(&width) && sides.contains(&height) && area <= PAGE_PIXELS_MAX;
        fits.then_some(area).ok_or("the page's size is out of bounds")
    };
    match reply {
        Reply::Pixels { width, height, dpi, channels } => {
            let area = sized(width, height)?;
            if channels != 1 && channels != 3 {
                return Err("a page has one or three channels");
            }
            let bytes = area * u64::from(channels);
            let file = channel::checked(file, bytes)?;
            // Allocated once, zeroed, and read into: at most 192 MiB, as the checks above say.
            let mut pixels: Arc<[u8]> = std::iter::repeat_n(0, bytes as usize).collect();
            let into = Arc::get_mut(&mut pixels).expect("nobody else has it yet");
            file.read_exact_at(into, 0).map_err(|_| "the memory file can't be read")?;
            let content = Content::Pixels(PageImage { width, height, channels, pixels });
            Ok(Ok(Page { width, height, dpi, content }))
        }
        Reply::Words { width, height, dpi, bytes } => {
            sized(width, height)?;
            if bytes as usize > TABLE_BYTES_MAX {
                return Err("the table of words is longer than its bound");
            }
            let file = channel::checked(file, u64::from(bytes))?;
            let mut table = vec![0; bytes as usize];
            file.read_exact_at(&mut table, 0).map_err(|_| "the memory file can't be read")?;
            let words = table::read(&table, width, height)?;
            Ok(Ok(Page { width, height, dpi, content: Content::Text(words) }))
        }
        // Whole documents are read when they are opened: no page can blame the disk.
        Reply::Failed { error, .. } if !error.blames_document() => Err("it blames the machine for a page"),
        Reply::Failed { error, .. } => Ok(Err(error)),
        Reply::Ready { .. } | Reply::Opened { .. } => Err("it answered something else than was asked"),
    }
}

/// Whether that many bytes can be read from a file. Only asked when a child says that they can't: it may have been taken over, and a
/// document whose failure is the machine's is tried again.
fn can_be_read(file: &File, bytes: u64) -> bool {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let piece = buffer.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        if file.read_exact_at(&mut buffer[..piece], at).is_err() {
            return false;
        }
        at += piece as u64;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::page::{Line, PageWords, Word};

    fn file(bytes: &[u8]) -> Option<OwnedFd> {
        Some(channel::sealed("test", |file| file.write_all(bytes)).expect("a memory file").into())
    }

    fn pixels(width: u32, height: u32, channels: u8) -> Reply {
        Reply::Pixels { width, height, dpi: 100.0, channels }
    }

    #[test]
    fn honest_replies_become_pages() {
        let page = received(pixels(3, 2, 1), file(&[1, 2, 3, 4, 5, 6])).expect("within the rules").expect("a page");
        let Content::Pixels(image) = page.content else { panic!("pixels") };
        assert_eq!((image.width, image.height, image.channels, &image.pixels[..]), (3, 2, 1, &[1, 2, 3, 4, 5, 6][..]));
        let corners = [[0.0, 0.0], [3.0, 0.0], [3.0, 2.0], [0.0, 2.0]];
        let word = Word { text: "a".into(), corners };
        let words = PageWords { lines: vec![Line { words: vec![word], corners }] };
        let table = table::write(&words);
        let reply = Reply::Words { width: 3, height: 2, dpi: 100.0, bytes: table.len() as u32 };
        let page = received(reply, file(&table)).expect("within the rules").expect("a page");
        assert_eq!(page.content, Content::Text(words));
    }

    #[test]
    fn lies_about_pixels_are_found() {
        let check = |reply: Reply, file: Option<OwnedFd>, rule: &str| {
            let found = received(reply, file).expect_err(rule);
            assert!(found.contains(rule), "{found}, expected {rule}");
        };
        check(pixels(3, 2, 1), file(&[0; 7]), "another size");
        check(pixels(3, 2, 1), file(&[0; 5]), "another size");
        check(pixels(3, 2, 3), file(&[0; 6]), "another size");
        check(pixels(3, 2, 4), file(&[0; 24]), "channels");
        check(pixels(3, 2, 0), file(&[]), "channels");
        check(pixels(0, 2, 1), file(&[]), "out of bounds");
        check(pixels(20_001, 1, 1), file(&[0; 20_001]), "out of bounds");
        check(pixels(20_000, 20_000, 1), file(&[]), "out of bounds");
        check(pixels(u32::MAX, u32::MAX, 3), file(&[]), "out of bounds");
        check(pixels(3, 2, 1), None, "missing");
        let unsealed = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memory file");
        check(pixels(3, 2, 1), Some(unsealed), "sealed");
        check(pixels(3, 2, 1), Some(File::open("/dev/zero").expect("a device").into()), "isn't a memory file");
        check(Reply::Opened { pages: 1 }, None, "something else");
    }

    #[test]
    fn lies_about_the_machine_are_found() {
        let reply = Reply::Failed { error: ParseError::unavailable("the disk"), last: false };
        assert!(received(reply, None).expect_err("a page").contains("blames the machine"));
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; 3_000_000]).expect("room");
        assert!(can_be_read(&file, 3_000_000) && can_be_read(&file, 0));
        assert!(!can_be_read(&file, 3_000_001));
    }

    #[test]
    fn lies_about_words_are_found() {
        let words = |bytes: u32| Reply::Words { width: 3, height: 2, dpi: 100.0, bytes };
        assert!(received(words(u32::MAX), file(&[])).expect_err("bound").contains("bound"));
        assert!(received(words(12), file(&[0; 13])).expect_err("size").contains("another size"));
        assert!(received(words(12), file(&[0xff; 12])).expect_err("lines").contains("too many lines"));
        assert!(received(words(12), None).expect_err("missing").contains("missing"));
    }
}
