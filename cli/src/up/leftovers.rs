//! Daemons of an earlier `up` that was killed itself: found by what it wrote down, and ended.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::exit::{Exit, Failure};

/// How long one may take to end when asked, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How long one that was killed may take until its last thread is gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// What is written down of a process: enough to know it again, since process ids are used again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Trace {
    pid: i32,
    /// Clock ticks between the machine's start and the process's.
    started: u64,
    program: String,
}

impl Trace {
    /// Of a process that runs now.
    pub(crate) fn of(pid: u32, program: &Path) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        // As the system names what runs: links resolved, whatever the program was called by.
        let program = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        let program = program.file_name()?.to_str()?.to_owned();
        Some(Self { pid, started: started(pid)?, program })
    }

    /// Whether that very process still runs, or a thread of it is left. One that was killed keeps its ports and locks until
    /// its last thread has ended; its program can't be told any more by then, and its first thread may be gone already.
    fn runs(&self) -> bool {
        if started(self.pid) != Some(self.started) {
            return false;
        }
        match std::fs::read_link(format!("/proc/{}/exe", self.pid)) {
            Ok(program) => {
                let program = program.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                // A binary that was built anew meanwhile reads `NAME (deleted)`.
                program == self.program || program.strip_suffix(" (deleted)") == Some(&self.program)
            }
            Err(error) => error.kind() == std::io::ErrorKind::NotFound && threads_left(self.pid),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && self.runs()
        {
            // It may have ended just now: that is what we want.
            let _ = kill_process(pid, signal);
        }
    }
}

/// When a process started, from `/proc/PID/stat`; also of one that ended and that nobody asked after.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, also parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a thread of a process hasn't ended.
fn threads_left(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    });
    states.any(|state| !matches!(state, 'Z' | 'X'))
}

/// Ends what an earlier `up` left running. Answers their names.
pub(crate) async fn end(run: &Path) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run)?.filter_map(Result::ok) {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "pid") {
            continue;
        }
        let trace = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Trace>(&text).ok());
        if let Some(trace) = trace
            && trace.runs()
        {
            let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            found.push((name, trace));
        }
        let _ = std::fs::remove_file(&path);
    }
    for (_, trace) in &found {
        trace.signal(Signal::TERM);
    }
    let began = Instant::now();
    while let Some((name, trace)) = found.iter().find(|(_, trace)| trace.runs()) {
        if began.elapsed() > GRACE + GONE_WITHIN {
            return Err(Failure::new(
                Exit::WorkFailed,
                format!(
                    "{name} (process {}), left over from an earlier run, doesn't end though it was killed",
                    trace.pid
                ),
            )
            .hint("its disk or NAS may hang; start again once it has gone"));
        }
        if began.elapsed() > GRACE {
            for (_, trace) in &found {
                trace.signal(Signal::KILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(found.into_iter().map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_very_process_is_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep is everywhere");
        let program = std::fs::read_link(format!("/proc/{}/exe", child.id())).expect("it runs");
        let trace = loop {
            // Until exec is done it is still us.
            match Trace::of(child.id(), &program) {
                Some(trace) if trace.runs() => break trace,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let write = |trace: &Trace| {
            let text = serde_json::to_string(trace).expect("plain data");
            std::fs::write(dir.path().join("node-1.pid"), text).expect("room");
        };
        // The same number with another start or another program is someone else.
        for other in [
            Trace { started: trace.started + 1, ..trace.clone() },
            Trace { program: "ingle-node".into(), ..trace.clone() },
            Trace { pid: i32::MAX, ..trace.clone() },
        ] {
            write(&other);
            assert!(end(dir.path()).await.expect("readable").is_empty());
            assert!(trace.runs());
        }
        std::fs::write(dir.path().join("torn.pid"), "{\"pid\":").expect("room");
        write(&trace);
        // Reaps it once it has ended, as its parent would.
        let reaper = std::thread::spawn(move || child.wait());
        assert_eq!(end(dir.path()).await.expect("readable"), ["node-1"]);
        reaper.join().expect("no panic").expect("ended");
        assert!(!trace.runs());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0, "nothing is left behind");
    }

    #[test]
    fn one_that_ended_runs_no_more_though_nobody_asked_after_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep is everywhere");
        let pid = i32::try_from(child.id()).expect("a process id");
        // Whatever its program is by now: only when it started counts here.
        let trace = Trace { pid, started: started(pid).expect("it runs"), program: "sleep".into() };
        assert!(threads_left(pid));
        child.kill().expect("ours");
        let began = Instant::now();
        // It stays in the table of processes until it is waited for, and has no thread any more.
        while threads_left(pid) {
            assert!(began.elapsed() < Duration::from_secs(60), "it doesn't end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(started(pid), Some(trace.started), "it is still there");
        assert!(!trace.runs());
        child.wait().expect("ours");
        assert!(!trace.runs() && started(pid) != Some(trace.started));
    }
}
