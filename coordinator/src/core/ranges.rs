//! Documents too long for one attempt: their pages are batches that several nodes share, and a join makes one result of them.

use ingle_proto::v1;

use super::placement::Size;
use super::record::{BatchRecord, BatchState, Change, SplitRecord, batch_key};
use super::{Job, Step};
use crate::limits;

/// A document by its segment and entry.
pub(crate) type DocumentKey = (u32, u32);

/// A document whose pages are batches of their own. Made anew from the batches' records after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Split {
    /// As counted by the attempt that found it too long.
    pub(crate) pages: u32,
    /// First page that no batch covers.
    pub(crate) cut: u32,
    /// Batches of its pages that wait or run.
    pub(crate) open: u32,
    /// Its join is made.
    pub(crate) joined: bool,
}

impl Split {
    /// Every page was read or set aside.
    fn ready(&self) -> bool {
        self.cut >= self.pages && self.open == 0 && !self.joined
    }
}

/// What is wrong with splits that a node reports for entries `first` to `end`, if anything.
pub(super) fn faulty_splits(splits: &[v1::SplitDocument], first: u32, end: u32) -> Option<String> {
    let mut seen = std::collections::BTreeSet::new();
    for split in splits {
        if !(first..end).contains(&split.index) || !seen.insert(split.index) {
            return Some(format!("the node splits entry {}, which it can't or did already", split.index));
        }
        if !(2..=limits::DOCUMENT_PAGES_MAX).contains(&split.pages) {
            return Some(format!(
                "the node counts {} pages, expected 2 to {}",
                split.pages,
                limits::DOCUMENT_PAGES_MAX
            ));
        }
    }
    None
}

/// Where a part of a batch belongs.
fn part(of: &BatchRecord) -> BatchRecord {
    BatchRecord { segment: of.segment, bucket: of.bucket, ..Default::default() }
}

impl Job {
    /// Takes up a document that an attempt found too long.
    pub(super) fn split(&mut self, segment: u32, record: &SplitRecord) {
        let key = (segment, record.index);
        self.splits.insert(key, Split { pages: record.pages, ..Split::default() });
        self.uncut_pages.insert(key);
    }

    /// Bytes that a range of entries, or of a document's pages, stands for. Ranges of one document add up to it.
    pub(super) fn range_bytes(&self, segment: u32, document: Option<u32>, first: u32, count: u32) -> u64 {
        let Some(info) = self.segments.get(&segment).map(super::Segment::info) else { return 0 };
        let of = |entry: u32| info.size_kib.get(entry as usize).map_or(0, |kib| u64::from(*kib) << 10);
        let Some(entry) = document else { return (first..first + count).map(of).sum() };
        let pages = self.splits.get(&(segment, entry)).map_or(1, |split| u64::from(split.pages.max(1)));
        let upto = |page: u32| of(entry) * u64::from(page) / pages;
        upto(first + count) - upto(first)
    }

    /// A batch over the next `count` pages of a document.
    pub(super) fn cut_pages(&mut self, key: DocumentKey, count: u32) -> Option<u64> {
        let split = self.splits.get_mut(&key)?;
        let first = split.cut;
        let count = count.min(split.pages - first);
        if count == 0 {
            return None;
        }
        split.cut += count;
        if split.cut >= split.pages {
            self.uncut_pages.remove(&key);
        }
        let (segment, entry) = key;
        let bytes = self.range_bytes(segment, Some(entry), first, count);
        let bucket = self.segments.get(&segment)?.info().bucket;
        Some(self.add_batch(BatchRecord {
            segment,
            document: entry + 1,
            first,
            count,
            bucket,
            bytes,
            ..Default::default()
        }))
    }

    /// Counts a batch of pages among its document's open ones.
    pub(super) fn pages_opened(&mut self, key: DocumentKey) {
        if let Some(split) = self.splits.get_mut(&key) {
            split.open += 1;
            self.ready_documents.remove(&key);
        }
    }

    /// Takes out a batch that others replace.
    pub(super) fn remove_batch(&mut self, id: u64) {
        let Some(batch) = self.batches.remove(&id) else { return };
        if let Some(entry) = batch.entry().filter(|_| !batch.join)
            && let Some(ranges) = self.ranges.get_mut(&(batch.segment, entry))
        {
            ranges.remove(&id);
        }
    }

    /// A batch of pages was committed, set aside, or replaced by others that follow at once.
    pub(super) fn pages_closed(&mut self, key: DocumentKey) {
        if let Some(split) = self.splits.get_mut(&key) {
            split.open = split.open.saturating_sub(1);
            if split.ready() {
                self.ready_documents.insert(key);
            }
        }
    }

