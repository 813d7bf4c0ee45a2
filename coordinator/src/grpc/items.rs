//! Documents of a job with their outcomes, put together page by page from listing, records and manifests.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use ingle_proto::choice::choices;
use ingle_proto::v1::{self, EntryAction, ItemOutcome, JobKind};
use ingle_proto::{ErrorCode, Problem};
use prost::Message as _;

use super::{Reach, spec};
use crate::core::record::{ended, parts_prefix};
use crate::core::{BatchRecord, BatchState, SegmentRecord};
use crate::effects::{in_conflict, kept_for};
use crate::gateway::decode;

/// Largest segment or manifest that is read, in bytes.
const BLOB_BYTES_MAX: u64 = 16 << 20;
/// Blobs kept for the next page, and their bytes.
const CACHED_MAX: (usize, usize) = (64, 32 << 20);
/// Segments looked at for one page; a page may be short (or empty) and still have a next one.
const SEGMENTS_PER_PAGE: usize = 64;

/// Answers `ListItems`.
pub(super) struct Items {
    api: Reach,
    /// Blobs by digest, those used last at the end.
    cache: Mutex<VecDeque<(Bytes, Bytes)>>,
}

/// What is recorded of a job.
struct Parts {
    kind: JobKind,
    ended: bool,
    segments: Vec<SegmentRecord>,
    /// Work batches by (segment, first entry).
    batches: BTreeMap<(u32, u32), BatchRecord>,
    /// Joins by bucket.
    joins: BTreeMap<u32, BatchRecord>,
    /// Of documents in ranges, by segment and entry: their ranges and their join.
    ranges: BTreeMap<(u32, u32), Vec<BatchRecord>>,
}

/// What a batch's manifests say.
#[derive(Default)]
struct Results {
    items: BTreeMap<u32, v1::ItemResult>,
    /// Documents whose name was kept for another file, and why; for vectors those of the whole bucket, under no name.
    conflicts: BTreeMap<Bytes, String>,
}

impl Items {
    pub(super) fn new(api: Reach) -> Self {
        Self { api, cache: Mutex::default() }
    }

    pub(super) async fn list(&self, request: v1::ListItemsRequest) -> Result<v1::ListItemsResponse, Problem> {
        choices("outcomes", &request.outcomes, ItemOutcome::as_str_name)?;
        let number = spec::job_number(&request.job_id)?;
        let size = spec::page_size(request.page_size)?;
        let (from, mut entry) = position(&request.page_token)?;
        let parts = self.parts(number, from).await?;
        let mut page = v1::ListItemsResponse::default();
        let mut results = BTreeMap::new();
        let segments = parts.segments.iter().filter(|segment| segment.index >= from);
        for (looked_at, segment) in segments.enumerate() {
            if looked_at == SEGMENTS_PER_PAGE {
                page.next_page_token = format!("{}.0", segment.index);
                break;
            }
            if segment.index != from {
                entry = 0;
            }
            let Some(blob) = segment.info.as_ref().and_then(|info| info.blob.as_ref()) else { continue };
            let listing: v1::Segment = decode(self.blob(blob).await?)?;
            for (index, listed) in (0u32..).zip(&listing.entries).skip(entry as usize) {
                if page.items.len() == size {
                    page.next_page_token = format!("{}.{index}", segment.index);
                    return Ok(page);
                }
                let item = self.item(&parts, segment.index, index, listed, &mut results).await?;
                let wanted = request.outcomes.is_empty() || request.outcomes.contains(&item.outcome);
                if wanted && (!request.incomplete || lacks_pages(&item)) {
                    page.items.push(item);
                }
            }
        }
        Ok(page)
    }

    /// What is recorded of the segments that a page from one on may look at: of a job that has ended all of them.
    async fn parts(&self, number: u64, from: u32) -> Result<Parts, Problem> {
        // One more than is looked at: the next page begins with it.
        let most = SEGMENTS_PER_PAGE + 1;
        let (job, open) =
            self.api.handle.query(move |core, _| (core.job(number), core.parts_from(number, from, most))).await?;
        let job = job.ok_or_else(|| spec::no_job(number))?;
        let (mut segments, batches) = match open {
            Some(parts) => parts,
            None => archived(self.api.handle.archived(&parts_prefix(number)).await?)?,
        };
        segments.sort_unstable_by_key(|segment| segment.index);
        let mut ranges: BTreeMap<(u32, u32), Vec<BatchRecord>> = BTreeMap::new();
        let mut whole = Vec::new();
        for batch in batches {
            match batch.entry() {
                Some(entry) => ranges.entry((batch.segment, entry)).or_default().push(batch),
                None => whole.push(batch),
            }
        }
        let (joins, batches): (Vec<_>, Vec<_>) = whole.into_iter().partition(|batch| batch.join);
        Ok(Parts {
            ranges,
            kind: job.spec.as_ref().map_or(JobKind::Unspecified, v1::JobSpec::kind),
            ended: ended(job.state()),
            segments,
            batches: batches.into_iter().map(|batch| ((batch.segment, batch.first), batch)).collect(),
            joins: joins.into_iter().map(|join| (join.bucket, join)).collect(),
        })
    }

