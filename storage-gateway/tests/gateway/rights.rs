//! Whose rights count: the NAS decides by the user that a principal is mapped to, for reading, staging, scanning, publishing.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use ingle_gateway::Config;
use ingle_gateway::nfs_server::{NfsServer, NfsServerOptions};
use ingle_gateway::principals::{Ids, Unmapped};
use ingle_proto::{Digest, ErrorCode, Problem, v1};
use tonic::Status;

use crate::wire::{Served, code, object, of, token};

const ANNA: u32 = 51_001;
const BERT: u32 = 51_002;
const TEAM: u32 = 52_000;

/// A share with `in` for all, `out` of Anna's, and a gateway that knows Anna and Bert. Only root can own files as others.
async fn shared(change: impl FnOnce(&mut Config)) -> Option<(NfsServer, Served)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make files of several users");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let docs = dir.path().join("docs");
    for name in ["in", "out"] {
        std::fs::create_dir_all(docs.join(name)).unwrap();
    }
    chown(docs.join("out"), Some(ANNA), Some(ANNA)).unwrap();
    for (name, mode) in [("own.md", 0o600), ("team.md", 0o640), ("all.md", 0o644)] {
        std::fs::write(docs.join("in").join(name), name).unwrap();
        chown(docs.join("in").join(name), Some(ANNA), Some(TEAM)).unwrap();
        std::fs::set_permissions(docs.join("in").join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let server = NfsServer::bind(&docs, NfsServerOptions::default()).await.unwrap();
    let url = server.url();
    let served = Served::start_in(dir, |config| {
        config.exports.get_mut("docs").unwrap().url = url;
        let ids = |uid, groups| Ids { uid, gid: uid, groups };
        config.principals =
            BTreeMap::from([("anna".to_owned(), ids(ANNA, vec![])), ("bert".to_owned(), ids(BERT, vec![TEAM]))]);
        change(config);
    })
    .await;
    Some((server, served))
}

fn token_of(principal: &str) -> v1::AttemptToken {
    v1::AttemptToken { principal: principal.into(), ..token() }
}

fn scan_of(principal: &str, place: &str) -> v1::ScanRequest {
    v1::ScanRequest {
        epoch: Some(v1::Epoch { generation: 1, revision: 1 }),
        job_id: "j-1".into(),
        input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Tree(object("in"))) }),
        kind: v1::JobKind::Generate.into(),
        place: Some(object(place)),
        principal: principal.into(),
        ..Default::default()
    }
}

