//! Three members of etcd, and what a change of their leader does to watches, leases and members.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::Shutdown;
use ingle_membership::connect::{ConnectOptions, connect};
use ingle_membership::registration::MEMBER_TTL;
use ingle_membership::{
    Condition, CoordinatorRecord, Event, MemberEvent, Membership, Registration, Revision, watch_members,
};

use crate::ports::port;

const PATIENCE: Duration = Duration::from_secs(120);
const WRITES: u32 = 60;

/// Three on free ports of loopback, ended and removed when dropped.
struct Three {
    members: Vec<(Child, u16)>,
    _data: tempfile::TempDir,
}

impl Three {
    async fn start() -> Option<Self> {
        let Some(binary) = crate::etcd::binary() else {
            eprintln!("skipped: no etcd here: install the package etcd-server");
            return None;
        };
        // A program that is no test may have taken one of their ports meanwhile.
        for _ in 0..5 {
            let mut three = Self::try_start(&binary);
            if three.answers().await {
                return Some(three);
            }
        }
        panic!("three of {} don't start", binary.display());
    }

    fn try_start(binary: &Path) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (port(), port())).collect();
        let cluster: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let spawn = |(n, (client, peer)): (usize, &(u16, u16))| {
            let (client_url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let child = Command::new(binary)
                .args(["--name", &format!("m{n}"), "--log-level", "error", "--data-dir"])
                .arg(data.path().join(format!("m{n}")))
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &cluster.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd starts");
            (child, *client)
        };
        let members = ports.iter().enumerate().map(spawn).collect();
        Self { members, _data: data }
    }

    fn url(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        format!("etcd://{}", hosts.join(","))
    }

    async fn store(&self) -> Arc<dyn Membership> {
        let options = ConnectOptions { deadline: Duration::from_secs(3), ..ConnectOptions::default() };
        connect(&self.url(), &options).await.expect("a URL")
    }

    async fn answers(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.members.iter_mut().any(|(child, _)| child.try_wait().expect("ours").is_some()) {
                return false;
            }
            if self.store().await.list(Bytes::new()).await.is_ok() && self.leader().await.is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// Which of them leads, if one says so of itself.
    async fn leader(&self) -> Option<usize> {
        for (n, (_, port)) in self.members.iter().enumerate() {
            let options = ConnectOptions { deadline: Duration::from_secs(3), ..ConnectOptions::default() };
            let url = format!("etcd://127.0.0.1:{port}");
            let Ok(mut client) = ingle_membership::etcd::client(&url, &options).await else { continue };
            if let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(3), client.status()).await
                && status.leader() != 0
                && status.header().is_some_and(|header| header.member_id() == status.leader())
            {
                return Some(n);
            }
        }
        None
    }

    async fn kill_leader(&mut self) {
        // Busy as the machine may be, one of them leads before long.
        let started = Instant::now();
        let leader = loop {
            match self.leader().await {
                Some(leader) => break leader,
                None => assert!(started.elapsed() < PATIENCE, "none leads"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let (child, _) = &mut self.members[leader];
        child.kill().expect("ours");
        child.wait().expect("ours");
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        for (child, _) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes one number after another, each until it is known to be written; says how far it is.
async fn write(store: &dyn Membership, from: u32, until: u32) {
    for n in from..until {
        let (key, value) = (Bytes::from(format!("/w/{n:03}")), Bytes::from(n.to_string()));
        let started = Instant::now();
        while let Err(error) = store.put(key.clone(), value.clone(), None, Condition::Always).await {
            assert!(error.retryable() && started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Watches until the last number is there; a watch that breaks is taken up where it was. Answers the keys in their order, and
/// how often it broke.
async fn watched(store: &dyn Membership, mut reached: Revision) -> (Vec<Bytes>, u32) {
    let (mut seen, mut broken) = (Vec::new(), 0);
    let last = format!("/w/{:03}", WRITES - 1);
    loop {
        let Ok(mut watch) = store.watch(Bytes::from_static(b"/w/"), reached).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Some(Ok(event)) = watch.next().await {
            match event {
                Event::Put(entry) => {
                    assert!(entry.modified > reached, "in order, and none twice");
                    reached = entry.modified;
                    seen.push(entry.key.clone());
                    if entry.key == last.as_bytes() {
                        return (seen, broken);
                    }
                }
                Event::Progress(_) => {}
                other => panic!("nothing was deleted or compacted: {other:?}"),
            }
        }
        broken += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_leases_and_members_outlast_a_change_of_etcd_s_leader() {
    let Some(mut three) = Three::start().await else { return };
    let store = three.store().await;
    let record = CoordinatorRecord {
        id: "c-1".into(),
        incarnation: "i".into(),
        address: "127.0.0.1:7700".into(),
        ..CoordinatorRecord::default()
    };
    let (registration, mut handle) = Registration::new(Arc::clone(&store), record.clone(), MEMBER_TTL);
    let stop = Shutdown::new();
    let registered = tokio::spawn(registration.run(stop.clone()));
    tokio::time::timeout(PATIENCE, handle.registered()).await.expect("in time");
    let mut members = watch_members::<CoordinatorRecord>(Arc::clone(&store));
    let joined = tokio::time::timeout(PATIENCE, members.next()).await.expect("in time");
    assert_eq!(joined, MemberEvent::Joined(record.clone()));

    let start = store.list(Bytes::from_static(b"/w/")).await.expect("they answer").revision;
    let writing = async {
        write(&*store, 0, WRITES / 3).await;
        three.kill_leader().await;
        write(&*store, WRITES / 3, WRITES).await;
    };
    let both = async { tokio::join!(writing, watched(&*store, start)).1 };
    let (seen, broken) = tokio::select! {
        seen = tokio::time::timeout(PATIENCE * 2, both) => seen.expect("in time"),
        event = members.next() => panic!("a change of etcd's leader is nobody's coming or leaving: {event:?}"),
    };
    println!("the watch broke {broken} times");
    // A write whose answer was lost may be told twice, as two changes; none is missing, and their order is the writer's.
    let mut once = seen;
    once.dedup();
    let expected: Vec<Bytes> = (0..WRITES).map(|n| Bytes::from(format!("/w/{n:03}"))).collect();
    assert_eq!(once, expected);

    // The member is there still, and whoever asks anew finds it.
    let started = Instant::now();
    loop {
        let mut anew = watch_members::<CoordinatorRecord>(Arc::clone(&store));
        match tokio::time::timeout(Duration::from_secs(10), anew.next()).await {
            Ok(MemberEvent::Joined(there)) if there.id == record.id => break,
            other => assert!(started.elapsed() < PATIENCE, "{other:?}"),
        }
    }
    stop.begin();
    registered.await.expect("no panic").expect("a clean end");
}
