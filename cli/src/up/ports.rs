//! Which ports the daemons take: known ones, so that a person finds them again, or free ones.

use std::net::{Ipv4Addr, TcpListener};

use super::share::{Share, Source};
use crate::exit::{Exit, Failure};

/// The coordinator's port unless another is asked for; the others follow from it.
pub(crate) const BASE: u16 = 7700;
/// Ports above the base that are used.
const SPAN: u16 = 100;
/// Nodes whose ports lie between the coordinator's and the gateway's; further ones lie above.
const NEAR_NODES: u16 = 5;

/// Where a daemon serves and shows its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) serve: u16,
    pub(crate) metrics: u16,
}

/// All ports of a cluster on one box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) coordinator: Pair,
    pub(crate) gateway: Pair,
    /// Of each node: work and metrics, and beats.
    pub(crate) nodes: Vec<(Pair, u16)>,
    /// Of each share that is a directory, in the order of the shares.
    pub(crate) nfs: Vec<u16>,
}

impl Ports {
    /// Ports from `base`, all of them free; for 0 whichever are free.
    pub(crate) fn choose(base: u16, nodes: usize, shares: &[Share]) -> Result<Self, Failure> {
        let directories = shares.iter().filter(|s| matches!(s.source, Source::Directory(_))).count();
        if base == 0 {
            return Self::free(nodes, directories);
        }
        if !(1024..=u16::MAX - SPAN).contains(&base) {
            return Err(Failure::usage(format!("--port-base {base}: expected 0, or 1024 to {}", u16::MAX - SPAN)));
        }
        let ports = Self::from_base(base, nodes, directories);
        for (what, port) in ports.named() {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                let who = holder(port).map(|who| format!(" by {who}")).unwrap_or_default();
                let elsewhere = match Self::another_base(base, nodes, directories) {
                    Some(other) => {
                        format!("--port-base {other} (all of its ports are free now; 0 takes whichever are)")
                    }
                    None => "--port-base 0, which takes whichever are free".to_owned(),
                };
                return Err(Failure::new(Exit::Refused, format!("port {port} for {what} is taken{who}: {error}"))
                    .hint(format!("end that program, or start elsewhere with {elsewhere}")));
            }
        }
        Ok(ports)
    }

    /// A base like this one whose ports are all free.
    fn another_base(base: u16, nodes: usize, directories: usize) -> Option<u16> {
        let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        let up = (1..=9).filter_map(|step| base.checked_add(step * 1000));
        let down = (1..=9).filter_map(|step| base.checked_sub(step * 1000));
        up.chain(down)
            .filter(|other| (1024..=u16::MAX - SPAN).contains(other))
            .find(|other| Self::from_base(*other, nodes, directories).named().iter().all(|(_, port)| free(*port)))
    }

    fn from_base(base: u16, nodes: usize, directories: usize) -> Self {
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let node = |i: u16| {
            let work = if i < NEAR_NODES { base + 10 + 2 * i } else { base + 21 + 2 * (i - NEAR_NODES) };
            // Metrics: the coordinator's at 80, the gateway's at 82, the first node's at 81, further nodes' above.
            let metrics = if i == 0 { base + 81 } else { base + 82 + i };
            (Pair { serve: work, metrics }, work + 1)
        };
        Self {
            coordinator: Pair { serve: base, metrics: base + 80 },
            gateway: Pair { serve: base + 20, metrics: base + 82 },
            nodes: (0..count(nodes)).map(node).collect(),
            nfs: (0..count(directories)).map(|i| base + 50 + i).collect(),
        }
    }

    /// Binds them all at once, so that no two are the same, and lets go.
    fn free(nodes: usize, directories: usize) -> Result<Self, Failure> {
        let mut held = Vec::new();
        let mut one = || -> Result<u16, Failure> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok(port)
        };
        let mut pair = || Ok::<_, Failure>(Pair { serve: one()?, metrics: one()? });
        let (coordinator, gateway) = (pair()?, pair()?);
        let pairs = (0..nodes).map(|_| pair()).collect::<Result<Vec<_>, _>>()?;
        let nodes = pairs.into_iter().map(|p| Ok((p, one()?))).collect::<Result<Vec<_>, Failure>>()?;
        let nfs = (0..directories).map(|_| one()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { coordinator, gateway, nodes, nfs })
    }

    fn named(&self) -> Vec<(String, u16)> {
        let mut named = Vec::new();
        let mut pair = |what: &str, pair: Pair| {
            named.push((what.to_owned(), pair.serve));
            named.push((format!("{what}'s metrics"), pair.metrics));
        };
        pair("the coordinator", self.coordinator);
        pair("the gateway", self.gateway);
        for (index, (node, _)) in self.nodes.iter().enumerate() {
            pair(&format!("node {}", index + 1), *node);
        }
        named.extend(self.nodes.iter().enumerate().map(|(i, (_, beat))| (format!("node {}'s beats", i + 1), *beat)));
        named.extend(self.nfs.iter().map(|port| ("an NFS server".to_owned(), *port)));
        named
    }
}

