//! What nodes hand back: outcomes that add up, documents found too long, ranges of pages, and what joins are given.

use ingle_coordinator::core::{Event, Work};
use ingle_proto::v1;

use super::gateway::{Manifest, Nature, blob_ref};
use super::store::number;
use super::world::World;

impl World {
    pub(crate) fn complete(&mut self, node: usize, attempt: u64, count: u32) -> Event {
        let work = &self.machines[node].tasks[&attempt].work;
        let Work::Batch { job, batch } = work else {
            let Work::Call { call } = work else { unreachable!("a batch or a call") };
            return Event::CallEnded { call: *call };
        };
        let (job, batch) = (*job, batch.clone());
        let embed = batch.spec.kind() == v1::JobKind::Embed;
        let mut complete = v1::Complete {
            token: Some(v1::AttemptToken { attempt, batch: batch.batch, ..Default::default() }),
            count,
            busy_us: u64::from(count.max(1)) * self.machines[node].ms_per_document * 1_000,
            bytes: u64::from(count) << 13,
            ..Default::default()
        };
        let mut manifest = Manifest { job, attempt, embed, ..Default::default() };
        if let Some(range) = &batch.pages {
            self.totals.ranges += 1;
            manifest.documents = self.documents_of(&batch);
            manifest.pages = range.first..range.first + count;
            (complete.committed, complete.pages) = (count, count);
        } else if let Some(join) = &batch.document {
            // Every page was read once or set aside, and nothing is beside.
            let document = self.documents_of(&batch)[0];
            let mut pages: Vec<u32> = Vec::new();
            for part in &batch.manifests {
                let part = &self.gateway.manifests[&number(&part.digest)];
                assert_eq!((part.job, &part.documents), (job, &vec![document]));
                assert!(pages.last().is_none_or(|last| *last < part.pages.start), "ranges come in page order");
                pages.extend(part.pages.clone());
            }
            let read = pages.len();
            for failed in &join.failed {
                let range = failed.range.unwrap();
                pages.extend(range.first..range.first + range.count);
                self.totals.pages_set_aside += u64::from(range.count);
            }
            pages.sort_unstable();
            assert_eq!(pages, (0..join.pages).collect::<Vec<_>>(), "job {job}: document {document} in ranges");
            complete.count = 1;
            if read > 0 {
                (complete.committed, complete.outputs) = (1, 2);
                manifest.documents.push(document);
            } else {
                complete.failed = 1;
            }
        } else if batch.join {
            manifest.bucket = Some(batch.bucket);
            for part in &batch.manifests {
                manifest.documents.extend(&self.gateway.manifests[&number(&part.digest)].documents);
            }
            for segment in &batch.segments {
                manifest.removed.extend(&self.gateway.left[&number(&segment.digest)]);
            }
            complete.outputs = 1;
        } else {
            let plan = self.plan_of_place(batch.spec.output.as_ref().unwrap());
            for (id, at) in self.documents_of(&batch).into_iter().zip(0..count) {
                match self.nature(plan, id) {
                    Nature::Malformed => complete.failed += 1,
                    Nature::Skipped => complete.skipped += 1,
                    Nature::Same => complete.unchanged += 1,
                    Nature::Good if self.long(plan, id).is_some() => {
                        self.totals.split += 1;
                        let index = batch.first + at;
                        complete.splits.push(v1::SplitDocument { index, pages: self.long(plan, id).unwrap() });
                    }
                    _ => {
                        complete.committed += 1;
                        manifest.documents.push(id);
                    }
                }
            }
            complete.outputs = if embed { 0 } else { complete.committed };
        }
        let blob = self.gateway.blob();
        self.gateway.manifests.insert(blob, manifest);
        complete.manifest = Some(blob_ref(blob));
        Event::Complete { node: self.machines[node].id.clone(), complete: Box::new(complete) }
    }

    /// The pages of a document that one attempt doesn't read, where they are what is read.
    pub(crate) fn long(&self, plan: usize, id: u32) -> Option<u32> {
        let pages = self.document(plan, id)?.pages;
        (self.plans[plan].ocr && pages > 1).then_some(pages)
    }
}
