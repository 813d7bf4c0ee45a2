//! A NAS that is away, full or read-only: the job waits as a whole, says why, costs its documents nothing, and goes on.

use ingle_coordinator::core::{Effect, Event, PublishedBatch, ReplyId};
use ingle_proto::v1::{self, FailureKind, JobKind, JobState};
use ingle_proto::{ErrorCode, Problem};

use super::{JOB, Rig, Sent, blob, sent};

const OUTAGES: [ErrorCode; 3] = [ErrorCode::StorageUnavailable, ErrorCode::StorageFull, ErrorCode::StorageReadOnly];

fn full() -> Problem {
    let words = "nas://docs: out/x (NFS3ERR_NOSPC): no space or quota left; free some: the job goes on by itself";
    Problem::new(ErrorCode::StorageFull, words)
}

fn fail(rig: &mut Rig, at: &Sent, problem: Problem) -> Vec<Sent> {
    let kind = FailureKind::Storage;
    sent(&rig.step(Event::Failed { node: at.node.clone(), attempt: at.attempt, kind, problem }))
}

fn walk(effects: &[Effect]) -> Option<u64> {
    effects.iter().find_map(|effect| match effect {
        Effect::Scan { scan, .. } => Some(*scan),
        _ => None,
    })
}

#[test]
fn the_whole_job_waits_and_one_batch_a_node_tries() {
    let mut rig = Rig::new();
    for node in [1, 2] {
        rig.attach(node, &[]);
    }
    let first = rig.job(JobKind::Generate, &[1; 200]);
    assert!(first.len() >= 2, "both nodes work");
    for at in &first {
        assert!(fail(&mut rig, at, full()).is_empty(), "nothing new is begun");
    }
    let job = rig.view();
    assert_eq!(
        (job.state(), job.code.as_str(), job.reason.as_str()),
        (JobState::Running, "STORAGE_FULL", full().message.as_str())
    );
    // Two hours of it: tries are few, never two at a node, never further apart than the bound, and said all the while.
    let (mut tries, mut quiet_ms, mut longest_ms) = (0, 0, 0);
    for _ in 0..7_200 {
        let begun = sent(&rig.pass(1_000, &[1, 2]));
        quiet_ms += 1_000;
        if !begun.is_empty() {
            longest_ms = quiet_ms.max(longest_ms);
            quiet_ms = 0;
        }
        let nodes: std::collections::BTreeSet<_> = begun.iter().map(|at| at.node.clone()).collect();
        assert_eq!(nodes.len(), begun.len(), "one each");
        assert!(rig.view().reason.contains("nas://docs"), "{:?}", rig.view().reason);
        let told = rig.core.explain(JOB).unwrap().summary;
        assert!(told.contains("waits for the NAS") && told.contains("free some"), "{told}");
        for at in begun {
            tries += 1;
            fail(&mut rig, &at, full());
        }
    }
    assert!((200..1_200).contains(&tries), "{tries} tries in two hours");
    assert!(longest_ms <= 31_000, "{longest_ms} ms without a try");
    assert!(rig.batches().iter().all(|batch| (batch.failures, batch.deaths) == (0, 0)), "free of charge");
    // It is back: the first batch that is done lets all others go on.
    let at = (0..60).find_map(|_| sent(&rig.pass(1_000, &[1, 2])).pop()).expect("a try");
    assert!(!sent(&rig.complete(&at, &[])).is_empty(), "the rest goes on at once");
    assert_eq!(rig.view().code, "");
}

#[test]
fn publishing_and_listing_wait_too_and_settings_do_not() {
    for code in OUTAGES {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        let mut scan = walk(&rig.submit(JobKind::Generate)).unwrap();
        for _ in 0..10 {
            let problem = Problem::new(code, "nas://docs: nothing goes now");
            rig.step(Event::ScanFailed { job: JOB, scan, problem });
            scan = (0..60).find_map(|_| walk(&rig.pass(1_000, &[1]))).expect("walked again");
            let job = rig.view();
            assert_eq!(
                (job.state(), job.code.as_str()),
                (JobState::Listing, code.as_str()),
                "while it is walked again too"
            );
            assert!(job.reason.contains("nas://docs") && job.reason.contains("by itself"), "{}", job.reason);
        }
        let at = rig.listed(scan, &[4]).remove(0);
        assert_eq!(rig.view().reason, "");
        rig.complete(&at, &[]);
        for _ in 0..10 {
            rig.published(1, at.attempt, code);
            let job = rig.view();
            assert_eq!((job.state(), job.code.as_str()), (JobState::Running, code.as_str()));
            let again =
                (0..60).any(|_| rig.pass(1_000, &[1]).iter().any(|effect| matches!(effect, Effect::Publish { .. })));
            assert!(again, "it is published again");
        }
        let result = Ok(PublishedBatch { outcomes: blob(3), conflict: 0 });
        rig.step(Event::Published { job: JOB, batch: 1, attempt: at.attempt, result });
        assert_eq!(rig.view().state(), JobState::Succeeded);
    }
    // What the settings forbid stays forbidden however long one waits.
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let scan = walk(&rig.submit(JobKind::Generate)).unwrap();
    let problem = Problem::new(ErrorCode::ExportReadOnly, "the settings say so");
    rig.step(Event::ScanFailed { job: JOB, scan, problem });
    assert_eq!(rig.view().state(), JobState::Failed);
}

#[test]
fn who_cancels_does_not_wait_for_the_nas() {
    for asked_at_the_moment in [false, true] {
        let mut rig = Rig::new();
        rig.attach(1, &[]);
        let at = rig.job(JobKind::Generate, &[4]).remove(0);
        rig.complete(&at, &[]);
        if !asked_at_the_moment {
            rig.published(1, at.attempt, ErrorCode::StorageUnavailable);
        }
        rig.step(Event::Cancel { reply: ReplyId(2), job: JOB });
        if asked_at_the_moment {
            assert_eq!(rig.view().state(), JobState::Cancelling, "its answer may still come");
            rig.published(1, at.attempt, ErrorCode::StorageUnavailable);
        }
        assert_eq!(rig.view().state(), JobState::Cancelled);
    }
}

#[test]
fn who_cancels_is_told_so_whatever_goes_wrong_then() {
    for code in [ErrorCode::ExportReadOnly, ErrorCode::StorageDenied, ErrorCode::ObjectNotFound] {
        for published in [true, false] {
            let mut rig = Rig::new();
            rig.attach(1, &[]);
            let at = rig.job(JobKind::Generate, &[4]).remove(0);
            if published {
                rig.complete(&at, &[]);
            }
            rig.step(Event::Cancel { reply: ReplyId(2), job: JOB });
            assert_eq!(rig.view().state(), JobState::Cancelling);
            if published {
                rig.published(1, at.attempt, code);
            } else {
                rig.fail(&at, FailureKind::Input, code);
            }
            let job = rig.view();
            assert_eq!((job.state(), job.code.as_str()), (JobState::Cancelled, "CANCELLED"), "{code:?}: {job:?}");
        }
    }
}

#[test]
fn one_object_that_cannot_be_read_holds_nothing_else_up() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut open = rig.job(JobKind::Generate, &[1; 200]);
    for code in [ErrorCode::StorageProtocol, ErrorCode::DigestMismatch, ErrorCode::ObjectChanged] {
        let at = open.remove(0);
        let next = fail(&mut rig, &at, Problem::new(code, "of one object"));
        assert!(!next.is_empty(), "{code:?}: other batches go on");
        open.extend(next);
    }
    assert_eq!(rig.view().state(), v1::JobState::Running);
}
