//! Recomputes every counter from scratch: used after a restart, and by tests and simulation to catch drift.

use std::collections::BTreeMap;

use ingle_proto::v1;

use super::record::{BatchRecord, BatchState};
use super::{Core, Owner};

/// Counts of what batches have settled.
#[must_use]
pub fn settled_counts(kind: v1::JobKind, batches: &BTreeMap<u64, BatchRecord>) -> v1::ItemCounts {
    let mut counts = v1::ItemCounts::default();
    let joined: BTreeMap<u32, &BatchRecord> =
        batches.values().filter(|b| b.join && b.state() == BatchState::Published).map(|b| (b.bucket, b)).collect();
    for batch in batches.values() {
        let done = matches!(batch.state(), BatchState::Committed | BatchState::Published);
        if batch.join {
            if batch.state() == BatchState::Published {
                counts.deleted += u64::from(batch.deleted);
                counts.conflict += u64::from(batch.conflict);
            }
            continue;
        }
        if !done {
            continue;
        }
        counts.unchanged += u64::from(batch.unchanged);
        counts.skipped += u64::from(batch.skipped);
        counts.failed += u64::from(batch.failed);
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
                for (name, kept, fresh) in [
                    ("failed", job.counts.failed, expected.failed),
                    ("committed", job.counts.committed, expected.committed),
                    ("published", job.counts.published, expected.published),
                    ("conflict", job.counts.conflict, expected.conflict),
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
                .filter(|b| !b.join && b.state() == BatchState::Running)
                .map(|b| u64::from(b.count))
                .sum();
            if running != job.counts.running {
                say(format!("counts running: kept {}, recomputed {running}", job.counts.running));
            }
            for (index, segment) in &job.segments {
                let mut covered = vec![0u8; segment.info().to_do as usize];
                for batch in job.batches.values().filter(|b| !b.join && b.segment == *index) {
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