    async fn item(
        &self,
        parts: &Parts,
        segment: u32,
        index: u32,
        listed: &v1::SegmentEntry,
        results: &mut BTreeMap<u64, Results>,
    ) -> Result<v1::Item, Problem> {
        let mut item = v1::Item { name: listed.name.clone(), size: listed.size, ..Default::default() };
        let waits = if parts.ended { ItemOutcome::Cancelled } else { ItemOutcome::Pending };
        match listed.action() {
            EntryAction::Unchanged => item.set_outcome(ItemOutcome::Unchanged),
            EntryAction::Deleted => item.set_outcome(ItemOutcome::Deleted),
            EntryAction::Conflict => {
                item.set_outcome(ItemOutcome::Conflict);
                item.reason.clone_from(&listed.reason);
                item.code = ErrorCode::NameTaken.as_str().to_owned();
            }
            EntryAction::Skip => {
                item.set_outcome(ItemOutcome::Skipped);
                item.reason.clone_from(&listed.reason);
                item.code = ErrorCode::DocumentKind.as_str().to_owned();
            }
            EntryAction::Wait => {
                item.set_outcome(waits);
                item.reason.clone_from(&listed.reason);
            }
            EntryAction::Do | EntryAction::Unspecified => {
                let batch = parts.batches.range(..=(segment, index)).next_back().map(|(_, batch)| batch);
                let Some(batch) = batch.filter(|batch| batch.segment == segment && index < batch.end()) else {
                    item.set_outcome(waits);
                    return Ok(item);
                };
                match batch.state() {
                    BatchState::Queued | BatchState::Running if parts.ended => item.set_outcome(waits),
                    BatchState::Queued => {
                        item.set_outcome(waits);
                        item.reason.clone_from(&batch.reason);
                        item.code.clone_from(&batch.code);
                    }
                    BatchState::Running => item.set_outcome(ItemOutcome::Running),
                    BatchState::Quarantined => {
                        item.set_outcome(ItemOutcome::Quarantined);
                        item.reason.clone_from(&batch.reason);
                        item.code.clone_from(&batch.code);
                    }
                    BatchState::Committed | BatchState::Published
                        if batch.splits.iter().any(|split| split.index == index) =>
                    {
                        self.item_in_ranges(parts, batch, index, &mut item).await?;
                    }
                    BatchState::Committed | BatchState::Published => {
                        let known = match results.entry(batch.id) {
                            Entry::Occupied(known) => known.into_mut(),
                            Entry::Vacant(free) => free.insert(self.results(parts, batch).await?),
                        };
                        settle(&mut item, parts, batch, known.items.get(&index), known);
                    }
                }
            }
        }
        Ok(item)
    }

    /// A document whose pages are batches of their own: its join tells what became of it.
    async fn item_in_ranges(
        &self,
        parts: &Parts,
        batch: &BatchRecord,
        index: u32,
        item: &mut v1::Item,
    ) -> Result<(), Problem> {
        let ranges = parts.ranges.get(&(batch.segment, index)).map_or(&[][..], Vec::as_slice);
        let pages = batch.splits.iter().find(|split| split.index == index).map_or(0, |split| split.pages);
        item.pages = pages;
        if let Some(join) = ranges.iter().find(|range| range.join) {
            match join.state() {
                BatchState::Committed | BatchState::Published => {
                    let known = self.results(parts, join).await?;
                    settle(item, parts, join, known.items.get(&index), &known);
                    return Ok(());
                }
                BatchState::Quarantined => {
                    item.set_outcome(ItemOutcome::Quarantined);
                    item.reason.clone_from(&join.reason);
                    item.code.clone_from(&join.code);
                    return Ok(());
                }
                BatchState::Queued | BatchState::Running => {}
            }
        }
        let settled =
            |range: &&BatchRecord| !range.join && !matches!(range.state(), BatchState::Queued | BatchState::Running);
        let done: u32 = ranges.iter().filter(settled).map(|range| range.count).sum();
        item.reason = format!("{done} of its {pages} pages are done");
        let running = ranges.iter().any(|range| range.state() == BatchState::Running);
        item.set_outcome(match (parts.ended, running) {
            (true, _) => ItemOutcome::Cancelled,
            (false, true) => ItemOutcome::Running,
            (false, false) => ItemOutcome::Pending,
        });
        Ok(())
    }

