//! A coordinator played for the tests: real gRPC on a free port, answers that a test writes down.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ingle_proto::{ErrorCode, Problem, v1};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What one WatchJob call answers: jobs, and then how the stream ends.
pub(crate) type Watched = (Vec<v1::Job>, Option<Status>);
/// What one Generate call answers.
pub(crate) type Generated = Vec<Result<v1::GenerateResponse, Status>>;

/// What happens, and what was asked.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) submissions: Mutex<Vec<v1::SubmitJobRequest>>,
    /// SubmitJob fails this often before it answers.
    pub(crate) submit_failures: AtomicUsize,
    /// One entry per call of WatchJob; the last is repeated.
    pub(crate) watches: Mutex<Vec<Watched>>,
    pub(crate) watch_calls: AtomicUsize,
    pub(crate) items: Vec<v1::Item>,
    /// One entry per call of Generate; the last is repeated.
    pub(crate) generations: Mutex<Vec<Generated>>,
    pub(crate) generate_calls: Mutex<Vec<v1::GenerateRequest>>,
    /// What calls for vectors and pages are refused with before one is answered.
    pub(crate) refusals: Mutex<std::collections::VecDeque<Problem>>,
    /// Interactive calls are answered only once somebody has asked what the nodes do.
    pub(crate) until_asked: bool,
    pub(crate) asked: tokio::sync::Notify,
    pub(crate) explained: Option<v1::ExplainJobResponse>,
    pub(crate) explained_model: Option<v1::ExplainModelResponse>,
    pub(crate) nodes: Vec<v1::NodeStatus>,
    /// One entry per call of ListNodes, the last is repeated; without any `nodes` is answered.
    pub(crate) looks: Mutex<std::collections::VecDeque<Vec<v1::NodeStatus>>>,
    /// DrainNode is answered with the first of `looks`.
    pub(crate) drains: Mutex<Vec<v1::DrainNodeRequest>>,
    /// What LoadModel answers, one entry per call; the last is repeated. And what was asked.
    pub(crate) loadings: Mutex<std::collections::VecDeque<Result<(), Problem>>>,
    pub(crate) loads: Mutex<Vec<v1::LoadModelRequest>>,
    pub(crate) models: Vec<v1::ModelStatus>,
    /// What GetJob and ListJobs know.
    pub(crate) jobs: Vec<v1::Job>,
    /// SubmitJob is refused with this.
    pub(crate) refusal: Option<Problem>,
    /// Where `gateway`, or a node's address, is `self`, this coordinator plays it too.
    pub(crate) status: Option<v1::GetStatusResponse>,
    pub(crate) exports: Vec<v1::ExportInfo>,
    /// What Stage was asked for, and how much Forget removed.
    pub(crate) staged: Mutex<Vec<v1::StageHeader>>,
    pub(crate) forgotten: AtomicUsize,
    /// Staging below a place is refused with this.
    pub(crate) stage_refusal: Option<Problem>,
}

#[derive(Clone)]
pub(crate) struct Played(pub(crate) Arc<Script>);

/// A coordinator that serves until it is dropped, on a runtime of its own: with that all its connections end, as those
/// of a process do that is killed.
pub(crate) struct Coordinator {
    pub(crate) endpoint: String,
    pub(crate) script: Arc<Script>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Coordinator {
    pub(crate) async fn start(script: Script) -> Self {
        Self::serve(Arc::new(script), "127.0.0.1:0".parse().expect("an address")).await
    }

    async fn serve(script: Arc<Script>, address: SocketAddr) -> Self {
        // The port of one that was killed just now may take a moment to be free again.
        let listener = loop {
            match std::net::TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(_) if address.port() != 0 => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        };
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let played = Played(Arc::clone(&script));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            tonic::transport::Server::builder()
                .add_service(v1::jobs_server::JobsServer::new(played.clone()))
                .add_service(v1::inference_server::InferenceServer::new(played.clone()))
                .add_service(v1::cluster_server::ClusterServer::new(played.clone()))
                .add_service(v1::models_server::ModelsServer::new(played.clone()))
                .add_service(v1::storage_server::StorageServer::new(played))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("it serves");
        });
        Self { endpoint: format!("http://{address}"), script, address, runtime: Some(runtime) }
    }

    /// Ends it with all its connections and starts it again at the same address.
    pub(crate) async fn restart(mut self) -> Self {
        self.end();
        Self::serve(Arc::clone(&self.script), self.address).await
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Runs `ingle` against it.
    pub(crate) async fn ingle(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = super::ingle(arguments);
        command.args(["--coordinator", &self.endpoint]);
        tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the binary starts")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.end();
    }
}

