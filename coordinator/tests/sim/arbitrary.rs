//! `Core::step` with arbitrary events in arbitrary order: it never panics, its counters never drift, a restart loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::event::CallId;
use ingle_coordinator::core::{Attached, Change, Core, Effect, Event, Now, PublishedBatch, ReplyId, Work};
use ingle_coordinator::limits;
use ingle_proto::{Epoch, ErrorCode, NodeId, Problem, v1};
use proptest::prelude::*;

/// An event before its numbers are known: most mean something that was really asked, some nothing.
#[derive(Debug, Clone)]
enum Op {
    Submit {
        kind: u8,
        key: u8,
        digest: u8,
        named: bool,
    },
    Steer {
        what: u8,
        job: u64,
    },
    Segment {
        pick: usize,
        kib: Vec<u32>,
        bucket: u32,
        unchanged: u32,
        deleted: u32,
        skew: u32,
    },
    ScanEnds {
        pick: usize,
        how: u8,
    },
    Attach {
        node: u8,
        start: u8,
        slots: u32,
        models: u8,
        runs: Vec<usize>,
        stranger: u64,
    },
    Node {
        node: u8,
        what: u8,
        start: u8,
    },
    Progress {
        pick: usize,
        items: u32,
        bytes: u64,
    },
    Complete {
        pick: usize,
        wrong_node: bool,
        count: u32,
        split: [u32; 4],
        outputs: u32,
        manifest: bool,
        honest: bool,
        long: Vec<(u32, u32)>,
    },
    Failed {
        pick: usize,
        kind: i32,
        wait: Option<u64>,
    },
    Published {
        pick: usize,
        how: u8,
        conflict: u32,
    },
    Call {
        call: u64,
        what: u8,
    },
    Tick,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let at = any::<usize>;
    prop_oneof![
        2 => (0..3u8, 0..4u8, 0..2u8, any::<bool>())
            .prop_map(|(kind, key, digest, named)| Op::Submit { kind, key, digest, named }),
        1 => (0..3u8, 0..6u64).prop_map(|(what, job)| Op::Steer { what, job }),
        4 => (at(), prop::collection::vec(0..5_000_000u32, 0..30), 0..3u32, 0..3u32, 0..3u32, prop_oneof![9 => Just(0), 1 => 0..9u32])
            .prop_map(|(pick, kib, bucket, unchanged, deleted, skew)| Op::Segment { pick, kib, bucket, unchanged, deleted, skew }),
        4 => (at(), 0..8u8).prop_map(|(pick, how)| Op::ScanEnds { pick, how }),
        4 => (0..4u8, 0..3u8, prop_oneof![0..4u32, Just(u32::MAX)], 0..8u8, prop::collection::vec(at(), 0..4), 0..5000u64)
            .prop_map(|(node, start, slots, models, runs, stranger)| Op::Attach { node, start, slots, models, runs, stranger }),
        5 => (0..5u8, 0..16u8, 0..3u8).prop_map(|(node, what, start)| Op::Node { node, what, start }),
        1 => (at(), any::<u32>(), any::<u64>()).prop_map(|(pick, items, bytes)| Op::Progress { pick, items, bytes }),
        12 => (at(), prop::bool::weighted(0.1), prop_oneof![8 => Just(u32::MAX), 2 => 0..9u32], any::<[u32; 4]>(), prop_oneof![0..3u32, Just(u32::MAX)],
            prop::bool::weighted(0.95), prop::bool::weighted(0.8), prop::collection::vec((0..9u32, prop_oneof![8 => 2..40u32, 1 => any::<u32>()]), 0..3))
            .prop_map(|(pick, wrong_node, count, split, outputs, manifest, honest, long)| Op::Complete { pick, wrong_node, count, split, outputs, manifest, honest, long }),
        4 => (at(), -1..9i32, prop::option::of(any::<u64>())).prop_map(|(pick, kind, wait)| Op::Failed { pick, kind, wait }),
        8 => (at(), 0..8u8, prop_oneof![3 => Just(0), 1 => any::<u32>()]).prop_map(|(pick, how, conflict)| Op::Published { pick, how, conflict }),
        2 => (0..6u64, 0..4u8).prop_map(|(call, what)| Op::Call { call, what }),
        4 => Just(Op::Tick),
        1 => Just(Op::Restart),
    ]
}