    async fn results(&self, parts: &Parts, batch: &BatchRecord) -> Result<Results, Problem> {
        let Some(manifest) = &batch.manifest else { return Ok(Results::default()) };
        let manifest: v1::ResultManifest = decode(self.blob(manifest).await?)?;
        let mut results = Results::default();
        if parts.kind == JobKind::Embed {
            let join = parts.joins.get(&batch.bucket).filter(|join| join.conflict > 0);
            if let Some(outcomes) = join.and_then(|join| join.outcomes.as_ref()) {
                let outcomes: v1::OutcomeManifest = decode(self.blob(outcomes).await?)?;
                let met = outcomes.outputs.iter().filter(|output| output.outcome() == ItemOutcome::Conflict);
                results.conflicts = met.map(|output| (Bytes::new(), kept_for(output))).collect();
            }
        } else if batch.conflict > 0
            && let Some(outcomes) = &batch.outcomes
        {
            let outcomes: v1::OutcomeManifest = decode(self.blob(outcomes).await?)?;
            results.conflicts = in_conflict(&manifest, &outcomes);
        }
        results.items = manifest.items.into_iter().map(|item| (item.index, item)).collect();
        Ok(results)
    }

    async fn blob(&self, blob: &v1::BlobRef) -> Result<Bytes, Problem> {
        let known = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let at = cache.iter().position(|(digest, _)| *digest == blob.digest);
            at.and_then(|at| cache.remove(at)).map(|entry| {
                cache.push_back(entry.clone());
                entry.1
            })
        };
        if let Some(bytes) = known {
            return Ok(bytes);
        }
        let bytes = self.api.gateway.get_blob(blob, BLOB_BYTES_MAX).await?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.push_back((blob.digest.clone(), bytes.clone()));
        while cache.len() > CACHED_MAX.0 || cache.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > CACHED_MAX.1 {
            cache.pop_front();
        }
        Ok(bytes)
    }
}

fn settle(item: &mut v1::Item, parts: &Parts, batch: &BatchRecord, result: Option<&v1::ItemResult>, all: &Results) {
    let Some(result) = result else {
        item.set_outcome(ItemOutcome::Failed);
        item.code = ErrorCode::Internal.as_str().to_owned();
        item.reason = "the batch's manifest doesn't name it; please report this".into();
        return;
    };
    item.reason.clone_from(&result.reason);
    item.code.clone_from(&result.code);
    (item.tokens, item.passages, item.truncated) = (result.tokens, result.passages, result.truncated);
    item.pages = result.pages;
    if result.size > 0 {
        item.size = result.size;
    }
    item.outcome = result.outcome;
    if result.outcome() != ItemOutcome::Committed {
        return;
    }
    // Vectors are visible with their bucket's file, texts with their batch.
    let (published, conflict) = if parts.kind == JobKind::Embed {
        let join = parts.joins.get(&batch.bucket).filter(|join| join.state() == BatchState::Published);
        (join.is_some(), join.is_some_and(|join| join.conflict > 0))
    } else {
        (batch.state() == BatchState::Published, all.conflicts.contains_key(&item.name))
    };
    if published && conflict {
        item.set_outcome(ItemOutcome::Conflict);
        item.code = ErrorCode::NameTaken.as_str().to_owned();
        let why = all.conflicts.get(&item.name).or_else(|| all.conflicts.get(&Bytes::new())).cloned();
        item.reason = why.unwrap_or_else(|| "a file that is not ours has the result's name and was kept".into());
    } else if published {
        item.set_outcome(ItemOutcome::Published);
    }
}

/// Whether a document has a result that says what is missing in it.
fn lacks_pages(item: &v1::Item) -> bool {
    matches!(item.outcome(), ItemOutcome::Published | ItemOutcome::Committed) && !item.code.is_empty()
}

