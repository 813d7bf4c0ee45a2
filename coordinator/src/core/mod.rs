//! The deciding core: `Core::step(now, event) -> (changes, effects)`. Synchronous; no tokio, no clock, no randomness of its own.
//!
//! The driver commits the changes and only then carries out the effects. The same code runs in production, under property
//! tests and in the simulation.

mod admission;
mod batches;
mod breakers;
pub(crate) mod calls;
pub mod check;
mod crowd;
mod dispatch;
mod drains;
pub mod event;
pub mod explain;
mod explain_model;
mod jobs;
mod members;
mod models;
pub mod nodes;
mod outage;
pub mod placement;
mod ranges;
pub mod record;
mod setbacks;
mod standing;
pub mod tally;
mod view;
mod wards;
mod warming;

use std::collections::{BTreeMap, BTreeSet};

use ingle_proto::{Epoch, NodeId, Problem, v1};

pub use event::{Adopted, Answer, Attached, BatchWork, CallId, Effect, Event, Now, PublishedBatch, ReplyId, Work};
pub use record::{BatchRecord, BatchState, Change, JobRecord, Marks, SegmentRecord, SplitRecord, StandingRecord};

use calls::Call;
use nodes::NodeTable;
use placement::Speeds;
use ranges::{DocumentKey, Split};
use tally::Tally;

/// What a step asks for.
#[derive(Debug, Default)]
pub struct Step {
    /// To be committed first.
    pub changes: Vec<Change>,
    /// To be done after.
    pub effects: Vec<Effect>,
}

impl Step {
    /// Whether another piece of work fits: a commit is bounded, and what doesn't fit waits for the next event or tick.
    pub(crate) fn has_room(&self) -> bool {
        let bytes: usize = self.changes.iter().map(crate::store::size).sum();
        self.changes.len() < crate::limits::CHANGES_PER_COMMIT / 2 && bytes < crate::store::COMMIT_BYTES_MAX / 2
    }

    pub(crate) fn put_job(&mut self, job: &JobRecord) {
        self.put(record::job_key(job.number), job);
    }

    pub(crate) fn put_batch(&mut self, job: u64, batch: &BatchRecord) {
        self.put(record::batch_key(job, batch.id), batch);
    }

    pub(crate) fn put(&mut self, key: String, value: &impl prost::Message) {
        self.changes.push(Change::Put { key, value: value.encode_to_vec() });
    }
}

/// A job while it is open.
#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) record: JobRecord,
    pub(crate) segments: BTreeMap<u32, Segment>,
    pub(crate) batches: BTreeMap<u64, BatchRecord>,
    /// Batches that wait for a node.
    pub(crate) queued: BTreeSet<u64>,
    /// Batches on a node.
    pub(crate) running: BTreeSet<u64>,
    /// Committed batches whose manifest is being made visible.
    pub(crate) publishing: BTreeSet<u64>,
    /// Segments with entries no batch covers yet.
    pub(crate) uncut: BTreeSet<u32>,
    /// Work batches of a bucket that are neither committed nor set aside; a join waits for zero.
    pub(crate) bucket_open: BTreeMap<u32, u64>,
    /// Buckets that need a join and have none yet.
    pub(crate) joins_due: BTreeSet<u32>,
    /// Documents whose pages are batches of their own.
    pub(crate) splits: BTreeMap<DocumentKey, Split>,
    /// Those of them with pages no batch covers yet.
    pub(crate) uncut_pages: BTreeSet<DocumentKey>,
    /// Those of them whose pages are all settled, and that need a join.
    pub(crate) ready_documents: BTreeSet<DocumentKey>,
    /// Batches of their pages, whatever became of them.
    pub(crate) ranges: BTreeMap<DocumentKey, BTreeSet<u64>>,
    pub(crate) counts: v1::ItemCounts,
    /// Documents that need nothing more of a node.
    pub(crate) settled: u64,
    /// Entries that no batch covers yet.
    pub(crate) uncut_left: Left,
    pub(crate) next_batch: u64,
    /// The walk under way, and when to try again after one failed.
    pub(crate) scan: ScanState,
    /// Over the last minute, for rate and time left.
    pub(crate) pace: std::collections::VecDeque<Pace>,
    /// When something of it could first have run, for ageing and queue time.
    pub(crate) waiting_since: Option<u64>,
    /// Why nothing of it runs now.
    pub(crate) hold: String,
    /// The code of that, where it has one.
    pub(crate) hold_code: String,
    /// Why it waits for the NAS, if it does.
    pub(crate) outage: Option<outage::Outage>,
    /// Of a standing job: when the last look ended, Unix milliseconds.
    pub(crate) looked_ms: i64,
}

