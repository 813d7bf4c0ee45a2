//! OCR over a batch: each document's pages to a text and a JSON file beside its name.

use futures::StreamExt as _;
use ingle_engine::{Class, Task};
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, ItemOutcome};
use ingle_proto::{Digest, ErrorCode, Problem};

use super::manifest::{Manifest, NoResult};
use super::mirror::{self, Done};
use super::ocr_file::{Head, OcrFile};
use super::pages::{Pages, unreadable};
use super::source::{self, Content, Document, Wanted};
use super::{Attempt, Outcome};
use crate::error::Failure;
use crate::limits;
use crate::loaded::Lease;
use crate::parsing::{Bytes, NotOpen};
use crate::storage::{Gateway, encode};

/// What is the same for all documents of a batch.
struct Job<'a> {
    attempt: &'a Attempt,
    gateway: &'a Gateway,
    lease: Lease,
}

/// Reads the documents of a batch, one after another.
///
/// # Errors
/// [`Failure`]; documents that can't be read are told in the manifest instead.
pub async fn batch(attempt: &Attempt, work: v1::BatchWork) -> Result<Outcome, Failure> {
    let gateway = attempt.gateway()?;
    attempt.place()?;
    let (entries, payload) = source::entries(&gateway, &work).await?;
    let lease = super::calls::lease(attempt, Task::Ocr).await?;
    let digest = lease.model.digest;
    let job = Job { attempt, gateway: &gateway, lease };
    if let Some(range) = work.pages {
        return job.range(&work, range, entries).await;
    }
    let mut manifest = Manifest::new(attempt, work.segment.clone());
    let mut count = 0u32;
    {
        let documents = source::documents(attempt, &gateway, entries, payload, Wanted::Pages);
        tokio::pin!(documents);
        while let Some(document) = documents.next().await {
            let (done, split) = match job.document(document?, count, manifest.bytes).await? {
                Became::Done(done) => (done, None),
                Became::Split(split) => (Done { item: pending(&split), ..Done::default() }, Some(split)),
            };
            count += 1;
            manifest.splits.extend(split);
            if manifest.splits.last().is_none_or(|split| split.index != done.item.index) {
                manifest.pages = manifest.pages.saturating_add(done.item.pages);
            }
            manifest.message.items.push(done.item);
            manifest.message.outputs.extend(done.outputs);
            manifest.bytes += done.bytes;
            manifest.busy_us += done.busy_us;
            attempt.progress(count, manifest.bytes, "reading pages");
            // A drain takes no further document.
            if attempt.agent.draining() {
                break;
            }
        }
    }
    job.lease.handle.measured_documents(manifest.bytes, manifest.busy_us);
    manifest.complete(attempt, &gateway, count, Some(digest)).await
}

/// What came of a document.
enum Became {
    Done(Done),
    /// It has more pages than one attempt should read.
    Split(v1::SplitDocument),
}

impl From<Done> for Became {
    fn from(done: Done) -> Self {
        Self::Done(done)
    }
}

/// What the manifest says of a document whose pages come back as batches of their own.
fn pending(split: &v1::SplitDocument) -> v1::ItemResult {
    v1::ItemResult {
        index: split.index,
        outcome: ItemOutcome::Running.into(),
        pages: split.pages,
        ..Default::default()
    }
}

