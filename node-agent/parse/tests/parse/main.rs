//! The host and its real child, on good files and on files made to hurt.

mod children;
mod corpus;
mod hostile_pdfs;
mod hostile_pictures;
mod make;
mod pdfs;
mod pictures;
mod tiffs;

use std::time::Duration;

use ingle_engine::PageImage;
use ingle_parse::{Content, Document, Host, Limits, Page, PageWords, ParseError};

/// A host whose children are this crate's own worker.
fn host_with(limits: Limits) -> Host {
    Host::new(env!("CARGO_BIN_EXE_parse-worker-test").into(), Vec::new(), limits)
}

/// One child, generous times: machines that run tests are slow.
fn host() -> Host {
    host_with(Limits {
        children_max: 1,
        open: Duration::from_secs(300),
        page: Duration::from_secs(300),
        ..Limits::default()
    })
}

fn open(bytes: &[u8]) -> Document {
    host().open(bytes, "test").expect("a good document")
}

/// The only page of a document at 200 dpi.
fn only_page(bytes: &[u8]) -> Result<Page, ParseError> {
    let mut document = host().open(bytes, "test")?;
    assert_eq!(document.pages(), 1);
    document.page(0, 200.0)
}

fn pixels(page: Page) -> PageImage {
    match page.content {
        Content::Pixels(image) => {
            assert_eq!((page.width, page.height), (image.width, image.height));
            image
        }
        Content::Text(words) => panic!("expected pixels, got the text {:?}", words.plain()),
    }
}

fn words(page: Page) -> PageWords {
    match page.content {
        Content::Text(words) => words,
        Content::Pixels(image) => panic!("expected text, got {} × {} pixels", image.width, image.height),
    }
}

/// The sample of a grey page.
fn grey_at(image: &PageImage, x: u32, y: u32) -> u8 {
    assert_eq!(image.channels, 1);
    image.pixels[(y * image.width + x) as usize]
}
