//! One daemon as a child process: started, waited for until it serves, asked to end, killed if it doesn't.

use std::ffi::OsString;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::leftovers::Trace;
use crate::exit::{Exit, Failure};
use crate::human;

/// How often the ready file is looked for.
const POLL: Duration = Duration::from_millis(25);
/// A log longer than this is put aside before the daemon starts.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// How much of a log is looked at to find its last lines.
const TAIL_BYTES: u64 = 8 << 10;
/// Lines of a log that are shown.
const TAIL_LINES: usize = 12;

/// A daemon to run.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Also of its settings, log, ready file and process-id file.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// What it serves, for people.
    pub(crate) address: String,
    pub(crate) log: PathBuf,
    pub(crate) run: PathBuf,
    /// Variables it gets beside ours.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) ready_within: Duration,
    pub(crate) end_within: Duration,
    /// It may be asked to end by others than us, as a node is by a drain, and then stays away.
    pub(crate) may_leave: bool,
}

impl Spec {
    fn ready_file(&self) -> PathBuf {
        self.run.join(format!("{}.ready", self.name))
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join(format!("{}.pid", self.name))
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// If it ends or doesn't serve in time, with the last lines of its log.
    pub(crate) async fn start(&self) -> Result<Running, Failure> {
        let _ = std::fs::remove_file(self.ready_file());
        let mut running = self.spawn()?;
        let began = Instant::now();
        loop {
            if let Some(status) = running.child.try_wait()? {
                running.forget();
                return Err(self.failed(&format!("ended while starting ({status})")));
            }
            // It is written in one step: whole or not there.
            if self.ready_file().exists() {
                return Ok(running);
            }
            if began.elapsed() > self.ready_within {
                running.end(Duration::ZERO).await;
                return Err(self.failed(&format!("did not serve within {}", human::duration(self.ready_within))));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn spawn(&self) -> Result<Running, Failure> {
        let fail =
            |what: &Path, error: std::io::Error| Failure::new(Exit::WorkFailed, format!("{}: {error}", what.display()));
        if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
            let _ = std::fs::rename(&self.log, self.log.with_extension("log.1"));
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| fail(&self.log, error))?;
        let also = log.try_clone().map_err(|error| fail(&self.log, error))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .arg("--ready-file")
            .arg(self.ready_file())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also)
            // A group of its own: Ctrl-C at the terminal is for us, and we end them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(&self.program, error))?;
        let running = Running { child, pid_file: self.pid_file() };
        // Written down so that the next `up` finds it should we be killed.
        if let Some(text) = Trace::of(running.pid(), &self.program).and_then(|t| serde_json::to_string(&t).ok()) {
            std::fs::write(&running.pid_file, text).map_err(|error| fail(&running.pid_file, error))?;
        }
        Ok(running)
    }

    fn failed(&self, what: &str) -> Failure {
        let lines = tail(&self.log);
        let said =
            if lines.is_empty() { String::new() } else { format!("; its log ends with:\n  {}", lines.join("\n  ")) };
        Failure::new(Exit::WorkFailed, format!("{} {what}{said}", self.name))
            .hint(format!("all of it: {}", self.log.display()))
    }
}

/// A daemon that runs.
pub(crate) struct Running {
    child: Child,
    pid_file: PathBuf,
}

impl Running {
    /// 0 once it has ended.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Waits until it ends.
    pub(crate) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.forget();
        status
    }

    /// Asks it to end; kills it if it hasn't within `patience`. Answers whether it had to be killed.
    pub(crate) async fn end(&mut self, patience: Duration) -> bool {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It is our child and not reaped, so the number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
        let in_time = tokio::time::timeout(patience, self.child.wait()).await.is_ok();
        if !in_time {
            let _ = self.child.kill().await;
        }
        self.forget();
        !in_time
    }

    fn forget(&self) {
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|line| crate::human::cut(line, 400)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A daemon played by a shell script; `$ready` is its ready file.
    pub(crate) fn played(dir: &Path, name: &str, script: &str) -> Spec {
        let script = format!("ready=\"$2\"\n{script}");
        Spec {
            name: name.to_owned(),
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into(), "played".into()],
            address: "nowhere".into(),
            log: dir.join(format!("{name}.log")),
            run: dir.to_owned(),
            environment: Vec::new(),
            ready_within: Duration::from_secs(20),
            end_within: Duration::from_secs(20),
            may_leave: name.starts_with("node"),
        }
    }

    #[tokio::test]
    async fn one_that_serves_is_asked_to_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = played(
            dir.path(),
            "good",
            "trap 'echo asked; exit 0' TERM; touch \"$ready\"; while :; do sleep 0.05; done",
        );
        let mut running = spec.start().await.expect("it serves");
        assert!(running.pid() > 0 && spec.pid_file().exists());
        assert!(!running.end(Duration::from_secs(20)).await, "not killed");
        assert_eq!(tail(&spec.log), ["asked"]);
        assert!(!spec.pid_file().exists());
    }

    #[tokio::test]
    async fn one_that_will_not_end_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = played(dir.path(), "stubborn", "trap '' TERM; touch \"$ready\"; while :; do sleep 0.05; done");
        let mut running = spec.start().await.expect("it serves");
        assert!(running.end(Duration::from_millis(100)).await, "killed");
    }

    #[tokio::test]
    async fn one_that_does_not_start_shows_its_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = played(dir.path(), "bad", "echo 'the port is taken' >&2; exit 3");
        let failure = spec.start().await.err().expect("it ended");
        assert!(
            failure.message.contains("the port is taken") && failure.message.contains("bad"),
            "{}",
            failure.message
        );
        assert!(failure.hint.is_some_and(|h| h.contains("bad.log")));
        let mut slow = played(dir.path(), "slow", "sleep 1000");
        slow.ready_within = Duration::from_millis(100);
        let failure = slow.start().await.err().expect("it never serves");
        assert!(failure.message.contains("did not serve"), "{}", failure.message);
        let nowhere = Spec { program: "/nowhere/at/all".into(), ..slow };
        assert!(nowhere.start().await.err().expect("no such program").message.contains("/nowhere/at/all"));
    }
}
