//! Recomputes every counter from scratch: used after a restart, and by tests and simulation to catch drift.

use std::collections::{BTreeMap, BTreeSet};

use ingle_proto::v1;

use super::ranges::DocumentKey;
use super::record::{BatchRecord, BatchState};
use super::{Core, Job, Owner};

/// Counts of what batches have settled.
#[must_use]
pub fn settled_counts(kind: v1::JobKind, batches: &BTreeMap<u64, BatchRecord>) -> v1::ItemCounts {
    let mut counts = v1::ItemCounts::default();
    let joined: BTreeMap<u32, &BatchRecord> = batches
        .values()
        .filter(|b| b.join && !b.joins_document() && b.state() == BatchState::Published)
        .map(|b| (b.bucket, b))
        .collect();
    for batch in batches.values() {
        let done = matches!(batch.state(), BatchState::Committed | BatchState::Published);
        if batch.join && !batch.joins_document() {
            if batch.state() == BatchState::Published {
                counts.deleted += u64::from(batch.deleted);
                counts.conflict += u64::from(batch.conflict);
            }
            continue;
        }
        if !done {
            continue;
        }
        if batch.takes_pages() {
            counts.bytes_done += batch.bytes;
            continue;
        }
        counts.unchanged += u64::from(batch.unchanged);
        counts.skipped += u64::from(batch.skipped);
        counts.failed += u64::from(batch.failed);
        counts.incomplete += u64::from(batch.incomplete);
        counts.bytes_done += batch.bytes;
        let committed = u64::from(batch.committed);
        let visible = match kind {
            v1::JobKind::Embed => joined.get(&batch.bucket).map(|join| join.conflict == 0),
            _ if batch.state() == BatchState::Published => Some(true),
            _ => None,
        };
        match visible {
            Some(true) => {
                counts.published += committed.saturating_sub(u64::from(batch.conflict));
                counts.conflict += u64::from(batch.conflict);
            }
            Some(false) => {}
            None => counts.committed += committed,
        }
    }
    counts
}

/// What one walk over a job's batches finds.
#[derive(Default)]
struct Found {
    running: u64,
    quarantined: u64,
    settled: u64,
    /// How often each entry of a segment is in a batch.
    entries: BTreeMap<u32, Vec<u8>>,
    /// The same of the pages of a document in ranges.
    pages: BTreeMap<DocumentKey, Vec<u8>>,
    /// Its joins, open ranges, and ranges.
    ranges: BTreeMap<DocumentKey, (usize, u32, BTreeSet<u64>)>,
}

impl Job {
    fn find(&self, say: &mut dyn FnMut(String)) -> Found {
        let entries = self.segments.iter().map(|(index, segment)| (*index, vec![0; segment.info().to_do as usize]));
        let pages = self.splits.iter().map(|(key, split)| (*key, vec![0; split.pages as usize]));
        let mut found = Found { entries: entries.collect(), pages: pages.collect(), ..Found::default() };
        for batch in self.batches.values() {
            let open = matches!(batch.state(), BatchState::Queued | BatchState::Running);
            found.running += if batch.takes_documents() && batch.state() == BatchState::Running {
                u64::from(batch.count)
            } else {
                0
            };
            found.settled += if open { 0 } else { u64::from(batch.stands_for()) };
            if batch.state() == BatchState::Quarantined {
                found.quarantined += u64::from(batch.stands_for());
            }
            if let Some(entry) = batch.entry() {
                let (joins, waiting, ranges) = found.ranges.entry((batch.segment, entry)).or_default();
                if batch.join {
                    *joins += 1;
                } else {
                    *waiting += u32::from(open);
                    ranges.insert(batch.id);
                }
            }
            if batch.join {
                continue;
            }
            let covered = match batch.entry() {
                None => found.entries.get_mut(&batch.segment),
                Some(entry) => found.pages.get_mut(&(batch.segment, entry)),
            };
            let Some(covered) = covered else {
                say(format!("batch {} is of a segment or document that nobody knows", batch.id));
                continue;
            };
            for at in batch.first..batch.end() {
                match covered.get_mut(at as usize) {
                    Some(times) => *times = times.saturating_add(1),
                    None => say(format!("batch {} reaches past the end of what it is of", batch.id)),
                }
            }
        }
        found
    }

