//! Models on their way into the cache: whoever leaves, whatever fails, and while there is no room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::metrics::Metrics;
use ingle_engine::Engine;
use ingle_engine::fake::FakeEngine;
use ingle_node_agent::config::ModelsRoot;
use ingle_node_agent::executor::Totals;
use ingle_node_agent::loaded::{LoadSettings, Loaded};
use ingle_node_agent::metrics::NodeMetrics;
use ingle_node_agent::storage::Gateways;
use ingle_node_agent::weights::{Cache, Catalogue};
use ingle_proto::storage::Object;
use ingle_proto::{ErrorCode, v1};

use super::gateway::Gateway;
use super::harness::{PATIENCE, Slow, model};

const CONFIG: &str = r#"{"task": "embed", "dimensions": 8}"#;
const WEIGHTS_BYTES: usize = 1000;
/// Room for one model.
const ONE_BYTES: u64 = 1500;

/// A node's models without the rest of a node.
struct House {
    gateway: Gateway,
    dir: tempfile::TempDir,
    catalogue: Arc<Catalogue>,
}

fn metrics() -> NodeMetrics {
    NodeMetrics::new(&Metrics::new("test"))
}

impl House {
    /// Models that lie on the NAS, listed.
    async fn over_nas(engine: Arc<dyn Engine>, models: &[&str]) -> Self {
        let gateway = Gateway::start().await;
        for name in models {
            gateway.put(&format!("m/models/{name}/fake-model.json"), CONFIG);
            gateway.put(&format!("m/models/{name}/weights.bin"), vec![name.as_bytes()[0]; WEIGHTS_BYTES]);
        }
        let root = ModelsRoot::Object(Object::parse("nas://m/models").unwrap());
        Self::over(engine, gateway, tempfile::tempdir().unwrap(), root).await
    }

    async fn over(engine: Arc<dyn Engine>, gateway: Gateway, dir: tempfile::TempDir, root: ModelsRoot) -> Self {
        let cache = Cache::open(&dir.path().join("cache"), ONE_BYTES).unwrap();
        let gateways = Gateways::new(TlsConfig::default(), metrics());
        let endpoint = Some(gateway.address.to_string());
        let catalogue = Catalogue::new(Some(root), engine, Arc::new(cache), gateways, endpoint, 4096);
        catalogue.refresh().await.unwrap();
        Self { gateway, dir, catalogue: Arc::new(catalogue) }
    }

    /// What the coordinator is told of a model.
    fn info(&self, name: &str) -> v1::ModelInfo {
        let of = |info: &v1::ModelInfo| info.model.as_ref().is_some_and(|model| model.name == name);
        self.catalogue.infos().into_iter().find(of).expect("it is listed")
    }

    fn reads(&self) -> u32 {
        self.gateway.state.object_reads.load(Ordering::SeqCst)
    }

    /// Asks for a model, and leaves when its first byte is asked of the gateway.
    async fn ask_and_leave(&self, name: &str) {
        let before = self.reads();
        tokio::select! {
            _ = self.catalogue.ready(name, None) => panic!("no byte of it can have come"),
            () = eventually(|| self.reads() > before) => {}
        }
    }

    /// Entries of the cache that are in the making.
    fn incoming(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("cache/incoming")).unwrap().count()
    }
}

async fn eventually(mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}

