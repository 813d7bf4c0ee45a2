//! The registry over real gRPC on a free port: the suite, its bounds, and what happens when it goes away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, ServerLimits};
use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks};
use ingle_membership::conformance::exact;
use ingle_membership::limits::WATCHERS_MAX;
use ingle_membership::remote::Remote;
use ingle_membership::serve::RegistryService;
use ingle_membership::{
    Condition, Event, MemberEvent, Members, Membership, MembershipError, Memory, NodeRecord, Record as _, Registration,
};
use ingle_proto::v1;
use ingle_proto::v1::registry_client::RegistryClient;
use tonic::Code;

/// A served registry; it ends when dropped.
pub(crate) struct Served {
    address: SocketAddr,
    tasks: Tasks,
}

impl Served {
    async fn start(store: impl Membership, address: SocketAddr) -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let listener = grpc::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shutdown = tasks.shutdown().clone();
        let service = RegistryService::new(Arc::new(store), shutdown.clone()).into_server();
        tasks.spawn("registry", OnFailure::Shutdown, async move {
            grpc::server(&ServerLimits::default(), None)?
                .add_service(service)
                .serve_with_incoming_shutdown(grpc::incoming(listener), shutdown.wait())
                .await?;
            Ok::<(), BoxError>(())
        });
        Self { address, tasks }
    }

    pub(crate) async fn anywhere(store: impl Membership) -> Self {
        Self::start(store, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) fn client(&self) -> Remote {
        Remote::connect(&self.address.to_string(), &TlsConfig::default()).expect("an address")
    }

    pub(crate) async fn stop(self) {
        assert_eq!(self.tasks.shutdown_all(Duration::from_secs(5)).await, Vec::<&str>::new());
    }
}

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_conforms() {
    let served = Served::anywhere(Memory::new()).await;
    exact(Arc::new(served.client()), "/exact").await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_converges_under_faults() {
    let served = Served::anywhere(Memory::new()).await;
    crate::faults(served.client(), 100..105).await;
    served.stop().await;
}

#[tokio::test]
async fn an_absent_registry_was_not_reached() {
    let served = Served::anywhere(Memory::new()).await;
    let client = served.client();
    served.stop().await;
    let put = client.put(key("a"), key(""), None, Condition::Always).await;
    assert!(matches!(put, Err(MembershipError::Unavailable { .. })), "{put:?}");
}

#[tokio::test]
async fn a_silent_registry_leaves_the_outcome_unknown() {
    // Accepts and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let client = Remote::connect(&address.to_string(), &TlsConfig::default())
        .expect("an address")
        .deadline(Duration::from_millis(500));
    let put = client.put(key("a"), key(""), None, Condition::Always).await.expect_err("no answer");
    assert!(put.outcome_unknown() && put.retryable(), "{put}");
    let list = client.list(key("")).await.expect_err("no answer");
    assert!(!list.outcome_unknown() && list.retryable(), "{list}");
}

#[tokio::test]
async fn shutdown_ends_watches_with_something_to_retry() {
    let served = Served::anywhere(Memory::new()).await;
    let client = served.client();
    let at = client.list(key("")).await.expect("a list").revision;
    let mut watch = client.watch(key(""), at).await.expect("a watch");
    served.stop().await;
    let end = watch.next().await.expect("told").expect_err("an end");
    assert!(end.retryable(), "{end}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let served = Served::anywhere(Memory::new()).await;
    let channel =
        grpc::connect_lazy(&served.address.to_string(), &TlsConfig::default(), &grpc::ConnectOptions::default());
    let mut client = RegistryClient::new(channel.expect("an address"));
    for ttl_ms in [0, 1999, 3_600_001, u64::MAX] {
        let status = client.grant(v1::GrantRequest { ttl_ms }).await.expect_err("out of range");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("ttl_ms"), "{status}");
    }
    let status = client.keep_alive(v1::KeepAliveRequest { lease: 0 }).await.expect_err("no lease");
    assert!(status.code() == Code::InvalidArgument && status.message().contains("lease"), "{status}");
    let status = client.keep_alive(v1::KeepAliveRequest { lease: u64::MAX }).await.expect_err("no such lease");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    let put = |key: usize, value: usize| v1::PutRequest {
        key: Bytes::from(vec![b'k'; key]),
        value: Bytes::from(vec![b'v'; value]),
        ..Default::default()
    };
    for request in [put(0, 0), put(1025, 0), put(1, (64 << 10) + 1)] {
        let status = client.put(request).await.expect_err("out of bounds");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let status = client.put(put(1, 5 << 20)).await.expect_err("larger than any message");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument), "{status}");
    let both = v1::PutRequest { if_absent: true, if_revision: Some(v1::Revision::default()), ..put(1, 1) };
    let status = client.put(both).await.expect_err("contradicts itself");
    assert!(status.code() == Code::InvalidArgument && status.message().contains("if_revision"), "{status}");
    let status = client.watch(v1::WatchRequest::default()).await.expect_err("from where?");
    assert!(status.code() == Code::InvalidArgument && status.message().contains("after"), "{status}");
    client.put(put(1, 1)).await.expect("still serving");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_bounded_and_given_back() {
    let served = Served::anywhere(Memory::new()).await;
    let at = served.client().list(key("")).await.expect("a list").revision;
    let mut open = Vec::new();
    // Two connections, for the bound is the registry's and not the connection's.
    let (one, two) = (served.client(), served.client());
    for index in 0..WATCHERS_MAX {
        let client = if index % 2 == 0 { &one } else { &two };
        open.push(client.watch(key(""), at).await.expect("within the bound"));
    }
    let refused = one.watch(key(""), at).await.err().expect("full");
    assert!(matches!(refused, MembershipError::Full { .. }) && refused.retryable(), "{refused}");
    drop(open);
    let again = async {
        while one.watch(key(""), at).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("places are given back");
    served.stop().await;
}

/// The whole of a restart, as members and watchers live through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_back_after_the_registry_restarts() {
    let served = Served::anywhere(Memory::restarted(1, Duration::ZERO)).await;
    let address = served.address;
    let client = || Arc::new(Remote::connect(&address.to_string(), &TlsConfig::default()).expect("an address"));
    let record = NodeRecord { id: "n-1".into(), incarnation: "i-1".into(), ..Default::default() };
    let (registration, mut handle) = Registration::new(client(), record.clone(), Duration::from_secs(2));
    let stop = Shutdown::new();
    let running = tokio::spawn(registration.run(stop.clone()));
    let mut members = Members::<NodeRecord>::new(client(), Duration::from_secs(60), Duration::from_secs(20));
    assert_eq!(members.next().await, MemberEvent::Joined(record.clone()));

    served.stop().await;
    let served = Served::start(Memory::restarted(2, Duration::from_secs(20)), address).await;
    handle.update(|record| record.version = "2".into());
    let change = tokio::time::timeout(Duration::from_secs(20), members.next()).await.expect("it comes back");
    let changed = NodeRecord { version: "2".into(), ..record };
    assert_eq!(change, MemberEvent::Changed(changed.clone()), "it never left");

    stop.begin();
    running.await.expect("no panic").expect("a clean end");
    assert_eq!(members.next().await, MemberEvent::Left(changed), "goodbye is said");
    handle.registered().await;
    served.stop().await;
}

#[tokio::test]
async fn a_watch_over_grpc_is_reset_by_a_new_life() {
    let served = Served::anywhere(Memory::restarted(5, Duration::ZERO)).await;
    let old = ingle_membership::Revision { epoch: 4, counter: 9 };
    let mut watch = served.client().watch(key(NodeRecord::PREFIX), old).await.expect("a watch");
    assert_eq!(watch.next().await, Some(Ok(Event::Reset)));
    assert!(watch.next().await.is_none());
    served.stop().await;
}
