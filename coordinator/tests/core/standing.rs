//! Standing jobs: pass after pass, over restarts, failures and people, and never more kept than one pass needs.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::{Effect, Event, PublishedBatch, ReplyId};
use ingle_proto::v1::{self, JobState};
use ingle_proto::{ErrorCode, Problem};

use super::{JOB, Rig, Sent, blob, node, problem, scan_done, sent};

const INTERVAL_MS: u64 = 30_000;

/// What a walk was asked for.
fn asked(effects: &[Effect]) -> Option<(u64, v1::ScanRequest)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Scan { scan, request, .. } => Some((*scan, (**request).clone())),
        _ => None,
    })
}

fn publishes(effects: &[Effect]) -> Vec<(u64, u64)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Publish { batch, request, .. } => Some((*batch, request.attempt)),
        _ => None,
    });
    asked.collect()
}

/// Walks that are told to stop.
fn stopped(effects: &[Effect]) -> Vec<u64> {
    let stopped = effects.iter().filter_map(|effect| match effect {
        Effect::StopScan { job: JOB, scan } => Some(*scan),
        _ => None,
    });
    stopped.collect()
}

/// A piece of a listing that contradicts itself.
fn nonsense(scan: u64) -> Event {
    let info = v1::SegmentInfo { blob: Some(blob(1)), entries: 1, to_do: 2, ..Default::default() };
    Event::ScanSegment { job: JOB, scan, info: Box::new(info) }
}

fn to_do(count: u32) -> Event {
    let info = v1::SegmentInfo {
        blob: Some(blob(1)),
        entries: count,
        to_do: count,
        to_do_bytes: u64::from(count) << 10,
        size_kib: vec![1; count as usize],
        ..Default::default()
    };
    Event::ScanSegment { job: JOB, scan: 0, info: Box::new(info) }
}

impl Rig {
    fn watch(&mut self) -> Vec<Effect> {
        let object = v1::ObjectRef { export: "docs".into(), path: b"x".to_vec().into() };
        let spec = v1::JobSpec {
            kind: v1::JobKind::Generate.into(),
            output: Some(object),
            force: true,
            watch: Some(v1::WatchOptions { interval_s: 30, settle_s: Some(7) }),
            ..Default::default()
        };
        self.step(Event::Submit {
            reply: ReplyId(1),
            spec: Box::new(spec),
            idempotency_key: "k".into(),
            spec_digest: vec![1],
            principal: "p".into(),
        })
    }

    /// A look's answer: so many documents to do, and the end.
    fn looked(&mut self, scan: u64, count: u32, done: v1::ScanDone) -> Vec<Sent> {
        let mut work = Vec::new();
        if count > 0 {
            let Event::ScanSegment { info, .. } = to_do(count) else { unreachable!() };
            work.extend(sent(&self.step(Event::ScanSegment { job: JOB, scan, info })));
        }
        work.extend(sent(&self.step(Event::ScanDone { job: JOB, scan, done: Box::new(done) })));
        work
    }

    /// Does and publishes everything that is dispatched, batch after batch.
    fn work_off(&mut self, mut work: Vec<Sent>) {
        while let Some(batch) = work.pop() {
            let effects = self.complete(&batch, &[]);
            work.extend(sent(&effects));
            for (number, attempt) in publishes(&effects) {
                let result = Ok(PublishedBatch { outcomes: blob(3), conflict: 0 });
                work.extend(sent(&self.step(Event::Published { job: JOB, batch: number, attempt, result })));
            }
        }
    }

    fn parts(&self) -> usize {
        self.live.keys().filter(|key| key.starts_with("parts/")).count()
    }
}

fn quiet(documents: u64) -> v1::ScanDone {
    v1::ScanDone { buckets: 1, unchanged: documents, documents, directories: 4, ..Default::default() }
}

