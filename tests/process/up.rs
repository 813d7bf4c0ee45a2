//! `ingle up` as a newcomer runs it, with the engine of tests in its nodes: a cluster, a job, an end that leaves nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ingle_tests::eventually::patience;
use ingle_tests::models::FakeModel;
use ingle_tests::parquet::rows;
use ingle_tests::process::binary;
use ingle_tests::share::Share;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::world::node_binary;

/// Ends the cluster also when the test fails.
struct Up(Child);

impl Up {
    fn signal(&self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        let _ = kill_process(pid, Signal::TERM);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.0.try_wait().ok().flatten().is_none() {
            self.signal();
            let _ = self.0.wait();
        }
    }
}

/// The four binaries side by side, as an installation has them.
fn install(directory: &Path) {
    std::fs::create_dir_all(directory).expect("a directory");
    // It looks for the others beside itself, links resolved: a copy, or another name of the same file.
    let cli = binary("ingle");
    let there = directory.join("ingle");
    if std::fs::hard_link(&cli, &there).is_err() {
        std::fs::copy(&cli, &there).expect("room for a copy");
    }
    let others = [binary("ingle-gateway"), binary("ingle-coordinator"), node_binary()];
    for (program, name) in others.iter().zip(["ingle-gateway", "ingle-coordinator", "ingle-node"]) {
        std::os::unix::fs::symlink(program, directory.join(name)).expect("a link");
    }
}

fn ingle(bin: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(bin.join("ingle"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("INGLE_") {
            command.env_remove(variable);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn a_newcomer_starts_everything_submits_and_stops() {
    let home = tempfile::tempdir().expect("a directory");
    let bin = home.path().join("bin");
    install(&bin);
    let share = Share::at(home.path().join("share"));
    let documents = share.documents(20);
    let models = home.path().join("models");
    FakeModel::that_embeds("words").put(&models);
    FakeModel::that_answers("talk", 5).put(&models);

    let docs = format!("docs={}", share.root().display());
    let (models, data) = (models.display().to_string(), home.path().join("data").display().to_string());
    let mut child = ingle(
        &bin,
        &["up", "--json", "--share", &docs, "--models", &models, "--data", &data, "--nodes", "2", "--port-base", "0"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut up = Up(child);
    let ready = lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .find(|event| event["event"] == "ready")
        .expect("it says when it is ready");
    let coordinator = ready["coordinator"].as_str().expect("an address").to_owned();
    let pids: Vec<i32> = ready["processes"]
        .as_array()
        .expect("processes")
        .iter()
        .map(|process| i32::try_from(process["pid"].as_i64().expect("a process id")).expect("small"))
        .collect();
    assert!(pids.len() >= 6, "two NFS servers, gateway, coordinator, two nodes: {ready}");

    let run = |arguments: &[&str]| {
        let output = ingle(&bin, arguments).args(["--coordinator", &coordinator]).output().expect("it starts");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    run(&["submit", "embed", "nas://docs/in", "--output", "nas://docs/index", "--wait"]);
    let found = rows(&share, "index");
    assert_eq!(found.iter().map(|row| &row.path).collect::<std::collections::BTreeSet<_>>().len(), documents.len());
    run(&["submit", "generate", "nas://docs/in", "--output", "nas://docs/answers", "--wait"]);
    assert_eq!(share.names("answers").len(), 2 * documents.len());
    assert!(!run(&["chat", "What is a hearth for?"]).trim().is_empty());
    assert_eq!(run(&["nodes", "list"]).matches("node-").count(), 2);

    up.signal();
    let begun = std::time::Instant::now();
    let status = loop {
        if let Some(status) = up.0.try_wait().expect("ours") {
            break status;
        }
        assert!(begun.elapsed() < patience(), "it doesn't stop");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "{status}");
    for pid in pids {
        let pid = Pid::from_raw(pid).expect("a process id");
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left over");
    }
}