/// How much is left of something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

/// How far a job was at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pace {
    /// Monotonic milliseconds.
    pub(crate) at: u64,
    /// Documents settled.
    pub(crate) documents: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct ScanState {
    pub(crate) number: u64,
    pub(crate) running: bool,
    pub(crate) tries: u32,
    pub(crate) not_before: u64,
    pub(crate) entries_seen: u64,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) record: SegmentRecord,
    /// First entry that no batch covers.
    pub(crate) cut: u32,
}

impl Segment {
    pub(crate) fn info(&self) -> &v1::SegmentInfo {
        self.record.info.as_ref().expect("a segment is recorded with its info")
    }
}

/// Whose work a node runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Owner {
    Batch { job: u64, batch: u64 },
    Call(CallId),
}

/// A dispatch that has not ended.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) owner: Owner,
    pub(crate) node: NodeId,
    pub(crate) started: u64,
    pub(crate) expected_ms: f64,
    /// Monotonic milliseconds after which it is given up.
    pub(crate) deadline: u64,
    pub(crate) bytes_done: u64,
    pub(crate) items_done: u32,
    /// Set after a leader change, until its node reports it.
    pub(crate) unconfirmed: bool,
    /// Why there; none of what another leader dispatched.
    pub(crate) decision: Option<placement::Decision>,
    /// No other batch was at its node since it was sent there: if the node dies, nothing else can have done it.
    pub(crate) alone: bool,
    /// Its node has said that it has it. What died on its way there, or after its node, did the node no harm.
    pub(crate) seen: bool,
}

/// Jobs, nodes and attempts, and the rules between them.
#[derive(Debug)]
pub struct Core {
    epoch: Epoch,
    started: u64,
    jobs: BTreeMap<u64, Job>,
    ended: BTreeMap<u64, JobRecord>,
    keys: BTreeMap<String, u64>,
    nodes: NodeTable,
    attempts: BTreeMap<u64, Attempt>,
    /// Attempts that are gone and not yet dealt with: many may go at once, and a commit is bounded.
    lost: BTreeMap<u64, (Problem, members::Loss)>,
    calls: BTreeMap<CallId, Call>,
    speeds: Speeds,
    paces: admission::Paces,
    /// When each model was last given work, monotonic milliseconds: what is hot.
    used: BTreeMap<String, u64>,
    /// Nodes that were told to end and whose record went without a goodbye: they may only have been cut off.
    gone: BTreeMap<NodeId, drains::Cordon>,
    principal_busy: BTreeMap<String, u64>,
    marks: Marks,
    tally: Tally,
    next_attempt: u64,
    next_job: u64,
    now: Now,
    crowd: crowd::Crowd,
    /// Records of kinds that only a later version knows.
    unknown_records: usize,
}

