//! Recomputes every counter from scratch: used after a restart, and by tests and simulation to catch drift.

use std::collections::BTreeMap;

use ingle_proto::v1;

use super::record::{BatchRecord, BatchState};
use super::{Core, Owner};

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

impl Core {
    /// Every invariant that can be recomputed; an empty list is good.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, job) in &self.jobs {
            let mut say = |what: String| wrong.push(format!("job {number}: {what}"));
            let expected = settled_counts(job.record.spec().kind(), &job.batches);
            if job.record.listed {
                let listed = |of: fn(&v1::SegmentInfo) -> u32| -> u64 {
                    job.segments.values().map(|segment| u64::from(of(segment.info()))).sum()
                };
                let carried = job.record.carried().unwrap_or_default();
                let aside = job.batches.values().filter(|batch| batch.state() == BatchState::Quarantined);
                for (name, kept, fresh) in [
                    (
                        "unchanged",
                        job.counts.unchanged,
                        listed(|info| info.unchanged) + carried.unchanged + expected.unchanged,
                    ),
                    ("skipped", job.counts.skipped, listed(|info| info.skipped) + carried.skipped + expected.skipped),
                    ("quarantined", job.counts.quarantined, aside.map(|batch| u64::from(batch.stands_for())).sum()),
                    ("waiting", job.counts.waiting, listed(|info| info.waiting)),
                    ("held", job.counts.held, carried.held),
                    ("failed", job.counts.failed, expected.failed),
                    ("committed", job.counts.committed, expected.committed),
                    ("incomplete", job.counts.incomplete, expected.incomplete),
                    ("published", job.counts.published, expected.published),
                    ("conflict", job.counts.conflict, listed(|info| info.conflict) + expected.conflict),
                    ("deleted", job.counts.deleted, expected.deleted),
                    ("bytes_done", job.counts.bytes_done, expected.bytes_done),
                ] {
                    if kept != fresh {
                        say(format!("counts {name}: kept {kept}, recomputed {fresh}"));
                    }
                }
            }
            let running: u64 = job
                .batches
                .values()
                .filter(|b| b.takes_documents() && b.state() == BatchState::Running)
                .map(|b| u64::from(b.count))
                .sum();
            if running != job.counts.running {
                say(format!("counts running: kept {}, recomputed {running}", job.counts.running));
            }
            for (index, segment) in &job.segments {
                let mut covered = vec![0u8; segment.info().to_do as usize];
                for batch in job.batches.values().filter(|b| b.takes_documents() && b.segment == *index) {
                    for entry in batch.first..batch.end() {
                        match covered.get_mut(entry as usize) {
                            Some(times) => *times += 1,
                            None => say(format!("batch {} reaches past segment {index}", batch.id)),
                        }
                    }
                }
                if let Some(entry) = covered.iter().position(|times| *times > 1) {
                    say(format!("entry {entry} of segment {index} is in two batches"));
                }
                if covered.iter().take(segment.cut as usize).any(|times| *times == 0) {
                    say(format!("an entry of segment {index} before its cut is in no batch"));
                }
            }
            for (key, split) in &job.splits {
                let mut covered = vec![0u8; split.pages as usize];
                let of = |b: &&BatchRecord| b.segment == key.0 && b.entry() == Some(key.1);
                for batch in job.batches.values().filter(of).filter(|b| b.takes_pages()) {
                    for page in batch.first..batch.end() {
                        match covered.get_mut(page as usize) {
                            Some(times) => *times += 1,
                            None => say(format!("batch {} reaches past the pages of {key:?}", batch.id)),
                        }
                    }
                }
                if covered.iter().zip(0..).any(|(times, page)| *times != u8::from(page < split.cut)) {
                    say(format!("pages of {key:?} before its cut are not each in one batch: {covered:?}"));
                }
                let joins = job.batches.values().filter(of).filter(|b| b.join).count();
                let open = job
                    .batches
                    .values()
                    .filter(of)
                    .filter(|b| b.takes_pages() && matches!(b.state(), BatchState::Queued | BatchState::Running));
                let open = open.count();
                if joins != usize::from(split.joined) || open != split.open as usize {
                    say(format!("{key:?} has {joins} joins and {open} open ranges: {split:?}"));
                }
                if split.joined && (open > 0 || split.cut < split.pages) {
                    say(format!("{key:?} is joined before its pages are settled: {split:?}"));
                }
            }
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
