//! Beats of all nodes, on one thread, one runtime and connections of their own: no amount of work here can starve them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, ConnectOptions};
use ingle_daemon::{OnFailure, Shutdown};
use ingle_membership::NodeRecord;
use ingle_proto::v1::node_client::NodeClient;
use ingle_proto::{Epoch, ErrorCode, NodeId, Problem, v1};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Deps;
use super::heat::Heat;
use crate::core::Event;
use crate::limits;

/// How often each node is asked.
const EVERY: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Answers that wait for the driver; later ones are dropped, for the next says the same.
const ANSWERS_MAX: usize = 1_024;

/// A step that takes longer keeps new work of its model away: steps take some tens of milliseconds, and hardly ever seconds.
const STALL_MS: u64 = 30_000;
/// Executors of one beat that are looked at.
const EXECUTORS_MAX: usize = 512;

struct Watch {
    id: String,
    address: String,
    stop: CancellationToken,
}

/// Speaks to the thread.
pub(super) struct Beats(mpsc::Sender<Watch>);

impl Beats {
    pub(super) fn start(deps: &Deps, heat: &Heat) -> std::io::Result<Self> {
        let (watches, watched) = mpsc::channel(limits::NODES_MAX);
        let (events, mut heard) = mpsc::channel(ANSWERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shutdown = deps.tasks.shutdown().clone();
        let (tls, epoch, heat) = (deps.tls.clone(), deps.epoch, heat.clone());
        std::thread::Builder::new().name("beats".into()).spawn(move || {
            runtime.block_on(run(watched, events, heat, tls, epoch, shutdown));
        })?;
        let handle = deps.handle.clone();
        deps.tasks.spawn("beats", OnFailure::Log, async move {
            while let Some(event) = heard.recv().await {
                if handle.send(event).await.is_err() {
                    break;
                }
            }
            Ok::<(), Infallible>(())
        });
        Ok(Self(watches))
    }

    /// Asks a node for beats until stopped.
    pub(super) fn watch(&self, record: &NodeRecord, stop: &CancellationToken) {
        let watch = Watch { id: record.id.clone(), address: record.beat_address.clone(), stop: stop.clone() };
        if self.0.try_send(watch).is_err() {
            // Without beats the node is never ready, which says the rest.
            tracing::error!(node = record.id, "no beats: the thread for them has ended or is far behind");
        }
    }
}

async fn run(
    mut watched: mpsc::Receiver<Watch>,
    events: mpsc::Sender<Event>,
    heat: Heat,
    tls: TlsConfig,
    epoch: Epoch,
    shutdown: Shutdown,
) {
    let mut nodes = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.wait() => return,
            watch = watched.recv() => {
                let Some(watch) = watch else { return };
                let (heard, tls) = (Heard { events: events.clone(), heat: heat.clone() }, tls.clone());
                nodes.spawn(async move {
                    tokio::select! {
                        () = watch.stop.cancelled() => {}
                        () = keep(&watch, &heard, &tls, epoch) => {}
                    }
                });
            }
            Some(_) = nodes.join_next(), if !nodes.is_empty() => {}
        }
    }
}

/// Where answers go.
struct Heard {
    events: mpsc::Sender<Event>,
    heat: Heat,
}

async fn keep(watch: &Watch, heard: &Heard, tls: &TlsConfig, epoch: Epoch) {
    let mut told = false;
    loop {
        let problem = beat(watch, heard, tls, epoch).await;
        if problem.code == ErrorCode::EpochStale && !told {
            told = true;
            tracing::error!(node = watch.id, address = watch.address, %problem, "a newer coordinator leads this node");
        }
        tracing::debug!(node = watch.id, address = watch.address, %problem, "beats broke off");
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks until something goes wrong, and says what.
async fn beat(watch: &Watch, heard: &Heard, tls: &TlsConfig, epoch: Epoch) -> Problem {
    match try_beat(watch, heard, tls, epoch).await {
        Ok(never) => match never {},
        Err(problem) => problem,
    }
}

async fn try_beat(watch: &Watch, heard: &Heard, tls: &TlsConfig, epoch: Epoch) -> Result<Infallible, Problem> {
    let silent = |_| Problem::new(ErrorCode::Deadline, format!("no beat within {ANSWER_WITHIN:?}"));
    let options = ConnectOptions { connect_timeout: ANSWER_WITHIN, ..ConnectOptions::default() };
    let channel = grpc::connect_lazy(&watch.address, tls, &options)
        .map_err(|error| Problem::new(ErrorCode::NoNode, error.to_string()))?;
    let mut client = NodeClient::new(channel);
    let (requests, outgoing) = mpsc::channel(1);
    let mut sequence = 1;
    let request = |sequence| v1::BeatRequest { epoch: Some(epoch.into()), sequence };
    let _ = requests.try_send(request(sequence));
    let opened = tokio::time::timeout(ANSWER_WITHIN, client.beat(ReceiverStream::new(outgoing)));
    let mut answers = opened.await.map_err(silent)?.map_err(|status| Problem::from_status(&status))?.into_inner();
    // The first answer tells, also that nothing stands still any more.
    let mut stalled = true;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let answer = tokio::time::timeout(ANSWER_WITHIN, answers.message())
            .await
            .map_err(silent)?
            .map_err(|status| Problem::from_status(&status))?
            .ok_or_else(|| Problem::new(ErrorCode::NoNode, "the node ended the stream of beats"))?;
        let node = NodeId::parse(&answer.node_id)?;
        if !watch.id.is_empty() && watch.id != answer.node_id {
            return Err(Problem::new(
                ErrorCode::IdentityInUse,
                format!("expected node {}, but {node} answers at {}", watch.id, watch.address),
            ));
        }
        heard.heat.told(&node, &answer);
        let stands: BTreeMap<String, u64> = answer
            .executors
            .iter()
            .take(EXECUTORS_MAX)
            .filter(|executor| executor.step_ms >= STALL_MS || executor.abandoned)
            .map(|executor| (executor.model.clone(), executor.step_ms))
            .collect();
        if (!stands.is_empty() || stalled)
            && heard.events.try_send(Event::Stalled { node: node.clone(), stalls: stands.clone() }).is_ok()
        {
            stalled = !stands.is_empty();
        }
        let _ = heard.events.try_send(Event::Beat { node, incarnation: answer.incarnation, busy_ms: answer.busy_ms });
        ticks.tick().await;
        sequence += 1;
        let sent = tokio::time::timeout(ANSWER_WITHIN, requests.send(request(sequence))).await.map_err(silent)?;
        sent.map_err(|_| Problem::new(ErrorCode::NoNode, "the node closed the stream of beats"))?;
    }
}
