//! A node's `Node.Work` stream: opened again whenever it breaks, its messages turned into events.

use std::time::Duration;

use ingle_daemon::backoff::Backoff;
use ingle_daemon::grpc::{self, ConnectOptions};
use ingle_membership::NodeRecord;
use ingle_proto::v1::node_client::NodeClient;
use ingle_proto::v1::{self, generate_response::Frame, work_request, work_response::Message};
use ingle_proto::{ErrorCode, NodeId, Problem};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::Sessions;
use super::link::{Link, OUTGOING_MAX};
use crate::core::{Attached, Event};

/// How long a node may take to answer a new stream, and then to welcome us.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// First and longest wait before the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Largest message from a node: 2048 vectors of 4096 dimensions, and some room.
const MESSAGE_BYTES: usize = 40 << 20;

struct Open {
    node: NodeId,
    link: std::sync::Arc<Link>,
    stream: u64,
    inbound: Streaming<v1::WorkResponse>,
}

/// Keeps the stream open until stopped, or until it breaks when the node is leaving.
pub(super) async fn keep(
    sessions: &Sessions,
    record: &NodeRecord,
    stop: &CancellationToken,
    leaving: &CancellationToken,
) {
    let deps = &sessions.0.deps;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut stale_told = false;
    let mut left = None;
    loop {
        let opened = tokio::select! {
            () = stop.cancelled() => break,
            () = deps.tasks.shutdown().wait() => break,
            opened = open(sessions, record) => opened,
        };
        match opened {
            Ok(mut open) => {
                backoff.reset();
                stale_told = false;
                let problem = tokio::select! {
                    () = stop.cancelled() => Problem::new(ErrorCode::Cancelled, "the session was ended"),
                    () = deps.tasks.shutdown().wait() => Problem::new(ErrorCode::ShuttingDown, "we are stopping"),
                    problem = pump(sessions, &mut open) => problem,
                };
                tracing::info!(node = %open.node, %problem, "the stream to the node ended");
                let order = open.link.order.lock().await;
                if open.link.detach(open.stream) {
                    let detached = deps.handle.send(Event::NodeDetached { node: open.node.clone() }).await;
                    // Once this is answered, nothing more is dispatched to the stream that was.
                    if detached.is_err() || deps.handle.query(|_, _| ()).await.is_err() {
                        break;
                    }
                }
                drop(order);
                left = Some(open.node.clone());
            }
            Err(problem) if problem.code == ErrorCode::EpochStale && !stale_told => {
                stale_told = true;
                tracing::error!(node = record.id, %problem, "a newer coordinator leads this node");
            }
            Err(problem) => {
                if backoff.attempt() == 0 {
                    tracing::warn!(node = record.id, address = record.work_address, %problem, "no stream to the node");
                } else {
                    tracing::debug!(node = record.id, address = record.work_address, %problem, "no stream to the node");
                }
            }
        }
        if leaving.is_cancelled() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = leaving.cancelled() => break,
            () = deps.tasks.shutdown().wait() => break,
            () = tokio::time::sleep(backoff.next_random()) => {}
        }
    }
    if leaving.is_cancelled() {
        // It was heard of as long as its stream lived; now it is gone.
        stop.cancel();
        if let Some(node) = left {
            let _ = sessions.tell_left(node).await;
        }
    }
}

async fn open(sessions: &Sessions, record: &NodeRecord) -> Result<Open, Problem> {
    let deps = &sessions.0.deps;
    let silent = |_| Problem::new(ErrorCode::Deadline, format!("the node didn't answer within {OPEN_WITHIN:?}"));
    let channel = grpc::connect_lazy(&record.work_address, &deps.tls, &ConnectOptions::default())
        .map_err(|error| Problem::new(ErrorCode::NoNode, error.to_string()))?;
    let mut client = NodeClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let (outgoing, requests) = mpsc::channel(OUTGOING_MAX);
    let hello = work_request::Message::Hello(hello(sessions));
    let _ = outgoing.try_send(v1::WorkRequest { message: Some(hello) });
    let work = tokio::time::timeout(OPEN_WITHIN, client.work(ReceiverStream::new(requests)));
    let mut inbound = work.await.map_err(silent)?.map_err(|status| Problem::from_status(&status))?.into_inner();
    let first = tokio::time::timeout(OPEN_WITHIN, inbound.message())
        .await
        .map_err(silent)?
        .map_err(|status| Problem::from_status(&status))?;
    let Some(Message::Welcome(welcome)) = first.and_then(|first| first.message) else {
        return Err(Problem::new(
            ErrorCode::Internal,
            "the node's first message is no Welcome; is it of another version?",
        ));
    };
    let node = NodeId::parse(&welcome.node_id)?;
    if !record.id.is_empty() && record.id != welcome.node_id {
        return Err(Problem::new(
            ErrorCode::IdentityInUse,
            format!("expected node {}, but {node} answers at {}", record.id, record.work_address),
        ));
    }
    let link = sessions.link_of(&node);
    let running: Vec<u64> = welcome.running.iter().map(|token| token.attempt).collect();
    // Before its frames come, which follow on this stream.
    let adopted = deps.calls.adopt(welcome.streams, deps.epoch);
    let order = link.order.lock().await;
    // From here on it can be sent to: the core may dispatch as soon as it hears of the node.
    let (stream, lost) = link.attach(outgoing, &welcome.incarnation, &running);
    for attempt in lost {
        let problem =
            Problem::new(ErrorCode::NoNode, format!("the connection to node {node} broke before it was sent"))
                .retry_after(Duration::ZERO);
        let kind = v1::FailureKind::Node;
        deps.handle.send(Event::Failed { node: node.clone(), attempt, kind, problem }).await?;
    }
    tracing::info!(%node, name = welcome.name, running = running.len(), "node attached");
    let attached = Attached {
        node: node.clone(),
        incarnation: welcome.incarnation,
        name: welcome.name,
        address: record.work_address.clone(),
        version: welcome.version,
        capacity: welcome.capacity.unwrap_or_default(),
        models: welcome.models,
        loaded: welcome.loaded,
        running,
        adopted,
    };
    deps.handle.send(Event::NodeAttached(Box::new(attached))).await?;
    deps.handle.send(Event::Evicted { node: node.clone(), evictions: welcome.evictions }).await?;
    drop(order);
    Ok(Open { node, link, stream, inbound })
}

