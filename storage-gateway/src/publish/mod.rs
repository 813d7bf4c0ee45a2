//! Publishing: staged results become visible exactly once, whatever crashes and whoever edits.
//!
//! Intents of the whole manifest are made durable first, then each output takes its steps ([`settle`]), then all
//! outcomes are made durable in one file, and only then staged names go. What began and didn't end is rolled forward
//! the next time the place is used. One publish at a time per place; fenced by epoch.

mod beside;
pub mod intents;
mod linkless;
pub mod names;
pub mod places;
pub mod settle;

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::choice::choice;
use ingle_proto::storage::Object;
use ingle_proto::{Digest, Epoch, ErrorCode, JobId, ObjectPath, Problem, v1};

use crate::blob::Blobs;
use crate::export::{Export, ExportError};
use crate::fence::Fence;
use crate::file;
use crate::ledger::record::{Constants, Done, JobRecord, LogSegment, Outcome, Publish, Result as Verdict};
use crate::ledger::store::Store;
use crate::ledger::{Ledger, frame};
use crate::limits::PUBLISH_IN_FLIGHT;
use crate::metrics::Meters;
use crate::place::Place;
use places::Places;
use settle::Desk;

/// Largest small file of ours besides the ledger, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of the sender.
    pub epoch: Epoch,
    /// The job.
    pub job: JobId,
    /// The attempt that won.
    pub attempt: u64,
    /// A ResultManifest.
    pub manifest: v1::BlobRef,
    /// Of the model.
    pub model: Vec<u8>,
    /// Of the parameters.
    pub parameters: Vec<u8>,
    /// What the job does.
    pub kind: v1::JobKind,
}

/// Publishes, and owns the ledgers of the places it publishes to.
pub struct Publisher {
    blobs: Blobs,
    fence: Arc<Fence>,
    meters: Meters,
    places: Places,
}

impl Publisher {
    /// With blobs in the state export; `state_dir` remembers which places there are, for the sweep and the next start.
    #[must_use]
    pub fn new(blobs: Blobs, fence: Arc<Fence>, state_dir: &std::path::Path, meters: Meters) -> Self {
        Self { blobs, fence, meters, places: Places::new(state_dir) }
    }

    /// Places known from this and earlier runs, each with the principal who used it first.
    ///
    /// # Errors
    /// What the system said about the state directory.
    pub fn known_places(&self) -> std::io::Result<Vec<(Object, String)>> {
        self.places.known()
    }

    /// Publishes a manifest's outputs. The same request again answers the same.
    ///
    /// # Errors
    /// `EPOCH_STALE`; `INVALID_ARGUMENT` for a manifest that can't be; `OBJECT_NOT_FOUND` for results that aren't staged;
    /// `RESULT_OUTDATED` for one that was made from a file that another publish replaced; those of the export, and then
    /// what began is finished by the next call.
    pub async fn publish(&self, place: &Place, request: Request) -> Result<v1::PublishResponse, Problem> {
        let held = self.places.get(&place.object);
        let mut slot = held.lock().await;
        // In the lock: a newer leader may have published while this request waited.
        self.fence.admit(request.epoch).await?;
        let mut store = self.open(place, slot.take()).await?;
        let answer = self.publish_in(place, &mut store, request).await;
        // After an error memory and disk may differ: the next call reads the disk, and rolls forward.
        if answer.is_ok() {
            *slot = Some(store);
        }
        answer
    }

    /// Reads a place's ledger, after finishing what an earlier run began.
    ///
    /// # Errors
    /// Those of the export; `DIGEST_MISMATCH` for a damaged ledger.
    pub async fn ledger(&self, place: &Place) -> Result<Arc<Ledger>, Problem> {
        let held = self.places.get(&place.object);
        let mut slot = held.lock().await;
        let store = self.open(place, slot.take()).await?;
        let ledger = store.ledger();
        *slot = Some(store);
        Ok(ledger)
    }

    async fn open(&self, place: &Place, store: Option<Store>) -> Result<Store, Problem> {
        // The export was opened again since (another disk is mounted there): its ledger is another too.
        let store = store.filter(|store| store.lies_on(&place.export));
        let store = match store {
            Some(store) if store.is_there().await? => Some(store),
            Some(_) => {
                tracing::warn!(place = %place.object, "the ledger was removed; the place begins anew");
                None
            }
            None => None,
        };
        let mut store = match store {
            Some(store) => store,
            None => {
                let store = Store::load(Arc::clone(&place.export), place.ledger()).await?;
                self.places.remember(&place.object, &place.principal).await?;
                store
            }
        };
        for publish in store.ledger().open() {
            tracing::info!(place = %place.object, publish = publish.key, "finishing what an earlier run began");
            // With the rights of whoever began it: what is refused to us may well be theirs.
            let theirs = place.as_user(publish.user.as_ref());
            self.carry_out(&theirs, &mut store, publish, true).await?;
        }
        Ok(store)
    }

