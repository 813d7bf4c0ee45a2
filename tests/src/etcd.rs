//! An etcd on loopback for one test, where one is installed.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::eventually::patience;
use crate::ports::port;
use crate::process::signal_child;

/// A server with one member. Dropping it kills it.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    port: u16,
    _data: TempDir,
}

impl Etcd {
    /// Starts it. `None`, said aloud, where none is installed.
    ///
    /// # Panics
    /// One is installed and doesn't come up.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with more arguments.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped: no etcd here: install the package etcd-server");
            return None;
        };
        // A program that is no test may have taken its port meanwhile.
        (0..5)
            .find_map(|_| Self::try_start(&binary, arguments))
            .or_else(|| panic!("{} doesn't come up", binary.display()))
    }

    fn try_start(binary: &Path, arguments: &[&str]) -> Option<Self> {
        let data = tempfile::tempdir().expect("a directory");
        let (port, peer) = (port(), port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new(binary)
            .args(["--name", "one", "--log-level", "error", "--data-dir"])
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut server = Self { child, port, _data: data };
        let begun = Instant::now();
        while begun.elapsed() < patience() {
            if server.child.try_wait().expect("ours").is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Freezes it, and returns when its last thread stands still: until then a request could be answered.
    ///
    /// # Panics
    /// It can't be frozen.
    pub fn freeze(&self) {
        signal_child(&self.child, Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// It has ended meanwhile.
    pub fn thaw(&self) {
        signal_child(&self.child, Signal::CONT);
    }

    /// As settings name it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// etcd's program: on the path, or where `make test` unpacks it.
#[must_use]
pub fn binary() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/etcd/usr/bin/etcd");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).chain([unpacked]).find(|file| file.is_file())
}
