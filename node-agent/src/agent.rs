//! The node's own state: who it is, what it holds, what it runs; and what the coordinator's messages do to it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use ingle_daemon::{OnFailure, Tasks, trace};
use ingle_membership::Identity;
use ingle_proto::v1::{self, assign::Work, work_response::Message};
use ingle_proto::{ErrorCode, Problem};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::epoch::EpochGuard;
use crate::error::Failure;
use crate::executor::Totals;
use crate::leaving::Leaving;
use crate::limits;
use crate::loaded::Loaded;
use crate::metrics::{AttemptLabels, NodeMetrics};
use crate::outbox::{Keep, Outbox};
use crate::parsing::Parsers;
use crate::pipeline::{self, Attempt, Outcome};
use crate::spool::Spool;
use crate::weights::{Cache, Catalogue};

/// Why calls are handed back when the node ends.
const LEAVING: &str = "this node is stopping";

struct Running {
    token: v1::AttemptToken,
    interactive: bool,
    cancel: CancellationToken,
    reason: Arc<Mutex<String>>,
    /// Of a generation: what another leader would need.
    stream: Option<v1::RunningStream>,
}

#[derive(Default)]
struct Table {
    running: BTreeMap<u64, Running>,
    finished: VecDeque<u64>,
    /// Generations whose end a leader may not have heard of, and when that was.
    ended: VecDeque<(Instant, v1::RunningStream)>,
}

/// The node.
pub struct Agent {
    /// Who it is.
    pub identity: Identity,
    /// The highest epoch seen.
    pub epochs: EpochGuard,
    /// For people.
    pub name: String,
    /// What the machine has.
    pub capacity: v1::Capacity,
    /// Models seen.
    pub catalogue: Arc<Catalogue>,
    /// Models in memory.
    pub loaded: Arc<Loaded>,
    /// Files on the local disk.
    pub cache: Arc<Cache>,
    /// Opens documents.
    pub parsers: Parsers,
    /// Holds documents while they are read.
    pub spool: Spool,
    /// What the coordinator must hear.
    pub outbox: Outbox,
    /// Work done so far.
    pub totals: Arc<Totals>,
    /// What is counted.
    pub metrics: NodeMetrics,
    /// Owns what is spawned.
    pub tasks: Tasks,
    /// Takes nothing new, as the coordinator says.
    draining: AtomicBool,
    /// Takes nothing new because the process ends, whatever the coordinator says; and how it takes its leave.
    pub(crate) leaving: Leaving,
    table: Mutex<Table>,
}

/// The parts that [`Agent::new`] puts together.
pub struct Parts {
    /// Who it is.
    pub identity: Identity,
    /// The highest epoch seen.
    pub epochs: EpochGuard,
    /// For people.
    pub name: String,
    /// What the machine has.
    pub capacity: v1::Capacity,
    /// Models seen.
    pub catalogue: Arc<Catalogue>,
    /// Models in memory.
    pub loaded: Arc<Loaded>,
    /// Files on the local disk.
    pub cache: Arc<Cache>,
    /// Opens documents.
    pub parsers: Parsers,
    /// Holds documents while they are read.
    pub spool: Spool,
    /// Work done so far.
    pub totals: Arc<Totals>,
    /// What is counted.
    pub metrics: NodeMetrics,
    /// Owns what is spawned.
    pub tasks: Tasks,
}