    /// Makes the joins of documents whose pages are all settled, as many as fit into a commit.
    pub(super) fn join_documents(&mut self, step: &mut Step) {
        while step.has_room()
            && let Some(key) = self.ready_documents.pop_first()
        {
            let Some(split) = self.splits.get_mut(&key).filter(|split| split.ready()) else { continue };
            split.joined = true;
            let (segment, entry) = key;
            let bucket = self.segments.get(&segment).map_or(0, |segment| segment.info().bucket);
            let record = BatchRecord { join: true, segment, document: entry + 1, bucket, ..Default::default() };
            let id = self.add_batch(record);
            step.put_batch(self.record.number, &self.batches[&id]);
        }
    }

    /// Replaces a batch whose results are gone: its documents in ranges stay settled, each by itself, and the runs between
    /// them are batches again, in no queue yet. Answers those.
    pub(super) fn around_splits(&mut self, step: &mut Step, before: &BatchRecord) -> Vec<u64> {
        let job = self.record.number;
        self.remove_batch(before.id);
        step.changes.push(Change::Delete { key: batch_key(job, before.id) });
        let mut splits = before.splits.clone();
        splits.sort_unstable_by_key(|split| split.index);
        let (mut next, mut again) = (before.first, Vec::new());
        let ends = splits.iter().map(|split| (split.index, Some(split.clone()))).chain([(before.end(), None)]);
        for (end, split) in ends.collect::<Vec<_>>() {
            if next < end {
                let bytes = self.range_bytes(before.segment, None, next, end - next);
                let run =
                    BatchRecord { first: next, count: end - next, bytes, failures: before.failures, ..part(before) };
                let id = self.add_batch(run);
                self.queued.remove(&id);
                again.push(id);
            }
            if let Some(split) = split {
                let id = self.add_batch(BatchRecord { first: end, count: 1, splits: vec![split], ..part(before) });
                self.queued.remove(&id);
                if let Some(open) = self.bucket_open.get_mut(&before.bucket) {
                    *open = open.saturating_sub(1);
                }
                if let Some(record) = self.batches.get_mut(&id) {
                    record.set_state(BatchState::Published);
                    step.put_batch(job, record);
                }
            }
            next = end + 1;
        }
        again
    }

    /// The document's ranges as its join is sent them: manifests in page order, and what was set aside.
    pub(super) fn document_parts(&self, key: DocumentKey) -> (Vec<v1::BlobRef>, v1::DocumentJoin) {
        let entry = key.1;
        let of_it = self.ranges.get(&key).into_iter().flatten();
        let mut ranges: Vec<&BatchRecord> = of_it.filter_map(|id| self.batches.get(id)).collect();
        ranges.sort_unstable_by_key(|batch| batch.first);
        let manifests = ranges.iter().filter(|batch| batch.state() == BatchState::Committed);
        let failed =
            ranges.iter().filter(|batch| batch.state() == BatchState::Quarantined).zip(0..).map(|(batch, at)| {
                // A message is bounded: the first reasons tell.
                let most = if at < limits::PAGE_REASONS.0 { limits::PAGE_REASONS.1 } else { 0 };
                let reason = batch.reason.chars().take(most).collect();
                let range = v1::PageRange { first: batch.first, count: batch.count };
                v1::FailedPages { range: Some(range), code: batch.code.clone(), reason }
            });
        let pages = self.splits.get(&key).map_or(0, |split| split.pages);
        let join = v1::DocumentJoin { index: entry, pages, failed: failed.collect() };
        (manifests.filter_map(|batch| batch.manifest.clone()).collect(), join)
    }

    /// Finds the documents in ranges again after a restart.
    pub(super) fn restore_splits(&mut self) {
        self.splits.clear();
        self.ranges.clear();
        for batch in self.batches.values() {
            for split in &batch.splits {
                self.splits.insert((batch.segment, split.index), Split { pages: split.pages, ..Split::default() });
            }
        }
        for batch in self.batches.values() {
            let Some(split) = batch.entry().and_then(|entry| self.splits.get_mut(&(batch.segment, entry))) else {
                continue;
            };
            if batch.join {
                split.joined = true;
            } else {
                self.ranges.entry((batch.segment, batch.document - 1)).or_default().insert(batch.id);
                split.cut = split.cut.max(batch.end());
                split.open += u32::from(matches!(batch.state(), BatchState::Queued | BatchState::Running));
            }
        }
        let keys = |wanted: fn(&Split) -> bool| {
            self.splits.iter().filter(move |(_, split)| wanted(split)).map(|(key, _)| *key).collect()
        };
        self.uncut_pages = keys(|split| split.cut < split.pages);
        self.ready_documents = keys(Split::ready);
    }