impl Played {
    fn refuse(&self) -> Result<(), Status> {
        match self.0.refusals.lock().expect("no panic").pop_front() {
            Some(problem) => Err(problem.into()),
            None => Ok(()),
        }
    }

    async fn wait(&self) {
        if self.0.until_asked {
            self.0.asked.notified().await;
        }
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Played {
    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let mut looks = self.0.looks.lock().expect("no panic");
        let look = if looks.len() > 1 { looks.pop_front() } else { looks.front().cloned() };
        let mut nodes = look.unwrap_or_else(|| self.0.nodes.clone());
        nodes.iter_mut().for_each(|node| name_self(&mut node.address, &request));
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        let request = request.into_inner();
        let looks = self.0.looks.lock().expect("no panic");
        let Some(nodes) = looks.front() else { return not_played() };
        let node = nodes.iter().find(|node| node.node_id == request.node_id).cloned();
        self.0.drains.lock().expect("no panic").push(request);
        Ok(Response::new(v1::DrainNodeResponse { node }))
    }

    async fn uncordon_node(
        &self,
        _: Request<v1::UncordonNodeRequest>,
    ) -> Result<Response<v1::UncordonNodeResponse>, Status> {
        not_played()
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let Some(mut status) = self.0.status.clone() else { return not_played() };
        name_self(&mut status.gateway, &request);
        Ok(Response::new(status))
    }
}

#[tonic::async_trait]
impl v1::models_server::Models for Played {
    async fn list_models(&self, _: Request<v1::ListModelsRequest>) -> Result<Response<v1::ListModelsResponse>, Status> {
        // What waits is answered a little later, when this has been told.
        let script = Arc::clone(&self.0);
        let models = script.models.clone();
        #[allow(clippy::disallowed_methods, reason = "ends by itself, at the latest with the test's runtime")]
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            script.asked.notify_one();
        });
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn load_model(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<v1::LoadModelResponse>, Status> {
        let request = request.into_inner();
        let node_id = request.node_id.clone();
        self.0.loads.lock().expect("no panic").push(request);
        let mut loadings = self.0.loadings.lock().expect("no panic");
        match if loadings.len() > 1 { loadings.pop_front() } else { loadings.front().cloned() } {
            None => not_played(),
            Some(Err(problem)) => Err(problem.into()),
            Some(Ok(())) => Ok(Response::new(v1::LoadModelResponse { node_id, ..Default::default() })),
        }
    }

    async fn unload_model(
        &self,
        _: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        not_played()
    }

    async fn explain_fit(&self, _: Request<v1::ExplainFitRequest>) -> Result<Response<v1::ExplainFitResponse>, Status> {
        not_played()
    }

    async fn explain_model(
        &self,
        _: Request<v1::ExplainModelRequest>,
    ) -> Result<Response<v1::ExplainModelResponse>, Status> {
        self.0.explained_model.clone().map_or_else(not_played, |explained| Ok(Response::new(explained)))
    }
}

/// Documents looked at for one page.
const LOOKED_AT: usize = 1000;

/// `self` becomes the address at which this coordinator was asked.
fn name_self<T>(address: &mut String, request: &Request<T>) {
    if let Some(own) = request.local_addr().filter(|_| address == "self") {
        *address = own.to_string();
    }
}

pub(crate) fn not_played<T>() -> Result<T, Status> {
    Err(Problem::new(ErrorCode::Unimplemented, "not played").into())
}

#[tonic::async_trait]
impl v1::jobs_server::Jobs for Played {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let request = request.into_inner();
        self.0.submissions.lock().expect("no panic").push(request.clone());
        if self.0.submit_failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Problem::new(ErrorCode::NotLeader, "another leads now").into());
        }
        if let Some(refusal) = &self.0.refusal {
            return Err(refusal.clone().into());
        }
        if request.idempotency_key == "used" {
            return Err(Problem::new(ErrorCode::IdempotencyKeyReused, "the key named another job").into());
        }
        let job = v1::Job {
            job_id: "j-1".into(),
            spec: request.spec,
            state: v1::JobState::Listing.into(),
            ..Default::default()
        };
        Ok(Response::new(v1::SubmitJobResponse { job: Some(job), existed: false }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let id = request.into_inner().job_id;
        match self.0.jobs.iter().find(|job| job.job_id == id) {
            Some(job) => Ok(Response::new(v1::GetJobResponse { job: Some(job.clone()) })),
            None => Err(Problem::new(ErrorCode::JobNotFound, format!("no job {id}")).into()),
        }
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let states = request.into_inner().states;
        let wanted = |job: &&v1::Job| states.is_empty() || states.contains(&job.state);
        let jobs = self.0.jobs.iter().filter(wanted).cloned().collect();
        Ok(Response::new(v1::ListJobsResponse { jobs, ..Default::default() }))
    }

    async fn list_items(
        &self,
        request: Request<v1::ListItemsRequest>,
    ) -> Result<Response<v1::ListItemsResponse>, Status> {
        let request = request.into_inner();
        let start: usize = request.page_token.parse().unwrap_or(0);
        // As the real one: so many documents are looked at for a page, which may then be empty and not the last.
        let end = (start + LOOKED_AT).min(self.0.items.len());
        let wanted = |item: &v1::Item| {
            (request.outcomes.is_empty() || request.outcomes.contains(&item.outcome))
                && (!request.incomplete || !item.code.is_empty())
        };
        let matching = (start..end).filter(|at| wanted(&self.0.items[*at]));
        let taken: Vec<usize> = matching.take(request.page_size as usize).collect();
        let full = taken.len() == request.page_size as usize;
        let end = taken.last().filter(|_| full).map_or(end, |last| last + 1);
        let next_page_token = if end < self.0.items.len() { end.to_string() } else { String::new() };
        let items = taken.into_iter().map(|at| self.0.items[at].clone()).collect();
        Ok(Response::new(v1::ListItemsResponse { items, next_page_token }))
    }

    type WatchJobStream = Streamed<v1::WatchJobResponse>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        if request.into_inner().job_id != "j-1" {
            return Err(Problem::new(ErrorCode::JobNotFound, "no such job").into());
        }
        let call = self.0.watch_calls.fetch_add(1, Ordering::SeqCst);
        let (jobs, end) = {
            let watches = self.0.watches.lock().expect("no panic");
            watches[call.min(watches.len() - 1)].clone()
        };
        let frames = jobs.into_iter().map(|job| Ok(v1::WatchJobResponse { job: Some(job) }));
        let frames = tokio_stream::iter(frames);
        // Without an end the stream stays open, as a job's does that goes on.
        match end {
            Some(status) => Ok(Response::new(Box::pin(frames.chain(tokio_stream::iter([Err(status)]))))),
            None => Ok(Response::new(Box::pin(frames.chain(tokio_stream::pending())))),
        }
    }

    async fn cancel_job(&self, _: Request<v1::CancelJobRequest>) -> Result<Response<v1::CancelJobResponse>, Status> {
        not_played()
    }

    async fn pause_job(&self, _: Request<v1::PauseJobRequest>) -> Result<Response<v1::PauseJobResponse>, Status> {
        Err(Problem::new(ErrorCode::JobState, "it has ended").into())
    }

    async fn resume_job(&self, _: Request<v1::ResumeJobRequest>) -> Result<Response<v1::ResumeJobResponse>, Status> {
        not_played()
    }

    async fn explain_job(&self, _: Request<v1::ExplainJobRequest>) -> Result<Response<v1::ExplainJobResponse>, Status> {
        self.0.explained.clone().map_or_else(not_played, |explained| Ok(Response::new(explained)))
    }
}