/// A batch on its way: its attempt, where, how many items, and the first entry if they are documents that may be long.
type Sent = (u64, NodeId, u32, Option<u32>);

struct Rig {
    core: Core,
    now: Now,
    epoch: u64,
    live: BTreeMap<String, Vec<u8>>,
    scans: Vec<(u64, u64)>,
    dispatched: Vec<Sent>,
    publishing: Vec<(u64, u64, u64)>,
    numbers: BTreeSet<u64>,
}

fn pick<T: Clone>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()].clone())
}

fn blob(tag: u8) -> v1::BlobRef {
    v1::BlobRef { digest: vec![tag; 32].into(), size: 9 }
}

fn node(number: u8) -> NodeId {
    NodeId::parse(&format!("n-{number}")).unwrap()
}

fn problem(retryable: bool) -> Problem {
    Problem::new(if retryable { ErrorCode::StorageUnavailable } else { ErrorCode::StorageDenied }, "as it happens")
}

fn models(which: u8) -> Vec<v1::ModelInfo> {
    let info = |name: &str, kind: v1::JobKind, bit: u8| {
        let digest = if which & 4 != 0 && bit == 1 { Vec::new() } else { vec![bit; 32] };
        (which & bit != 0).then(|| v1::ModelInfo {
            model: Some(v1::ModelRef { name: name.into(), digest: digest.into() }),
            kind: kind.into(),
            parameters: 1 << 24,
            ..Default::default()
        })
    };
    let all = [info("e", v1::JobKind::Embed, 1), info("g", v1::JobKind::Generate, 2), info("o", v1::JobKind::Ocr, 2)];
    all.into_iter().flatten().collect()
}

/// What a node may hold in memory.
fn loaded() -> Vec<v1::LoadedModel> {
    let model = v1::ModelRef { name: "g".into(), digest: vec![2; 32].into() };
    vec![v1::LoadedModel { model: Some(model), slots: 2, ..Default::default() }]
}

impl Rig {
    fn new() -> Self {
        let now = Now { mono_ms: 5, unix_ms: 1_700_000_000_000 };
        let core = Core::load(Epoch { generation: 1, revision: 1 }, now, []).unwrap();
        Self {
            core,
            now,
            epoch: 1,
            live: BTreeMap::new(),
            scans: vec![(9, 9)],
            dispatched: Vec::new(),
            publishing: vec![(1, 1, 1)],
            numbers: BTreeSet::new(),
        }
    }

