//! Models on their way from the NAS to nodes: read once for two of them, one version or none, and told how far they are.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::{Shutdown, Tasks};
use ingle_engine::fake::{FAKE_MODEL_FILE, FakeEngine};
use ingle_gateway::config::ExportConfig;

use ingle_gateway::nfs_server::{Faults, NfsFaults, NfsServer, NfsServerOptions};
use ingle_node_agent::bulk::{Bulk, Wanted};
use ingle_node_agent::config::ModelsRoot;
use ingle_node_agent::metrics::NodeMetrics;
use ingle_node_agent::storage::Gateways;
use ingle_node_agent::weights::{Cache, Catalogue, ReadyModel};
use ingle_proto::storage::Object;
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::{ErrorCode, Problem, v1};
use ingle_tests::cluster::counted;

/// What the engine of tests calls its weights.
const WEIGHTS_FILE: &str = "weights.bin";
/// Several parts, and not whole ones.
const WEIGHTS_BYTES: usize = (33 << 20) + 4321;

/// A NAS with one model, and a gateway before it.
struct House {
    home: tempfile::TempDir,
    endpoint: String,
    metrics: Metrics,
    _server: NfsServer,
}

impl House {
    async fn start(faults: NfsFaults) -> Self {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("nas/big");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join(FAKE_MODEL_FILE), r#"{"task":"embed","dimensions":16,"context":64}"#).unwrap();
        std::fs::write(model.join(WEIGHTS_FILE), weights(1)).unwrap();
        let options = NfsServerOptions { faults: Faults::new(faults), ..NfsServerOptions::default() };
        let server = NfsServer::bind(&home.path().join("nas"), options).await.unwrap();
        let listener = ingle_daemon::grpc::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut config = ingle_gateway::Config {
            metrics: None,
            state_dir: home.path().join("gateway"),
            ..ingle_gateway::Config::default()
        };
        config.exports.insert("models".into(), ExportConfig { url: server.url(), ..ExportConfig::default() });
        let (shutdown, metrics) = (Shutdown::new(), Metrics::new("ingle-gateway"));
        let (tasks, counts) = (Tasks::new(shutdown.clone()), metrics.clone());
        #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move { ingle_gateway::run(listener, config, &counts, tasks, shutdown).await });
        Self { home, endpoint, metrics, _server: server }
    }

    fn weights(&self) -> std::path::PathBuf {
        self.home.path().join("nas/big").join(WEIGHTS_FILE)
    }

    fn node(&self, name: &str) -> Catalogue {
        let cache = Cache::open(&self.home.path().join(name), 1 << 30).unwrap();
        Catalogue::new(
            Some(ModelsRoot::Object(Object::parse("nas://models/").unwrap())),
            Arc::new(FakeEngine::new()),
            Arc::new(cache),
            Gateways::new(TlsConfig::default(), NodeMetrics::new(&Metrics::new("test"))),
            Some(self.endpoint.clone()),
            4096,
        )
    }
}

fn weights(salt: u8) -> Vec<u8> {
    (0..WEIGHTS_BYTES).map(|i| (i >> 10) as u8 ^ salt).collect()
}

async fn brought(node: &Catalogue) -> Result<Arc<ReadyModel>, Problem> {
    node.refresh().await?;
    node.ready("big", None).await
}

