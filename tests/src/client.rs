//! What a program does with a cluster: real gRPC against the coordinator's address, with the waiting that tests need.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ingle_proto::v1::cluster_client::ClusterClient;
use ingle_proto::v1::inference_client::InferenceClient;
use ingle_proto::v1::input_spec::Input;
use ingle_proto::v1::jobs_client::JobsClient;
use ingle_proto::v1::models_client::ModelsClient;
use ingle_proto::v1::{self, ItemOutcome, JobState};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::eventually::eventually;

/// The export that tests work in.
pub const EXPORT: &str = "docs";

/// All of the coordinator's public services.
#[derive(Debug, Clone)]
pub struct Client {
    /// `ingle.v1.Jobs`.
    pub jobs: JobsClient<Channel>,
    /// `ingle.v1.Inference`.
    pub inference: InferenceClient<Channel>,
    /// `ingle.v1.Cluster`.
    pub cluster: ClusterClient<Channel>,
    /// `ingle.v1.Models`.
    pub models: ModelsClient<Channel>,
}

/// A channel that connects when it is first used, and again whenever it broke.
///
/// # Panics
/// Never: an address makes a URL.
#[must_use]
pub fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL").connect_lazy()
}

/// An object of [`EXPORT`].
#[must_use]
pub fn object(path: &str) -> v1::ObjectRef {
    v1::ObjectRef { export: EXPORT.into(), path: path.as_bytes().to_vec().into() }
}

/// Every document below a directory of [`EXPORT`].
#[must_use]
pub fn tree(path: &str) -> v1::InputSpec {
    v1::InputSpec { input: Some(Input::Tree(object(path))) }
}

/// A job that embeds the tree `in` into `out`.
#[must_use]
pub fn embed_job() -> v1::JobSpec {
    v1::JobSpec {
        kind: v1::JobKind::Embed.into(),
        input: Some(tree("in")),
        output: Some(object("out")),
        ..Default::default()
    }
}

/// A job that answers each document of the tree `in` into `out`.
#[must_use]
pub fn generate_job() -> v1::JobSpec {
    v1::JobSpec {
        kind: v1::JobKind::Generate.into(),
        generate: Some(v1::GenerateOptions {
            prompt: "Say what this is about:\n{{ document }}".into(),
            max_tokens: 64,
            ..Default::default()
        }),
        ..embed_job()
    }
}

/// A job that reads the pages of the tree `in` into `out`.
#[must_use]
pub fn ocr_job() -> v1::JobSpec {
    v1::JobSpec { kind: v1::JobKind::Ocr.into(), ..embed_job() }
}

/// What a person types.
#[must_use]
pub fn question(text: &str) -> v1::GenerateRequest {
    let part = v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) };
    v1::GenerateRequest {
        messages: vec![v1::ChatMessage { role: "user".into(), content: vec![part], ..Default::default() }],
        ..Default::default()
    }
}

