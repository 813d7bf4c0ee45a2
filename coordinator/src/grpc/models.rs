//! The service `ingle.v1.Models`: what can be run, where it lies, and loading it ahead of use.

use ingle_proto::choice::choice;
use ingle_proto::{ErrorCode, NodeId, Problem, v1};
use tonic::{Request, Response, Status};

use super::{Api, no_node};

/// See the module.
pub(super) struct ModelsService {
    api: Api,
}

impl ModelsService {
    pub(super) fn new(api: Api) -> Self {
        Self { api }
    }

    /// The model as nodes know it; placed where it fits best if no node is named.
    async fn place(&self, name: &str, node: &str) -> Result<(NodeId, v1::ModelRef), Problem> {
        let node = if node.is_empty() { None } else { Some(NodeId::parse(node)?) };
        let status = self.status(name).await?;
        let name = name.to_owned();
        let node = self
            .api
            .handle
            .query(move |core, _| match node {
                Some(node) if core.node(&node).is_some() => Ok(node),
                Some(node) => Err(no_node(&node)),
                None => core.place_model(&name),
            })
            .await??;
        if status.fetching.iter().any(|fetch| fetch.node_id == node.as_str()) {
            let words = format!("the model is on its way to {node}; `ingle models list` shows how far it is");
            return Err(Problem::new(ErrorCode::NoNode, words).retry_after(std::time::Duration::from_secs(5)));
        }
        if !status.seen_by.iter().any(|id| id == node.as_str()) {
            let words = format!("node {node} doesn't see the model; these do: {}", status.seen_by.join(", "));
            return Err(Problem::new(ErrorCode::ModelNotFound, words));
        }
        let model = status.info.and_then(|info| info.model).unwrap_or_default();
        Ok((node, model))
    }

    async fn status(&self, name: &str) -> Result<v1::ModelStatus, Problem> {
        if name.is_empty() {
            return Err(Problem::missing("model"));
        }
        let wanted = name.to_owned();
        let found = self
            .api
            .handle
            .query(move |core, _| {
                core.models().into_iter().find(|status| {
                    status.info.as_ref().and_then(|info| info.model.as_ref()).is_some_and(|model| model.name == wanted)
                })
            })
            .await?;
        found.ok_or_else(|| {
            let words = format!("no node sees a model named {name:.200?}; see `ingle models list`");
            Problem::new(ErrorCode::ModelNotFound, words)
        })
    }

    async fn unload(&self, request: v1::UnloadModelRequest) -> Result<v1::UnloadModelResponse, Problem> {
        let nodes = if request.node_id.is_empty() { None } else { Some(NodeId::parse(&request.node_id)?) };
        let status = self.status(&request.model).await?;
        let nodes = match nodes {
            Some(node) => {
                let asked = node.clone();
                let known = self.api.handle.query(move |core, _| core.node(&asked).is_some()).await?;
                if !known {
                    return Err(no_node(&node));
                }
                vec![node]
            }
            None => status.loaded_on.iter().map(|id| NodeId::parse(id)).collect::<Result<Vec<_>, _>>()?,
        };
        let model = status.info.and_then(|info| info.model).unwrap_or_default();
        let asked = nodes.iter().map(|node| self.api.sessions.command(node, model.clone(), false));
        let mut node_ids = Vec::new();
        let mut refused = None;
        for (node, answer) in nodes.iter().zip(futures::future::join_all(asked).await) {
            match answer {
                Ok(_) => node_ids.push(node.to_string()),
                Err(problem) => refused = Some(problem),
            }
        }
        match refused {
            Some(problem) if node_ids.is_empty() => Err(problem),
            _ => Ok(v1::UnloadModelResponse { node_ids }),
        }
    }
}

#[tonic::async_trait]
impl v1::models_server::Models for ModelsService {
    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let kind = request.into_inner().kind;
        if kind != 0 {
            choice("kind", kind, v1::JobKind::as_str_name)?;
        }
        let mut models = self.api.handle.query(|core, _| core.models()).await?;
        models.retain(|status| kind == 0 || status.info.as_ref().is_some_and(|info| info.kind == kind));
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let request = request.into_inner();
        let (node, model) = self.place(&request.model, &request.node_id).await?;
        let done = self.api.sessions.command(&node, model, true).await?;
        Ok(Response::new(v1::LoadModelResponse {
            node_id: node.to_string(),
            memory_bytes: done.memory_bytes,
            load_ms: done.load_ms,
        }))
    }

    async fn unload_model(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        Ok(Response::new(self.unload(request.into_inner()).await?))
    }

    async fn explain_fit(
        &self,
        request: Request<v1::ExplainFitRequest>,
    ) -> Result<Response<v1::ExplainFitResponse>, Status> {
        let request = request.into_inner();
        if request.model.is_empty() {
            return Err(Problem::missing("model").into());
        }
        let explained = self
            .api
            .handle
            .query(move |core, _| core.explain_fit(&request.model, request.context, request.slots))
            .await??;
        Ok(Response::new(explained))
    }

    async fn explain_model(
        &self,
        request: Request<v1::ExplainModelRequest>,
    ) -> Result<Response<v1::ExplainModelResponse>, Status> {
        let model = request.into_inner().model;
        if model.is_empty() {
            return Err(Problem::missing("model").into());
        }
        let explained = self.api.handle.query(move |core, _| core.explain_model(&model)).await??;
        Ok(Response::new(explained))
    }
}
