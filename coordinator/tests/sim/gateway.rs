//! A gateway without bytes: inputs are lists of documents, places remember what is visible and by which attempt.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::{Event, PublishedBatch};
use ingle_proto::{ErrorCode, Problem, v1};

use super::store::digest;
use super::world::{Happening, Mode, World};

/// What a document does to whoever works on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Nature {
    Good,
    /// Can't be read: fails with a reason.
    Malformed,
    /// The node finds that it isn't text.
    Skipped,
    /// Touched, but its content is the same.
    Same,
    /// Ends the process that reads it.
    Killer,
    /// Fails its whole batch.
    Failing,
}

impl Nature {
    pub(crate) fn poison(self) -> bool {
        matches!(self, Self::Killer | Self::Failing)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) id: u32,
    pub(crate) nature: Nature,
    pub(crate) kib: u32,
    pub(crate) bucket: u32,
    /// Of a kind no job takes: the walk says so.
    pub(crate) unfit: bool,
    /// More than one attempt should read, or 1. Only jobs that read pages see them.
    pub(crate) pages: u32,
    /// One of them hurts whoever reads it.
    pub(crate) bad_page: Option<(u32, Nature)>,
}

/// An output place.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Document and which job's attempt made its result.
    pub(crate) visible: BTreeMap<u32, (u64, u64)>,
    /// Names where a person's file lies: a document's, or a bucket's.
    pub(crate) taken: BTreeSet<u32>,
    /// Joined files by (job, bucket).
    joined: BTreeMap<(u64, u32), u64>,
}

/// A finished walk.
#[derive(Debug, Default, Clone)]
pub(crate) struct Listing {
    pub(crate) to_do: Vec<Document>,
    pub(crate) unchanged: u64,
    pub(crate) skipped: u64,
    pub(crate) deleted: Vec<u32>,
}

/// What an attempt made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manifest {
    pub(crate) job: u64,
    pub(crate) attempt: u64,
    pub(crate) documents: Vec<u32>,
    pub(crate) removed: Vec<u32>,
    /// Of joins.
    pub(crate) bucket: Option<u32>,
    pub(crate) embed: bool,
    /// Of a document in ranges: which of its pages.
    pub(crate) pages: std::ops::Range<u32>,
}

#[derive(Default)]
pub(crate) struct Gateway {
    pub(crate) places: BTreeMap<usize, Place>,
    pub(crate) inputs: BTreeMap<usize, Vec<Document>>,
    /// Segment blob: documents to do, in order.
    pub(crate) segments: BTreeMap<u64, Vec<u32>>,
    /// Segment blob: documents that left.
    pub(crate) left: BTreeMap<u64, Vec<u32>>,
    pub(crate) manifests: BTreeMap<u64, Manifest>,
    pub(crate) listings: BTreeMap<u64, Listing>,
    /// Answers by (job, attempt).
    answers: BTreeMap<(u64, u64), u32>,
    /// Attempts whose part another job replaced before, by (job, attempt).
    outdated: BTreeSet<(u64, u64)>,
    epoch: u64,
    next_blob: u64,
}

impl Gateway {
    pub(crate) fn blob(&mut self) -> u64 {
        self.next_blob += 1;
        self.next_blob
    }
}

pub(crate) fn blob_ref(number: u64) -> v1::BlobRef {
    v1::BlobRef { digest: digest(number), size: 1 }
}

pub(crate) fn away(words: &str) -> Problem {
    Problem::new(ErrorCode::StorageUnavailable, words)
}

pub(crate) fn full(words: &str) -> Problem {
    Problem::new(ErrorCode::StorageFull, words)
}

