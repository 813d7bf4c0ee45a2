//! A served health service over real connections: reflection, bounds on headers and streams, refusals.

use std::net::SocketAddr;
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, ConnectError, ConnectOptions, ServerLimits};
use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A health service with reflection; it ends with its tasks.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) tasks: Tasks,
}

pub(crate) async fn serve(limits: ServerLimits, tls: &TlsConfig) -> Served {
    let tasks = Tasks::new(Shutdown::new());
    let listener = grpc::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (_, health) = grpc::health();
    let (v1, v1alpha) = grpc::reflection(&[]);
    let mut server = grpc::server(&limits, ingle_daemon::tls::server_tls(tls).expect("good files")).expect("good TLS");
    let router = server.add_service(health).add_service(v1).add_service(v1alpha);
    let stop = tasks.shutdown().wait();
    tasks.spawn("health", OnFailure::Shutdown, async move {
        router.serve_with_incoming_shutdown(grpc::incoming(listener), stop).await?;
        Ok::<(), BoxError>(())
    });
    Served { address, tasks }
}

impl Served {
    async fn plain() -> Self {
        serve(ServerLimits::default(), &TlsConfig::default()).await
    }

    fn client(&self) -> HealthClient<grpc::Channel> {
        let channel = grpc::connect_lazy(&self.address.to_string(), &TlsConfig::default(), &ConnectOptions::default());
        HealthClient::new(channel.expect("a loopback address"))
    }

    pub(crate) async fn stop(self) {
        assert_eq!(self.tasks.shutdown_all(Duration::from_secs(5)).await, Vec::<&str>::new());
        assert_eq!(self.tasks.failure(), None);
    }
}

pub(crate) fn question() -> HealthCheckRequest {
    HealthCheckRequest { service: String::new() }
}

#[tokio::test]
async fn serves_health_and_both_reflections() {
    let served = Served::plain().await;
    served.client().check(question()).await.expect("healthy");

    use tonic_reflection::pb::{v1, v1alpha};
    let channel = grpc::connect(&served.address.to_string(), &TlsConfig::default(), &ConnectOptions::eager())
        .await
        .expect("it listens");
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("v1").into_inner();
    let answer = format!("{:?}", answers.message().await.expect("an answer"));
    assert!(answer.contains("grpc.health.v1.Health"), "{answer}");
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("v1alpha").into_inner();
    let answer = format!("{:?}", answers.message().await.expect("an answer"));
    assert!(answer.contains("grpc.health.v1.Health"), "{answer}");
    drop(answers);
    served.stop().await;
}

#[tokio::test]
async fn headers_of_ten_megabytes_or_a_million_are_refused() {
    let served = Served::plain().await;
    let mut huge = tonic::Request::new(question());
    huge.metadata_mut().insert("x-huge", "x".repeat(10 << 20).parse().expect("ASCII"));
    assert!(served.client().check(huge).await.is_err(), "10 MB in a header");
    let mut many = tonic::Request::new(question());
    for index in 0..20_000 {
        // The type holds at most 2^15 names; values of one name count as headers all the same.
        many.metadata_mut().append("x-many", format!("{index}").parse().expect("ASCII"));
    }
    assert!(served.client().check(many).await.is_err(), "headers without end");
    let mut fits = tonic::Request::new(question());
    fits.metadata_mut().insert("x-fits", "x".repeat(8 << 10).parse().expect("ASCII"));
    served.client().check(fits).await.expect("within the bound, and still serving");
    served.stop().await;
}

#[tokio::test]
async fn streams_beyond_the_bound_wait() {
    let limits = ServerLimits { concurrent_streams: 8, ..ServerLimits::default() };
    let served = serve(limits, &TlsConfig::default()).await;
    let mut client = served.client();
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(client.watch(question()).await.expect("within the bound"));
    }
    let mut waiting = client.clone();
    let ninth = waiting.watch(question());
    tokio::pin!(ninth);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut ninth).await.is_err(), "there is no ninth");
    open.pop();
    let ninth = tokio::time::timeout(Duration::from_secs(10), ninth).await;
    ninth.expect("its place is free").expect("now it is one of eight");
    // Another connection has a bound of its own.
    served.client().check(question()).await.expect("served");
    drop(open);
    served.tasks.shutdown_all(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn what_is_not_grpc_is_turned_away() {
    let served = Served::plain().await;
    // HTTP/1.1, noise, and nothing at all.
    for bytes in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0xff; 4096], b""] {
        let mut stream = tokio::net::TcpStream::connect(served.address).await.expect("it listens");
        let _ = stream.write_all(bytes).await;
        stream.shutdown().await.expect("sent");
        let mut answer = Vec::new();
        let _ =
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it hangs up");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    let status = served.client().check(HealthCheckRequest { service: "no\0such".into() }).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
    served.client().check(question()).await.expect("still serving");
    served.stop().await;
}

#[tokio::test]
async fn endpoints_are_checked_before_anything_is_sent() {
    let none = TlsConfig::default();
    let options = ConnectOptions::default();
    for good in ["127.0.0.1:1", "localhost:1", "[::1]:1", "http://127.0.0.1:1", "http://127.0.0.1:1/"] {
        assert!(grpc::connect_lazy(good, &none, &options).is_ok(), "{good}");
    }
    for bad in ["", ":1", "127.0.0.1", "a b:1", "ftp://127.0.0.1:1", "http://127.0.0.1:1/x", "127.0.0.1:1?x", "x:99999"]
    {
        let error = grpc::connect_lazy(bad, &none, &options).expect_err(bad);
        assert!(matches!(error, ConnectError::Endpoint { .. }) && !error.retryable(), "{bad}: {error}");
    }
    for remote in ["192.0.2.1:1", "http://nas.example:1", "localhost.example:1"] {
        let error = grpc::connect_lazy(remote, &none, &options).expect_err(remote);
        assert!(matches!(error, ConnectError::Plaintext { .. }), "{remote}: {error}");
        assert!(error.to_string().contains("tls.ca"), "{error}");
    }
    let error = grpc::connect_lazy("https://127.0.0.1:1", &none, &options).expect_err("no authority");
    assert!(error.to_string().contains("tls.ca"), "{error}");
    let closed = format!("127.0.0.1:{}", crate::ports::port());
    let error = grpc::connect(&closed, &none, &ConnectOptions::eager()).await.expect_err("nobody there");
    assert!(matches!(error, ConnectError::Unreachable { .. }) && error.retryable(), "{error}");
}
