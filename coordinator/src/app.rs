//! The composition root: puts the parts together, leads, serves, and ends in the reverse order.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_daemon::{OnFailure, Serving, Settings as _, Shutdown, Tasks, grpc};
use ingle_membership::connect::{ConnectOptions, EtcdUser};
use ingle_membership::election::Candidate;
use ingle_membership::members::SETTLE;
use ingle_membership::registration::MEMBER_TTL;
use ingle_membership::serve::RegistryService;
use ingle_membership::{CoordinatorRecord, Identity, Membership, Memory, NodeRecord, Registration, connect};
use ingle_proto::v1::registry_server::RegistryServer;
use ingle_proto::v1::{cluster_server, inference_server, jobs_server, models_server};
use ingle_proto::{DESCRIPTORS, Epoch};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic_health::ServingStatus;

use crate::calls::Calls;
use crate::config::Config;
use crate::driver::{Driver, Handle};
use crate::effects::Effects;
use crate::error::RunError;
use crate::gateway::Gateway;
use crate::grpc::{Api, Parts};
use crate::leader;
use crate::members;
use crate::metrics::Meters;
use crate::sessions::{self, Sessions};
use crate::store::{JobStore, SqliteStore};

/// What a coordinator is made of.
pub struct Deps {
    /// Settings; checked again.
    pub config: Config,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Says what we wait for.
    pub readiness: Readiness,
    /// Bound, so that callers know the port.
    pub listener: TcpListener,
    /// Where members register; `None` takes it from the settings.
    pub membership: Option<Arc<dyn Membership>>,
}

/// How long tasks may take to end once gRPC is quiet.
const TASKS_END_WITHIN: Duration = Duration::from_secs(3);

/// Runs a coordinator until `shutdown`. `serving` is called once with the addresses (`grpc`).
///
/// # Errors
/// [`RunError`] if it can't start, or if something it can't do without ends.
pub fn run(deps: Deps, shutdown: Shutdown, serving: Serving) -> BoxFuture<'static, Result<(), RunError>> {
    // Boxed, so that all that a coordinator does is compiled with this crate and not once more with whoever runs one.
    Box::pin(async move {
        let circles = Circles::new();
        let outcome = lead(deps, shutdown, serving, &circles).await;
        // A task's failure says more than what came of it.
        circles.end().await?;
        outcome
    })
}