impl Agent {
    /// Runs nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            identity: parts.identity,
            epochs: parts.epochs,
            name: parts.name,
            capacity: parts.capacity,
            catalogue: parts.catalogue,
            loaded: parts.loaded,
            cache: parts.cache,
            parsers: parts.parsers,
            spool: parts.spool,
            outbox: Outbox::default(),
            totals: parts.totals,
            metrics: parts.metrics,
            tasks: parts.tasks,
            draining: AtomicBool::new(false),
            leaving: Leaving::default(),
            table: Mutex::default(),
        }
    }

    /// The first message of a stream: who we are and what we run.
    #[must_use]
    pub fn welcome(&self) -> v1::Welcome {
        let (mut running, streams): (Vec<v1::AttemptToken>, Vec<v1::RunningStream>) = {
            let table = self.lock();
            let fresh = table.ended.iter().filter(|(at, _)| at.elapsed() < limits::FRAMES_KEPT);
            let streams = table.running.values().filter_map(|running| running.stream.clone());
            let tokens = table.running.values().map(|running| running.token.clone());
            (tokens.collect(), streams.chain(fresh.map(|(_, stream)| stream.clone())).collect())
        };
        // Finished while nobody listened: their results follow on this stream.
        for token in self.outbox.results() {
            if !running.iter().any(|other| other.attempt == token.attempt) {
                running.push(token);
            }
        }
        v1::Welcome {
            node_id: self.identity.node_id().to_string(),
            incarnation: self.identity.incarnation().to_owned(),
            name: self.name.clone(),
            version: ingle_daemon::version().to_owned(),
            capacity: Some(self.capacity.clone()),
            models: self.catalogue.infos(),
            loaded: self.loaded.infos(),
            running,
            streams,
            evictions: self.loaded.evictions(),
        }
    }

    /// Drops from the outbox what nobody will need any more: frames of what still runs may be needed by another leader.
    pub(crate) fn expire_outbox(&self, now: Instant) {
        let running: std::collections::BTreeSet<u64> = self.lock().running.keys().copied().collect();
        self.outbox.expire(now, |attempt| running.contains(&attempt));
    }

    /// Starts an attempt, or says why not. One that is known already is left alone.
    pub fn assign(self: &Arc<Self>, assign: v1::Assign) {
        let Some(token) = assign.token.clone() else {
            tracing::warn!("a dispatch without a token was ignored");
            return;
        };
        let interactive = matches!(assign.work, Some(Work::Embed(_) | Work::Generate(_) | Work::Ocr(_)));
        let stream = match &assign.work {
            // An older coordinator doesn't name calls.
            Some(Work::Generate(work)) if assign.call > 0 => {
                Some(v1::RunningStream { token: Some(token.clone()), call: assign.call, work: Some(work.clone()) })
            }
            _ => None,
        };
        let number = token.attempt;
        let cancel = CancellationToken::new();
        let reason = Arc::new(Mutex::new(String::new()));
        let refusal = {
            let mut table = self.lock();
            if table.running.contains_key(&number) || table.finished.contains(&number) {
                return;
            }
            let most = limits::attempts_max(self.capacity.slots);
            if self.draining() {
                Some(Failure::node(ErrorCode::ShuttingDown, "this node is being drained", Duration::from_secs(1)))
            } else if table.running.len() >= most {
                Some(Failure::node(
                    ErrorCode::Overloaded,
                    format!("this node runs {most} attempts already"),
                    Duration::from_millis(500),
                ))
            } else {
                let (token, cancel, reason) = (token.clone(), cancel.clone(), Arc::clone(&reason));
                let running = Running { token, interactive, cancel, reason, stream };
                table.running.insert(number, running);
                None
            }
        };
        if let Some(failure) = refusal {
            self.push_failed(token, &failure, interactive);
            return;
        }
        self.metrics.running.inc();
        let span = trace::span_with_parent(&assign.traceparent);
        span.record("job", token.job_id.as_str()).record("attempt", number);
        let agent = Arc::clone(self);
        let work = async move {
            agent.run(assign, token, interactive, &cancel, &reason).await;
            Ok::<(), std::convert::Infallible>(())
        };
        self.tasks.spawn("attempt", OnFailure::Log, work.instrument(span));
    }

    async fn run(
        self: &Arc<Self>,
        assign: v1::Assign,
        token: v1::AttemptToken,
        interactive: bool,
        cancel: &CancellationToken,
        reason: &Mutex<String>,
    ) {
        let number = token.attempt;
        let kind = pipeline::label(&assign);
        let attempt = Attempt::new(Arc::clone(self), token.clone(), &assign);
        let deadline = deadline(assign.within_ms, token.deadline_ms);
        // The work's own memory is dropped before its end is told, so that models are idle by then.
        let ended = tokio::select! {
            ended = AssertUnwindSafe(pipeline::run(attempt, assign)).catch_unwind() => ended.unwrap_or_else(|_| {
                Err(Failure::item(ErrorCode::ComputeFailed, "the node's own code panicked over this work"))
            }),
            () = cancel.cancelled() => {
                let why = reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // A call that is in the way of our own end isn't cancelled by anybody: it goes on elsewhere.
                Err(match why.as_str() {
                    LEAVING => Failure::node(ErrorCode::ShuttingDown, LEAVING, Duration::from_millis(100)),
                    why => Failure::cancelled(why),
                })
            }
            () = tokio::time::sleep_until(deadline) => {
                // Never the work's fault: our clock may be wrong, and the coordinator judges lateness by its own.
                let kind = if interactive { v1::FailureKind::Cancelled } else { v1::FailureKind::Node };
                Err(Failure::new(kind, ErrorCode::Deadline, "the attempt's deadline passed"))
            }
        };
        {
            let mut table = self.lock();
            if let Some(stream) = table.running.remove(&number).and_then(|running| running.stream)
                && matches!(ended, Ok(Outcome::Streamed))
            {
                table.ended.push_back((Instant::now(), stream));
                while table.ended.len() > limits::ENDED_STREAMS_KEPT {
                    table.ended.pop_front();
                }
            }
            table.finished.push_back(number);
            while table.finished.len() > limits::FINISHED_REMEMBERED {
                table.finished.pop_front();
            }
        }
        self.metrics.running.dec();
        let outcome = match &ended {
            Ok(_) => "done",
            Err(failure) => outcome_label(failure.kind),
        };
        self.metrics.attempts.get_or_create(&AttemptLabels { kind, outcome }).inc();
        match ended {
            Ok(Outcome::Complete(complete)) => {
                self.outbox.push(number, Keep::UntilTaken, Message::Complete(complete));
                self.loaded.note_change();
            }
            Ok(Outcome::Embedded(done)) => self.outbox.push(number, Keep::AMinute, Message::Embed(done)),
            Ok(Outcome::Read(done)) => self.outbox.push(number, Keep::AMinute, Message::Ocr(done)),
            Ok(Outcome::Streamed) => {}
            Err(failure) => {
                tracing::debug!(attempt = number, reason = %failure, "attempt failed");
                self.push_failed(token, &failure, interactive);
            }
        }
    }

    fn push_failed(&self, token: v1::AttemptToken, failure: &Failure, interactive: bool) {
        let number = token.attempt;
        let message = v1::Failed {
            token: Some(token),
            kind: failure.kind.into(),
            code: failure.code().as_str().to_owned(),
            message: failure.problem.message.clone(),
            retry_after_ms: failure
                .problem
                .retry_after
                .map_or(0, |delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
        };
        let keep = if interactive { Keep::AMinute } else { Keep::UntilTaken };
        self.outbox.push(number, keep, Message::Failed(message));
    }

    /// Ends an attempt. One that has ended already is forgotten.
    pub fn cancel(&self, attempt: u64, why: &str) {
        let table = self.lock();
        match table.running.get(&attempt) {
            Some(running) => {
                why.clone_into(&mut running.reason.lock().unwrap_or_else(PoisonError::into_inner));
                running.cancel.cancel();
            }
            None => {
                drop(table);
                self.outbox.forget(attempt);
            }
        }
    }

    /// Carries out a command in the background and answers it.
    pub fn load(self: &Arc<Self>, command: v1::LoadCommand) {
        let agent = Arc::clone(self);
        self.tasks.spawn("load command", OnFailure::Log, async move {
            let model = command.model.unwrap_or_default();
            let done = match agent.loaded.acquire(&model).await {
                Ok(lease) => v1::CommandDone {
                    request: command.request,
                    ok: true,
                    memory_bytes: lease.handle.memory_bytes(),
                    load_ms: u64::try_from(lease.load.as_millis()).unwrap_or(u64::MAX),
                    ..Default::default()
                },
                Err(failure) => refused(command.request, &failure.problem),
            };
            agent.outbox.push(0, Keep::AMinute, Message::Command(done));
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// As [`Agent::load`].
    pub fn unload(self: &Arc<Self>, command: v1::UnloadCommand) {
        let agent = Arc::clone(self);
        self.tasks.spawn("unload command", OnFailure::Log, async move {
            let done = match agent.loaded.unload(&command.model.unwrap_or_default().name).await {
                Ok(memory_bytes) => {
                    v1::CommandDone { request: command.request, ok: true, memory_bytes, ..Default::default() }
                }
                Err(problem) => refused(command.request, &problem),
            };
            agent.outbox.push(0, Keep::AMinute, Message::Command(done));
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Takes no new work; batches end after the item they are at. Or takes work again.
    pub fn set_draining(&self, draining: bool) {
        if self.draining.swap(draining, Ordering::AcqRel) != draining {
            tracing::info!(draining, "drain");
        }
    }

    /// Takes no new work until the process has ended, which it shall within this time; the coordinator is told.
    pub fn leave(&self, within: Duration) {
        self.leaving.begin(within);
        if let Some(message) = self.leaving.message() {
            self.outbox.push(0, Keep::Now, message);
        }
    }

    /// Whether the coordinator may still be getting ready for our end.
    #[must_use]
    pub fn waits_to_go(&self) -> bool {
        self.outbox.listening() && self.leaving.waits()
    }

    /// Says the last word, and waits a moment for the answer: until then the coordinator may believe that we have work.
    pub async fn say_goodbye(&self) {
        if !self.outbox.listening() || !self.leaving.answered() {
            return;
        }
        self.outbox.push(0, Keep::Now, Message::Goodbye(v1::Goodbye {}));
        let heard = async {
            while self.outbox.listening() && !self.leaving.farewell() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(limits::FAREWELL_WITHIN, heard).await.is_err() {
            tracing::warn!(within = ?limits::FAREWELL_WITHIN, "the coordinator didn't answer our goodbye");
        }
    }

    /// Whether it takes no new work.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire) || self.leaving.begun()
    }

    /// Attempts running: all, and those that a person waits for.
    #[must_use]
    pub fn running(&self) -> (usize, usize) {
        let table = self.lock();
        (table.running.len(), table.running.values().filter(|running| running.interactive).count())
    }

    /// Hands all attempts of calls back, for the coordinator to move them.
    pub fn hand_back_calls(&self) {
        self.cancel_interactive(LEAVING);
    }

    /// Ends all attempts of calls.
    pub fn cancel_interactive(&self, why: &str) {
        for running in self.lock().running.values().filter(|running| running.interactive) {
            why.clone_into(&mut running.reason.lock().unwrap_or_else(PoisonError::into_inner));
            running.cancel.cancel();
        }
    }

    /// Tells the coordinator which models there are now.
    pub fn tell_models(&self) {
        let seen = v1::ModelsSeen {
            models: self.catalogue.infos(),
            loaded: self.loaded.infos(),
            memory_reserved: self.loaded.reserved(),
            evictions: self.loaded.evictions(),
        };
        self.outbox.push(0, Keep::Now, Message::Models(seen));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(request: u64, problem: &Problem) -> v1::CommandDone {
    v1::CommandDone {
        request,
        ok: false,
        code: problem.code.as_str().to_owned(),
        message: problem.message.clone(),
        ..Default::default()
    }
}

fn outcome_label(kind: v1::FailureKind) -> &'static str {
    match kind {
        v1::FailureKind::Item => "item",
        v1::FailureKind::Storage => "storage",
        v1::FailureKind::Model => "model",
        v1::FailureKind::Node => "node",
        v1::FailureKind::Cancelled => "cancelled",
        v1::FailureKind::Input => "input",
        v1::FailureKind::Unspecified => "unspecified",
    }
}

/// When to give up: so many milliseconds from now, else (0: an older coordinator) at Unix milliseconds; far away for 0.
fn deadline(within_ms: i64, unix_ms: i64) -> Instant {
    let far = Duration::from_secs(30 * 24 * 3600);
    let left = match (within_ms, unix_ms) {
        (1.., _) => within_ms,
        (_, 1..) => unix_ms.saturating_sub(ingle_daemon::clock::unix_ms()),
        _ => return Instant::now() + far,
    };
    Instant::now() + Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(far)
}
