//! The children together: started in order, started again when one ends by itself, stopped in the opposite order.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ingle_daemon::backoff::Backoff;
use serde_json::json;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;

use super::child::{Running, Spec};
use super::plan::Plan;
use crate::exit::Failure;
use crate::out::{Out, note};

/// A child that ran this long before it ended is started again at once.
const STABLE: Duration = Duration::from_secs(60);

/// How urgently we are asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    /// Each may finish what it does.
    InOrder,
    /// Kill them.
    AtOnce,
}

/// A process for people.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
}

/// All children, in groups that start one after the other.
pub(crate) struct Cluster {
    out: Out,
    groups: Vec<Vec<Spec>>,
    watched: AsyncMutex<Vec<Group>>,
    pids: Arc<Mutex<Vec<(String, u32)>>>,
}

/// A group that runs.
struct Group {
    /// Set to end the group; the duration caps each child's own patience.
    end: watch::Sender<bool>,
    keepers: JoinSet<()>,
}

impl Cluster {
    pub(crate) fn new(out: Out, plan: Plan) -> Self {
        Self::of(out, plan.groups)
    }

    fn of(out: Out, groups: Vec<Vec<Spec>>) -> Self {
        Self { out, groups, watched: AsyncMutex::default(), pids: Arc::default() }
    }

