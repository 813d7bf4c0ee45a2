//! The storage gateway as we call it: blobs, listings, publishing; every call with a deadline, every failure a `Problem`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, Channel, ConnectOptions};
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::v1::{self, stage_request};
use ingle_proto::{CHUNK_BYTES, Digest, Epoch, ErrorCode, MESSAGE_BYTES_MAX, Problem};
use tokio::sync::watch;
use tonic::Status;

/// How long the gateway may take to answer a small question.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a blob may take to be written or read.
const BLOB_WITHIN: Duration = Duration::from_secs(60);
/// How long a walk may be silent.
const SCAN_SILENT: Duration = Duration::from_secs(60);
/// How long publishing a manifest may take.
const PUBLISH_WITHIN: Duration = Duration::from_secs(120);
/// How long the gateway may take to say that it is there.
const READY_WITHIN: Duration = Duration::from_secs(2);

type Client = StorageClient<Channel>;

/// Calls the gateway that is chosen now. Clones share the connection.
#[derive(Clone)]
pub struct Gateway {
    endpoint: watch::Receiver<Option<String>>,
    tls: TlsConfig,
    epoch: Epoch,
    client: Arc<Mutex<Option<(String, Client)>>>,
}

impl Gateway {
    /// Calls whichever gateway `endpoint` (`HOST:PORT`) names.
    #[must_use]
    pub fn new(endpoint: watch::Receiver<Option<String>>, tls: TlsConfig, epoch: Epoch) -> Self {
        Self { endpoint, tls, epoch, client: Arc::default() }
    }