/// From opening the store until asked to stop; whatever it started in `circles` is then still to be ended.
async fn lead(deps: Deps, shutdown: Shutdown, serving: Serving, circles: &Circles) -> Result<(), RunError> {
    let Deps { config, metrics, readiness, listener, membership } = deps;
    config.check()?;
    let address =
        listener.local_addr().map_err(|source| RunError::System { what: "address of the listener", source })?;
    let (identity, store, opened) = open(&config).await?;
    let store: Arc<dyn JobStore> = Arc::new(store);
    let own = config.own_registry() && membership.is_none();
    let membership = match membership {
        Some(membership) => membership,
        None => members_of(&config, opened).await?,
    };
    let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
    let epoch = if own {
        opened
    } else {
        warn_of_others(&*membership, &identity.with_prefix("c")).await;
        readiness.waiting("standing for leader");
        let candidate = Candidate {
            id: identity.with_prefix("c"),
            incarnation: identity.incarnation().to_owned(),
            address: advertised.clone(),
        };
        let elected = leader::stand(Arc::clone(&membership), candidate, &*store, opened, &circles.leading);
        tokio::select! {
            elected = elected => elected?,
            () = shutdown.wait() => return Ok(()),
        }
    };
    let (chosen, endpoint) = watch::channel(config.gateway.clone());
    let gateway = Gateway::new(endpoint, config.tls.clone(), epoch);
    let (handle, inbox) = Handle::new(Arc::clone(&store));
    let calls = Calls::new(handle.clone(), circles.rind.clone());
    let sessions = Sessions::new(sessions::Deps {
        handle: handle.clone(),
        calls: calls.clone(),
        gateway: gateway.clone(),
        tls: config.tls.clone(),
        tasks: circles.rind.clone(),
        epoch,
        coordinator_id: identity.with_prefix("c"),
    })
    .map_err(|source| RunError::System { what: "thread for beats", source })?;
    let effects = Effects::new(handle.clone(), sessions.clone(), calls.clone(), gateway.clone(), circles.rind.clone());
    let driver = Driver::new(inbox, store, epoch, Arc::new(effects), Meters::new(&metrics), readiness.clone()).await?;
    circles.driving.spawn("driver", OnFailure::Shutdown, driver.run(circles.driving.shutdown().clone()));
    follow(&config, &membership, sessions.clone(), chosen, &circles.rind);

    // gRPC ends first and by itself: callers get their answers before what answers them is gone.
    let quiet = Shutdown::new();
    let api = Api::new(Parts { handle, calls, sessions, gateway, shutdown: quiet.clone() });
    let registry = own.then(|| RegistryService::new(Arc::clone(&membership), quiet.clone()).into_server());
    let served = serve(api, registry, listener, &config, &quiet, &circles.rind).await?;
    if !own {
        register(membership, &identity, advertised, &circles.rind);
    }
    serving(BTreeMap::from([("grpc".to_owned(), address)]))
        .map_err(|source| RunError::System { what: "ready file", source })?;
    readiness.ready();
    tokio::select! {
        () = shutdown.wait() => {}
        () = circles.broken() => {}
    }
    readiness.waiting("stopping");
    quiet.begin();
    if tokio::time::timeout(config.drain_deadline(), served).await.is_err() {
        tracing::warn!(after = ?config.drain_deadline(), "calls did not end in time and are dropped");
    }
    Ok(())
}

/// Tasks in the order in which they end: what is outside first, then what it stands on.
struct Circles {
    /// gRPC, sessions, effects, members.
    rind: Tasks,
    /// The driver: does what has come in by then.
    driving: Tasks,
    /// Leadership: let go when nothing is done in its name any more.
    leading: Tasks,
}

impl Circles {
    fn new() -> Self {
        let tasks = || Tasks::new(Shutdown::new());
        Self { rind: tasks(), driving: tasks(), leading: tasks() }
    }

    /// Ends when something we can't do without has failed.
    async fn broken(&self) {
        tokio::select! {
            () = self.rind.shutdown().wait() => {}
            () = self.driving.shutdown().wait() => {}
            () = self.leading.shutdown().wait() => {}
        }
    }

    async fn end(self) -> Result<(), RunError> {
        let circles = [&self.leading, &self.driving, &self.rind];
        let failure = circles.into_iter().find_map(Tasks::failure);
        for circle in circles.into_iter().rev() {
            let left = circle.shutdown_all(TASKS_END_WITHIN).await;
            if !left.is_empty() {
                tracing::debug!(?left, "dropped at the end");
            }
        }
        match failure.or_else(|| circles.into_iter().find_map(Tasks::failure)) {
            Some(reason) => Err(RunError::Task(reason)),
            None => Ok(()),
        }
    }
}

/// Starts the server; what it answers ends when the server has.
async fn serve(
    api: Api,
    registry: Option<RegistryServer<RegistryService>>,
    listener: TcpListener,
    config: &Config,
    quiet: &Shutdown,
    tasks: &Tasks,
) -> Result<oneshot::Receiver<()>, RunError> {
    let (reflection, reflection_alpha) = grpc::reflection(&[DESCRIPTORS]);
    let (reporter, health) = grpc::health();
    for name in [
        jobs_server::SERVICE_NAME,
        inference_server::SERVICE_NAME,
        cluster_server::SERVICE_NAME,
        models_server::SERVICE_NAME,
    ] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    let routes = grpc::server(&grpc::ServerLimits::default(), ingle_daemon::tls::server_tls(&config.tls)?)?
        .add_service(api.jobs())
        .add_service(api.inference())
        .add_service(api.cluster())
        .add_service(api.models())
        .add_optional_service(registry)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha);
    let (ended, served) = oneshot::channel::<()>();
    let quiet = quiet.wait();
    tasks.spawn("gRPC", OnFailure::Shutdown, async move {
        let _ended = ended;
        routes.serve_with_incoming_shutdown(grpc::incoming(listener), quiet).await
    });
    Ok(served)
}

