//! Faults, one at a time: each is done, lasts, is mended, and ends when the cluster is whole again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ingle_membership::Revision;
use ingle_membership::election::leader;
use ingle_proto::v1;
use ingle_tests::history::{Fault as Told, Hits};
use rustix::process::Signal;

use super::load::{Load, locked, spec};
use super::world::{Daemon, EACH, World};

/// How long etcd is without a quorum.
const NO_QUORUM: Duration = Duration::from_secs(20);
/// How long what is killed stays away at least: longer than the first tries of those who call it.
const AWAY: Duration = Duration::from_millis(1500);

/// What can be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    LeaderKilled,
    LeaderFrozen,
    NodeKilled,
    NodeCut,
    EtcdLeaderKilled,
    NoQuorum,
    GatewayKilled,
    NasRestarted,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] = [
        Self::NodeKilled,
        Self::LeaderKilled,
        Self::GatewayKilled,
        Self::NodeCut,
        Self::EtcdLeaderKilled,
        Self::LeaderFrozen,
        Self::NasRestarted,
        Self::NoQuorum,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::LeaderKilled => "the leader is killed",
            Self::LeaderFrozen => "the leader freezes, and is thawed when another leads",
            Self::NodeKilled => "a node is killed",
            Self::NodeCut => "a node's cable is pulled until it counts as gone",
            Self::EtcdLeaderKilled => "etcd's leader is killed",
            Self::NoQuorum => "etcd has no quorum for 20 s",
            Self::GatewayKilled => "the gateway is killed",
            Self::NasRestarted => "the NAS restarts",
        }
    }

    fn hits(self) -> Hits {
        match self {
            // A coordinator that can't renew its lease while etcd finds its own leader gives up leading.
            Self::LeaderKilled | Self::LeaderFrozen | Self::EtcdLeaderKilled | Self::NoQuorum => Hits::Leader,
            Self::NodeKilled | Self::NodeCut => Hits::Node,
            Self::GatewayKilled | Self::NasRestarted => Hits::Other,
        }
    }

    /// Does it to the cluster and mends it; `which` chooses a node. Prints what was felt of it.
    pub(crate) async fn strike(self, world: &mut World, load: &mut Load, which: usize) {
        let from = Instant::now();
        let took_over = match self {
            Self::LeaderKilled => Some(leader_killed(world).await),
            Self::LeaderFrozen => Some(leader_frozen(world).await),
            Self::NodeKilled => {
                killed(world, Daemon::Node(which % EACH)).await;
                None
            }
            Self::NodeCut => {
                node_cut(world, which % EACH).await;
                None
            }
            Self::EtcdLeaderKilled => {
                etcd_leader_killed(world).await;
                None
            }
            Self::NoQuorum => {
                no_quorum(world, which).await;
                None
            }
            Self::GatewayKilled => {
                killed(world, Daemon::Gateway).await;
                None
            }
            Self::NasRestarted => {
                world.nas.kill();
                world.pass(AWAY).await;
                world.nas.restart().expect("it came up before");
                None
            }
        };
        world.whole().await;
        let until = Instant::now();
        load.goes_on(world).await;
        let told = Told { what: self.words().into(), hits: self.hits(), from, until };
        // Told, not judged: docs/operations/failures.md quotes it.
        let silences = locked(&load.history).silences(&told);
        let longest = silences.first().copied().unwrap_or_default();
        let median = silences.get(silences.len() / 2).copied().unwrap_or_default();
        let next = took_over.map(|time| format!("; the next leader answered after {time:.1?}")).unwrap_or_default();
        eprintln!(
            "felt: {}: an answer stood still for {longest:.1?} at most, {median:.1?} in the middle; \
             all was whole after {:.1?}{next}",
            told.what,
            until - from
        );
        locked(&load.history).faults.push(told);
    }
}

/// Waits until whoever leads in an epoch after `before` answers by its own address.
pub(crate) async fn next_answers(world: &mut World, before: Revision) -> usize {
    loop {
        let (candidate, epoch) = world.leader_after(Some(before)).await;
        let at = world.place(&candidate);
        let (client, members) = (world.clients[at].clone(), Arc::clone(&world.members));
        let answers = world
            .until("the next leader to answer", async || {
                let status = client.cluster.clone().get_status(v1::GetStatusRequest {}).await;
                if let Ok(status) = &status
                    && status.get_ref().epoch.is_some_and(|led| led.revision >= epoch.counter)
                {
                    return Ok(true);
                }
                // It may have lost its lease already: then another one is waited for.
                match leader(&*members).await {
                    Ok(Some((_, now))) if now > epoch => Ok(false),
                    other => Err(format!("{status:?} {other:?}")),
                }
            })
            .await;
        if answers {
            return at;
        }
    }
}

