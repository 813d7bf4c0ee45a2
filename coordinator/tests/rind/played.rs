//! Nodes and a gateway that do what a test tells them, and a coordinator that is told where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use ingle_coordinator::config::Config;
use ingle_coordinator::{Deps, run};
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, Channel, ConnectOptions};
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks};
use ingle_proto::v1::{self, ItemOutcome, input_spec::Input, work_request, work_response::Message};
use ingle_proto::{Digest, Problem};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
pub(crate) type Say = mpsc::Sender<Result<v1::WorkResponse, Status>>;

/// Long enough that only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

async fn listen() -> (tokio::net::TcpListener, String) {
    let listener = grpc::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A node played by the test.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: String,
    heard: mpsc::Receiver<work_request::Message>,
    say: Arc<Mutex<Option<Say>>>,
    _stop: Stop,
}

/// Ends a server with its owner.
struct Stop(Shutdown);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.begin();
    }
}

struct NodeService {
    welcome: v1::Welcome,
    told: mpsc::Sender<work_request::Message>,
    say: Arc<Mutex<Option<Say>>>,
    tasks: Tasks,
}

#[tonic::async_trait]
impl v1::node_server::Node for NodeService {
    type WorkStream = Answers<v1::WorkResponse>;
    type BeatStream = Answers<v1::BeatResponse>;

