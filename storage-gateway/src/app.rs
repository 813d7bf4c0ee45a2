//! The composition root: what the gateway is made of and which tasks run. The only place that knows all of it.

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
use crate::config::Config;
use crate::exports::Exports;
use crate::fence::Fence;
use crate::grpc::Service;
use crate::metrics::Meters;
use crate::publish::Publisher;
use crate::scan::Scanner;
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
        let service = Service {
            exports: Arc::clone(&exports),
            blobs: blobs.clone(),
            publisher: Arc::clone(&publisher),
            scanner: Arc::new(scanner),
            admission: Arc::new(Admission::new(&config.limits)),
            limits: config.limits.clone(),
            meters,
            tasks: tasks.clone(),
        };
        Ok(Self { config, service, exports, publisher, blobs, identity, tasks })
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
        let address = listener.local_addr()?;
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
