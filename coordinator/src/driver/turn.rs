//! The driver's loop: takes what is there, steps the core, commits, performs; learns what became of a lost answer.

use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::Shutdown;
use ingle_daemon::backoff::Backoff;
use ingle_daemon::run::Readiness;
use ingle_membership::election::Leadership;
use ingle_proto::Epoch;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Inbox, Input, Perform, Query, now};
use crate::core::record::Change;
use crate::core::{Core, Effect, Event};
use crate::limits;
use crate::metrics::Meters;
use crate::store::{COMMIT_BYTES_MAX, JobStore, StoreError, size};

/// How often gauges are set.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// What steps have asked for and is not committed yet.
#[derive(Default)]
struct Pending {
    changes: Vec<Change>,
    bytes: usize,
    effects: Vec<Effect>,
}

/// Owns the core.
pub struct Driver {
    inbox: Inbox,
    core: Core,
    store: Arc<dyn JobStore>,
    epoch: Epoch,
    revision: u64,
    perform: Arc<dyn Perform>,
    meters: Meters,
    readiness: Readiness,
    gauges_at: Instant,
    leadership: Option<Leadership>,
}

impl Driver {
    /// Reads the store and puts the core together. `epoch` is the store's already.
    ///
    /// # Errors
    /// [`StoreError`] if the store can't be read, or holds what the core can't.
    pub async fn new(
        inbox: Inbox,
        store: Arc<dyn JobStore>,
        epoch: Epoch,
        perform: Arc<dyn Perform>,
        meters: Meters,
        readiness: Readiness,
    ) -> Result<Self, StoreError> {
        let snapshot = store.load().await?;
        meters.jobs_loaded(&snapshot.records);
        let count = snapshot.records.len();
        let core = Core::load(epoch, now(), snapshot.records).map_err(|reason| StoreError::Corrupt {
            place: "records".into(),
            reason,
            remedy: "restore the state directory from a backup, or start the version that wrote it".into(),
        })?;
        tracing::info!(%epoch, records = count, revision = snapshot.revision, "jobs loaded");
        if core.unknown_records() > 0 {
            let words = "the job store holds records of a later version; they are left as they are";
            tracing::warn!(records = core.unknown_records(), "{words}");
        }
        let revision = snapshot.revision;
        Ok(Self {
            inbox,
            core,
            store,
            epoch,
            revision,
            perform,
            meters,
            readiness,
            gauges_at: Instant::now(),
            leadership: None,
        })
    }

    /// Begins nothing but while this leadership of the same epoch lasts.
    #[must_use]
    pub fn under(mut self, leadership: Leadership) -> Self {
        self.leadership = Some(leadership);
        self
    }

    /// Whether we lead at this moment, by a clock that counts sleep: thawed after the commit we must not act on it.
    fn leads(&self) -> Result<(), StoreError> {
        match &self.leadership {
            Some(leadership) if leadership.epoch().map(|epoch| epoch.counter) != Some(self.epoch.revision) => {
                Err(StoreError::NotLeading)
            }
            _ => Ok(()),
        }
    }

