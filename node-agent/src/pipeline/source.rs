//! Documents of a batch: the listing's entries, and their bytes read a few ahead of the model, in order: texts into memory,
//! documents with pages onto the local disk.

use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Attempt;
use super::manifest::NoResult;
use crate::error::Failure;
use crate::limits::{self, TEXT_BYTES_MAX};
use crate::parsing::Bytes;
use crate::spool::Room;
use crate::storage::Gateway;

/// Unit in which read-ahead is counted.
const UNIT_BYTES: u64 = 1024;

/// Extensions of documents that have pages, in lower case: those that the gateway lists for OCR.
const PAGED: &[&str] = &["pdf", "png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff"];

/// What was read of a document.
#[derive(Debug)]
pub struct Content {
    /// The bytes.
    pub bytes: Bytes,
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
    /// Counts a text's bytes against the read-ahead until it is dropped.
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

/// How the bytes of documents are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Once: texts in memory, documents with pages on the local disk.
    Once,
    /// For their pages alone, once.
    Pages,
    /// For some of their pages; others will be wanted.
    SomePages,
}

/// Reads the documents, a few ahead and in order.
pub fn documents<'a>(
    attempt: &'a Attempt,
    gateway: &'a Gateway,
    entries: Vec<(u32, v1::SegmentEntry)>,
    payload: Option<Arc<v1::InlineInput>>,
    wanted: Wanted,
) -> impl Stream<Item = Result<Document, Failure>> + 'a {
    let units = u32::try_from(limits::READ_AHEAD_BYTES_MAX / UNIT_BYTES).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(units as usize));
    futures::stream::iter(entries)
        .then(move |(index, entry)| {
            let room = Arc::clone(&room);
            let take = take(&entry, wanted);
            // Room is given in order: a later document can't hold what an earlier one waits for.
            async move {
                let heap = if take == Take::Text { entry.size } else { 0 };
                let units = u32::try_from(heap / UNIT_BYTES + 1).unwrap_or(units).min(units);
                let heap = room.acquire_many_owned(units).await.ok();
                let disk = if take == Take::Disk { attempt.agent.spool.room(entry.size).await } else { None };
                (index, entry, take, heap, disk)
            }
        })
        .map(move |(index, entry, take, heap, disk)| {
            let payload = payload.clone();
            async move {
                let content = content(attempt, gateway, &entry, payload.as_deref(), take, disk).await?;
                Ok(Document { index, entry, content, _room: heap })
            }
        })
        .buffered(limits::READ_AHEAD_DOCUMENTS)
}

/// Where a document's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Take {
    Text,
    Disk,
    /// Onto the disk, and kept there for others of its pages.
    Shared,
}

fn take(entry: &v1::SegmentEntry, wanted: Wanted) -> Take {
    match wanted {
        _ if entry.inline_index.is_some() => Take::Text,
        Wanted::SomePages => Take::Shared,
        Wanted::Pages => Take::Disk,
        Wanted::Once if paged(&entry.name) => Take::Disk,
        Wanted::Once => Take::Text,
    }
}

/// Whether a document has pages rather than text, by its name.
pub(super) fn paged(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|b| *b == b'.') else { return false };
    let extension = name[dot + 1..].to_ascii_lowercase();
    PAGED.iter().any(|known| known.as_bytes() == extension)
}

fn too_large(take: Take, document_bytes_max: u64) -> NoResult {
    let words = match take {
        Take::Text => format!("the text has more than {TEXT_BYTES_MAX} bytes, the most that is read of one"),
        Take::Disk | Take::Shared => {
            format!("the document has more than {document_bytes_max} bytes: document_bytes_max of this node's settings")
        }
    };
    NoResult { outcome: ItemOutcome::Skipped, problem: Problem::new(ErrorCode::TooLarge, words) }
}

