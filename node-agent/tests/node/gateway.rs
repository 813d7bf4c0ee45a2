//! A gateway in memory: objects, blobs and staged results, with faults on request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use ingle_proto::v1::storage_server::{Storage, StorageServer};
use ingle_proto::v1::{self, read_request::Source, stage_request};
use ingle_proto::{CHUNK_BYTES, Digest, ErrorCode, Problem};
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
pub(crate) struct State {
    /// By `export/path`.
    pub(crate) objects: Mutex<BTreeMap<String, (Vec<u8>, i64)>>,
    pub(crate) blobs: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    /// By staged name.
    pub(crate) staged: Mutex<BTreeMap<String, Bytes>>,
    /// Reads that will fail before one succeeds.
    pub(crate) failing_reads: AtomicU32,
    /// Pause before each read of an object, in milliseconds.
    pub(crate) slow_ms: AtomicU64,
    /// While a test holds it, reads of objects wait.
    pub(crate) gate: tokio::sync::Mutex<()>,
    pub(crate) object_reads: AtomicU32,
}

#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) state: Arc<State>,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let state = Arc::new(State::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = StorageServer::new(Service { state: Arc::clone(&state) });
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { state, address }
    }

    pub(crate) fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        let mut objects = self.state.objects.lock().unwrap();
        let mtime = objects.get(path).map_or(1000, |(_, mtime)| mtime + 1);
        objects.insert(path.to_owned(), (bytes.into(), mtime));
    }

    pub(crate) fn blob(&self, message: &impl prost::Message) -> v1::BlobRef {
        let bytes = Bytes::from(message.encode_to_vec());
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        self.state.blobs.lock().unwrap().insert(digest.0.to_vec(), bytes);
        v1::BlobRef { digest: digest.to_wire(), size }
    }

    pub(crate) fn message<M: prost::Message + Default>(&self, blob: &v1::BlobRef) -> M {
        M::decode(self.state.blobs.lock().unwrap()[blob.digest.as_ref()].clone()).unwrap()
    }

    pub(crate) fn staged(&self, name: &str) -> Bytes {
        self.state.staged.lock().unwrap()[name].clone()
    }
}

struct Service {
    state: Arc<State>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answers<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Response<Answers<T>> {
    Response::new(Box::pin(futures::stream::iter(items)))
}

fn unused<T>() -> Result<T, Status> {
    Err(Problem::new(ErrorCode::Unimplemented, "not in this test").into())
}

#[tonic::async_trait]
impl Storage for Service {
    type ListStream = Answers<v1::ListResponse>;
    type ScanStream = Answers<v1::ScanResponse>;
    type ReadStream = Answers<v1::ReadResponse>;

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        unused()
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let object = request.into_inner().object.unwrap_or_default();
        let prefix = match object.path.as_ref() {
            b"" => format!("{}/", object.export),
            path => format!("{}/{}/", object.export, String::from_utf8_lossy(path)),
        };
        let mut entries: BTreeMap<String, v1::Attributes> = BTreeMap::new();
        for (path, (bytes, mtime_ns)) in self.state.objects.lock().unwrap().iter() {
            let Some(rest) = path.strip_prefix(&prefix) else { continue };
            let mut attributes = v1::Attributes { size: bytes.len() as u64, mtime_ns: *mtime_ns, ..Default::default() };
            match rest.split_once('/') {
                Some((directory, _)) => {
                    attributes.set_kind(v1::ObjectKind::Directory);
                    entries.insert(directory.to_owned(), attributes);
                }
                None => {
                    attributes.set_kind(v1::ObjectKind::File);
                    entries.insert(rest.to_owned(), attributes);
                }
            }
        }
        let entry = |(name, attributes): (String, v1::Attributes)| v1::ListEntry {
            name: name.into_bytes().into(),
            attributes: Some(attributes),
        };
        Ok(answers(vec![Ok(v1::ListResponse { entries: entries.into_iter().map(entry).collect() })]))
    }

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        unused()
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let failing = &self.state.failing_reads;
        if failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(Problem::new(ErrorCode::StorageUnavailable, "the NAS does not answer").into());
        }
        let (bytes, mtime_ns) = match request.source {
            Some(Source::Blob(blob)) => {
                let blobs = self.state.blobs.lock().unwrap();
                let found = blobs.get(blob.digest.as_ref()).cloned();
                (found.ok_or_else(|| Problem::new(ErrorCode::ObjectNotFound, "no such blob"))?, 0)
            }
            Some(Source::Object(object)) => {
                self.state.object_reads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(self.state.slow_ms.load(Ordering::SeqCst))).await;
                drop(self.state.gate.lock().await);
                let path = format!("{}/{}", object.export, String::from_utf8_lossy(&object.path));
                let objects = self.state.objects.lock().unwrap();
                let found = objects.get(&path).map(|(bytes, mtime)| (Bytes::from(bytes.clone()), *mtime));
                found.ok_or_else(|| Problem::new(ErrorCode::ObjectNotFound, format!("no object {path}")))?
            }
            None => return Err(Problem::missing("source").into()),
        };
        let attributes = v1::Attributes { size: bytes.len() as u64, mtime_ns, ..Default::default() };
        let start = (request.offset as usize).min(bytes.len());
        let end = if request.length == 0 { bytes.len() } else { (start + request.length as usize).min(bytes.len()) };
        let mut messages = vec![Ok(v1::ReadResponse { attributes: Some(attributes), data: Bytes::new() })];
        let range = bytes.slice(start..end);
        messages.extend(
            range
                .chunks(CHUNK_BYTES)
                .map(|chunk| Ok(v1::ReadResponse { attributes: None, data: Bytes::copy_from_slice(chunk) })),
        );
        Ok(answers(messages))
    }

    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|first| first.message);
        let Some(stage_request::Message::Header(header)) = first else { return Err(Problem::missing("header").into()) };
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            if let Some(stage_request::Message::Data(data)) = message.message {
                bytes.extend_from_slice(&data);
            }
        }
        let digest = Digest::of(&bytes);
        if header.size != bytes.len() as u64 || header.digest.as_ref() != digest.0 {
            return Err(Problem::invalid("size", "other bytes than announced").into());
        }
        let size = header.size;
        if header.blob {
            self.state.blobs.lock().unwrap().insert(digest.0.to_vec(), bytes.into());
        } else {
            assert!(header.token.and_then(|token| token.place).is_some(), "staging needs a place");
            self.state.staged.lock().unwrap().insert(header.staged_name, bytes.into());
        }
        Ok(Response::new(v1::StageResponse { digest: digest.to_wire(), size }))
    }

    async fn forget(&self, _: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetResponse>, Status> {
        unused()
    }

    async fn publish(&self, _: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        unused()
    }

    async fn ranges(&self, _: Request<v1::RangesRequest>) -> Result<Response<v1::RangesResponse>, Status> {
        unused()
    }

    async fn list_exports(
        &self,
        _: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        unused()
    }
}