#[test]
fn a_standing_job_looks_again_and_does_only_what_is_told() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, request) = asked(&rig.watch()).expect("the first look");
    assert_eq!((request.pass, request.settle_s, request.force), (1, 7, true));
    let work = rig.looked(scan, 3, v1::ScanDone { buckets: 1, documents: 4, waiting: 1, ..Default::default() });
    assert_eq!(rig.view().state(), JobState::Running);
    rig.work_off(work);
    let job = rig.view();
    let standing = job.standing.unwrap();
    assert_eq!((job.state(), standing.passes, standing.waiting), (JobState::Standing, 1, 1));
    assert_eq!(standing.next_ms, rig.now.unix_ms + INTERVAL_MS as i64);
    assert_eq!((standing.done.unwrap().published, job.counts.unwrap().published), (3, 3));
    // Not before its time.
    assert_eq!(asked(&rig.pass(INTERVAL_MS - 1_000, &[1])), None);
    let (scan, request) = asked(&rig.pass(1_000, &[1])).expect("the next look");
    assert_eq!((request.pass, request.force), (2, false), "what is forced is forced once");
    assert_eq!(rig.view().standing.unwrap().next_ms, 0, "it looks now");
    // The first quiet look is news, the ones after it are not.
    rig.looked(scan, 0, quiet(4));
    let before = rig.live.clone();
    for _ in 0..3 {
        let (scan, request) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
        assert_eq!(request.pass, 2, "a look without work is no pass");
        rig.looked(scan, 0, quiet(4));
    }
    assert_eq!(rig.live, before, "a look that finds nothing commits nothing");
    let job = rig.view();
    assert_eq!((job.state(), job.counts.unwrap().published), (JobState::Standing, 3), "of the pass that had work");
    assert_eq!(job.standing.unwrap().looked_ms, rig.now.unix_ms);
    // One changed.
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).unwrap();
    let done = v1::ScanDone { unchanged: 3, documents: 4, held: 1, ..quiet(0) };
    let work = rig.looked(scan, 1, done);
    let counts = rig.view().counts.unwrap();
    assert_eq!((counts.total, counts.unchanged, counts.held), (5, 3, 1));
    rig.work_off(work);
    let standing = rig.view().standing.unwrap();
    assert_eq!((standing.passes, standing.done.unwrap().published), (2, 4));
}

#[test]
fn a_restart_goes_on_where_the_job_stood() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let work = rig.looked(scan, 2, quiet(0));
    rig.work_off(work);
    // Between passes: it looks at once, for the pass that is next.
    rig.restart();
    assert_eq!((rig.view().state(), rig.view().counts.unwrap().published), (JobState::Standing, 2));
    rig.attach(1, &[]);
    let (scan, request) = asked(&rig.pass(250, &[1])).expect("a look");
    assert_eq!(request.pass, 2);
    // While the segments of a pass come in: the same pass is listed again.
    let Event::ScanSegment { info, .. } = to_do(3) else { unreachable!() };
    rig.step(Event::ScanSegment { job: JOB, scan, info });
    assert_eq!(rig.view().state(), JobState::Listing);
    rig.restart();
    rig.attach(1, &[]);
    let (scan, request) = asked(&rig.pass(250, &[1])).expect("a walk");
    assert_eq!(request.pass, 2);
    // While it is worked on: what is left of it goes on, and nothing is listed.
    rig.looked(scan, 3, quiet(2));
    rig.restart();
    rig.attach(1, &[]);
    let view = rig.view();
    assert_eq!((view.state(), view.counts.unwrap().total, view.counts.unwrap().unchanged), (JobState::Running, 5, 2));
    assert_eq!(asked(&rig.pass(INTERVAL_MS * 2, &[1])), None);
    let batches = rig.batches();
    assert!(!batches.is_empty());
}