/// Whether a job has ended.
#[must_use]
pub fn ended(job: &v1::Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// A job's counts.
#[must_use]
pub fn counts(job: &v1::Job) -> v1::ItemCounts {
    job.counts.unwrap_or_default()
}

impl Client {
    /// To the coordinator at this address.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self::over(channel(address))
    }

    /// Over a connection that was made elsewhere, with TLS for one.
    #[must_use]
    pub fn over(channel: Channel) -> Self {
        Self {
            jobs: JobsClient::new(channel.clone()),
            inference: InferenceClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            models: ModelsClient::new(channel),
        }
    }

    /// Submits, with a key or "".
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn try_submit(&self, spec: v1::JobSpec, key: &str) -> Result<v1::SubmitJobResponse, Status> {
        let request = v1::SubmitJobRequest { spec: Some(spec), idempotency_key: key.into(), ..Default::default() };
        Ok(self.jobs.clone().submit_job(request).await?.into_inner())
    }

    /// Submits; answers the job's id.
    ///
    /// # Panics
    /// It is refused.
    pub async fn submit(&self, spec: v1::JobSpec) -> String {
        let answer = self.try_submit(spec, "").await.expect("the job is accepted");
        answer.job.expect("a job").job_id
    }

    /// The job as it is.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn job(&self, id: &str) -> Result<v1::Job, Status> {
        let answer = self.jobs.clone().get_job(v1::GetJobRequest { job_id: id.into() }).await?;
        Ok(answer.into_inner().job.unwrap_or_default())
    }

    /// Waits for a job to be as wanted. A coordinator that doesn't answer for a while is waited for.
    pub async fn job_that(&self, id: &str, what: &str, wanted: impl Fn(&v1::Job) -> bool) -> v1::Job {
        eventually(what, || async {
            match self.job(id).await {
                Ok(job) if wanted(&job) => Ok(job),
                Ok(job) => Err(format!("{job:?}\n{}", self.explain(id).await)),
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    Err(format!("{status:?}"))
                }
                Err(status) => panic!("waiting for {what}: {status:?}"),
            }
        })
        .await
    }

    async fn explain(&self, id: &str) -> String {
        match self.jobs.clone().explain_job(v1::ExplainJobRequest { job_id: id.into() }).await {
            Ok(answer) => format!("{:?}", answer.into_inner()),
            Err(status) => format!("{status:?}"),
        }
    }

    /// The job once it has ended.
    pub async fn end_of(&self, id: &str) -> v1::Job {
        self.job_that(id, "the job's end", ended).await
    }

    /// Submits and waits for the end.
    ///
    /// # Panics
    /// It is refused or doesn't end.
    pub async fn done(&self, spec: v1::JobSpec) -> v1::Job {
        let id = self.submit(spec).await;
        self.end_of(&id).await
    }

    /// As [`Client::done`], for jobs that must succeed.
    ///
    /// # Panics
    /// It didn't: says what became of its documents.
    pub async fn success(&self, spec: v1::JobSpec) -> v1::Job {
        let job = self.done(spec).await;
        if job.state() != JobState::Succeeded {
            let items: Vec<_> = self.items(&job.job_id).await.into_values().filter(|i| !i.reason.is_empty()).collect();
            panic!("{job:?}\n{items:#?}");
        }
        job
    }

    /// A job's documents by name, read in pages of 50.
    ///
    /// # Panics
    /// They can't be listed, or one is listed twice.
    pub async fn items(&self, id: &str) -> BTreeMap<String, v1::Item> {
        let mut items = BTreeMap::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListItemsRequest { job_id: id.into(), page_size: 50, page_token, ..Default::default() };
            let page = self.jobs.clone().list_items(request).await.expect("its documents").into_inner();
            assert!(page.items.len() <= 50, "a page holds no more than was asked for");
            for item in page.items {
                let name = String::from_utf8_lossy(&item.name).into_owned();
                assert!(items.insert(name.clone(), item).is_none(), "{name} is listed twice");
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return items;
            }
        }
    }

    /// What became of one document.
    ///
    /// # Panics
    /// It isn't among the job's.
    pub async fn item(&self, id: &str, name: &str) -> (ItemOutcome, v1::Item) {
        let mut items = self.items(id).await;
        let item = items.remove(name).unwrap_or_else(|| panic!("no document {name} among {:?}", items.keys()));
        (item.outcome(), item)
    }

    /// Nodes as the coordinator sees them, by the name people gave them.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn nodes(&self) -> Result<BTreeMap<String, v1::NodeStatus>, Status> {
        let answer = self.cluster.clone().list_nodes(v1::ListNodesRequest {}).await?.into_inner();
        Ok(answer.nodes.into_iter().map(|node| (node.name.clone(), node)).collect())
    }

    /// Waits until so many nodes are ready with so many usable models each, and a gateway is.
    ///
    /// # Panics
    /// They don't come.
    pub async fn ready(&self, nodes: usize, models: usize) {
        eventually("the cluster to be whole", || async {
            let status = self.cluster.clone().get_status(v1::GetStatusRequest {}).await;
            let status = status.map_err(|status| format!("{status:?}"))?.into_inner();
            let seen = self.models.clone().list_models(v1::ListModelsRequest::default()).await;
            let seen = seen.map_err(|status| format!("{status:?}"))?.into_inner().models;
            let everywhere = seen.iter().filter(|model| model.seen_by.len() == nodes).count();
            let whole = status.nodes_ready as usize == nodes && status.gateway_ready && everywhere == models;
            if whole { Ok(()) } else { Err(format!("{status:?} {seen:?}")) }
        })
        .await;
    }

    /// Texts to vectors, at once.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn embed(&self, texts: &[&str]) -> Result<v1::EmbedResponse, Status> {
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        let request = v1::EmbedRequest { texts, ..Default::default() };
        Ok(self.inference.clone().embed(request).await?.into_inner())
    }

    /// A document's pages, at once; sent in pieces of so many bytes.
    ///
    /// # Errors
    /// What the coordinator says.
    pub async fn ocr(&self, document: &[u8], piece: usize) -> Result<v1::OcrResponse, Status> {
        let pieces: Vec<v1::OcrRequest> = document
            .chunks(piece)
            .map(|data| v1::OcrRequest { data: data.to_vec().into(), ..Default::default() })
            .collect();
        Ok(self.inference.clone().ocr(futures::stream::iter(pieces)).await?.into_inner())
    }

    /// A whole answer.
    ///
    /// # Errors
    /// What the coordinator says, or the stream.
    pub async fn generate(&self, request: v1::GenerateRequest) -> Result<Answer, Status> {
        let mut stream = self.inference.clone().generate(request).await?.into_inner();
        let mut answer = Answer::default();
        while let Some(frame) = stream.message().await? {
            answer.take(frame);
        }
        Ok(answer)
    }
}