    /// Runs until `shutdown`, then does what has come in by then.
    ///
    /// # Errors
    /// [`StoreError`] that no waiting mends: fenced by a newer leader, or damaged.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), StoreError> {
        let stop = shutdown.wait();
        tokio::pin!(stop);
        let mut ticks = tokio::time::interval(Duration::from_millis(limits::TICK_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticked = Instant::now();
        let mut awake_ms = now().mono_ms;
        let mut inputs = Vec::with_capacity(limits::EVENTS_PER_COMMIT);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = ticks.tick() => {}
                taken = self.inbox.inputs.recv_many(&mut inputs, limits::EVENTS_PER_COMMIT) => if taken == 0 { break },
            }
            // Beats that wait in the inbox are heard before time passes: a slow commit must not look like silence.
            while inputs.len() < limits::EVENTS_PER_COMMIT {
                let Ok(input) = self.inbox.inputs.try_recv() else { break };
                inputs.push(input);
            }
            let late = if self.inbox.inputs.is_empty() { limits::TICK_MS } else { limits::TICK_LATE_MS };
            if ticked.elapsed() >= Duration::from_millis(late) {
                ticked = Instant::now();
                inputs.push(Input::Event(Event::Tick));
            }
            // The loop comes round at every tick: a long way round was ours, frozen, asleep or at a commit.
            let stood = now().mono_ms.saturating_sub(awake_ms);
            if stood >= limits::STOOD_MS {
                tracing::warn!(ms = stood, "this process stood still; the silence of nodes meanwhile isn't theirs");
                inputs.insert(0, Input::Event(Event::Stood { ms: stood }));
            }
            awake_ms = now().mono_ms;
            self.turn(&mut inputs, &shutdown).await?;
        }
        self.inbox.inputs.close();
        while self.inbox.inputs.recv_many(&mut inputs, limits::EVENTS_PER_COMMIT).await > 0 {
            self.turn(&mut inputs, &shutdown).await?;
        }
        Ok(())
    }

    async fn turn(&mut self, inputs: &mut Vec<Input>, shutdown: &Shutdown) -> Result<(), StoreError> {
        let mut pending = Pending::default();
        let mut queries: Vec<Query> = Vec::new();
        for input in inputs.drain(..) {
            let event = match input {
                Input::Event(event) => event,
                Input::Query(query) => {
                    queries.push(query);
                    continue;
                }
            };
            self.meters.event();
            let step = self.core.step(now(), event);
            let bytes: usize = step.changes.iter().map(size).sum();
            // Commits end where events end, so that what belongs together is durable together.
            if pending.changes.len() + step.changes.len() > limits::CHANGES_PER_COMMIT
                || pending.bytes + bytes > COMMIT_BYTES_MAX
            {
                self.flush(std::mem::take(&mut pending), shutdown).await?;
            }
            pending.changes.extend(step.changes);
            pending.bytes += bytes;
            pending.effects.extend(step.effects);
            // What changes nothing that is stored, as a person's call, needn't wait for the commit of what came after it.
            if pending.changes.is_empty() {
                self.flush(std::mem::take(&mut pending), shutdown).await?;
            }
        }
        self.flush(pending, shutdown).await?;
        self.meters.tally(&self.core.take_tally());
        let now = now();
        for query in queries {
            query(&self.core, now);
        }
        if self.gauges_at.elapsed() >= GAUGES_EVERY {
            self.gauges_at = Instant::now();
            self.meters.status(&self.core.status());
            self.meters.stand(&self.core.stand());
        }
        Ok(())
    }

    /// Persist, then act.
    async fn flush(&mut self, pending: Pending, shutdown: &Shutdown) -> Result<(), StoreError> {
        let mut changes = pending.changes;
        while !changes.is_empty() {
            let mut bytes = 0;
            let fits = changes.iter().take(limits::CHANGES_PER_COMMIT).take_while(|change| {
                bytes += size(change);
                bytes <= COMMIT_BYTES_MAX
            });
            // One change alone beyond the bound is refused by the store, by name.
            let count = fits.count().max(1);
            let rest = changes.split_off(count);
            if !rest.is_empty() {
                // Every prefix of a step's changes can be loaded; it only costs repeating what the rest would say.
                tracing::debug!(left = rest.len(), "a step's changes take more than one commit");
            }
            self.commit(std::mem::replace(&mut changes, rest), shutdown).await?;
        }
        for effect in pending.effects {
            self.leads()?;
            if !self.core.wants(&effect) {
                continue;
            }
            match effect {
                Effect::Reply { reply, answer } => self.inbox.shared.answer(reply, answer),
                Effect::JobChanged { job } => self.inbox.shared.job_changed(job, self.core.has_ended(job)),
                other => self.perform.perform(other, self.epoch),
            }
        }
        Ok(())
    }

    async fn commit(&mut self, changes: Vec<Change>, shutdown: &Shutdown) -> Result<(), StoreError> {
        self.meters.jobs_changed(&changes);
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        let begun = Instant::now();
        loop {
            let tried = Instant::now();
            let answered = self.store.commit(self.epoch, changes.clone()).await;
            self.meters.written(tried.elapsed(), answered.as_ref().err());
            let outcome = match answered {
                Ok(revision) => {
                    self.revision = revision;
                    Ok(true)
                }
                // No failure, no success: nothing is dispatched until it is known which.
                Err(StoreError::Unknown(reason)) => self.happened(&reason, &mut backoff, shutdown).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(true) => {
                    self.meters.commit(begun.elapsed());
                    if backoff.attempt() > 0 {
                        self.inbox.shared.scarce().none = None;
                        self.readiness.ready();
                    }
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) if error.retryable() && !shutdown.begun() => self.wait(&mut backoff, &error).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a commit without an answer is in the store. `backoff` is the commit's: whoever waited here says so no more once
    /// it is done.
    async fn happened(&mut self, reason: &str, backoff: &mut Backoff, shutdown: &Shutdown) -> Result<bool, StoreError> {
        tracing::warn!(reason, "a commit's outcome is unknown; reading the store");
        self.meters.unknown();
        loop {
            // Only the revision is of interest: no record is newer than the greatest one.
            match self.store.changes_since(u64::MAX).await {
                Ok(there) if there.epoch > self.epoch => {
                    return Err(StoreError::Fenced { ours: self.epoch, stored: there.epoch });
                }
                Ok(there) => {
                    let happened = there.revision > self.revision;
                    self.revision = there.revision;
                    tracing::info!(happened, revision = there.revision, "the outcome is known; going on");
                    return Ok(happened);
                }
                Err(error) if error.retryable() && !shutdown.begun() => self.wait(backoff, &error).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn wait(&self, backoff: &mut Backoff, error: &StoreError) {
        if let StoreError::Full(reason) = error {
            self.inbox.shared.scarce().none = Some(reason.clone());
            self.meters.store_full(true);
        }
        self.readiness.waiting(error.to_string());
        if backoff.attempt() == 0 {
            tracing::warn!(%error, "the job store refuses for now; nothing is dispatched meanwhile");
        }
        tokio::time::sleep(backoff.next_random()).await;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Whoever waits for an answer learns that none will come.
        self.inbox.shared.end();
    }
}
