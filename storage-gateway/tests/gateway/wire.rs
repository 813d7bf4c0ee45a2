//! The Storage service over real gRPC on port 0, on a directory of this machine.

use std::path::Path;

use ingle_daemon::metrics::Metrics;
use ingle_daemon::{Shutdown, Tasks};
use ingle_gateway::Config;
use ingle_gateway::config::ExportConfig;
use ingle_gateway::nfs_server::{NfsServer, NfsServerOptions};
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::{Digest, ErrorCode, Problem, v1};
use tonic::Status;
use tonic::transport::Channel;

pub(crate) struct Served {
    pub(crate) client: StorageClient<Channel>,
    shutdown: Shutdown,
    tasks: Tasks,
    serving: tokio::task::JoinHandle<Result<(), ingle_daemon::BoxError>>,
    pub(crate) dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("docs/in")).unwrap();
        Self::start_in(dir, |_| {}).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let url = |path: &Path| format!("file://{}", path.display());
        let export = |name: &str, read_only| {
            (name.to_owned(), ExportConfig { url: url(&dir.path().join("docs")), read_only, ..ExportConfig::default() })
        };
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics: None,
            state_dir: dir.path().join("state"),
            exports: [export("docs", false), export("fixed", true)].into(),
            ..Config::default()
        };
        config
            .exports
            .insert("gone".into(), ExportConfig { url: url(&dir.path().join("not there")), ..ExportConfig::default() });
        change(&mut config);
        let listener = ingle_daemon::grpc::bind(config.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let metrics = Metrics::new("test");
        let serving = {
            let (shutdown, tasks) = (shutdown.clone(), tasks.clone());
            #[allow(clippy::disallowed_methods, reason = "awaited by stop")]
            tokio::spawn(async move { ingle_gateway::run(listener, config, &metrics, tasks, shutdown).await })
        };
        let client = StorageClient::connect(format!("http://{address}")).await.unwrap();
        Self { client, shutdown, tasks, serving, dir }
    }

    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.begin();
        drop(self.client);
        self.serving.await.unwrap().unwrap();
        assert_eq!(self.tasks.shutdown_all(std::time::Duration::from_secs(10)).await, [""; 0]);
        self.dir
    }

    pub(crate) fn write(&self, path: &str, data: &[u8]) {
        let path = self.dir.path().join("docs").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }

    pub(crate) async fn stage(&mut self, header: v1::StageHeader, data: &[u8]) -> Result<v1::StageResponse, Status> {
        let mut messages = vec![v1::StageRequest { message: Some(v1::stage_request::Message::Header(header)) }];
        for chunk in data.chunks(1000) {
            let data = bytes::Bytes::copy_from_slice(chunk);
            messages.push(v1::StageRequest { message: Some(v1::stage_request::Message::Data(data)) });
        }
        Ok(self.client.stage(tokio_stream::iter(messages)).await?.into_inner())
    }

    pub(crate) async fn blob(&mut self, data: &[u8]) -> v1::BlobRef {
        let header = v1::StageHeader { blob: true, size: data.len() as u64, ..Default::default() };
        let staged = self.stage(header, data).await.unwrap();
        v1::BlobRef { digest: staged.digest, size: staged.size }
    }

    pub(crate) async fn read(&mut self, request: v1::ReadRequest) -> Result<(v1::Attributes, Vec<u8>), Status> {
        let mut stream = self.client.read(request).await?.into_inner();
        let mut attributes = None;
        let mut out = Vec::new();
        while let Some(message) = stream.message().await? {
            assert!(message.data.len() <= 1 << 20);
            attributes = attributes.or(message.attributes);
            out.extend_from_slice(&message.data);
        }
        Ok((attributes.expect("the first message carries attributes"), out))
    }

    pub(crate) async fn read_object(&mut self, path: &str) -> Result<Vec<u8>, Status> {
        self.read(of(object(path))).await.map(|(_, data)| data)
    }
}

pub(crate) fn object(path: &str) -> v1::ObjectRef {
    v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() }
}

pub(crate) fn of(object: v1::ObjectRef) -> v1::ReadRequest {
    v1::ReadRequest { source: Some(v1::read_request::Source::Object(object)), ..Default::default() }
}

