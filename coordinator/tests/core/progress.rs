//! What people see of a job's progress: counts that add up, time left by bytes, and why nothing goes on.

use ingle_coordinator::core::Event;
use ingle_proto::{ErrorCode, v1};

use super::{JOB, Rig, blob, scan_done, sent};

#[test]
fn documents_in_conflict_at_the_listing_count_and_survive_a_restart() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.submit(v1::JobKind::Generate);
    let info = v1::SegmentInfo {
        blob: Some(blob(1)),
        entries: 6,
        to_do: 1,
        unchanged: 1,
        deleted: 2,
        conflict: 2,
        size_kib: vec![4],
        to_do_bytes: 4096,
        ..Default::default()
    };
    rig.step(Event::ScanSegment { job: JOB, scan: 1, info: Box::new(info) });
    rig.step(scan_done(1));
    let seen = |rig: &Rig| {
        let counts = rig.view().counts.unwrap();
        (counts.total, counts.conflict, counts.unchanged, counts.deleted)
    };
    assert_eq!(seen(&rig), (4, 2, 1, 0), "what left is not among those in the input");
    rig.restart();
    assert_eq!(seen(&rig), (4, 2, 1, 0));
}

#[test]
fn one_large_document_is_left_for_as_long_as_its_bytes_take() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    // Four small ones go first, then three more; the last is as large as 1,000 of them.
    let mut work = rig.job(v1::JobKind::Embed, &[1, 1, 1, 1, 1, 1, 1, 7_000]);
    let mut done = 0;
    while done < 7 {
        let batch = work.remove(0);
        done += batch.batch.as_ref().unwrap().count;
        rig.pass(1_000, &[1]);
        work.extend(sent(&rig.complete(&batch, &[])));
    }
    let job = rig.view();
    let by_documents = 1e3 / job.items_per_second;
    assert!(job.eta_ms as f64 > 100.0 * by_documents, "{} ms left, by documents {by_documents}", job.eta_ms);
}

#[test]
fn a_job_whose_work_waits_says_for_what() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    assert_eq!(rig.view().reason, "");
    rig.fail(&batch, v1::FailureKind::Storage, ErrorCode::StorageUnavailable);
    let job = rig.view();
    assert!(job.reason.contains("as the test says") && job.reason.contains("tried again"), "{}", job.reason);
    assert_eq!(job.code, "STORAGE_UNAVAILABLE");
}