/// By name alone, and nothing is wrong with it.
fn on_its_way(info: &v1::ModelInfo) -> bool {
    info.model.as_ref().is_some_and(|model| model.digest.is_empty()) && info.problem.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_without_those_who_wanted_it() {
    let house = House::over_nas(Arc::new(FakeEngine::new()), &["a"]).await;
    assert!(on_its_way(&house.info("a")) && house.info("a").fetch.is_none(), "listed, and not begun");
    let gate = house.gateway.state.gate.lock().await;
    house.ask_and_leave("a").await;
    assert!(on_its_way(&house.info("a")) && house.info("a").fetch.is_some(), "nobody waits, and it goes on");
    // Another one joins it, and leaves too.
    tokio::select! {
        biased;
        _ = house.catalogue.ready("a", None) => panic!("no byte of it can have come"),
        () = tokio::task::yield_now() => {}
    }
    drop(gate);
    let model = house.catalogue.ready("a", None).await.unwrap();
    assert_eq!(house.reads(), 2, "each file once");
    assert_eq!(std::fs::read(model.dir.join("weights.bin")).unwrap(), vec![b'a'; WEIGHTS_BYTES]);
    assert_eq!(house.incoming(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_made_room_comes_again_and_is_told_to_be_on_its_way() {
    let house = House::over_nas(Arc::new(FakeEngine::new()), &["a", "b"]).await;
    let before = house.catalogue.ready("a", None).await.unwrap();
    house.catalogue.ready("b", None).await.unwrap();
    assert!(!before.dir.exists(), "the cache has room for one");
    assert!(!on_its_way(&house.info("a")), "it comes when it is used");
    let gate = house.gateway.state.gate.lock().await;
    house.ask_and_leave("a").await;
    assert!(on_its_way(&house.info("a")) && house.info("a").fetch.is_some());
    drop(gate);
    let again = house.catalogue.ready("a", Some(before.digest)).await.unwrap();
    assert!(again.dir.join("weights.bin").is_file());
    assert_eq!(house.reads(), 6, "two files, three copies");
    assert!(!on_its_way(&house.info("a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_leaves_nothing_and_what_changed_is_listed_again() {
    let house = House::over_nas(Arc::new(FakeEngine::new()), &["a"]).await;
    house.gateway.state.objects.lock().unwrap().remove("m/models/a/weights.bin");
    let model = house.catalogue.ready("a", None).await.unwrap();
    assert!(model.dir.join("fake-model.json").is_file() && !model.dir.join("weights.bin").exists());
    assert_eq!(house.incoming(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_stay_while_their_model_is_loaded() {
    let engine = Arc::new(Slow::default());
    let (loads, go) = (Arc::clone(&engine.loads), Arc::clone(&engine.go));
    let house = House::over_nas(engine.clone(), &["a", "b"]).await;
    let settings = LoadSettings { threads: 1, context: 512, slots: 1, budget: 1 << 40 };
    let loaded = Loaded::new(engine, Arc::clone(&house.catalogue), settings, Arc::new(Totals::default()), metrics());
    let loaded = Arc::new(loaded);
    let loading = tokio::spawn({
        let loaded = Arc::clone(&loaded);
        async move { loaded.acquire(&v1::ModelRef { name: "a".into(), ..Default::default() }).await }
    });
    eventually(|| loads.load(Ordering::SeqCst) == 1).await;
    let refused = house.catalogue.ready("b", None).await;
    let told = house.info("b");
    go.store(true, Ordering::SeqCst);
    let problem = refused.unwrap_err();
    assert!(problem.code == ErrorCode::Overloaded && problem.retryable(), "{problem:?}");
    assert!(on_its_way(&told), "{told:?}");
    let lease = loading.await.unwrap().unwrap();
    assert!(lease.model.dir.join("weights.bin").is_file());
    drop(lease);
    let problem = house.catalogue.ready("b", None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::Overloaded, "its thread may have to load it again");
    loaded.unload("a").await.unwrap();
    house.catalogue.ready("b", None).await.unwrap();
    assert_eq!(house.incoming(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_could_not_be_read_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    model(&root, "a", CONFIG);
    let house =
        House::over(Arc::new(FakeEngine::new()), Gateway::start().await, dir, ModelsRoot::Directory(root.clone()))
            .await;
    // A directory can't be read as the file that was listed.
    let file = root.join("a/fake-model.json");
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir_all(file.join("of any size")).unwrap();
    let problem = house.catalogue.ready("a", None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::Internal, "{problem}");
    assert!(house.info("a").problem.contains("local disk"), "{:?}", house.info("a"));
    // As it was listed: no listing shows a change.
    std::fs::remove_dir_all(&file).unwrap();
    std::fs::write(&file, CONFIG).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    tokio::select! {
        () = house.catalogue.run() => panic!("it goes on until it is dropped"),
        () = eventually(|| house.info("a").dimensions == 8) => {}
    }
    assert_eq!(house.info("a").problem, "");
}