fn copied(model: &ReadyModel) -> Vec<u8> {
    std::fs::read(Path::new(&model.dir).join(WEIGHTS_FILE)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_load_a_model_and_the_nas_is_read_once() {
    let house = House::start(NfsFaults::default()).await;
    // Younger files are not kept by the gateway: they may change again and look the same.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    let (a, b) = (house.node("a"), house.node("b"));
    let (first, second) = tokio::join!(brought(&a), brought(&b));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.digest, second.digest);
    assert!(copied(&first) == weights(1) && copied(&second) == weights(1));
    let later = brought(&house.node("c")).await.unwrap();
    assert_eq!(later.digest, first.digest);
    let read = counted(&house.metrics.text(), "ingle_gateway_read_bytes_total");
    let all = WEIGHTS_BYTES as u64 + 100;
    assert!(read <= all + (1 << 20), "three copies of {WEIGHTS_BYTES} bytes, {read} bytes from the NAS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_that_change_while_they_are_copied_are_one_version_or_none() {
    // Every call is late, so that the copy is still under way when it is looked at, also on a busy machine.
    let slow = NfsFaults { delays: 1, delay_max: Duration::from_millis(60), ..NfsFaults::default() };
    let house = House::start(slow).await;
    let node = Arc::new(house.node("a"));
    let copying = {
        let node = Arc::clone(&node);
        #[allow(clippy::disallowed_methods, reason = "awaited below")]
        tokio::spawn(async move { brought(&node).await })
    };
    // In the middle of it: told how far it is, and with a name alone.
    let fetch = loop {
        let infos = node.infos();
        if let Some(fetch) = infos.first().and_then(|info| info.fetch)
            && fetch.bytes > 0
        {
            assert!(infos[0].model.as_ref().unwrap().digest.is_empty());
            break fetch;
        }
        assert!(!copying.is_finished(), "too quick to be seen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(fetch.bytes < fetch.bytes_total && fetch.bytes_total >= WEIGHTS_BYTES as u64);
    std::fs::write(house.weights(), weights(2)).unwrap();
    match copying.await.unwrap() {
        Ok(model) => assert!([weights(1), weights(2)].contains(&copied(&model)), "a mixture"),
        Err(problem) => assert_eq!(problem.code, ErrorCode::ObjectChanged, "{problem}"),
    }
    // Listed anew it is the other version, under another digest.
    let model = brought(&node).await.unwrap();
    assert!(copied(&model) == weights(2));
}

/// Straight from the endpoint, without the second way that a gateway without one would be read by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_come_over_tls_from_one_connection_after_the_other() {
    ingle_daemon::tls::install_provider();
    let pem = |name: &str| Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/tests/daemon/tls").join(name));
    let tls = TlsConfig { ca: pem("ca.pem"), cert: pem("server.pem"), key: pem("server.key") };
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("big"), weights(1)).unwrap();
    let listener = ingle_daemon::grpc::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let mut config = ingle_gateway::Config {
        metrics: None,
        state_dir: home.path().join("gateway"),
        tls: tls.clone(),
        ..ingle_gateway::Config::default()
    };
    // A path that leads nowhere: nodes on other machines see none either.
    config.ranges.socket = Some(home.path().join("none/ranges.sock"));
    let url = format!("file://{}", home.path().display());
    config.exports.insert("models".into(), ExportConfig { url, ..ExportConfig::default() });
    let (shutdown, metrics) = (Shutdown::new(), Metrics::new("ingle-gateway"));
    let tasks = Tasks::new(shutdown.clone());
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move { ingle_gateway::run(listener, config, &metrics, tasks, shutdown).await });
    let options = ingle_daemon::grpc::ConnectOptions::default();
    let channel = ingle_daemon::grpc::connect(&endpoint, &tls, &options).await.unwrap();
    let bulk = Bulk::new(&endpoint, &tls, StorageClient::new(channel)).unwrap();
    let object = v1::ObjectRef { export: "models".into(), path: b"big".to_vec().into() };
    let whole = weights(1);
    let (mut buffer, mut etag) = (Vec::new(), None);
    for offset in (0..whole.len() as u64).step_by(4 << 20) {
        let length = (4 << 20).min(whole.len() as u64 - offset);
        let wanted = Wanted { object: &object, token: None, offset, length, etag: etag.as_deref(), lasting: false };
        let part = bulk.part(wanted, buffer).await.unwrap();
        assert!(part.bytes == whole[offset as usize..(offset + length) as usize]);
        assert_eq!(part.size, whole.len() as u64);
        (buffer, etag) = (part.bytes, Some(part.etag));
    }
    // Many at once: none may wait for a head that was never sent, which the gateway would give up after ten seconds.
    let (bulk, object) = (&bulk, &object);
    let all = futures::stream::iter(0..200_u64).map(|n| async move {
        let offset = (n % 8) << 22;
        bulk.part(Wanted { object, token: None, offset, length: 4 << 20, etag: None, lasting: false }, Vec::new()).await
    });
    let all: Vec<_> = all.buffer_unordered(8).collect().await;
    assert!(all.iter().all(|part| part.as_ref().is_ok_and(|part| part.bytes.len() == 4 << 20)));
    assert_eq!(bulk.given_up(), 0, "connections that were taken for stale");
}