impl Core {
    /// From what the store holds: `(key, value)` of every record that is not archived.
    ///
    /// # Errors
    /// Names the record that can't be read; nothing is guessed.
    pub fn load(epoch: Epoch, now: Now, records: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, String> {
        let mut core = Self {
            epoch,
            started: now.mono_ms,
            jobs: BTreeMap::new(),
            ended: BTreeMap::new(),
            keys: BTreeMap::new(),
            nodes: NodeTable::default(),
            attempts: BTreeMap::new(),
            lost: BTreeMap::new(),
            calls: BTreeMap::new(),
            speeds: Speeds::default(),
            paces: admission::Paces::default(),
            used: BTreeMap::new(),
            gone: BTreeMap::new(),
            principal_busy: BTreeMap::new(),
            marks: Marks::default(),
            tally: Tally::default(),
            next_attempt: 1,
            next_job: 1,
            now,
            crowd: crowd::Crowd::default(),
            unknown_records: 0,
        };
        for (key, value) in records {
            core.load_record(&key, &value).map_err(|error| format!("record {key}: {error}"))?;
        }
        core.next_attempt = core.marks.attempt + 1;
        core.next_job = core.next_job.max(core.marks.job + 1);
        core.restore();
        Ok(core)
    }

    fn load_record(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        use prost::Message as _;
        let bad = |error: prost::DecodeError| error.to_string();
        let number = |text: &str| u64::from_str_radix(text, 16).map_err(|error| error.to_string());
        match key.split('/').collect::<Vec<_>>().as_slice() {
            ["marks"] => self.marks = Marks::decode(value).map_err(bad)?,
            ["jobs", job] => {
                let record = JobRecord::decode(value).map_err(bad)?;
                if record.number != number(job)? {
                    return Err(format!("holds job {}", record.number));
                }
                self.next_job = self.next_job.max(record.number + 1);
                if !record.idempotency_key.is_empty() {
                    self.keys.insert(record.idempotency_key.clone(), record.number);
                }
                if record::ended(record.state()) {
                    self.ended.insert(record.number, record);
                } else {
                    let number = record.number;
                    self.jobs.entry(number).or_default().record = record;
                }
            }
            ["parts", job, "s", _] => {
                let record = SegmentRecord::decode(value).map_err(bad)?;
                if record.info.is_none() {
                    return Err("has no info".into());
                }
                let job = self.jobs.entry(number(job)?).or_default();
                job.segments.insert(record.index, Segment { record, cut: 0 });
            }
            ["parts", job, "b", _] => {
                let record = BatchRecord::decode(value).map_err(bad)?;
                self.jobs.entry(number(job)?).or_default().batches.insert(record.id, record);
            }
            ["cordons", node] => self.load_cordon(node, value)?,
            // A coordinator that began here would lead half a cluster's jobs.
            [record::MIGRATING_KEY] => {
                return Err("says that jobs are still on their way: run `ingle cluster migrate-store` again".into());
            }
            // Of a later version that lets us read its store: not ours to judge, and nothing of ours touches it.
            _ => self.unknown_records += 1,
        }
        Ok(())
    }

    /// Takes one event.
    pub fn step(&mut self, now: Now, event: Event) -> Step {
        self.now = now;
        let mut step = Step::default();
        let of_a_call = matches!(event, Event::CallGone { .. });
        let pace = self.pace_of(&event);
        match event {
            Event::Submit { reply, spec, idempotency_key, spec_digest, principal } => {
                self.submit(&mut step, reply, *spec, idempotency_key, spec_digest, principal);
            }
            Event::Cancel { reply, job } => self.cancel(&mut step, reply, job),
            Event::Pause { reply, job } => self.pause(&mut step, reply, job),
            Event::Resume { reply, job } => self.resume(&mut step, reply, job),
            Event::ScanProgress { job, scan, entries } => self.scan_progress(&mut step, job, scan, entries),
            Event::ScanSegment { job, scan, info } => self.scan_segment(&mut step, job, scan, *info),
            Event::ScanDone { job, scan, done } => self.scan_done(&mut step, job, scan, *done),
            Event::ScanFailed { job, scan, problem } => self.scan_failed(&mut step, job, scan, &problem),
            Event::NodeAttached(attached) => self.node_attached(&mut step, *attached),
            Event::NodeDetached { node } => self.nodes.detached(&node, now),
            Event::NodeLeft { node } => self.node_left(&mut step, &node),
            Event::Leaving { node, within_ms } => self.node_leaving(&mut step, &node, within_ms),
            Event::Goodbye { node } => self.node_goodbye(&mut step, &node),
            Event::Warmed { node, model, to, result } => self.warmed(&mut step, &node, &model, &to, result),
            Event::Beat { node, incarnation, busy_ms } => self.nodes.beat(&node, &incarnation, busy_ms, now),
            Event::Models { node, models, loaded, reserved } => self.nodes.models(&node, models, loaded, reserved),
            Event::Evicted { node, evictions } => self.nodes.evicted(&node, evictions),
            Event::Stalled { node, stalls } => self.nodes.stalled(&node, stalls),
            Event::Progress { attempt, items, bytes } => {
                if let Some(attempt) = self.attempts.get_mut(&attempt)
                    && let Owner::Batch { job, batch } = attempt.owner
                {
                    // A node's word, but never more than it was given.
                    let most = self.jobs.get(&job).and_then(|job| job.batches.get(&batch));
                    let (count, size) = most.map_or((0, 0), |batch| (batch.count, batch.bytes));
                    attempt.items_done = items.min(count);
                    attempt.seen = true;
                    attempt.bytes_done = bytes.min(size);
                    step.effects.push(Effect::JobChanged { job });
                }
            }
            Event::Complete { node, complete } => self.complete(&mut step, &node, *complete),
            Event::Failed { node, attempt, kind, problem } => self.failed(&mut step, &node, attempt, kind, &problem),
            Event::Published { job, batch, attempt, result } => self.published(&mut step, job, batch, attempt, result),
            Event::Call { call, kind, model, bytes, max_tokens } => {
                self.call(&mut step, call, kind, model, bytes, max_tokens);
            }
            Event::CallEnded { call } => self.call_ended(call),
            Event::CallGone { call } => self.call_gone(&mut step, call),
            Event::Drain { reply, node, deadline_ms, leaves } => {
                self.set_drain(&mut step, reply, &node, Some((deadline_ms, leaves)));
            }
            Event::Uncordon { reply, node } => self.set_drain(&mut step, reply, &node, None),
            Event::Stood { ms } => self.stood(ms),
            Event::Tick => self.tick(&mut step),
        }
        self.settle_lost(&mut step);
        // Before work is handed out: what is called back in this very step is company too.
        if !of_a_call {
            self.note_cancels(&step);
        }
        self.schedule_at(&mut step, pace);
        if !of_a_call {
            self.note_cancels(&step);
        }
        step
    }

    /// Whether an effect is still wanted. Many steps are made durable at once: an attempt that one of them began and another
    /// ended must not reach its node, which it might kill once more after its item was set aside for that.
    #[must_use]
    pub fn wants(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Dispatch { attempt, .. } => self.attempts.contains_key(attempt) && !self.lost.contains_key(attempt),
            // A person may have let it work again since.
            Effect::Leave { node } => self.nodes.get(node).is_some_and(|node| node.draining),
            _ => true,
        }
    }

    /// Records that were loaded and left alone: of kinds that only a later version knows.
    #[must_use]
    pub fn unknown_records(&self) -> usize {
        self.unknown_records
    }

    /// This leader's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn tick(&mut self, step: &mut Step) {
        self.nodes.watch_brake(self.now);
        self.mend_models();
        self.start_scans(step);
        self.watch_nodes(step);
        self.watch_attempts(step);
        self.watch_drains(step);
        self.watch_deadlines(step);
        self.watch_idle(step);
        self.nodes.forget_departed(self.now);
    }

    /// A fresh attempt number; reserves a range durably first.
    fn new_attempt(&mut self, step: &mut Step) -> u64 {
        let number = self.next_attempt;
        self.next_attempt += 1;
        if number > self.marks.attempt {
            self.marks.attempt = number + crate::limits::ATTEMPTS_RESERVED;
            step.put(record::MARKS_KEY.into(), &self.marks);
        }
        number
    }
}
