//! What a decision costs the core with thousands of nodes and a million queued documents: time of each step, and memory.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use ingle_coordinator::core::{Attached, Core, Effect, Event, Now, PublishedBatch, ReplyId, Work};
use ingle_coordinator::limits;
use ingle_proto::{Epoch, NodeId, v1};

/// Nodes, jobs, segments of each, documents of each segment: two thousand, and a million.
pub(crate) const NODES: u64 = 2_000;
const JOBS: u64 = 10;
const SEGMENTS: u32 = 100;
const PER_SEGMENT: u32 = 1_000;
/// Virtual time that is looked at after everything is filled, milliseconds.
const FOR_MS: u64 = 40_000;
/// Between two beats of a node, and until a result is visible, milliseconds.
const BEAT_MS: u64 = 500;
const PUBLISH_MS: u64 = 20;

/// What one run of it found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) events: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// Ticks, which look at everything and are in the figures above too.
    pub(crate) tick_p99_us: f64,
    /// Of the process, beyond what it had before.
    pub(crate) memory_mib: f64,
    pub(crate) queued: u64,
    pub(crate) dispatched: u64,
}

struct Run {
    core: Core,
    now: u64,
    next: u64,
    coming: BTreeMap<(u64, u64), Event>,
    rng: fastrand::Rng,
    dispatched: u64,
    /// Microseconds of each step, and of those that were ticks.
    steps: Vec<f64>,
    ticks: Vec<f64>,
}

fn node(number: u64) -> anyhow::Result<NodeId> {
    NodeId::parse(&format!("n-{number:04}")).map_err(|problem| anyhow::anyhow!("{problem}"))
}

fn blob(tag: u8) -> v1::BlobRef {
    v1::BlobRef { digest: vec![tag; 32].into(), size: 1 }
}

/// One run.
///
/// # Errors
/// The core refuses what it should take, or `/proc` says nothing of memory.
pub(crate) fn run(seed: u64) -> anyhow::Result<Found> {
    let before = resident_mib()?;
    let now = Now { mono_ms: 1_000, unix_ms: 1_700_000_000_000 };
    let core = Core::load(Epoch { generation: 1, revision: 1 }, now, []).map_err(anyhow::Error::msg)?;
    let mut run = Run {
        core,
        now: 0,
        next: 0,
        coming: BTreeMap::new(),
        rng: fastrand::Rng::with_seed(seed),
        dispatched: 0,
        steps: Vec::new(),
        ticks: Vec::new(),
    };
    run.fill()?;
    let queued = run.core.status().items_queued;
    run.steps.clear();
    run.ticks.clear();
    let until = run.now + FOR_MS;
    while let Some(((at, _), event)) = run.coming.pop_first()
        && at < until
    {
        run.now = at;
        match &event {
            Event::Beat { .. } => run.later(BEAT_MS, event.clone()),
            Event::Tick => run.later(limits::TICK_MS, Event::Tick),
            _ => {}
        }
        run.step(event)?;
    }
    let wrong = run.core.check();
    anyhow::ensure!(wrong.is_empty(), "the core's counters drifted: {wrong:?}");
    let memory_mib = resident_mib()? - before;
    let p = |samples: &[f64], share: f64| super::quantile(samples, share);
    Ok(Found {
        events: run.steps.len(),
        p50_us: p(&run.steps, 0.5),
        p99_us: p(&run.steps, 0.99),
        max_us: p(&run.steps, 1.0),
        tick_p99_us: p(&run.ticks, 0.99),
        memory_mib,
        queued,
        dispatched: run.dispatched,
    })
}