    /// The endpoint that is chosen now.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint.borrow().clone()
    }

    /// Tells when another gateway is chosen.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<String>> {
        self.endpoint.clone()
    }

    /// Whether it answers now.
    pub async fn ready(&self) -> bool {
        let Ok(mut client) = self.client() else { return false };
        let asked = client.list_exports(v1::ListExportsRequest {});
        matches!(tokio::time::timeout(READY_WITHIN, asked).await, Ok(Ok(_)))
    }

    /// Keeps bytes as a blob in the state export; durable when it answers.
    ///
    /// # Errors
    /// What the gateway said; `DIGEST_MISMATCH` if it took other bytes than we sent.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<v1::BlobRef, Problem> {
        self.put(bytes, false).await
    }

    /// Keeps a part of a call's document until [`Self::forget_part`]; durable when it answers.
    ///
    /// # Errors
    /// Those of [`Self::put_blob`].
    pub async fn put_part(&self, bytes: Bytes) -> Result<v1::BlobRef, Problem> {
        self.put(bytes, true).await
    }

    /// Removes a part of a call's document.
    ///
    /// # Errors
    /// What the gateway said.
    pub async fn forget_part(&self, part: v1::BlobRef) -> Result<(), Problem> {
        let request = v1::ForgetRequest { epoch: Some(self.epoch.into()), blobs: vec![part] };
        let mut client = self.client()?;
        within(ANSWER_WITHIN, client.forget(request)).await?;
        Ok(())
    }

    async fn put(&self, bytes: Bytes, of_call: bool) -> Result<v1::BlobRef, Problem> {
        let blob = v1::BlobRef { digest: Digest::of(&bytes).to_wire(), size: bytes.len() as u64 };
        let header = v1::StageHeader {
            token: None,
            epoch: Some(self.epoch.into()),
            staged_name: String::new(),
            blob: true,
            size: blob.size,
            digest: blob.digest.clone(),
            of_call,
        };
        let mut messages = vec![v1::StageRequest { message: Some(stage_request::Message::Header(header)) }];
        let mut rest = bytes;
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
            messages.push(v1::StageRequest { message: Some(stage_request::Message::Data(chunk)) });
        }
        let mut client = self.client()?;
        let answer = within(BLOB_WITHIN, client.stage(futures::stream::iter(messages))).await?.into_inner();
        if answer.digest != blob.digest || answer.size != blob.size {
            return Err(Problem::new(ErrorCode::DigestMismatch, "the gateway kept other bytes than were sent"));
        }
        Ok(blob)
    }

    /// Reads a blob of at most `bytes_max` bytes and checks its digest.
    ///
    /// # Errors
    /// What the gateway said; `TOO_LARGE`; `DIGEST_MISMATCH`.
    pub async fn get_blob(&self, blob: &v1::BlobRef, bytes_max: u64) -> Result<Bytes, Problem> {
        let digest = Digest::from_wire("blob.digest", &blob.digest)?;
        let too_large =
            || Problem::new(ErrorCode::TooLarge, format!("blob {}: larger than {bytes_max} bytes", digest.hex()));
        if blob.size > bytes_max {
            return Err(too_large());
        }
        let request =
            v1::ReadRequest { source: Some(v1::read_request::Source::Blob(blob.clone())), ..Default::default() };
        let mut client = self.client()?;
        let read = async {
            let mut stream = client.read(request).await?.into_inner();
            let mut bytes = BytesMut::with_capacity(usize::try_from(blob.size).unwrap_or(0));
            while let Some(message) = stream.message().await? {
                if (bytes.len() + message.data.len()) as u64 > bytes_max {
                    return Ok(None);
                }
                bytes.extend_from_slice(&message.data);
            }
            Ok(Some(bytes.freeze()))
        };
        let bytes = within(BLOB_WITHIN, read).await?.ok_or_else(too_large)?;
        if Digest::of(&bytes) != digest {
            return Err(Problem::new(
                ErrorCode::DigestMismatch,
                format!("blob {}: the gateway sent other bytes; is the state export damaged?", digest.hex()),
            ));
        }
        Ok(bytes)
    }

    /// Reads a blob that is a message.
    ///
    /// # Errors
    /// Those of [`Self::get_blob`]; `STORAGE_PROTOCOL` if it isn't such a message.
    pub async fn message<M: prost::Message + Default>(&self, blob: &v1::BlobRef, bytes_max: u64) -> Result<M, Problem> {
        decode(self.get_blob(blob, bytes_max).await?)
    }

    /// Walks an input. The stream ends with the walk's end or with its first problem.
    ///
    /// # Errors
    /// What the gateway said when asked.
    pub async fn scan(
        &self,
        request: v1::ScanRequest,
    ) -> Result<impl Stream<Item = Result<v1::ScanResponse, Problem>> + Send + use<>, Problem> {
        let mut client = self.client()?;
        let stream = within(SCAN_SILENT, client.scan(request)).await?.into_inner();
        Ok(futures::stream::unfold(Some(stream), |stream| async move {
            let mut stream = stream?;
            match within(SCAN_SILENT, stream.message()).await {
                Ok(Some(message)) => Some((Ok(message), Some(stream))),
                Ok(None) => None,
                Err(problem) => Some((Err(problem), None)),
            }
        }))
    }

    /// Makes a manifest's outputs visible. Safe to repeat.
    ///
    /// # Errors
    /// What the gateway said; `DEADLINE`: it may have happened.
    pub async fn publish(&self, request: v1::PublishRequest) -> Result<v1::PublishResponse, Problem> {
        let mut client = self.client()?;
        Ok(within(PUBLISH_WITHIN, client.publish(request)).await?.into_inner())
    }

    /// Asks which exports there are.
    ///
    /// # Errors
    /// What the gateway said.
    pub async fn exports(&self) -> Result<v1::ListExportsResponse, Problem> {
        let mut client = self.client()?;
        Ok(within(ANSWER_WITHIN, client.list_exports(v1::ListExportsRequest {})).await?.into_inner())
    }

    /// Whether there is anything of this name.
    ///
    /// # Errors
    /// What the gateway said: `OBJECT_NOT_FOUND` if there isn't.
    pub async fn stat(&self, object: v1::ObjectRef) -> Result<v1::StatResponse, Problem> {
        let mut client = self.client()?;
        Ok(within(ANSWER_WITHIN, client.stat(v1::StatRequest { object: Some(object) })).await?.into_inner())
    }

    fn client(&self) -> Result<Client, Problem> {
        let endpoint = self.endpoint().ok_or_else(|| {
            Problem::new(
                ErrorCode::StorageUnavailable,
                "no storage gateway is known yet: start ingle-gateway, or name one with --gateway",
            )
            .retry_after(Duration::from_secs(2))
        })?;
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*held
            && *of == endpoint
        {
            return Ok(client.clone());
        }
        let channel = grpc::connect_lazy(&endpoint, &self.tls, &ConnectOptions::default())
            .map_err(|error| Problem::new(ErrorCode::StorageUnavailable, format!("storage gateway: {error}")))?;
        let client = StorageClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        *held = Some((endpoint, client.clone()));
        Ok(client)
    }
}

/// Reads a message out of a blob's bytes.
///
/// # Errors
/// `STORAGE_PROTOCOL`.
pub fn decode<M: prost::Message + Default>(bytes: Bytes) -> Result<M, Problem> {
    M::decode(bytes).map_err(|error| {
        Problem::new(ErrorCode::StorageProtocol, format!("a blob isn't the message it should be: {error}"))
    })
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Problem> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(broken(&status)),
        Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("the storage gateway was silent for {limit:?}"))),
    }
}

/// As [`Problem::from_status`], but a connection that broke in the middle (which tonic reports in several ways, without
/// details of ours) is storage that isn't there now, never a reason to give a job up.
fn broken(status: &Status) -> Problem {
    let mut problem = Problem::from_status(status);
    if status.details().is_empty() && matches!(problem.code, ErrorCode::Internal | ErrorCode::Cancelled) {
        problem.code = ErrorCode::StorageUnavailable;
        problem.message = format!("the connection to the storage gateway broke: {}", problem.message);
    }
    problem
}
