//! Carries out what the core asks for: dispatches at once, walks and publishing in tasks of their own.

mod room;
mod walks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt as _;
use ingle_daemon::past::Past;
use ingle_daemon::{OnFailure, Tasks};
use ingle_proto::storage::display_bytes;
use ingle_proto::v1::{self, assign, input_spec::Input, scan_response, work_request::Message};
use ingle_proto::{Epoch, ErrorCode, NodeId, Problem};

use crate::calls::Calls;
use crate::core::{BatchWork, Effect, Event, PublishedBatch, Work};
use crate::driver::{Handle, Perform};
use crate::gateway::Gateway;
use crate::limits;
use crate::sessions::Sessions;
use room::Room;
use walks::Walks;

/// Walks at once in all, as many as a gateway takes: the others would wait there, silent, and be taken for broken.
const SCANS_MAX: usize = 4;
/// Of those on one export.
const SCANS_PER_EXPORT: usize = 3;
/// Manifests published at once in all.
const PUBLISHES_MAX: usize = 32;
/// Of those on one export.
const PUBLISHES_PER_EXPORT: usize = 8;
/// How often a walk's progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Largest manifest that is read to count documents, in bytes.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Who asks where nobody is named.
const PRINCIPAL: &str = "local";

/// See the module.
#[derive(Clone)]
pub struct Effects(Arc<Inner>);

struct Inner {
    handle: Handle,
    sessions: Sessions,
    calls: Calls,
    gateway: Gateway,
    tasks: Tasks,
    scans: Room,
    walks: Walks,
    publishes: Room,
}

impl Effects {
    /// Over everything that effects reach.
    #[must_use]
    pub fn new(handle: Handle, sessions: Sessions, calls: Calls, gateway: Gateway, tasks: Tasks) -> Self {
        let scans = Room::new(SCANS_MAX, SCANS_PER_EXPORT);
        let publishes = Room::new(PUBLISHES_MAX, PUBLISHES_PER_EXPORT);
        let walks = Walks::default();
        Self(Arc::new(Inner { handle, sessions, calls, gateway, tasks, scans, walks, publishes }))
    }

    fn tell(&self, event: Event) {
        let handle = self.0.handle.clone();
        self.0.tasks.spawn("event", OnFailure::Log, async move { handle.send(event).await });
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = Result<(), Problem>> + Send + 'static) {
        let stop = self.0.tasks.shutdown().wait();
        self.0.tasks.spawn(name, OnFailure::Log, async move {
            // What is cut off by our end is asked for again by the next leader.
            tokio::select! {
                () = stop => Ok(()),
                done = work => done,
            }
        });
    }

    fn dispatch(&self, node: NodeId, assign: v1::Assign) {
        let attempt = assign.token.as_ref().map_or(0, |token| token.attempt);
        if let Err(problem) = self.0.sessions.send(&node, Message::Assign(assign)) {
            self.tell(Event::Failed { node, attempt, kind: v1::FailureKind::Node, problem });
        }
    }
}