pub(crate) fn token() -> v1::AttemptToken {
    v1::AttemptToken {
        job_id: "j-1".into(),
        attempt: 7,
        readable: vec![object("in")],
        place: Some(object("out")),
        ..Default::default()
    }
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> ErrorCode {
    Problem::from_status(&answer.expect_err("refused")).code
}

#[tokio::test]
async fn objects_are_read_in_ranges_and_paths_are_guarded() {
    let mut served = Served::start().await;
    let big: Vec<u8> = (0..3_500_000_u32).map(|i| (i % 251) as u8).collect();
    served.write("in/big.txt", &big);
    served.write("in/empty.txt", b"");
    served.write("in/.inglenook/ledger/x", b"secret");
    std::os::unix::fs::symlink("/etc/passwd", served.dir.path().join("docs/in/link.md")).unwrap();
    assert!(served.read_object("in/big.txt").await.unwrap() == big);
    assert_eq!(served.read_object("in/empty.txt").await.unwrap(), b"");
    let part = v1::ReadRequest { offset: 1_048_570, length: 20, ..of(object("in/big.txt")) };
    let (attributes, data) = served.read(part).await.unwrap();
    assert_eq!(attributes.size, 3_500_000);
    assert_eq!(data, &big[1_048_570..1_048_590]);
    let past = v1::ReadRequest { offset: 3_500_001, ..of(object("in/big.txt")) };
    assert_eq!(code(served.read(past).await), ErrorCode::InvalidArgument);
    for (path, expected) in [
        ("in/none", ErrorCode::ObjectNotFound),
        ("in", ErrorCode::ObjectKind),
        ("in/link.md", ErrorCode::ObjectKind),
        ("../x", ErrorCode::PathRefused),
        ("/etc/passwd", ErrorCode::PathRefused),
        ("in//big.txt", ErrorCode::PathRefused),
        ("in/.inglenook/ledger/x", ErrorCode::PathRefused),
        ("in/a\0b", ErrorCode::PathRefused),
    ] {
        assert_eq!(code(served.read_object(path).await), expected, "{path:?}");
        let stat = served.client.stat(v1::StatRequest { object: Some(object(path)) }).await;
        if path != "in" {
            assert_eq!(code(stat), expected, "{path:?}");
        }
    }
    assert_eq!(code(served.read(v1::ReadRequest::default()).await), ErrorCode::InvalidArgument);
    let nowhere = v1::ObjectRef { export: "nope".into(), ..Default::default() };
    assert_eq!(code(served.read(of(nowhere)).await), ErrorCode::ExportNotFound);

    // With a token only what it names.
    served.write("other/x.txt", b"x");
    let mut asked = of(object("in/big.txt"));
    asked.token = Some(token());
    served.read(asked.clone()).await.unwrap();
    asked.source = Some(v1::read_request::Source::Object(object("other/x.txt")));
    assert_eq!(code(served.read(asked).await), ErrorCode::StorageDenied);

    let mut pages = served.client.list(v1::ListRequest { object: Some(object("in")) }).await.unwrap().into_inner();
    let names: Vec<_> = pages.message().await.unwrap().unwrap().entries.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["big.txt", "empty.txt", "link.md"]);
    assert!(pages.message().await.unwrap().is_none());
    served.stop().await;
}

#[tokio::test]
async fn staging_is_exact_and_may_be_repeated() {
    let mut served = Served::start().await;
    let header = |name: &str, size: usize| v1::StageHeader {
        token: Some(token()),
        staged_name: name.into(),
        size: size as u64,
        ..Default::default()
    };
    let data = vec![7_u8; 2500];
    let staged = served.stage(header("s-1", 2500), &data).await.unwrap();
    assert_eq!(staged.digest, Digest::of(&data).to_wire());
    assert_eq!(served.stage(header("s-1", 2500), &data).await.unwrap(), staged);
    assert_eq!(code(served.stage(header("s-1", 3), b"abc").await), ErrorCode::NameTaken);
    assert_eq!(code(served.stage(header("s-2", 2501), &data).await), ErrorCode::InvalidArgument);
    assert_eq!(code(served.stage(header("s-2", 2499), &data).await), ErrorCode::InvalidArgument);
    for name in ["", "../x", "a/b", ".x", "a b"] {
        assert_eq!(code(served.stage(header(name, 2500), &data).await), ErrorCode::InvalidArgument, "{name:?}");
    }
    let wrong = v1::StageHeader { digest: Digest::of(b"other").to_wire(), ..header("s-3", 2500) };
    assert_eq!(code(served.stage(wrong, &data).await), ErrorCode::DigestMismatch);
    let fixed =
        v1::AttemptToken { place: Some(v1::ObjectRef { export: "fixed".into(), path: "out".into() }), ..token() };
    let read_only = v1::StageHeader { token: Some(fixed), ..header("s-4", 2500) };
    assert_eq!(code(served.stage(read_only, &data).await), ErrorCode::ExportReadOnly);
    assert_eq!(code(served.stage(v1::StageHeader::default(), b"").await), ErrorCode::InvalidArgument);
    let huge = v1::StageHeader { size: u64::MAX, ..header("s-5", 0) };
    assert_eq!(code(served.stage(huge, &data).await), ErrorCode::TooLarge);

    // A join reads what was staged, if the place is its own.
    let mut asked = v1::ReadRequest {
        staged: Some(v1::StagedRef { place: Some(object("out")), name: "s-1".into() }),
        token: Some(token()),
        ..Default::default()
    };
    assert_eq!(served.read(asked.clone()).await.unwrap().1, data);
    asked.token = Some(v1::AttemptToken { place: Some(object("elsewhere")), ..token() });
    assert_eq!(code(served.read(asked).await), ErrorCode::StorageDenied);

    let blob = served.blob(b"a blob").await;
    assert_eq!(served.blob(b"a blob").await, blob);
    let of_blob = v1::ReadRequest { source: Some(v1::read_request::Source::Blob(blob.clone())), ..Default::default() };
    assert_eq!(served.read(of_blob.clone()).await.unwrap().1, b"a blob");
    // A flipped bit on the disk is seen.
    let hex = Digest::of(b"a blob").hex();
    let path = served.dir.path().join("state/state/blobs").join(&hex[..2]).join(&hex);
    std::fs::write(&path, b"A blob").unwrap();
    assert_eq!(code(served.read(of_blob).await), ErrorCode::DigestMismatch);
    served.stop().await;
}

