//! Scan: walks an input, compares it with its place's ledger, and leaves the listing as segments in the state export.

pub mod claims;
pub mod compare;
pub mod digest;
pub mod exclude;
pub mod gone;
pub mod input;
pub mod pass;
pub mod pattern;
mod permission;
mod request;
pub mod seen;
pub mod segments;
pub mod settle;
mod texts;
pub mod visible;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use ingle_proto::v1::scan_response::Message;
use ingle_proto::v1::{self, EntryAction, JobKind};
use ingle_proto::{ErrorCode, JobId, Problem};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};

use crate::blob::Blobs;
use crate::exports::Exports;
use crate::fence::Fence;
use crate::grpc::STALL;
use crate::ledger::Ledger;
use crate::ledger::record::JobRecord;
use crate::limits::{Limits, SCAN_PROGRESS};
use crate::metrics::Meters;
use crate::place::Place;
use crate::publish::Publisher;
use crate::rules::is_hidden;
use compare::{Judged, Known, Wanted};
use exclude::Exclude;
use input::Source;
use seen::{Seen, Standing};
use segments::Piece;
use settle::Settle;
use texts::Texts;
use walk::{Found, Taste, Walk, Walked};

pub use request::{Look, Request, check};

/// How far a NAS's clock may lie behind ours before a scan counts as of its time: within what counts as racy.
const LAG_MS: i64 = 1_000;

/// Does scans, a few at a time.
pub struct Scanner {
    /// Where inputs and places lie.
    pub exports: Arc<Exports>,
    /// Owns the ledgers.
    pub publisher: Arc<Publisher>,
    /// Where segments go.
    pub blobs: Blobs,
    /// Refuses old leaders.
    pub fence: Arc<Fence>,
    /// Caps.
    pub limits: Limits,
    /// Counts.
    pub meters: Meters,
    turns: Semaphore,
}

/// Where a scan's messages go; the receiver leaving ends the scan.
pub type Out = mpsc::Sender<Result<v1::ScanResponse, tonic::Status>>;

impl Scanner {
    /// With everything it needs.
    #[must_use]
    pub fn new(
        exports: Arc<Exports>,
        publisher: Arc<Publisher>,
        blobs: Blobs,
        fence: Arc<Fence>,
        limits: Limits,
        meters: Meters,
    ) -> Self {
        let turns = Semaphore::new(limits.scans_max.max(1));
        Self { exports, publisher, blobs, fence, limits, meters, turns }
    }

