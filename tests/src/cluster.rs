//! A whole cluster in one process: coordinator, gateway and nodes as libraries, on ports of the system's choice.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_daemon::{BoxError, Shutdown, Tasks};
use ingle_engine::fake::FakeEngine;
use ingle_gateway::config::ExportConfig;
use ingle_gateway::nfs_server::{Faults, NfsServer, NfsServerOptions};
use ingle_node_agent::{Deps, Listeners, NodeConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::client::{Client, EXPORT};
use crate::eventually::{eventually, in_time};
use crate::models::FakeModel;
use crate::relay::{Relay, Wire};
use crate::share::Share;

/// A port of the system's choice on loopback.
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What a cluster shall be. Begin with [`Cluster::of`].
#[derive(Debug)]
pub struct Plan {
    nodes: usize,
    models: Vec<FakeModel>,
    over_nfs: bool,
    nas: Arc<Faults>,
    state: Option<Arc<Faults>>,
    gateway: fn(&mut ingle_gateway::Config),
    node: fn(&mut NodeConfig),
    wired: bool,
    etcd: Option<String>,
}

impl Plan {
    /// With this model, which every node sees.
    #[must_use]
    pub fn with(mut self, model: FakeModel) -> Self {
        self.models.push(model);
        self
    }

    /// The share is read and written over NFS, from our own server.
    #[must_use]
    pub fn over_nfs(mut self) -> Self {
        self.over_nfs = true;
        self
    }

    /// The same, from a server that these faults spoil, and that is not waited for long.
    #[must_use]
    pub fn over_nfs_with(self, faults: &Arc<Faults>) -> Self {
        Self { nas: Arc::clone(faults), ..self.over_nfs() }
    }

    /// Blobs lie on a server of their own, which these faults spoil.
    #[must_use]
    pub fn state_over_nfs_with(mut self, faults: &Arc<Faults>) -> Self {
        self.state = Some(Arc::clone(faults));
        self
    }

    /// The gateway's settings are changed so.
    #[must_use]
    pub fn gateway(mut self, change: fn(&mut ingle_gateway::Config)) -> Self {
        self.gateway = change;
        self
    }

    /// Each node's settings are changed so.
    #[must_use]
    pub fn node(mut self, change: fn(&mut NodeConfig)) -> Self {
        self.node = change;
        self
    }

    /// Between the coordinator and each node lie wires that can be cut.
    #[must_use]
    pub fn wired(mut self) -> Self {
        self.wired = true;
        self
    }

    /// Members meet in etcd rather than at the coordinator.
    #[must_use]
    pub fn meeting_at(mut self, etcd: &str) -> Self {
        self.etcd = Some(etcd.into());
        self
    }

    /// Starts it, and waits until it is whole.
    ///
    /// # Panics
    /// It doesn't come up.
    pub async fn start(self) -> Cluster {
        let home = tempfile::tempdir().expect("a directory");
        let share = Share::at(home.path().join("share"));
        let models = home.path().join("models");
        std::fs::create_dir_all(&models).expect("a directory");
        for model in &self.models {
            model.put(&models);
        }
        let nfs = if self.over_nfs { Some(serve(share.root(), ANY, &self.nas).await) } else { None };
        let export = nfs.as_ref().map_or_else(|| format!("file://{}", share.root().display()), NfsServer::url);
        let mut state = None;
        if let Some(faults) = &self.state {
            let root = home.path().join("blobs");
            std::fs::create_dir_all(&root).expect("a directory");
            state = Some(serve(&root, ANY, faults).await);
        }
        let exports = Exports { docs: export, state: state.as_ref().map(NfsServer::url), change: self.gateway };
        let (coordinator, address) = coordinator(home.path(), self.etcd.as_deref()).await;
        let meeting = self.etcd.clone().unwrap_or_else(|| format!("http://{address}"));
        let (gateway, gateway_address) = gateway(home.path(), &meeting, exports).await;
        let mut nodes = Vec::new();
        for number in 1..=self.nodes {
            let meeting = self.etcd.clone().unwrap_or_else(|| format!("registry://{address}"));
            let name = format!("node-{number}");
            nodes.push(Node::start(home.path(), &name, &models, &meeting, (self.node, self.wired)).await);
        }
        let client = Client::to(address);
        client.ready(self.nodes, self.models.len()).await;
        let (coordinator, etcd) = (Some(coordinator), self.etcd);
        Cluster {
            etcd,
            client,
            share,
            address,
            gateway_address,
            models,
            coordinator,
            gateway,
            nodes,
            node_settings: (self.node, self.wired),
            nfs,
            faults: self.nas,
            _state: state,
            _home: home,
        }
    }
}

/// A running cluster. Daemons end when it is dropped with its runtime; [`Cluster::stop`] ends them in order.
pub struct Cluster {
    /// To its coordinator.
    pub client: Client,
    /// What `nas://docs/` names.
    pub share: Share,
    /// The coordinator's.
    pub address: SocketAddr,
    /// The gateway's.
    pub gateway_address: SocketAddr,
    /// Where models lie.
    pub models: PathBuf,
    etcd: Option<String>,
    /// Always there but for the moment of a restart.
    coordinator: Option<Daemon>,
    gateway: Daemon,
    /// In order of their names.
    pub nodes: Vec<Node>,
    /// What is changed of nodes, and whether there are wires to them.
    node_settings: (fn(&mut NodeConfig), bool),
    nfs: Option<NfsServer>,
    faults: Arc<Faults>,
    _state: Option<NfsServer>,
    _home: TempDir,
}

impl Cluster {
    /// So many nodes, called `node-1`, `node-2` …
    #[must_use]
    pub fn of(nodes: usize) -> Plan {
        let nas = Arc::default();
        Plan {
            nodes,
            models: Vec::new(),
            over_nfs: false,
            nas,
            state: None,
            gateway: |_| {},
            node: |_| {},
            wired: false,
            etcd: None,
        }
    }

    /// Starts another node of this name, with the same models and settings.
    ///
    /// # Panics
    /// It doesn't start.
    pub async fn add_node(&mut self, name: &str) {
        let meeting = self.etcd.clone().unwrap_or_else(|| format!("registry://{}", self.address));
        let node = Node::start(self._home.path(), name, &self.models, &meeting, self.node_settings).await;
        self.nodes.push(node);
    }

    /// How many parts of calls' documents lie in the state export.
    #[must_use]
    pub fn parts_of_calls(&self) -> usize {
        std::fs::read_dir(self._home.path().join("gateway/state/blobs/calls")).map_or(0, Iterator::count)
    }

    /// The NAS goes down and comes back at the same address, with another write verifier, knowing no handle that it gave out,
    /// and with this directory.
    ///
    /// # Panics
    /// There is none, or it doesn't come back.
    pub async fn reboot_nas(&mut self, directory: &Path) {
        let server = self.nfs.take().expect("a NAS");
        let address = server.local_addr();
        server.shutdown().await;
        self.nfs = Some(serve(directory, address, &self.faults).await);
    }

    /// Ends all daemons in order, as SIGTERM does.
    ///
    /// # Panics
    /// One ends with an error, or not in time.
    pub async fn stop(self) {
        for node in self.nodes {
            node.daemon.stop().await;
        }
        self.gateway.stop().await;
        if let Some(coordinator) = self.coordinator {
            coordinator.stop().await;
        }
    }

    /// Starts another node, or one again that has ended: `node-{number}`, with what lies in its directories.
    pub async fn start_node(&mut self, number: usize) {
        let (home, name) = (self._home.path(), format!("node-{number}"));
        let state = home.join(&name).join("state");
        eventually("its directory to be let go", || async {
            ingle_membership::Identity::open(&state).map(drop).map_err(|error| error.to_string())
        })
        .await;
        let meeting = self.etcd.clone().unwrap_or_else(|| format!("registry://{}", self.address));
        let node = Node::start(home, &name, &self.models, &meeting, self.node_settings).await;
        self.nodes.push(node);
    }

    /// Ends the coordinator and starts it again at the same address; what it had in memory is gone.
    ///
    /// # Panics
    /// It doesn't end, or doesn't come back.
    pub async fn restart_coordinator(&mut self) {
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.stop().await;
        }
        let listener = ingle_daemon::grpc::bind(self.address).await.expect("its port is free again");
        self.coordinator = Some(coordinator_at(listener, self.address, self._home.path(), self.etcd.as_deref()));
    }
}