impl Perform for Effects {
    fn perform(&self, effect: Effect, epoch: Epoch) {
        match effect {
            Effect::Scan { job, scan, mut request } => {
                request.epoch = Some(epoch.into());
                let (effects, stop) = (self.clone(), self.0.walks.begin(job, scan));
                self.spawn("scan", async move {
                    // Nothing is kept of a walk here: the gateway ends it when nobody listens.
                    let ended = tokio::select! {
                        () = stop.cancelled() => Ok(()),
                        ended = effects.0.scan(job, scan, *request) => ended,
                    };
                    effects.0.walks.ended(job, scan);
                    ended
                });
            }
            Effect::StopScan { job, scan } => self.0.walks.stop(job, scan),
            Effect::Publish { job, batch, mut request } => {
                request.epoch = Some(epoch.into());
                let effects = self.clone();
                self.spawn("publish", async move { effects.0.publish(job, batch, *request).await });
            }
            Effect::Dispatch { node, attempt, allowed_ms, model, priority, queued_ms, work } => {
                let placed = SystemTime::now();
                let within_ms = i64::try_from(allowed_ms.saturating_add(limits::NODE_GRACE_MS)).unwrap_or(i64::MAX);
                let mut token = v1::AttemptToken {
                    attempt,
                    epoch: Some(epoch.into()),
                    node_id: node.to_string(),
                    deadline_ms: ingle_daemon::clock::unix_ms().saturating_add(within_ms),
                    principal: PRINCIPAL.into(),
                    ..Default::default()
                };
                let mut named = 0;
                let (work, caller) = match work {
                    Work::Batch { job, batch } => {
                        token.job_id = ingle_proto::job::job_id(job).to_string();
                        token.batch = batch.batch;
                        token.principal.clone_from(&batch.principal);
                        token.readable = readable(&batch.spec);
                        token.place.clone_from(&batch.spec.output);
                        (assigned(*batch), String::new())
                    }
                    Work::Call { call } => match self.0.calls.dispatch(call, attempt) {
                        Some(work) => {
                            named = call.0;
                            work
                        }
                        // The caller left; the core hears of it by itself.
                        None => return,
                    },
                };
                // A millisecond less than it waited: the caller's own span must not begin after its parts.
                let since = placed - Duration::from_millis(queued_ms.saturating_sub(1));
                let (number, place) = (attempt.to_string(), node.to_string());
                let about =
                    [("job", token.job_id.as_str()), ("attempt", &number), ("node", &place), ("model", &model.name)];
                let dispatched = Past::begun(&caller, "dispatch", since, &about);
                dispatched.phase("queue", since, placed, &[]);
                let traceparent = dispatched.traceparent();
                let assign = v1::Assign {
                    token: Some(token),
                    priority: priority.into(),
                    model: Some(model),
                    gateway: self.0.gateway.endpoint().unwrap_or_default(),
                    work: Some(work),
                    queued_us: i64::try_from(queued_ms.saturating_mul(1000)).unwrap_or(i64::MAX),
                    traceparent,
                    within_ms,
                    call: named,
                };
                self.dispatch(node, assign);
                dispatched.phase("place", placed, SystemTime::now(), &[("node", &place)]);
            }
            Effect::CancelAttempt { node, attempt, reason } => {
                let cancel = Message::Cancel(v1::CancelAttempt { attempt, reason });
                if let Err(problem) = self.0.sessions.send(&node, cancel) {
                    tracing::debug!(%node, attempt, %problem, "an attempt was not told to stop; its result is ignored");
                }
            }
            Effect::SetDrain { node, drain } => {
                if let Err(problem) =
                    self.0.sessions.send(&node, Message::Drain(v1::DrainCommand { drain, leave: false }))
                {
                    tracing::debug!(%node, %problem, "the node hears of it when its stream is back");
                }
            }
            Effect::Leave { node } => {
                let leave = v1::DrainCommand { drain: true, leave: true };
                if let Err(problem) = self.0.sessions.send(&node, Message::Drain(leave)) {
                    tracing::debug!(%node, %problem, "the node is told to end again later");
                }
            }
            Effect::Farewell { node } => {
                if let Err(problem) = self.0.sessions.send(&node, Message::Farewell(v1::Farewell {})) {
                    tracing::debug!(%node, %problem, "the node ends without our answer");
                }
            }
            Effect::Warm { node, model, to, within_ms } => {
                let effects = self.clone();
                self.spawn("warm", async move { effects.0.warm(node, model, to, within_ms).await });
            }
            Effect::CallFailed { call, problem } => self.0.calls.failed(call, &problem),
            // The driver's own.
            Effect::Reply { .. } | Effect::JobChanged { .. } => {}
        }
    }
}

impl Inner {
    async fn scan(&self, job: u64, scan: u64, request: v1::ScanRequest) -> Result<(), Problem> {
        let _place = self.scans.enter(exports(&request)).await;
        match self.walk(job, scan, request).await {
            Ok(()) => Ok(()),
            Err(Walk::Failed(problem)) => self.handle.send(Event::ScanFailed { job, scan, problem }).await,
            Err(Walk::Ended(problem)) => Err(problem),
        }
    }

    async fn walk(&self, job: u64, scan: u64, request: v1::ScanRequest) -> Result<(), Walk> {
        let stream = self.gateway.scan(request).await.map_err(Walk::Failed)?;
        futures::pin_mut!(stream);
        let mut told: Option<Instant> = None;
        while let Some(message) = stream.next().await {
            let event = match message.map_err(Walk::Failed)?.message {
                Some(scan_response::Message::Progress(progress)) => {
                    if told.is_some_and(|told| told.elapsed() < PROGRESS_EVERY) {
                        continue;
                    }
                    told = Some(Instant::now());
                    Event::ScanProgress { job, scan, entries: progress.entries }
                }
                Some(scan_response::Message::Segment(info)) => Event::ScanSegment { job, scan, info: Box::new(info) },
                Some(scan_response::Message::Done(done)) => {
                    let done = Event::ScanDone { job, scan, done: Box::new(done) };
                    return self.handle.send(done).await.map_err(Walk::Ended);
                }
                None => continue,
            };
            self.handle.send(event).await.map_err(Walk::Ended)?;
        }
        Err(Walk::Failed(Problem::new(ErrorCode::StorageProtocol, "the gateway's walk broke off before its end")))
    }

