//! One leader at a time, whatever the network does; epochs that rise; nobody leads past the deadline.

use super::*;
use crate::faulty::{Faults, Faulty};
use crate::memory::{ManualClock, Memory};

const PATIENCE: Duration = Duration::from_secs(30);

fn timing() -> ElectionTiming {
    ElectionTiming {
        lease: Duration::from_secs(3),
        step_down: Duration::from_millis(2000),
        renew: Duration::from_millis(200),
    }
}

fn candidate(name: &str) -> Candidate {
    Candidate { id: name.to_owned(), incarnation: "i".to_owned(), address: "127.0.0.1:7700".to_owned() }
}

async fn told(events: &mut mpsc::Receiver<LeaderEvent>) -> LeaderEvent {
    timeout(PATIENCE, events.recv()).await.expect("in time").expect("still running")
}

#[tokio::test]
async fn leads_until_asked_to_stop_and_lets_go_at_once() {
    let store = Arc::new(Memory::new());
    let election = Election::with(store.clone(), candidate("a"), timing(), Arc::new(ingle_daemon::clock::boottime));
    let leadership = election.leadership();
    assert_eq!(leadership.epoch(), None);
    assert_eq!(leader(&*store).await, Ok(None));
    let (events, mut heard) = mpsc::channel(1);
    let stop = Shutdown::new();
    let running = tokio::spawn(election.run(events, stop.clone()));
    let LeaderEvent::Elected(epoch) = told(&mut heard).await else { panic!("elected first") };
    assert_eq!(leadership.epoch(), Some(epoch));
    assert_eq!(leader(&*store).await, Ok(Some((candidate("a"), epoch))));
    // Longer than the lease: it is renewed.
    sleep(timing().lease + timing().renew).await;
    assert_eq!(leadership.epoch(), Some(epoch));
    stop.begin();
    assert_eq!(told(&mut heard).await, LeaderEvent::Lost);
    running.await.expect("no panic").expect("a clean end");
    assert_eq!(leadership.epoch(), None);
    assert_eq!(leader(&*store).await, Ok(None), "the key is gone, not left to its lease");
}

#[tokio::test]
async fn a_leader_that_can_not_renew_steps_down_before_another_can_lead() {
    let store = Memory::new();
    let cut = Arc::new(Faulty::new(store.clone(), 1, Faults::NONE));
    let clock: Clock = Arc::new(ingle_daemon::clock::boottime);
    let first = Election::with(cut.clone(), candidate("a"), timing(), clock.clone());
    let second = Election::with(Arc::new(store), candidate("b"), timing(), clock);
    let (first_leads, second_leads) = (first.leadership(), second.leadership());
    let stop = Shutdown::new();
    let (events, mut heard) = mpsc::channel(4);
    let running = tokio::spawn(first.run(events, stop.clone()));
    let LeaderEvent::Elected(first_epoch) = told(&mut heard).await else { panic!("elected first") };
    let (events, mut second_heard) = mpsc::channel(4);
    let second_running = tokio::spawn(second.run(events, stop.clone()));

    cut.set(Faults { unavailable: 1.0, ..Faults::NONE });
    let mut both = false;
    let second_epoch = loop {
        // Two looks at two clocks: an overlap must be seen from both sides to be one.
        both |= first_leads.epoch().is_some() && second_leads.epoch().is_some() && first_leads.epoch().is_some();
        if let Ok(event) = second_heard.try_recv() {
            let LeaderEvent::Elected(epoch) = event else { panic!("{event:?}") };
            break epoch;
        }
        sleep(Duration::from_millis(2)).await;
    };
    assert!(!both, "never two at once");
    assert_eq!(told(&mut heard).await, LeaderEvent::Lost);
    assert!(second_epoch > first_epoch, "epochs rise");
    stop.begin();
    running.await.expect("no panic").expect("a clean end");
    second_running.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_machine_that_slept_knows_at_once() {
    let clock = ManualClock::default();
    let store = Arc::new(Memory::with(1, Duration::ZERO, clock.clock()));
    let election = Election::with(store, candidate("a"), timing(), clock.clock());
    let leadership = election.leadership();
    let (events, mut heard) = mpsc::channel(1);
    let stop = Shutdown::new();
    let running = tokio::spawn(election.run(events, stop.clone()));
    let LeaderEvent::Elected(epoch) = told(&mut heard).await else { panic!("elected first") };
    assert_eq!(leadership.epoch(), Some(epoch));
    clock.advance(timing().step_down);
    assert_eq!(leadership.epoch(), None, "before any task has run");
    assert_eq!(told(&mut heard).await, LeaderEvent::Lost);
    stop.begin();
    running.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_deleted_key_ends_the_reign() {
    let store = Arc::new(Memory::new());
    let election = Election::with(store.clone(), candidate("a"), timing(), Arc::new(ingle_daemon::clock::boottime));
    let (events, mut heard) = mpsc::channel(4);
    let stop = Shutdown::new();
    let running = tokio::spawn(election.run(events, stop.clone()));
    let LeaderEvent::Elected(first) = told(&mut heard).await else { panic!("elected first") };
    store.delete(Bytes::from_static(LEADER.as_bytes()), Condition::Always).await.expect("deleted");
    assert_eq!(told(&mut heard).await, LeaderEvent::Lost);
    let LeaderEvent::Elected(second) = told(&mut heard).await else { panic!("stands again") };
    assert!(second > first);
    stop.begin();
    running.await.expect("no panic").expect("a clean end");
}

/// Three candidates behind a bad network: at every look at most one leads, and no epoch is led in twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_two_leaders_under_faults() {
    for seed in 0..2 {
        let store = Memory::new();
        let stop = Shutdown::new();
        let mut leaderships = Vec::new();
        let mut running = Vec::new();
        let mut heard = Vec::new();
        for index in 0..3_u64 {
            // A lease that ends early would break the premise; what fences that is the epoch in every write.
            let faults = Faults { delay_max: Duration::from_millis(300), lease_lost: 0.0, ..Faults::MANY };
            let faulty = Arc::new(Faulty::new(store.clone(), seed * 10 + index, faults));
            let clock: Clock = Arc::new(ingle_daemon::clock::boottime);
            let election = Election::with(faulty, candidate(&index.to_string()), timing(), clock);
            leaderships.push(election.leadership());
            let (events, receiver) = mpsc::channel(1024);
            heard.push(receiver);
            running.push(tokio::spawn(election.run(events, stop.clone())));
        }
        let end = tokio::time::Instant::now() + Duration::from_secs(8);
        while tokio::time::Instant::now() < end {
            let leading: Vec<_> = leaderships.iter().filter_map(Leadership::epoch).collect();
            // Two looks at two clocks: an overlap must be seen from both sides to be one.
            if leading.len() > 1 {
                let again = leaderships.iter().filter(|leadership| leadership.epoch().is_some()).count();
                assert!(again < 2, "seed {seed}: {leading:?} lead at once");
            }
            sleep(Duration::from_millis(1)).await;
        }
        stop.begin();
        let mut epochs = Vec::new();
        for (runner, mut events) in running.into_iter().zip(heard) {
            runner.await.expect("no panic").expect("a clean end");
            while let Some(event) = events.recv().await {
                if let LeaderEvent::Elected(epoch) = event {
                    epochs.push(epoch);
                }
            }
        }
        let all = epochs.len();
        epochs.sort();
        epochs.dedup();
        assert!(all > 0 && epochs.len() == all, "seed {seed}: someone led, and no epoch twice: {epochs:?}");
    }
}
