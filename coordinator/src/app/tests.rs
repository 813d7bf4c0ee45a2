//! A whole coordinator in process: starts on what is there, serves, ends, starts again.

use std::net::SocketAddr;
use std::path::Path;

use ingle_membership::GatewayRecord;
use ingle_membership::Record as _;
use ingle_membership::seam::Condition;
use ingle_proto::v1;
use ingle_proto::v1::cluster_client::ClusterClient;
use tokio::task::JoinHandle;

use super::*;

struct Running {
    address: SocketAddr,
    stop: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
}

#[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
async fn start(directory: &Path) -> Running {
    let deps = Deps {
        config: Config { state_dir: directory.to_owned(), drain_timeout_s: 2, ..Config::default() },
        metrics: Metrics::new("test"),
        readiness: Readiness::default(),
        listener: grpc::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap(),
        membership: None,
    };
    let stop = Shutdown::new();
    let (told, address) = oneshot::channel();
    let serving = move |addresses: BTreeMap<String, SocketAddr>| {
        told.send(addresses["grpc"]).expect("the test waits for it");
        Ok(())
    };
    let task = tokio::spawn(run(deps, stop.clone(), Box::new(serving)));
    Running { address: address.await.unwrap(), stop, task }
}

impl Running {
    async fn end(self) {
        self.stop.begin();
        self.task.await.unwrap().unwrap();
    }

    async fn status(&self) -> v1::GetStatusResponse {
        let options = grpc::ConnectOptions::eager();
        let channel =
            grpc::connect(&self.address.to_string(), &ingle_daemon::config::TlsConfig::default(), &options).await;
        let mut client = ClusterClient::new(channel.unwrap());
        client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
    }
}

#[tokio::test]
async fn it_starts_serves_ends_and_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path()).await;
    let before = first.status().await;
    assert!(!before.version.is_empty() && before.jobs_open == 0, "{before:?}");

    // Members register with it; the gateway among them is the one that is used.
    let url = format!("registry://{}", first.address);
    let members = connect(&url, &ConnectOptions::default()).await.unwrap();
    let gateway = GatewayRecord { id: "g-1".into(), address: "127.0.0.1:1".into(), ..GatewayRecord::default() };
    members.put(gateway.key(), gateway.encode(), None, Condition::Absent).await.unwrap();
    while first.status().await.gateway != "127.0.0.1:1" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // The store is taken.
    let deps = Deps {
        config: Config { state_dir: dir.path().to_owned(), ..Config::default() },
        metrics: Metrics::new("test"),
        readiness: Readiness::default(),
        listener: grpc::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap(),
        membership: None,
    };
    let refused = run(deps, Shutdown::new(), Box::new(|_| panic!("two on one store"))).await;
    assert!(matches!(&refused, Err(RunError::Store(crate::store::StoreError::InUse { .. }))), "{refused:?}");

    first.end().await;
    let second = start(dir.path()).await;
    let after = second.status().await;
    assert!(Epoch::from(after.epoch.unwrap()) > Epoch::from(before.epoch.unwrap()), "each start is a newer epoch");
    second.end().await;
}
