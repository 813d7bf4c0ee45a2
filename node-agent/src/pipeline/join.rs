//! Joining a bucket: its present part without the documents that were done again or left, with the new rows, in path order.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, EntryAction, ItemOutcome, read_request};
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem};
use parquet::errors::ParquetError;

use super::manifest::Manifest;
use super::schema::{PartError, PartReader, PartWriter, Row};
use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::limits;
use crate::storage::{Gateway, StageBody};

/// What the bucket's listing and its batches say of one document.
#[derive(Debug, Clone, Default, PartialEq)]
struct Fate {
    name: Bytes,
    size: u64,
    mtime_ns: i64,
    content_digest: Bytes,
    /// New rows come for it, or none if it is empty.
    redone: bool,
    /// Its present rows are right.
    unchanged: bool,
    /// It left.
    deleted: bool,
}

/// Makes the visible file of a bucket; without a name for it, removes the files of documents that left.
///
/// # Errors
/// [`Failure`], storage's or ours.
pub async fn bucket(attempt: &Attempt, work: v1::JoinWork) -> Result<Outcome, Failure> {
    let gateway = attempt.gateway()?;
    if work.segments.len() > limits::JOIN_BLOBS_MAX || work.manifests.len() > limits::JOIN_BLOBS_MAX {
        return Err(Failure::input(Problem::invalid("join", format!("at most {} blobs", limits::JOIN_BLOBS_MAX))));
    }
    if let Some(document) = work.document.clone() {
        return super::ocr_join::document(attempt, &gateway, work, document).await;
    }
    let mut segments = Vec::new();
    for blob in &work.segments {
        segments.push((blob.clone(), gateway.message::<v1::Segment>(blob).await.map_err(Failure::storage)?));
        attempt.progress(0, 0, "reading the listing");
    }
    if work.output_name.is_empty() {
        return super::mirror::removals(attempt, &gateway, &segments).await;
    }
    let mut manifests = Vec::new();
    for blob in &work.manifests {
        manifests.push(gateway.message::<v1::ResultManifest>(blob).await.map_err(Failure::storage)?);
    }
    let fates = fates(&segments, &manifests)?;
    let scratch = Scratch::new(attempt);
    let mut partials = Vec::new();
    for blob in manifests.iter().flat_map(|manifest| &manifest.partials).filter_map(|partial| partial.blob.clone()) {
        let path = scratch.file(&format!("partial-{}", partials.len()))?;
        gateway.to_file(read_request::Source::Blob(blob), None, &path).await.map_err(ours_or_storage)?;
        partials.push(path);
        attempt.progress(0, 0, "reading vectors");
    }
    let place = attempt.place()?;
    let object = below(place, &work.output_name)?;
    let present = scratch.file("present")?;
    let source = read_request::Source::Object(object);
    let found = gateway.to_file(source, Some(&attempt.token), &present).await.map_err(ours_or_storage)?;
    let present = found.map(|_| present);

    let merged = scratch.file("merged")?;
    let job = Merge {
        fates,
        partials,
        present,
        merged: merged.clone(),
        model: attempt.model.name.clone(),
        model_digest: Digest::from_wire("model.digest", &attempt.model.digest).ok().map(|digest| digest.hex()),
    };
    let (based_on, merge) = tokio::task::spawn_blocking(move || Ok::<_, PartError>((job.based_on()?, job.run()?)))
        .await
        .map_err(|error| Failure::item(ErrorCode::Internal, format!("joining panicked: {error}")))?
        .map_err(|error| unjoined(&error))?;
    attempt.progress(0, 0, "writing");
    publishable(attempt, &gateway, &work, based_on, merge, merged).await
}

async fn publishable(
    attempt: &Attempt,
    gateway: &Gateway,
    work: &v1::JoinWork,
    based_on: Bytes,
    merge: Merged,
    path: PathBuf,
) -> Result<Outcome, Failure> {
    let mut manifest = Manifest::new(attempt, None);
    // Keeping and removing too: what another job has put there since was not looked at.
    let mut output = v1::OutputResult {
        name: work.output_name.clone(),
        inputs: merge.inputs,
        based_on: Some(based_on),
        ..Default::default()
    };
    match merge.what {
        What::Nothing => {}
        What::Keep => {
            output.keep = true;
            manifest.message.outputs.push(output);
        }
        What::Remove => {
            output.remove = true;
            manifest.message.outputs.push(output);
        }
        What::Write { digest, size } => {
            output.staged_name = attempt.staged_name(&work.bucket.to_string(), "parquet");
            output.digest = digest.to_wire();
            output.size = size;
            gateway
                .stage(&attempt.token, &output.staged_name, digest, size, StageBody::File(path))
                .await
                .map_err(ours_or_storage)?;
            manifest.bytes = size;
            manifest.message.outputs.push(output);
        }
    }
    let model = Digest::from_wire("model.digest", &attempt.model.digest).ok();
    manifest.complete(attempt, gateway, 0, model).await
}