    async fn publish_in(
        &self,
        place: &Place,
        store: &mut Store,
        request: Request,
    ) -> Result<v1::PublishResponse, Problem> {
        let manifest_digest = Digest::from_wire("manifest.digest", &request.manifest.digest)?;
        // The generation is the store's: a store begun anew counts jobs and attempts from one again, and would meet the
        // outcome of a publish of the old one. Not the revision, which a new leader of the same store has its own of.
        let generation = request.epoch.generation;
        let key = format!("{generation}/{}/{}/{}", request.job, request.attempt, manifest_digest.hex());
        if let Some(done) = store.ledger().done(&key) {
            let response = response(done);
            self.tidy_again(place, &request, &key).await;
            return Ok(response);
        }
        let manifest: v1::ResultManifest = self.blobs.message("manifest", &request.manifest).await?;
        let record = self.job_record(place, &request.job).await?;
        let mut publish = Publish {
            key,
            job: request.job.to_string(),
            attempt: request.attempt,
            kind: request.kind.into(),
            model: request.model,
            parameters: request.parameters,
            root: record.root.clone(),
            scanned_ms: record.scanned_ms,
            manifest: manifest_digest.0.to_vec(),
            intents: intents::from_manifest(place, &store.ledger(), &manifest)?,
            user: place.export.user().map(Into::into),
        };
        intents::yield_names(&store.ledger(), &record, &mut publish);
        intents::check_base(place, &store.ledger(), &manifest).await?;
        intents::check_staged(place, &publish).await?;
        if !publish.intents.is_empty() {
            place.export.make_directory(&place.trash_directory()).await?;
        }
        store.append(LogSegment { seq: 0, publish: Some(publish.clone()), done: None }).await?;
        let done = self.carry_out(place, store, publish, false).await?;
        if let Err(problem) = store.fold_if_due(ingle_daemon::clock::unix_ms()).await {
            // The publish itself is durable; folding is tried again with the next one.
            tracing::warn!(place = %place.object, %problem, "the ledger's log could not be folded");
        }
        Ok(response(&done))
    }

    /// Takes all steps that are left, makes the outcomes durable, tidies up.
    async fn carry_out(
        &self,
        place: &Place,
        store: &mut Store,
        publish: Publish,
        recovering: bool,
    ) -> Result<Done, Problem> {
        let link = place.export.abilities().await?.link;
        let desk = Desk::new(place, &publish, link, recovering);
        let steps: Vec<_> = publish.intents.iter().map(|intent| desk.settle(intent)).collect();
        let outcomes: Vec<Outcome> = futures::stream::iter(steps).buffered(PUBLISH_IN_FLIGHT).try_collect().await?;
        let count = |verdicts: &[Verdict]| outcomes.iter().filter(|o| verdicts.contains(&o.result())).count() as u64;
        let manifest = v1::OutcomeManifest { outputs: outcomes.iter().map(wire_outcome).collect() };
        // Durable before the ledger names its digest.
        let blob = self.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await?;
        let done = Done {
            key: publish.key.clone(),
            blob: blob.digest.to_vec(),
            blob_size: blob.size,
            published: count(&[Verdict::Published, Verdict::Kept]),
            conflict: count(&[Verdict::Conflict, Verdict::Refused]),
            removed: count(&[Verdict::Deleted]),
            at_ms: ingle_daemon::clock::unix_ms(),
            outcomes: outcomes.clone(),
        };
        store.append(LogSegment { seq: 0, publish: None, done: Some(done.clone()) }).await?;
        for outcome in &outcomes {
            self.meters.publish(outcome.result());
        }
        let left: Vec<_> = publish.intents.iter().map(|intent| desk.tidy(intent)).collect();
        futures::stream::iter(left).buffer_unordered(PUBLISH_IN_FLIGHT).collect::<()>().await;
        Ok(done)
    }

    /// A publish that is over may have left names of ours behind, if it was killed right then.
    async fn tidy_again(&self, place: &Place, request: &Request, key: &str) {
        let Ok(manifest) = self.blobs.message::<v1::ResultManifest>("manifest", &request.manifest).await else {
            return;
        };
        for output in manifest.outputs {
            let trash = names::trash_name(request.job.as_str(), request.attempt, key, &output.name);
            settle::tidy(place, &output.staged_name, Some(&trash)).await;
        }
    }

