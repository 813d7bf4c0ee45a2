//! A cluster on hosts of their own: three coordinators, three members of etcd, three nodes, a gateway and a NAS, with client
//! certificates everywhere but on the way to the NAS; and the supervisor that starts again what ended by itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use ingle_daemon::grpc::{ConnectOptions, connect_lazy};
use ingle_membership::election::{Candidate, leader};
use ingle_membership::{Membership, Revision, connect};
use ingle_proto::v1;
use ingle_tests::client::Client;
use ingle_tests::eventually::patience;
use ingle_tests::hosts::{Host, Hosts};
use ingle_tests::models::FakeModel;
use ingle_tests::nas::Ganesha;
use ingle_tests::process::{Process, binary};
use ingle_tests::share::Share;
use tempfile::TempDir;

use super::certs::Certificates;
use super::etcd::{self, Member};
use crate::world::node_binary;

/// Of coordinators, of members of etcd, and of nodes.
pub(crate) const EACH: usize = 3;
/// Hosts in all: those, a gateway and a NAS.
pub(crate) const HOSTS: u8 = 11;
/// Tokens of each answer that people read.
pub(crate) const ANSWER_TOKENS: u32 = 80;
/// Tokens of each answer of a job.
pub(crate) const NOTE_TOKENS: u32 = 5;
/// Pause before a daemon that ended by itself is started again, as a unit's `RestartSec` is.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A daemon that the supervisor looks after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Daemon {
    Coordinator(usize),
    Node(usize),
    Gateway,
}

/// See the module. What it holds ends when it is dropped, before its hosts do.
pub(crate) struct World {
    pub(crate) coordinators: Vec<Process>,
    pub(crate) nodes: Vec<Process>,
    pub(crate) gateway: Process,
    pub(crate) etcd: Vec<Member>,
    pub(crate) nas: Ganesha,
    pub(crate) share: Share,
    /// To each coordinator.
    pub(crate) clients: Vec<Client>,
    pub(crate) members: Arc<dyn Membership>,
    /// Hosts of the nodes.
    pub(crate) node_hosts: Vec<Host>,
    /// Daemons that are away on purpose.
    pub(crate) away: BTreeSet<Daemon>,
    /// Daemons that ended by themselves, and how.
    pub(crate) fell: Vec<(Daemon, String)>,
    next_start: Instant,
    _home: TempDir,
}

impl World {
    /// Starts everything and waits until it is whole. To be called inside of `hosts`.
    ///
    /// # Errors
    /// Something isn't installed: says what.
    pub(crate) async fn start(hosts: &Hosts) -> Result<Self, String> {
        // This process is a client with certificates itself.
        ingle_daemon::tls::install_provider();
        let home = tempfile::tempdir().expect("a directory");
        let at = home.path();
        let all: Vec<Host> = hosts.iter().cloned().collect();
        let (for_etcd, rest) = all.split_at(EACH);
        let (for_coordinators, rest) = rest.split_at(EACH);
        let (for_nodes, rest) = rest.split_at(EACH);
        let (for_gateway, for_nas) = (&rest[0], &rest[1]);
        let share = Share::at(at.join("share"));
        let nas = Ganesha::start_on(for_nas, share.root())?;

        let certificates = Certificates::make(at.join("certificates"))?;
        certificates.host("test", Hosts::hub_address().into());
        let name = |kind: &str, number: usize| format!("{kind}-{}", number + 1);
        let etcd_names: Vec<String> = (0..EACH).map(|number| name("etcd", number)).collect();
        let named = |kind: &'static str, hosts: &[Host]| {
            let pair = |(number, host): (usize, &Host)| certificates.host(&name(kind, number), host.ip());
            hosts.iter().enumerate().for_each(pair);
        };
        named("etcd", for_etcd);
        named("coordinator", for_coordinators);
        named("node", for_nodes);
        certificates.host("gateway", for_gateway.ip());
        let etcd = etcd::start(for_etcd, &etcd_names, &certificates, at)?;
        let members_url = etcd::url(&etcd);
        let tls = certificates.tls("test");
        let options = ingle_membership::ConnectOptions { tls: tls.clone(), ..Default::default() };
        let members = connect(&members_url, &options).await.expect("settings as daemons have them");
        wait("etcd's first leader", async || leader(&*members).await.map_err(|error| error.to_string())).await;

