//! Starts a node and plays the coordinator.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ingle_daemon::Shutdown;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_engine::fake::FakeEngine;
use ingle_engine::{Engine, EngineError, LoadOptions, Model, ModelCard};
use ingle_node_agent::{Deps, Listeners, NodeConfig, StartError, run};
use ingle_proto::v1::node_client::NodeClient;
use ingle_proto::v1::{self, assign::Work, work_request, work_response::Message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::gateway::Gateway;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) gateway: Gateway,
    pub(crate) work: SocketAddr,
    pub(crate) beat: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<Result<(), StartError>>,
}

/// Makes a fake model in a directory.
pub(crate) fn model(root: &Path, name: &str, config: &str) {
    let dir = root.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("fake-model.json"), config).unwrap();
}

/// Fake models whose load waits until it is let go.
#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) loads: Arc<AtomicUsize>,
    pub(crate) go: Arc<AtomicBool>,
}

impl Engine for Slow {
    fn backend(&self) -> String {
        "slow".into()
    }

    fn files(&self, names: &[String]) -> Option<Vec<String>> {
        FakeEngine::new().files(names)
    }

    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError> {
        FakeEngine::new().inspect(dir)
    }

    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        while !self.go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        FakeEngine::new().load(options)
    }
}

impl Node {
    /// A node over local fake models.
    pub(crate) async fn start(models: &[(&str, &str)]) -> Self {
        Self::start_with(models, |_| {}).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir, gateway: Gateway, models: &str) -> Self {
        Self::start_over(Arc::new(FakeEngine::new()), dir, gateway, models).await
    }

    pub(crate) async fn start_over(
        engine: Arc<dyn Engine>,
        dir: tempfile::TempDir,
        gateway: Gateway,
        models: &str,
    ) -> Self {
        Self::start_set(engine, dir, gateway, models, |_| {}).await
    }

    /// A node over local fake models, whose settings `set` changes.
    pub(crate) async fn start_with(models: &[(&str, &str)], set: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models");
        std::fs::create_dir_all(&root).unwrap();
        for (name, config) in models {
            model(&root, name, config);
        }
        let (gateway, root) = (Gateway::start().await, root.display().to_string());
        Self::start_set(Arc::new(FakeEngine::new()), dir, gateway, &root, set).await
    }

    async fn start_set(
        engine: Arc<dyn Engine>,
        dir: tempfile::TempDir,
        gateway: Gateway,
        models: &str,
        set: impl FnOnce(&mut NodeConfig),
    ) -> Self {
        let mut config = NodeConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            beat_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: None,
            name: Some("test".into()),
            state_dir: dir.path().join("state"),
            cache_dir: dir.path().join("cache"),
            cache_bytes_max: 64 << 20,
            models: Some(models.to_owned()),
            memory_reserve_bytes: Some(0),
            threads: 1,
            measure_ms: 0,
            drain_timeout_s: 10,
            ..NodeConfig::default()
        };
        set(&mut config);
        let listeners = Listeners::bind(&config).await.unwrap();
        let (work, beat) = (listeners.work.local_addr().unwrap(), listeners.beat.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let deps = Deps {
            config,
            engine,
            metrics: Metrics::new("ingle-node"),
            readiness: Readiness::default(),
            listeners,
            membership: None,
            parser: "/nowhere/a-program-that-parses".into(),
        };
        let running = tokio::spawn(run(deps, shutdown.clone(), Box::new(|_| Ok(()))));
        Self { gateway, work, beat, dir, shutdown, running }
    }