/// `segment.entry` of the first item to look at.
fn position(token: &str) -> Result<(u32, u32), Problem> {
    if token.is_empty() {
        return Ok((0, 0));
    }
    let numbers = token.split_once('.').and_then(|(segment, entry)| Some((segment.parse().ok()?, entry.parse().ok()?)));
    numbers.ok_or_else(|| Problem::invalid("page_token", "expected a next_page_token of the same job"))
}

fn archived(records: Vec<(String, Vec<u8>)>) -> Result<(Vec<SegmentRecord>, Vec<BatchRecord>), Problem> {
    let (mut segments, mut batches) = (Vec::new(), Vec::new());
    for (key, value) in records {
        let bad = |error: prost::DecodeError| {
            Problem::new(ErrorCode::Internal, format!("record {key} of the archive can't be read: {error}"))
        };
        match key.split('/').nth(2) {
            Some("s") => segments.push(SegmentRecord::decode(value.as_slice()).map_err(bad)?),
            Some("b") => batches.push(BatchRecord::decode(value.as_slice()).map_err(bad)?),
            _ => {}
        }
    }
    Ok((segments, batches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::record::{batch_key, segment_key};

    #[test]
    fn page_tokens_are_positions() {
        assert_eq!(position("").unwrap(), (0, 0));
        assert_eq!(position("3.17").unwrap(), (3, 17));
        for bad in ["x", "1", "1.", ".1", "-1.0", "1.2.3", "99999999999.0"] {
            assert_eq!(position(bad).unwrap_err().code, ErrorCode::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn archives_are_read_by_key() {
        let segment = SegmentRecord { index: 4, info: None };
        let batch = BatchRecord { id: 9, first: 2, count: 3, ..Default::default() };
        let records = vec![(batch_key(1, 9), batch.encode_to_vec()), (segment_key(1, 4), segment.encode_to_vec())];
        assert_eq!(archived(records).unwrap(), (vec![segment], vec![batch]));
        let bad = vec![(batch_key(1, 9), vec![0xff; 3])];
        assert_eq!(archived(bad).unwrap_err().code, ErrorCode::Internal);
    }

    #[test]
    fn outcomes_follow_their_batch_or_join() {
        let mut parts = Parts {
            kind: JobKind::Generate,
            ended: false,
            segments: Vec::new(),
            batches: BTreeMap::new(),
            joins: BTreeMap::new(),
            ranges: BTreeMap::new(),
        };
        let batch = |state: BatchState| BatchRecord { state: state.into(), count: 1, bucket: 2, ..Default::default() };
        let committed =
            v1::ItemResult { outcome: ItemOutcome::Committed.into(), tokens: 5, size: 9, ..Default::default() };
        let mut all = Results::default();
        let outcome = |parts: &Parts, state, result: Option<&v1::ItemResult>, all: &Results| {
            let mut item = v1::Item { name: "a".into(), ..Default::default() };
            settle(&mut item, parts, &batch(state), result, all);
            item.outcome()
        };
        assert_eq!(outcome(&parts, BatchState::Committed, Some(&committed), &all), ItemOutcome::Committed);
        assert_eq!(outcome(&parts, BatchState::Published, Some(&committed), &all), ItemOutcome::Published);
        let failed = v1::ItemResult { outcome: ItemOutcome::Failed.into(), ..Default::default() };
        assert_eq!(outcome(&parts, BatchState::Published, Some(&failed), &all), ItemOutcome::Failed);
        assert_eq!(outcome(&parts, BatchState::Published, None, &all), ItemOutcome::Failed);
        all.conflicts.insert("a".into(), "a person's".into());
        assert_eq!(outcome(&parts, BatchState::Published, Some(&committed), &all), ItemOutcome::Conflict);
        // Vectors wait for their bucket's join.
        parts.kind = JobKind::Embed;
        assert_eq!(outcome(&parts, BatchState::Committed, Some(&committed), &all), ItemOutcome::Committed);
        parts.joins.insert(2, batch(BatchState::Published));
        assert_eq!(outcome(&parts, BatchState::Committed, Some(&committed), &all), ItemOutcome::Published);
        parts.joins.insert(2, BatchRecord { conflict: 1, ..batch(BatchState::Published) });
        assert_eq!(outcome(&parts, BatchState::Committed, Some(&committed), &all), ItemOutcome::Conflict);
    }
}