/// Answers how long it took until another led and answered.
pub(crate) async fn leader_killed(world: &mut World) -> Duration {
    let (first, epoch) = world.leader_after(None).await;
    let at = Daemon::Coordinator(world.place(&first));
    world.kill(at);
    let killed = Instant::now();
    next_answers(world, epoch).await;
    let took = killed.elapsed();
    world.bring_back(at);
    took
}

/// The same for one that freezes. Thawed, it finds that it leads no more and ends by itself: nothing that it had in memory is
/// written any more, which epochs and ledgers show.
pub(crate) async fn leader_frozen(world: &mut World) -> Duration {
    let (first, epoch) = world.leader_after(None).await;
    let at = world.place(&first);
    world.away.insert(Daemon::Coordinator(at));
    world.coordinators[at].signal(Signal::STOP);
    let frozen = Instant::now();
    let next = next_answers(world, epoch).await;
    let took = frozen.elapsed();
    assert_ne!(next, at, "a frozen process answers nobody");
    let (_, second) = world.leader_after(Some(epoch)).await;
    world.coordinators[at].signal(Signal::CONT);
    let status = world.coordinators[at].ended().await;
    assert!(!status.success(), "it says that it lost the lead: {status}");
    let (_, now) = world.leader_after(None).await;
    assert!(now >= second, "the thawed one changed nothing: {now} after {second}");
    world.bring_back(Daemon::Coordinator(at));
    took
}

async fn killed(world: &mut World, daemon: Daemon) {
    world.kill(daemon);
    world.pass(AWAY).await;
    world.bring_back(daemon);
}

async fn node_cut(world: &mut World, at: usize) {
    let host = world.node_hosts[at].clone();
    host.cut();
    let clients = world.clients.clone();
    let name = format!("node-{}", at + 1);
    world
        .until("the node to count as gone", async || {
            let nodes = clients[0].nodes().await.map_err(|status| format!("{status:?}"))?;
            // Its lease may end first: then it is no member.
            match nodes.get(&name) {
                Some(node) if node.state() != v1::NodeState::Lost => Err(format!("{node:?}")),
                _ => Ok(()),
            }
        })
        .await;
    host.heal();
}

/// Which member leads etcd, once one says so.
async fn etcd_leader(world: &mut World) -> usize {
    let begun = Instant::now();
    loop {
        for (at, member) in world.etcd.iter().enumerate() {
            if member.leads().await.unwrap_or(false) {
                return at;
            }
        }
        assert!(begun.elapsed() < 3 * ingle_tests::eventually::patience(), "no member leads etcd");
        world.pass(Duration::from_millis(50)).await;
    }
}

async fn etcd_leader_killed(world: &mut World) {
    let at = etcd_leader(world).await;
    world.etcd[at].kill();
    let next = etcd_leader(world).await;
    assert_ne!(next, at, "who was killed leads nobody");
    world.leader_after(None).await;
    world.etcd[at].start();
}

/// Two of three members are away: nothing new is accepted, whatever is asked. What was under way goes on later.
async fn no_quorum(world: &mut World, which: usize) {
    let stays = which % EACH;
    for at in (0..EACH).filter(|at| *at != stays) {
        world.etcd[at].kill();
    }
    let begun = Instant::now();
    // No earlier round had this key.
    let key = format!("without a quorum, {begun:?}");
    let mut tried = 0;
    while begun.elapsed() < NO_QUORUM {
        let client = world.clients[tried % EACH].clone();
        let key = format!("{key}, {tried}");
        let asked = client.try_submit(spec("words", &format!("refused-{tried}")), &key);
        if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(3), asked).await {
            panic!("accepted without a quorum: {answer:?}");
        }
        tried += 1;
        world.pass(Duration::from_millis(500)).await;
    }
    assert!(tried > 0, "something was asked");
    for at in (0..EACH).filter(|at| *at != stays) {
        world.etcd[at].start();
    }
}
