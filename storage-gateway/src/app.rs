//! The composition root: what the gateway is made of and which tasks run. The only place that knows all of it.

use std::net::SocketAddr;
use std::sync::Arc;

use ingle_daemon::grpc::{self, ServerLimits};
use ingle_daemon::metrics::Metrics;
use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks};
use ingle_membership::Identity;
use ingle_proto::v1::storage_server::StorageServer;
use ingle_proto::{DESCRIPTORS, MESSAGE_BYTES_MAX};
use tokio::net::TcpListener;

use crate::admission::Admission;
use crate::blob::Blobs;
use crate::cache::{Cache, Upkeep};
use crate::config::Config;
use crate::exports::Exports;
use crate::fence::Fence;
use crate::grpc::Service;
use crate::metrics::Meters;
use crate::publish::Publisher;
use crate::range::{Ranges, Served};
use crate::reading::Reader;
use crate::scan::Scanner;
use crate::source::Sources;
use crate::{register, sweep};

/// A gateway put together, not serving yet.
pub struct Gateway {
    config: Config,
    service: Service,
    exports: Arc<Exports>,
    publisher: Arc<Publisher>,
    blobs: Blobs,
    /// Holds the lock on the state directory: two gateways there would both think they are alone.
    identity: Identity,
    upkeep: Option<Upkeep>,
    tasks: Tasks,
}

impl Gateway {
    /// Opens the state directory and puts everything together; exports are opened later, when they are needed.
    ///
    /// # Errors
    /// The state directory can't be used; says why.
    pub fn new(config: Config, metrics: &Metrics, tasks: Tasks) -> Result<Self, BoxError> {
        let meters = Meters::new(metrics);
        let exports = Arc::new(Exports::new(&config, meters.clone()));
        let state = Arc::new(Exports::state(&config, meters.clone()));
        Self::assemble(config, exports, state, meters, tasks)
    }

    /// With exports that are open already (tests put doubles here).
    ///
    /// # Errors
    /// As [`Gateway::new`].
    pub fn assemble(
        config: Config,
        exports: Arc<Exports>,
        state: Arc<Exports>,
        meters: Meters,
        tasks: Tasks,
    ) -> Result<Self, BoxError> {
        let state_dir = &config.state_dir;
        let identity = Identity::open(state_dir)?;
        let fence = Arc::new(Fence::open(state_dir)?);
        let blobs = Blobs::new(state);
        let publisher = Arc::new(Publisher::new(blobs.clone(), Arc::clone(&fence), state_dir, meters.clone()));
        let scanner = Scanner::new(
            Arc::clone(&exports),
            Arc::clone(&publisher),
            blobs.clone(),
            fence,
            config.limits.clone(),
            meters.clone(),
        );
        let cache_dir = config.cache.dir.clone().unwrap_or_else(|| state_dir.join("cache"));
        let (cache, upkeep) = Cache::open(&config.cache, cache_dir, meters.clone())?;
        let sources = Sources {
            exports: Arc::clone(&exports),
            blobs: blobs.clone(),
            reader: Reader::new(cache, tasks.clone()),
            admission: Arc::new(Admission::new(&config.limits)),
            meters,
        };
        let service = Service {
            exports: Arc::clone(&exports),
            blobs: blobs.clone(),
            publisher: Arc::clone(&publisher),
            scanner: Arc::new(scanner),
            sources,
            limits: config.limits.clone(),
            tasks: tasks.clone(),
            ranges: Arc::default(),
        };
        Ok(Self { config, service, exports, publisher, blobs, identity, upkeep, tasks })
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// The certificates can't be used, or the listener broke.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) -> Result<(), BoxError> {
        self.tasks.spawn(
            "sweeper",
            OnFailure::Log,
            sweep::run(Arc::clone(&self.exports), Arc::clone(&self.publisher), self.blobs, shutdown.clone()),
        );
        if let Some(upkeep) = self.upkeep {
            self.tasks.spawn("cache", OnFailure::Log, upkeep.run(shutdown.wait()));
        }
        let address = listener.local_addr()?;
        if self.config.ranges.enabled {
            let served = serve_ranges(&self.config, &self.service, &self.tasks, address, &shutdown).await?;
            let _set_once: Result<(), Served> = self.service.ranges.set(served);
        }
        register::start(&self.config, self.identity, self.exports.names(), address, &self.tasks);
        let tls = ingle_daemon::tls::server_tls(&self.config.tls)?;
        let (health, health_service) = grpc::health();
        health.set_serving::<StorageServer<Service>>().await;
        let (reflection, reflection_alpha) = grpc::reflection(&[DESCRIPTORS]);
        let storage = StorageServer::new(self.service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        grpc::server(&ServerLimits::default(), tls)?
            .add_service(storage)
            .add_service(health_service)
            .add_service(reflection)
            .add_service(reflection_alpha)
            .serve_with_incoming_shutdown(grpc::incoming(listener), shutdown.wait())
            .await?;
        Ok(())
    }
}

/// Opens the range endpoint's listeners beside gRPC's `address`.
async fn serve_ranges(
    config: &Config,
    service: &Service,
    tasks: &Tasks,
    address: SocketAddr,
    shutdown: &Shutdown,
) -> Result<Served, BoxError> {
    let ranges = Ranges::new(service.sources.clone(), tasks.clone());
    let listener = match (config.ranges.listen, config.ranges.beside(address)) {
        (Some(listen), _) => grpc::bind(listen).await?,
        (None, Some(next)) => match grpc::bind(next).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(SocketAddr::new(address.ip(), 0)).await?,
        },
        (None, None) => TcpListener::bind(SocketAddr::new(address.ip(), 0)).await?,
    };
    let port = listener.local_addr()?.port();
    let tls = ingle_daemon::tls::server_config(&config.tls)?;
    let with_tls = tls.is_some();
    ranges.serve_tcp(listener, tls, shutdown.clone());
    let socket = config.ranges.socket.clone().unwrap_or_else(|| config.state_dir.join("ranges.sock"));
    let unix_socket = match ranges.serve_unix(&socket, shutdown.clone()) {
        Ok(()) => Some(std::path::absolute(&socket)?),
        // A path of over a hundred bytes, or a file system without sockets: TCP serves everybody.
        Err(error) => {
            tracing::info!(path = %socket.display(), %error, "no socket for nodes on this machine");
            None
        }
    };
    Ok(Served { port: Some(port), tls: with_tls, unix_socket, instance: ranges.instance().to_owned() })
}