    /// Notes where a job's scan looks, for its publishes.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn note_job(&self, place: &Place, job: &JobId, record: &JobRecord) -> Result<(), Problem> {
        let sealed = file::write_whole(&place.export, &place.temporary(), &frame::encode(record)).await?;
        Ok(sealed.replace(&place.job(job)).await?)
    }

    async fn job_record(&self, place: &Place, job: &JobId) -> Result<JobRecord, Problem> {
        Ok(read_record(&*place.export, &place.job(job)).await?.unwrap_or_default())
    }

    /// How many path buckets a place's embeddings have: `wanted` at the first use, and the same for good.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn embed_buckets(&self, place: &Place, wanted: u32) -> Result<u32, Problem> {
        let held = self.places.get(&place.object);
        let _alone = held.lock().await;
        let path = place.constants();
        if let Some(Constants { embed_buckets }) = read_record(&*place.export, &path).await? {
            return Ok(embed_buckets.clamp(1, crate::limits::BUCKETS_MAX));
        }
        let data = frame::encode(&Constants { embed_buckets: wanted });
        let sealed = file::write_whole(&place.export, &place.temporary(), &data).await?;
        match sealed.name(&path).await? {
            file::Named::New => Ok(wanted),
            file::Named::Taken => {
                sealed.discard().await;
                let found: Option<Constants> = read_record(&*place.export, &path).await?;
                Ok(found.map_or(wanted, |c| c.embed_buckets.clamp(1, crate::limits::BUCKETS_MAX)))
            }
        }
    }

    /// Runs `work` while nothing is published to the place.
    pub async fn undisturbed<T>(&self, place: &Object, work: impl Future<Output = T>) -> T {
        let held = self.places.get(place);
        let _alone = held.lock().await;
        work.await
    }
}

async fn read_record<M: prost::Message + Default>(
    export: &dyn Export,
    path: &ObjectPath,
) -> Result<Option<M>, Problem> {
    match export.stat(path).await {
        Err(ExportError::NotFound(_)) => return Ok(None),
        other => other?,
    };
    let data = file::read_whole(export, path, RECORD_BYTES_MAX).await?;
    frame::decode(path, &data).map(Some)
}

fn response(done: &Done) -> v1::PublishResponse {
    v1::PublishResponse {
        outcomes: Some(v1::BlobRef { digest: done.blob.clone().into(), size: done.blob_size }),
        published: done.published,
        conflict: done.conflict,
        removed: done.removed,
    }
}

fn wire_outcome(outcome: &Outcome) -> v1::OutputOutcome {
    let (wire, reason) = match outcome.result() {
        Verdict::Published => (v1::ItemOutcome::Published, outcome.reason.clone()),
        Verdict::Kept => (v1::ItemOutcome::Published, "unchanged".to_owned()),
        Verdict::Deleted => (v1::ItemOutcome::Deleted, outcome.reason.clone()),
        Verdict::Conflict | Verdict::Refused | Verdict::Unspecified => {
            (v1::ItemOutcome::Conflict, outcome.reason.clone())
        }
    };
    v1::OutputOutcome {
        name: outcome.name.clone().into(),
        outcome: wire.into(),
        reason,
        conflict_name: outcome.conflict_name.clone().into(),
    }
}

/// Reads a `PublishRequest`, all but its place.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field.
pub fn check(wire: &v1::PublishRequest) -> Result<Request, Problem> {
    let digest = |field: &str, bytes: &[u8]| {
        if bytes.is_empty() || bytes.len() == 32 {
            Ok(bytes.to_vec())
        } else {
            Err(Problem::invalid(field, format!("a BLAKE3 digest has 32 bytes, got {}", bytes.len())))
        }
    };
    let kind = choice("kind", wire.kind, v1::JobKind::as_str_name)?;
    Ok(Request {
        epoch: wire.epoch.ok_or_else(|| Problem::missing("epoch"))?.into(),
        job: JobId::parse(&wire.job_id)?,
        attempt: wire.attempt,
        manifest: wire.manifest.clone().ok_or_else(|| Problem::missing("manifest"))?,
        model: digest("model_digest", &wire.model_digest)?,
        parameters: digest("parameters_digest", &wire.parameters_digest)?,
        kind,
    })
}

/// The answer when a task of ours ended without one.
#[must_use]
pub fn lost(what: &str) -> Problem {
    Problem::new(ErrorCode::ShuttingDown, format!("{what} was ended before it was done; ask again"))
}
