//! Reading through the cache: once from the NAS for everybody, one version or an error, and nothing for who may not read.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::{Shutdown, Tasks};
use ingle_gateway::admission::Admission;
use ingle_gateway::blob::Blobs;
use ingle_gateway::cache::{Cache, CacheConfig};
use ingle_gateway::config::{Config, ExportConfig};
use ingle_gateway::exports::Exports;
use ingle_gateway::limits::Limits;
use ingle_gateway::metrics::Meters;
use ingle_gateway::nfs_server::{NfsServer, NfsServerOptions};
use ingle_gateway::principals::Ids;
use ingle_gateway::reading::Reader;
use ingle_gateway::source::Sources;
use ingle_proto::{ErrorCode, Problem, v1};

/// More than two pieces, and not whole ones.
const BYTES: usize = 600_000;

struct Bench {
    sources: Sources,
    metrics: Metrics,
    root: tempfile::TempDir,
    _server: NfsServer,
}

impl Bench {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let server = NfsServer::bind(root.path(), NfsServerOptions::default()).await.unwrap();
        let mut config = Config::default();
        config.exports.insert("docs".into(), ExportConfig { url: server.url(), ..ExportConfig::default() });
        change(&mut config);
        let metrics = Metrics::new("test");
        let meters = Meters::new(&metrics);
        let exports = Arc::new(Exports::new(&config, meters.clone()));
        let cache = CacheConfig { memory_mib: 8, disk_mib: 0, dir: None };
        let (cache, _) = Cache::open(&cache, root.path().to_owned(), meters.clone()).unwrap();
        let sources = Sources {
            exports: Arc::clone(&exports),
            blobs: Blobs::new(Arc::new(Exports::state(&config, meters.clone()))),
            reader: Reader::new(cache, Tasks::new(Shutdown::new())),
            admission: Arc::new(Admission::new(&Limits::default())),
            meters,
        };
        Self { sources, metrics, root, _server: server }
    }

    /// A file that has been still for a while.
    fn put(&self, name: &str, byte: u8) -> Vec<u8> {
        let data = vec![byte; BYTES];
        std::fs::write(self.root.path().join(name), &data).unwrap();
        let then = SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(self.root.path().join(name)).unwrap().set_modified(then).unwrap();
        data
    }

    /// Bytes that came from the NAS so far.
    fn read_bytes(&self) -> u64 {
        let text = self.metrics.text();
        let line = text.lines().find(|line| line.contains("gateway_read_bytes_total{"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    async fn read(&self, request: v1::ReadRequest) -> Result<Vec<u8>, Problem> {
        let mut opened = self.sources.open(&request).await?;
        let mut data = Vec::new();
        while let Some(piece) = opened.pieces.next().await {
            let piece: Bytes = piece?;
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }
}

fn of(name: &str) -> v1::ReadRequest {
    let object = v1::ObjectRef { export: "docs".into(), path: name.as_bytes().to_vec().into() };
    v1::ReadRequest { source: Some(v1::read_request::Source::Object(object)), ..Default::default() }
}

fn by(principal: &str, name: &str) -> v1::ReadRequest {
    let token = v1::AttemptToken {
        principal: principal.into(),
        readable: vec![v1::ObjectRef { export: "docs".into(), path: Bytes::new() }],
        ..Default::default()
    };
    v1::ReadRequest { token: Some(token), ..of(name) }
}

/// The status change of a file that was just made is too young for its pieces to be kept.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_make_the_nas_read_once_and_a_changed_file_is_another_one() {
    let bench = Bench::start(|_| {}).await;
    let data = bench.put("weights", 1);
    settle().await;
    let reads = (0..20).map(|_| bench.read(of("weights")));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read.unwrap(), data);
    }
    assert_eq!(bench.read_bytes(), BYTES as u64, "twenty readers at once, one fetch");
    let part = v1::ReadRequest { offset: 262_100, length: 100_000, ..of("weights") };
    assert_eq!(bench.read(part).await.unwrap(), data[262_100..362_100]);
    assert_eq!(bench.read_bytes(), BYTES as u64, "and later ones find it here");
    // Same name, same size, other bytes.
    let other = bench.put("weights", 2);
    assert_eq!(bench.read(of("weights")).await.unwrap(), other);
}