    /// Scans and tells `out` as it goes.
    ///
    /// # Errors
    /// `EPOCH_STALE`; those of the exports and of the ledger; an input that can't be. Nothing is told as deleted then.
    pub async fn scan(&self, request: Request, out: &Out) -> Result<(), Problem> {
        if let Some(epoch) = request.epoch {
            self.fence.admit(epoch).await?;
        }
        let _turn = self.turns.acquire().await.map_err(|_| crate::publish::lost("the scan"))?;
        let principal = request.principal.as_str();
        let place = Place::new(request.place.clone(), self.exports.writable(&request.place, principal).await?)?
            .used_by(principal);
        permission::check(&place).await?;
        let source = input::open(&self.exports, &self.blobs, &request.input, principal).await?;
        let begun_ms = ingle_daemon::clock::unix_ms();
        let ledger = self.publisher.ledger(&place).await?;
        let job = request.job.as_ref();
        let here = source.base.as_ref().is_some_and(|base| base.export == request.place.export);
        let mut note = Note {
            record: JobRecord { root: Some(source.root.clone()), scanned_ms: begun_ms, replaces: Vec::new() },
            ahead_ms: None,
            written: false,
        };
        // A later pass notes it only when it has work: everything of the passes before it is published by then.
        if request.look.pass <= 1 {
            // Before the walk: a publish that reads it sees a time that is too early, never too late.
            self.note(&place, job, &mut note, here).await?;
        }
        let remembers = job.is_some() && source.base.is_some();
        let seen_name = seen::name(request.kind.into(), &source.root, &request.look.scope);
        let before = if remembers { seen::load(&place, &seen_name).await? } else { Seen::default() };
        let wanted = Wanted {
            kind: request.kind.into(),
            model: request.model.clone(),
            parameters: request.parameters.clone(),
            root: source.root.clone(),
            force: request.force,
        };
        let texts = match &request.text_from {
            Some(object) => Some(Texts::open(&self.exports, &self.publisher, object, principal).await?),
            None => None,
        };
        let rules = match &source.base {
            Some(base) => self.exports.rules(&base.export)?,
            None => self.exports.rules(&place.object.export)?,
        };
        let taste = Taste {
            job: request.kind,
            texts: texts.is_some(),
            hidden: rules.lists_hidden(),
            document_bytes_max: rules.document_bytes_max.unwrap_or(self.limits.document_bytes_max),
        };
        let exclude = &request.exclude;
        let texts = texts.as_ref();
        let against = Against { place: &place, ledger: &ledger, wanted: &wanted, texts, taste, exclude, principal };
        let looked = self.entries(&source, &against, out).await?;
        let Looked { mut entries, known, directories } = looked;
        let mut now = Seen { base_id: source.base_id, directories, standing: before.standing.clone() };
        if request.look.pass > 0
            && let Some(job) = job
        {
            let generation = request.epoch.map_or(0, |epoch| epoch.generation);
            now.standing = before.standing.enter(&format!("{generation}/{job}"), request.look.pass, &wanted.context());
        }
        let mut done = v1::ScanDone {
            documents: entries.len() as u64,
            directories: now.directories.len() as u64,
            directories_moved: seen::moved(&before.directories, &now.directories),
            ..Default::default()
        };
        let (gone, suspected) =
            self.gone(&source, &against, known, &entries, &before, &mut now, &request.look, begun_ms).await?;
        done.suspected = suspected;
        done.documents += gone.iter().filter(|entry| entry.action != EntryAction::Deleted).count() as u64;
        entries.extend(gone);
        visible::check(&place, &ledger, wanted.kind, &mut entries).await?;
        if request.look.settle_ms > 0 {
            let tried = &now.standing.tried;
            let new = |e: &Judged| {
                e.action == EntryAction::Do && !tried.contains(&digest::found_mark(&e.found, e.action.into()))
            };
            if !note.written && entries.iter().any(new) {
                self.note(&place, job, &mut note, here).await?;
            }
            let settle = Settle { settle_ms: request.look.settle_ms, begun_ms, ahead_ms: note.ahead_ms };
            done.waiting = settled(&mut entries, &settle, &mut now.standing);
        }
        note.record.replaces = claims::settle(&self.exports, &ledger, &wanted, &mut entries, principal).await;
        for entry in &entries {
            self.meters.scanned(action_name(entry.action), 1);
        }
        let documents = entries.iter().filter(|e| matches!(e.action, EntryAction::Do | EntryAction::Unchanged)).count();
        // Buckets are fixed for good, and by an empty folder that is watched they would be too few.
        let rows = documents > 0 || entries.iter().any(|entry| entry.action == EntryAction::Deleted);
        if request.look.pass > 0 {
            let carried = pass::anew(&mut entries, &mut now.standing, begun_ms);
            (done.unchanged, done.skipped, done.held) = (carried.unchanged, carried.skipped, carried.held);
        }
        let told = request.look.pass <= 1 || !entries.is_empty();
        if told && (!note.written || !note.record.replaces.is_empty()) {
            self.note(&place, job, &mut note, here).await?;
        }
        if remembers && now != before {
            // Before it is told: a pass that was told and is not remembered would be tried again.
            self.remember(&place, &seen_name, &now).await;
        }
        done.buckets = if request.kind == JobKind::Embed && told && rows {
            self.publisher.embed_buckets(&place, segments::buckets_for(documents)).await?
        } else {
            1
        };
        done.entries = entries.len() as u64;
        let buckets = done.buckets;
        let pieces = segments::cut(entries, buckets, source.base.as_ref(), request.text_from.as_ref());
        let mut written = futures::stream::iter(pieces)
            .map(|Piece { segment, info }| async move {
                let blob = self.blobs.put(&prost::Message::encode_to_vec(&segment).into()).await?;
                Ok::<_, Problem>(v1::SegmentInfo { blob: Some(blob), ..info })
            })
            .buffered(4);
        while let Some(info) = written.next().await {
            tell(out, Message::Segment(info?)).await?;
        }
        tell(out, Message::Done(done)).await
    }

    /// Leaves for the job's publishes where it looks and since when, and learns the NAS's time from that.
    async fn note(&self, place: &Place, job: Option<&JobId>, note: &mut Note, here: bool) -> Result<(), Problem> {
        let Some(job) = job else { return Ok(()) };
        self.publisher.note_job(place, job, &note.record).await?;
        if here && note.ahead_ms.is_none() {
            let there_ms = place.export.stat(&place.job(job)).await?.ctime_ns / 1_000_000;
            let ahead_ms = there_ms - ingle_daemon::clock::unix_ms();
            note.ahead_ms = Some(ahead_ms);
            if ahead_ms < -LAG_MS {
                // Times of documents are the NAS's: by ours all of them would seem old enough to be trusted.
                note.record.scanned_ms += ahead_ms;
                self.publisher.note_job(place, job, &note.record).await?;
            }
        }
        note.written = true;
        Ok(())
    }