    fn event(&self, op: Op) -> Option<Event> {
        let attempt = |at: usize| pick(&self.dispatched, at).unwrap_or((at as u64 % 2_000, node(0), 1, None));
        Some(match op {
            Op::Submit { kind, key, digest, named } => {
                let object = v1::ObjectRef { export: "docs".into(), path: b"x".to_vec().into() };
                let mut spec = v1::JobSpec { output: Some(object), ..Default::default() };
                let (kind, model) = match kind {
                    0 => (v1::JobKind::Embed, "e"),
                    1 => (v1::JobKind::Generate, "g"),
                    _ => (v1::JobKind::Ocr, "o"),
                };
                spec.set_kind(kind);
                if named {
                    spec.model = model.into();
                }
                if digest.is_multiple_of(2) {
                    spec.watch = Some(v1::WatchOptions { interval_s: 5, settle_s: Some(0) });
                }
                Event::Submit {
                    reply: ReplyId(1),
                    spec: Box::new(spec),
                    idempotency_key: if key == 0 { String::new() } else { format!("k{key}") },
                    spec_digest: vec![digest],
                    principal: format!("p{digest}"),
                }
            }
            Op::Steer { what: 0, job } => Event::Cancel { reply: ReplyId(2), job },
            Op::Steer { what: 1, job } => Event::Pause { reply: ReplyId(2), job },
            Op::Steer { job, .. } => Event::Resume { reply: ReplyId(2), job },
            Op::Segment { pick: at, kib, bucket, unchanged, deleted, skew } => {
                let (job, scan) = pick(&self.scans, at)?;
                let to_do = kib.len() as u32;
                let info = v1::SegmentInfo {
                    blob: Some(blob(1)),
                    bucket,
                    entries: to_do + unchanged + deleted + skew,
                    to_do,
                    unchanged,
                    deleted,
                    to_do_bytes: kib.iter().map(|k| u64::from(*k) << 10).sum(),
                    size_kib: kib,
                    ..Default::default()
                };
                Event::ScanSegment { job, scan, info: Box::new(info) }
            }
            Op::ScanEnds { pick: at, how } => {
                let (job, scan) = pick(&self.scans, at)?;
                match how {
                    0 => Event::ScanFailed { job, scan, problem: problem(true) },
                    1 => Event::ScanFailed { job, scan, problem: problem(false) },
                    2 => Event::ScanProgress { job, scan, entries: u64::MAX },
                    _ => {
                        // Standing jobs carry what their segments don't have.
                        let n = u64::from(how);
                        let done = v1::ScanDone {
                            buckets: u32::from(how) - 3,
                            unchanged: n,
                            held: n / 2,
                            documents: 3 * n,
                            ..Default::default()
                        };
                        Event::ScanDone { job, scan, done: Box::new(done) }
                    }
                }
            }
            Op::Attach { node: id, start, slots, models: which, runs, stranger } => {
                Event::NodeAttached(Box::new(Attached {
                    node: node(id),
                    incarnation: format!("i{start}"),
                    name: String::new(),
                    address: String::new(),
                    version: String::new(),
                    capacity: v1::Capacity {
                        slots,
                        compute_f32: f64::NAN,
                        memory_bandwidth: -1.0,
                        ..Default::default()
                    },
                    models: models(which),
                    loaded: if which & 2 == 0 { Vec::new() } else { loaded() },
                    running: runs.into_iter().map(|at| attempt(at).0).chain([stranger]).collect(),
                    adopted: Vec::new(),
                }))
            }
            Op::Node { node: id, what, start } => match what {
                0 => Event::NodeDetached { node: node(id) },
                1 => Event::NodeLeft { node: node(id) },
                2 => Event::Drain {
                    reply: ReplyId(3),
                    node: node(id),
                    deadline_ms: [0, -1, self.now.unix_ms + 5_000][usize::from(start)],
                    leaves: false,
                },
                3 => Event::Uncordon { reply: ReplyId(3), node: node(id) },
                4 => Event::Models {
                    node: node(id),
                    models: models(start + 1),
                    loaded: if start == 0 { Vec::new() } else { loaded() },
                    reserved: u64::MAX,
                },
                5 => Event::Drain {
                    reply: ReplyId(3),
                    node: node(id),
                    deadline_ms: [0, -1, self.now.unix_ms + 5_000][usize::from(start)],
                    leaves: true,
                },
                6 => Event::Leaving { node: node(id), within_ms: [0, 20_000, u64::MAX][usize::from(start)] },
                7 => Event::Goodbye { node: node(id) },
                8 => Event::Warmed {
                    node: node(id),
                    model: "g".into(),
                    to: node((id + 1 + start) % 4),
                    result: if start == 0 { Err(problem(true)) } else { Ok(()) },
                },
                9 => Event::Stood { ms: [0, 20_000, u64::MAX][usize::from(start)] },
                10 => {
                    let stalls = (start == 0).then(|| ("g".to_owned(), u64::MAX));
                    Event::Stalled { node: node(id), stalls: stalls.into_iter().collect() }
                }
                _ => Event::Beat { node: node(id), incarnation: format!("i{start}"), busy_ms: u64::MAX },
            },
            Op::Progress { pick: at, items, bytes } => Event::Progress { attempt: attempt(at).0, items, bytes },
            Op::Complete { pick: at, wrong_node, count, split, outputs, manifest, honest, long } => {
                let (number, at_node, assigned, first) = attempt(at);
                let mut complete = v1::Complete {
                    token: Some(v1::AttemptToken { attempt: number, ..Default::default() }),
                    manifest: manifest.then(|| blob(2)),
                    count,
                    busy_us: u64::from(split[3]),
                    outputs,
                    bytes: u64::from(split[2]),
                    incomplete: split[3] % 3,
                    ..Default::default()
                };
                if honest {
                    complete.count = count.min(assigned);
                    let mut left = complete.count;
                    for (at, pages) in first.into_iter().flat_map(|first| long.iter().map(move |l| (first + l.0, l.1)))
                    {
                        let inside = first.is_some_and(|first| at < first + complete.count);
                        let known = complete.splits.iter().any(|s| s.index == at) || !(2..=10_000).contains(&pages);
                        if inside && !known && left > 0 {
                            complete.splits.push(v1::SplitDocument { index: at, pages });
                            left -= 1;
                        }
                    }
                    complete.failed = split[0] % (left + 1);
                    complete.skipped = split[1] % (left - complete.failed + 1);
                    complete.unchanged = split[2] % (left - complete.failed - complete.skipped + 1);
                    complete.committed = left - complete.failed - complete.skipped - complete.unchanged;
                } else {
                    [complete.failed, complete.skipped, complete.unchanged, complete.committed] = split;
                    complete.splits =
                        long.into_iter().map(|(index, pages)| v1::SplitDocument { index, pages }).collect();
                }
                let says = if wrong_node { node(4) } else { at_node };
                Event::Complete { node: says, complete: Box::new(complete) }
            }
            Op::Failed { pick: at, kind, wait } => {
                let (number, node, ..) = attempt(at);
                let mut problem = problem(true);
                problem.retry_after = wait.map(std::time::Duration::from_millis);
                Event::Failed {
                    node,
                    attempt: number,
                    kind: v1::FailureKind::try_from(kind).unwrap_or_default(),
                    problem,
                }
            }
            Op::Published { pick: at, how, conflict } => {
                let (job, batch, attempt) = pick(&self.publishing, at)?;
                let result = match how {
                    0 => Err(problem(false)),
                    1 => Err(problem(true)),
                    2 => Err(Problem::new(ErrorCode::ObjectNotFound, "swept")),
                    _ => Ok(PublishedBatch { outcomes: blob(3), conflict }),
                };
                Event::Published { job, batch, attempt, result }
            }
            Op::Call { call, what } => match what {
                0 => Event::CallEnded { call: CallId(call) },
                1 => Event::CallGone { call: CallId(call) },
                _ => Event::Call {
                    call: CallId(call),
                    kind: v1::JobKind::Generate,
                    model: String::new(),
                    bytes: u64::MAX,
                    max_tokens: u32::MAX,
                },
            },
            Op::Tick => Event::Tick,
            Op::Restart => return None,
        })
    }

