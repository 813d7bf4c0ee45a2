//! Failures end: what storage refuses for good counts, results that were swept are made again, and a stale epoch is nobody's.

use ingle_coordinator::core::{BatchState, Effect, Event};
use ingle_proto::v1::{FailureKind, JobKind, JobState};
use ingle_proto::{ErrorCode, Problem};

use super::{JOB, Rig, Sent, sent};

/// Lets time pass until something is dispatched again.
fn next(rig: &mut Rig) -> Option<Sent> {
    (0..60).find_map(|_| sent(&rig.pass(2_000, &[1])).into_iter().next())
}

fn publishes(effects: &[Effect]) -> Vec<(u64, u64)> {
    let asked = effects.iter().filter_map(|effect| match effect {
        Effect::Publish { batch, request, .. } => Some((*batch, request.attempt)),
        _ => None,
    });
    asked.collect()
}

#[test]
fn what_storage_refuses_for_good_ends() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for _ in 0..4 {
        rig.fail(&at, FailureKind::Storage, ErrorCode::StorageDenied);
        at = next(&mut rig).expect("it is tried again, a few times");
    }
    rig.fail(&at, FailureKind::Storage, ErrorCode::StorageDenied);
    let job = rig.view();
    assert_eq!((job.state(), job.counts.unwrap().quarantined), (JobState::Failed, 1), "{job:?}");
    assert!(job.reason.contains("1 quarantined"), "{job:?}");
}

#[test]
fn storage_that_is_away_is_waited_for() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for _ in 0..20 {
        rig.fail(&at, FailureKind::Storage, ErrorCode::StorageUnavailable);
        at = next(&mut rig).expect("it is tried again for as long as it takes");
    }
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.deaths, record.tries), (0, 0, 20));
}

#[test]
fn results_that_were_swept_are_made_again_and_not_for_ever() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for round in 1..=5u32 {
        let asked = publishes(&rig.complete(&at, &[]));
        assert_eq!(asked, [(1, at.attempt)]);
        assert_eq!(rig.view().counts.unwrap().committed, 1);
        rig.published(1, at.attempt, ErrorCode::ObjectNotFound);
        if round == 5 {
            break;
        }
        let (job, record) = (rig.view(), rig.batches().remove(0));
        assert_eq!((job.state(), job.counts.unwrap().committed), (JobState::Running, 0), "{job:?}");
        assert_eq!(
            (record.state(), record.failures, record.code.as_str()),
            (BatchState::Queued, round, "OBJECT_NOT_FOUND")
        );
        rig.restart();
        rig.attach(1, &[]);
        let again = next(&mut rig).expect("it is done again");
        assert_ne!(again.attempt, at.attempt);
        at = again;
    }
    let job = rig.view();
    assert_eq!((job.state(), job.counts.unwrap().quarantined), (JobState::Failed, 1), "{job:?}");
}

#[test]
fn documents_in_ranges_stay_when_their_batch_is_done_again() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    // Of a kind whose first batch is of four: the core splits documents whatever they are.
    let at = rig.job(JobKind::Generate, &[1; 40]).remove(0);
    let work = at.batch.clone().unwrap();
    assert_eq!((work.batch, work.first, work.count), (1, 0, 4));
    // The second of four has many pages.
    rig.complete(&at, &[1]);
    rig.published(1, at.attempt, ErrorCode::ObjectNotFound);
    let records = rig.batches();
    let documents = records.iter().filter(|batch| batch.takes_documents() && batch.first < 4);
    let mut held: Vec<_> = documents.map(|b| (b.first, b.count, b.splits.len(), b.state(), b.failures)).collect();
    held.sort_unstable();
    let again = BatchState::Queued;
    assert_eq!(held, [(0, 1, 0, again, 1), (1, 1, 1, BatchState::Published, 0), (2, 2, 0, again, 1)]);
    rig.restart();
    assert_eq!(rig.batches(), records);
}

#[test]
fn a_stale_epoch_is_never_a_jobs_failure() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let walk = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Scan { scan, .. } => Some(*scan),
            _ => None,
        })
    };
    let scan = walk(&rig.submit(JobKind::Generate)).unwrap();
    let stale = || Problem::new(ErrorCode::EpochStale, "another leader");
    rig.step(Event::ScanFailed { job: JOB, scan, problem: stale() });
    assert_eq!(rig.view().state(), JobState::Listing);
    let scan = (0..60).find_map(|_| walk(&rig.pass(2_000, &[1]))).expect("listed again");
    let at = rig.listed(scan, &[4]).remove(0);
    for kind in [FailureKind::Storage, FailureKind::Input, FailureKind::Item] {
        let at = if kind == FailureKind::Storage { at.clone() } else { next(&mut rig).unwrap() };
        rig.fail(&at, kind, ErrorCode::EpochStale);
        let record = &rig.batches()[0];
        assert_eq!((record.state(), record.failures), (BatchState::Queued, 0), "{kind:?}");
    }
    let at = next(&mut rig).unwrap();
    rig.complete(&at, &[]);
    rig.published(1, at.attempt, ErrorCode::EpochStale);
    assert_eq!(rig.view().state(), JobState::Running);
    let again = (0..60).find_map(|_| publishes(&rig.pass(2_000, &[1])).pop());
    assert_eq!(again, Some((1, at.attempt)), "published again by whoever leads");
}
