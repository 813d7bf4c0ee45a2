//! Scan: walks an input, compares it with its place's ledger, and leaves the listing as segments in the state export.

pub mod claims;
pub mod compare;
pub mod exclude;
pub mod input;
mod permission;
pub mod segments;
mod texts;
pub mod visible;
pub mod walk;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use ingle_proto::choice::choice;
use ingle_proto::storage::Object;
use ingle_proto::v1::scan_response::Message;
use ingle_proto::v1::{self, EntryAction, JobKind};
use ingle_proto::{Epoch, ErrorCode, JobId, Problem};
use tokio::sync::{Semaphore, mpsc};

use crate::blob::Blobs;
use crate::export::{Entry, ExportError};
use crate::exports::Exports;
use crate::fence::Fence;
use crate::ledger::Ledger;
use crate::ledger::record::JobRecord;
use crate::limits::{LISTS_IN_FLIGHT, Limits, SCAN_PROGRESS};
use crate::metrics::Meters;
use crate::place::Place;
use crate::publish::Publisher;
use crate::rules::is_hidden;
use compare::{Judged, Wanted};
use exclude::Exclude;
use input::Source;
use segments::Piece;
use texts::Texts;
use walk::{Found, Taste, Walk, Walked};

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of the sender, if it is a coordinator.
    pub epoch: Option<Epoch>,
    /// The job, if it is one's.
    pub job: Option<JobId>,
    /// What to list.
    pub input: v1::input_spec::Input,
    /// Where results go.
    pub place: Object,
    /// What the job does.
    pub kind: JobKind,
    /// Digest of the model.
    pub model: Vec<u8>,
    /// Digest of the parameters.
    pub parameters: Vec<u8>,
    /// Do everything again.
    pub force: bool,
    /// Where documents without text of their own may have it.
    pub text_from: Option<Object>,
    /// What is left out.
    pub exclude: Exclude,
    /// As whom all of it is done.
    pub principal: String,
}

