//! etcd behind client certificates, behind users and passwords, and behind both together.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::Permission;
use ingle_daemon::config::TlsConfig;
use ingle_membership::conformance::exact;
use ingle_membership::connect::{ConnectOptions, EtcdUser, connect};
use ingle_membership::{Condition, Membership, MembershipError};

use crate::certs::Certificates;
use crate::ports::port;

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "a-secret-of-the-house";
const ROOTS_PASSWORD: &str = "root's own";

/// One etcd that doesn't let everybody in, ended when dropped.
struct Guarded {
    child: Child,
    port: u16,
    peer_port: u16,
    data: tempfile::TempDir,
    certificates: Option<Certificates>,
}

impl Guarded {
    /// `None`, said aloud, where etcd or openssl is missing.
    async fn start(certificates: bool) -> Option<Self> {
        let Some(binary) = crate::etcd::binary() else {
            eprintln!("skipped: no etcd here: install the package etcd-server");
            return None;
        };
        // A program that is no test may have taken its port meanwhile.
        for _ in 0..5 {
            let data = tempfile::tempdir().expect("a directory");
            let certificates = if certificates { Some(made(&data.path().join("certificates"))?) } else { None };
            let (port, peer_port) = (port(), port());
            let child = spawn(&binary, data.path(), certificates.as_ref(), port, peer_port);
            let mut server = Self { child, port, peer_port, data, certificates };
            if server.answers(&server.options(None)).await {
                return Some(server);
            }
        }
        panic!("etcd doesn't start: {}", binary.display());
    }

    fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }

    fn options(&self, user: Option<(&str, &str)>) -> ConnectOptions {
        let etcd_user = user.map(|(user, password)| EtcdUser { user: user.into(), password: password.into() });
        let tls = self.certificates.as_ref().map_or_else(TlsConfig::default, |all| all.tls("client"));
        ConnectOptions { tls, etcd_user, deadline: Duration::from_secs(5) }
    }

    async fn answers(&mut self, options: &ConnectOptions) -> bool {
        let url = self.url();
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.child.try_wait().expect("ours").is_some() {
                return false;
            }
            if let Ok(store) = connect(&url, options).await
                && store.list(key("/inglenook/")).await.is_ok()
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// From now on whoever comes must sign in; `house` may do what we need and no more.
    async fn demand_users(&self) {
        let mut admin = ingle_membership::etcd::client(&self.url(), &self.options(None)).await.expect("a client");
        admin.role_add("root").await.expect("a role");
        admin.user_add("root", ROOTS_PASSWORD, None).await.expect("a user");
        admin.user_grant_role("root", "root").await.expect("granted");
        admin.role_add("ours").await.expect("a role");
        let ours = Permission::read_write("/inglenook/").with_range_end("/inglenook0");
        admin.role_grant_permission("ours", ours).await.expect("granted");
        admin.user_add("house", PASSWORD, None).await.expect("a user");
        admin.user_grant_role("house", "ours").await.expect("granted");
        admin.auth_enable().await.expect("on");
    }

    fn administrator(&self) -> ConnectOptions {
        self.options(Some(("root", ROOTS_PASSWORD)))
    }

    fn kill(&mut self) {
        self.child.kill().expect("ours");
        self.child.wait().expect("ours");
    }

    fn start_again(&mut self) {
        let binary = crate::etcd::binary().expect("it was there");
        self.child = spawn(&binary, self.data.path(), self.certificates.as_ref(), self.port, self.peer_port);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, a certificate for etcd and one for us; `None`, said aloud, without openssl.
fn made(folder: &Path) -> Option<Certificates> {
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    match Certificates::make(folder.to_owned()) {
        Ok(certificates) => {
            certificates.host("etcd", loopback);
            certificates.host("client", loopback);
            Some(certificates)
        }
        Err(reason) => {
            eprintln!("skipped: no certificates here: {reason}");
            None
        }
    }
}

fn spawn(binary: &Path, data: &Path, certificates: Option<&Certificates>, port: u16, peer_port: u16) -> Child {
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(binary);
    command
        .args(["--name", "one", "--log-level", "error", "--data-dir"])
        .arg(data.join("d"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(all) = certificates {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(all.path("ca.pem"));
        command.arg("--cert-file").arg(all.path("etcd.pem")).arg("--key-file").arg(all.path("etcd.key"));
    }
    command.spawn().expect("etcd starts")
}

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

async fn put(store: &dyn Membership, name: &str) -> Result<(), MembershipError> {
    store.put(key(name), key("v"), None, Condition::Always).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_behind_client_certificates_conforms() {
    let Some(server) = Guarded::start(true).await else { return };
    let store = connect(&server.url(), &server.options(None)).await.expect("a URL");
    exact(store, "/inglenook/exact").await;
    // Another authority's certificate opens nothing, in either direction.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let Some(others) = made(&elsewhere.path().join("certificates")) else { return };
    let strange = others.tls("client");
    let ours = server.certificates.as_ref().expect("made").path("ca.pem");
    for tls in [strange.clone(), TlsConfig { ca: Some(ours), ..strange }] {
        let options = ConnectOptions { tls, etcd_user: None, deadline: Duration::from_secs(2) };
        let outcome = match connect(&server.url(), &options).await {
            Ok(store) => store.list(key("/inglenook/")).await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        assert!(outcome.is_err(), "a stranger is let in");
    }
}

/// The suite lists all keys there are, which `house` may not.
async fn conforms(server: &Guarded) {
    let store = connect(&server.url(), &server.administrator()).await.expect("let in");
    exact(store, "/inglenook/exact").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_behind_users_conforms() {
    let Some(server) = Guarded::start(false).await else { return };
    server.demand_users().await;
    let options = server.options(Some(("house", PASSWORD)));
    assert!(!format!("{options:?}").contains(PASSWORD), "a password is never shown");
    conforms(&server).await;
    let store = connect(&server.url(), &options).await.expect("let in");
    put(&*store, "/inglenook/k").await.expect("ours");
    assert!(!store.list(key("/inglenook/")).await.expect("ours").entries.is_empty());
    // Its role ends where our keys do.
    let refused = put(&*store, "/elsewhere").await.expect_err("not ours");
    assert!(matches!(refused, MembershipError::Refused { .. }) && !refused.retryable(), "{refused}");
    let nobody = connect(&server.url(), &server.options(None)).await.expect("a URL");
    assert!(put(&*nobody, "/inglenook/k").await.is_err(), "nobody is let in");
    let wrong = "not-the-password";
    let Err(refused) = connect(&server.url(), &server.options(Some(("house", wrong)))).await else {
        panic!("let in with the wrong password");
    };
    assert!(!refused.to_string().contains(wrong), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_behind_both_is_found_again_after_a_restart() {
    let Some(mut server) = Guarded::start(true).await else { return };
    server.demand_users().await;
    let options = server.options(Some(("house", PASSWORD)));
    conforms(&server).await;
    let store = connect(&server.url(), &options).await.expect("let in");
    put(&*store, "/inglenook/k").await.expect("ours");
    assert!(!store.list(key("/inglenook/")).await.expect("ours").entries.is_empty());
    let lease = store.grant(Duration::from_secs(3600)).await.expect("a lease");
    let nobody = connect(&server.url(), &server.options(None)).await.expect("a URL");
    // A certificate's name is a user's to etcd, and there is no user `client`.
    assert!(put(&*nobody, "/inglenook/k").await.is_err(), "a certificate alone doesn't open it");
    // After its restart it knows nobody that signed in before.
    server.kill();
    server.start_again();
    let started = Instant::now();
    loop {
        match put(&*store, "/inglenook/again").await {
            Ok(()) => break,
            Err(error) => assert!(error.retryable() && started.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while let Err(error) = store.keep_alive(lease).await {
        assert!(error.retryable() && started.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
