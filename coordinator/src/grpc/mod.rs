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
use tonic::service::Routes;

use ingle_daemon::Shutdown;

use crate::calls::Calls;
use crate::driver::Handle;
use crate::gateway::Gateway;
use crate::sessions::Sessions;

pub use oversize::Oversize;

/// Who asks, until people are known apart.
const PRINCIPAL: &str = "local";

/// What jobs are told from: enough to answer from a store while another coordinator leads.
#[derive(Clone)]
pub struct Reach {
    /// Jobs and nodes.
    pub handle: Handle,
    /// Payloads, listings, manifests.
    pub gateway: Gateway,
    /// Ends streams that would live on.
    pub shutdown: Shutdown,
}

/// What the services of a leader reach. Clones share it.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// See [`Api`].
pub struct Parts {
    /// Jobs, nodes and the gateway.
    pub reach: Reach,
    /// Interactive calls.
    pub calls: Calls,
    /// Commands to nodes.
    pub sessions: Sessions,
}

impl std::ops::Deref for Parts {
    type Target = Reach;

    fn deref(&self) -> &Reach {
        &self.reach
    }
}

/// `ingle.v1.Jobs`.
#[must_use]
pub fn jobs(reach: Reach) -> Oversize<JobsServer<jobs::JobsService>> {
    Oversize(JobsServer::new(jobs::JobsService::new(reach)).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

impl Api {
    /// Over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// All services that jobs, calls, nodes and models are behind.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(jobs(self.reach.clone()))
            .add_service(self.inference())
            .add_service(self.cluster())
            .add_service(self.models())
            .prepare()
    }

    /// `ingle.v1.Inference`.
    fn inference(&self) -> Oversize<InferenceServer<inference::InferenceService>> {
        let service = inference::InferenceService::new(self.clone());
        Oversize(InferenceServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// `ingle.v1.Cluster`.
    fn cluster(&self) -> Oversize<ClusterServer<cluster::ClusterService>> {
        let service = cluster::ClusterService::new(self.clone());
        Oversize(ClusterServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// `ingle.v1.Models`.
    fn models(&self) -> Oversize<ModelsServer<models::ModelsService>> {
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