#[test]
fn people_steer_a_standing_job() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let work = rig.looked(scan, 1, quiet(0));
    rig.work_off(work);
    rig.step(Event::Pause { reply: ReplyId(2), job: JOB });
    assert_eq!(rig.view().state(), JobState::Paused);
    assert_eq!(asked(&rig.pass(INTERVAL_MS * 3, &[1])), None, "nobody looks for a paused job");
    rig.restart();
    rig.attach(1, &[]);
    assert_eq!((rig.view().state(), asked(&rig.pass(1_000, &[1]))), (JobState::Paused, None));
    rig.step(Event::Resume { reply: ReplyId(2), job: JOB });
    assert_eq!(rig.view().state(), JobState::Standing);
    let (scan, _) = asked(&rig.pass(250, &[1])).expect("it looks at once");
    // Paused while it looks: the pass begins, and nothing of it runs.
    rig.step(Event::Pause { reply: ReplyId(2), job: JOB });
    assert!(rig.looked(scan, 2, quiet(1)).is_empty());
    assert_eq!(rig.view().state(), JobState::Paused);
    let resumed = rig.step(Event::Resume { reply: ReplyId(2), job: JOB });
    rig.work_off(sent(&resumed));
    assert_eq!(rig.view().state(), JobState::Standing);
    // The same key names the same job, as long as it stands.
    let again = rig.watch();
    assert!(again.iter().any(|effect| matches!(
        effect,
        Effect::Reply { answer: Ok(ingle_coordinator::core::Answer::Job(_, true)), .. }
    )));
    rig.step(Event::Cancel { reply: ReplyId(2), job: JOB });
    let job = rig.view();
    assert_eq!((job.state(), job.code.as_str()), (JobState::Cancelled, "CANCELLED"));
    assert_eq!(job.standing.unwrap().done.unwrap().published, 3, "what it did is still told");
    assert_eq!((asked(&rig.pass(INTERVAL_MS * 2, &[1])), rig.parts()), (None, 0));
}

#[test]
fn a_folder_that_never_was_fails_and_one_that_was_is_waited_for() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    rig.step(Event::ScanFailed { job: JOB, scan, problem: problem(ErrorCode::ObjectNotFound) });
    assert_eq!(rig.view().state(), JobState::Failed, "a mistake is told at once");

    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let work = rig.looked(scan, 2, quiet(0));
    rig.work_off(work);
    let parts = rig.parts();
    for code in [ErrorCode::DocumentsVanished, ErrorCode::StorageUnavailable, ErrorCode::ObjectNotFound] {
        let (scan, _) = asked(&rig.pass(INTERVAL_MS * 2, &[1])).expect("it looks again");
        rig.step(Event::ScanFailed { job: JOB, scan, problem: problem(code) });
        let job = rig.view();
        assert_eq!((job.state(), job.code.as_str()), (JobState::Standing, code.as_str()));
        assert!(job.reason.contains("as the test says") && job.reason.contains("looks again"), "{}", job.reason);
        assert_eq!(rig.parts(), parts, "what the last pass did is still to be seen");
    }
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
    assert!(rig.view().reason.contains("looks again"), "told until it is over");
    rig.looked(scan, 0, quiet(2));
    assert_eq!((rig.view().reason.as_str(), rig.view().code.as_str()), ("", ""));
}

#[test]
fn a_pass_that_can_not_be_done_is_listed_again() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let work = rig.looked(scan, 4, quiet(0));
    // The template, the place, the listing: something that no batch can do without.
    let effects = rig.fail(&work[0], v1::FailureKind::Input, ErrorCode::ExportReadOnly);
    assert_eq!(sent(&effects).len(), 0);
    let job = rig.view();
    assert_eq!((job.state(), job.code.as_str()), (JobState::Standing, "EXPORT_READ_ONLY"));
    assert!(job.reason.contains("next look"), "{}", job.reason);
    assert_eq!(rig.parts(), 0);
    rig.restart();
    assert_eq!(rig.view().code, "EXPORT_READ_ONLY", "also to a new leader");
    rig.attach(1, &[]);
    let (scan, request) = asked(&rig.pass(250, &[1])).expect("a look");
    assert_eq!(request.pass, 1, "the same pass");
    // The results of an attempt that goes on nobody waits for any more.
    rig.complete(&work[0], &[]);
    let work = rig.looked(scan, 4, quiet(0));
    rig.work_off(work);
    let job = rig.view();
    assert_eq!((job.state(), job.counts.unwrap().published, job.reason.as_str()), (JobState::Standing, 4, ""));
    assert_eq!(job.standing.unwrap().passes, 1);
}

