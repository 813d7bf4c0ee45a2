//! A long document from its ranges: their pages in order become its text and its JSON, through files rather than memory.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;

use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{Digest, ErrorCode, Problem};

use super::join::Scratch;
use super::manifest::{Manifest, NoResult};
use super::mirror::{self, io_failed};
use super::ocr_file::{Head, OcrFile};
use super::pages::unreadable;
use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::storage::{Gateway, StageBody};

type Files = OcrFile<BufWriter<File>, BufWriter<File>>;

/// Joins the ranges of a document.
///
/// # Errors
/// [`Failure`], storage's or ours; a document that can't be joined because it changed is told in the manifest instead.
pub(super) async fn document(
    attempt: &Attempt,
    gateway: &Gateway,
    work: v1::JoinWork,
    join: v1::DocumentJoin,
) -> Result<Outcome, Failure> {
    let listing = work.segments.first().ok_or_else(|| Failure::input(Problem::missing("join.segments")))?.clone();
    let segment: v1::Segment = gateway.message(&listing).await.map_err(Failure::storage)?;
    let entry = segment
        .entries
        .get(join.index as usize)
        .ok_or_else(|| Failure::input(Problem::invalid("join.document.index", "is beyond its segment")))?;
    let mut manifest = Manifest::new(attempt, Some(listing));
    let joined = joined(attempt, gateway, &work.manifests, &join, entry).await?;
    match joined {
        Ok((item, outputs)) => {
            manifest.message.items.push(item);
            manifest.message.outputs = outputs;
        }
        Err(why) => manifest.no_result(join.index, &why),
    }
    let model = Digest::from_wire("model.digest", &attempt.model.digest).ok();
    manifest.complete(attempt, gateway, 1, model).await
}

async fn joined(
    attempt: &Attempt,
    gateway: &Gateway,
    manifests: &[v1::BlobRef],
    join: &v1::DocumentJoin,
    entry: &v1::SegmentEntry,
) -> Result<Result<(v1::ItemResult, Vec<v1::OutputResult>), NoResult>, Failure> {
    let scratch = Scratch::new(attempt);
    let paths = [scratch.file("pages.json")?, scratch.file("pages.txt")?];
    let path = display_bytes(&entry.name);
    let model_digest =
        Digest::from_wire("model.digest", &attempt.model.digest).map(|digest| digest.hex()).unwrap_or_default();
    let head = Head::new(&path, &attempt.model.name, &model_digest, join.pages);
    let [json, text] = [create(&paths[0])?, create(&paths[1])?];
    let mut files = OcrFile::begin(json, text, &head).map_err(|error| io_failed(&error))?;
    let mut failed = failed_pages(join);
    let mut read: Option<v1::PageFragment> = None;
    for manifest in manifests {
        let manifest: v1::ResultManifest = gateway.message(manifest).await.map_err(Failure::storage)?;
        for blob in manifest.partials.iter().filter_map(|partial| partial.blob.as_ref()) {
            let mut fragment: v1::PageFragment = gateway.message(blob).await.map_err(Failure::storage)?;
            let other = |first: &v1::PageFragment| first.content_digest != fragment.content_digest;
            if fragment.total != join.pages || read.as_ref().is_some_and(other) {
                return Ok(Err(NoResult::failed(
                    ErrorCode::ObjectChanged,
                    "the document changed while its pages were read; run the job again",
                )));
            }
            let before = fragment.first;
            let mut pages: Vec<v1::OcrPage> = Vec::new();
            while failed.last().is_some_and(|page| page.number <= before) {
                pages.extend(failed.pop());
            }
            pages.append(&mut fragment.pages);
            files = write(files, pages).await?;
            attempt.progress(0, 0, "joining pages");
            read.get_or_insert(fragment);
        }
    }
    failed.reverse();
    files = write(files, failed).await?;
    let (written, missing) = files.pages();
    if written != join.pages {
        let words = format!("the ranges of {path} have {written} pages, it has {}", join.pages);
        return Err(Failure::item(ErrorCode::Internal, words));
    }
    let (code, reason) = files.shortcoming().unwrap_or_default();
    let Some(read) = read.filter(|_| missing < written) else {
        let code = ErrorCode::parse(&code).unwrap_or(ErrorCode::DocumentMalformed);
        return Ok(Err(NoResult { outcome: ItemOutcome::Failed, problem: Problem::new(code, reason) }));
    };
    drop(files.finish().map_err(|error| io_failed(&error))?);
    let input = v1::Provenance {
        name: entry.name.clone(),
        size: read.size,
        mtime_ns: read.mtime_ns,
        content_digest: read.content_digest.clone(),
        gone: false,
    };
    let [json, text] = paths;
    let bodies = [measured(json).await?, measured(text).await?];
    let part = format!("b{}-{}", attempt.token.batch, join.index);
    let outputs = mirror::stage(attempt, gateway, &part, &input, bodies).await?;
    let item = v1::ItemResult {
        index: join.index,
        outcome: ItemOutcome::Committed.into(),
        code,
        reason,
        content_digest: read.content_digest,
        size: read.size,
        mtime_ns: read.mtime_ns,
        pages: written,
        ..Default::default()
    };
    Ok(Ok((item, outputs)))
}

