//! `ingle up` as a newcomer runs it, with the engine of tests in its nodes: a cluster, a job, an end that leaves nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use ingle_tests::eventually::patience;
use ingle_tests::models::FakeModel;
use ingle_tests::parquet::rows;
use ingle_tests::ports::port;
use ingle_tests::process::binary;
use ingle_tests::share::Share;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::world::node_binary;

/// Ends the cluster also when the test fails.
struct Up(Child);

impl Up {
    fn start(bin: &Path, arguments: &[&str]) -> (Self, Value) {
        let mut child = ingle(bin, arguments).stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let up = Self(child);
        let ready = lines
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .find(|event| event["event"] == "ready")
            .expect("it says when it is ready");
        (up, ready)
    }

    fn signal(&self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        let _ = kill_process(pid, Signal::TERM);
    }

    /// Kills it alone, as a power failure would that leaves its daemons: they are nobody's children then.
    fn kill(&mut self) {
        self.0.kill().expect("ours");
    }

    /// Asks it to end, and waits until it has.
    fn end(&mut self) -> ExitStatus {
        self.signal();
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("ours") {
                return status;
            }
            assert!(begun.elapsed() < patience(), "it doesn't stop");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The processes that `up` says it started.
fn pids(ready: &Value) -> Vec<Pid> {
    let processes = ready["processes"].as_array().expect("processes").iter();
    let pid = |process: &Value| process["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    processes.map(|process| pid(process).expect("a process id")).collect()
}

/// Daemons that may be nobody's children: those that still run our programs are killed when this is dropped.
#[derive(Default)]
struct Orphans(Vec<Pid>);

impl Orphans {
    /// Those that still run: the numbers of the others may be somebody else's by now.
    fn running(&self) -> Vec<Pid> {
        let program = |pid: Pid| std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap_or_default();
        let ours = |pid: Pid| program(pid).file_name().is_some_and(|name| name.to_string_lossy().starts_with("ingle-"));
        self.0.iter().copied().filter(|pid| ours(*pid)).collect()
    }

    fn kill(&self) {
        for pid in self.running() {
            // It may end at this very moment.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        self.kill();
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
    let (mut up, ready) = Up::start(
        &bin,
        &["up", "--json", "--share", &docs, "--models", &models, "--data", &data, "--nodes", "2", "--port-base", "0"],
    );
    let coordinator = ready["coordinator"].as_str().expect("an address").to_owned();
    let pids = pids(&ready);
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

    let status = up.end();
    assert_eq!(status.code(), Some(0), "{status}");
    for pid in pids {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left over");
    }
}

/// The first of a hundred ports that nobody listens at.
fn free_base() -> u16 {
    let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..50).map(|_| port()).find(|base| (*base..*base + 100).all(free)).expect("a hundred free ports in a row")
}

/// It finds ports and lock free though those who held them are only about to end.
#[test]
fn it_starts_at_once_after_one_that_was_killed() {
    let home = tempfile::tempdir().expect("a directory");
    let bin = home.path().join("bin");
    install(&bin);
    let share = Share::at(home.path().join("share"));
    let models = home.path().join("models");
    FakeModel::that_embeds("words").put(&models);
    let docs = format!("docs={}", share.root().display());
    let (models, data) = (models.display().to_string(), home.path().join("data").display().to_string());
    let base = free_base().to_string();
    let arguments = ["up", "--json", "--share", &docs, "--models", &models, "--data", &data, "--port-base", &base];
    // Dropped last, whatever fails.
    let mut orphans = Orphans::default();
    let (mut first, ready) = Up::start(&bin, &arguments);
    let coordinator = ready["coordinator"].clone();
    orphans.0 = pids(&ready);
    // It alone: its daemons run on, and the next one ends them before it starts its own.
    first.kill();
    let (mut second, ready) = Up::start(&bin, &arguments);
    assert_eq!(ready["coordinator"], coordinator, "at the same ports");
    assert_eq!(orphans.running(), [], "they are left over");
    orphans.0 = pids(&ready);
    // With all of its daemons: their threads are still ending when the next one looks for its ports.
    second.kill();
    orphans.kill();
    let (mut third, ready) = Up::start(&bin, &arguments);
    assert_eq!(ready["coordinator"], coordinator);
    orphans.0 = pids(&ready);
    let status = third.end();
    assert_eq!(status.code(), Some(0), "{status}");
}
