//! Records of a later version whose store we may read: left as they are, whatever else is written.

use ingle_coordinator::core::record::ended;
use ingle_coordinator::core::{Core, Now};
use ingle_proto::v1::{FailureKind, JobKind};
use ingle_proto::{Epoch, ErrorCode};

use super::{JOB, Rig};

#[test]
fn records_of_unknown_kinds_are_left_alone() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let sent = rig.job(JobKind::Ocr, &[4]);
    let strange = [("forecasts/n-1", b"sunny"), ("moods", b"merry"), ("cordons/n-1/why/long", b"dusty")];
    for (key, value) in strange {
        rig.live.insert(key.to_owned(), value.to_vec());
    }
    rig.live.insert(format!("parts/{JOB:016x}/z/0001"), b"of the job".to_vec());
    rig.restart();
    assert_eq!(rig.core.unknown_records(), 4);
    // The cluster goes on around them: nodes come, work fails and is done again.
    rig.attach(1, &[]);
    rig.pass(30_000, &[1]);
    for at in &sent {
        rig.fail(at, FailureKind::Node, ErrorCode::Internal);
    }
    rig.pass(60_000, &[1]);
    assert!(!ended(rig.view().state()), "{:?}", rig.view());
    for (key, value) in strange {
        assert_eq!(rig.live.get(key).map(Vec::as_slice), Some(&value[..]), "{key}");
    }
    rig.restart();
    assert_eq!(rig.core.unknown_records(), 4);
}

#[test]
fn a_store_that_jobs_are_still_moved_into_is_not_led() {
    let records = [("migrating".to_owned(), Vec::new())];
    let now = Now { mono_ms: 0, unix_ms: 0 };
    let refused = Core::load(Epoch { generation: 1, revision: 1 }, now, records).expect_err("half of the jobs");
    assert!(refused.contains("migrate-store"), "{refused}");
}
