//! The composition root: puts the parts together, serves, drains, and ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_daemon::{OnFailure, Serving, Settings as _, Shutdown, Tasks, grpc};
use ingle_engine::Engine;
use ingle_membership::{Identity, Membership};
use ingle_proto::v1::node_server::NodeServer;
use ingle_proto::{DESCRIPTORS, MESSAGE_BYTES_MAX};
use tokio::net::TcpListener;

use crate::agent::{Agent, Parts};
use crate::beat;
use crate::config::NodeConfig;
use crate::device::Device;
use crate::epoch::EpochGuard;
use crate::error::StartError;
use crate::executor::Totals;
use crate::heat::Sensors;
use crate::loaded::{LoadSettings, Loaded};
use crate::metrics::NodeMetrics;
use crate::parsing::Parsers;
use crate::register;
use crate::session::{NodeService, housekeeping};
use crate::spool::Spool;
use crate::storage::Gateways;
use crate::watchdog;
use crate::weights::{Cache, Catalogue};

/// How long results may take to be heard once all work has ended.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How long engines may take to come back from their last step.
const ENGINES_STOP: Duration = Duration::from_secs(5);

/// Bound sockets, so that callers know the ports.
pub struct Listeners {
    /// For `Node.Work`.
    pub work: TcpListener,
    /// For `Node.Beat`; served by a runtime of its own.
    pub beat: std::net::TcpListener,
}

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// [`StartError::System`] names which.
    pub async fn bind(config: &NodeConfig) -> Result<Self, StartError> {
        let work = grpc::bind(config.listen).await.map_err(|source| StartError::System { what: "listen", source })?;
        let beat = grpc::bind(config.beat_listen)
            .await
            .and_then(TcpListener::into_std)
            .map_err(|source| StartError::System { what: "beat_listen", source })?;
        Ok(Self { work, beat })
    }

    fn addresses(&self) -> Result<(SocketAddr, SocketAddr), StartError> {
        let system = |source| StartError::System { what: "address of a listener", source };
        Ok((self.work.local_addr().map_err(system)?, self.beat.local_addr().map_err(system)?))
    }
}

/// What a node is made of.
pub struct Deps {
    /// Checked settings.
    pub config: NodeConfig,
    /// Opens models.
    pub engine: Arc<dyn Engine>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Says what we wait for.
    pub readiness: Readiness,
    /// Bound sockets.
    pub listeners: Listeners,
    /// Where to register; `None` takes it from the settings.
    pub membership: Option<Arc<dyn Membership>>,
    /// Program that parses documents when its first argument is [`crate::PARSE_WORKER`].
    pub parser: PathBuf,
}

/// Runs a node until `shutdown`, or until the coordinator lets it go after a drain. Then it drains: running batches end after
/// the item they are at, calls go back, results are heard, the coordinator's farewell too, and the node leaves membership. `serving` is called once with the addresses (`grpc`, `beat`).
///
/// # Errors
/// [`StartError`] if it can't start, or if a task it can't do without ends.
pub fn run(deps: Deps, shutdown: Shutdown, serving: Serving) -> BoxFuture<'static, Result<(), StartError>> {
    // Boxed, so that all that a node does is compiled with this crate and not once more with whoever runs one.
    Box::pin(work(deps, shutdown, serving))
}