#[tokio::test]
async fn what_changed_a_moment_ago_is_never_kept() {
    let bench = Bench::start(|_| {}).await;
    bench.put("note", 1);
    bench.read(of("note")).await.unwrap();
    bench.read(of("note")).await.unwrap();
    assert_eq!(bench.read_bytes(), 2 * BYTES as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_replaced_while_it_is_read_ends_the_read() {
    let bench = Bench::start(|_| {}).await;
    let path = bench.root.path().join("long");
    std::fs::write(&path, vec![1; 16 << 20]).unwrap();
    let mut opened = bench.sources.open(&of("long")).await.unwrap();
    let first = opened.pieces.next().await.unwrap().unwrap();
    assert!(first.iter().all(|byte| *byte == 1));
    std::fs::write(&path, vec![2; 16 << 20]).unwrap();
    let problem = loop {
        match opened.pieces.next().await.expect("no orderly end") {
            // What was asked for ahead of the change.
            Ok(piece) => assert!(piece.iter().all(|byte| *byte == 1), "never a mixture"),
            Err(problem) => break problem,
        }
    };
    assert_eq!(problem.code, ErrorCode::ObjectChanged, "{problem}");
    // Begun anew it is the other version, whole.
    assert!(bench.read(of("long")).await.unwrap().iter().all(|byte| *byte == 2));
}

/// Replies that came for readers who take nothing must not keep the calls of others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_who_stand_still_hold_up_nobody() {
    let bench = Bench::start(|_| {}).await;
    std::fs::write(bench.root.path().join("long"), vec![1; 3 << 20]).unwrap();
    bench.put("short", 2);
    let mut standing = Vec::new();
    // As many as are let in; each has asked for pieces ahead of the one it took.
    for _ in 0..40 {
        let mut opened = bench.sources.open(&of("long")).await.unwrap();
        opened.pieces.next().await.unwrap().unwrap();
        standing.push(opened);
    }
    assert_eq!(bench.read(of("short")).await.unwrap(), vec![2; BYTES]);
    // And they go on where they stood.
    for mut opened in standing {
        let mut bytes = 256 << 10;
        while let Some(piece) = opened.pieces.next().await {
            bytes += piece.unwrap().len();
        }
        assert_eq!(bytes, 3 << 20);
    }
}

/// What lies in the cache for one principal is asked for anew in the name of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_still_asks_the_nas_whether_this_principal_may_read() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: files of several users need root");
        return;
    }
    let bench = Bench::start(|config| {
        let ids = |uid| Ids { uid, gid: uid, groups: Vec::new() };
        config.principals = [("anna".to_owned(), ids(4001)), ("bert".to_owned(), ids(4002))].into();
    })
    .await;
    open_the_way(bench.root.path());
    let data = bench.put("private", 7);
    chown(bench.root.path().join("private"), Some(4001), Some(4001)).unwrap();
    std::fs::set_permissions(bench.root.path().join("private"), std::fs::Permissions::from_mode(0o600)).unwrap();
    settle().await;
    assert_eq!(bench.read(by("anna", "private")).await.unwrap(), data);
    assert_eq!(bench.read(by("anna", "private")).await.unwrap(), data);
    assert_eq!(bench.read_bytes(), BYTES as u64, "it is in the cache");
    let problem = bench.read(by("bert", "private")).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::StorageDenied, "{problem}");
    // And what anna may no longer read, she doesn't get from here either.
    chown(bench.root.path().join("private"), Some(4002), Some(4002)).unwrap();
    assert_eq!(bench.read(by("anna", "private")).await.unwrap_err().code, ErrorCode::StorageDenied);
}

fn open_the_way(root: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
}