    fn check(&self, say: &mut dyn FnMut(String)) {
        let found = self.find(say);
        if self.record.listed {
            let expected = settled_counts(self.record.spec().kind(), &self.batches);
            self.check_counts(&expected, &found, say);
        }
        if found.running != self.counts.running {
            say(format!("counts running: kept {}, recomputed {}", self.counts.running, found.running));
        }
        for (index, segment) in &self.segments {
            let covered = &found.entries[index];
            if let Some(entry) = covered.iter().position(|times| *times > 1) {
                say(format!("entry {entry} of segment {index} is in two batches"));
            }
            if covered.iter().take(segment.cut as usize).any(|times| *times == 0) {
                say(format!("an entry of segment {index} before its cut is in no batch"));
            }
        }
        for (key, split) in &self.splits {
            let covered = &found.pages[key];
            if covered.iter().zip(0..).any(|(times, page)| *times != u8::from(page < split.cut)) {
                say(format!("pages of {key:?} before its cut are not each in one batch: {covered:?}"));
            }
            let none = (0, 0, BTreeSet::new());
            let (joins, open, ranges) = found.ranges.get(key).unwrap_or(&none);
            if *joins != usize::from(split.joined) || *open != split.open {
                say(format!("{key:?} has {joins} joins and {open} open ranges: {split:?}"));
            }
            if split.joined && (*open > 0 || split.cut < split.pages) {
                say(format!("{key:?} is joined before its pages are settled: {split:?}"));
            }
            let kept = self.ranges.get(key).unwrap_or(&none.2);
            if kept != ranges {
                say(format!("ranges of {key:?}: kept {kept:?}, recomputed {ranges:?}"));
            }
        }
    }

    fn check_counts(&self, expected: &v1::ItemCounts, found: &Found, say: &mut dyn FnMut(String)) {
        let listed = |of: fn(&v1::SegmentInfo) -> u32| -> u64 {
            self.segments.values().map(|segment| u64::from(of(segment.info()))).sum()
        };
        let carried = self.record.carried().unwrap_or_default();
        let left = self.segments.values().map(|segment| {
            let kib = segment.info().size_kib.iter().skip(segment.cut as usize).map(|kib| u64::from(*kib));
            (u64::from(segment.info().to_do.saturating_sub(segment.cut)), kib.sum::<u64>() << 10)
        });
        let (items, bytes) = left.fold((0, 0), |sum, left| (sum.0 + left.0, sum.1 + left.1));
        let counts = &self.counts;
        for (name, kept, fresh) in [
            ("unchanged", counts.unchanged, listed(|info| info.unchanged) + carried.unchanged + expected.unchanged),
            ("skipped", counts.skipped, listed(|info| info.skipped) + carried.skipped + expected.skipped),
            ("quarantined", counts.quarantined, found.quarantined),
            ("waiting", counts.waiting, listed(|info| info.waiting)),
            ("held", counts.held, carried.held),
            ("failed", counts.failed, expected.failed),
            ("committed", counts.committed, expected.committed),
            ("incomplete", counts.incomplete, expected.incomplete),
            ("published", counts.published, expected.published),
            ("conflict", counts.conflict, listed(|info| info.conflict) + expected.conflict),
            ("deleted", counts.deleted, expected.deleted),
            ("bytes_done", counts.bytes_done, expected.bytes_done),
            ("settled", self.settled, found.settled),
            ("items uncut", self.uncut_left.items, items),
            ("bytes uncut", self.uncut_left.bytes, bytes),
        ] {
            if kept != fresh {
                say(format!("counts {name}: kept {kept}, recomputed {fresh}"));
            }
        }
    }
}

impl Core {
    /// Every invariant that can be recomputed; an empty list is good.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, job) in &self.jobs {
            let mut say = |what: String| wrong.push(format!("job {number}: {what}"));
            job.check(&mut say);
            for (id, batch) in &job.batches {
                let place =
                    match batch.state() {
                        BatchState::Queued => job.queued.contains(id),
                        BatchState::Running => job.running.contains(id)
                            && self.attempts.get(&batch.attempt).is_some_and(
                                |a| matches!(a.owner, Owner::Batch { job, batch } if job == *number && batch == *id),
                            ),
                        _ => !job.queued.contains(id) && !job.running.contains(id),
                    };
                if !place {
                    say(format!("batch {id} is {:?} but not where such batches are", batch.state()));
                }
            }
        }
        for (number, attempt) in &self.attempts {
            if !attempt.unconfirmed
                && !self.lost.contains_key(number)
                && !self.nodes.get(&attempt.node).is_some_and(|n| n.attempts.contains(number))
            {
                wrong.push(format!("attempt {number} is not at its node {}", attempt.node));
            }
        }
        for (id, node) in self.nodes.iter() {
            for number in &node.attempts {
                if !self.attempts.contains_key(number) {
                    wrong.push(format!("node {id} holds attempt {number} that nobody knows"));
                }
            }
        }
        wrong
    }
}