    async fn work(&self, request: Request<Streaming<v1::WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|first| first.message);
        assert!(matches!(first, Some(work_request::Message::Hello(_))), "{first:?}");
        let (say, answers) = mpsc::channel(64);
        let welcome = Message::Welcome(self.welcome.clone());
        say.send(Ok(v1::WorkResponse { message: Some(welcome) })).await.unwrap();
        *self.say.lock().unwrap() = Some(say);
        let told = self.told.clone();
        self.tasks.spawn("played node", OnFailure::Log, async move {
            while let Ok(Some(request)) = inbound.message().await {
                if told.send(request.message.expect("a message")).await.is_err() {
                    break;
                }
            }
            Ok::<(), BoxError>(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn beat(&self, request: Request<Streaming<v1::BeatRequest>>) -> Result<Response<Self::BeatStream>, Status> {
        let welcome = self.welcome.clone();
        let answers = request.into_inner().map(move |beat| {
            Ok(v1::BeatResponse {
                node_id: welcome.node_id.clone(),
                incarnation: welcome.incarnation.clone(),
                sequence: beat?.sequence,
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Node {
    pub(crate) async fn start(id: &str, models: &[(&str, v1::JobKind)]) -> Self {
        let (listener, address) = listen().await;
        let (told, heard) = mpsc::channel(64);
        let say: Arc<Mutex<Option<Say>>> = Arc::default();
        let stop = Shutdown::new();
        let tasks = Tasks::new(stop.clone());
        let models = models.iter().map(|(name, kind)| v1::ModelInfo {
            model: Some(v1::ModelRef { name: (*name).to_owned(), digest: Digest::of(name.as_bytes()).to_wire() }),
            kind: (*kind).into(),
            parameters: 1_000_000,
            weight_bytes: 1 << 20,
            bytes_per_token: 1 << 20,
            kv_bytes_per_token: 64,
            context: 2048,
            layers: 2,
            width: 64,
            ..Default::default()
        });
        let welcome = v1::Welcome {
            node_id: id.to_owned(),
            incarnation: format!("{id}-1"),
            name: id.to_owned(),
            capacity: Some(v1::Capacity {
                cores: 4,
                memory_bytes: 8 << 30,
                memory_budget_bytes: 6 << 30,
                memory_bandwidth: 1e10,
                compute_f32: 1e11,
                slots: 2,
                ..Default::default()
            }),
            models: models.collect(),
            ..Default::default()
        };
        let service = NodeService { welcome, told, say: Arc::clone(&say), tasks: tasks.clone() };
        let server = grpc::server(&grpc::ServerLimits::default(), None)
            .unwrap()
            .add_service(v1::node_server::NodeServer::new(service))
            .serve_with_incoming_shutdown(grpc::incoming(listener), stop.wait());
        tasks.spawn("played node's server", OnFailure::Log, server);
        Self { id: id.to_owned(), address, heard, say, _stop: Stop(stop) }
    }

    /// Tells the coordinator something.
    pub(crate) async fn say(&self, message: Message) {
        let say = self.say.lock().unwrap().clone().expect("the coordinator has dialled");
        say.send(Ok(v1::WorkResponse { message: Some(message) })).await.expect("the stream is open");
    }

    /// Its end of the stream that there is now; kept, it outlives the next one, as that of a cut cable does.
    pub(crate) fn stream(&self) -> Say {
        self.say.lock().unwrap().clone().expect("the coordinator has dialled")
    }

    /// Waits for a message that says whether it is drained: every stream begins with one.
    pub(crate) async fn attached(&mut self) {
        self.draining().await;
    }

    pub(crate) async fn told_to_end(&mut self) {
        self.hear("its leave", |message| match message {
            work_request::Message::Drain(drain) if drain.leave => Some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) async fn farewell(&mut self) {
        self.hear("a farewell", |message| match message {
            work_request::Message::Farewell(_) => Some(()),
            _ => None,
        })
        .await;
    }

    /// Breaks the stream.
    pub(crate) fn break_off(&self) {
        *self.say.lock().unwrap() = None;
    }

    /// Waits until a stream that was broken is opened again.
    pub(crate) async fn opened_again(&self) {
        in_time("another stream", async {
            while self.say.lock().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn hear<T>(&mut self, what: &str, wanted: impl Fn(work_request::Message) -> Option<T>) -> T {
        let id = self.id.clone();
        in_time(&format!("{what} for {id}"), async {
            loop {
                if let Some(found) = wanted(self.heard.recv().await.expect("the service lives")) {
                    return found;
                }
            }
        })
        .await
    }

    pub(crate) async fn assigned(&mut self) -> v1::Assign {
        self.hear("work", |message| match message {
            work_request::Message::Assign(assign) => Some(assign),
            _ => None,
        })
        .await
    }

    pub(crate) async fn cancelled(&mut self) -> u64 {
        self.hear("a cancel", |message| match message {
            work_request::Message::Cancel(cancel) => Some(cancel.attempt),
            _ => None,
        })
        .await
    }

    pub(crate) async fn loading(&mut self) -> u64 {
        self.hear("a command to load", |message| match message {
            work_request::Message::Load(load) => Some(load.request),
            _ => None,
        })
        .await
    }

    pub(crate) async fn draining(&mut self) -> bool {
        self.hear("a drain", |message| match message {
            work_request::Message::Drain(drain) => Some(drain.drain),
            _ => None,
        })
        .await
    }
}

/// A gateway played by the test: blobs in memory; inline texts are listed, those that begin with `skip` skipped; results
/// of the document named `1` meet a person's file.
pub(crate) struct Storage {
    pub(crate) address: String,
    blobs: Blobs,
    _stop: Stop,
}

#[derive(Clone, Default)]
struct Blobs(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl Blobs {
    fn keep(&self, bytes: Vec<u8>) -> v1::BlobRef {
        let blob = v1::BlobRef { digest: Digest::of(&bytes).to_wire(), size: bytes.len() as u64 };
        self.0.lock().unwrap().insert(blob.digest.to_vec(), bytes);
        blob
    }

    fn message<M: prost::Message + Default>(&self, blob: &v1::BlobRef) -> M {
        M::decode(self.0.lock().unwrap()[blob.digest.as_ref()].as_slice()).unwrap()
    }
}

#[tonic::async_trait]
impl v1::storage_server::Storage for Blobs {
    type ListStream = Answers<v1::ListResponse>;
    type ScanStream = Answers<v1::ScanResponse>;
    type ReadStream = Answers<v1::ReadResponse>;

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn ranges(&self, _: Request<v1::RangesRequest>) -> Result<Response<v1::RangesResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        assert!(request.epoch.is_some() && !request.model_digest.is_empty(), "{request:?}");
        let Some(Input::Payload(payload)) = request.input.and_then(|input| input.input) else {
            return Err(Problem::missing("input.payload").into());
        };
        let texts: v1::InlineInput = self.message(&payload);
        let entry = |(index, text): (u32, &String)| v1::SegmentEntry {
            inline_index: Some(index),
            name: index.to_string().into(),
            size: text.len() as u64,
            action: if text.starts_with("skip") { v1::EntryAction::Skip } else { v1::EntryAction::Do }.into(),
            ..Default::default()
        };
        let entries: Vec<_> = (0u32..).zip(&texts.texts).map(entry).collect();
        let to_do = entries.iter().filter(|entry| entry.action() == v1::EntryAction::Do).count() as u32;
        let count = entries.len() as u32;
        let info = v1::SegmentInfo {
            blob: Some(self.keep(v1::Segment { bucket: 0, entries }.encode_to_vec())),
            entries: count,
            to_do,
            skipped: count - to_do,
            size_kib: vec![1; to_do as usize],
            ..Default::default()
        };
        use v1::scan_response::Message::{Done, Progress, Segment};
        let messages = [
            Progress(v1::ScanProgress { entries: 1, directories: 0 }),
            Segment(info),
            Done(v1::ScanDone { buckets: 1, entries: u64::from(count), ..Default::default() }),
        ];
        let messages = messages.map(|message| Ok(v1::ScanResponse { message: Some(message) }));
        Ok(Response::new(Box::pin(futures::stream::iter(messages))))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let Some(v1::read_request::Source::Blob(blob)) = request.into_inner().source else {
            return Err(Status::unimplemented("not played"));
        };
        let bytes = self.0.lock().unwrap().get(blob.digest.as_ref()).cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("no such blob"))?;
        let pieces: Vec<_> = bytes
            .chunks(7)
            .map(|piece| Ok(v1::ReadResponse { attributes: None, data: piece.to_vec().into() }))
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }

    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let mut inbound = request.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = inbound.message().await? {
            match message.message {
                Some(v1::stage_request::Message::Header(header)) => assert!(header.blob && header.epoch.is_some()),
                Some(v1::stage_request::Message::Data(data)) => bytes.extend_from_slice(&data),
                None => {}
            }
        }
        let blob = self.keep(bytes);
        Ok(Response::new(v1::StageResponse { digest: blob.digest, size: blob.size }))
    }

    async fn forget(&self, _: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn publish(&self, request: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        let request = request.into_inner();
        let manifest: v1::ResultManifest = self.message(&request.manifest.unwrap());
        let outputs: Vec<_> = manifest
            .outputs
            .iter()
            .map(|output| {
                let conflict = output.name.as_ref() == b"1.txt";
                let outcome = if conflict { ItemOutcome::Conflict } else { ItemOutcome::Published };
                v1::OutputOutcome { name: output.name.clone(), outcome: outcome.into(), ..Default::default() }
            })
            .collect();
        let conflict = outputs.iter().filter(|output| output.outcome() == ItemOutcome::Conflict).count() as u64;
        let published = outputs.len() as u64 - conflict;
        let outcomes = Some(self.keep(v1::OutcomeManifest { outputs }.encode_to_vec()));
        Ok(Response::new(v1::PublishResponse { outcomes, published, conflict, removed: 0 }))
    }

    async fn list_exports(
        &self,
        _: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        Ok(Response::new(v1::ListExportsResponse::default()))
    }
}

impl Storage {
    pub(crate) async fn start() -> Self {
        let (listener, address) = listen().await;
        let blobs = Blobs::default();
        let stop = Shutdown::new();
        let server = grpc::server(&grpc::ServerLimits::default(), None)
            .unwrap()
            .add_service(v1::storage_server::StorageServer::new(blobs.clone()))
            .serve_with_incoming_shutdown(grpc::incoming(listener), stop.wait());
        Tasks::new(stop.clone()).spawn("played gateway", OnFailure::Log, server);
        Self { address, blobs, _stop: Stop(stop) }
    }

    pub(crate) fn keep(&self, bytes: Vec<u8>) -> v1::BlobRef {
        self.blobs.keep(bytes)
    }

    pub(crate) fn message<M: prost::Message + Default>(&self, blob: &v1::BlobRef) -> M {
        self.blobs.message(blob)
    }
}

/// The coordinator under test.
pub(crate) struct Coordinator {
    address: SocketAddr,
    stop: Shutdown,
    ended: oneshot::Receiver<Result<(), String>>,
    _state: tempfile::TempDir,
}

impl Coordinator {
    /// Started, with all of the nodes ready.
    pub(crate) async fn start(nodes: &[&Node], storage: Option<&Storage>) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (listener, _) = listen().await;
        let deps = Deps {
            config: Config {
                state_dir: state.path().to_owned(),
                drain_timeout_s: 2,
                metrics: None,
                gateway: storage.map(|storage| storage.address.clone()),
                nodes: nodes.iter().map(|node| node.address.clone()).collect(),
                ..Config::default()
            },
            metrics: Metrics::new("test"),
            readiness: Readiness::default(),
            listener,
            membership: None,
        };
        let stop = Shutdown::new();
        let (told, address) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let shutdown = stop.clone();
        Tasks::new(Shutdown::new()).spawn("coordinator", OnFailure::Log, async move {
            let serving = move |addresses: BTreeMap<String, SocketAddr>| {
                told.send(addresses["grpc"]).expect("the test waits for it");
                Ok(())
            };
            let outcome = run(deps, shutdown, Box::new(serving)).await;
            let _ = end.send(outcome.map_err(|error| error.to_string()));
            Ok::<(), BoxError>(())
        });
        let address = in_time("the address", address).await.unwrap();
        let coordinator = Self { address, stop, ended, _state: state };
        coordinator.until_attached(nodes.len() as u32).await;
        coordinator
    }

    /// Waits until so many nodes are ready.
    pub(crate) async fn until_attached(&self, nodes: u32) {
        let mut cluster = v1::cluster_client::ClusterClient::new(self.channel().await);
        in_time("the nodes", async {
            while cluster.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner().nodes_ready != nodes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Where its members register.
    pub(crate) fn registry(&self) -> String {
        format!("registry://{}", self.address)
    }

    pub(crate) async fn channel(&self) -> Channel {
        grpc::connect(&self.address.to_string(), &TlsConfig::default(), &ConnectOptions::eager()).await.unwrap()
    }

    pub(crate) async fn end(self) {
        self.stop.begin();
        in_time("its end", self.ended).await.unwrap().unwrap();
    }
}
