//! The driver over stores that lose answers: nothing is said before it is durable, nothing is done twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use ingle_daemon::Shutdown;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::run::Readiness;
use ingle_proto::v1;
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::Meters;
use crate::store::faulty::{Fault, FaultyStore};
use crate::store::{MemoryStore, StoreError};

/// Counts what it is asked to do.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Perform for Counting {
    fn perform(&self, _: Effect, _: Epoch) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Running {
    handle: Handle,
    stop: Shutdown,
    task: JoinHandle<Result<(), StoreError>>,
}

#[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
async fn start(store: Arc<dyn JobStore>, epoch: Epoch) -> Running {
    let (handle, inbox) = Handle::new(Arc::clone(&store));
    let (meters, perform) = (Meters::new(&Metrics::new("test")), Arc::new(Counting::default()));
    let driver = Driver::new(inbox, store, epoch, perform, meters, Readiness::default()).await.unwrap();
    let stop = Shutdown::new();
    Running { handle, task: tokio::spawn(driver.run(stop.clone())), stop }
}

impl Running {
    async fn end(self) -> Result<(), StoreError> {
        self.stop.begin();
        self.task.await.unwrap()
    }

    async fn submit(&self, key: &str) -> Result<(v1::Job, bool), Problem> {
        let spec = v1::JobSpec { kind: v1::JobKind::Embed.into(), model: "m".into(), ..Default::default() };
        let submit = |reply| Event::Submit {
            reply,
            spec: Box::new(spec),
            idempotency_key: key.into(),
            spec_digest: vec![1; 32],
            principal: "p".into(),
        };
        match self.handle.ask(submit).await? {
            Answer::Job(job, existed) => Ok((*job, existed)),
            Answer::Node(node) => panic!("a node for a job: {node:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_is_durable_before_it_is_given() {
    let memory = MemoryStore::new();
    let (store, epoch) = memory.open();
    let running = start(Arc::new(store), epoch).await;
    let (job, existed) = running.submit("k").await.unwrap();
    assert!(!existed);
    // Nothing is left for the end to write: a crash here loses nothing.
    running.task.abort();
    let (store, epoch) = memory.open();
    let after = start(Arc::new(store), epoch).await;
    let (again, existed) = after.submit("k").await.unwrap();
    assert!(existed, "the same key is answered by the same job");
    assert_eq!((&again.job_id, again.created_ms, &again.spec), (&job.job_id, job.created_ms, &job.spec));
    let number = after.handle.query(|core, _| core.job(1).map(|job| job.job_id)).await.unwrap();
    assert_eq!(number, Some(job.job_id));
    after.end().await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_found_out() {
    for done in [false, true] {
        let memory = MemoryStore::new();
        let (store, epoch) = memory.open();
        let faulty = FaultyStore::new(Arc::new(store), Fault { at: 1, done, dead: false });
        let running = start(Arc::new(faulty), epoch).await;
        let (job, existed) = running.submit("k").await.unwrap();
        assert!(!existed, "done: {done}");
        assert_eq!(running.submit("k").await.unwrap().0.job_id, job.job_id);
        running.end().await.unwrap();
        let records = memory.load().await.unwrap().records;
        let jobs = records.iter().filter(|(key, _)| key.starts_with("jobs/")).count();
        assert_eq!(jobs, 1, "done: {done}");
    }
}

/// Loses a commit's answer, done or not, and can't be read for a while after it.
struct Blind {
    inner: FaultyStore,
    looks: AtomicUsize,
}

#[async_trait::async_trait]
impl JobStore for Blind {
    async fn load(&self) -> Result<crate::store::Snapshot, StoreError> {
        self.inner.load().await
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<crate::core::Change>) -> Result<u64, StoreError> {
        self.inner.commit(epoch, changes).await
    }

    async fn changes_since(&self, revision: u64) -> Result<crate::store::Snapshot, StoreError> {
        if self.looks.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(StoreError::io("blind", "no answer"));
        }
        self.inner.changes_since(revision).await
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        self.inner.archived(prefix).await
    }
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
async fn once_the_outcome_is_known_it_is_ready_again() {
    for done in [false, true] {
        let (store, epoch) = MemoryStore::new().open();
        let inner = FaultyStore::new(Arc::new(store), Fault { at: 1, done, dead: false });
        let store: Arc<dyn JobStore> = Arc::new(Blind { inner, looks: AtomicUsize::new(0) });
        let (handle, inbox) = Handle::new(Arc::clone(&store));
        let (meters, perform) = (Meters::new(&Metrics::new("test")), Arc::new(Counting::default()));
        let readiness = Readiness::default();
        readiness.ready();
        let driver = Driver::new(inbox, store, epoch, perform, meters, readiness.clone()).await.unwrap();
        let stop = Shutdown::new();
        let running = Running { handle, task: tokio::spawn(driver.run(stop.clone())), stop };
        running.submit("k").await.unwrap();
        assert_eq!(readiness.get(), Ok(()), "done: {done}");
        running.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_fenced_driver_ends() {
    let memory = MemoryStore::new();
    let (store, epoch) = memory.open();
    let running = start(Arc::new(store), epoch).await;
    let (_newer, leader) = memory.open();
    let refused = running.submit("k").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ShuttingDown, "nothing was promised: {refused}");
    assert_eq!(running.task.await.unwrap(), Err(StoreError::Fenced { ours: epoch, stored: leader }));
    assert!(memory.load().await.unwrap().records.is_empty());
}

/// A store whose thread has ended.
struct Ended;

#[async_trait::async_trait]
impl JobStore for Ended {
    async fn load(&self) -> Result<crate::store::Snapshot, StoreError> {
        Ok(crate::store::Snapshot::default())
    }

    async fn commit(&self, _: Epoch, _: Vec<crate::core::Change>) -> Result<u64, StoreError> {
        Err(StoreError::Gone("its thread ended".into()))
    }

    async fn changes_since(&self, _: u64) -> Result<crate::store::Snapshot, StoreError> {
        Err(StoreError::Gone("its thread ended".into()))
    }

    async fn archived(&self, _: &str) -> Result<Records, StoreError> {
        Err(StoreError::Gone("its thread ended".into()))
    }
}

#[tokio::test]
async fn a_store_that_is_gone_ends_the_driver() {
    let running = start(Arc::new(Ended), Epoch { generation: 1, revision: 1 }).await;
    assert_eq!(running.submit("k").await.unwrap_err().code, ErrorCode::ShuttingDown, "nothing was promised");
    let ended = tokio::time::timeout(Duration::from_secs(10), running.task).await.expect("it doesn't try for ever");
    assert!(matches!(ended.unwrap(), Err(StoreError::Gone(_))));
}

#[tokio::test]
async fn whoever_asks_a_driver_that_ended_is_told() {
    let (store, epoch) = MemoryStore::new().open();
    let running = start(Arc::new(store), epoch).await;
    let handle = running.handle.clone();
    running.end().await.unwrap();
    let cancel = |reply| Event::Cancel { reply, job: 1 };
    assert_eq!(handle.ask(cancel).await.unwrap_err().code, ErrorCode::ShuttingDown);
    assert_eq!(handle.query(|_, _| ()).await.unwrap_err().code, ErrorCode::ShuttingDown);
    assert!(handle.watch(1).changed().await.is_err(), "nothing will change any more");
    assert!(handle.shared.lock().replies.is_empty(), "callers leave nothing behind");
}

#[tokio::test]
async fn problems_are_answers() {
    let (store, epoch) = MemoryStore::new().open();
    let running = start(Arc::new(store), epoch).await;
    let refused = running.handle.ask(|reply| Event::Cancel { reply, job: 77 }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::JobNotFound);
    running.end().await.unwrap();
}

#[tokio::test]
async fn watchers_hear_that_a_job_has_ended() {
    let (store, epoch) = MemoryStore::new().open();
    let running = start(Arc::new(store), epoch).await;
    let mut watch = running.handle.watch(1);
    running.submit("").await.unwrap();
    assert!(!watch.borrow_and_update().ended);
    running.handle.ask(|reply| Event::Cancel { reply, job: 1 }).await.unwrap();
    let ended = watch.wait_for(|seen| seen.ended);
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("it is told").unwrap();
    assert!(running.handle.query(|core, _| core.has_ended(1)).await.unwrap());
    running.end().await.unwrap();
}

#[tokio::test]
async fn watchers_hear_changes_and_are_forgotten() {
    let (store, epoch) = MemoryStore::new().open();
    let running = start(Arc::new(store), epoch).await;
    let mut watch = running.handle.watch(1);
    let job = running.submit("").await.unwrap().0;
    running.handle.ask(|reply| Event::Pause { reply, job: 1 }).await.unwrap();
    watch.changed().await.unwrap();
    assert_eq!(job.job_id, running.handle.query(|core, _| core.job(1).unwrap().job_id).await.unwrap());
    drop(watch);
    running.handle.ask(|reply| Event::Resume { reply, job: 1 }).await.unwrap();
    assert!(running.handle.shared.lock().watchers.is_empty());
    let all: Vec<_> = (0..limits::WATCHERS_MAX as u64).map(|job| running.handle.watch(job)).collect();
    assert!(running.handle.watch(u64::MAX).changed().await.is_err(), "one too many");
    drop(all);
    assert!(running.handle.watch(u64::MAX).has_changed().is_ok(), "room again");
    running.end().await.unwrap();
}

/// A store without room until it is told otherwise.
struct Crowded {
    inner: MemoryStore,
    full: std::sync::atomic::AtomicBool,
    little: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl JobStore for Crowded {
    async fn load(&self) -> Result<crate::store::Snapshot, StoreError> {
        self.inner.load().await
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<crate::core::Change>) -> Result<u64, StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError::Full("no space; defragment it".into()));
        }
        self.inner.commit(epoch, changes).await
    }

    async fn changes_since(&self, revision: u64) -> Result<crate::store::Snapshot, StoreError> {
        self.inner.changes_since(revision).await
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        self.inner.archived(prefix).await
    }

    async fn tend(&self) -> Result<Room, StoreError> {
        let little = self.little.load(Ordering::SeqCst);
        Ok(if little { Room::Little("nearly full; defragment it".into()) } else { Room::Enough })
    }
}

async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let waited = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap_or_else(|_| panic!("never {what}"));
}

#[tokio::test]
async fn a_store_without_room_is_named_and_goes_on_when_it_has() {
    let (inner, epoch) = MemoryStore::new().open();
    let store = Arc::new(Crowded { inner, full: true.into(), little: false.into() });
    let running = start(Arc::clone(&store) as Arc<dyn JobStore>, epoch).await;
    // The first waits with its commit; whoever comes then is told why at once.
    let handle = running.handle.clone();
    let first = async { running.submit("first").await };
    let others = async {
        until("refused", || handle.admits().is_err()).await;
        let refused = handle.ask(|reply| Event::Cancel { reply, job: 1 }).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::StorageFull);
        assert!(refused.message.contains("defragment") && refused.retryable(), "{refused}");
        store.full.store(false, Ordering::SeqCst);
    };
    let (accepted, ()) = tokio::join!(first, others);
    assert_eq!(accepted.unwrap().0.job_id, "j-1");
    assert!(handle.admits().is_ok());
    running.end().await.unwrap();
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the test owns the task and awaits it")]
async fn with_little_room_jobs_are_refused_and_those_accepted_go_on() {
    let (inner, epoch) = MemoryStore::new().open();
    let store = Arc::new(Crowded { inner, full: false.into(), little: true.into() });
    let running = start(Arc::clone(&store) as Arc<dyn JobStore>, epoch).await;
    let (handle, stop) = (running.handle.clone(), Shutdown::new());
    let (keeper, meters) = (handle.clone(), Meters::new(&Metrics::new("test")));
    let keeping = tokio::spawn({
        let stop = stop.clone();
        async move { keeper.tend(meters, stop).await }
    });
    until("refused", || handle.admits().is_err()).await;
    let refused = handle.admits().unwrap_err();
    assert!(refused.code == ErrorCode::StorageFull && refused.message.contains("nearly full"), "{refused}");
    // Only admission asks: what is there is written to its end.
    running.submit("goes on").await.unwrap();
    handle.ask(|reply| Event::Pause { reply, job: 1 }).await.unwrap();
    store.little.store(false, Ordering::SeqCst);
    until("accepted again", || handle.admits().is_ok()).await;
    stop.begin();
    keeping.await.unwrap();
    running.end().await.unwrap();
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the test owns the tasks and awaits them")]
async fn a_leader_whose_time_ran_out_begins_nothing() {
    use ingle_membership::Memory;
    use ingle_membership::election::{Candidate, Election, ElectionTiming, LeaderEvent};
    let clock = Arc::new(AtomicU64::new(0));
    let hand = Arc::clone(&clock);
    let candidate = Candidate { id: "c-1".into(), incarnation: "i".into(), address: "h:1".into() };
    let told = Arc::new(move || Duration::from_millis(hand.load(Ordering::SeqCst)));
    // It renews so rarely that only the clock ends its time here.
    let day = Duration::from_secs(86_400);
    let timing = ElectionTiming { lease: Duration::from_secs(3600), step_down: Duration::from_secs(3000), renew: day };
    let election = Election::with(Arc::new(Memory::new()), candidate, timing, told);
    let leadership = election.leadership();
    let (events, mut heard) = mpsc::channel(4);
    let over = Shutdown::new();
    let electing = tokio::spawn(election.run(events, over.clone()));
    let Some(LeaderEvent::Elected(elected)) = heard.recv().await else { panic!("nobody else stands") };

    let (memory, opened) = MemoryStore::new().open();
    let epoch = Epoch { generation: opened.generation + 1, revision: elected.counter };
    let store: Arc<dyn JobStore> = Arc::new(memory);
    let (handle, inbox) = Handle::new(Arc::clone(&store));
    let (meters, perform) = (Meters::new(&Metrics::new("test")), Arc::new(Counting::default()));
    let driver = Driver::new(inbox, Arc::clone(&store), epoch, perform, meters, Readiness::default()).await.unwrap();
    let stop = Shutdown::new();
    let task = tokio::spawn(driver.under(leadership).run(stop.clone()));
    let running = Running { handle, stop, task };
    running.submit("in time").await.unwrap();
    // Frozen for an hour: nobody has taken over, and what it decides is stored; still it begins nothing.
    clock.store(3_600_000, Ordering::SeqCst);
    let refused = running.submit("late").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ShuttingDown);
    assert_eq!(running.task.await.unwrap(), Err(StoreError::NotLeading));
    let jobs = store.load().await.unwrap().records.into_iter().filter(|(key, _)| key.starts_with("jobs/")).count();
    assert_eq!(jobs, 2, "whoever leads next does what was decided");
    over.begin();
    electing.await.unwrap().unwrap();
}