async fn content(
    attempt: &Attempt,
    gateway: &Gateway,
    entry: &v1::SegmentEntry,
    payload: Option<&v1::InlineInput>,
    take: Take,
    room: Option<Room>,
) -> Result<Result<Content, NoResult>, Failure> {
    if let Some(index) = entry.inline_index {
        let text = payload.and_then(|payload| payload.texts.get(index as usize));
        return Ok(match text {
            Some(text) => {
                let bytes = text.clone().into_bytes();
                let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
                Ok(Content { bytes: Bytes::Memory(bytes), digest, size, mtime_ns: entry.mtime_ns, text: None })
            }
            None => Err(NoResult::failed(ErrorCode::Internal, format!("the job's payload has no text {index}"))),
        });
    }
    let Some(object) = &entry.object else {
        return Ok(Err(NoResult::failed(ErrorCode::Internal, "the listing names neither object nor text")));
    };
    let spool = &attempt.agent.spool;
    let read = match take {
        Take::Text => gateway.object(object, Some(&attempt.token), TEXT_BYTES_MAX).await.map(|(attributes, bytes)| {
            let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
            (Bytes::Memory(bytes), digest, size, attributes.mtime_ns)
        }),
        Take::Disk | Take::Shared => {
            let spooled = match room {
                Some(room) => spool.fetch(gateway, object, &attempt.token, room).await,
                None => spool.shared(gateway, object, &attempt.token, entry.size).await,
            };
            spooled.map(|spooled| {
                let (digest, size, mtime_ns) = (spooled.digest(), spooled.size(), spooled.mtime_ns());
                (Bytes::Disk(spooled), digest, size, mtime_ns)
            })
        }
    };
    match read {
        Ok((bytes, own, size, mtime_ns)) => {
            let text = text(attempt, gateway, entry).await?;
            let digest = match &text {
                Some(text) => Digest::of(&[own.0, Digest::of(text).0].concat()),
                None => own,
            };
            let mtime_ns = if mtime_ns == 0 { entry.mtime_ns } else { mtime_ns };
            let mtime_ns = if text.is_some() { mtime_ns.max(entry.text_mtime_ns) } else { mtime_ns };
            Ok(Ok(Content { digest, size, mtime_ns, bytes, text }))
        }
        Err(problem) => match problem.code {
            ErrorCode::ObjectNotFound => Ok(Err(NoResult {
                outcome: ItemOutcome::Skipped,
                problem: Problem::new(problem.code, "it was removed after it had been listed"),
            })),
            ErrorCode::ObjectKind | ErrorCode::ObjectChanged | ErrorCode::StorageDenied | ErrorCode::PathRefused => {
                Ok(Err(NoResult { outcome: ItemOutcome::Failed, problem }))
            }
            ErrorCode::TooLarge => Ok(Err(too_large(take, spool.document_bytes_max()))),
            // A full disk of ours, most likely: another node may have room.
            ErrorCode::Internal => Err(Failure::node(problem.code, problem.message, limits::SPOOL_RETRY)),
            _ => Err(Failure::storage(problem)),
        },
    }
}

/// A document's text as an OCR job made it. One that left or grew beyond all bounds since the listing is none.
async fn text(attempt: &Attempt, gateway: &Gateway, entry: &v1::SegmentEntry) -> Result<Option<Vec<u8>>, Failure> {
    let Some(object) = &entry.text else { return Ok(None) };
    match gateway.object(object, Some(&attempt.token), TEXT_BYTES_MAX).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_by_name() {
        for name in ["a.pdf", "b/c.PDF", "x.tiff", "y.JPG"] {
            assert!(paged(name.as_bytes()), "{name}");
        }
        for name in ["a.pdf.txt", "pdf", "README", "a.md"] {
            assert!(!paged(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn pages_go_to_the_disk_and_texts_to_memory() {
        let entry = |name: &str, inline_index| v1::SegmentEntry {
            name: name.to_owned().into(),
            inline_index,
            ..Default::default()
        };
        for (name, inline, wanted, expected) in [
            ("a.md", None, Wanted::Once, Take::Text),
            ("a.pdf", None, Wanted::Once, Take::Disk),
            ("a.pdf", Some(0), Wanted::Once, Take::Text),
            ("a.pdf", Some(0), Wanted::Pages, Take::Text),
            ("a.md", None, Wanted::Pages, Take::Disk),
            ("a.pdf", None, Wanted::SomePages, Take::Shared),
        ] {
            assert_eq!(take(&entry(name, inline), wanted), expected, "{name}, {wanted:?}");
        }
    }
}