    /// Starts group after group; within a group all at once.
    ///
    /// # Errors
    /// What the first that did not start said. Those that did go on running: call [`Self::stop`].
    pub(crate) async fn start(&self) -> Result<(), Failure> {
        for specs in &self.groups {
            let mut starting = JoinSet::new();
            for spec in specs.clone() {
                starting.spawn(async move { spec.start().await.map(|running| (spec, running)) });
            }
            let (end, _) = watch::channel(false);
            let mut keepers = JoinSet::new();
            let mut failed = None;
            while let Some(started) = starting.join_next().await {
                match started
                    .map_err(|error| Failure::new(crate::exit::Exit::WorkFailed, error.to_string()))
                    .and_then(|s| s)
                {
                    Ok((spec, running)) => {
                        self.set_pid(&spec.name, running.pid());
                        let keeper = Keeper { out: self.out, spec, pids: Arc::clone(&self.pids), end: end.subscribe() };
                        keepers.spawn(keeper.keep(running));
                    }
                    Err(failure) => failed = failed.or(Some(failure)),
                }
            }
            self.watched.lock().await.push(Group { end, keepers });
            if let Some(failure) = failed {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Stops group after group, the last started first. A second signal kills what is left.
    pub(crate) async fn stop(&self, mut signals: watch::Receiver<Stop>) {
        let mut groups = std::mem::take(&mut *self.watched.lock().await);
        while let Some(mut group) = groups.pop() {
            let _ = group.end.send(true);
            tokio::select! {
                () = async { while group.keepers.join_next().await.is_some() {} } => {}
                _ = signals.wait_for(|s| *s == Stop::AtOnce) => {
                    // Dropping a keeper drops its child, and that kills it.
                    group.keepers.shutdown().await;
                }
            }
        }
    }

    /// What runs where.
    pub(crate) fn describe(&self) -> Vec<Process> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = |name: &str| pids.iter().find(|(n, _)| n == name).map_or(0, |(_, pid)| *pid);
        self.groups
            .iter()
            .flatten()
            .map(|s| Process {
                name: s.name.clone(),
                address: s.address.clone(),
                pid: pid(&s.name),
                log: s.log.clone(),
            })
            .collect()
    }

    fn set_pid(&self, name: &str, pid: u32) {
        set_pid(&self.pids, name, pid);
    }
}

fn set_pid(pids: &Mutex<Vec<(String, u32)>>, name: &str, pid: u32) {
    let mut pids = pids.lock().unwrap_or_else(PoisonError::into_inner);
    pids.retain(|(n, _)| n != name);
    pids.push((name.to_owned(), pid));
}

/// Keeps one child running.
struct Keeper {
    out: Out,
    spec: Spec,
    pids: Arc<Mutex<Vec<(String, u32)>>>,
    end: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(mut self, mut running: Running) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            let began = Instant::now();
            let mut end = self.end.clone();
            let status = tokio::select! {
                status = running.ended() => Some(status),
                _ = end.wait_for(|e| *e) => None,
            };
            let Some(status) = status else {
                if running.end(self.spec.end_within).await {
                    self.say("killed", "did not end in time and was killed");
                }
                return;
            };
            if began.elapsed() > STABLE {
                backoff.reset();
            }
            // A node that was drained has left; started again it would take work.
            if self.spec.may_leave && status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                self.say("left", "ended as it was asked to, and is not started again");
                return;
            }
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            self.say("ended", &format!("ended ({how}); starting it again"));
            running = match self.again(&mut backoff).await {
                Some(running) => running,
                None => return,
            };
        }
    }

    /// Tries until it serves; `None` when we are asked to end meanwhile.
    async fn again(&mut self, backoff: &mut Backoff) -> Option<Running> {
        let mut end = self.end.clone();
        loop {
            let trying = async {
                tokio::time::sleep(backoff.next_random()).await;
                self.spec.start().await
            };
            let started = tokio::select! {
                started = trying => started,
                _ = end.wait_for(|e| *e) => return None,
            };
            match started {
                Ok(running) => {
                    set_pid(&self.pids, &self.spec.name, running.pid());
                    self.say("started", &format!("runs again as process {}", running.pid()));
                    return Some(running);
                }
                Err(failure) => self.say("failed", &failure.message),
            }
        }
    }

    fn say(&self, event: &str, text: &str) {
        if self.out.json {
            // Whoever started us may have stopped reading: the cluster goes on.
            let _ = self.out.json_line(&json!({ "event": event, "name": self.spec.name, "message": text }));
        } else {
            note(self.out, format!("{} {text}", self.spec.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::child::tests::played;
    use super::*;

    async fn eventually(what: &str, mut test: impl FnMut() -> bool) {
        let began = Instant::now();
        while !test() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn one_that_ends_is_started_again_and_all_end_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let order = dir.path().join("order");
        let daemon = |name: &str| {
            let script = format!(
                "echo start >> {0}/{name}.starts; trap 'echo {name} >> {1}; exit 0' TERM; touch \"$ready\"; while :; do sleep 0.05; done",
                dir.path().display(),
                order.display()
            );
            played(dir.path(), name, &script)
        };
        let cluster = Cluster::of(
            Out::new(false),
            vec![vec![daemon("gateway")], vec![daemon("coordinator")], vec![daemon("node")]],
        );
        cluster.start().await.expect("all serve");
        let pid = |name: &str| cluster.describe().iter().find(|p| p.name == name).map_or(0, |p| p.pid);
        let first = pid("coordinator");
        let raw = rustix::process::Pid::from_raw(i32::try_from(first).expect("a pid")).expect("a pid");
        rustix::process::kill_process(raw, rustix::process::Signal::KILL).expect("it runs");
        eventually("the coordinator runs again", || pid("coordinator") != first).await;
        let starts = std::fs::read_to_string(dir.path().join("coordinator.starts")).expect("written");
        assert_eq!(starts.lines().count(), 2);
        let (_signals, told) = watch::channel(Stop::InOrder);
        cluster.stop(told).await;
        assert_eq!(std::fs::read_to_string(&order).expect("written"), "node\ncoordinator\ngateway\n");
    }

    #[tokio::test]
    async fn one_that_ends_well_by_itself_is_not_started_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let go = dir.path().join("go");
        let script = format!(
            "echo start >> {0}/starts; touch \"$ready\"; while [ ! -e {1} ]; do sleep 0.05; done; exit 0",
            dir.path().display(),
            go.display()
        );
        let cluster = Cluster::of(Out::new(false), vec![vec![played(dir.path(), "node", &script)]]);
        cluster.start().await.expect("it serves");
        std::fs::write(&go, "").expect("written");
        // Whoever keeps it ends with it, rather than start another.
        let mut groups = cluster.watched.lock().await;
        let kept = tokio::time::timeout(Duration::from_secs(30), groups[0].keepers.join_next()).await;
        kept.expect("in time").expect("there was one").expect("no panic");
        assert_eq!(std::fs::read_to_string(dir.path().join("starts")).expect("written").lines().count(), 1);
    }

    #[tokio::test]
    async fn one_that_the_others_need_is_started_again_however_it_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let (go, starts) = (dir.path().join("go"), dir.path().join("starts"));
        let script = format!(
            "echo start >> {}; trap 'exit 0' TERM; touch \"$ready\"; while [ ! -e {1} ]; do sleep 0.05; done; rm {1}; exit 0",
            starts.display(),
            go.display()
        );
        let cluster = Cluster::of(Out::new(false), vec![vec![played(dir.path(), "gateway", &script)]]);
        cluster.start().await.expect("it serves");
        std::fs::write(&go, "").expect("written");
        let started = || std::fs::read_to_string(&starts).expect("written").lines().count();
        eventually("it is started again", || started() == 2).await;
        let (_signals, told) = watch::channel(Stop::InOrder);
        cluster.stop(told).await;
        assert_eq!(started(), 2);
    }

    #[tokio::test]
    async fn a_second_signal_kills() {
        let dir = tempfile::tempdir().expect("a directory");
        let stubborn = played(dir.path(), "stubborn", "trap '' TERM; touch \"$ready\"; while :; do sleep 0.05; done");
        let cluster =
            Cluster::of(Out::new(false), vec![vec![Spec { end_within: Duration::from_secs(1000), ..stubborn }]]);
        cluster.start().await.expect("it serves");
        let pid = cluster.describe()[0].pid;
        let (signals, told) = watch::channel(Stop::InOrder);
        let stopping = cluster.stop(told);
        tokio::pin!(stopping);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), &mut stopping).await.is_err(),
            "it does not end by itself"
        );
        signals.send(Stop::AtOnce).expect("it listens");
        stopping.await;
        eventually("it is killed", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        })
        .await;
    }

    #[tokio::test]
    async fn when_one_does_not_start_the_others_can_be_stopped() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = played(dir.path(), "good", "trap 'exit 0' TERM; touch \"$ready\"; while :; do sleep 0.05; done");
        let bad = played(dir.path(), "bad", "exit 2");
        let cluster = Cluster::of(Out::new(false), vec![vec![good], vec![bad]]);
        assert!(cluster.start().await.expect_err("one is bad").message.contains("bad"));
        let pid = cluster.describe()[0].pid;
        let (_signals, told) = watch::channel(Stop::InOrder);
        cluster.stop(told).await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "reaped");
    }
}