    fn commit(&mut self, changes: Vec<Change>) {
        ingle_coordinator::store::check(&changes).expect("a step fits in a commit");
        for change in changes {
            match change {
                Change::Put { key, value } => drop(self.live.insert(key, value)),
                Change::Delete { key } => drop(self.live.remove(&key)),
                Change::Archive { prefix } | Change::Clear { prefix } => {
                    self.live.retain(|key, _| !key.starts_with(&prefix))
                }
            }
        }
    }

    fn load(&self, epoch: u64) -> Core {
        let records = self.live.iter().map(|(key, value)| (key.clone(), value.clone()));
        Core::load(Epoch { generation: 1, revision: epoch }, self.now, records)
            .expect("what was committed can be loaded")
    }

    fn same_after_a_restart(&self) {
        let fresh = self.load(self.epoch + 1);
        assert_eq!(fresh.check(), Vec::<String>::new());
        for job in self.core.list_jobs(u64::MAX, usize::MAX, &|_| true) {
            let number = super::clients::number_of(&job.job_id);
            let again = fresh.job(number).expect("jobs survive");
            assert_eq!(again.state, job.state);
            let plain = |counts: Option<v1::ItemCounts>| {
                let counts = counts.unwrap_or_default();
                let listing =
                    job.state() == v1::JobState::Listing || self.core.parts(number).is_some() && job.started_ms == 0;
                v1::ItemCounts { bytes_done: 0, total: if listing { 0 } else { counts.total }, ..counts }
            };
            assert_eq!(plain(again.counts), plain(job.counts), "{} before and after a restart", job.job_id);
        }
    }

