//! What metrics are told: each decision, end, retry and document set aside once, and how things stand.

use std::collections::BTreeMap;

use ingle_coordinator::core::tally::Tally;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{FailureKind, JobKind};

use super::{Rig, sent};

#[test]
fn failures_retries_and_what_is_set_aside_are_counted_once() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let mut at = rig.job(JobKind::Generate, &[4]).remove(0);
    for _ in 0..4 {
        rig.fail(&at, FailureKind::Storage, ErrorCode::StorageDenied);
        let again = (0..60).find_map(|_| sent(&rig.pass(2_000, &[1])).into_iter().next());
        at = again.expect("it is tried again, a few times");
    }
    rig.fail(&at, FailureKind::Storage, ErrorCode::StorageDenied);
    let tally = rig.core.take_tally();
    let ends: Vec<_> = tally.ends.iter().map(|end| (end.kind, end.outcome)).collect();
    assert_eq!(ends, [("generate", "storage"); 5]);
    assert_eq!(tally.placed.values().sum::<u64>(), 5);
    assert_eq!(tally.retried, BTreeMap::from([("charged", 4)]));
    assert_eq!(tally.set_aside, BTreeMap::from([("STORAGE_DENIED".to_owned(), 1)]));
    assert_eq!(rig.core.take_tally(), Tally::default(), "what was taken is not told again");
}

#[test]
fn a_good_end_tells_how_long_it_took_and_the_stand_follows() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let at = rig.job(JobKind::Embed, &[4]).remove(0);
    let stand = rig.core.stand();
    assert_eq!((stand.items["running"], stand.items["queued"], stand.attempts), (1, 0, 1));
    assert_eq!((stand.calls_waiting, stand.breakers_open, stand.held.len()), (0, 0, 0));
    rig.pass(1_500, &[1]);
    rig.complete(&at, &[]);
    let stand = rig.core.stand();
    assert_eq!((stand.items["running"], stand.items["committed"]), (0, 1), "{stand:?}");
    let tally = rig.core.take_tally();
    let end = tally.ends.front().expect("one ended");
    assert_eq!((end.kind, end.outcome, end.took_ms), ("embed", "done", 1_500));
    assert!(end.expected_ms > 0.0, "{end:?}");
}