#[tokio::test]
async fn a_job_from_scan_to_publish_and_again_after_a_restart() {
    let served = Served::start().await;
    a_job(served, |_| {}).await;
}

#[tokio::test]
async fn the_same_job_over_nfs() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("docs/in")).unwrap();
    let server = NfsServer::bind(&dir.path().join("docs"), NfsServerOptions::default()).await.unwrap();
    let url = server.url();
    let over_nfs = |config: &mut Config| config.exports.get_mut("docs").unwrap().url = url.clone();
    let served = Served::start_in(dir, over_nfs).await;
    a_job(served, over_nfs).await;
    server.shutdown().await;
}

async fn a_job(mut served: Served, change: impl FnOnce(&mut Config)) {
    served.write("in/a.md", b"alpha");
    served.write("in/b.md", b"beta");
    served.write("in/c.bin", b"?");
    let epoch = Some(v1::Epoch { generation: 1, revision: 1 });
    let scan = v1::ScanRequest {
        epoch,
        job_id: "j-1".into(),
        input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Tree(object("in"))) }),
        kind: v1::JobKind::Generate.into(),
        place: Some(object("out")),
        model_digest: vec![1; 32].into(),
        parameters_digest: vec![2; 32].into(),
        force: false,
        text_from: None,
        ..Default::default()
    };
    let mut answers = served.client.scan(scan.clone()).await.unwrap().into_inner();
    let (mut segments, mut done) = (Vec::new(), None);
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.message.unwrap() {
            v1::scan_response::Message::Segment(info) => segments.push(info),
            v1::scan_response::Message::Done(told) => done = Some(told),
            v1::scan_response::Message::Progress(_) => {}
        }
    }
    let done = done.unwrap();
    assert_eq!((done.buckets, done.entries, done.documents, done.directories), (1, 3, 3, 1));
    assert_eq!((segments[0].to_do, segments[0].skipped, segments[0].to_do_bytes), (2, 1, 9));
    let blob = segments[0].blob.clone().unwrap();
    let of_blob = v1::ReadRequest { source: Some(v1::read_request::Source::Blob(blob)), ..Default::default() };
    let (_, bytes) = served.read(of_blob).await.unwrap();
    let segment: v1::Segment = prost::Message::decode(&bytes[..]).unwrap();

    let mut manifest = v1::ResultManifest { token: Some(token()), ..Default::default() };
    for (at, entry) in segment.entries[..2].iter().enumerate() {
        let (_, content) = served.read(of(entry.object.clone().unwrap())).await.unwrap();
        let result = [b"about ", content.as_slice()].concat();
        let header = v1::StageHeader {
            token: Some(token()),
            staged_name: format!("j-1-{at}-7"),
            size: result.len() as u64,
            ..Default::default()
        };
        let staged = served.stage(header, &result).await.unwrap();
        manifest.outputs.push(v1::OutputResult {
            staged_name: format!("j-1-{at}-7"),
            name: [&entry.name[..], b".json"].concat().into(),
            digest: staged.digest,
            size: staged.size,
            inputs: vec![v1::Provenance {
                name: entry.name.clone(),
                size: entry.size,
                mtime_ns: entry.mtime_ns,
                content_digest: Digest::of(&content).to_wire(),
                gone: false,
            }],
            ..Default::default()
        });
    }
    let manifest = served.blob(&prost::Message::encode_to_vec(&manifest)).await;
    let publish = v1::PublishRequest {
        epoch,
        job_id: "j-1".into(),
        attempt: 7,
        place: Some(object("out")),
        manifest: Some(manifest),
        model_digest: vec![1; 32].into(),
        parameters_digest: vec![2; 32].into(),
        kind: v1::JobKind::Generate.into(),
        principal: String::new(),
    };
    let answer = served.client.publish(publish.clone()).await.unwrap().into_inner();
    assert_eq!((answer.published, answer.conflict), (2, 0));
    assert_eq!(served.read_object("out/a.md.json").await.unwrap(), b"about alpha");

    let dir = served.stop().await;
    let mut served = Served::start_in(dir, change).await;
    assert_eq!(served.client.publish(publish.clone()).await.unwrap().into_inner(), answer);
    let stale = v1::PublishRequest { epoch: Some(v1::Epoch { generation: 1, revision: 0 }), ..publish.clone() };
    assert_eq!(code(served.client.publish(stale).await), ErrorCode::EpochStale);
    assert_eq!(code(served.client.publish(v1::PublishRequest::default()).await), ErrorCode::InvalidArgument);
    let missing = v1::PublishRequest { epoch: None, ..publish };
    assert_eq!(code(served.client.publish(missing).await), ErrorCode::InvalidArgument);
    let unknown_kind = v1::ScanRequest { kind: 77, ..scan };
    assert_eq!(code(served.client.scan(unknown_kind).await), ErrorCode::InvalidArgument);
    served.stop().await;
}

