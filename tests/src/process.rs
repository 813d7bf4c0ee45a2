//! Real processes: a daemon's binary with its settings, its log, and the signals that end, freeze and wake it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::eventually::{eventually, patience};

/// Lines of a log that are shown when a test fails.
const TAIL_LINES: usize = 60;

/// A binary of ours: in `INGLE_BIN_DIR`, or where cargo puts it beside this test.
///
/// # Panics
/// It isn't built: says how to.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let directory = std::env::var_os("INGLE_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("this test has a path");
            // target/debug/deps/TEST: binaries lie one above.
            test.ancestors().nth(2).expect("two directories above").to_owned()
        },
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(path.is_file(), "{} isn't there: `cargo build --workspace --bins` builds it", path.display());
    path
}

/// A daemon as a child process. Dropping it kills it; if the test is failing then, the end of its log is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    home: PathBuf,
    child: Child,
    addresses: BTreeMap<String, SocketAddr>,
}

impl Process {
    /// Starts it with a ready file and a log in `home`, and waits until it serves.
    ///
    /// # Panics
    /// It doesn't start, or ends before it serves: shows its log.
    pub async fn start(name: &str, program: PathBuf, arguments: Vec<OsString>, home: &Path) -> Self {
        std::fs::create_dir_all(home).expect("a directory");
        let child = spawn(name, &program, &arguments, home);
        let home = home.to_owned();
        let mut process = Self { name: name.into(), program, arguments, home, child, addresses: BTreeMap::new() };
        process.wait_until_it_serves().await;
        process
    }

    async fn wait_until_it_serves(&mut self) {
        let ready = self.home.join(format!("{}.ready", self.name));
        let begun = Instant::now();
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                break text;
            }
            if let Some(status) = self.child.try_wait().expect("ours") {
                panic!("{} ended with {status} before it served", self.name);
            }
            assert!(begun.elapsed() < patience(), "{} doesn't serve", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let addresses: BTreeMap<String, String> = serde_json::from_str(&text).expect("a ready file is JSON");
        self.addresses = addresses.into_iter().map(|(name, text)| (name, text.parse().expect("an address"))).collect();
    }

    /// One of the addresses that it serves at: `grpc`, `metrics`, `beat`, `nfs`.
    ///
    /// # Panics
    /// It has none of that name.
    #[must_use]
    pub fn address(&self, name: &str) -> SocketAddr {
        *self.addresses.get(name).unwrap_or_else(|| panic!("{} serves no {name}: {:?}", self.name, self.addresses))
    }

    /// Kills it as a power failure would, and waits until it is gone.
    ///
    /// # Panics
    /// It had ended by itself before.
    pub fn kill(&mut self) {
        assert!(self.child.try_wait().expect("ours").is_none(), "{} had ended before it was killed", self.name);
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    /// The same for one that may have ended by itself: answers how, if it had.
    ///
    /// # Panics
    /// It can't be waited for.
    pub fn kill_if_running(&mut self) -> Option<ExitStatus> {
        let ended = self.child.try_wait().expect("ours");
        if ended.is_none() {
            self.child.kill().expect("ours");
            self.child.wait().expect("ours");
        }
        ended
    }

    /// Starts it again with the same settings; it serves gRPC where it did.
    ///
    /// # Panics
    /// It doesn't come up.
    pub async fn restart(&mut self) {
        let mut arguments = self.arguments.clone();
        if let Some(address) = self.addresses.get("grpc").or_else(|| self.addresses.get("nfs")) {
            arguments.extend(["--listen".into(), address.to_string().into()]);
        }
        let _ = std::fs::remove_file(self.home.join(format!("{}.ready", self.name)));
        self.child = spawn(&self.name, &self.program, &arguments, &self.home);
        self.wait_until_it_serves().await;
    }

    /// Sends a signal. After SIGSTOP every thread of it stands still.
    ///
    /// # Panics
    /// It is gone.
    pub fn signal(&self, signal: Signal) {
        signal_child(&self.child, signal);
    }

    /// Starts it again if it ended by itself, as a supervisor does, and doesn't wait until it serves. Answers how it ended.
    ///
    /// # Panics
    /// It can't be started.
    pub fn revive(&mut self) -> Option<ExitStatus> {
        let ended = self.child.try_wait().expect("ours")?;
        self.child = spawn(&self.name, &self.program, &self.arguments, &self.home);
        Some(ended)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// It doesn't end in time.
    pub async fn end(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It doesn't come in time.
    pub async fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status;
            }
            assert!(begun.elapsed() < patience(), "{} doesn't end", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its page of metrics.
    pub async fn metrics(&self) -> String {
        let address = self.address("metrics");
        eventually("a page of metrics", || async { metrics_page(address).await.map_err(|error| error.to_string()) })
            .await
    }

    fn log(&self) -> PathBuf {
        self.home.join(format!("{}.log", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of the log of {}", self.name);
            for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
                eprintln!("{line}");
            }
        }
    }
}

/// The page of metrics that is served at an address.
///
/// # Errors
/// Nobody answers there.
pub async fn metrics_page(address: SocketAddr) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// Sends a child a signal. After SIGSTOP every thread of it stands still: `kill` returns before the last one does, and
/// whoever goes on at once may be answered by a process that it takes for frozen.
///
/// # Panics
/// It is gone, or not a child of this process.
pub fn signal_child(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("ours");
    if signal != Signal::STOP {
        return;
    }
    // It is left for whoever waits for its end.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(_) => return,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("process {}: {error}", child.id()),
        }
    }
}

fn spawn(name: &str, program: &Path, arguments: &[OsString], home: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(home.join(format!("{name}.log")));
    let log = log.expect("room for a log");
    let mut command = Command::new(program);
    // Settings of whoever runs the tests must not steer what is tested.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("INGLE_") {
            command.env_remove(variable);
        }
    }
    command
        .args(arguments)
        .arg("--ready-file")
        .arg(home.join(format!("{name}.ready")))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}
