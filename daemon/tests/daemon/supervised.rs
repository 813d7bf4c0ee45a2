//! A daemon under systemd, which this test plays: signs of life, sockets handed down, and sockets left for the next start.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::frame::{CHILD, Daemon, PATIENCE, addresses};

/// The service manager's end of the socket that daemons tell of themselves on.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a free path");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket, path }
    }

    /// Reads until a message has this line; answers that message and the descriptors that came with it.
    fn until(&self, line: &str) -> (String, Vec<OwnedFd>) {
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
                .unwrap_or_else(|error| panic!("{line} isn't told: {error}"));
            let fds = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                    _ => None,
                })
                .flatten()
                .collect();
            let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
            if text.lines().any(|theirs| theirs == line) {
                return (text, fds);
            }
        }
    }
}

/// A free port that no outgoing connection is given: below the ephemeral range, others for each process.
fn free_address() -> SocketAddr {
    let first = 10_000 + u16::try_from(std::process::id() % 10_000).expect("below ten thousand");
    (first..first + 1000)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port among a thousand")
}

/// Starts the sample daemon with a socket as its descriptor 3, as systemd does.
fn handed(socket: OwnedFd, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
    // The shell moves the socket from its input to where it belongs, and keeps its process id when it becomes the daemon.
    let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(std::env::current_exe().expect("we run"))
        .args(["frame::child", "--exact", "--nocapture"])
        .env(CHILD, arguments.join("\n"))
        .env("LISTEN_FDNAMES", name)
        .envs(environment.iter().copied())
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    Daemon(command.spawn().expect("sh is there"))
}

#[test]
fn systemd_is_told_and_a_restart_refuses_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = Manager::new(dir.path());
    let notify = manager.path.to_str().expect("UTF-8").to_owned();
    let address = free_address();
    let metrics = address.to_string();
    let first_ready = dir.path().join("first.json");
    let arguments = ["--metrics", &metrics, "--ready-file", first_ready.to_str().expect("UTF-8")];
    let first = Daemon::start(&arguments, &[("NOTIFY_SOCKET", &notify), ("WATCHDOG_USEC", "200000")]);

    let (text, mut kept) = manager.until("FDSTORE=1");
    let name = format!("at-127.0.0.1-{}", address.port());
    assert!(text.lines().any(|line| line == format!("FDNAME={name}")), "{text}");
    assert_eq!(kept.len(), 1, "{text}");
    let (text, _) = manager.until("READY=1");
    assert!(text.contains("STATUS=serving at 127.0.0.1:"), "{text}");
    for _ in 0..2 {
        manager.until("WATCHDOG=1");
    }
    first.signal("-TERM");
    manager.until("STOPPING=1");
    let (code, said) = first.end();
    assert_eq!(code, Some(0), "{said}");

    // Nobody serves now. Who connects waits, for the socket is still open here.
    let mut early = TcpStream::connect(address).expect("the socket outlives the daemon");
    early.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    early.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("there is a buffer");
    let second_ready = dir.path().join("second.json");
    let arguments = ["--metrics", &metrics, "--ready-file", second_ready.to_str().expect("UTF-8")];
    let second = handed(kept.pop().expect("one"), &name, &arguments, &[]);
    assert_eq!(addresses(&second_ready)["metrics"], address);
    let mut answer = String::new();
    early.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    second.signal("-TERM");
    let (code, said) = second.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_unit_that_listens_elsewhere_than_the_settings_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (code, said) = handed(listener.into(), "ingle-sample.socket", &[], &[]).end();
    assert_eq!(code, Some(2), "{said}");
    for words in [format!("systemd listens at {address}"), "systemctl edit ingle-sample.socket".to_owned()] {
        assert!(said.contains(&words), "{words} in {said}");
    }
}

#[test]
fn a_socket_of_former_settings_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = Manager::new(dir.path());
    let notify = manager.path.to_str().expect("UTF-8").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let name = format!("at-127.0.0.1-{}", listener.local_addr().expect("bound").port());
    let daemon = handed(listener.into(), &name, &[], &[("NOTIFY_SOCKET", &notify)]);
    let (text, _) = manager.until("FDSTOREREMOVE=1");
    assert!(text.contains(&format!("FDNAME={name}")), "{text}");
    manager.until("READY=1");
    daemon.signal("-TERM");
    let (code, said) = daemon.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let (code, said) = handed(ours.into(), "odd.socket", &[], &[]).end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("socket 0 from systemd") && said.contains("ListenStream="), "{said}");
}