impl Job<'_> {
    /// `count` and `before` are documents and bytes done so far, for telling progress within this one.
    async fn document(&self, document: Document, count: u32, before: u64) -> Result<Became, Failure> {
        let unchanged = document.unchanged();
        let Document { index, entry, content, .. } = document;
        let content = match content {
            Ok(content) => content,
            Err(why) => return Ok(Done::without(index, &why, 0).into()),
        };
        let input = provenance(&entry.name, &content);
        let item = v1::ItemResult {
            index,
            content_digest: input.content_digest.clone(),
            size: input.size,
            mtime_ns: input.mtime_ns,
            ..Default::default()
        };
        if unchanged {
            return Ok(Done::unchanged(item, &input).into());
        }
        let bytes = content.size;
        let path = display_bytes(&entry.name);
        // It has its room on the disk as long as it is open.
        let spooled = content.bytes.clone();
        let opened = match self.attempt.agent.parsers.batch.open(content.bytes, path.clone()).await {
            Ok(opened) => opened,
            Err(NotOpen::Document(problem)) => {
                let why = NoResult { outcome: ItemOutcome::Failed, problem };
                return Ok(Done::without(index, &why, bytes).into());
            }
            Err(NotOpen::Ours(failure)) => return Err(failure),
        };
        let total = opened.pages();
        if total > limits::PAGES_WHOLE_MAX {
            // Some of its ranges will come here.
            if let Bytes::Disk(spooled) = &spooled {
                self.attempt.agent.spool.keep(spooled);
            }
            return Ok(Became::Split(v1::SplitDocument { index, pages: total }));
        }
        let digest = self.lease.model.digest.hex();
        let head = Head::new(&path, &self.lease.model.name, &digest, total);
        let mut file = OcrFile::begin(Vec::new(), Vec::new(), &head).map_err(|error| mirror::io_failed(&error))?;
        let mut pages = Pages::new(opened, 0..total);
        while let Some(page) = pages.next(&self.lease, Class::Batch).await? {
            file.page(&page).map_err(|error| mirror::io_failed(&error))?;
            self.attempt.agent.metrics.pages.inc();
            let share = u128::from(bytes) * u128::from(page.number) / u128::from(total.max(1));
            self.attempt.progress(count, before + share as u64, "reading pages");
        }
        let busy_us = pages.busy_us;
        let (written, failed) = file.pages();
        let (code, reason) = file.shortcoming().unwrap_or_default();
        if failed == written {
            let code = ErrorCode::parse(&code).unwrap_or(ErrorCode::DocumentMalformed);
            let why = NoResult { outcome: ItemOutcome::Failed, problem: Problem::new(code, reason) };
            return Ok(Done { busy_us, ..Done::without(index, &why, bytes) }.into());
        }
        let (json, text) = file.finish().map_err(|error| mirror::io_failed(&error))?;
        let part = format!("b{}-{index}", self.attempt.token.batch);
        let bodies = [mirror::body(json), mirror::body(text)];
        let outputs = mirror::stage(self.attempt, self.gateway, &part, &input, bodies).await?;
        let item = v1::ItemResult { outcome: ItemOutcome::Committed.into(), code, reason, pages: written, ..item };
        Ok(Done { item, outputs, bytes, busy_us }.into())
    }

    /// Reads some pages of one document, and stages them for the document's join.
    async fn range(
        &self,
        work: &v1::BatchWork,
        range: v1::PageRange,
        entries: Vec<(u32, v1::SegmentEntry)>,
    ) -> Result<Outcome, Failure> {
        let (attempt, gateway) = (self.attempt, self.gateway);
        let mut manifest = Manifest::new(attempt, work.segment.clone());
        let document = {
            let documents = source::documents(attempt, gateway, entries, None, Wanted::SomePages);
            tokio::pin!(documents);
            documents.next().await
        };
        let Document { index, entry, content, .. } =
            document.ok_or_else(|| Failure::input(Problem::invalid("batch.count", "expected one document")))??;
        let mut fragment = v1::PageFragment { first: range.first, ..Default::default() };
        // It has its room on the disk as long as it is open.
        let _spooled = content.as_ref().ok().map(|content| content.bytes.clone());
        let opened = match content {
            Err(why) => Err(why.problem),
            Ok(content) => {
                let input = provenance(&entry.name, &content);
                (fragment.content_digest, fragment.size, fragment.mtime_ns) =
                    (input.content_digest, input.size, input.mtime_ns);
                match attempt.agent.parsers.batch.open(content.bytes, display_bytes(&entry.name)).await {
                    Ok(opened) => Ok(opened),
                    Err(NotOpen::Document(problem)) => Err(problem),
                    Err(NotOpen::Ours(failure)) => return Err(failure),
                }
            }
        };
        let end = range.first.saturating_add(range.count);
        match opened {
            // It opened when its pages were counted: it changed or left since, and its join will say so.
            Err(problem) => fragment.pages = (range.first..end).map(|page| unreadable(page + 1, &problem)).collect(),
            Ok(opened) => {
                fragment.total = opened.pages();
                let share = fragment.size.checked_div(u64::from(fragment.total)).unwrap_or(0);
                let mut pages = Pages::new(opened, range.first..end);
                while let Some(page) = pages.next(&self.lease, Class::Batch).await? {
                    fragment.pages.push(page);
                    attempt.agent.metrics.pages.inc();
                    manifest.bytes += share;
                    let count = u32::try_from(fragment.pages.len()).unwrap_or(u32::MAX);
                    attempt.progress(count, manifest.bytes, "reading pages");
                    // A drain takes no further page.
                    if attempt.agent.draining() {
                        break;
                    }
                }
                manifest.busy_us = pages.busy_us;
            }
        }
        let count = u32::try_from(fragment.pages.len()).unwrap_or(u32::MAX);
        manifest.pages = count;
        let blob = gateway.stage_blob(&attempt.token, encode(&fragment)).await.map_err(Failure::storage)?;
        manifest.message.partials.push(v1::PartialResult { blob: Some(blob), bucket: work.bucket });
        manifest.message.items.push(v1::ItemResult {
            index,
            outcome: ItemOutcome::Committed.into(),
            pages: count,
            ..Default::default()
        });
        manifest.complete_pages(attempt, gateway, count, self.lease.model.digest).await
    }
}

/// What a result was made from.
pub(super) fn provenance(name: &bytes::Bytes, content: &Content) -> v1::Provenance {
    v1::Provenance {
        name: name.clone(),
        size: content.size,
        mtime_ns: content.mtime_ns,
        content_digest: Digest::to_wire(content.digest),
        gone: false,
    }
}