impl World {
    /// Walks an input: what it finds goes to the leader that asked, piece by piece.
    pub(crate) fn scan(&mut self, job: u64, scan: u64, request: &v1::ScanRequest) {
        let plan = self.plan_of_place(request.place.as_ref().unwrap());
        self.gateway.epoch = self.gateway.epoch.max(request.epoch.unwrap().revision);
        let life = self.life;
        let mut at = self.now + self.rng.u64(1..50);
        if self.plans[plan].no_input {
            let problem = Problem::new(ErrorCode::ObjectNotFound, "no such directory");
            self.later(at, Happening::Deliver(life, Event::ScanFailed { job, scan, problem }));
            return;
        }
        let embed = self.plans[plan].embed;
        let input = self.gateway.inputs[&self.plans[plan].input].clone();
        let visible = self.gateway.places.entry(self.plans[plan].place).or_default().visible.clone();
        let mut listing = Listing::default();
        let mut buckets: BTreeMap<u32, (Vec<Document>, u32, u32, Vec<u32>)> = BTreeMap::new();
        for document in &input {
            let bucket = buckets.entry(if embed { document.bucket } else { 0 }).or_default();
            if document.unfit {
                bucket.2 += 1;
                listing.skipped += 1;
            } else if visible.contains_key(&document.id) {
                bucket.1 += 1;
                listing.unchanged += 1;
            } else {
                bucket.0.push(document.clone());
                listing.to_do.push(document.clone());
            }
        }
        for id in visible.keys().filter(|id| input.iter().all(|d| d.id != **id)) {
            buckets.entry(if embed { *id % BUCKETS } else { 0 }).or_default().3.push(*id);
            listing.deleted.push(*id);
        }
        let mut events = vec![Event::ScanProgress { job, scan, entries: input.len() as u64 }];
        for (bucket, (to_do, unchanged, skipped, deleted)) in buckets {
            let size = self.rng.usize(2..12);
            let mut pieces: Vec<&[Document]> = to_do.chunks(size).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            for (index, piece) in pieces.iter().enumerate() {
                let blob = self.gateway.blob();
                self.gateway.segments.insert(blob, piece.iter().map(|d| d.id).collect());
                // What needs nothing is told with the first piece.
                let rest = if index == 0 { (unchanged, skipped, deleted.clone()) } else { (0, 0, Vec::new()) };
                let info = v1::SegmentInfo {
                    blob: Some(blob_ref(blob)),
                    bucket,
                    entries: piece.len() as u32 + rest.0 + rest.1 + rest.2.len() as u32,
                    to_do: piece.len() as u32,
                    unchanged: rest.0,
                    skipped: rest.1,
                    deleted: rest.2.len() as u32,
                    to_do_bytes: piece.iter().map(|d| u64::from(d.kib) << 10).sum(),
                    size_kib: piece.iter().map(|d| d.kib).collect(),
                    ..Default::default()
                };
                self.gateway.left.insert(blob, rest.2);
                events.push(Event::ScanSegment { job, scan, info: Box::new(info) });
            }
        }
        let breaks_off = self.nas_away.0 > self.now || (!self.calm && self.rng.u32(..100) < 15);
        let keep = if breaks_off { self.rng.usize(..=events.len()) } else { events.len() };
        events.truncate(keep);
        if breaks_off {
            let problem = if self.rng.bool() { away("the NAS went away") } else { full("no space left") };
            events.push(Event::ScanFailed { job, scan, problem });
        } else {
            let done = v1::ScanDone { buckets: if embed { BUCKETS } else { 1 }, ..Default::default() };
            events.push(Event::ScanDone { job, scan, done: Box::new(done) });
            self.gateway.listings.insert(job, listing);
        }
        for event in events {
            at += self.rng.u64(1..80);
            self.later(at, Happening::Deliver(life, event));
        }
    }