#[tonic::async_trait]
impl v1::inference_server::Inference for Played {
    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let request = request.into_inner();
        if request.model == "absent" {
            return Err(Problem::new(ErrorCode::ModelNotFound, "no node sees a model \"absent\"").into());
        }
        self.refuse()?;
        self.wait().await;
        let embeddings = request
            .texts
            .iter()
            .map(|text| v1::Embedding { vector: vec![text.len() as f32, 0.5], tokens: 3, truncated: text.len() > 100 })
            .collect();
        let model = Some(v1::ModelRef { name: "m".into(), digest: vec![7; 32].into() });
        Ok(Response::new(v1::EmbedResponse { embeddings, model, ..Default::default() }))
    }

    type GenerateStream = Streamed<v1::GenerateResponse>;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let call = {
            let mut calls = self.0.generate_calls.lock().expect("no panic");
            calls.push(request.into_inner());
            calls.len() - 1
        };
        let frames = {
            let generations = self.0.generations.lock().expect("no panic");
            generations[call.min(generations.len() - 1)].clone()
        };
        self.wait().await;
        Ok(Response::new(Box::pin(tokio_stream::iter(frames))))
    }

    async fn ocr(&self, _: Request<tonic::Streaming<v1::OcrRequest>>) -> Result<Response<v1::OcrResponse>, Status> {
        self.refuse()?;
        not_played()
    }
}