/// The program that listens on a port of this machine, if we may know.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().flat_map(|t| t.lines()).find_map(|line| inode_listening(line, port))?;
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds =
            |fd: std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str());
        if open.filter_map(Result::ok).any(holds) {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", command.trim()));
        }
    }
    None
}

/// The socket of a line of `/proc/net/tcp` that listens on `port`.
fn inode_listening(line: &str, port: u16) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?.rsplit_once(':')?.1;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    (u16::from_str_radix(local, 16).ok()? == port && state == "0A").then_some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    fn shares(count: usize) -> Vec<Share> {
        let share =
            |i| Share { name: format!("s{i}"), source: Source::Directory(PathBuf::from("/x")), read_only: false };
        (0..count).map(share).collect()
    }

    #[test]
    fn no_port_is_planned_twice_and_all_lie_within_the_span() {
        let ports = Ports::from_base(BASE, 16, 17);
        let named = ports.named();
        let different: BTreeSet<u16> = named.iter().map(|(_, port)| *port).collect();
        assert_eq!(different.len(), named.len(), "{named:?}");
        assert!(different.iter().all(|p| (BASE..BASE + SPAN).contains(p)), "{named:?}");
        let ports = Ports::from_base(BASE, 1, 0);
        assert_eq!((ports.coordinator.serve, ports.coordinator.metrics), (7700, 7780));
        assert_eq!((ports.gateway.serve, ports.gateway.metrics), (7720, 7782));
        assert_eq!(ports.nodes, [(Pair { serve: 7710, metrics: 7781 }, 7711)]);
    }

    #[test]
    fn free_ports_are_different_ones() {
        let named = Ports::choose(0, 3, &shares(3)).expect("there are free ports").named();
        let different: BTreeSet<u16> = named.iter().map(|(_, port)| *port).collect();
        assert_eq!(different.len(), named.len());
        assert!(!different.contains(&0));
    }

    #[test]
    fn who_holds_a_port_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        assert!(holder(port).expect("ourselves").contains(&std::process::id().to_string()));
        drop(listener);
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(inode_listening(header, 7700), None);
        let line = "   0: 0100007F:1E14 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0";
        assert_eq!(inode_listening(line, 7700), Some("4242"));
        assert_eq!(inode_listening(line, 7701), None);
    }

    #[test]
    fn a_taken_port_says_what_to_do() {
        for base in [1, 1023, 65_500] {
            assert_eq!(Ports::choose(base, 1, &[]).expect_err("out of range").exit, Exit::Usage);
        }
        // A base whose coordinator's port we hold ourselves.
        let held = (20_000..60_000).step_by(131).find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
        let base = held.as_ref().and_then(|l| l.local_addr().ok()).expect("a free port").port();
        let failure = Ports::choose(base, 1, &[]).expect_err("held");
        assert!(failure.message.contains(&base.to_string()));
        // Where to go instead is another base, and one that is to be had.
        let hint = failure.hint.expect("a hint");
        let (_, rest) = hint.split_once("--port-base ").expect("names the option");
        let other: u16 = rest.split([' ', ',']).next().and_then(|n| n.parse().ok()).expect("names a base");
        assert_ne!(other, base);
        assert!(Ports::choose(other, 1, &[]).is_ok(), "{hint}");
    }
}