    /// Ends the node as SIGTERM does.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.begin();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").expect("no panic").expect("no error");
        self.dir
    }

    /// Waits until it reads a first document.
    pub(crate) async fn has_begun(&self) {
        let reads = || self.gateway.state.object_reads.load(Ordering::SeqCst);
        let begun = async {
            while reads() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("it reads what it was sent");
    }

    /// It ends without being asked to.
    pub(crate) async fn ends(self) -> Result<(), StartError> {
        tokio::time::timeout(PATIENCE, self.running).await.expect("it ends").expect("no panic")
    }

    /// Waits until it has ended by itself, without an error.
    pub(crate) async fn ended(self) {
        self.ends().await.expect("no error");
    }

    pub(crate) fn begin_stop(&self) {
        self.shutdown.begin();
    }

    pub(crate) async fn client(&self) -> NodeClient<tonic::transport::Channel> {
        let endpoint = format!("http://{}", self.work);
        let connected = async {
            loop {
                if let Ok(client) = NodeClient::connect(endpoint.clone()).await {
                    return client;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, connected).await.expect("the node answers")
    }

    pub(crate) async fn lead(&self) -> Leader {
        self.lead_at(1).await.expect("a stream")
    }

    pub(crate) async fn lead_at(&self, revision: u64) -> Result<Leader, tonic::Status> {
        self.lead_as(revision, false).await
    }

    /// A leader that answers a node which leaves, or an older one that doesn't know how.
    pub(crate) async fn lead_as(&self, revision: u64, answers_leaving: bool) -> Result<Leader, tonic::Status> {
        let (to, requests) = mpsc::channel(64);
        let hello = v1::Hello {
            epoch: Some(v1::Epoch { generation: 1, revision }),
            coordinator_id: "c-test".into(),
            gateway: self.gateway.address.to_string(),
            answers_leaving,
        };
        send(&to, work_request::Message::Hello(hello)).await;
        let mut from = self.client().await.work(ReceiverStream::new(requests)).await?.into_inner();
        let Some(Message::Welcome(welcome)) = from.message().await?.and_then(|first| first.message) else {
            panic!("the first answer is the welcome");
        };
        Ok(Leader { to, from, welcome, gateway: self.gateway.clone() })
    }
}

async fn send(to: &mpsc::Sender<v1::WorkRequest>, message: work_request::Message) {
    to.send(v1::WorkRequest { message: Some(message) }).await.expect("the stream is open");
}

/// The coordinator's end of a stream.
pub(crate) struct Leader {
    to: mpsc::Sender<v1::WorkRequest>,
    from: tonic::Streaming<v1::WorkResponse>,
    pub(crate) welcome: v1::Welcome,
    pub(crate) gateway: Gateway,
}

pub(crate) fn token(attempt: u64) -> v1::AttemptToken {
    v1::AttemptToken {
        job_id: "j-1".into(),
        batch: 1,
        attempt,
        epoch: Some(v1::Epoch { generation: 1, revision: 1 }),
        place: Some(v1::ObjectRef { export: "docs".into(), path: b"out".to_vec().into() }),
        ..Default::default()
    }
}

impl Leader {
    pub(crate) async fn send(&self, message: work_request::Message) {
        send(&self.to, message).await;
    }

    pub(crate) async fn assign(&self, attempt: u64, model: &str, work: Work) {
        let model = Some(v1::ModelRef { name: model.into(), digest: bytes::Bytes::new() });
        self.assign_model(attempt, model, work).await;
    }

    pub(crate) async fn assign_model(&self, attempt: u64, model: Option<v1::ModelRef>, work: Work) {
        let assign = v1::Assign {
            token: Some(token(attempt)),
            model,
            gateway: self.gateway.address.to_string(),
            work: Some(work),
            queued_us: 5,
            ..Default::default()
        };
        self.send(work_request::Message::Assign(assign)).await;
    }

    /// The next message, or nothing once the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(PATIENCE, self.from.message()).await.expect("an answer in time");
        next.ok().flatten().and_then(|answer| answer.message)
    }

    /// The next message that `wanted` takes.
    pub(crate) async fn until<T>(&mut self, mut wanted: impl FnMut(Message) -> Option<T>) -> T {
        loop {
            let message = self.next().await.expect("the stream is open");
            if let Some(found) = wanted(message) {
                return found;
            }
        }
    }

    /// How an attempt ended.
    pub(crate) async fn ended(&mut self, attempt: u64) -> Result<v1::Complete, v1::Failed> {
        self.until(|message| match message {
            Message::Complete(complete) if complete.token.as_ref().is_some_and(|t| t.attempt == attempt) => {
                Some(Ok(complete))
            }
            Message::Failed(failed) if failed.token.as_ref().is_some_and(|t| t.attempt == attempt) => Some(Err(failed)),
            _ => None,
        })
        .await
    }

    /// Nothing but news of models comes for a while.
    pub(crate) async fn quiet(&mut self) {
        let wait = async {
            loop {
                match self.from.message().await.expect("the stream is open").and_then(|answer| answer.message) {
                    Some(Message::Models(_) | Message::Progress(_)) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_millis(300), wait).await;
    }
}

/// A listing's entry for an object of the export `docs`.
pub(crate) fn entry(name: &str) -> v1::SegmentEntry {
    let mut entry = v1::SegmentEntry {
        object: Some(v1::ObjectRef { export: "docs".into(), path: format!("in/{name}").into_bytes().into() }),
        name: name.as_bytes().to_vec().into(),
        size: 10,
        mtime_ns: 1,
        ..Default::default()
    };
    entry.set_action(v1::EntryAction::Do);
    entry
}

/// A batch over these documents; their texts are put into the gateway.
pub(crate) fn batch(gateway: &Gateway, kind: v1::JobKind, documents: &[(&str, &[u8])]) -> v1::BatchWork {
    let mut entries = Vec::new();
    for (name, bytes) in documents {
        gateway.put(&format!("docs/in/{name}"), *bytes);
        entries.push(entry(name));
    }
    batch_of(gateway, kind, entries)
}

pub(crate) fn batch_of(gateway: &Gateway, kind: v1::JobKind, entries: Vec<v1::SegmentEntry>) -> v1::BatchWork {
    let count = u32::try_from(entries.len()).unwrap();
    let segment = gateway.blob(&v1::Segment { bucket: 3, entries });
    v1::BatchWork { kind: kind.into(), segment: Some(segment), first: 0, count, bucket: 3, ..Default::default() }
}