/// Files of ours that can't be written or read are this node's fault, and no batch's: another node may have room.
fn ours_or_storage(problem: Problem) -> Failure {
    match problem.code {
        ErrorCode::Internal => ours(problem.message),
        _ => Failure::storage(problem),
    }
}

fn ours(words: String) -> Failure {
    Failure::node(ErrorCode::Internal, words, limits::SPOOL_RETRY)
}

/// A part that could not be made: for want of a working disk, or because of what is in it.
fn unjoined(error: &PartError) -> Failure {
    match error {
        PartError::File(_) => ours(error.to_string()),
        PartError::Parquet(ParquetError::External(cause)) if full(&**cause) => ours(error.to_string()),
        _ => Failure::item(ErrorCode::Internal, error.to_string()),
    }
}

fn full(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let cause = cause.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

/// What becomes of each document, by the name that its rows carry.
fn fates(
    segments: &[(v1::BlobRef, v1::Segment)],
    manifests: &[v1::ResultManifest],
) -> Result<BTreeMap<String, Fate>, Failure> {
    let mut fates = BTreeMap::new();
    for (_, segment) in segments {
        for entry in &segment.entries {
            let fate = Fate {
                name: entry.name.clone(),
                size: entry.size,
                mtime_ns: entry.mtime_ns,
                content_digest: entry.content_digest.clone(),
                deleted: entry.action() == EntryAction::Deleted,
                ..Fate::default()
            };
            fates.insert(display_bytes(&entry.name), fate);
        }
    }
    for manifest in manifests {
        let segment = match (&manifest.segment, segments) {
            (Some(named), _) => segments.iter().find(|(blob, _)| blob.digest == named.digest),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some((_, segment)) = segment else {
            return Err(Failure::input(Problem::invalid(
                "join.manifests",
                "one is of a segment that isn't among join.segments",
            )));
        };
        for item in &manifest.items {
            let Some(entry) = segment.entries.get(item.index as usize) else {
                return Err(Failure::input(Problem::invalid("join.manifests", "an item is beyond its segment")));
            };
            let Some(fate) = fates.get_mut(&display_bytes(&entry.name)) else { continue };
            match item.outcome() {
                ItemOutcome::Committed => fate.redone = true,
                ItemOutcome::Unchanged => fate.unchanged = true,
                // What failed this time keeps what it had.
                _ => continue,
            }
            fate.content_digest = item.content_digest.clone();
            if item.size > 0 || item.mtime_ns != 0 {
                (fate.size, fate.mtime_ns) = (item.size, item.mtime_ns);
            }
        }
    }
    Ok(fates)
}

fn below(place: &v1::ObjectRef, name: &Bytes) -> Result<v1::ObjectRef, Failure> {
    let path = ObjectPath::new(place.path.to_vec()).and_then(|path| path.join(name)).map_err(Failure::input)?;
    Ok(v1::ObjectRef { export: place.export.clone(), path: path.as_bytes().to_vec().into() })
}

/// The merge itself, off the async threads.
struct Merge {
    fates: BTreeMap<String, Fate>,
    partials: Vec<PathBuf>,
    present: Option<PathBuf>,
    merged: PathBuf,
    model: String,
    /// Rows of another model don't belong into the part.
    model_digest: Option<String>,
}

#[derive(Debug)]
struct Merged {
    what: What,
    inputs: Vec<v1::Provenance>,
}

#[derive(Debug, PartialEq)]
enum What {
    /// Nothing is there and nothing comes.
    Nothing,
    /// The present part is right.
    Keep,
    /// No document is left.
    Remove,
    /// A new part.
    Write { digest: Digest, size: u64 },
}

/// A sorted source of rows and its next one.
struct Head {
    reader: PartReader,
    row: Option<Row>,
    present: bool,
}

impl Merge {
    /// Digest of the present part as it was read, whoever wrote it; empty if there is none.
    fn based_on(&self) -> Result<Bytes, PartError> {
        let Some(present) = &self.present else { return Ok(Bytes::new()) };
        Ok(Digest::from(digest_of(present)?.0).to_wire())
    }

    fn run(self) -> Result<Merged, PartError> {
        let mut heads = Vec::new();
        for path in &self.partials {
            heads.push(Head { reader: PartReader::open(path)?, row: None, present: false });
        }
        let dimensions = heads.first().map(|head| head.reader.dimensions());
        // A present file that we can't read is a person's, or damaged: publishing keeps it, the next run does the rest again.
        let present = self.present.as_deref().and_then(|path| {
            PartReader::open(path)
                .inspect_err(|error| tracing::warn!(reason = %error, "the present part can't be used"))
                .ok()
        });
        let readable = present.is_some();
        let fits = |reader: &PartReader| dimensions.is_none_or(|dimensions| dimensions == reader.dimensions());
        let dimensions = dimensions.or_else(|| present.as_ref().map(PartReader::dimensions));
        if let Some(reader) = present
            && fits(&reader)
        {
            heads.push(Head { reader, row: None, present: true });
        }
        let mut kept: BTreeSet<String> = BTreeSet::new();
        let mut dropped = 0u64;
        let mut written = 0u64;
        let mut part = None;
        if let Some(dimensions) = dimensions {
            let file = std::io::BufWriter::new(std::fs::File::create(&self.merged)?);
            let mut writer = PartWriter::new(file, dimensions, &self.model)?;
            for head in &mut heads {
                self.advance(head, &mut dropped)?;
            }
            while let Some(next) = least(&heads) {
                let Some(row) = heads[next].row.take() else { break };
                if heads[next].present && !kept.contains(&row.path) {
                    kept.insert(row.path.clone());
                }
                writer.push(row)?;
                self.advance(&mut heads[next], &mut dropped)?;
            }
            written = writer.rows();
            let file = writer.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            let mut file = file;
            file.flush()?;
            part = Some(());
        }
        self.decide(part.is_some(), readable, dropped, written, &kept)
    }

    fn decide(
        self,
        part: bool,
        readable: bool,
        dropped: u64,
        written: u64,
        kept: &BTreeSet<String>,
    ) -> Result<Merged, PartError> {
        let mut inputs = Vec::new();
        let mut documents = 0usize;
        let mut redone = false;
        for (path, fate) in &self.fates {
            let gone = v1::Provenance { name: fate.name.clone(), gone: true, ..Default::default() };
            let there = v1::Provenance {
                name: fate.name.clone(),
                size: fate.size,
                mtime_ns: fate.mtime_ns,
                content_digest: fate.content_digest.clone(),
                gone: false,
            };
            if fate.deleted {
                inputs.push(gone);
            } else if fate.redone {
                (documents, redone) = (documents + 1, true);
                inputs.push(there);
            } else if readable && (fate.unchanged || kept.contains(path)) {
                documents += 1;
                if fate.unchanged {
                    inputs.push(there);
                }
            } else if fate.unchanged {
                // It was done once and its rows are lost: the next run does it again.
                inputs.push(gone);
            }
        }
        documents += kept.iter().filter(|path| !self.fates.contains_key(*path)).count();
        let what = if documents == 0 && written == 0 {
            if self.present.is_none() && inputs.is_empty() { What::Nothing } else { What::Remove }
        } else if readable && !redone && dropped == 0 {
            What::Keep
        } else if part {
            let (digest, size) = digest_of(&self.merged)?;
            What::Write { digest: digest.into(), size }
        } else {
            self.empty_part()?
        };
        Ok(Merged { what, inputs })
    }

    /// Documents without a single passage still are documents: an empty part says so.
    fn empty_part(&self) -> Result<What, PartError> {
        let bytes = PartWriter::new(Vec::new(), 1, &self.model)?.finish()?;
        std::fs::write(&self.merged, &bytes)?;
        Ok(What::Write { digest: Digest::of(&bytes), size: bytes.len() as u64 })
    }

    /// The next row that stays.
    fn advance(&self, head: &mut Head, dropped: &mut u64) -> Result<(), PartError> {
        loop {
            let Some(row) = head.reader.next_row()? else {
                head.row = None;
                return Ok(());
            };
            let fate = self.fates.get(&row.path);
            let stays = if head.present {
                let ours = self.model_digest.as_ref().is_none_or(|digest| *digest == row.model);
                ours && fate.is_none_or(|fate| !fate.redone && !fate.deleted)
            } else {
                fate.is_some_and(|fate| fate.redone)
            };
            if stays {
                head.row = Some(row);
                return Ok(());
            }
            *dropped += u64::from(head.present);
        }
    }
}

fn digest_of(path: &Path) -> std::io::Result<(blake3::Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let size = std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok((hasher.finalize(), size))
}

fn least(heads: &[Head]) -> Option<usize> {
    let rows = heads.iter().enumerate().filter_map(|(at, head)| head.row.as_ref().map(|row| (at, row)));
    rows.min_by(|(_, a), (_, b)| (&a.path, a.passage).cmp(&(&b.path, b.passage))).map(|(at, _)| at)
}

/// A directory of an attempt's own on the local disk; gone with it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(attempt: &Attempt) -> Self {
        Self(attempt.agent.cache.scratch())
    }

    pub(super) fn file(&self, name: &str) -> Result<PathBuf, Failure> {
        std::fs::create_dir_all(&self.0).map_err(|error| {
            Failure::node(
                ErrorCode::Internal,
                format!("cache_dir {}: {error}", self.0.display()),
                std::time::Duration::from_secs(5),
            )
        })?;
        Ok(Path::join(&self.0, name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
