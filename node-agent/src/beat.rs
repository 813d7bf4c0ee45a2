//! `Node.Beat`: liveness on a thread, a runtime and a listener of its own, so that no work can starve it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt as _;
use ingle_daemon::Shutdown;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{ServerLimits, server};
use ingle_proto::v1;
use ingle_proto::v1::node_server::{Node, NodeServer};
use ingle_proto::{Epoch, ErrorCode, Problem};
use tonic::{Request, Response, Status, Streaming};

use crate::agent::Agent;
use crate::error::StartError;
use crate::session::Answers;

/// Answers to beats.
pub(crate) type BeatStream = Answers<v1::BeatResponse>;

struct BeatService {
    agent: Arc<Agent>,
}

#[tonic::async_trait]
impl Node for BeatService {
    type WorkStream = Answers<v1::WorkResponse>;
    type BeatStream = BeatStream;

    async fn work(&self, _: Request<Streaming<v1::WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        Err(Problem::new(ErrorCode::Unimplemented, "this is the port for beats; work is taken on the other one").into())
    }

    async fn beat(&self, request: Request<Streaming<v1::BeatRequest>>) -> Result<Response<BeatStream>, Status> {
        Ok(Response::new(answer(Arc::clone(&self.agent), request.into_inner())))
    }
}

/// Answers each beat; one from an older leader ends the stream.
pub(crate) fn answer(agent: Arc<Agent>, beats: Streaming<v1::BeatRequest>) -> BeatStream {
    Box::pin(beats.map(move |beat| {
        let beat = beat?;
        agent.epochs.check(Epoch::from(beat.epoch.ok_or_else(|| Problem::missing("epoch"))?))?;
        let (running, _) = agent.running();
        let heat = agent.metrics.heat.summary();
        Ok(v1::BeatResponse {
            node_id: agent.identity.node_id().to_string(),
            incarnation: agent.identity.incarnation().to_owned(),
            sequence: beat.sequence,
            steps: agent.totals.steps.load(Ordering::Relaxed),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            busy_ms: agent.totals.busy_us.load(Ordering::Relaxed) / 1000,
            memory_available: crate::device::memory_available(),
            draining: agent.draining(),
            temperature_celsius: heat.temperature_celsius,
            power_watts: heat.power_watts,
            memory_pressure: heat.memory_pressure,
            throttled: heat.throttled,
            executors: agent.loaded.progress(),
        })
    }))
}

/// Serves beats on a thread of their own until shutdown.
///
/// # Errors
/// [`StartError`] if the thread or its listener can't be had.
pub(crate) fn start(
    agent: Arc<Agent>,
    listener: std::net::TcpListener,
    tls: &TlsConfig,
    shutdown: Shutdown,
) -> Result<std::thread::JoinHandle<()>, StartError> {
    let system = |what| move |source| StartError::System { what, source };
    listener.set_nonblocking(true).map_err(system("listener of beats"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("runtime of beats"))?;
    let tls = ingle_daemon::tls::server_tls(tls)?;
    std::thread::Builder::new()
        .name("beats".into())
        .spawn(move || {
            let served = runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| error.to_string())?;
                let mut server = server(&ServerLimits::default(), tls).map_err(|error| error.to_string())?;
                let routes = server.add_service(NodeServer::new(BeatService { agent }));
                let incoming = ingle_daemon::grpc::incoming(listener);
                // Streams of beats have no end of their own: they are dropped when the process is asked to stop.
                tokio::select! {
                    served = routes.serve_with_incoming(incoming) => served.map_err(|error| error.to_string()),
                    () = shutdown.wait() => Ok(()),
                }
            });
            if let Err(reason) = served {
                tracing::error!(%reason, "beats are no longer served: the coordinator will take this node for lost");
            }
            runtime.shutdown_background();
        })
        .map_err(system("thread of beats"))
}