#[test]
fn a_first_pass_that_failed_is_no_folder_that_never_was() {
    for (code, restarted) in [(ErrorCode::ObjectNotFound, false), (ErrorCode::DocumentsVanished, true)] {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        let (scan, _) = asked(&rig.watch()).unwrap();
        let work = rig.looked(scan, 4, quiet(0));
        rig.fail(&work[0], v1::FailureKind::Input, ErrorCode::ExportReadOnly);
        if restarted {
            rig.restart();
            rig.attach(1, &[]);
        }
        let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("the next look");
        let Event::ScanSegment { info, .. } = to_do(2) else { unreachable!() };
        rig.step(Event::ScanSegment { job: JOB, scan, info });
        assert_eq!(rig.view().state(), JobState::Listing);
        rig.step(Event::ScanFailed { job: JOB, scan, problem: problem(code) });
        let job = rig.view();
        assert_eq!((job.state(), job.code.as_str()), (JobState::Standing, code.as_str()), "{job:?}");
    }
}

#[test]
fn a_pass_that_fails_again_and_again_is_tried_ever_more_rarely() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (mut scan, _) = asked(&rig.watch()).unwrap();
    let fails = |rig: &mut Rig, scan| {
        let work = rig.looked(scan, 4, quiet(0));
        rig.fail(&work[0], v1::FailureKind::Input, ErrorCode::ExportReadOnly);
        let job = rig.view();
        assert_eq!(job.state(), JobState::Standing, "{job:?}");
        u64::try_from(job.standing.unwrap().next_ms - rig.now.unix_ms).unwrap()
    };
    let mut waits = Vec::new();
    for turn in 0..9 {
        let wait_ms = fails(&mut rig, scan);
        waits.push(wait_ms / 1_000);
        let looks = if turn == 4 {
            // Another leader looks at once, and knows what it had come to.
            rig.restart();
            rig.attach(1, &[]);
            rig.pass(250, &[1])
        } else {
            assert_eq!(asked(&rig.pass(wait_ms - 1_000, &[1])), None);
            rig.pass(1_000, &[1])
        };
        scan = asked(&looks).expect("a look").0;
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600], "seconds");
    // One that is done makes up for all of them.
    let work = rig.looked(scan, 4, quiet(0));
    rig.work_off(work);
    assert_eq!(rig.view().standing.unwrap().passes, 1);
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
    assert_eq!(fails(&mut rig, scan), INTERVAL_MS);
    // And so does a look that finds nothing left to do.
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
    rig.looked(scan, 0, quiet(4));
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
    assert_eq!(fails(&mut rig, scan), INTERVAL_MS);
}

