//! `ingle doctor`: against nothing, against a cluster that is well, and against one that isn't.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use ingle_proto::v1::{self, JobState, NodeState};
use ingle_proto::{ErrorCode, Problem};
use serde_json::Value;

use super::coordinator::{Coordinator, Script};
use super::{code, ingle, json, stderr, stdout};

/// `ingle doctor`, with nothing of this machine's own daemons in sight.
fn doctor(data: &Path, arguments: &[&str]) -> Command {
    let mut command = ingle(&["doctor"]);
    command.args(arguments).env("XDG_DATA_HOME", data).env("HOME", data);
    command
}

async fn asked(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the binary starts")
}

/// What was said of an area, as (verdict, words, what to do).
fn of(document: &Value, area: &str) -> Vec<(String, String, String)> {
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = document["checks"].as_array().expect("checks").iter().filter(|check| check["area"] == area);
    checks.map(|check| (text(check, "verdict"), text(check, "said"), text(check, "todo"))).collect()
}

fn status(version: &str) -> v1::GetStatusResponse {
    v1::GetStatusResponse {
        version: version.into(),
        epoch: Some(v1::Epoch { generation: 1, revision: 4 }),
        gateway: "self".into(),
        gateway_ready: true,
        ..Default::default()
    }
}

fn node(id: &str, state: NodeState, version: &str) -> v1::NodeStatus {
    v1::NodeStatus {
        node_id: id.into(),
        state: state.into(),
        version: version.into(),
        address: "self".into(),
        ..Default::default()
    }
}

fn export(name: &str, problem: &str) -> v1::ExportInfo {
    let ready = problem.is_empty();
    v1::ExportInfo {
        name: name.into(),
        url: format!("nfs://nas/{name}"),
        ready,
        problem: problem.into(),
        ..Default::default()
    }
}

