//! The composition root: puts the parts together, leads, serves, and ends in the reverse order.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ingle_daemon::backoff::Backoff;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_daemon::{OnFailure, Serving, Settings as _, Shutdown, Tasks, grpc};
use ingle_membership::connect::{ConnectOptions, EtcdUser};
use ingle_membership::election::{Candidate, Leadership};
use ingle_membership::members::SETTLE;
use ingle_membership::registration::MEMBER_TTL;
use ingle_membership::serve::RegistryService;
use ingle_membership::{CoordinatorRecord, Identity, Membership, Memory, NodeRecord, Registration, connect};
use ingle_proto::v1::registry_server::RegistryServer;
use ingle_proto::v1::{cluster_server, inference_server, jobs_server, models_server};
use ingle_proto::{DESCRIPTORS, Epoch};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::calls::Calls;
use crate::config::{Config, JobStoreKind};
use crate::driver::{Driver, Handle, Reader};
use crate::effects::Effects;
use crate::error::RunError;
use crate::front::{self, Following, Front};
use crate::gateway::Gateway;
use crate::grpc::{Api, Parts, Reach, jobs};
use crate::leader;
use crate::members;
use crate::metrics::{Meters, Reign};
use crate::sessions::{self, Sessions};
use crate::store::{ArchiveBounds, EtcdStore, JobStore, SqliteStore};

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
    let Some((identity, store, opened)) = open(&config, &readiness, &shutdown).await? else { return Ok(()) };
    let own = config.own_registry() && membership.is_none();
    let membership = match membership {
        Some(membership) => membership,
        None => members_of(&config, opened).await?,
    };
    if !own && config.job_store() == JobStoreKind::Sqlite {
        warn_of_others(&*membership, &identity.with_prefix("c")).await;
    }
    let reign = Reign::new(&metrics);
    let house = House { config, metrics, reign, readiness, identity, membership, store };

    // gRPC ends first and by itself: callers get their answers before what answers them is gone.
    let (quiet, handing_over) = (Shutdown::new(), Shutdown::new());
    let endpoint = house.follow_gateways(&circles.rind);
    let front = if own {
        Front::leading(house.command(opened, None, endpoint.clone(), circles, &quiet).await?)
    } else {
        Front::following(house.follow(opened, endpoint.clone(), circles, &handing_over))
    };
    let registry = own.then(|| RegistryService::new(Arc::clone(&house.membership), quiet.clone()).into_server());
    let served = serve(front.clone(), registry, listener, &house.config, &quiet, &circles.rind).await?;
    let advertised = house.config.advertise.clone().unwrap_or_else(|| address.to_string());
    if !own {
        register(Arc::clone(&house.membership), &house.identity, advertised.clone(), &circles.rind);
    }
    serving(BTreeMap::from([("grpc".to_owned(), address)]))
        .map_err(|source| RunError::System { what: "ready file", source })?;
    house.readiness.ready();
    let reign = async {
        if !own {
            let candidate = house.candidate(advertised);
            let membership = Arc::clone(&house.membership);
            let reign = leader::stand(membership, candidate, &*house.store, &circles.leading).await?;
            // Who watches from the store is told to watch again, and finds the leader here.
            handing_over.begin();
            front.lead(house.command(reign.epoch, Some(reign.leadership), endpoint, circles, &quiet).await?);
            circles.following.shutdown_all(TASKS_END_WITHIN).await;
        }
        std::future::pending::<Result<Infallible, RunError>>().await
    };
    let outcome = tokio::select! {
        () = shutdown.wait() => Ok(()),
        () = circles.broken() => Ok(()),
        failed = reign => failed.map(|never| match never {}),
    };
    house.readiness.waiting("stopping");
    handing_over.begin();
    quiet.begin();
    if tokio::time::timeout(house.config.drain_deadline(), served).await.is_err() {
        tracing::warn!(after = ?house.config.drain_deadline(), "calls did not end in time and are dropped");
    }
    outcome
}

/// What a coordinator has whether or not it leads.
struct House {
    config: Config,
    metrics: Metrics,
    reign: Reign,
    readiness: Readiness,
    identity: Identity,
    membership: Arc<dyn Membership>,
    store: Arc<dyn JobStore>,
}

type Chosen = watch::Receiver<Option<String>>;

impl House {
    fn candidate(&self, address: String) -> Candidate {
        let id = self.identity.with_prefix("c");
        Candidate { id, incarnation: self.identity.incarnation().to_owned(), address }
    }

