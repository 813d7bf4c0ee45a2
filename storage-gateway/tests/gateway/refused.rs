//! What the storage refuses for good ends one output and never the place; conflicts leave one file beside, not many.

use ingle_gateway::ledger::record;
use ingle_proto::v1::ItemOutcome;

use crate::rig::{Output, Rig};

use Output::{Remove, Show};

#[tokio::test]
async fn a_directory_that_may_not_be_written_blocks_nobody() {
    for link in [true, false] {
        let rig = Rig::new(link);
        let running = rig.start();
        let old = running.stage(1, &[Show("sub/a.json", b"old a")]).await;
        running.publish(&old).await.unwrap();
        rig.nas.forbid("out/sub", true);
        let request = running.stage(7, &[Show("sub/a.json", b"new a"), Show("sub/b.json", b"b"), Show("c.json", b"c")]);
        let request = request.await;
        let response = running.publish(&request).await.unwrap();
        assert_eq!((response.published, response.conflict), (1, 2));
        let outcomes = running.outcomes(&response).await;
        assert_eq!(outcomes["sub/a.json"], (ItemOutcome::Conflict, "sub--a.json.conflict-7".into()));
        assert_eq!(outcomes["sub/b.json"], (ItemOutcome::Conflict, "sub--b.json.conflict-7".into()));
        assert_eq!(outcomes["c.json"].0, ItemOutcome::Published);
        let reasons = running.reasons(&response).await;
        assert!(reasons["sub/a.json"].contains("permission denied"), "{reasons:?}");
        let visible = rig.visible();
        assert_eq!(visible["sub/a.json"], b"old a");
        assert_eq!(visible["sub--a.json.conflict-7"], b"new a");
        let summary = rig.summary().await;
        assert!(summary.open == 0 && summary.staged.is_empty(), "{summary:?}");
        // The old file still counts as ours, and its document is to be done again.
        let ledger = running.publisher.ledger(&running.place).await.unwrap();
        let input: &record::InputState = ledger.input(ingle_proto::v1::JobKind::Generate.into(), b"sub/a").unwrap();
        assert!(input.stale);
        rig.nas.forbid("out/sub", false);
        let again = running.stage(8, &[Show("sub/a.json", b"new a"), Remove("sub/b.json")]).await;
        let response = running.publish(&again).await.unwrap();
        assert_eq!((response.published, response.conflict, response.removed), (1, 0, 1));
        assert_eq!(rig.visible()["sub/a.json"], b"new a");
    }
}

#[tokio::test]
async fn a_mount_point_below_the_place_blocks_nobody() {
    for link in [true, false] {
        let rig = Rig::new(link);
        rig.nas.replace("out/sub/theirs", b"theirs");
        rig.nas.mount("out/sub");
        let running = rig.start();
        let request = running.stage(7, &[Show("sub/a.json", b"a"), Show("c.json", b"c")]).await;
        let response = running.publish(&request).await.unwrap();
        let outcomes = running.outcomes(&response).await;
        assert_eq!(outcomes["sub/a.json"], (ItemOutcome::Conflict, "sub--a.json.conflict-7".into()));
        assert_eq!(outcomes["c.json"].0, ItemOutcome::Published);
        let names: Vec<String> = rig.visible().into_keys().collect();
        assert_eq!(names, ["c.json", "sub--a.json.conflict-7", "sub/theirs"], "and no placeholder is left");
        assert_eq!(rig.summary().await.open, 0);
    }
}

/// `protected_hardlinks` lets nobody link what isn't theirs, and a directory's writers still move it.
#[tokio::test]
async fn a_persons_file_that_can_not_be_linked_goes_back_all_the_same() {
    let rig = Rig::new(true);
    let running = rig.start();
    let old = running.stage(1, &[Show("a.json", b"old")]).await;
    running.publish(&old).await.unwrap();
    rig.nas.replace("out/a.json", b"theirs");
    rig.nas.theirs_are_not_linked();
    let request = running.stage(7, &[Show("a.json", b"new")]).await;
    let response = running.publish(&request).await.unwrap();
    assert_eq!((response.published, response.conflict), (0, 1));
    let visible = rig.visible();
    assert_eq!(visible["a.json"], b"theirs");
    assert_eq!(visible["a.json.conflict-7"], b"new");
    assert_eq!(rig.summary().await.open, 0);
}

#[tokio::test]
async fn the_same_result_lies_beside_once() {
    for link in [true, false] {
        let rig = Rig::new(link);
        let running = rig.start();
        rig.nas.replace("out/d/a.json", b"theirs");
        for attempt in 7..10 {
            let request = running.stage(attempt, &[Show("d/a.json", b"ours")]).await;
            let response = running.publish(&request).await.unwrap();
            assert_eq!(response.conflict, 1);
            let outcomes = running.outcomes(&response).await;
            assert_eq!(outcomes["d/a.json"], (ItemOutcome::Conflict, "d/a.json.conflict-7".into()), "{attempt}");
        }
        // Others are others, also of the same length.
        let request = running.stage(10, &[Show("d/a.json", b"OURS")]).await;
        running.publish(&request).await.unwrap();
        let names: Vec<String> = rig.visible().into_keys().collect();
        assert_eq!(names, ["d/a.json", "d/a.json.conflict-10", "d/a.json.conflict-7"]);
        assert!(rig.summary().await.staged.is_empty());
    }
}
