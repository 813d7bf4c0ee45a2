//! Leaders that die, in the middle of a batch of commits too, and leaders that freeze and go on too late.

use ingle_coordinator::core::{Change, Core, Effect, Event, Now, ReplyId};
use ingle_proto::v1;

use super::world::{Happening, World};

/// A leader that stands still while another takes over.
pub(crate) struct Frozen {
    core: Core,
    life: u64,
    /// Of its clocks.
    skew: (u64, i64),
    /// Its commits arrived, and it hadn't got to what follows from them.
    effects: Vec<Effect>,
}

impl World {
    /// The leader dies; what was on its way to the store may have arrived or not.
    pub(crate) fn crash(&mut self) {
        let Some(dead) = self.core.take() else { return };
        self.totals.crashes += 1;
        let (nothing_lost, _) = self.stop();
        if nothing_lost {
            self.compare(&dead);
        }
        let down = if self.rng.bool() { self.rng.u64(100..1_000) } else { self.rng.u64(1_000..9_000) };
        self.later(self.now + down, Happening::Lead);
    }

    /// What a new leader believes is what the old one believed.
    fn compare(&self, dead: &Core) {
        let fresh =
            Core::load(dead.epoch(), self.clock(), self.store.records()).expect("what was committed can be loaded");
        assert_eq!(fresh.cordoned(), dead.cordoned(), "drains after a restart");
        for job in dead.list_jobs(u64::MAX, usize::MAX, &|_| true) {
            let number = super::clients::number_of(&job.job_id);
            let mut again = fresh.job(number).unwrap_or_else(|| panic!("{} is gone after a restart", job.job_id));
            assert_eq!(again.state, job.state, "{} after a restart", job.job_id);
            let (mut before, mut after) = (job.counts.unwrap(), again.counts.take().unwrap());
            if job.state() == ingle_proto::v1::JobState::Listing || dead.parts(number).is_some_and(|_| after.total == 0)
            {
                // Entries seen by a walk under way are not kept.
                (before.total, after.total) = (0, 0);
            }
            // Progress within a batch is not kept.
            (before.bytes_done, after.bytes_done) = (0, 0);
            assert_eq!(before, after, "counts of {} before and after a restart", job.job_id);
        }
    }

    /// The leader stands still for so long that its lease ends and another takes over, and then it goes on.
    pub(crate) fn freeze_leader(&mut self) {
        let Some(core) = self.core.take() else { return };
        self.totals.frozen += 1;
        let (_, effects) = self.stop();
        let frozen = Frozen { core, life: self.life, skew: self.skew, effects };
        let taken_over = self.rng.u64(2_000..6_000);
        self.later(self.now + taken_over, Happening::Lead);
        let thaws = self.rng.u64(taken_over + 1..taken_over + 12_000);
        self.later(self.now + thaws, Happening::Thaw(Box::new(frozen)));
    }

    /// Ends the leader's connections and commits. Whether all of them arrived, and what was to be done then.
    fn stop(&mut self) -> (bool, Vec<Effect>) {
        let pending: Vec<(Vec<Change>, Vec<Effect>)> = std::mem::take(&mut self.pending);
        let arrived = if pending.is_empty() { 0 } else { self.rng.usize(0..=pending.len()) };
        let all = arrived == pending.len();
        self.trace
            .say(self.now, format_args!("life {} stops, {arrived} of {} commits arrived", self.life, pending.len()));
        let mut effects = Vec::new();
        for (changes, asked) in pending.into_iter().take(arrived) {
            self.store.commit(self.life, &changes, &self.gateway.segments);
            effects.extend(asked);
        }
        self.inbox.clear();
        self.busy = false;
        for machine in &mut self.machines {
            machine.connection = None;
        }
        (all, effects)
    }

    /// It goes on where it stood still, not knowing that another leads: nothing that it writes or asks for may count.
    pub(crate) fn thaw(&mut self, frozen: Frozen) {
        let Frozen { mut core, life, skew, effects } = frozen;
        let now = Now { mono_ms: skew.0 + self.now, unix_ms: self.clock().unix_ms };
        self.trace.say(self.now, format_args!("life {life} goes on too late"));
        assert!(self.life > life, "another leader came before it went on");
        for effect in effects {
            // Its streams to nodes are gone; the gateway judges by the epoch.
            if let Effect::Publish { job, batch, request } = effect {
                self.publish(life, job, batch, &request);
            }
        }
        let submitted = core.step(
            now,
            Event::Submit {
                reply: ReplyId(u64::MAX),
                spec: Box::new(v1::JobSpec { kind: v1::JobKind::Embed.into(), ..Default::default() }),
                idempotency_key: "too late".into(),
                spec_digest: vec![0],
                principal: "nobody".into(),
            },
        );
        let ticked = core.step(now, Event::Tick);
        for changes in [submitted.changes, ticked.changes].into_iter().filter(|changes| !changes.is_empty()) {
            assert!(!self.store.admits(life), "an old leader's write of {} changes is taken", changes.len());
            self.totals.fenced += 1;
        }
    }
}