    /// Makes a manifest visible; it happens also when the leader that asked is gone by then.
    pub(crate) fn publish(&mut self, life: u64, job: u64, batch: u64, request: &v1::PublishRequest) {
        let (epoch, attempt) = (request.epoch.unwrap().revision, request.attempt);
        let answer = |result| Happening::Deliver(life, Event::Published { job, batch, attempt, result });
        let at = self.now + self.rng.u64(1..60);
        if epoch < self.gateway.epoch {
            assert!(life != self.life, "the leader's own epoch {epoch} is refused");
            let problem = Problem::new(ErrorCode::EpochStale, "an older leader");
            self.later(at, answer(Err(problem)));
            return;
        }
        self.gateway.epoch = epoch;
        if self.nas_away.0 > self.now {
            // A call that stalls ends by its deadline.
            let problem = self.ill("while it was made visible");
            self.later(at + 2_000, answer(Err(problem)));
            return;
        }
        let luck = if self.calm { 100 } else { self.rng.u32(..100) };
        if luck < 8 {
            let read_only = || Problem::new(ErrorCode::StorageReadOnly, "read-only now");
            let problem = if luck < 4 { away("the NAS does not answer") } else { read_only() };
            self.later(at, answer(Err(problem)));
            return;
        }
        let id = super::store::number(&request.manifest.as_ref().unwrap().digest);
        let manifest = self.gateway.manifests[&id].clone();
        assert_eq!((manifest.job, manifest.attempt), (job, attempt), "the manifest is of another attempt");
        let plan = self.plan_of_place(request.place.as_ref().unwrap());
        let place = self.gateway.places.entry(self.plans[plan].place).or_default();
        let known = self.gateway.answers.get(&(job, attempt)).copied();
        let overtaken = known.is_none() && manifest.embed && manifest.bucket.is_some() && (14..20).contains(&luck);
        // What was overtaken stays so, however often it is asked for.
        if overtaken || self.gateway.outdated.contains(&(job, attempt)) {
            self.gateway.outdated.insert((job, attempt));
            let problem = Problem::new(ErrorCode::ResultOutdated, "another job replaced the part");
            self.later(at, answer(Err(problem)));
            return;
        }
        let conflict = known.unwrap_or_else(|| place.show(&manifest));
        self.gateway.answers.insert((job, attempt), conflict);
        self.trace
            .say(self.now, format_args!("visible: job {job} batch {batch} attempt {attempt}, conflict {conflict}"));
        if luck < 14 {
            self.later(at, answer(Err(away("the answer got lost"))));
            return;
        }
        let outcomes = blob_ref(self.gateway.blob());
        let done = PublishedBatch { outcomes, conflict };
        if (20..24).contains(&luck) {
            // The answer comes twice.
            self.soon(100..9_000, answer(Ok(done.clone())));
        }
        self.later(at, answer(Ok(done)));
    }
}

/// Path buckets of a place of embeddings.
pub(crate) const BUCKETS: u32 = 3;

impl Place {
    fn show(&mut self, manifest: &Manifest) -> u32 {
        let job = manifest.job;
        let whole = manifest.embed && manifest.bucket.is_some_and(|bucket| self.taken.contains(&bucket));
        if whole {
            return 1;
        }
        if let Some(bucket) = manifest.bucket {
            let before = self.joined.insert((job, bucket), manifest.attempt);
            assert!(before.is_none(), "job {job} made bucket {bucket} visible twice");
        }
        let mut conflict = 0;
        for document in &manifest.documents {
            if !manifest.embed && self.taken.contains(document) {
                conflict += 1;
                continue;
            }
            let before = self.visible.insert(*document, (job, manifest.attempt));
            assert!(
                before.is_none_or(|(other, _)| other != job),
                "document {document} of job {job} has a second visible result: {before:?} and {manifest:?}"
            );
        }
        for document in &manifest.removed {
            self.visible.remove(document);
        }
        conflict
    }
}

/// Documents of a new input; `poison` of them in a hundred are poisonous.
pub(crate) fn documents(rng: &mut fastrand::Rng, first: u32, count: u32, mode: Mode) -> Vec<Document> {
    let mut poisonous = 0;
    (first..first + count)
        .map(|id| {
            let nature = match rng.u32(..100) {
                0..3 if poisonous < 2 => Nature::Killer,
                3..6 if poisonous < 2 => Nature::Failing,
                6..10 => Nature::Malformed,
                10..13 => Nature::Skipped,
                13..16 => Nature::Same,
                _ => Nature::Good,
            };
            poisonous += u32::from(nature.poison() && mode == Mode::Liveness);
            let long = nature == Nature::Good && rng.u32(..100) < 15;
            let pages = if long { rng.u32(17..60) } else { 1 };
            let bad_page = (long && rng.u32(..4) == 0)
                .then(|| (rng.u32(..pages), if rng.bool() { Nature::Killer } else { Nature::Failing }));
            let bad_page = bad_page.filter(|_| mode == Mode::Safety || poisonous < 2);
            poisonous += u32::from(bad_page.is_some() && mode == Mode::Liveness);
            let (kib, unfit) = (rng.u32(0..30), rng.u32(..100) < 6);
            Document { id, nature, kib, bucket: id % BUCKETS, unfit, pages, bad_page }
        })
        .collect()
}
