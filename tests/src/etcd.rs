//! An etcd on loopback for one test, where one is installed.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::eventually::patience;

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
        let Some(binary) = binary() else {
            eprintln!("SKIPPED: no etcd here: install the package etcd-server");
            return None;
        };
        // A port that was free may be taken by the time etcd binds it.
        (0..5).find_map(|_| Self::try_start(&binary)).or_else(|| panic!("{} doesn't come up", binary.display()))
    }

    fn try_start(binary: &Path) -> Option<Self> {
        let data = tempfile::tempdir().expect("a directory");
        let (port, peer) = (free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new(binary)
            .args(["--name", "one", "--log-level", "error", "--data-dir"])
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
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

fn binary() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/etcd/usr/bin/etcd");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).chain([unpacked]).find(|file| file.is_file())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}
