//! `ingle top`: a frame for a pipe, a snapshot for a script, and a terminal that outlives its coordinator.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ingle_proto::v1::{self, JobState, NodeState};

use super::coordinator::{Coordinator, Script};
use super::{code, json, stderr, stdout};

fn script() -> Script {
    let node = v1::NodeStatus {
        node_id: "n-1".into(),
        name: "nuc".into(),
        state: NodeState::Ready.into(),
        temperature_celsius: 61.0,
        ..Default::default()
    };
    let job = |id: &str, state: JobState| v1::Job { job_id: id.into(), state: state.into(), ..Default::default() };
    let status =
        v1::GetStatusResponse { version: "0.2.0".into(), nodes_ready: 1, nodes_total: 1, ..Default::default() };
    Script {
        nodes: vec![node],
        jobs: vec![job("j-2", JobState::Running), job("j-1", JobState::Failed)],
        status: Some(status),
        ..Script::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_is_printed_where_nobody_can_press_keys() {
    let coordinator = Coordinator::start(script()).await;
    for line in [&["top"][..], &["top", "--once"]] {
        let output = coordinator.ingle(line).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let said = stdout(&output);
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].contains(&coordinator.endpoint) && lines[0].contains("1 of 1 nodes ready"), "{said}");
        assert!(lines[4].starts_with("nuc ") && lines[4].contains("61 °C"), "{said}");
        assert!(lines[7].starts_with("j-2 ") && lines[8].starts_with("j-1 "), "open jobs come first: {said}");
        assert_eq!(lines.len(), 9, "{said}");
        assert!(!said.contains('\x1b'), "no escape sequences for a pipe: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_for_scripts_is_one_document() {
    let coordinator = Coordinator::start(script()).await;
    let output = coordinator.ingle(&["top", "--json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let document = json(&stdout(&output));
    assert_eq!(document["nodes"][0]["temperature_celsius"], 61.0);
    assert!(document["nodes"][0]["power_watts"].is_null(), "a machine without a sensor");
    assert_eq!(document["jobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(document["status"]["nodes_ready"], 1);
}

#[test]
fn nobody_there_is_said_and_no_terminal_is_touched() {
    let output = super::run(&["top", "--coordinator", "http://127.0.0.1:1"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (3, ""), "{}", stderr(&output));
}

/// A process that is ended with its handle, also when a test panics.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended by itself unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_outlives_its_coordinator_and_is_given_back() {
    if !std::path::Path::new("/usr/bin/script").exists() {
        println!("skipped: script (of bsdutils) is missing, which makes a terminal");
        return;
    }
    let coordinator = Coordinator::start(script()).await;
    let line = format!(
        "stty rows 24 cols 80; exec '{}' top --every 200ms --coordinator {}",
        env!("CARGO_BIN_EXE_ingle"),
        coordinator.endpoint
    );
    let mut command = Command::new("/usr/bin/script");
    command.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").env("TERM", "xterm").env_remove("INGLE_TIMEOUT");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Ended(command.spawn().expect("it starts"));
    let mut keys = child.0.stdin.take().expect("piped");
    let mut screen = child.0.stdout.take().expect("piped");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let filled = Arc::clone(&seen);
    // Ends when the terminal does.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = screen.read(&mut buffer) {
            filled.lock().expect("no panic").extend_from_slice(&buffer[..read]);
        }
    });
    let shows = |word: &str| String::from_utf8_lossy(&seen.lock().expect("no panic")).contains(word);
    eventually("the first frame", || shows("j-2") && shows("nuc") && shows("quit")).await;
    drop(coordinator);
    eventually("that nobody answers", || shows("answer")).await;
    keys.write_all(b"?").expect("it reads");
    eventually("the help", || shows("throttled") || shows("hottest")).await;
    keys.write_all(b"\x03").expect("it reads");
    // The first leaves the help, the second leaves.
    keys.write_all(b"\x03").expect("it reads");
    let mut ended = None;
    eventually("the end", || {
        ended = child.0.try_wait().expect("a child of ours");
        ended.is_some()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    eventually("the screen as it was", || shows("\x1b[?1049l")).await;
}
