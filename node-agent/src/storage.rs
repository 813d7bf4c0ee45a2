//! The gateway as the node calls it: every call with a deadline, tried again where that helps, every digest checked.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use ingle_daemon::backoff::Backoff;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{Channel, ConnectOptions, connect_lazy};
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::v1::{self, read_request, stage_request};
use ingle_proto::{CHUNK_BYTES, Digest, ErrorCode, MESSAGE_BYTES_MAX, Problem};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use crate::bulk::{Bulk, Part, Wanted};
use crate::limits;
use crate::metrics::NodeMetrics;

/// Connections to gateways, one per endpoint. Clones share them.
#[derive(Clone)]
pub struct Gateways {
    tls: TlsConfig,
    metrics: NodeMetrics,
    open: Arc<Mutex<BTreeMap<String, (Channel, Bulk)>>>,
}

impl Gateways {
    /// None open yet.
    #[must_use]
    pub fn new(tls: TlsConfig, metrics: NodeMetrics) -> Self {
        Self { tls, metrics, open: Arc::default() }
    }

    /// The gateway at an endpoint; it is dialled at the first call.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for text that isn't an endpoint, or plaintext to another machine.
    pub fn get(&self, endpoint: &str) -> Result<Gateway, Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (channel, bulk) = match open.get(endpoint) {
            Some(known) => known.clone(),
            None => {
                let channel = connect_lazy(endpoint, &self.tls, &ConnectOptions::default())
                    .map_err(|error| Problem::invalid("gateway", error))?;
                let bulk = Bulk::new(endpoint, &self.tls, StorageClient::new(channel.clone()))?;
                open.entry(endpoint.to_owned()).or_insert((channel, bulk)).clone()
            }
        };
        let client = StorageClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Gateway { client, bulk, metrics: self.metrics.clone() })
    }
}

/// One gateway. Clones share the connection.
#[derive(Clone)]
pub struct Gateway {
    client: StorageClient<Channel>,
    bulk: Bulk,
    metrics: NodeMetrics,
}

/// What is staged, in a form that can be sent again.
#[derive(Debug, Clone)]
pub enum StageBody {
    /// From memory.
    Bytes(Bytes),
    /// From a file of ours that doesn't change.
    File(PathBuf),
}

/// Where what is read goes.
enum Sink<'a> {
    Memory(&'a mut Vec<u8>),
    File(&'a mut tokio::fs::File, &'a mut blake3::Hasher),
}

impl Gateway {
    /// Reads a whole blob and checks its digest.
    ///
    /// # Errors
    /// What the gateway said; `DIGEST_MISMATCH`; `TOO_LARGE` past the limit on blobs.
    pub async fn blob(&self, blob: &v1::BlobRef) -> Result<Vec<u8>, Problem> {
        let digest = Digest::from_wire("digest", &blob.digest)?;
        let source = read_request::Source::Blob(blob.clone());
        self.retrying(|| async {
            let (_, bytes) = self.read_once(request(source.clone(), None), limits::BLOB_BYTES_MAX).await?;
            if Digest::of(&bytes) != digest {
                return Err(Problem::new(
                    ErrorCode::DigestMismatch,
                    format!("blob {digest:?} arrived with other bytes"),
                ));
            }
            Ok(bytes)
        })
        .await
    }