fn hello(sessions: &Sessions) -> v1::Hello {
    let deps = &sessions.0.deps;
    v1::Hello {
        epoch: Some(deps.epoch.into()),
        coordinator_id: deps.coordinator_id.clone(),
        gateway: deps.gateway.endpoint().unwrap_or_default(),
        answers_leaving: true,
    }
}

/// Takes messages until the stream breaks, and says how.
async fn pump(sessions: &Sessions, open: &mut Open) -> Problem {
    // A gateway chosen since the start counts as a change: one Hello too many is better than one too few.
    let mut gateway = sessions.0.deps.gateway.changes();
    let mut gateway_lives = true;
    loop {
        let message = tokio::select! {
            changed = gateway.changed(), if gateway_lives => {
                gateway_lives = changed.is_ok();
                if gateway_lives && let Err(problem) = open.link.send(work_request::Message::Hello(hello(sessions))) {
                    return problem;
                }
                continue;
            }
            message = open.inbound.message() => message,
        };
        let taken = match message {
            Ok(Some(message)) => take(sessions, open, message.message).await,
            Ok(None) => Err(Problem::new(ErrorCode::NoNode, "the node ended the stream")),
            Err(status) => Err(Problem::from_status(&status)),
        };
        if let Err(problem) = taken {
            return problem;
        }
    }
}

async fn take(sessions: &Sessions, open: &Open, message: Option<Message>) -> Result<(), Problem> {
    let (deps, node) = (&sessions.0.deps, open.node.clone());
    let event = match message {
        Some(Message::Progress(progress)) => {
            Event::Progress { attempt: progress.attempt, items: progress.items_done, bytes: progress.bytes_done }
        }
        Some(Message::Complete(complete)) => {
            if let Some(token) = &complete.token {
                open.link.ended(token.attempt);
            }
            Event::Complete { node, complete: Box::new(complete) }
        }
        Some(Message::Failed(failed)) => {
            let kind = failed.kind();
            let Some(token) = failed.token else { return Ok(()) };
            open.link.ended(token.attempt);
            let code = ErrorCode::parse(&failed.code).unwrap_or(ErrorCode::Internal);
            let mut problem = Problem::new(code, failed.message);
            if let Ok(delay) = u64::try_from(failed.retry_after_ms)
                && delay > 0
            {
                problem = problem.retry_after(Duration::from_millis(delay));
            }
            Event::Failed { node, attempt: token.attempt, kind, problem }
        }
        Some(Message::Models(seen)) => {
            deps.handle.send(Event::Evicted { node: node.clone(), evictions: seen.evictions }).await?;
            Event::Models { node, models: seen.models, loaded: seen.loaded, reserved: seen.memory_reserved }
        }
        Some(Message::Embed(done)) => {
            if let Some(token) = &done.token {
                open.link.ended(token.attempt);
            }
            return deps.calls.embedded(done).await;
        }
        Some(Message::Ocr(done)) => {
            if let Some(token) = &done.token {
                open.link.ended(token.attempt);
            }
            return deps.calls.read(done).await;
        }
        Some(Message::Frame(frame)) => {
            if matches!(frame.frame.as_ref().and_then(|f| f.frame.as_ref()), Some(Frame::Finished(_))) {
                open.link.ended(frame.attempt);
            }
            return deps.calls.frame(frame).await;
        }
        Some(Message::Command(done)) => {
            open.link.answer(done);
            return Ok(());
        }
        Some(Message::Leaving(leaving)) => {
            Event::Leaving { node, within_ms: u64::try_from(leaving.within_ms).unwrap_or(0) }
        }
        Some(Message::Goodbye(_)) => Event::Goodbye { node },
        // A second Welcome says nothing new; what we don't know comes from a newer node.
        Some(Message::Welcome(_)) | None => return Ok(()),
    };
    deps.handle.send(event).await
}
