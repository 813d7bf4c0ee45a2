//! The seam over Debian's etcd: the suite, compaction, a full disk, a frozen and a restarted server.
//!
//! These tests say so and pass when there is no etcd: `make test` installs the package.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::Shutdown;
use ingle_membership::conformance::exact;
use ingle_membership::connect::ConnectOptions;
use ingle_membership::election::{Candidate, Election, LeaderEvent};
use ingle_membership::etcd::Etcd;
use ingle_membership::faulty::{Faults, Faulty};
use ingle_membership::{Condition, Event, Membership, MembershipError};

use crate::ports::port;

/// One etcd on free ports, ended and removed when dropped.
struct Server {
    child: Child,
    client_port: u16,
    peer_port: u16,
    quota_bytes: u64,
    binary: PathBuf,
    data: tempfile::TempDir,
}

pub(crate) fn binary() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/etcd/usr/bin/etcd");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).chain([unpacked]).find(|file| file.is_file())
}

fn spawn(binary: &Path, data: &Path, client_port: u16, peer_port: u16, quota_bytes: u64) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
    Command::new(binary)
        .args(["--name", "one", "--data-dir"])
        .arg(data)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .args(["--quota-backend-bytes", &quota_bytes.to_string(), "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}

impl Server {
    async fn start(quota_bytes: u64) -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped: no etcd here: install the package etcd-server");
            return None;
        };
        // A program that is no test may have taken its port meanwhile.
        for _ in 0..5 {
            let data = tempfile::tempdir().expect("a directory");
            let (client_port, peer_port) = (port(), port());
            let child = spawn(&binary, &data.path().join("d"), client_port, peer_port, quota_bytes);
            let mut server = Self { child, client_port, peer_port, quota_bytes, binary: binary.clone(), data };
            if server.answers().await {
                return Some(server);
            }
        }
        panic!("etcd doesn't start: {}", binary.display());
    }

    async fn answers(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(30) {
            if self.child.try_wait().expect("ours").is_some() {
                return false;
            }
            if self.client(Duration::from_secs(1)).await.list(Bytes::new()).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    async fn client(&self, deadline: Duration) -> Etcd {
        let url = format!("etcd://127.0.0.1:{}", self.client_port);
        Etcd::connect(&url, &ConnectOptions { deadline, ..Default::default() }).await.expect("a URL")
    }

    fn kill(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    async fn restart(&mut self) {
        self.child =
            spawn(&self.binary, &self.data.path().join("d"), self.client_port, self.peer_port, self.quota_bytes);
        assert!(self.answers().await, "etcd comes back");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Stops it, and returns when its last thread stands still: `kill` returns before that, and a read could be answered.
    async fn freeze(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        let still = || {
            let mut tasks = std::fs::read_dir(&tasks).expect("it is there").flatten();
            // The state stands after the name, which stands in parentheses.
            tasks.all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
            })
        };
        let started = Instant::now();
        while !still() {
            assert!(started.elapsed() < Duration::from_secs(30), "etcd doesn't stand still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const QUOTA: u64 = 256 << 20;
const DEADLINE: Duration = Duration::from_secs(5);

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_conforms() {
    let Some(server) = Server::start(QUOTA).await else { return };
    exact(Arc::new(server.client(DEADLINE).await), "/exact").await;
}

/// The suite behind a wrapper that does nothing.
pub(crate) async fn calm() {
    let Some(server) = Server::start(QUOTA).await else { return };
    let calm = Faulty::new(server.client(DEADLINE).await, 3, Faults::NONE);
    exact(Arc::new(calm), "/exact").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_converges_under_faults() {
    let Some(server) = Server::start(QUOTA).await else { return };
    crate::faults(server.client(DEADLINE).await, 200..204).await;
}

#[tokio::test]
async fn etcd_compaction_resets_a_watch() {
    let Some(server) = Server::start(QUOTA).await else { return };
    let client = server.client(DEADLINE).await;
    let first = client.put(key("a"), key("1"), None, Condition::Always).await.expect("a put").done().expect("done");
    let mut last = first;
    for _ in 0..5 {
        last = client.put(key("a"), key("2"), None, Condition::Always).await.expect("a put").done().expect("done");
    }
    let mut raw = etcd_client::Client::connect([format!("http://127.0.0.1:{}", server.client_port)], None)
        .await
        .expect("a client");
    raw.compact(i64::try_from(last.counter).expect("small"), None).await.expect("compacted");
    let mut watch = client.watch(key("a"), first).await.expect("a watch");
    let told = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("told");
    assert_eq!(told, Some(Ok(Event::Reset)));
    assert!(watch.next().await.is_none());
    let listing = client.list(key("a")).await.expect("a list");
    let mut watch = client.watch(key("a"), listing.revision).await.expect("a watch");
    let next = client.put(key("a"), key("3"), None, Condition::Always).await.expect("a put").done();
    let told = watch.next().await.expect("open").expect("works");
    assert_eq!(told.revision(), next);
}

#[tokio::test]
async fn a_frozen_etcd_is_given_up_at_the_deadline() {
    let Some(server) = Server::start(QUOTA).await else { return };
    let client = server.client(Duration::from_millis(500)).await;
    // In half a second a busy machine may not come to it: said again, it is the same.
    let started = Instant::now();
    while let Err(error) = client.put(key("a"), key("1"), None, Condition::Always).await {
        assert!(started.elapsed() < Duration::from_secs(30), "{error}");
    }
    server.freeze().await;
    let put = client.put(key("a"), key("2"), None, Condition::Always).await;
    let list = client.list(key("a")).await;
    server.signal("-CONT");
    assert!(put.as_ref().is_err_and(MembershipError::outcome_unknown), "it may have happened: {put:?}");
    assert!(matches!(list, Err(MembershipError::Unavailable { .. })), "a read has not: {list:?}");
    let patient = server.client(Duration::from_secs(20)).await;
    let value = patient.list(key("a")).await.expect("thawed").entries.remove(0).value;
    assert!(value == "1" || value == "2", "{value:?}");
}

#[tokio::test]
async fn a_killed_etcd_loses_nothing_and_is_found_again() {
    let Some(mut server) = Server::start(QUOTA).await else { return };
    let client = server.client(DEADLINE).await;
    let lease = client.grant(Duration::from_secs(60)).await.expect("a lease");
    let put = client.put(key("a"), key("1"), Some(lease), Condition::Always).await.expect("a put").done();
    let mut watch = client.watch(key(""), put.expect("done")).await.expect("a watch");
    server.kill();
    let end = loop {
        match watch.next().await {
            Some(Ok(Event::Progress(_))) => {}
            end => break end,
        }
    };
    assert!(matches!(&end, Some(Err(error)) if error.retryable()), "{end:?}");
    let down = client.list(key("")).await.expect_err("it is down");
    assert!(down.retryable() && !down.outcome_unknown(), "{down}");
    let down = client.put(key("b"), key("2"), None, Condition::Always).await.expect_err("it is down");
    assert!(down.retryable(), "{down}");
    server.restart().await;
    let entry = loop {
        // The same client finds its way back.
        match client.list(key("a")).await {
            Ok(mut listing) => break listing.entries.remove(0),
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((entry.value, entry.lease, Some(entry.modified)), (key("1"), Some(lease), put));
    client.keep_alive(lease).await.expect("leases survive");
}

#[tokio::test]
async fn a_full_etcd_says_so_and_still_reads() {
    let Some(server) = Server::start(4 << 20).await else { return };
    let client = server.client(DEADLINE).await;
    let value = Bytes::from(vec![0; 64 << 10]);
    let mut refused = None;
    for index in 0..200 {
        let name = Bytes::from(format!("k{index}"));
        if let Err(error) = client.put(name, value.clone(), None, Condition::Always).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("four mebibytes are little");
    assert!(matches!(error, MembershipError::Full { .. }) && error.retryable(), "{error}");
    assert!(!client.list(key("k0")).await.expect("reads go on").entries.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_over_etcd_passes_on_with_a_greater_epoch() {
    let Some(server) = Server::start(QUOTA).await else { return };
    let mut reigns = Vec::new();
    let mut last = None;
    for name in ["one", "two"] {
        let candidate = Candidate { id: name.into(), incarnation: "i".into(), address: "127.0.0.1:1".into() };
        let election = Election::new(Arc::new(server.client(DEADLINE).await), candidate);
        let (events, mut told) = tokio::sync::mpsc::channel(4);
        let stop = Shutdown::new();
        let leadership = election.leadership();
        let running = tokio::spawn(election.run(events, stop.clone()));
        reigns.push((stop, running));
        if let Some((stop, running)) = (reigns.len() > 1).then(|| reigns.remove(0)) {
            assert_eq!(leadership.epoch(), None, "one at a time");
            stop.begin();
            running.await.expect("no panic").expect("a clean end");
        }
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await.expect("in time");
        let Some(LeaderEvent::Elected(epoch)) = event else { panic!("{event:?}") };
        assert!(Some(epoch) > last, "epochs rise");
        assert_eq!(leadership.epoch(), Some(epoch));
        last = Some(epoch);
    }
    for (stop, running) in reigns {
        stop.begin();
        running.await.expect("no panic").expect("a clean end");
    }
}