    /// Loads a model on another node than the one that leaves.
    async fn warm(&self, node: NodeId, model: v1::ModelRef, to: NodeId, within_ms: u64) -> Result<(), Problem> {
        let (name, within) = (model.name.clone(), Duration::from_millis(within_ms));
        let loading = self.sessions.command(&to, model, true);
        let result = match tokio::time::timeout(within, loading).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("it was not loaded within {within:?}"))),
        };
        match &result {
            Ok(()) => tracing::info!(model = name, %to, leaves = %node, "a hot model is loaded elsewhere"),
            Err(problem) => {
                tracing::warn!(model = name, %to, leaves = %node, %problem, "a hot model isn't loaded there")
            }
        }
        self.handle.send(Event::Warmed { node, model: name, to, result }).await
    }

    async fn publish(&self, job: u64, batch: u64, request: v1::PublishRequest) -> Result<(), Problem> {
        let _place = self.publishes.enter(request.place.iter().map(|place| place.export.clone()).collect()).await;
        let (attempt, kind, manifest) = (request.attempt, request.kind(), request.manifest.clone());
        let result = match self.gateway.publish(request).await {
            Ok(response) => {
                let outputs = u32::try_from(response.conflict).unwrap_or(u32::MAX);
                let outcomes = response.outcomes.unwrap_or_default();
                let conflict = match manifest {
                    Some(manifest) if outputs > 0 && kind != v1::JobKind::Embed => {
                        match self.documents_in_conflict(&manifest, &outcomes).await {
                            Ok(documents) => documents,
                            Err(problem) => {
                                tracing::warn!(job, batch, %problem, "conflicts are counted as files, not documents");
                                outputs
                            }
                        }
                    }
                    _ => outputs,
                };
                Ok(PublishedBatch { outcomes, conflict })
            }
            Err(problem) => Err(problem),
        };
        self.handle.send(Event::Published { job, batch, attempt, result }).await
    }

    async fn documents_in_conflict(&self, manifest: &v1::BlobRef, outcomes: &v1::BlobRef) -> Result<u32, Problem> {
        let outcomes: v1::OutcomeManifest = self.gateway.message(outcomes, MANIFEST_BYTES_MAX).await?;
        let manifest: v1::ResultManifest = self.gateway.message(manifest, MANIFEST_BYTES_MAX).await?;
        Ok(u32::try_from(in_conflict(&manifest, &outcomes).len()).unwrap_or(u32::MAX))
    }
}

enum Walk {
    /// The gateway's problem.
    Failed(Problem),
    /// Nobody listens any more.
    Ended(Problem),
}

/// Names of the documents whose output met another file, with what is told of the first.
pub(crate) fn in_conflict(
    manifest: &v1::ResultManifest,
    outcomes: &v1::OutcomeManifest,
) -> BTreeMap<bytes::Bytes, String> {
    let met = outcomes.outputs.iter().filter(|output| output.outcome() == v1::ItemOutcome::Conflict);
    let met: BTreeMap<&bytes::Bytes, &v1::OutputOutcome> = met.map(|output| (&output.name, output)).collect();
    let mut documents = BTreeMap::new();
    for output in &manifest.outputs {
        let Some(outcome) = met.get(&output.name) else { continue };
        for input in output.inputs.iter().filter(|input| !input.gone) {
            documents.entry(input.name.clone()).or_insert_with(|| kept_for(outcome));
        }
    }
    documents
}

/// What a person is told of a result that could not have its name.
pub(crate) fn kept_for(outcome: &v1::OutputOutcome) -> String {
    let mut words = format!("{}: {}", display_bytes(&outcome.name), outcome.reason);
    if !outcome.conflict_name.is_empty() {
        words.push_str(&format!("; our result lies beside it as {}", display_bytes(&outcome.conflict_name)));
    }
    words
}

/// What an attempt at a job may read: its input, texts that stand for it, and what lies in its place already.
fn readable(spec: &v1::JobSpec) -> Vec<v1::ObjectRef> {
    let (input, texts) = (input_object(spec.input.as_ref()), ingle_proto::job::text_from(spec));
    input.into_iter().chain(texts).chain(&spec.output).cloned().collect()
}

fn input_object(input: Option<&v1::InputSpec>) -> Option<&v1::ObjectRef> {
    match input?.input.as_ref()? {
        Input::Object(object) | Input::Tree(object) => Some(object),
        Input::Glob(glob) => glob.base.as_ref(),
        Input::Inline(_) | Input::Payload(_) => None,
    }
}

