//! The end of a run: nothing accepted is lost, every document is where it belongs, the counts say so.

use ingle_coordinator::core::Work;
use ingle_proto::v1::{ItemCounts, JobState};

use super::gateway::Nature;
use super::world::{Mode, World};

impl World {
    pub(crate) fn all_ended(&self) -> bool {
        self.core.is_some() && (0..self.plans.len()).all(|plan| self.ended(plan))
    }

    pub(crate) fn unfinished(&self) -> String {
        let open = (0..self.plans.len()).filter(|plan| !self.ended(*plan));
        let say = |plan: usize| match (self.plans[plan].accepted, &self.core) {
            (Some(job), Some(core)) => {
                format!("{:?}; {:?}", core.job(job), core.explain(job).map(|e| (e.summary, e.batches)))
            }
            (accepted, _) => format!("plan {plan}, accepted as {accepted:?}, no leader"),
        };
        open.map(say).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn judge(&mut self) {
        for (key, jobs) in self.store.keys() {
            assert!(key.is_empty() || jobs.len() == 1, "key {key} made jobs {jobs:?}");
        }
        for plan in 0..self.plans.len() {
            let Some(job) = self.plans[plan].accepted else { continue };
            let record = self.store.job(job);
            assert!(record.is_some(), "job {job} was accepted and is lost");
            if self.mode == Mode::Liveness {
                self.judge_job(plan, job);
            }
        }
        self.totals.published += self.gateway.places.values().map(|place| place.visible.len() as u64).sum::<u64>();
        self.totals.quarantined += self.store.quarantined.len() as u64;
    }

    /// What is durably done is never sent out again.
    pub(crate) fn nothing_done_again(&self, work: &Work) {
        let Work::Batch { job, batch } = work else { return };
        if batch.join {
            return;
        }
        let blob = super::store::number(&batch.segments[0].digest);
        for document in &self.gateway.segments[&blob][batch.first as usize..(batch.first + batch.count) as usize] {
            if let Some(range) = &batch.pages {
                for page in range.first..range.first + range.count {
                    let key = (*job, *document, page);
                    assert!(!self.store.committed_pages.contains_key(&key), "page {key:?} is dispatched again");
                    assert!(!self.store.quarantined_pages.contains(&key), "page {key:?} is set aside and dispatched");
                }
            }
            let done = self.store.committed.get(&(*job, *document));
            assert!(done.is_none(), "job {job}: document {document} is committed and dispatched again");
            let aside = self.store.quarantined.contains(&(*job, *document));
            assert!(!aside, "job {job}: document {document} is set aside and dispatched again");
        }
    }

    fn judge_job(&mut self, plan: usize, job: u64) {
        let record = self.store.job(job).expect("looked up by the caller");
        let counts = record.final_counts.unwrap_or_default();
        let wanted = &self.plans[plan];
        if record.state() == JobState::Cancelled {
            assert!(wanted.may_be_cancelled, "job {job} is cancelled and nobody asked");
            self.totals.cancelled += 1;
            return;
        }
        if record.code == "MODEL_NOT_FOUND" && record.model_digest.is_empty() {
            // Accepted while no node could tell; those that came first don't have its model.
            assert_eq!(record.state(), JobState::Failed);
            return;
        }
        if wanted.no_input {
            assert_eq!(record.state(), JobState::Failed);
            assert_eq!(record.code, "OBJECT_NOT_FOUND");
            return;
        }
        assert!(record.listed, "job {job} ended unlisted: {} {}", record.code, record.reason);
        let listing = &self.gateway.listings[&job];
        let place = &self.gateway.places[&wanted.place];
        let mut expected = ItemCounts {
            total: listing.to_do.len() as u64 + listing.unchanged + listing.skipped,
            unchanged: listing.unchanged,
            skipped: listing.skipped,
            ..Default::default()
        };
        for document in &listing.to_do {
            let (id, nature) = (document.id, document.nature);
            if self.store.quarantined.contains(&(job, id)) {
                expected.quarantined += 1;
                let hits = self.hits.get(&(job, id)).copied().unwrap_or_default();
                assert!(
                    nature.poison() || hits >= 2,
                    "job {job}: document {id} is innocent ({nature:?}, {hits} hits) and set aside"
                );
                continue;
            }
            match nature {
                Nature::Killer | Nature::Failing => panic!("job {job}: document {id} is {nature:?} and not set aside"),
                Nature::Malformed => expected.failed += 1,
                Nature::Skipped => expected.skipped += 1,
                Nature::Same => expected.unchanged += 1,
                Nature::Good if place.taken.contains(&if wanted.embed { document.bucket } else { id }) => {
                    expected.conflict += 1;
                }
                Nature::Good => {
                    if let Some(pages) = self.long(plan, id) {
                        let bad = document.bad_page.map(|(page, _)| page);
                        for page in 0..pages {
                            let key = (job, id, page);
                            let aside = self.store.quarantined_pages.contains(&key);
                            let hits = self.page_hits.get(&key).copied().unwrap_or_default();
                            assert!(!aside || bad == Some(page) || hits >= 2, "page {key:?} is innocent and set aside");
                            assert_eq!(aside, !self.store.committed_pages.contains_key(&key), "page {key:?}");
                            assert!(aside || bad != Some(page), "page {key:?} hurts and is not set aside");
                        }
                    }
                    expected.published += 1;
                    let made_by = place.visible.get(&id).map(|(by, _)| *by);
                    let later = self.plans.iter().any(|p| p.place == wanted.place && p.accepted > Some(job));
                    assert!(made_by == Some(job) || later, "job {job}: document {id} is not visible: {made_by:?}");
                }
            }
        }
        let kept = |id: &&u32| !(wanted.embed && place.taken.contains(&(**id % super::gateway::BUCKETS)));
        expected.deleted = listing.deleted.iter().filter(kept).count() as u64;
        expected.bytes_total = counts.bytes_total;
        expected.bytes_done = counts.bytes_done;
        assert_eq!(counts, expected, "counts of job {job}");
        let sum =
            counts.published + counts.unchanged + counts.skipped + counts.failed + counts.quarantined + counts.conflict;
        assert_eq!(counts.total, sum, "job {job}: {counts:?}");
        let bad = counts.failed + counts.quarantined + counts.conflict;
        let state = if bad == 0 { JobState::Succeeded } else { JobState::Failed };
        assert_eq!(record.state(), state, "job {job}: {}", record.reason);
        self.totals.unchanged += counts.unchanged;
        self.totals.deleted += counts.deleted;
        self.totals.conflict += counts.conflict;
        self.totals.failed += counts.failed;
    }
}