    /// Keeps what was seen. Without it the next look only has more to do.
    async fn remember(&self, place: &Place, name: &str, seen: &Seen) {
        if let Err(problem) = seen::save(place, name, seen).await {
            tracing::warn!(place = %place.object, %problem, "what this look saw is not kept: the next one begins anew");
        }
    }

    /// What left, or is there after all; and how many documents are missing that may yet come back.
    #[allow(clippy::too_many_arguments, reason = "everything that a look is made of")]
    async fn gone(
        &self,
        source: &Source,
        against: &Against<'_>,
        known: Option<Known>,
        present: &[Judged],
        before: &Seen,
        now: &mut Seen,
        look: &Look,
        begun_ms: i64,
    ) -> Result<(Vec<Judged>, u64), Problem> {
        let Some((base, known)) = source.base.as_ref().zip(known) else {
            // A listing that is not complete misses nothing, but what it has is there.
            let missing = &mut now.standing.missing;
            let some = !missing.is_empty();
            for entry in present.iter().filter(|_| some) {
                missing.remove(&digest::name_mark(&entry.found.name));
            }
            return Ok((Vec::new(), 0));
        };
        let another = before.base_id != 0 && now.base_id != 0 && before.base_id != now.base_id;
        if look.pass > 0 {
            if !look.allow_mass_deletion {
                gone::believable(base, &known, another)?;
            }
            return Ok(gone::confirmed(known.missing, &mut now.standing.missing, begun_ms));
        }
        let Against { ledger, wanted, texts, taste, principal, .. } = *against;
        let export = self.exports.get(base, principal).await?;
        let looked = gone::second_look(&*export, &base.path, known.missing).await?;
        let known = Known { names: known.names, missing: looked.gone };
        if !look.allow_mass_deletion {
            gone::believable(base, &known, another)?;
        }
        let mut back = Vec::new();
        for (entry, there) in &looked.back {
            back.push(Found::listed(&entry.found.name, &there.attr, walk::judge(there, taste).err()));
        }
        if let Some(texts) = texts {
            texts.find(&mut back).await?;
        }
        let mut entries = known.missing;
        entries.extend(back.into_iter().map(|found| compare::judge(ledger, wanted, found, None)));
        Ok((entries, 0))
    }

    /// Every entry with its fate, and what the ledger knows of the same root.
    async fn entries(&self, source: &Source, against: &Against<'_>, out: &Out) -> Result<Looked, Problem> {
        let Against { place, ledger, wanted, texts, taste, exclude, principal } = *against;
        let Some(base) = &source.base else {
            return Ok(Looked { entries: inline_entries(source, ledger, wanted), ..Default::default() });
        };
        let same_export = base.export == place.object.export;
        // A place that is the base, or above it, has its results among the documents: told apart by the ledger.
        let ours = |name: &[u8]| {
            let Ok(path) = base.path.join(name) else { return false };
            let own = || path.below(&place.object.path).is_some_and(|visible| ledger.output(visible).is_some());
            same_export && own() || texts.is_some_and(|texts| texts.holds(&base.export, &path))
        };
        let mut places = Vec::new();
        places.extend(same_export.then(|| place.object.path.clone()));
        places.extend(texts.and_then(|texts| texts.on(&base.export)).cloned());
        let export = self.exports.get(base, principal).await?;
        let mut walked = if let Some(entry) = &source.single {
            let mut skipped = walk::judge(entry, taste).err();
            if ours(&entry.name) {
                skipped = Some("is a result that this place holds".to_owned());
            }
            let found = Found::listed(&entry.name, &entry.attr, skipped);
            let found = if exclude.covers(&entry.name) { Vec::new() } else { vec![found] };
            Walked { found, ..Default::default() }
        } else {
            let walk = Walk {
                export: &*export,
                base: &base.path,
                pattern: source.pattern.as_ref(),
                exclude,
                places: &places,
                ours: &ours,
                taste,
                entries_max: self.limits.scan_entries_max,
            };
            told(out, |entries, directories| {
                walk.run(move |e, d| {
                    entries.store(e, Ordering::Relaxed);
                    directories.store(d, Ordering::Relaxed);
                })
            })
            .await?
        };
        if let Some(texts) = texts {
            texts.find(&mut walked.found).await?;
        }
        // A listing that is not complete says nothing of what it does not have.
        let known = if walked.blind || source.single.is_some() {
            None
        } else {
            let present: BTreeSet<&[u8]> = walked.found.iter().map(|found| found.name.as_slice()).collect();
            let covered = |name: &[u8]| {
                let open = taste.hidden || !name.split(|b| *b == b'/').any(is_hidden);
                open && !exclude.covers(name) && source.pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
            };
            Some(compare::known(ledger, wanted, &present, covered))
        };
        let directories = seen::digests(&walked.directories);
        let judge = |found| compare::judge(ledger, wanted, found, None);
        Ok(Looked { entries: walked.found.into_iter().map(judge).collect(), known, directories })
    }
}