/// Exports that a walk looks at: any of them may hang.
fn exports(request: &v1::ScanRequest) -> BTreeSet<String> {
    let objects = input_object(request.input.as_ref()).into_iter().chain(&request.text_from).chain(&request.place);
    objects.map(|object| object.export.clone()).collect()
}

fn assigned(batch: BatchWork) -> assign::Work {
    let spec = batch.spec;
    if batch.join {
        let output_name = if batch.document.is_none() && spec.kind() == v1::JobKind::Embed {
            format!("part-{:05}.parquet", batch.bucket).into_bytes().into()
        } else {
            bytes::Bytes::new()
        };
        return assign::Work::Join(v1::JoinWork {
            bucket: batch.bucket,
            segments: batch.segments,
            manifests: batch.manifests,
            output_name,
            document: batch.document,
        });
    }
    let payload = match spec.input.and_then(|input| input.input) {
        Some(Input::Payload(blob)) => Some(blob),
        _ => None,
    };
    assign::Work::Batch(v1::BatchWork {
        kind: spec.kind,
        segment: batch.segments.into_iter().next(),
        first: batch.first,
        count: batch.count,
        payload,
        generate: spec.generate,
        embed: spec.embed,
        bucket: batch.bucket,
        pages: batch.pages,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_in_conflict_are_counted_once() {
        let input = |name: &'static str, gone| v1::Provenance { name: name.into(), gone, ..Default::default() };
        let output = |name: &'static str, inputs| v1::OutputResult { name: name.into(), inputs, ..Default::default() };
        let manifest = v1::ResultManifest {
            outputs: vec![
                output("a.txt", vec![input("a", false)]),
                output("a.json", vec![input("a", false), input("z", true)]),
                output("b.txt", vec![input("b", false)]),
            ],
            ..Default::default()
        };
        let outcome = |name: &'static str, outcome: v1::ItemOutcome| v1::OutputOutcome {
            name: name.into(),
            outcome: outcome.into(),
            reason: format!("why {name}"),
            conflict_name: "beside".into(),
        };
        let outcomes = v1::OutcomeManifest {
            outputs: vec![
                outcome("a.txt", v1::ItemOutcome::Conflict),
                outcome("a.json", v1::ItemOutcome::Conflict),
                outcome("b.txt", v1::ItemOutcome::Published),
            ],
        };
        let told = "a.txt: why a.txt; our result lies beside it as beside".to_owned();
        assert_eq!(in_conflict(&manifest, &outcomes), BTreeMap::from([("a".into(), told)]));
    }

    #[test]
    fn a_walk_stands_on_every_export_it_looks_at() {
        let object = |export: &str| Some(v1::ObjectRef { export: export.into(), path: "x".into() });
        let base = object("in");
        let glob = Input::Glob(v1::Glob { base, ..Default::default() });
        let request = v1::ScanRequest {
            input: Some(v1::InputSpec { input: Some(glob) }),
            place: object("out"),
            text_from: object("out"),
            ..Default::default()
        };
        assert_eq!(exports(&request), BTreeSet::from(["in".into(), "out".into()]));
        assert_eq!(exports(&v1::ScanRequest::default()), BTreeSet::new());
    }

    #[test]
    fn work_says_what_the_node_needs() {
        let blob = v1::BlobRef { digest: vec![1; 32].into(), size: 3 };
        let spec = v1::JobSpec {
            kind: v1::JobKind::Embed.into(),
            input: Some(v1::InputSpec { input: Some(Input::Payload(blob.clone())) }),
            output: Some(v1::ObjectRef { export: "docs".into(), path: "out".into() }),
            ..Default::default()
        };
        assert_eq!(readable(&spec), [spec.output.clone().unwrap()]);
        let work = |join, kind: v1::JobKind| BatchWork {
            batch: 1,
            spec: v1::JobSpec { kind: kind.into(), ..spec.clone() },
            principal: "local".into(),
            bucket: 7,
            first: 2,
            count: 3,
            segments: vec![blob.clone()],
            manifests: Vec::new(),
            join,
            pages: None,
            document: None,
        };
        let assign::Work::Batch(batch) = assigned(work(false, v1::JobKind::Embed)) else { panic!("a batch") };
        assert_eq!((batch.payload, batch.first, batch.count), (Some(blob.clone()), 2, 3));
        let name = |kind| match assigned(work(true, kind)) {
            assign::Work::Join(join) => join.output_name,
            _ => panic!("a join"),
        };
        assert_eq!(name(v1::JobKind::Embed), "part-00007.parquet");
        assert!(name(v1::JobKind::Generate).is_empty());
    }
}
