//! The service `ingle.v1.Cluster`: what an operator sees of the nodes, and drains.

use ingle_proto::extent::DEADLINE_AHEAD_MS;
use ingle_proto::{NodeId, Problem, v1};
use tonic::{Request, Response, Status};

use super::{Api, unexpected};
use crate::core::{Answer, Event, ReplyId};

/// See the module.
pub(super) struct ClusterService {
    api: Api,
}

impl ClusterService {
    pub(super) fn new(api: Api) -> Self {
        Self { api }
    }

    async fn steer(
        &self,
        id: &str,
        event: impl FnOnce(ReplyId, NodeId) -> Event,
    ) -> Result<Option<v1::NodeStatus>, Problem> {
        let node = NodeId::parse(id)?;
        match self.api.handle.ask(|reply| event(reply, node)).await? {
            Answer::Node(node) => Ok(Some(*node)),
            Answer::Job(..) => Err(unexpected()),
        }
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesResponse>, Status> {
        let mut nodes = self.api.handle.query(|core, _| core.nodes()).await?;
        self.api.sessions.with_heat(&mut nodes);
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        let v1::DrainNodeRequest { node_id, deadline_ms, stay } = request.into_inner();
        let latest = ingle_daemon::clock::unix_ms().saturating_add(DEADLINE_AHEAD_MS);
        if !(0..=latest).contains(&deadline_ms) {
            let words = format!("expected 0, or Unix milliseconds up to {latest} (366 days ahead), got {deadline_ms}");
            return Err(Problem::invalid("deadline_ms", words).into());
        }
        let node = self.steer(&node_id, |reply, node| Event::Drain { reply, node, deadline_ms, leaves: !stay }).await?;
        Ok(Response::new(v1::DrainNodeResponse { node }))
    }

    async fn uncordon_node(
        &self,
        request: Request<v1::UncordonNodeRequest>,
    ) -> Result<Response<v1::UncordonNodeResponse>, Status> {
        let node = self.steer(&request.into_inner().node_id, |reply, node| Event::Uncordon { reply, node }).await?;
        Ok(Response::new(v1::UncordonNodeResponse { node }))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let (status, gateway_ready) =
            tokio::join!(self.api.handle.query(|core, _| core.status()), self.api.gateway.ready());
        Ok(Response::new(v1::GetStatusResponse {
            version: ingle_daemon::version().to_owned(),
            gateway: self.api.gateway.endpoint().unwrap_or_default(),
            gateway_ready,
            ..status?
        }))
    }
}
