//! Attempts that take too long: judged by our own clock, counted, and with all their time after a change of leader.

use ingle_coordinator::limits;
use ingle_proto::v1;

use super::{Rig, cancelled};

#[test]
fn a_late_attempt_counts_as_a_failure_of_what_is_in_it() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4]).remove(0);
    let mut gone = Vec::new();
    for _ in 0..batch.allowed_ms / 2_000 + 1 {
        gone.extend(cancelled(&rig.pass(2_000, &[1])));
    }
    assert_eq!(gone, [batch.attempt]);
    let record = &rig.batches()[0];
    assert_eq!((record.failures, record.code.as_str()), (1, "DEADLINE"));
}

#[test]
fn a_wall_clock_that_jumps_makes_nothing_late() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.job(v1::JobKind::Generate, &[4]);
    rig.now.unix_ms += 30 * 24 * 3_600_000;
    assert!(cancelled(&rig.pass(250, &[1])).is_empty());
}

#[test]
fn an_adopted_attempt_keeps_the_time_it_was_allowed() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let batch = rig.job(v1::JobKind::Generate, &[4_000_000]).remove(0);
    assert!(batch.allowed_ms > 2 * limits::ATTEMPT_FLOOR_MS, "a large document: {batch:?}");
    rig.restart();
    rig.attach(1, &[batch.attempt]);
    let mut passed = 0;
    while passed < batch.allowed_ms {
        assert!(cancelled(&rig.pass(2_500, &[1])).is_empty(), "after {passed} of {} ms", batch.allowed_ms);
        passed += 2_500;
    }
    assert_eq!(cancelled(&rig.pass(2_500, &[1])), [batch.attempt]);
}