    fn run(&mut self, after: u64, op: Op) {
        self.now.mono_ms += after;
        self.now.unix_ms += after as i64;
        let Some(event) = self.event(op.clone()) else {
            if matches!(op, Op::Restart) {
                self.epoch += 1;
                self.core = self.load(self.epoch);
                self.scans.clear();
            }
            return;
        };
        let step = self.core.step(self.now, event);
        assert_eq!(self.core.check(), Vec::<String>::new(), "after {op:?}");
        assert!(step.changes.len() <= limits::CHANGES_PER_COMMIT, "{} changes", step.changes.len());
        self.commit(step.changes);
        for effect in step.effects {
            match effect {
                Effect::Scan { job, scan, .. } => self.scans.push((job, scan)),
                Effect::Dispatch { node, attempt, work, .. } => {
                    assert!(self.numbers.insert(attempt), "attempt {attempt} twice");
                    let (count, first) = match &work {
                        Work::Batch { batch, .. } if batch.document.is_some() => (1, None),
                        Work::Batch { batch, .. } => match &batch.pages {
                            Some(range) => (range.count, None),
                            None => (batch.count, (!batch.join).then_some(batch.first)),
                        },
                        Work::Call { .. } => (0, None),
                    };
                    self.dispatched.push((attempt, node, count, first));
                }
                Effect::Publish { job, batch, request } => self.publishing.push((job, batch, request.attempt)),
                _ => {}
            }
        }
        // Queries look at it too.
        for job in self.core.list_jobs(u64::MAX, 4, &|_| true) {
            let counts = job.counts.unwrap();
            let settled = counts.published
                + counts.unchanged
                + counts.skipped
                + counts.failed
                + counts.quarantined
                + counts.conflict
                + counts.committed
                + counts.running;
            assert!(job.state() == v1::JobState::Listing || settled <= counts.total || job.started_ms == 0, "{job:?}");
            assert!(self.core.explain(super::clients::number_of(&job.job_id)).is_some());
        }
        let _ = (self.core.nodes(), self.core.models(), self.core.status(), self.core.place_model("e"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_event_breaks_the_core(ops in prop::collection::vec((prop_oneof![3 => 0..50u64, 1 => 0..15_000u64], op()), 1..120)) {
        let mut rig = Rig::new();
        // Some nodes and jobs to begin with, so that most events meet something.
        for (id, which) in [(0, 3), (1, 3)] {
            rig.run(1, Op::Attach { node: id, start: 0, slots: 2, models: which, runs: vec![], stranger: 0 });
        }
        for kind in [0, 1, 2] {
            rig.run(1, Op::Submit { kind, key: 0, digest: 0, named: true });
        }
        for at in [1, 2, 3] {
            rig.run(1, Op::Segment { pick: at, kib: vec![1; 20], bucket: 0, unchanged: 1, deleted: 1, skew: 0 });
            rig.run(1, Op::ScanEnds { pick: at, how: 4 });
        }
        for (after, op) in ops {
            rig.run(after, op);
            rig.same_after_a_restart();
        }
    }
}
