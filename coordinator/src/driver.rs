//! The one task that owns the core, and the handle by which everybody else speaks to it.
//!
//! The order never changes: decide (`Core::step`), persist (one commit for many events), act (effects). Queries see only
//! what is durable.

mod reader;
mod turn;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ingle_daemon::Shutdown;
use ingle_proto::{Epoch, ErrorCode, Problem};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::core::{Answer, Core, Effect, Event, Now, ReplyId};
use crate::limits;
use crate::metrics::Meters;
use crate::store::{JobStore, Records, Room};

pub use reader::Reader;
pub use turn::Driver;

/// Carries out effects. Must not block: it hands work to tasks of its own.
pub trait Perform: Send + Sync + 'static {
    /// Begins what is asked; what comes of it comes back as an event.
    fn perform(&self, effect: Effect, epoch: Epoch);
}

type Query = Box<dyn FnOnce(&Core, Now) + Send>;

/// What comes into the driver's inbox.
enum Input {
    Event(Event),
    Query(Query),
}

/// What callers and the driver share beside the inbox.
#[derive(Default)]
struct Shared {
    /// Another coordinator leads: queries are answered from the store, and nothing is decided here.
    following: bool,
    next_reply: AtomicU64,
    waiting: Mutex<Waiting>,
    scarce: Mutex<Scarce>,
}

/// What is said to whoever wants something stored while there is no room.
#[derive(Default)]
struct Scarce {
    /// There is little: what was accepted goes on, and no more is.
    little: Option<String>,
    /// There is none: the driver waits with a commit that the store refuses.
    none: Option<String>,
}

#[derive(Default)]
struct Waiting {
    ended: bool,
    replies: BTreeMap<ReplyId, oneshot::Sender<Result<Answer, Problem>>>,
    watchers: BTreeMap<u64, watch::Sender<Seen>>,
}

/// What whoever watches a job is told: that it changed, and whether it has ended since. The job itself is to be asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Changes so far.
    pub changes: u64,
    /// Nothing will change any more.
    pub ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scarce(&self) -> MutexGuard<'_, Scarce> {
        self.scarce.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, reply: ReplyId, answer: Result<Answer, Problem>) {
        let waiting = self.lock().replies.remove(&reply);
        // Whoever asked may have left.
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    fn job_changed(&self, job: u64, ended: bool) {
        let mut waiting = self.lock();
        if let Some(sender) = waiting.watchers.get(&job) {
            if sender.receiver_count() == 0 {
                waiting.watchers.remove(&job);
            } else {
                sender.send_modify(|seen| *seen = Seen { changes: seen.changes + 1, ended });
            }
        }
    }

    fn end(&self) {
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.replies.clear();
        waiting.watchers.clear();
    }
}

/// The driver's end of the inbox.
pub struct Inbox {
    inputs: mpsc::Receiver<Input>,
    shared: Arc<Shared>,
}

/// Speaks to the driver. Clones speak to the same one.
#[derive(Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    store: Arc<dyn JobStore>,
}

/// Takes a reply's place away when its caller leaves.
struct Place<'a>(&'a Shared, ReplyId);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().replies.remove(&self.1);
    }
}

impl Handle {
    /// A handle and the inbox that [`Driver::new`] takes.
    #[must_use]
    pub fn new(store: Arc<dyn JobStore>) -> (Self, Inbox) {
        Self::with(store, false)
    }

    /// The same for a [`Reader`]: what would have to be decided is refused with `NOT_LEADER`.
    #[must_use]
    pub fn following(store: Arc<dyn JobStore>) -> (Self, Inbox) {
        Self::with(store, true)
    }

    fn with(store: Arc<dyn JobStore>, following: bool) -> (Self, Inbox) {
        let (sender, inputs) = mpsc::channel(limits::INBOX_MAX);
        let shared = Arc::new(Shared { following, ..Shared::default() });
        let inbox = Inbox { inputs, shared: Arc::clone(&shared) };
        (Self { inputs: sender, shared, store }, inbox)
    }

    /// Tells the core what happened; waits for room.
    ///
    /// # Errors
    /// `SHUTTING_DOWN` once the driver has ended.
    pub async fn send(&self, event: Event) -> Result<(), Problem> {
        if self.shared.following {
            return Err(not_leader());
        }
        self.inputs.send(Input::Event(event)).await.map_err(|_| ended())
    }

    /// Tells the core something that it answers, once the answer is durable.
    ///
    /// # Errors
    /// What the core answers; `OVERLOADED`, `DEADLINE` after ten seconds (it may still happen), `SHUTTING_DOWN`.
    pub async fn ask(&self, make: impl FnOnce(ReplyId) -> Event) -> Result<Answer, Problem> {
        if self.shared.following {
            return Err(not_leader());
        }
        self.stores()?;
        let id = ReplyId(self.shared.next_reply.fetch_add(1, Ordering::Relaxed));
        let (sender, answered) = oneshot::channel();
        {
            let mut waiting = self.shared.lock();
            if waiting.replies.len() >= limits::ASKS_MAX {
                let words = format!("{} callers wait for the coordinator already", limits::ASKS_MAX);
                return Err(Problem::new(ErrorCode::Overloaded, words).retry_after(Duration::from_secs(1)));
            }
            waiting.replies.insert(id, sender);
        }
        let _place = Place(&self.shared, id);
        within(async {
            self.send(make(id)).await?;
            answered.await.map_err(|_| ended())?
        })
        .await
    }

