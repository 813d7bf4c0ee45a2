//! Calls to the coordinator: one connection, a deadline on every call, failures in a person's terms.

use std::future::Future;
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{Channel, ConnectError, ConnectOptions, connect};
use ingle_proto::v1;
use tonic::{Request, Response, Status};
use v1::cluster_client::ClusterClient;
use v1::inference_client::InferenceClient;
use v1::jobs_client::JobsClient;
use v1::models_client::ModelsClient;
use v1::storage_client::StorageClient;

use crate::args::Global;
use crate::exit::{Exit, Failure};
use crate::out::Out;

/// How long a call may take unless `--timeout` says otherwise.
const CALL: Duration = Duration::from_secs(30);
/// The same for calls that wait for a model.
const LONG_CALL: Duration = Duration::from_secs(600);
/// Largest answer taken, in bytes: vectors of 512 texts at 8192 dimensions.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Where to call, how long to wait, how to print.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) out: Out,
    pub(crate) endpoint: String,
    tls: TlsConfig,
    timeout: Option<Duration>,
}

impl Client {
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            out: Out::new(global.json),
            endpoint: global.coordinator.clone(),
            tls: TlsConfig { ca: global.tls_ca.clone(), cert: global.tls_cert.clone(), key: global.tls_key.clone() },
            timeout: global.timeout,
        }
    }

    /// The same, with less patience: calls take no longer than this unless `--timeout` says otherwise.
    pub(crate) fn hurried(&self, bound: Duration) -> Self {
        Self { timeout: Some(self.timeout.unwrap_or(bound)), ..self.clone() }
    }

    /// The same, elsewhere.
    pub(crate) fn at(&self, endpoint: String) -> Self {
        Self { endpoint, ..self.clone() }
    }

    /// Each coordinator's address.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.endpoint.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
    }

    /// The certificates that connections are made with.
    pub(crate) fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    /// A connection to the coordinator; of several to the first that is there: any of them will do.
    async fn channel(&self) -> Result<Channel, Failure> {
        let endpoints = self.endpoints();
        let options = if endpoints.len() > 1 { ConnectOptions::eager() } else { ConnectOptions::default() };
        let mut unreachable = Vec::new();
        for endpoint in endpoints {
            match connect(&endpoint, &self.tls, &options).await {
                Ok(channel) => return Ok(channel),
                Err(ConnectError::Unreachable { endpoint, reason }) => {
                    unreachable.push(format!("{endpoint}: {reason}"))
                }
                Err(error @ ConnectError::Plaintext { .. }) => {
                    return Err(Failure::usage(error.to_string())
                        .hint("give --tls-ca, --tls-cert and --tls-key, or call a coordinator on this machine"));
                }
                Err(error) => return Err(Failure::usage(error.to_string())),
            }
        }
        Err(Failure::unreachable(&self.endpoint, &unreachable.join("; ")))
    }

    pub(crate) async fn jobs(&self) -> Result<JobsClient<Channel>, Failure> {
        Ok(JobsClient::new(self.channel().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn inference(&self) -> Result<InferenceClient<Channel>, Failure> {
        Ok(InferenceClient::new(self.channel().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn cluster(&self) -> Result<ClusterClient<Channel>, Failure> {
        Ok(ClusterClient::new(self.channel().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// A gateway's service, for a client that is [`Self::at`] one.
    pub(crate) async fn storage(&self) -> Result<StorageClient<Channel>, Failure> {
        Ok(StorageClient::new(self.channel().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    pub(crate) async fn models(&self) -> Result<ModelsClient<Channel>, Failure> {
        Ok(ModelsClient::new(self.channel().await?).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Waits for an answer, no longer than a call may take.
    pub(crate) async fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.within(self.timeout.unwrap_or(CALL), answer).await
    }

    /// [`Self::call`] where a model may have to be loaded first.
    pub(crate) async fn long_call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.within(self.timeout.unwrap_or(LONG_CALL), answer).await
    }

    async fn within<T>(
        &self,
        bound: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(bound, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(Failure::new(
                Exit::TryLater,
                format!("{} did not answer within {}", self.endpoint, crate::human::duration(bound)),
            )
            .hint("give it longer with --timeout")),
        }
    }

    /// So long, or as long as a call may take if that is less.
    pub(crate) fn at_most(&self, time: Duration) -> Duration {
        self.timeout.map_or(time, |timeout| timeout.min(time))
    }

    /// A status in a person's terms.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        Failure::from_status(&self.endpoint, status)
    }

    /// A request that tells the coordinator how long we wait, so that it doesn't work for nobody.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        timed(message, self.timeout.unwrap_or(CALL))
    }

    /// [`Self::request`] for [`Self::long_call`].
    pub(crate) fn long_request<T>(&self, message: T) -> Request<T> {
        timed(message, self.timeout.unwrap_or(LONG_CALL))
    }
}

fn timed<T>(message: T, bound: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(bound);
    request
}
