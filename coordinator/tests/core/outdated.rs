//! Two jobs embed into one place: the join that comes second is made again, for as long as it takes and at nobody's cost.

use ingle_coordinator::core::{BatchState, Effect};
use ingle_proto::ErrorCode;
use ingle_proto::v1::{JobKind, JobState};

use super::{Rig, Sent, sent};

fn join(rig: &mut Rig) -> Sent {
    (0..60).find_map(|_| sent(&rig.pass(2_000, &[1])).into_iter().next()).expect("a join")
}

#[test]
fn a_join_from_a_part_that_was_replaced_is_made_again() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let documents = rig.job(JobKind::Embed, &[4]).remove(0);
    let mut at = sent(&rig.complete(&documents, &[])).into_iter().next().unwrap_or_else(|| join(&mut rig));
    // More often than anything that counts may fail.
    for round in 1..=12 {
        let batch = at.batch.clone().expect("a batch").batch;
        let asked = rig.complete(&at, &[]);
        assert!(
            asked.iter().any(|e| matches!(e, Effect::Publish { batch: asked, .. } if *asked == batch)),
            "{asked:?}"
        );
        rig.published(batch, at.attempt, ErrorCode::ResultOutdated);
        let record = rig.batches().into_iter().find(|record| record.id == batch).unwrap();
        assert!(record.join && record.manifest.is_none());
        assert_eq!((record.state(), record.failures, record.tries), (BatchState::Queued, 0, round));
        assert_eq!(record.code, "RESULT_OUTDATED");
        assert_eq!(rig.view().counts.unwrap().committed, 1, "its vectors are still there");
        rig.restart();
        rig.attach(1, &[]);
        let again = join(&mut rig);
        assert_eq!(again.batch.clone().unwrap().batch, batch);
        assert_ne!(again.attempt, at.attempt);
        at = again;
    }
    assert_eq!(rig.view().state(), JobState::Running);
}