    /// Whether anything can be stored. While nothing can, questions wait as well: the driver is at a commit.
    ///
    /// # Errors
    /// `STORAGE_FULL` while the store has no room at all.
    pub fn stores(&self) -> Result<(), Problem> {
        self.shared.scarce().none.as_ref().map_or(Ok(()), |reason| Err(no_room(reason)))
    }

    /// Whether another job may be accepted.
    ///
    /// # Errors
    /// `STORAGE_FULL` while the store has little room.
    pub fn admits(&self) -> Result<(), Problem> {
        let scarce = self.shared.scarce();
        scarce.none.as_ref().or(scarce.little.as_ref()).map_or(Ok(()), |reason| Err(no_room(reason)))
    }

    /// Keeps the store's house for as long as we lead, and stops and resumes admission by what it says of its room.
    pub async fn tend(&self, meters: Meters, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(Duration::from_millis(limits::TEND_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                _ = ticks.tick() => {}
            }
            let little = match self.store.tend().await {
                Ok(Room::Enough) => None,
                Ok(Room::Little(reason)) => Some(reason),
                Err(error) => {
                    tracing::debug!(%error, "the job store doesn't say how much room it has");
                    continue;
                }
            };
            let mut scarce = self.shared.scarce();
            match (&scarce.little, &little) {
                (None, Some(reason)) => tracing::error!(reason, "the job store has little room: no job is accepted"),
                (Some(_), None) => tracing::info!("the job store has room again: jobs are accepted"),
                _ => {}
            }
            meters.store_full(little.is_some() || scarce.none.is_some());
            scarce.little = little;
        }
    }

    /// Looks at the core as it is durable now. `look` must be quick: everything waits for it.
    ///
    /// # Errors
    /// `DEADLINE` after ten seconds, `SHUTTING_DOWN`.
    pub async fn query<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Now) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, answered) = oneshot::channel();
        let query: Query = Box::new(move |core, now| drop(sender.send(look(core, now))));
        within(async {
            let nothing = || if self.shared.following { not_leader() } else { ended() };
            self.inputs.send(Input::Query(query)).await.map_err(|_| nothing())?;
            answered.await.map_err(|_| nothing())
        })
        .await
    }

    /// Moves whenever a job changed. It is closed (its `changed` fails) when the driver ends, and from
    /// the start if [`limits::WATCHERS_MAX`] jobs are watched already.
    #[must_use]
    pub fn watch(&self, job: u64) -> watch::Receiver<Seen> {
        let mut waiting = self.shared.lock();
        if waiting.watchers.len() >= limits::WATCHERS_MAX {
            waiting.watchers.retain(|_, sender| sender.receiver_count() > 0);
        }
        let full = waiting.watchers.len() >= limits::WATCHERS_MAX && !waiting.watchers.contains_key(&job);
        if waiting.ended || full {
            return watch::channel(Seen::default()).1;
        }
        waiting.watchers.entry(job).or_insert_with(|| watch::channel(Seen::default()).0).subscribe()
    }

    /// Records of ended jobs below a prefix.
    ///
    /// # Errors
    /// `STORAGE_UNAVAILABLE` if the store can't be read.
    pub async fn archived(&self, prefix: &str) -> Result<Records, Problem> {
        let read = self.store.archived(prefix).await;
        read.map_err(|error| Problem::new(ErrorCode::StorageUnavailable, error.to_string()))
    }
}

async fn within<T>(asked: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let limit = Duration::from_millis(limits::ASK_WITHIN_MS);
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let words = format!("the coordinator's store didn't keep up within {limit:?}; it may still happen");
        Err(Problem::new(ErrorCode::Deadline, words))
    })
}

/// Nobody is known to lead who could be asked instead.
#[must_use]
pub fn not_leader() -> Problem {
    let words = "no coordinator leads at the moment; one will within ten seconds if etcd answers: ask again then";
    Problem::new(ErrorCode::NotLeader, words).retry_after(Duration::from_secs(1))
}

fn no_room(reason: &str) -> Problem {
    let words = format!("the job store takes no more jobs: {reason}; jobs that were accepted go on");
    Problem::new(ErrorCode::StorageFull, words).retry_after(Duration::from_secs(30))
}

fn ended() -> Problem {
    Problem::new(ErrorCode::ShuttingDown, "this coordinator is stopping; ask again in a few seconds")
}

/// Time as the core is told it.
#[must_use]
pub fn now() -> Now {
    let mono_ms = u64::try_from(ingle_daemon::clock::boottime().as_millis()).unwrap_or(u64::MAX);
    Now { mono_ms, unix_ms: ingle_daemon::clock::unix_ms() }
}

#[cfg(test)]
mod tests;