const OURS: &str = env!("CARGO_PKG_VERSION");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn against_nothing_it_says_what_is_missing() {
    let data = tempfile::tempdir().expect("room");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let output = asked(doctor(data.path(), &["--coordinator", &endpoint])).await;
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("FAIL  coordinator") && said.contains(&endpoint) && said.contains("→ start one"), "{said}");
    assert!(stderr(&output).contains("checks failed"), "{}", stderr(&output));

    let output = asked(doctor(data.path(), &["--coordinator", &endpoint, "--json"])).await;
    let document = json(&stdout(&output));
    assert_eq!((code(&output), &document["verdict"]), (2, &Value::from("fail")));
    assert_eq!(of(&document, "coordinator").len(), 1, "{document}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_well_is_told_so() {
    if Path::new("/etc/inglenook").exists() {
        println!("skipped: daemons are set up on this machine, and would be looked at too");
        return;
    }
    let data = tempfile::tempdir().expect("room");
    let script = Script {
        status: Some(status(OURS)),
        nodes: vec![node("n-1", NodeState::Ready, OURS), node("n-2", NodeState::Ready, OURS)],
        exports: vec![export("docs", "")],
        ..Script::default()
    };
    let coordinator = Coordinator::start(script).await;
    let output =
        asked(doctor(data.path(), &["--coordinator", &coordinator.endpoint, "--output", "nas://docs/out", "--json"]))
            .await;
    let document = json(&stdout(&output));
    assert_eq!(code(&output), 0, "{document:#}");
    assert_eq!((&document["verdict"], &document["warn"], &document["fail"]), (&"ok".into(), &0.into(), &0.into()));
    for (area, times) in [
        ("coordinator", 1),
        ("leader", 1),
        ("nodes", 2),
        ("clocks", 4),
        ("gateway", 1),
        ("storage", 3),
        ("versions", 1),
    ] {
        assert_eq!(of(&document, area).len(), times, "{area}: {document:#}");
    }
    let staged = coordinator.script.staged.lock().expect("no panic").clone();
    assert_eq!(staged.len(), 2, "a blob, and a file in the output place");
    assert!(staged[0].blob && staged[0].of_call && staged[0].size == 2, "{staged:?}");
    let place = staged[1].token.clone().and_then(|token| token.place).expect("a place");
    assert_eq!((place.export.as_str(), place.path.as_ref(), staged[1].size), ("docs", b"out".as_slice(), 0));
    assert_eq!(coordinator.script.forgotten.load(Ordering::SeqCst), 1, "what was staged for the trial is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_a_cluster_is_named_with_what_to_do() {
    let data = tempfile::tempdir().expect("room");
    let job = |id: &str, state: JobState, reason: &str, quarantined, path: &str| v1::Job {
        job_id: id.into(),
        state: state.into(),
        reason: reason.into(),
        counts: Some(v1::ItemCounts { quarantined, ..Default::default() }),
        spec: Some(v1::JobSpec {
            output: Some(v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() }),
            watch: Some(v1::WatchOptions::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let script = Script {
        status: Some(status("0.9.0")),
        nodes: vec![node("n-1", NodeState::Drained, "0.9.1"), node("n-2", NodeState::Lost, "0.9.1")],
        exports: vec![export("docs", ""), export("shut", ""), export("away", "no route to host")],
        jobs: vec![
            job("j-2", JobState::Standing, "docs is away", 0, "file"),
            job("j-1", JobState::Running, "", 3, "none"),
        ],
        stage_refusal: Some(Problem::new(ErrorCode::StorageDenied, "out: permission denied by nas")),
        ..Script::default()
    };
    let coordinator = Coordinator::start(script).await;
    let output =
        asked(doctor(data.path(), &["--coordinator", &coordinator.endpoint, "--output", "nas://docs/out", "--json"]))
            .await;
    let document = json(&stdout(&output));
    assert_eq!(code(&output), 2, "{document:#}");
    for (area, verdict, words, todo) in [
        ("nodes", "warn", "n-1 is drained", "ingle nodes uncordon n-1"),
        ("nodes", "fail", "n-2 is lost", "journalctl"),
        ("versions", "fail", "more than one release apart", "one release at a time"),
        ("jobs", "warn", "j-2 watches a folder and is held up: docs is away", "ingle jobs explain j-2"),
        ("jobs", "warn", "j-1 has set 3 documents aside", "--outcome quarantined"),
        ("storage", "fail", "export shut can't be listed", "permission"),
        ("storage", "fail", "export away (nfs://nas/away): no route to host", "as it says"),
        ("storage", "fail", "nas://docs/file is no directory", "move it away"),
        ("storage", "fail", "results can't be written to nas://docs/out", "permission"),
    ] {
        let fits =
            |check: &(String, String, String)| check.0 == verdict && check.1.contains(words) && check.2.contains(todo);
        assert!(of(&document, area).iter().any(fits), "{area} {words}: {document:#}");
    }
}

/// Answers one question as etcd does.
fn etcd(answer: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    // Ends with its one answer, or with the test's process.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut asked = [0; 4096];
        let read = stream.read(&mut asked).expect("a question");
        assert!(asked[..read].starts_with(b"GET /health "));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes()).expect("somebody listens");
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_certificates_and_etcd_of_this_machine_are_looked_at() {
    let data = tempfile::tempdir().expect("room");
    let at = |name: &str| data.path().join(name);
    let (well, ill) = (etcd(r#"{"health":"true"}"#), etcd(r#"{"health":"false","reason":"NOSPACE"}"#));
    let coordinator = format!("state_dir = '{}'\nmembership = 'etcd://{well},{ill}'\n", data.path().display());
    std::fs::write(at("coordinator.toml"), coordinator).expect("room");
    std::fs::write(at("torn.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").expect("room");
    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/tests/daemon/tls/ca.pem");
    let tls = format!("[tls]\nca = '{ca}'\ncert = '{}'\nkey = '/nowhere'\n", at("torn.pem").display());
    std::fs::write(at("node.toml"), tls).expect("room");
    std::fs::write(at("gateway.toml"), "this is = = no TOML").expect("room");
    let names = ["coordinator.toml", "node.toml", "gateway.toml", "absent-node.toml"]
        .map(|name| at(name).display().to_string());
    let mut arguments: Vec<&str> = names.iter().flat_map(|name| ["--config", name.as_str()]).collect();
    arguments.extend(["--json", "--coordinator", "http://127.0.0.1:1"]);
    let output = asked(doctor(data.path(), &arguments)).await;
    let document = json(&stdout(&output));
    assert_eq!(code(&output), 2, "{document:#}");
    for (area, verdict, words) in [
        ("settings", "fail", "gateway.toml: is no TOML"),
        ("settings", "fail", "absent-node.toml: No such file"),
        ("certificates", "ok", "ca.pem lasts "),
        ("certificates", "fail", "torn.pem holds no readable certificate"),
        ("etcd", "ok", "is healthy"),
        ("etcd", "warn", "it is not healthy: NOSPACE"),
        ("etcd", "fail", "1 of 2 members are healthy, no majority"),
    ] {
        let fits = |check: &(String, String, String)| check.0 == verdict && check.1.contains(words);
        assert!(of(&document, area).iter().any(fits), "{area} {words}: {document:#}");
    }
    let disk = of(&document, "disk");
    assert_eq!(disk.len(), 1, "{document:#}");
    assert!(disk[0].1.contains(" free of "), "{disk:?}");
}