    /// Puts together what leads: the core with its driver, sessions with nodes, the services. Elsewhere elected, it leads for
    /// as long as `leadership` lasts.
    async fn command(
        &self,
        epoch: Epoch,
        leadership: Option<Leadership>,
        endpoint: Chosen,
        circles: &Circles,
        quiet: &Shutdown,
    ) -> Result<Routes, RunError> {
        let gateway = Gateway::new(endpoint, self.config.tls.clone(), epoch);
        let (handle, inbox) = Handle::new(Arc::clone(&self.store));
        let calls = Calls::new(handle.clone(), circles.rind.clone());
        let sessions = Sessions::new(sessions::Deps {
            handle: handle.clone(),
            calls: calls.clone(),
            gateway: gateway.clone(),
            tls: self.config.tls.clone(),
            tasks: circles.rind.clone(),
            epoch,
            coordinator_id: self.identity.with_prefix("c"),
        })
        .map_err(|source| RunError::System { what: "thread for beats", source })?;
        let (nodes, tasks) = (sessions.clone(), circles.rind.clone());
        let effects = Effects::new(handle.clone(), nodes, calls.clone(), gateway.clone(), tasks);
        let (store, meters) = (Arc::clone(&self.store), Meters::new(&self.metrics));
        let (perform, tended) = (Arc::new(effects), meters.clone());
        let mut driver = Driver::new(inbox, store, epoch, perform, meters, self.readiness.clone()).await?;
        if let Some(leadership) = leadership {
            driver = driver.under(leadership);
        }
        let (keeper, stop) = (handle.clone(), circles.rind.shutdown().clone());
        circles.rind.spawn("store", OnFailure::Log, async move {
            keeper.tend(tended, stop).await;
            Ok::<(), Infallible>(())
        });
        circles.driving.spawn("driver", OnFailure::Shutdown, driver.run(circles.driving.shutdown().clone()));
        self.reign.leads(epoch);
        self.follow_nodes(sessions.clone(), &circles.rind);
        let reach = Reach { handle, gateway, shutdown: quiet.clone() };
        Ok(Api::new(Parts { reach, calls, sessions }).routes())
    }

    /// Puts together what tells of jobs while another leads, and finds out who does.
    fn follow(&self, seen: Epoch, endpoint: Chosen, circles: &Circles, over: &Shutdown) -> Following {
        let (handle, inbox) = Handle::following(Arc::clone(&self.store));
        let tasks = &circles.following;
        let (reader, stop) = (Reader::new(inbox, Arc::clone(&self.store)), tasks.shutdown().clone());
        tasks.spawn("reader", OnFailure::Log, async move {
            reader.run(stop).await;
            Ok::<(), Infallible>(())
        });
        let (told, leader) = watch::channel(None);
        self.count_leaders(leader.clone(), tasks);
        let looking = front::follow_leader(Arc::clone(&self.membership), told, tasks.shutdown().clone());
        tasks.spawn("leader", OnFailure::Log, async move {
            looking.await;
            Ok::<(), Infallible>(())
        });
        let gateway = Gateway::new(endpoint, self.config.tls.clone(), seen);
        let known = Routes::new(jobs(Reach { handle, gateway, shutdown: over.clone() })).prepare();
        Following::new(self.identity.with_prefix("c"), self.config.tls.clone(), leader, known)
    }