#[test]
fn a_walk_that_nobody_wants_is_stopped() {
    let cancel = || Event::Cancel { reply: ReplyId(2), job: JOB };
    // Of a job that looks once.
    for event in [cancel(), nonsense(1)] {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        assert_eq!(asked(&rig.submit(v1::JobKind::Generate)).unwrap().0, 1);
        assert_eq!(stopped(&rig.step(event)), [1]);
        assert!(matches!(rig.view().state(), JobState::Cancelled | JobState::Failed));
    }
    // Of a standing job: in the middle of a pass that can't be done, and between passes.
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let work = rig.looked(scan, 1, quiet(0));
    rig.work_off(work);
    let (scan, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("a look");
    let Event::ScanSegment { info, .. } = to_do(2) else { unreachable!() };
    rig.step(Event::ScanSegment { job: JOB, scan, info });
    assert_eq!(stopped(&rig.step(nonsense(scan))), [scan]);
    assert_eq!(rig.view().state(), JobState::Standing);
    let (next, _) = asked(&rig.pass(INTERVAL_MS, &[1])).expect("another look");
    assert!(next > scan);
    assert_eq!(stopped(&rig.step(cancel())), [next]);
    // One that has ended needs no stop.
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let (scan, _) = asked(&rig.watch()).unwrap();
    let mut effects = rig.step(Event::ScanFailed { job: JOB, scan, problem: problem(ErrorCode::StorageUnavailable) });
    effects.extend(rig.step(cancel()));
    assert_eq!((stopped(&effects), rig.view().state()), (vec![], JobState::Cancelled));
}

/// A folder, what of it has results, and what a gateway remembers of passes.
#[derive(Default)]
struct Folder {
    /// Version of each document.
    there: BTreeMap<u32, u32>,
    /// Which version's result is visible.
    visible: BTreeMap<u32, u32>,
    tried: BTreeSet<(u32, u32)>,
    listed: BTreeSet<(u32, u32)>,
    pass: u64,
}

impl Folder {
    /// Documents with their versions that a look of this pass tells.
    fn look(&mut self, pass: u64) -> Vec<(u32, u32)> {
        if pass > self.pass {
            self.tried.append(&mut self.listed);
        }
        self.pass = pass;
        let new = |(document, version): &(u32, u32)| {
            self.visible.get(document) != Some(version) && !self.tried.contains(&(*document, *version))
        };
        let told: Vec<(u32, u32)> = self.there.iter().map(|(d, v)| (*d, *v)).filter(new).collect();
        self.listed = told.iter().copied().collect();
        told
    }
}

#[test]
fn a_thousand_passes_lose_nothing_do_nothing_twice_and_leave_nothing_behind() {
    for seed in 0..4 {
        play(seed);
    }
}

/// Every look finds what changed; leaders die, looks fail, documents fail, people pause.
fn play(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::new();
    let mut folder = Folder::default();
    let mut told: Vec<(u32, u32)> = Vec::new();
    let mut published: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    let mut failed: BTreeSet<(u32, u32)> = BTreeSet::new();
    let mut most = (0, 0);
    let mut effects = rig.attach(1, &[]);
    effects.extend(rig.watch());
    let (mut turns, mut looks) = (0, 0);
    while rig.view().standing.unwrap().passes < 1_000 {
        turns += 1;
        assert!(turns < 400_000, "seed {seed}: it stands still: {:?}", rig.view());
        if rng.u32(..3) == 0 {
            let document = rng.u32(..30);
            *folder.there.entry(document).or_default() += 1;
        }
        for (scan, request) in std::mem::take(&mut effects).iter().filter_map(|e| asked(std::slice::from_ref(e))) {
            looks += 1;
            let mut answers = Vec::new();
            let news = folder.look(request.pass);
            for piece in news.chunks(7) {
                let Event::ScanSegment { info, .. } = to_do(piece.len() as u32) else { unreachable!() };
                answers.push(Event::ScanSegment { job: JOB, scan, info });
            }
            let documents = folder.there.len() as u64;
            let done = v1::ScanDone { unchanged: documents - news.len() as u64, documents, ..quiet(0) };
            answers.push(Event::ScanDone { job: JOB, scan, done: Box::new(done) });
            // A first look that fails for good ends the job.
            if request.pass > 1 && rng.u32(..8) == 0 {
                answers.truncate(rng.usize(..answers.len()));
                let code = if rng.bool() { ErrorCode::StorageUnavailable } else { ErrorCode::DocumentsVanished };
                answers.push(Event::ScanFailed { job: JOB, scan, problem: Problem::new(code, "away") });
            } else {
                told = news;
            }
            for answer in answers {
                effects.extend(rig.step(answer));
            }
        }
        most = (most.0.max(rig.live.len()), most.1.max(rig.live.values().map(Vec::len).max().unwrap_or(0)));
        let running: Vec<_> = rig.batches().into_iter().filter(|batch| !batch.node.is_empty()).collect();
        let batch = running.into_iter().find(|b| b.state() == ingle_coordinator::core::BatchState::Running);
        match batch {
            Some(batch) if rng.u32(..10) > 0 => {
                let range = 7 * batch.segment + batch.first..7 * batch.segment + batch.end();
                let documents: Vec<(u32, u32)> = range.map(|at| told[at as usize]).collect();
                let bad = u32::from(rng.u32(..6) == 0).min(batch.count);
                let complete = v1::Complete {
                    token: Some(v1::AttemptToken { attempt: batch.attempt, ..Default::default() }),
                    manifest: Some(blob(2)),
                    count: batch.count,
                    committed: batch.count - bad,
                    failed: bad,
                    outputs: batch.count - bad,
                    ..Default::default()
                };
                let answered = rig.step(Event::Complete { node: node(1), complete: Box::new(complete) });
                for (at, document) in documents.iter().enumerate() {
                    if (at as u32) < bad {
                        failed.insert(*document);
                    } else {
                        *published.entry(*document).or_default() += 1;
                        folder.visible.insert(document.0, document.1);
                    }
                }
                for (number, attempt) in publishes(&answered) {
                    let result = Ok(PublishedBatch { outcomes: blob(3), conflict: 0 });
                    effects.extend(rig.step(Event::Published { job: JOB, batch: number, attempt, result }));
                }
                effects.extend(answered);
            }
            _ => {}
        }
        match rng.u32(..300) {
            0 => {
                rig.restart();
                effects = rig.attach(1, &[]);
                let unpublished = rig.batches().into_iter().filter(|b| b.not_before_ms > 0).count();
                assert_eq!(unpublished, 0, "each publish was answered");
            }
            1 => effects.extend(rig.step(Event::Pause { reply: ReplyId(9), job: JOB })),
            _ => {}
        }
        if rng.u32(..20) == 0 {
            effects.extend(rig.step(Event::Resume { reply: ReplyId(9), job: JOB }));
        }
        let ms = rng.u64(100..3_000);
        effects.extend(rig.pass(ms, &[1]));
    }
    assert!(looks > 1_000, "seed {seed}");
    for (document, times) in &published {
        assert_eq!(*times, 1, "seed {seed}: {document:?} was done {times} times");
        assert!(
            !failed.contains(document),
            "seed {seed}: {document:?} failed and was tried again though it never changed"
        );
    }
    let sum = rig.view().standing.unwrap().done.unwrap();
    assert_eq!(sum.published + sum.failed, (published.len() + failed.len()) as u64, "seed {seed}");
    // 30 documents: at most five segments, and a batch per document, and the job itself.
    assert!(most.0 < 45 && most.1 < 4_096, "seed {seed}: {most:?} records and bytes");
    // Whatever is there now is done, or failed as it is, or will be told by the next look.
    let next = folder.look(u64::MAX).len();
    let settled = |d: &u32, v: &u32| folder.visible.get(d) == Some(v) || failed.contains(&(*d, *v));
    let open = folder.there.iter().filter(|(d, v)| !settled(d, v)).count();
    assert_eq!(next, open, "seed {seed}: something is lost");
}

#[test]
fn a_job_of_before_is_one_that_looks_once() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let effects = rig.submit(v1::JobKind::Generate);
    let (scan, request) = asked(&effects).unwrap();
    assert_eq!((request.pass, request.settle_s), (0, 0));
    rig.step(scan_done(scan));
    assert_eq!((rig.view().state(), rig.view().standing), (JobState::Succeeded, None));
}