    /// Reads a blob that holds a message.
    ///
    /// # Errors
    /// As [`Gateway::blob`]; `INTERNAL` if it isn't that message.
    pub async fn message<M: prost::Message + Default>(&self, blob: &v1::BlobRef) -> Result<M, Problem> {
        let bytes = self.blob(blob).await?;
        M::decode(bytes.as_slice())
            .map_err(|error| Problem::new(ErrorCode::Internal, format!("a blob isn't the message expected: {error}")))
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// What the gateway said; `TOO_LARGE` past `bytes_max`.
    pub async fn object(
        &self,
        object: &v1::ObjectRef,
        token: Option<&v1::AttemptToken>,
        bytes_max: u64,
    ) -> Result<(v1::Attributes, Vec<u8>), Problem> {
        let source = read_request::Source::Object(object.clone());
        self.retrying(|| self.read_once(request(source.clone(), token), bytes_max)).await
    }

    /// Reads a whole object into an empty file. Answers its attributes and the digest of what came.
    ///
    /// # Errors
    /// What the gateway said; `TOO_LARGE` past `bytes_max`; `INTERNAL` if the file can't be written.
    pub async fn object_into(
        &self,
        object: &v1::ObjectRef,
        token: &v1::AttemptToken,
        file: &mut tokio::fs::File,
        bytes_max: u64,
    ) -> Result<(v1::Attributes, Digest), Problem> {
        let source = read_request::Source::Object(object.clone());
        let file = tokio::sync::Mutex::new(file);
        self.retrying(|| async {
            let mut file = file.lock().await;
            // A try before this one may have left something.
            file.set_len(0).await.map_err(local)?;
            file.rewind().await.map_err(local)?;
            self.read_into(request(source.clone(), Some(token)), bytes_max, &mut file).await
        })
        .await
    }

    /// An object's attributes as one who may read it sees them now.
    ///
    /// # Errors
    /// What the gateway said.
    pub async fn attributes(
        &self,
        object: &v1::ObjectRef,
        token: &v1::AttemptToken,
    ) -> Result<v1::Attributes, Problem> {
        let source = read_request::Source::Object(object.clone());
        self.retrying(|| {
            let request = v1::ReadRequest { length: 1, ..request(source.clone(), Some(token)) };
            self.read_once(request, 1)
        })
        .await
        .map(|(attributes, _)| attributes)
    }

    /// Reads a part of a large file into a buffer, fewer bytes than asked for only at its end: over the range endpoint,
    /// or over gRPC where a gateway has none.
    ///
    /// # Errors
    /// What the gateway said.
    pub async fn part(&self, wanted: Wanted<'_>, buffer: Vec<u8>) -> Result<Part, Problem> {
        let buffer = Mutex::new(buffer);
        self.retrying(|| async {
            let spare = std::mem::take(&mut *buffer.lock().unwrap_or_else(PoisonError::into_inner));
            match self.bulk.part(wanted, spare).await {
                Err(problem) if problem.code == ErrorCode::Unimplemented => {}
                part => {
                    let bytes = part.as_ref().map_or(0, |part| part.bytes.len());
                    self.metrics.read_bytes.inc_by(bytes as u64);
                    return part;
                }
            }
            let source = read_request::Source::Object(wanted.object.clone());
            let Wanted { offset, length, lasting, .. } = wanted;
            let request = v1::ReadRequest { offset, length, lasting, ..request(source, wanted.token) };
            let (attributes, bytes) = self.read_once(request, length).await?;
            // The caller compares size and time.
            let (size, mtime_ns) = (attributes.size, attributes.mtime_ns);
            Ok(Part { bytes, etag: String::new(), size, mtime_ns })
        })
        .await
    }

    /// Reads an object or blob into a file. Answers `None` if there is no such object.
    ///
    /// # Errors
    /// What the gateway said, or what the file system said (`INTERNAL`).
    pub async fn to_file(
        &self,
        source: read_request::Source,
        token: Option<&v1::AttemptToken>,
        path: &std::path::Path,
    ) -> Result<Option<v1::Attributes>, Problem> {
        let digest = match &source {
            read_request::Source::Blob(blob) => Some(Digest::from_wire("digest", &blob.digest)?),
            read_request::Source::Object(_) => None,
        };
        let result = self
            .retrying(|| async {
                let mut file = tokio::fs::File::create(path).await.map_err(local)?;
                let request = request(source.clone(), token);
                let (attributes, found) = self.read_into(request, limits::PART_BYTES_MAX, &mut file).await?;
                match digest {
                    Some(digest) if digest != found => Err(Problem::new(
                        ErrorCode::DigestMismatch,
                        format!("blob {digest:?} arrived with other bytes"),
                    )),
                    _ => Ok(attributes),
                }
            })
            .await;
        match result {
            Ok(attributes) => Ok(Some(attributes)),
            Err(problem) if problem.code == ErrorCode::ObjectNotFound && digest.is_none() => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// All entries of a directory, at most `entries_max`.
    ///
    /// # Errors
    /// What the gateway said; `TOO_LARGE` past the bound.
    pub async fn list(&self, object: &v1::ObjectRef, entries_max: usize) -> Result<Vec<v1::ListEntry>, Problem> {
        self.retrying(|| async {
            let mut client = self.client.clone();
            let request = v1::ListRequest { object: Some(object.clone()) };
            let mut stream = answered(client.list(request)).await?.into_inner();
            let mut entries = Vec::new();
            while let Some(message) = next(&mut stream).await? {
                entries.extend(message.entries);
                if entries.len() > entries_max {
                    return Err(too_large(entries.len() as u64, entries_max as u64));
                }
            }
            Ok(entries)
        })
        .await
    }

    /// Stages bytes as a blob and answers its reference.
    ///
    /// # Errors
    /// What the gateway said.
    pub async fn stage_blob(&self, token: &v1::AttemptToken, bytes: Bytes) -> Result<v1::BlobRef, Problem> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.stage(token, "", digest, size, StageBody::Bytes(bytes)).await?;
        Ok(v1::BlobRef { digest: digest.to_wire(), size })
    }

    /// Stages bytes as `staged_name` below the token's place, or as a blob if the name is empty. Durable when it answers.
    ///
    /// # Errors
    /// What the gateway said; `DIGEST_MISMATCH` if it took other bytes than we sent.
    pub async fn stage(
        &self,
        token: &v1::AttemptToken,
        staged_name: &str,
        digest: Digest,
        size: u64,
        body: StageBody,
    ) -> Result<(), Problem> {
        let header = v1::StageHeader {
            token: Some(token.clone()),
            epoch: token.epoch,
            staged_name: staged_name.to_owned(),
            blob: staged_name.is_empty(),
            size,
            digest: digest.to_wire(),
            of_call: false,
        };
        let bound = limits::STORAGE_ANSWER + Duration::from_secs(size / limits::STAGE_PACE);
        self.retrying(|| async {
            let mut client = self.client.clone();
            let messages = messages(header.clone(), body.clone()).await?;
            let answer = tokio::time::timeout(bound, client.stage(messages))
                .await
                .map_err(|_| silent(bound))?
                .map_err(|status| from_status(&status))?
                .into_inner();
            if answer.digest != header.digest || answer.size != size {
                return Err(Problem::new(ErrorCode::DigestMismatch, "the gateway staged other bytes than were sent"));
            }
            self.metrics.staged_bytes.inc_by(size);
            Ok(())
        })
        .await
    }

    async fn open(&self, request: v1::ReadRequest) -> Result<tonic::Streaming<v1::ReadResponse>, Problem> {
        let mut client = self.client.clone();
        Ok(answered(client.read(request)).await?.into_inner())
    }

    async fn read_once(&self, request: v1::ReadRequest, bytes_max: u64) -> Result<(v1::Attributes, Vec<u8>), Problem> {
        let mut bytes = Vec::new();
        let attributes = self.read(request, bytes_max, Sink::Memory(&mut bytes)).await?;
        Ok((attributes, bytes))
    }

    /// Reads into a file, and tells the digest of what came.
    async fn read_into(
        &self,
        request: v1::ReadRequest,
        bytes_max: u64,
        file: &mut tokio::fs::File,
    ) -> Result<(v1::Attributes, Digest), Problem> {
        let mut hasher = blake3::Hasher::new();
        let attributes = self.read(request, bytes_max, Sink::File(file, &mut hasher)).await?;
        file.flush().await.map_err(local)?;
        Ok((attributes, Digest::from(hasher.finalize())))
    }

    /// Reads to the end. What is too large is given up as soon as that is known.
    async fn read(
        &self,
        request: v1::ReadRequest,
        bytes_max: u64,
        mut sink: Sink<'_>,
    ) -> Result<v1::Attributes, Problem> {
        let ranged = request.length > 0;
        let mut stream = self.open(request).await?;
        let mut attributes: Option<v1::Attributes> = None;
        let mut bytes = 0;
        while let Some(message) = next(&mut stream).await? {
            bytes += message.data.len() as u64;
            let told = message.attributes.filter(|_| !ranged).map_or(0, |attributes| attributes.size);
            if bytes.max(told) > bytes_max {
                return Err(too_large(bytes.max(told), bytes_max));
            }
            attributes = attributes.or(message.attributes);
            self.metrics.read_bytes.inc_by(message.data.len() as u64);
            match &mut sink {
                Sink::Memory(all) => all.extend_from_slice(&message.data),
                Sink::File(file, hasher) => {
                    hasher.update(&message.data);
                    file.write_all(&message.data).await.map_err(local)?;
                }
            }
        }
        Ok(attributes.unwrap_or_default())
    }

    async fn retrying<T, F, W>(&self, mut call: F) -> Result<T, Problem>
    where
        F: FnMut() -> W,
        W: Future<Output = Result<T, Problem>>,
    {
        let mut pause = Backoff::new(limits::STORAGE_PAUSE_FIRST, limits::STORAGE_PAUSE_MAX);
        loop {
            let problem = match call().await {
                Ok(value) => return Ok(value),
                Err(problem) => problem,
            };
            if !problem.retryable() || pause.attempt() + 1 >= limits::STORAGE_TRIES {
                return Err(problem);
            }
            let wait = pause.next_random().max(problem.retry_after.unwrap_or_default().min(limits::STORAGE_PAUSE_MAX));
            self.metrics.storage_retries.inc();
            tracing::debug!(reason = %problem, ?wait, "storage call is tried again");
            tokio::time::sleep(wait).await;
        }
    }
}

fn request(source: read_request::Source, token: Option<&v1::AttemptToken>) -> v1::ReadRequest {
    v1::ReadRequest { source: Some(source), token: token.cloned(), ..Default::default() }
}

async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<tonic::Response<T>, Problem> {
    tokio::time::timeout(limits::STORAGE_ANSWER, call)
        .await
        .map_err(|_| silent(limits::STORAGE_ANSWER))?
        .map_err(|status| from_status(&status))
}

async fn next<T>(stream: &mut tonic::Streaming<T>) -> Result<Option<T>, Problem> {
    tokio::time::timeout(limits::STORAGE_ANSWER, stream.message())
        .await
        .map_err(|_| silent(limits::STORAGE_ANSWER))?
        .map_err(|status| from_status(&status))
}

fn silent(bound: Duration) -> Problem {
    Problem::new(ErrorCode::StorageUnavailable, format!("the gateway did not answer within {} s", bound.as_secs()))
}

fn too_large(size: u64, bound: u64) -> Problem {
    Problem::new(ErrorCode::TooLarge, format!("{size} is more than the limit of {bound}"))
}

fn local(error: std::io::Error) -> Problem {
    Problem::new(ErrorCode::Internal, format!("the node's cache_dir: {error}"))
}

/// As [`Problem::from_status`], but a connection that broke in the middle (which tonic reports in several ways) is
/// storage that isn't there, not a defect of ours.
fn from_status(status: &tonic::Status) -> Problem {
    let mut problem = Problem::from_status(status);
    let bare = status.details().is_empty();
    if bare && matches!(problem.code, ErrorCode::Internal | ErrorCode::Cancelled | ErrorCode::Deadline) {
        problem.code = ErrorCode::StorageUnavailable;
    }
    problem
}

async fn messages(
    header: v1::StageHeader,
    body: StageBody,
) -> Result<impl Stream<Item = v1::StageRequest> + Send + 'static, Problem> {
    enum Rest {
        Header(v1::StageHeader, Body),
        Data(Body),
    }
    enum Body {
        Bytes(Bytes),
        File(tokio::fs::File),
    }
    let body = match body {
        StageBody::Bytes(bytes) => Body::Bytes(bytes),
        StageBody::File(path) => Body::File(tokio::fs::File::open(path).await.map_err(local)?),
    };
    let wrap = |message| v1::StageRequest { message: Some(message) };
    Ok(futures::stream::unfold(Rest::Header(header, body), move |rest| async move {
        let body = match rest {
            Rest::Header(header, body) => {
                return Some((wrap(stage_request::Message::Header(header)), Rest::Data(body)));
            }
            Rest::Data(body) => body,
        };
        let (data, body) = match body {
            Body::Bytes(mut bytes) => {
                let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                (chunk, Body::Bytes(bytes))
            }
            Body::File(mut file) => {
                let mut chunk = vec![0; CHUNK_BYTES];
                // A file that can't be read ends early, and the gateway refuses what is short of its announced size.
                let read = file.read(&mut chunk).await.unwrap_or(0);
                chunk.truncate(read);
                (Bytes::from(chunk), Body::File(file))
            }
        };
        (!data.is_empty()).then(|| (wrap(stage_request::Message::Data(data)), Rest::Data(body)))
    }))
}

/// Encodes a message for [`Gateway::stage_blob`].
#[must_use]
pub fn encode(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn staging_sends_a_header_and_chunks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let data: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|i| i as u8).collect();
        std::fs::write(&path, &data).unwrap();
        for body in [StageBody::Bytes(data.clone().into()), StageBody::File(path)] {
            let header = v1::StageHeader { size: data.len() as u64, ..Default::default() };
            let sent: Vec<_> = messages(header, body).await.unwrap().collect().await;
            assert!(matches!(sent[0].message, Some(stage_request::Message::Header(_))));
            let mut got = Vec::new();
            for message in &sent[1..] {
                let Some(stage_request::Message::Data(data)) = &message.message else { panic!("data expected") };
                assert!(data.len() <= CHUNK_BYTES);
                got.extend_from_slice(data);
            }
            assert_eq!(got, data);
        }
    }

    #[test]
    fn broken_connections_are_worth_another_try() {
        for code in [tonic::Code::Unknown, tonic::Code::Internal, tonic::Code::Cancelled, tonic::Code::Unavailable] {
            let problem = from_status(&tonic::Status::new(code, "h2 protocol error"));
            assert_eq!(problem.code, ErrorCode::StorageUnavailable);
            assert!(problem.retryable());
        }
        let told = from_status(&Problem::new(ErrorCode::Internal, "a defect").into());
        assert_eq!(told.code, ErrorCode::Internal);
    }
}
