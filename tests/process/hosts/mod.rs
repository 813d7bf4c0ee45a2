//! A cluster on hosts of its own, whose leaders, nodes, gateway, NAS and etcd fail while jobs and answers go on: nothing that
//! was accepted is lost, nothing is visible twice, and no answer differs from the undisturbed one.
//!
//! `INGLE_SOAK=1` adds long rounds of `INGLE_SOAK_MINUTES` (10) each; `INGLE_SEED` gives them the faults of an earlier one.

mod certs;
mod etcd;
mod harm;
mod load;
mod world;

use std::time::{Duration, Instant};

use ingle_tests::history::{Fault as Told, Hits, percentile};
use ingle_tests::hosts::Hosts;

use harm::Fault;
use load::{Load, locked};
use world::{Daemon, EACH, HOSTS, World};

/// Falls of the leader in a long round, if there is time for them.
const FALLS: usize = 200;
/// Daemons killed with -9 in a long round, if there is time for them.
const KILLS: usize = 1000;

/// Does it on hosts of their own, or says why it can't.
fn on_hosts(test: impl AsyncFnOnce(&mut World) + Send) {
    let hosts = match Hosts::make(HOSTS) {
        Ok(hosts) => hosts,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    hosts.inside(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().expect("threads");
        runtime.block_on(Box::pin(async {
            match World::start(&hosts).await {
                Ok(mut world) => {
                    test(&mut world).await;
                    let others: Vec<_> =
                        world.fell.iter().filter(|(daemon, _)| !matches!(daemon, Daemon::Coordinator(_))).collect();
                    assert!(others.is_empty(), "only a coordinator that leads no more ends by itself: {others:?}");
                }
                Err(why) => eprintln!("skipped: {why}"),
            }
        }));
    });
}

#[test]
fn every_fault_once_while_jobs_and_answers_go_on() {
    on_hosts(async |world| {
        let mut load = Load::begin(world, 4, 150).await;
        load.goes_on(world).await;
        for (number, fault) in Fault::ALL.into_iter().enumerate() {
            fault.strike(world, &mut load, number).await;
        }
        load.end_well(world).await;
    });
}

/// How long a long round lasts; `None`, said aloud, where none was asked for.
fn round() -> Option<Duration> {
    if std::env::var_os("INGLE_SOAK").is_none() {
        eprintln!("skipped: a long round, with INGLE_SOAK=1 (make soak)");
        return None;
    }
    let minutes = std::env::var("INGLE_SOAK_MINUTES").ok().and_then(|text| text.parse::<u64>().ok());
    Some(Duration::from_secs(60 * minutes.filter(|minutes| (1..=500).contains(minutes)).unwrap_or(10)))
}

/// Chooses faults; its seed is printed.
fn chance() -> fastrand::Rng {
    let given = std::env::var("INGLE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("INGLE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[test]
fn hosts_fail_at_random_under_a_thousand_documents_and_ten_chats() {
    let Some(round) = round() else { return };
    let mut chance = chance();
    on_hosts(async |world| {
        let mut load = Load::begin(world, 10, 1000).await;
        load.goes_on(world).await;
        let begun = Instant::now();
        while begun.elapsed() < round {
            let fault = Fault::ALL[chance.usize(..Fault::ALL.len())];
            fault.strike(world, &mut load, chance.usize(..EACH)).await;
        }
        load.end_well(world).await;
    });
}

#[test]
fn the_leader_falls_two_hundred_times() {
    let Some(round) = round() else { return };
    let mut chance = chance();
    on_hosts(async |world| {
        let mut load = Load::begin(world, 3, 100).await;
        load.goes_on(world).await;
        let (begun, mut times) = (Instant::now(), Vec::new());
        while times.len() < FALLS && begun.elapsed() < round {
            let from = Instant::now();
            let (what, took) = if chance.bool() {
                ("the leader is killed", harm::leader_killed(world).await)
            } else {
                ("the leader freezes", harm::leader_frozen(world).await)
            };
            times.push(took);
            world.whole().await;
            let fault = Told { what: what.into(), hits: Hits::Leader, from, until: Instant::now() };
            locked(&load.history).faults.push(fault);
        }
        load.goes_on(world).await;
        load.end_well(world).await;
        let of = |percent| percentile(&times, percent).unwrap_or_default();
        eprintln!(
            "felt: {} falls of the leader: the next one answered after {:.1?} (p50), {:.1?} (p99), {:.1?} (most)",
            times.len(),
            of(50),
            of(99),
            of(100)
        );
    });
}

#[test]
fn daemons_are_killed_a_thousand_times() {
    let Some(round) = round() else { return };
    let mut chance = chance();
    on_hosts(async |world| {
        let mut load = Load::begin(world, 3, 200).await;
        load.goes_on(world).await;
        let (begun, mut kills) = (Instant::now(), 0);
        while kills < KILLS && begun.elapsed() < round {
            let from = Instant::now();
            let daemon = match chance.usize(..2 * EACH + 1) {
                at if at < EACH => Daemon::Coordinator(at),
                at if at < 2 * EACH => Daemon::Node(at - EACH),
                _ => Daemon::Gateway,
            };
            world.kill(daemon);
            world.pass(Duration::from_millis(chance.u64(..1000))).await;
            world.bring_back(daemon);
            world.whole().await;
            let hits = match daemon {
                Daemon::Coordinator(_) => Hits::Leader,
                Daemon::Node(_) => Hits::Node,
                Daemon::Gateway => Hits::Other,
            };
            let fault = Told { what: format!("{daemon:?} is killed"), hits, from, until: Instant::now() };
            locked(&load.history).faults.push(fault);
            kills += 1;
        }
        load.goes_on(world).await;
        load.end_well(world).await;
        eprintln!("{kills} daemons killed with -9");
    });
}
