//! The public API: translates between the wire and the driver, and decides nothing.

mod cluster;
mod documents;
mod inference;
mod items;
mod jobs;
mod models;
mod oversize;
mod rules;
mod spec;

use std::sync::Arc;

use ingle_proto::v1::cluster_server::ClusterServer;
use ingle_proto::v1::inference_server::InferenceServer;
use ingle_proto::v1::jobs_server::JobsServer;
use ingle_proto::v1::models_server::ModelsServer;
use ingle_proto::{ErrorCode, MESSAGE_BYTES_MAX, NodeId, Problem};

use ingle_daemon::Shutdown;

use crate::calls::Calls;
use crate::driver::Handle;
use crate::gateway::Gateway;
use crate::sessions::Sessions;

pub use oversize::Oversize;

/// Who asks, until people are known apart.
const PRINCIPAL: &str = "local";

/// What the services reach. Clones share it.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// See [`Api`].
pub struct Parts {
    /// Jobs and nodes.
    pub handle: Handle,
    /// Interactive calls.
    pub calls: Calls,
    /// Commands to nodes.
    pub sessions: Sessions,
    /// Payloads, listings, manifests.
    pub gateway: Gateway,
    /// Ends streams that would live on.
    pub shutdown: Shutdown,
}

impl Api {
    /// Over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// `ingle.v1.Jobs`.
    #[must_use]
    pub fn jobs(&self) -> Oversize<JobsServer<jobs::JobsService>> {
        let service = jobs::JobsService::new(self.clone());
        Oversize(JobsServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// `ingle.v1.Inference`.
    #[must_use]
    pub fn inference(&self) -> Oversize<InferenceServer<inference::InferenceService>> {
        let service = inference::InferenceService::new(self.clone());
        Oversize(InferenceServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// `ingle.v1.Cluster`.
    #[must_use]
    pub fn cluster(&self) -> Oversize<ClusterServer<cluster::ClusterService>> {
        let service = cluster::ClusterService::new(self.clone());
        Oversize(ClusterServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// `ingle.v1.Models`.
    #[must_use]
    pub fn models(&self) -> Oversize<ModelsServer<models::ModelsService>> {
        let service = models::ModelsService::new(self.clone());
        Oversize(ModelsServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

fn no_node(node: &NodeId) -> Problem {
    Problem::new(ErrorCode::NodeNotFound, format!("there is no node {node}; see `ingle nodes list`"))
}

fn unexpected() -> Problem {
    Problem::new(ErrorCode::Internal, "the core answered something else than was asked; please report this")
}