/// Pages that were set aside, the last one first.
fn failed_pages(join: &v1::DocumentJoin) -> Vec<v1::OcrPage> {
    let mut pages = Vec::new();
    for failed in &join.failed {
        let range = failed.range.unwrap_or_default();
        let code = ErrorCode::parse(&failed.code).unwrap_or(ErrorCode::Quarantined);
        let problem = Problem::new(code, format!("set aside: {}", failed.reason));
        let last = range.first.saturating_add(range.count).min(join.pages);
        pages.extend((range.first..last).map(|page| unreadable(page + 1, &problem)));
    }
    pages.sort_by_key(|page| std::cmp::Reverse(page.number));
    pages
}

fn create(path: &PathBuf) -> Result<BufWriter<File>, Failure> {
    File::create(path).map(BufWriter::new).map_err(|error| io_failed(&error))
}

async fn write(mut files: Files, pages: Vec<v1::OcrPage>) -> Result<Files, Failure> {
    let written = tokio::task::spawn_blocking(move || {
        for page in &pages {
            files.page(page)?;
        }
        Ok::<_, io::Error>(files)
    });
    written
        .await
        .map_err(|error| Failure::item(ErrorCode::Internal, format!("joining pages panicked: {error}")))?
        .map_err(|error| io_failed(&error))
}

/// A file as it is staged.
async fn measured(path: PathBuf) -> Result<(StageBody, Digest, u64), Failure> {
    let measured = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        hasher.update_reader(file)?;
        Ok::<_, io::Error>((StageBody::File(path), Digest::from(hasher.finalize()), size))
    });
    measured
        .await
        .map_err(|error| Failure::item(ErrorCode::Internal, format!("joining pages panicked: {error}")))?
        .map_err(|error| io_failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_set_aside_are_named_once_and_stay_within_the_document() {
        let failed = |first, count, code: &str| v1::FailedPages {
            range: Some(v1::PageRange { first, count }),
            code: code.into(),
            reason: "it hurt".into(),
        };
        let join = v1::DocumentJoin {
            index: 0,
            pages: 20,
            failed: vec![failed(3, 1, "COMPUTE_FAILED"), failed(18, u32::MAX, "no such code")],
        };
        let pages = failed_pages(&join);
        assert_eq!(pages.iter().map(|page| page.number).collect::<Vec<_>>(), [20, 19, 4]);
        assert_eq!((pages[2].code.as_str(), pages[2].reason.as_str()), ("COMPUTE_FAILED", "set aside: it hurt"));
        assert_eq!(pages[0].code, "QUARANTINED");
    }
}