/// What came of a generation, with every rule of its stream checked on the way.
#[derive(Debug, Default)]
pub struct Answer {
    /// The first frame.
    pub started: Option<v1::GenerateStarted>,
    /// Tokens so far.
    pub tokens: Vec<u32>,
    /// Text so far.
    pub text: String,
    /// The last frame.
    pub finished: Option<v1::GenerateFinished>,
}

impl Answer {
    /// Takes a frame.
    ///
    /// # Panics
    /// It breaks a rule: nothing before the start or after the end, each token once and in order, each byte once.
    pub fn take(&mut self, frame: v1::GenerateResponse) {
        use v1::generate_response::Frame;
        assert!(self.finished.is_none(), "a frame after the last: {frame:?}");
        match frame.frame.expect("a frame holds something") {
            Frame::Started(started) => assert!(self.started.replace(started).is_none(), "started twice"),
            Frame::Delta(delta) => {
                assert!(self.started.is_some(), "a token before the start");
                assert_eq!(delta.index as usize, self.tokens.len(), "tokens come in order, each once");
                assert_eq!(delta.text_offset as usize, self.text.len(), "text comes in order, each byte once");
                self.tokens.push(delta.token);
                self.text.push_str(&delta.text);
            }
            Frame::Finished(finished) => {
                assert_eq!(finished.text_offset as usize, self.text.len(), "text comes in order, each byte once");
                self.text.push_str(&finished.text);
                self.finished = Some(finished);
            }
        }
    }

    /// Why it ended.
    ///
    /// # Panics
    /// It didn't.
    #[must_use]
    pub fn reason(&self) -> v1::FinishReason {
        self.finished.as_ref().expect("the last frame").reason()
    }

    /// Tokens read and written.
    ///
    /// # Panics
    /// It didn't end.
    #[must_use]
    pub fn usage(&self) -> v1::Usage {
        self.finished.as_ref().expect("the last frame").usage.unwrap_or_default()
    }
}
