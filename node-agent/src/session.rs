//! `Node.Work`: the leader's stream. A newer one of the same or a higher epoch takes its place; attempts go on regardless.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::Stream;
use ingle_daemon::OnFailure;
use ingle_proto::v1::{self, work_request, work_response::Message};
use ingle_proto::{Epoch, ErrorCode, Problem};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::Agent;
use crate::beat::{self, BeatStream};
use crate::limits;

/// The service.
#[derive(Clone)]
pub(crate) struct NodeService {
    agent: Arc<Agent>,
    /// Ends the stream that is there when another takes its place.
    current: Arc<Mutex<CancellationToken>>,
}

impl NodeService {
    /// Serves this node.
    #[must_use]
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent, current: Arc::default() }
    }
}

type WorkStream = ReceiverStream<Result<v1::WorkResponse, Status>>;

#[tonic::async_trait]
impl v1::node_server::Node for NodeService {
    type WorkStream = WorkStream;
    type BeatStream = BeatStream;

    async fn work(&self, request: Request<Streaming<v1::WorkRequest>>) -> Result<Response<WorkStream>, Status> {
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(limits::HELLO_WITHIN, inbound.message())
            .await
            .map_err(|_| Problem::new(ErrorCode::Deadline, "no Hello came within the first seconds of the stream"))??;
        let Some(work_request::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Problem::invalid("message", "the first message of a stream must be Hello").into());
        };
        let epoch = Epoch::from(hello.epoch.ok_or_else(|| Problem::missing("hello.epoch"))?);
        let agent = Arc::clone(&self.agent);
        // The epoch is on disk before it counts, and disks are slow.
        tokio::task::spawn_blocking(move || agent.epochs.admit(epoch))
            .await
            .map_err(|error| Problem::new(ErrorCode::Internal, format!("keeping the epoch panicked: {error}")))??;
        tracing::info!(%epoch, coordinator = %hello.coordinator_id, "a coordinator leads us");

        let ours = CancellationToken::new();
        let before = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, ours.clone())
        };
        before.cancel();
        let (answers, outbound) = mpsc::channel(limits::STREAM_MESSAGES);
        let agent = Arc::clone(&self.agent);
        self.agent.tasks.spawn("work stream", OnFailure::Log, async move {
            serve(&agent, inbound, answers, ours, epoch).await;
            Ok::<(), std::convert::Infallible>(())
        });
        self.agent.leaving.led(hello.answers_leaving);
        self.agent.catalogue.use_gateway(&hello.gateway);
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn beat(&self, request: Request<Streaming<v1::BeatRequest>>) -> Result<Response<BeatStream>, Status> {
        Ok(Response::new(beat::answer(Arc::clone(&self.agent), request.into_inner())))
    }
}

async fn serve(
    agent: &Arc<Agent>,
    mut inbound: Streaming<v1::WorkRequest>,
    answers: mpsc::Sender<Result<v1::WorkResponse, Status>>,
    ours: CancellationToken,
    epoch: Epoch,
) {
    // Attached before the welcome is made, so that what ends in between is told after it.
    let mut cursor = agent.outbox.attach();
    let welcome = v1::WorkResponse { message: Some(Message::Welcome(agent.welcome())) };
    let _ = answers.send(Ok(welcome)).await;
    // A leader that comes while we leave hears of it too; twice is harmless.
    if let Some(message) = agent.leaving.message() {
        let _ = answers.send(Ok(v1::WorkResponse { message: Some(message) })).await;
    }
    let write = async {
        while let Some(message) = agent.outbox.next(&mut cursor).await {
            if answers.send(Ok(v1::WorkResponse { message: Some(message) })).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        loop {
            match inbound.message().await {
                Ok(Some(request)) => {
                    // Another leader may have come on another stream since the last message.
                    if agent.epochs.check(epoch).is_err() {
                        return;
                    }
                    take(agent, request);
                }
                Ok(None) => return,
                Err(status) => {
                    tracing::debug!(%status, "the coordinator's stream broke");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
        () = ours.cancelled() => {
            let problem = Problem::new(ErrorCode::AttemptStale, "a newer stream took this one's place");
            let _ = answers.try_send(Err(problem.into()));
        }
        () = agent.tasks.shutdown().wait() => {
            let problem = Problem::new(ErrorCode::ShuttingDown, "this node is stopping");
            let _ = answers.try_send(Err(problem.into()));
        }
    }
    agent.outbox.detach(&cursor);
}

fn take(agent: &Arc<Agent>, request: v1::WorkRequest) {
    match request.message {
        Some(work_request::Message::Assign(assign)) => agent.assign(assign),
        Some(work_request::Message::Cancel(cancel)) => agent.cancel(cancel.attempt, &cancel.reason),
        Some(work_request::Message::Load(command)) => agent.load(command),
        Some(work_request::Message::Unload(command)) => agent.unload(command),
        Some(work_request::Message::Drain(command)) => {
            agent.set_draining(command.drain);
            if command.leave {
                tracing::info!("the coordinator waits for nothing here any more: ending");
                agent.leaving.let_go();
            }
        }
        Some(work_request::Message::Farewell(_)) => agent.leaving.hear_farewell(),
        Some(work_request::Message::Refresh(_)) => agent.catalogue.refresh_soon(),
        // A second Hello changes nothing but the gateway; what we don't know comes from a newer coordinator.
        Some(work_request::Message::Hello(hello)) => agent.catalogue.use_gateway(&hello.gateway),
        None => tracing::debug!("a message of an unknown kind was ignored"),
    }
}

/// Keeps the outbox and calls within their bounds, and tells of changes among models, until dropped.
pub(crate) async fn housekeeping(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last_heard = tokio::time::Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                agent.expire_outbox(tokio::time::Instant::now());
                agent.spool.sweep(tokio::time::Instant::now());
                if agent.catalogue.is_fetching() {
                    agent.tell_models();
                }
                if agent.outbox.listening() {
                    last_heard = tokio::time::Instant::now();
                } else if last_heard.elapsed() > limits::FRAMES_KEPT {
                    agent.cancel_interactive("no coordinator came back for it");
                }
            }
            () = agent.catalogue.changed.notified() => agent.tell_models(),
            () = agent.loaded.changed.notified() => agent.tell_models(),
        }
    }
}

/// A stream of answers, for signatures.
pub(crate) type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