/// What a scan leaves for the job's publishes.
struct Note {
    record: JobRecord,
    /// How far the NAS's clock lies ahead of ours, once it was asked.
    ahead_ms: Option<i64>,
    written: bool,
}

/// What a walk came to, held against the ledger.
#[derive(Default)]
struct Looked {
    entries: Vec<Judged>,
    /// None where the listing is not complete.
    known: Option<Known>,
    directories: BTreeMap<digest::Mark, digest::Mark>,
}

/// Turns documents that may still be written into ones that wait. Answers how many.
fn settled(entries: &mut [Judged], settle: &Settle, standing: &mut Standing) -> u64 {
    let before = std::mem::take(&mut standing.waiting);
    let mut waiting = 0;
    for entry in entries.iter_mut().filter(|entry| entry.action == EntryAction::Do) {
        if let Some(why) = settle.waits(&entry.found, &before, &mut standing.waiting) {
            entry.action = EntryAction::Wait;
            entry.found.skipped = Some(why);
            waiting += 1;
        }
    }
    waiting
}

/// What found names are held against.
#[derive(Clone, Copy)]
struct Against<'a> {
    place: &'a Place,
    ledger: &'a Ledger,
    wanted: &'a Wanted,
    texts: Option<&'a Texts>,
    taste: Taste,
    exclude: &'a Exclude,
    principal: &'a str,
}

fn inline_entries(source: &Source, ledger: &Ledger, wanted: &Wanted) -> Vec<Judged> {
    source
        .texts
        .iter()
        .zip(0_u32..)
        .map(|(text, index)| {
            let found = Found {
                name: format!("text-{:06}", index + 1).into_bytes(),
                size: text.len() as u64,
                ..Found::default()
            };
            let digest = blake3::hash(text.as_bytes());
            let judged = compare::judge(ledger, wanted, found, Some(digest.as_bytes()));
            Judged { inline_index: Some(index), ..judged }
        })
        .collect()
}

/// Runs a walk and tells its progress every second, and once at its end.
async fn told<F>(out: &Out, walk: impl FnOnce(Arc<AtomicU64>, Arc<AtomicU64>) -> F) -> Result<Walked, Problem>
where
    F: Future<Output = Result<Walked, Problem>>,
{
    let (entries, directories) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut walk = std::pin::pin!(walk(Arc::clone(&entries), Arc::clone(&directories)));
    let mut tick = tokio::time::interval(SCAN_PROGRESS);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let progress = || {
        Message::Progress(v1::ScanProgress {
            entries: entries.load(Ordering::Relaxed),
            directories: directories.load(Ordering::Relaxed),
        })
    };
    let walked = loop {
        tokio::select! {
            walked = &mut walk => break walked?,
            // The walk goes on whether or not anybody takes what is told of it.
            _ = tick.tick() => match out.try_send(Ok(v1::ScanResponse { message: Some(progress()) })) {
                Err(TrySendError::Closed(_)) => return Err(left()),
                Ok(()) | Err(TrySendError::Full(_)) => {}
            },
        }
    };
    tell(out, progress()).await?;
    Ok(walked)
}

async fn tell(out: &Out, message: Message) -> Result<(), Problem> {
    match tokio::time::timeout(STALL, out.send(Ok(v1::ScanResponse { message: Some(message) }))).await {
        Ok(sent) => sent.map_err(|_| left()),
        Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("nothing was taken for {} s", STALL.as_secs()))),
    }
}

fn left() -> Problem {
    Problem::new(ErrorCode::Cancelled, "nobody waits for this scan any more")
}

fn action_name(action: EntryAction) -> &'static str {
    match action {
        EntryAction::Do => "do",
        EntryAction::Unchanged => "unchanged",
        EntryAction::Deleted => "deleted",
        EntryAction::Conflict => "conflict",
        EntryAction::Wait => "wait",
        EntryAction::Skip | EntryAction::Unspecified => "skip",
    }
}