/// Reads a `ScanRequest`.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field; `PATH_REFUSED` for paths.
pub fn check(wire: v1::ScanRequest) -> Result<Request, Problem> {
    let kind = choice("kind", wire.kind, JobKind::as_str_name)?;
    for (field, digest) in [("model_digest", &wire.model_digest), ("parameters_digest", &wire.parameters_digest)] {
        if !digest.is_empty() && digest.len() != 32 {
            return Err(Problem::invalid(field, format!("a BLAKE3 digest has 32 bytes, got {}", digest.len())));
        }
    }
    Ok(Request {
        epoch: wire.epoch.map(Epoch::from),
        job: if wire.job_id.is_empty() { None } else { Some(JobId::parse(&wire.job_id)?) },
        input: wire.input.and_then(|spec| spec.input).ok_or_else(|| Problem::missing("input"))?,
        place: Object::try_from(wire.place.ok_or_else(|| Problem::missing("place"))?)?,
        kind,
        model: wire.model_digest.to_vec(),
        parameters: wire.parameters_digest.to_vec(),
        force: wire.force,
        text_from: wire.text_from.map(Object::try_from).transpose()?,
        exclude: Exclude::new(&wire.exclude)?,
        principal: wire.principal,
    })
}

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
        let scanned_ms = ingle_daemon::clock::unix_ms();
        let ledger = self.publisher.ledger(&place).await?;
        if let Some(job) = &request.job {
            // Before the walk: a publish that reads it sees a time that is too early, never too late.
            let record = JobRecord { root: Some(source.root.clone()), scanned_ms, replaces: Vec::new() };
            self.publisher.note_job(&place, job, &record).await?;
        }
        let wanted = Wanted {
            kind: request.kind.into(),
            model: request.model,
            parameters: request.parameters,
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
            hidden: rules.hidden(),
            document_bytes_max: rules.document_bytes_max.unwrap_or(self.limits.document_bytes_max),
        };
        let exclude = &request.exclude;
        let texts = texts.as_ref();
        let against = Against { place: &place, ledger: &ledger, wanted: &wanted, texts, taste, exclude, principal };
        let mut entries = self.entries(&source, &against, out).await?;
        visible::check(&place, &ledger, wanted.kind, &mut entries).await?;
        let replaces = claims::settle(&self.exports, &ledger, &wanted, &mut entries, principal).await;
        if let Some(job) = request.job.as_ref().filter(|_| !replaces.is_empty()) {
            let record = JobRecord { root: Some(source.root.clone()), scanned_ms, replaces };
            self.publisher.note_job(&place, job, &record).await?;
        }

        let buckets = if request.kind == JobKind::Embed {
            let documents = entries.iter().filter(|e| matches!(e.action, EntryAction::Do | EntryAction::Unchanged));
            self.publisher.embed_buckets(&place, segments::buckets_for(documents.count())).await?
        } else {
            1
        };
        for entry in &entries {
            self.meters.scanned(action_name(entry.action), 1);
        }
        let total = entries.len() as u64;
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
        tell(out, Message::Done(v1::ScanDone { buckets, entries: total })).await
    }

    /// Every entry with its fate.
    async fn entries(&self, source: &Source, against: &Against<'_>, out: &Out) -> Result<Vec<Judged>, Problem> {
        let Against { place, ledger, wanted, texts, taste, exclude, principal } = *against;
        let Some(base) = &source.base else {
            return Ok(inline_entries(source, ledger, wanted));
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
            let (size, mtime_ns) = (entry.attr.size, entry.attr.mtime_ns);
            let found = Found { name: entry.name.clone(), size, mtime_ns, skipped, text: None };
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
        let blind = walked.blind || source.single.is_some();
        let present: BTreeSet<Vec<u8>> = walked.found.iter().map(|found| found.name.clone()).collect();
        let mut judged: Vec<Judged> =
            walked.found.into_iter().map(|found| compare::judge(ledger, wanted, found, None)).collect();
        if !blind {
            let present: BTreeSet<&[u8]> = present.iter().map(Vec::as_slice).collect();
            let covered = |name: &[u8]| {
                let open = taste.hidden || !name.split(|b| *b == b'/').any(is_hidden);
                open && !exclude.covers(name) && source.pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
            };
            let gone = compare::deleted(ledger, wanted, &present, covered);
            // Looked at once more: a file that was moved while the walk went by is not deleted.
            let mut checked = futures::stream::iter(gone)
                .map(|entry| async {
                    let path = base.path.join(&entry.found.name)?;
                    match export.stat(&path).await {
                        Ok(attr) => {
                            let there = Entry { name: path.file_name().to_vec(), attr };
                            let mut found = [Found {
                                size: there.attr.size,
                                mtime_ns: there.attr.mtime_ns,
                                skipped: walk::judge(&there, taste).err(),
                                ..entry.found
                            }];
                            if let Some(texts) = texts {
                                texts.find(&mut found).await?;
                            }
                            let [found] = found;
                            Ok(compare::judge(ledger, wanted, found, None))
                        }
                        Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => Ok(entry),
                        Err(error) => Err(Problem::from(error)),
                    }
                })
                .buffered(LISTS_IN_FLIGHT);
            while let Some(entry) = checked.next().await {
                judged.push(entry?);
            }
        }
        Ok(judged)
    }
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
            _ = tick.tick() => tell(out, progress()).await?,
        }
    };
    tell(out, progress()).await?;
    Ok(walked)
}

async fn tell(out: &Out, message: Message) -> Result<(), Problem> {
    out.send(Ok(v1::ScanResponse { message: Some(message) }))
        .await
        .map_err(|_| Problem::new(ErrorCode::Cancelled, "nobody waits for this scan any more"))
}

fn action_name(action: EntryAction) -> &'static str {
    match action {
        EntryAction::Do => "do",
        EntryAction::Unchanged => "unchanged",
        EntryAction::Deleted => "deleted",
        EntryAction::Conflict => "conflict",
        EntryAction::Skip | EntryAction::Unspecified => "skip",
    }
}