/// A daemon in a task of its own.
struct Daemon {
    name: String,
    shutdown: Shutdown,
    tasks: Option<Tasks>,
    running: JoinHandle<Result<(), BoxError>>,
}

impl Daemon {
    fn start(
        name: &str,
        shutdown: Shutdown,
        tasks: Option<Tasks>,
        work: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    ) -> Self {
        #[allow(clippy::disallowed_methods, reason = "owned by the daemon's handle, and awaited when it is stopped")]
        let running = tokio::spawn(work);
        Self { name: name.into(), shutdown, tasks, running }
    }

    async fn stop(self) {
        self.shutdown.begin();
        self.ended().await;
    }

    async fn ended(self) {
        let ended = in_time(&self.name, self.running).await;
        ended.unwrap_or_else(|error| panic!("{}: {error}", self.name)).unwrap_or_else(|error| {
            panic!("{}: {error}", self.name);
        });
        if let Some(tasks) = self.tasks {
            in_time(&self.name, tasks.shutdown_all(std::time::Duration::from_secs(10))).await;
            assert_eq!(tasks.failure(), None, "{}", self.name);
        }
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = ingle_daemon::grpc::bind(ANY).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

async fn coordinator(home: &Path, etcd: Option<&str>) -> (Daemon, SocketAddr) {
    let (listener, address) = listener().await;
    (coordinator_at(listener, address, home, etcd), address)
}

fn coordinator_at(listener: TcpListener, address: SocketAddr, home: &Path, etcd: Option<&str>) -> Daemon {
    let mut config = ingle_coordinator::config::Config {
        listen: address,
        metrics: None,
        state_dir: home.join("coordinator"),
        ..Default::default()
    };
    if let Some(etcd) = etcd {
        config.membership = etcd.into();
    }
    let shutdown = Shutdown::new();
    let deps = ingle_coordinator::Deps {
        config,
        metrics: Metrics::new("ingle-coordinator"),
        readiness: Readiness::default(),
        listener,
        membership: None,
    };
    let stop = shutdown.clone();
    let work = async move { ingle_coordinator::run(deps, stop, Box::new(|_| Ok(()))).await.map_err(BoxError::from) };
    Daemon::start("coordinator", shutdown, None, work)
}

async fn serve(root: &Path, listen: SocketAddr, faults: &Arc<Faults>) -> NfsServer {
    let options = NfsServerOptions { listen, faults: Arc::clone(faults), ..NfsServerOptions::default() };
    NfsServer::bind(root, options).await.expect("an NFS server")
}

/// What the gateway reads and writes.
struct Exports {
    docs: String,
    state: Option<String>,
    change: fn(&mut ingle_gateway::Config),
}

/// An export whose server isn't waited for long.
fn hurried(url: String) -> ExportConfig {
    let mut config = ExportConfig { url, ..Default::default() };
    config.nfs.deadline_s = 1;
    config
}

async fn gateway(home: &Path, meeting: &str, exports: Exports) -> (Daemon, SocketAddr) {
    let (listener, address) = listener().await;
    let mut config = ingle_gateway::Config {
        listen: address,
        metrics: None,
        membership: Some(meeting.into()),
        state_dir: home.join("gateway"),
        ..Default::default()
    };
    config.exports.insert(EXPORT.into(), hurried(exports.docs));
    config.state_export = exports.state.map(hurried);
    let sealed = home.join("sealed");
    std::fs::create_dir_all(&sealed).expect("a directory");
    let sealed = ExportConfig { url: format!("file://{}", sealed.display()), read_only: true, ..Default::default() };
    config.exports.insert("sealed".into(), sealed);
    (exports.change)(&mut config);
    let (shutdown, metrics) = (Shutdown::new(), Metrics::new("ingle-gateway"));
    let tasks = Tasks::new(shutdown.clone());
    let (work_tasks, work_shutdown) = (tasks.clone(), shutdown.clone());
    let work = async move { ingle_gateway::run(listener, config, &metrics, work_tasks, work_shutdown).await };
    (Daemon::start("gateway", shutdown, Some(tasks), work), address)
}

/// A node of a cluster.
pub struct Node {
    daemon: Daemon,
    /// What it counts.
    pub metrics: Metrics,
    /// Where its work is served.
    pub address: SocketAddr,
    /// What the coordinator's streams and beats go through, if anything.
    wires: Vec<Relay>,
}

impl Node {
    async fn start(
        home: &Path,
        name: &str,
        models: &Path,
        meeting: &str,
        (change, wired): (fn(&mut NodeConfig), bool),
    ) -> Self {
        let mut config = NodeConfig {
            listen: ANY,
            beat_listen: ANY,
            metrics: None,
            name: Some(name.into()),
            state_dir: home.join(name).join("state"),
            cache_dir: home.join(name).join("cache"),
            cache_bytes_max: 64 << 20,
            models: Some(models.display().to_string()),
            membership: Some(meeting.into()),
            memory_reserve_bytes: Some(0),
            threads: 1,
            measure_ms: 0,
            drain_timeout_s: 10,
            ..NodeConfig::default()
        };
        change(&mut config);
        let listeners = Listeners::bind(&config).await.expect("free ports");
        let address = listeners.work.local_addr().expect("bound");
        let mut wires = Vec::new();
        if wired {
            let (work, beat) = (Relay::to(address).await, Relay::to(listeners.beat.local_addr().expect("bound")).await);
            config.advertise = Some(work.address.to_string());
            config.beat_advertise = Some(beat.address.to_string());
            wires.extend([work, beat]);
        }
        let (shutdown, metrics) = (Shutdown::new(), Metrics::new("ingle-node"));
        let deps = Deps {
            config,
            engine: Arc::new(FakeEngine::new()),
            metrics: metrics.clone(),
            readiness: Readiness::default(),
            listeners,
            membership: None,
            // In the process of a test its own program is no node.
            parser: crate::process::binary("ingle-test-node"),
        };
        let stop = shutdown.clone();
        let work = async move { ingle_node_agent::run(deps, stop, Box::new(|_| Ok(()))).await.map_err(BoxError::from) };
        Self { daemon: Daemon::start(name, shutdown, None, work), metrics, address, wires }
    }

    /// Cuts its wires to the coordinator, or mends them.
    ///
    /// # Panics
    /// It has none: [`Plan::wired`].
    pub fn set_wires(&self, wire: Wire) {
        assert!(!self.wires.is_empty(), "a cluster without wires");
        self.wires.iter().for_each(|relay| relay.set(wire));
    }

    /// Asks it to drain and end, as SIGTERM does, and waits until it has.
    ///
    /// # Panics
    /// It ends with an error, or not in time.
    pub async fn stop(self) {
        self.daemon.stop().await;
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// It ends with an error, or not in time.
    pub async fn ended(self) {
        self.daemon.ended().await;
    }
}

/// A counter's value in a page of metrics, summed over its labels; 0 if it isn't there.
#[must_use]
pub fn counted(page: &str, name: &str) -> u64 {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    page.lines().filter_map(of).sum::<f64>() as u64
}
