//! Interactive work over a person's document: its bytes come as blobs, its pages go back in one answer.

use std::time::{Duration, Instant};

use ingle_engine::{Class, Task};
use ingle_proto::job::{OCR_CALL_BYTES_MAX, OCR_CALL_PAGES_MAX};
use ingle_proto::v1;
use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, Problem};
use prost::Message as _;

use super::calls::{lease, model, timings};
use super::ocr_file::plain;
use super::pages::Pages;
use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::parsing::{Bytes, NotOpen};

/// What an answer holds besides its pages, in bytes.
const AROUND: usize = 64 << 10;

/// Reads the pages of a person's document.
///
/// # Errors
/// [`Failure`].
pub(super) async fn read(attempt: &Attempt, work: v1::OcrWork) -> Result<Outcome, Failure> {
    let bytes = document(attempt, &work).await?;
    let lease = lease(attempt, Task::Ocr).await?;
    let begun = Instant::now();
    let name = if work.media_type.is_empty() { "the document".to_owned() } else { work.media_type };
    let opened = match attempt.agent.parsers.calls.open(Bytes::Memory(bytes), name).await {
        Ok(opened) => opened,
        Err(NotOpen::Document(problem)) => return Err(Failure::input(problem)),
        Err(NotOpen::Ours(failure)) => return Err(failure),
    };
    let total = opened.pages();
    if total > OCR_CALL_PAGES_MAX {
        let words = format!(
            "{total} pages, a call reads at most {OCR_CALL_PAGES_MAX}: put the document on an export and submit an OCR job"
        );
        return Err(Failure::input(Problem::new(ErrorCode::TooLarge, words)));
    }
    let mut response = v1::OcrResponse { model: Some(model(&lease)), ..Default::default() };
    let mut pages = Pages::new(opened, 0..total);
    let mut size = 0;
    while let Some(page) = pages.next(&lease, Class::Interactive).await? {
        attempt.agent.metrics.pages.inc();
        if !response.pages.is_empty() {
            response.text.push('\x0c');
        }
        let text = plain(&page);
        size += page.encoded_len() + text.len() + 16;
        if size > MESSAGE_BYTES_MAX - AROUND {
            let words = "its text is longer than one answer holds: put the document on an export and submit an OCR job";
            return Err(Failure::input(Problem::new(ErrorCode::TooLarge, words)));
        }
        response.text.push_str(&text);
        response.pages.push(page);
    }
    let failed = |page: &v1::OcrPage| page.source() == v1::PageSource::Unspecified;
    if response.pages.iter().all(failed)
        && let Some(first) = response.pages.first()
    {
        let code = ErrorCode::parse(&first.code).unwrap_or(ErrorCode::DocumentMalformed);
        let words = format!("none of its {total} pages could be read; page {}: {}", first.number, first.reason);
        let words = if total == 1 { first.reason.clone() } else { words };
        return Err(Failure::input(Problem::new(code, words)));
    }
    response.timings = Some(timings(attempt, &lease, begun.elapsed(), Duration::ZERO));
    let done = v1::OcrDone { token: Some(attempt.token.clone()), response: Some(response), busy_us: pages.busy_us };
    Ok(Outcome::Read(done))
}

/// The document's bytes, put together from its parts.
async fn document(attempt: &Attempt, work: &v1::OcrWork) -> Result<Vec<u8>, Failure> {
    let size: u64 = work.parts.iter().map(|part| part.size).fold(0, u64::saturating_add);
    if size == 0 || size > OCR_CALL_BYTES_MAX as u64 {
        let words = format!("1 to {OCR_CALL_BYTES_MAX} bytes, got {size}");
        return Err(Failure::input(Problem::invalid("ocr.parts", words)));
    }
    let gateway = attempt.gateway()?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    for part in &work.parts {
        bytes.extend(gateway.blob(part).await.map_err(Failure::storage)?);
    }
    Ok(bytes)
}