        for model in Self::models() {
            model.put(&at.join("models"));
        }
        // Side by side: each of them waits for itself alone.
        let starting = for_coordinators.iter().enumerate().map(|(number, host)| {
            let name = name("coordinator", number);
            let mut text = format!("listen = '{}'\nmembership = '{members_url}'\n", host.at(7700));
            let _ = writeln!(text, "state_dir = '{}'", at.join(&name).display());
            text += &certificates.section(&name);
            async move { daemon(host, &name, &binary("ingle-coordinator"), &text, at).await }
        });
        let coordinators = join_all(starting).await;
        let mut text = format!("listen = '{}'\nmembership = '{members_url}'\n", for_gateway.at(7720));
        let _ = writeln!(text, "state_dir = '{}'\n[exports.docs]\nurl = '{}'", at.join("gateway").display(), nas.url());
        text += &certificates.section("gateway");
        let gateway = daemon(for_gateway, "gateway", &binary("ingle-gateway"), &text, at).await;
        let starting = for_nodes.iter().enumerate().map(|(number, host)| {
            let name = name("node", number);
            let mut text =
                format!("name = '{name}'\nlisten = '{}'\nbeat_listen = '{}'\n", host.at(7710), host.at(7711));
            let _ = writeln!(text, "membership = '{members_url}'\nmodels = '{}'", at.join("models").display());
            let _ = writeln!(text, "state_dir = '{0}/state'\ncache_dir = '{0}/cache'", at.join(&name).display());
            let _ = writeln!(text, "memory_reserve_bytes = 0\nmeasure_ms = 0\nthreads = 1\ndrain_timeout_s = 10");
            text += &certificates.section(&name);
            async move { daemon(host, &name, &node_binary(), &text, at).await }
        });
        let nodes = join_all(starting).await;
        // A cable that is pulled is noticed as soon as a program notices that wants to.
        let patience = ConnectOptions {
            keepalive: Duration::from_secs(3),
            keepalive_timeout: Duration::from_secs(5),
            ..Default::default()
        };
        let mut clients = Vec::new();
        for host in for_coordinators {
            let channel =
                connect_lazy(&host.at(7700).to_string(), &tls, &patience).expect("settings as daemons have them");
            clients.push(Client::over(channel.into_inner()));
        }
        clients[0].ready(EACH, Self::models().len()).await;
        Ok(Self {
            coordinators,
            nodes,
            gateway,
            etcd,
            nas,
            share,
            clients,
            members,
            node_hosts: for_nodes.to_vec(),
            away: BTreeSet::new(),
            fell: Vec::new(),
            next_start: Instant::now(),
            _home: home,
        })
    }

    /// One for people, and one for each kind of job.
    pub(crate) fn models() -> [FakeModel; 3] {
        [
            FakeModel::that_answers("talk", ANSWER_TOKENS).at_ms_per_step(40),
            FakeModel::that_answers("notes", NOTE_TOKENS).at_ms_per_step(15).with_slots(2),
            FakeModel::that_embeds("words").at_ms_per_step(15).with_slots(1),
        ]
    }

    /// Waits for what must come true, and starts again meanwhile what ended by itself.
    ///
    /// # Panics
    /// It doesn't, for much longer than it may take: says what was seen last.
    pub(crate) async fn until<T>(&mut self, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            self.tend();
            match bounded(look()).await {
                Ok(found) => return found,
                Err(seen) if begun.elapsed() > 3 * patience() => {
                    panic!("waited {:?} for {what}: {seen}; ended by themselves: {:?}", begun.elapsed(), self.fell)
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Lets time pass, as a fault lasts.
    pub(crate) async fn pass(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.tend();
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a supervisor does: starts again what ended by itself, with a pause, and notes it.
    fn tend(&mut self) {
        if Instant::now() < self.next_start {
            return;
        }
        let coordinators = self.coordinators.iter_mut().enumerate().map(|(at, p)| (Daemon::Coordinator(at), p));
        let nodes = self.nodes.iter_mut().enumerate().map(|(at, p)| (Daemon::Node(at), p));
        for (daemon, process) in coordinators.chain(nodes).chain([(Daemon::Gateway, &mut self.gateway)]) {
            if !self.away.contains(&daemon)
                && let Some(status) = process.revive()
            {
                self.fell.push((daemon, status.to_string()));
                self.next_start = Instant::now() + AGAIN_AFTER;
            }
        }
    }

    fn process(&mut self, daemon: Daemon) -> &mut Process {
        match daemon {
            Daemon::Coordinator(at) => &mut self.coordinators[at],
            Daemon::Node(at) => &mut self.nodes[at],
            Daemon::Gateway => &mut self.gateway,
        }
    }

    /// Kills a daemon; it stays away until [`World::bring_back`].
    pub(crate) fn kill(&mut self, daemon: Daemon) {
        self.away.insert(daemon);
        // It may have ended by itself at this very moment.
        if let Some(status) = self.process(daemon).kill_if_running() {
            self.fell.push((daemon, status.to_string()));
        }
    }

    /// Starts it again, and doesn't wait until it serves.
    pub(crate) fn bring_back(&mut self, daemon: Daemon) {
        let before = self.process(daemon).revive();
        assert!(before.is_some(), "{daemon:?} was away");
        self.away.remove(&daemon);
    }

    /// Whoever leads, with its epoch, once that is newer than `before`.
    pub(crate) async fn leader_after(&mut self, before: Option<Revision>) -> (Candidate, Revision) {
        let members = Arc::clone(&self.members);
        self.until("a leader", async || match leader(&*members).await.map_err(|error| error.to_string())? {
            Some((candidate, epoch)) if Some(epoch) > before => Ok((candidate, epoch)),
            other => Err(format!("{other:?}")),
        })
        .await
    }

    /// Which of the coordinators that is.
    pub(crate) fn place(&self, leader: &Candidate) -> usize {
        let is = |process: &Process| process.address("grpc").to_string() == leader.address;
        self.coordinators.iter().position(is).expect("one of ours leads")
    }

    /// Waits until every coordinator answers, all nodes and the gateway are ready, and etcd is whole.
    pub(crate) async fn whole(&mut self) {
        for client in self.clients.clone() {
            self.until("a whole cluster, by each coordinator", async || status_is_whole(&client).await).await;
        }
        for at in 0..EACH {
            let begun = Instant::now();
            while !self.etcd[at].is_whole().await {
                assert!(begun.elapsed() < 3 * patience(), "etcd-{} isn't whole", at + 1);
                self.pass(LOOK).await;
            }
        }
    }
}

async fn status_is_whole(client: &Client) -> Result<(), String> {
    let status = client.cluster.clone().get_status(v1::GetStatusRequest {}).await;
    let status = status.map_err(|status| format!("{status:?}"))?.into_inner();
    let whole = status.nodes_ready as usize == EACH && status.gateway_ready;
    if whole { Ok(()) } else { Err(format!("{status:?}")) }
}

/// A look that gets no answer must not stop the looks after it.
pub(crate) async fn bounded<T>(look: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(Duration::from_secs(10), look).await.unwrap_or_else(|_| Err("no answer within 10 s".into()))
}

async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match bounded(look()).await {
            Ok(found) => return found,
            Err(seen) => assert!(begun.elapsed() < 3 * patience(), "waited for {what}: {seen}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn daemon(host: &Host, name: &str, program: &Path, settings: &str, home: &Path) -> Process {
    let path = home.join(format!("{name}.toml"));
    std::fs::write(&path, settings).expect("room for settings");
    let arguments: Vec<OsString> = vec!["--config".into(), path.into(), "--metrics".into(), "127.0.0.1:0".into()];
    let (program, arguments) = host.start(program, arguments);
    Process::start(name, program, arguments, home).await
}