#[tokio::test]
async fn exports_say_whether_they_answer_and_come_back() {
    let mut served = Served::start().await;
    let listed = served.client.list_exports(v1::ListExportsRequest {}).await.unwrap().into_inner();
    let by_name = |name: &str| listed.exports.iter().find(|e| e.name == name).unwrap();
    assert!(by_name("docs").ready && !by_name("docs").read_only);
    assert!(by_name("fixed").ready && by_name("fixed").read_only);
    assert!(!by_name("gone").ready && by_name("gone").problem.contains("not there"), "{:?}", by_name("gone"));
    assert!(listed.state_export.starts_with("file://"));
    // The directory appears: no restart is needed.
    std::fs::create_dir(served.dir.path().join("not there")).unwrap();
    let mut tries = 0;
    loop {
        let listed = served.client.list_exports(v1::ListExportsRequest {}).await.unwrap().into_inner();
        if listed.exports.iter().any(|e| e.name == "gone" && e.ready) {
            break;
        }
        tries += 1;
        assert!(tries < 600, "{listed:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn a_second_gateway_on_the_same_state_is_refused() {
    let served = Served::start().await;
    let config = Config { state_dir: served.dir.path().join("state"), ..Config::default() };
    let error = ingle_gateway::app::Gateway::new(config, &Metrics::new("test"), served.tasks.clone())
        .err()
        .expect("the lock is held");
    assert!(error.to_string().contains("another process"), "{error}");
    served.stop().await;
}

#[tokio::test]
async fn an_object_that_changes_while_it_is_read_ends_in_object_changed() {
    let mut served = Served::start().await;
    served.write("in/big.txt", &vec![b'x'; 40 << 20]);
    let mut stream = served.client.read(of(object("in/big.txt"))).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    // The stream is held back by its window: most of the file is still to be read.
    served.write("in/big.txt", b"short now");
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended as if nothing had happened"),
            Err(status) => break status,
        }
    };
    assert_eq!(Problem::from_status(&status).code, ErrorCode::ObjectChanged);
    served.stop().await;
}

#[tokio::test]
async fn parts_of_a_calls_document_leave_with_the_call() {
    let mut served = Served::start().await;
    let data = b"a part of somebody's document".to_vec();
    let header = v1::StageHeader { blob: true, of_call: true, size: data.len() as u64, ..Default::default() };
    let staged = served.stage(header.clone(), &data).await.unwrap();
    let part = v1::BlobRef { digest: staged.digest, size: staged.size };
    let read = v1::ReadRequest { source: Some(v1::read_request::Source::Blob(part.clone())), ..Default::default() };
    assert_eq!(served.read(read.clone()).await.unwrap().1, data);
    // Another call brings the same: that is one file.
    served.stage(header, &data).await.unwrap();
    let forget =
        |revision| v1::ForgetRequest { epoch: Some(v1::Epoch { generation: 1, revision }), blobs: vec![part.clone()] };
    assert_eq!(served.client.forget(forget(7)).await.unwrap().into_inner().removed, 1);
    assert_eq!(served.client.forget(forget(7)).await.unwrap().into_inner().removed, 0, "gone already");
    assert_eq!(code(served.read(read).await), ErrorCode::ObjectNotFound);
    assert_eq!(code(served.client.forget(forget(6)).await), ErrorCode::EpochStale);
    // A blob of the same bytes is another thing, and stays.
    let blob = served.blob(&data).await;
    assert_eq!(served.client.forget(forget(7)).await.unwrap().into_inner().removed, 0);
    let read = v1::ReadRequest { source: Some(v1::read_request::Source::Blob(blob)), ..Default::default() };
    assert_eq!(served.read(read).await.unwrap().1, data);
    served.stop().await;
}