async fn work(deps: Deps, shutdown: Shutdown, serving: Serving) -> Result<(), StartError> {
    let Deps { config, engine, metrics, readiness, listeners, membership, parser } = deps;
    config.check()?;
    let (work_address, beat_address) = listeners.addresses()?;
    // Our tasks outlive the call for shutdown by the time that draining takes.
    let ending = Shutdown::new();
    let tasks = Tasks::new(ending.clone());
    let agent = Arc::new(assemble(&config, engine, &metrics, tasks.clone(), parser).await?);

    let beats = beat::start(Arc::clone(&agent), listeners.beat, &config.tls, ending.clone())?;
    serve(&agent, listeners.work, &config, &ending)?;
    let catalogue = Arc::clone(&agent.catalogue);
    let stop = ending.clone();
    tasks.spawn("models", OnFailure::Shutdown, async move {
        tokio::select! {
            () = catalogue.run() => {}
            () = stop.wait() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let (keeper, stop) = (Arc::clone(&agent), ending.clone());
    tasks.spawn("housekeeping", OnFailure::Shutdown, async move {
        tokio::select! {
            () = housekeeping(keeper) => {}
            () = stop.wait() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let (sensors, stop) = (Sensors::new(Path::new("/"), agent.metrics.heat.clone()), ending.clone());
    tasks.spawn("sensors", OnFailure::Log, async move {
        tokio::select! {
            () = sensors.run() => {}
            () = stop.wait() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let stalled = Arc::new(OnceLock::new());
    let bound = Duration::from_secs(config.engine_stall_s);
    let watched = watchdog::run(Arc::clone(&agent), bound, Arc::clone(&stalled), shutdown.clone());
    let stop = ending.clone();
    tasks.spawn("watchdog", OnFailure::Shutdown, async move {
        tokio::select! {
            () = watched => {}
            () = stop.wait() => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let registration = register::start(&config, &agent, membership, work_address, beat_address).await?;
    serving(BTreeMap::from([("grpc".to_owned(), work_address), ("beat".to_owned(), beat_address)]))
        .map_err(|source| StartError::System { what: "ready file", source })?;
    readiness.ready();

    tokio::select! {
        () = shutdown.wait() => {}
        () = ending.wait() => {}
        () = agent.leaving.asked() => {}
    }
    readiness.waiting("draining");
    drain(&agent, config.drain_deadline(), &ending).await;
    registration.leave().await;
    let left = tasks.shutdown_all(Duration::from_secs(2)).await;
    if !left.is_empty() {
        tracing::debug!(?left, "dropped at the end");
    }
    if tokio::time::timeout(ENGINES_STOP, agent.loaded.stop()).await.is_err() {
        tracing::warn!("an engine did not come back from its step; the process ends without it");
    }
    let _ = tokio::task::spawn_blocking(move || beats.join()).await;
    match tasks.failure().or_else(|| stalled.get().cloned()) {
        Some(reason) => Err(StartError::Task(reason)),
        None => Ok(()),
    }
}

async fn assemble(
    config: &NodeConfig,
    engine: Arc<dyn Engine>,
    metrics: &Metrics,
    tasks: Tasks,
    parser: PathBuf,
) -> Result<Agent, StartError> {
    let (state_dir, cache_dir, cache_bytes_max) =
        (config.state_dir.clone(), config.cache_dir.clone(), config.cache_bytes_max);
    let (threads, budget) = (config.compute_threads(), Duration::from_millis(config.measure_ms));
    let opened = tokio::task::spawn_blocking(move || {
        let identity = Identity::open(&state_dir)?;
        let epochs = EpochGuard::open(&state_dir)?;
        let cache = Cache::open(&cache_dir, cache_bytes_max)?;
        Ok::<_, StartError>((identity, epochs, cache, Device::measure(threads, budget)))
    });
    let (identity, epochs, cache, device) =
        opened.await.map_err(|error| StartError::Task(format!("looking at the machine panicked: {error}")))??;
    let capacity = device.capacity(config.reserve_bytes(device.memory_bytes), engine.backend(), config.slots);
    tracing::info!(
        node = %identity.node_id(),
        cpu = %device.cpu,
        cores = device.cores,
        memory = device.memory_bytes,
        bandwidth = device.memory_bandwidth,
        compute = device.compute_f32,
        "the machine"
    );
    let metrics = NodeMetrics::new(metrics);
    let cache = Arc::new(cache);
    let catalogue = Arc::new(Catalogue::new(
        config.models_root()?,
        Arc::clone(&engine),
        Arc::clone(&cache),
        Gateways::new(config.tls.clone(), metrics.clone()),
        config.gateway.clone(),
        config.context,
    ));
    let totals = Arc::new(Totals::default());
    let settings =
        LoadSettings { threads, context: config.context, slots: config.slots, budget: capacity.memory_budget_bytes };
    let loaded = Loaded::new(engine, Arc::clone(&catalogue), settings, Arc::clone(&totals), metrics.clone());
    Ok(Agent::new(Parts {
        identity,
        epochs,
        name: config.display_name(),
        capacity,
        catalogue,
        loaded: Arc::new(loaded),
        cache,
        parsers: Parsers::new(parser, config.parsers(), config.document_bytes_max),
        spool: Spool::new(&config.cache_dir, config.document_bytes_max, config.spool_bytes_max),
        totals,
        metrics,
        tasks,
    }))
}

fn serve(agent: &Arc<Agent>, listener: TcpListener, config: &NodeConfig, ending: &Shutdown) -> Result<(), StartError> {
    let (reflection, reflection_alpha) = grpc::reflection(&[DESCRIPTORS]);
    let (reporter, health) = grpc::health();
    let service = NodeServer::new(NodeService::new(Arc::clone(agent)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let routes = grpc::server(&grpc::ServerLimits::default(), ingle_daemon::tls::server_tls(&config.tls)?)?
        .add_service(service)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha);
    let ending = ending.clone();
    agent.tasks.spawn("gRPC", OnFailure::Shutdown, async move {
        reporter.set_serving::<NodeServer<NodeService>>().await;
        routes.serve_with_incoming_shutdown(grpc::incoming(listener), ending.wait()).await
    });
    Ok(())
}

/// Lets running work end: batches after their item, calls for half the time, then they go back to be moved. For as long the
/// coordinator may load elsewhere what only we hold.
async fn drain(agent: &Agent, deadline: Duration, ending: &Shutdown) {
    agent.leave(deadline);
    let begun = tokio::time::Instant::now();
    let mut handed_back = false;
    while begun.elapsed() < deadline && !ending.begun() {
        let (running, interactive) = agent.running();
        if running == 0 && (!agent.waits_to_go() || begun.elapsed() > deadline / 2) {
            break;
        }
        if interactive > 0 && !handed_back && begun.elapsed() > deadline / 2 {
            handed_back = true;
            agent.hand_back_calls();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (running, _) = agent.running();
    if running > 0 {
        tracing::warn!(running, "attempts did not end in time; they will be given to other nodes");
    }
    let ended = tokio::time::Instant::now();
    while ended.elapsed() < LAST_WORDS && agent.outbox.listening() && agent.outbox.untaken() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if !ending.begun() {
        agent.say_goodbye().await;
    }
    // What was taken from the outbox still has to leave the socket.
    tokio::time::sleep(Duration::from_millis(50)).await;
}