    /// Bytes of pages that no batch covers yet.
    pub(super) fn uncut_page_bytes(&self) -> u64 {
        let left = |key: &DocumentKey| {
            let split = self.splits.get(key)?;
            Some(self.range_bytes(key.0, Some(key.1), split.cut, split.pages - split.cut))
        };
        self.uncut_pages.iter().filter_map(left).sum()
    }

    /// Documents in ranges that a node works on.
    pub(super) fn split_documents_running(&self) -> u64 {
        let running = self.running.iter().filter_map(|id| self.batches.get(id));
        let keys: std::collections::BTreeSet<DocumentKey> =
            running.filter_map(|batch| Some((batch.segment, batch.entry()?))).collect();
        keys.len() as u64
    }

    /// Where and how many pages to cut next; `expected` says how long a node takes for a size, in milliseconds.
    pub(super) fn next_pages(&self, nodes: usize, expected: impl Fn(Size) -> f64) -> Option<(DocumentKey, u32, Size)> {
        let key = *self.uncut_pages.first()?;
        let split = self.splits.get(&key)?;
        let left = split.pages - split.cut;
        // The last of a document is shared out, but each range has the document read anew: not in single pages.
        let fair = left.div_ceil(2 * nodes.max(1) as u32).max(limits::RANGE_PAGES.0);
        let most = left.min(fair).min(limits::RANGE_PAGES.1);
        let sized = |pages: u32| Size {
            items: 0,
            bytes: self.range_bytes(key.0, Some(key.1), split.cut, pages),
            output_tokens: 0,
            pages,
        };
        let mut pages = most.min(limits::RANGE_PAGES.0);
        while pages < most && expected(sized(pages + 1)) <= limits::BATCH_TARGET_MS {
            pages += 1;
        }
        Some((key, pages, sized(pages)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Segment;
    use super::super::record::SegmentRecord;
    use super::*;

    fn job() -> Job {
        let mut job = Job { next_batch: 1, ..Job::default() };
        let info = v1::SegmentInfo { to_do: 2, size_kib: vec![3, 1000], ..Default::default() };
        job.segments.insert(0, Segment { record: SegmentRecord { index: 0, info: Some(info) }, cut: 2 });
        job.split(0, &SplitRecord { index: 1, pages: 37 });
        job
    }

    #[test]
    fn ranges_cover_a_document_once_and_its_bytes_add_up() {
        let mut job = job();
        let mut ids = Vec::new();
        while let Some((key, count, size)) = job.next_pages(2, |size| f64::from(size.pages) * 500.0) {
            assert!((limits::RANGE_PAGES.0.min(37)..=limits::RANGE_PAGES.1).contains(&count) || ids.len() > 1);
            assert_eq!(size.pages, count);
            ids.push(job.cut_pages(key, count).unwrap());
        }
        let ranges: Vec<&BatchRecord> = ids.iter().map(|id| &job.batches[id]).collect();
        let mut next = 0;
        for range in &ranges {
            assert_eq!((range.first, range.entry()), (next, Some(1)));
            next = range.end();
        }
        assert_eq!(next, 37);
        assert_eq!(ranges.iter().map(|range| range.bytes).sum::<u64>(), 1000 << 10);
        assert!(job.uncut_pages.is_empty() && job.ready_documents.is_empty());
        for _ in &ids {
            assert!(job.ready_documents.is_empty(), "pages are open");
            job.pages_closed((0, 1));
        }
        assert_eq!(job.ready_documents.first(), Some(&(0, 1)));
        let mut step = Step::default();
        job.join_documents(&mut step);
        assert!(job.ready_documents.is_empty() && step.changes.len() == 1);
        job.join_documents(&mut step);
        assert_eq!(step.changes.len(), 1, "one join");
    }

    #[test]
    fn what_a_node_says_of_long_documents_is_checked() {
        let split = |index, pages| v1::SplitDocument { index, pages };
        assert_eq!(faulty_splits(&[split(3, 2), split(5, 10_000)], 3, 6), None);
        for bad in [
            vec![split(2, 20)],
            vec![split(6, 20)],
            vec![split(3, 20), split(3, 20)],
            vec![split(3, 1)],
            vec![split(3, 0)],
            vec![split(3, u32::MAX)],
        ] {
            assert!(faulty_splits(&bad, 3, 6).is_some(), "{bad:?}");
        }
    }
}
