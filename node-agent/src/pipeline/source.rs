//! Documents of a batch: the listing's entries, and their bytes read a few ahead of the model, in order.

use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Attempt;
use super::manifest::NoResult;
use crate::error::Failure;
use crate::limits;
use crate::storage::Gateway;

/// Unit in which read-ahead is counted.
const UNIT_BYTES: u64 = 1024;

/// What was read of a document.
#[derive(Debug)]
pub struct Content {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// Size as it was read.
    pub size: u64,
    /// Time of change as it was read; the later one where its text lies elsewhere.
    pub mtime_ns: i64,
    /// Its text as an OCR job made it, where the listing names one; then `digest` is of both.
    pub text: Option<Vec<u8>>,
}

/// A document of a batch.
#[derive(Debug)]
pub struct Document {
    /// In the segment.
    pub index: u32,
    /// The listing's entry.
    pub entry: v1::SegmentEntry,
    /// What was read, or why nothing.
    pub content: Result<Content, NoResult>,
    /// Counts its bytes against the read-ahead until it is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

impl Document {
    /// The same content was done before by the same model with the same parameters.
    #[must_use]
    pub fn unchanged(&self) -> bool {
        let Ok(content) = &self.content else { return false };
        self.entry.results_current && self.entry.content_digest.as_ref() == content.digest.0
    }
}

/// The entries of a batch and, for inline inputs, their texts.
///
/// # Errors
/// What storage said; `INVALID_ARGUMENT` for a range beyond the segment.
pub async fn entries(
    gateway: &Gateway,
    work: &v1::BatchWork,
) -> Result<(Vec<(u32, v1::SegmentEntry)>, Option<Arc<v1::InlineInput>>), Failure> {
    let blob = work.segment.as_ref().ok_or_else(|| Failure::input(Problem::missing("batch.segment")))?;
    let segment: v1::Segment = gateway.message(blob).await.map_err(Failure::storage)?;
    let total = segment.entries.len();
    let (first, end) = (work.first as usize, work.first as usize + work.count as usize);
    if work.count == 0 || end > total {
        return Err(Failure::input(Problem::invalid(
            "batch.count",
            format!("entries {first} to {end} of a segment of {total}"),
        )));
    }
    let entries = (0u32..).zip(segment.entries).skip(first).take(work.count as usize).collect();
    let payload = match &work.payload {
        Some(blob) => Some(Arc::new(gateway.message::<v1::InlineInput>(blob).await.map_err(Failure::storage)?)),
        None => None,
    };
    Ok((entries, payload))
}

/// Reads the documents, a few ahead and in order.
pub fn documents<'a>(
    attempt: &'a Attempt,
    gateway: &'a Gateway,
    entries: Vec<(u32, v1::SegmentEntry)>,
    payload: Option<Arc<v1::InlineInput>>,
) -> impl Stream<Item = Result<Document, Failure>> + 'a {
    let units = u32::try_from(limits::READ_AHEAD_BYTES_MAX / UNIT_BYTES).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(units as usize));
    futures::stream::iter(entries)
        .then(move |(index, entry)| {
            let room = Arc::clone(&room);
            // Room is given in order: a later document can't hold what an earlier one waits for.
            let wanted = u32::try_from(entry.size / UNIT_BYTES + 1).unwrap_or(units).min(units);
            async move { (index, entry, room.acquire_many_owned(wanted).await.ok()) }
        })
        .map(move |(index, entry, room)| {
            let payload = payload.clone();
            async move {
                let content = content(attempt, gateway, &entry, payload.as_deref()).await?;
                Ok(Document { index, entry, content, _room: room })
            }
        })
        .buffered(limits::READ_AHEAD_DOCUMENTS)
}

async fn content(
    attempt: &Attempt,
    gateway: &Gateway,
    entry: &v1::SegmentEntry,
    payload: Option<&v1::InlineInput>,
) -> Result<Result<Content, NoResult>, Failure> {
    if let Some(index) = entry.inline_index {
        let text = payload.and_then(|payload| payload.texts.get(index as usize));
        return Ok(match text {
            Some(text) => {
                let bytes = text.clone().into_bytes();
                let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
                Ok(Content { bytes, digest, size, mtime_ns: entry.mtime_ns, text: None })
            }
            None => Err(NoResult::failed(ErrorCode::Internal, format!("the job's payload has no text {index}"))),
        });
    }
    let Some(object) = &entry.object else {
        return Ok(Err(NoResult::failed(ErrorCode::Internal, "the listing names neither object nor text")));
    };
    match gateway.object(object, Some(&attempt.token), limits::DOCUMENT_BYTES_MAX).await {
        Ok((attributes, bytes)) => {
            let text = text(attempt, gateway, entry).await?;
            let own = Digest::of(&bytes);
            let digest = match &text {
                Some(text) => Digest::of(&[own.0, Digest::of(text).0].concat()),
                None => own,
            };
            let mtime_ns = if attributes.mtime_ns == 0 { entry.mtime_ns } else { attributes.mtime_ns };
            let mtime_ns = if text.is_some() { mtime_ns.max(entry.text_mtime_ns) } else { mtime_ns };
            Ok(Ok(Content { digest, size: bytes.len() as u64, mtime_ns, bytes, text }))
        }
        Err(problem) => match problem.code {
            ErrorCode::ObjectNotFound => Ok(Err(NoResult {
                outcome: ItemOutcome::Skipped,
                problem: Problem::new(problem.code, "it was removed after it had been listed"),
            })),
            ErrorCode::ObjectKind | ErrorCode::ObjectChanged | ErrorCode::StorageDenied | ErrorCode::PathRefused => {
                Ok(Err(NoResult { outcome: ItemOutcome::Failed, problem }))
            }
            ErrorCode::TooLarge => Ok(Err(NoResult::failed(
                ErrorCode::TooLarge,
                format!("the document is larger than {} MiB", limits::DOCUMENT_BYTES_MAX >> 20),
            ))),
            _ => Err(Failure::storage(problem)),
        },
    }
}

/// A document's text as an OCR job made it. One that left or grew beyond all bounds since the listing is none.
async fn text(attempt: &Attempt, gateway: &Gateway, entry: &v1::SegmentEntry) -> Result<Option<Vec<u8>>, Failure> {
    let Some(object) = &entry.text else { return Ok(None) };
    match gateway.object(object, Some(&attempt.token), limits::DOCUMENT_BYTES_MAX).await {
        Ok((_, bytes)) => Ok(Some(bytes)),
        Err(problem) => match problem.code {
            ErrorCode::ObjectNotFound
            | ErrorCode::ObjectKind
            | ErrorCode::ObjectChanged
            | ErrorCode::StorageDenied
            | ErrorCode::TooLarge => Ok(None),
            _ => Err(Failure::storage(problem)),
        },
    }
}
