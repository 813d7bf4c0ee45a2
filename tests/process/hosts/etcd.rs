//! Three members of etcd on hosts of their own, with client certificates.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use ingle_tests::cluster::counted;
use ingle_tests::etcd::binary;
use ingle_tests::hosts::Host;
use ingle_tests::process::metrics_page;

use super::certs::Certificates;

/// Where it serves clients, other members and metrics: the host is its own.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
const METRICS: u16 = 2381;

/// One of the members. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Member {
    host: Host,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// Starts a member per host. `names` are those of their certificates.
///
/// # Errors
/// There is no etcd here: says so.
pub(crate) fn start(
    hosts: &[Host],
    names: &[String],
    certificates: &Certificates,
    home: &Path,
) -> Result<Vec<Member>, String> {
    let program = binary().ok_or("no etcd here: install the package etcd-server")?;
    let peer = |host: &Host| format!("https://{}", host.at(PEERS));
    let all: Vec<String> = hosts.iter().zip(names).map(|(host, name)| format!("{name}={}", peer(host))).collect();
    let file = |name: &str| certificates.path(name).display().to_string();
    let mut members = Vec::new();
    for (host, name) in hosts.iter().zip(names) {
        let clients = format!("https://{}", host.at(CLIENTS));
        let (ca, cert, key) = (file("ca.pem"), file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let data = home.join(name).display().to_string();
        let metrics = format!("http://{}", host.at(METRICS));
        let arguments = [
            ("--name", name.as_str()),
            ("--data-dir", &data),
            ("--log-level", "warn"),
            ("--listen-client-urls", &clients),
            ("--advertise-client-urls", &clients),
            ("--listen-peer-urls", &peer(host)),
            ("--initial-advertise-peer-urls", &peer(host)),
            ("--initial-cluster", &all.join(",")),
            ("--listen-metrics-urls", &metrics),
            ("--cert-file", &cert),
            ("--key-file", &key),
            ("--trusted-ca-file", &ca),
            ("--peer-cert-file", &cert),
            ("--peer-key-file", &key),
            ("--peer-trusted-ca-file", &ca),
        ];
        let mut arguments: Vec<String> = arguments.iter().flat_map(|(a, b)| [(*a).into(), (*b).into()]).collect();
        arguments.extend(["--client-cert-auth".into(), "--peer-client-cert-auth".into()]);
        let log = home.join(format!("{name}.log"));
        let mut member = Member { host: host.clone(), program: program.clone(), arguments, log, child: None };
        member.start();
        members.push(member);
    }
    Ok(members)
}

/// As settings name them all.
pub(crate) fn url(members: &[Member]) -> String {
    let hosts: Vec<String> = members.iter().map(|member| member.clients().to_string()).collect();
    format!("etcd://{}", hosts.join(","))
}

impl Member {
    fn clients(&self) -> SocketAddr {
        self.host.at(CLIENTS)
    }

    /// Starts it, or starts it again with what it had written.
    pub(crate) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("room for a log");
        let mut command = self.host.command(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("etcd starts"));
    }

    /// Kills it as a power failure would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it says that it leads etcd; an error if it says nothing.
    pub(crate) async fn leads(&self) -> std::io::Result<bool> {
        Ok(counted(&metrics_page(self.host.at(METRICS)).await?, "etcd_server_is_leader") == 1)
    }

    /// Whether it knows a leader of etcd.
    pub(crate) async fn is_whole(&self) -> bool {
        metrics_page(self.host.at(METRICS)).await.is_ok_and(|page| counted(&page, "etcd_server_has_leader") == 1)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of {}", self.log.display());
            lines.iter().skip(lines.len().saturating_sub(10)).for_each(|line| eprintln!("{line}"));
        }
    }
}