async fn scanned(served: &mut Served, request: v1::ScanRequest) -> Result<v1::ScanDone, Status> {
    let mut answers = served.client.scan(request).await?.into_inner();
    loop {
        let answer = answers.message().await?.expect("a walk ends with its end");
        if let Some(v1::scan_response::Message::Done(done)) = answer.message {
            return Ok(done);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_read_with_the_principals_rights() {
    let Some((server, mut served)) = shared(|_| {}).await else { return };
    // The gateway's own user reads everything first: what it was given is no help to others.
    for (principal, readable) in [
        (None, [true, true, true]),
        (Some("anna"), [true, true, true]),
        (Some("bert"), [false, true, true]),
        (Some(""), [true, true, true]),
        (Some("nobody in the settings"), [true, true, true]),
    ] {
        for (name, readable) in ["own.md", "team.md", "all.md"].into_iter().zip(readable) {
            let request = v1::ReadRequest { token: principal.map(token_of), ..of(object(&format!("in/{name}"))) };
            let read = served.read(request).await;
            if readable {
                assert_eq!(read.unwrap().1, name.as_bytes(), "{principal:?} {name}");
            } else {
                assert_eq!(code(read), ErrorCode::StorageDenied, "{principal:?} {name}");
            }
        }
    }
    served.stop().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_nobody_on_the_nas_can_be_refused() {
    let refuse = |config: &mut Config| config.principals_default = Unmapped::Refuse;
    let Some((server, mut served)) = shared(refuse).await else { return };
    let request = |principal: &str| v1::ReadRequest { token: Some(token_of(principal)), ..of(object("in/all.md")) };
    served.read(request("anna")).await.unwrap();
    assert_eq!(code(served.read(request("carl")).await), ErrorCode::StorageDenied);
    let problem = Problem::from_status(&scanned(&mut served, scan_of("carl", "out")).await.unwrap_err());
    assert_eq!(problem.code, ErrorCode::StorageDenied);
    assert!(problem.message.contains("[principals.carl]"), "{problem}");
    served.stop().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_may_not_be_written_is_refused_before_the_walk() {
    let Some((server, mut served)) = shared(|_| {}).await else { return };
    let docs = served.dir.path().join("docs");
    for place in ["out", "out/deeper/still"] {
        let problem = Problem::from_status(&scanned(&mut served, scan_of("bert", place)).await.unwrap_err());
        assert_eq!(problem.code, ErrorCode::StorageDenied, "{problem}");
        for words in [&format!("nas://docs/{place}"), "uid 51002", "nas://docs/out"] {
            assert!(problem.message.contains(words), "{words}: {problem}");
        }
    }
    assert_eq!(std::fs::read_dir(docs.join("out")).unwrap().count(), 0, "nothing was begun");
    // Anna's place takes Anna's jobs, and is hers. Bert has the directory's group now, but not what is ours in it.
    assert_eq!(scanned(&mut served, scan_of("anna", "out")).await.unwrap().entries, 3);
    assert_eq!(std::fs::metadata(docs.join("out/.inglenook")).unwrap().uid(), ANNA);
    chown(docs.join("out"), None, Some(TEAM)).unwrap();
    std::fs::set_permissions(docs.join("out"), std::fs::Permissions::from_mode(0o775)).unwrap();
    let problem = Problem::from_status(&scanned(&mut served, scan_of("bert", "out")).await.unwrap_err());
    assert!(problem.code == ErrorCode::StorageDenied && problem.message.contains("out/.inglenook"), "{problem}");
    served.stop().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_belong_to_whoever_asked_for_them() {
    let Some((server, mut served)) = shared(|_| {}).await else { return };
    let docs = served.dir.path().join("docs");
    assert_eq!(scanned(&mut served, scan_of("anna", "out")).await.unwrap().entries, 3);
    let header = |principal: &str| v1::StageHeader {
        token: Some(token_of(principal)),
        staged_name: "s-1".into(),
        size: 6,
        ..Default::default()
    };
    assert_eq!(code(served.stage(header("bert"), b"result").await), ErrorCode::StorageDenied);
    let staged = served.stage(header("anna"), b"result").await.unwrap();
    let output = v1::OutputResult {
        staged_name: "s-1".into(),
        name: "own.md.txt".into(),
        digest: staged.digest,
        size: staged.size,
        inputs: vec![v1::Provenance {
            name: "own.md".into(),
            content_digest: Digest::of(b"own.md").to_wire(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let manifest = v1::ResultManifest { outputs: vec![output], ..Default::default() };
    let manifest = served.blob(&prost::Message::encode_to_vec(&manifest)).await;
    let publish = |principal: &str| v1::PublishRequest {
        epoch: Some(v1::Epoch { generation: 1, revision: 1 }),
        job_id: "j-1".into(),
        attempt: 7,
        place: Some(object("out")),
        manifest: Some(manifest.clone()),
        kind: v1::JobKind::Generate.into(),
        principal: principal.into(),
        ..Default::default()
    };
    assert_eq!(code(served.client.publish(publish("bert")).await), ErrorCode::StorageDenied);
    assert!(!docs.join("out/own.md.txt").exists());
    assert_eq!(served.client.publish(publish("anna")).await.unwrap().into_inner().published, 1);
    let result = std::fs::metadata(docs.join("out/own.md.txt")).unwrap();
    assert_eq!((result.uid(), result.gid()), (ANNA, ANNA));
    served.stop().await;
    server.shutdown().await;
}