/// Follows nodes and gateways, and tells of those that the settings name.
fn follow(
    config: &Config,
    membership: &Arc<dyn Membership>,
    sessions: Sessions,
    chosen: watch::Sender<Option<String>>,
    tasks: &Tasks,
) {
    for (work, beat) in config.static_nodes() {
        sessions.node_joined(NodeRecord {
            work_address: work.to_owned(),
            beat_address: beat.to_owned(),
            ..NodeRecord::default()
        });
    }
    let stop = tasks.shutdown().clone();
    let nodes = members::follow_nodes(Arc::clone(membership), Arc::new(sessions), stop.clone());
    tasks.spawn("nodes", OnFailure::Shutdown, async move {
        nodes.await;
        Ok::<(), Infallible>(())
    });
    let named = config.gateway.is_some();
    let membership = Arc::clone(membership);
    tasks.spawn("gateways", OnFailure::Shutdown, async move {
        if named {
            // Whoever listens for changes must not take silence for the end.
            stop.wait().await;
            drop(chosen);
        } else {
            members::follow_gateways(membership, chosen, stop).await;
        }
        Ok::<(), Infallible>(())
    });
}

/// Says who else is there: each has jobs of its own.
async fn warn_of_others(membership: &dyn Membership, own: &str) {
    match leader::others(membership, own).await {
        Ok(others) => {
            for other in others {
                tracing::warn!(
                    id = other.id,
                    address = other.address,
                    "another coordinator uses this etcd, with a job store of its own: whichever leads knows nothing of the \
                     other's jobs; run one per etcd (docs/operations/install.md)"
                );
            }
        }
        // The election meets the same trouble, and deals with it.
        Err(error) => tracing::debug!(%error, "whether other coordinators are there is not known"),
    }
}

/// Tells etcd where we are.
fn register(membership: Arc<dyn Membership>, identity: &Identity, address: String, tasks: &Tasks) {
    let record = CoordinatorRecord {
        id: identity.with_prefix("c"),
        incarnation: identity.incarnation().to_owned(),
        address,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        place: identity.place().to_owned(),
    };
    let (registration, _) = Registration::new(membership, record, MEMBER_TTL);
    tasks.spawn("registration", OnFailure::Shutdown, registration.run(tasks.shutdown().clone()));
}

/// Opens what is on disk, off the runtime.
async fn open(config: &Config) -> Result<(Identity, SqliteStore, Epoch), RunError> {
    let directory = config.state_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let (store, epoch) = SqliteStore::open(&directory)?;
        Ok((Identity::open(&directory)?, store, epoch))
    });
    opened.await.map_err(|error| RunError::Task(format!("opening {}: {error}", config.state_dir.display())))?
}

/// Where members register.
async fn members_of(config: &Config, epoch: Epoch) -> Result<Arc<dyn Membership>, RunError> {
    if config.own_registry() {
        // Greater than that of every start before, also when the store was restored under a newer generation.
        let start = (epoch.generation << 20).saturating_add(epoch.revision);
        return Ok(Arc::new(Memory::restarted(start, SETTLE)));
    }
    let etcd_user = match (&config.etcd_user, &config.etcd_password) {
        (Some(user), Some(password)) => Some(EtcdUser { user: user.clone(), password: password.clone() }),
        _ => None,
    };
    let options = ConnectOptions { tls: config.tls.clone(), etcd_user, ..ConnectOptions::default() };
    Ok(connect(&config.membership, &options).await?)
}

#[cfg(test)]
mod tests;