    /// Counts leaders that come after one another, as they are looked up.
    fn count_leaders(&self, mut leader: watch::Receiver<Option<Candidate>>, tasks: &Tasks) {
        let (reign, stop) = (self.reign.clone(), tasks.shutdown().clone());
        tasks.spawn("leader changes", OnFailure::Log, async move {
            let mut last: Option<Candidate> = None;
            let counting = async {
                while leader.changed().await.is_ok() {
                    let now = leader.borrow_and_update().clone();
                    if let Some(now) = now {
                        if last.as_ref().is_some_and(|last| last.id != now.id || last.incarnation != now.incarnation) {
                            reign.changed();
                        }
                        last = Some(now);
                    }
                }
            };
            tokio::select! {
                () = counting => {}
                () = stop.wait() => {}
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Follows nodes, and tells of those that the settings name.
    fn follow_nodes(&self, sessions: Sessions, tasks: &Tasks) {
        for (work, beat) in self.config.static_nodes() {
            sessions.node_joined(NodeRecord {
                work_address: work.to_owned(),
                beat_address: beat.to_owned(),
                ..NodeRecord::default()
            });
        }
        let nodes = members::follow_nodes(Arc::clone(&self.membership), Arc::new(sessions), tasks.shutdown().clone());
        tasks.spawn("nodes", OnFailure::Shutdown, async move {
            nodes.await;
            Ok::<(), Infallible>(())
        });
    }

    /// Follows gateways; answers where the chosen one is.
    fn follow_gateways(&self, tasks: &Tasks) -> Chosen {
        let (chosen, endpoint) = watch::channel(self.config.gateway.clone());
        let named = self.config.gateway.is_some();
        let (membership, stop) = (Arc::clone(&self.membership), tasks.shutdown().clone());
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
        endpoint
    }
}

/// Tasks in the order in which they end: what is outside first, then what it stands on.
struct Circles {
    /// gRPC, sessions, effects, members.
    rind: Tasks,
    /// The driver: does what has come in by then.
    driving: Tasks,
    /// Leadership: let go when nothing is done in its name any more.
    leading: Tasks,
    /// What only one that doesn't lead has.
    following: Tasks,
}

impl Circles {
    fn new() -> Self {
        let tasks = || Tasks::new(Shutdown::new());
        Self { rind: tasks(), driving: tasks(), leading: tasks(), following: tasks() }
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
        let circles = [&self.leading, &self.driving, &self.rind, &self.following];
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
    front: Front,
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
    let mut always = Routes::new(health).add_service(reflection).add_service(reflection_alpha);
    if let Some(registry) = registry {
        always = always.add_service(registry);
    }
    // Whatever isn't of this process is the leader's.
    let routes = Routes::from(always.into_axum_router().fallback_service(front)).prepare();
    let server =
        grpc::server(&grpc::ServerLimits::default(), ingle_daemon::tls::server_tls(&config.tls)?)?.add_routes(routes);
    let (ended, served) = oneshot::channel::<()>();
    let quiet = quiet.wait();
    tasks.spawn("gRPC", OnFailure::Shutdown, async move {
        let _ended = ended;
        server.serve_with_incoming_shutdown(grpc::incoming(listener), quiet).await
    });
    Ok(served)
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
                     other's jobs; set job_store = 'etcd', or run one per etcd (docs/operations/install.md)"
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
        version: ingle_daemon::version().to_owned(),
        place: identity.place().to_owned(),
    };
    let (registration, _) = Registration::new(membership, record, MEMBER_TTL);
    tasks.spawn("registration", OnFailure::Shutdown, registration.run(tasks.shutdown().clone()));
}

/// Opens our identity and the store, off the runtime, and waits for one in etcd; `None` if asked to stop meanwhile.
async fn open(
    config: &Config,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> Result<Option<(Identity, Arc<dyn JobStore>, Epoch)>, RunError> {
    let (directory, kind) = (config.state_dir.clone(), config.job_store());
    let opened = tokio::task::spawn_blocking(move || {
        let local = (kind == JobStoreKind::Sqlite).then(|| SqliteStore::open(&directory)).transpose()?;
        if local.is_none()
            && let Some(place) = SqliteStore::lies_in(&directory)
        {
            return Err(RunError::LeftBehind { place: place.display().to_string() });
        }
        Ok((Identity::open(&directory)?, local))
    });
    let (identity, local) =
        opened.await.map_err(|error| RunError::Task(format!("opening {}: {error}", config.state_dir.display())))??;
    if let Some((store, epoch)) = local {
        return Ok(Some((identity, Arc::new(store), epoch)));
    }
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match EtcdStore::open(&config.membership, &etcd_options(config)).await {
            Ok((store, epoch)) => {
                let store = store.keep(ArchiveBounds::default(), config.etcd_quota_bytes);
                return Ok(Some((identity, Arc::new(store), epoch)));
            }
            Err(error) if error.retryable() => {
                tracing::warn!(%error, "the job store can't be opened yet");
                readiness.waiting(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = shutdown.wait() => return Ok(None),
            () = tokio::time::sleep(backoff.next_random()) => {}
        }
    }
}

/// How etcd is spoken to.
fn etcd_options(config: &Config) -> ConnectOptions {
    let etcd_user = match (&config.etcd_user, &config.etcd_password) {
        (Some(user), Some(password)) => Some(EtcdUser { user: user.clone(), password: password.clone() }),
        _ => None,
    };
    ConnectOptions { tls: config.tls.clone(), etcd_user, ..ConnectOptions::default() }
}

/// Where members register; where coordinators keep jobs of their own, it is said if there are others.
async fn members_of(config: &Config, epoch: Epoch) -> Result<Arc<dyn Membership>, RunError> {
    if config.own_registry() {
        // Greater than that of every start before, also when the store was restored under a newer generation.
        let start = (epoch.generation << 20).saturating_add(epoch.revision);
        return Ok(Arc::new(Memory::restarted(start, SETTLE)));
    }
    Ok(connect(&config.membership, &etcd_options(config)).await?)
}

/// Moves the jobs of the state directory into the store in etcd. Answers how many records were moved.
///
/// # Errors
/// [`RunError`]; nothing is lost then, and it can be run again.
pub async fn migrate(config: &Config) -> Result<usize, RunError> {
    config.check()?;
    if config.own_registry() {
        let words = "is our own registry: set it to etcd://HOST[:PORT][,HOST…], where the jobs are to go";
        return Err(ingle_daemon::config::ConfigError::invalid("membership", words).into());
    }
    Ok(crate::store::migrate::to_etcd(&config.state_dir, &config.membership, &etcd_options(config)).await?)
}

#[cfg(test)]
mod tests;
