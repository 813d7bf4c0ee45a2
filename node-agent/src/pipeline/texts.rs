//! A document's text for those who only want text: its own, from the file or from its PDF pages, else what an OCR job read.

use ingle_parse::Content as PageContent;
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{ErrorCode, Problem};

use super::Attempt;
use super::manifest::NoResult;
use super::source::Content;
use super::text::{Text, decode};
use crate::error::Failure;
use crate::limits;
use crate::parsing::{Bytes, NotOpen, problem};
use crate::spool::Spooled;

/// What a document's pages carry themselves.
struct Own {
    text: String,
    pages: u32,
    /// Pages that are pictures.
    scans: u32,
}

/// The text of a document, or why there is none. A document whose pages all carry text is read as they say; one with scans
/// among them as the OCR job read it, if there is such a reading (it holds the pages' own text too).
///
/// # Errors
/// [`Failure`]: this node's.
pub(super) async fn of(
    attempt: &Attempt,
    entry: &v1::SegmentEntry,
    content: Content,
) -> Result<Result<Text, NoResult>, Failure> {
    let malformed = |reason| NoResult::failed(ErrorCode::DocumentMalformed, reason);
    let document = match content.bytes {
        Bytes::Memory(bytes) => return blocking(move || decode(bytes).map_err(malformed)).await,
        Bytes::Disk(document) => document,
    };
    let is_pdf = entry.name.to_ascii_lowercase().ends_with(b".pdf");
    if is_pdf {
        let scans_settle = content.text.is_some();
        match own(attempt, &entry.name, document, scans_settle).await? {
            Err(why) if content.text.is_none() => return Ok(Err(why)),
            Ok(own) if own.scans == 0 || (content.text.is_none() && !own.text.trim().is_empty()) => {
                return Ok(Ok(Text { text: own.text, base: 0 }));
            }
            Ok(Own { pages, .. }) if content.text.is_none() => {
                return Ok(Err(skipped(format!(
                    "its {pages} pages are scans without text: run an OCR job over it, and name that job's output as \
                     text_from (--text-from)"
                ))));
            }
            _ => {}
        }
    }
    match content.text {
        Some(text) => blocking(move || decode(text).map_err(malformed)).await,
        None => Ok(Err(skipped("its text, as an OCR job read it, was removed after it had been listed".to_owned()))),
    }
}

fn skipped(reason: String) -> NoResult {
    NoResult { outcome: ItemOutcome::Skipped, problem: Problem::new(ErrorCode::DocumentKind, reason) }
}

/// Collects what a PDF's pages carry; ends at the first scan if `scans_settle` it.
async fn own(
    attempt: &Attempt,
    name: &[u8],
    document: Spooled,
    scans_settle: bool,
) -> Result<Result<Own, NoResult>, Failure> {
    // It has its room on the disk as long as it is open.
    let _spooled = document.clone();
    let document = match attempt.agent.parsers.batch.open(Bytes::Disk(document), display_bytes(name)).await {
        Ok(document) => document,
        Err(NotOpen::Document(problem)) => {
            return Ok(Err(NoResult { outcome: ItemOutcome::Failed, problem }));
        }
        Err(NotOpen::Ours(failure)) => return Err(failure),
    };
    let mut document = document;
    let mut own = Own { text: String::new(), pages: document.pages(), scans: 0 };
    for index in 0..own.pages {
        let parsing = tokio::task::spawn_blocking(move || {
            let page = document.page(index, limits::TEXT_DPI);
            (document, page)
        });
        let (again, page) = parsing
            .await
            .map_err(|error| Failure::item(ErrorCode::Internal, format!("parsing a page panicked: {error}")))?;
        document = again;
        match page {
            Ok(page) => match page.content {
                PageContent::Text(words) => own.text.push_str(&words.plain()),
                PageContent::Pixels(_) => own.scans += 1,
            },
            // A page that can't be had has no text; whose fault it is matters only if it is ours.
            Err(error) => {
                problem(&error)?;
                own.scans += 1;
            }
        }
        own.text.push('\x0c');
        if own.text.len() as u64 > limits::TEXT_BYTES_MAX {
            let words = format!("its text is longer than {} MiB", limits::TEXT_BYTES_MAX >> 20);
            return Ok(Err(NoResult::failed(ErrorCode::TooLarge, words)));
        }
        if scans_settle && own.scans > 0 {
            break;
        }
    }
    Ok(Ok(own))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NoResult> + Send + 'static,
) -> Result<Result<T, NoResult>, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::item(ErrorCode::ComputeFailed, format!("reading its text panicked: {error}")))
}