impl Run {
    /// Nodes that are all busy, and jobs of a million documents.
    fn fill(&mut self) -> anyhow::Result<()> {
        for number in 0..NODES {
            let id = node(number)?;
            self.step(Event::NodeAttached(Box::new(attached(id.clone(), number))))?;
            let offset = self.rng.u64(..BEAT_MS);
            self.later(offset, Event::Beat { node: id, incarnation: "first".into(), busy_ms: 1 });
        }
        for job in 1..=JOBS {
            let place = v1::ObjectRef { export: "docs".into(), path: format!("out-{job}").into_bytes().into() };
            let spec = v1::JobSpec { kind: v1::JobKind::Generate.into(), output: Some(place), ..Default::default() };
            self.step(Event::Submit {
                reply: ReplyId(job),
                spec: Box::new(spec),
                idempotency_key: String::new(),
                spec_digest: vec![1],
                principal: format!("person-{job}"),
            })?;
            for _ in 0..SEGMENTS {
                let size_kib: Vec<u32> = (0..PER_SEGMENT).map(|_| self.rng.u32(2..200)).collect();
                let info = v1::SegmentInfo {
                    blob: Some(blob(1)),
                    entries: PER_SEGMENT,
                    to_do: PER_SEGMENT,
                    to_do_bytes: size_kib.iter().map(|kib| u64::from(*kib) << 10).sum(),
                    size_kib,
                    ..Default::default()
                };
                self.step(Event::ScanSegment { job, scan: 1, info: Box::new(info) })?;
            }
            let done = v1::ScanDone { buckets: 1, ..Default::default() };
            self.step(Event::ScanDone { job, scan: 1, done: Box::new(done) })?;
        }
        // Each commit takes so many dispatches: ticks until every place is taken.
        let places = NODES * limits::ATTEMPTS_PER_SLOT as u64;
        for _ in 0..places {
            if self.dispatched >= places {
                break;
            }
            self.step(Event::Tick)?;
        }
        anyhow::ensure!(self.dispatched >= places, "only {} of {places} places were taken", self.dispatched);
        self.later(limits::TICK_MS, Event::Tick);
        Ok(())
    }

    fn later(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.coming.insert((self.now + ms, self.next), event);
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let now = Now { mono_ms: 1_000 + self.now, unix_ms: 1_700_000_000_000 + i64::try_from(self.now)? };
        let tick = matches!(event, Event::Tick);
        let begun = Instant::now();
        let step = self.core.step(now, event);
        let took_us = begun.elapsed().as_secs_f64() * 1e6;
        self.steps.push(took_us);
        if tick {
            self.ticks.push(took_us);
        }
        for effect in step.effects {
            match effect {
                Effect::Dispatch { node, attempt, work: Work::Batch { batch, .. }, .. } => {
                    self.dispatched += 1;
                    // Some documents take a fifth of a second here; nodes are half as fast, or twice.
                    let pace_ms = 100 + 300 * (u64::from(node.as_str().as_bytes()[5]) % 2);
                    let took_ms = u64::from(batch.count) * pace_ms;
                    let took_ms = took_ms / 2 + self.rng.u64(..=took_ms);
                    let complete = v1::Complete {
                        token: Some(v1::AttemptToken { attempt, ..Default::default() }),
                        manifest: Some(blob(2)),
                        count: batch.count,
                        committed: batch.count,
                        outputs: batch.count,
                        busy_us: took_ms * 1_000,
                        ..Default::default()
                    };
                    self.later(took_ms / 2, Event::Progress { attempt, items: batch.count / 2, bytes: 1 });
                    self.later(took_ms, Event::Complete { node, complete: Box::new(complete) });
                }
                Effect::Publish { job, batch, request } => {
                    let result = Ok(PublishedBatch { outcomes: blob(3), conflict: 0 });
                    let attempt = request.attempt;
                    self.later(PUBLISH_MS, Event::Published { job, batch, attempt, result });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn attached(id: NodeId, number: u64) -> Attached {
    let model = v1::ModelRef { name: "words".into(), digest: vec![7; 32].into() };
    let info = v1::ModelInfo {
        model: Some(model),
        kind: v1::JobKind::Generate.into(),
        parameters: 3_000_000_000,
        weight_bytes: 2_000_000_000,
        bytes_per_token: 2_000_000_000,
        ..Default::default()
    };
    Attached {
        node: id,
        incarnation: "first".into(),
        name: format!("machine {number}"),
        address: format!("10.0.{}.{}:7710", number / 250, number % 250),
        version: "0".into(),
        capacity: v1::Capacity {
            slots: 1,
            compute_f32: 1e11 * (1 + number % 4) as f64,
            memory_bandwidth: 1e10 * (1 + number % 8) as f64,
            ..Default::default()
        },
        models: vec![info],
        loaded: Vec::new(),
        running: Vec::new(),
        adopted: Vec::new(),
    }
}

/// Resident memory of this process.
fn resident_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc says nothing of memory")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
