//! The sweeper takes what is old and ours, and nothing else.

use std::time::Duration;

use ingle_gateway::sweep;
use ingle_proto::Digest;

use crate::rig::{Output, Rig};

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

#[tokio::test]
async fn staged_leftovers_go_after_a_day_and_trash_after_thirty() {
    let rig = Rig::new(true);
    let running = rig.start();
    for (attempt, data) in [(1, b"one".as_slice()), (2, b"two")] {
        let request = running.stage(attempt, &[Output::Show("a.json", data)]).await;
        running.publish(&request).await.unwrap();
    }
    running.stage(3, &[Output::Show("never published.json", b"three")]).await;
    rig.nas.replace("out/.inglenook/tmp/half.tmp", b"half");
    let now = ingle_gateway::export::Export::stat(&*rig.nas, &ingle_proto::ObjectPath::new("out/a.json").unwrap())
        .await
        .unwrap()
        .ctime_ns;
    let count = |word: &str| rig.nas.files(true).keys().filter(|path| path.contains(word)).count();
    let sweep =
        async |now_ns: i64| sweep::sweep(&running.place, &running.publisher, now_ns, Duration::ZERO).await.unwrap();
    assert_eq!((count("/staged/"), count("/trash/"), count("/tmp/half")), (1, 1, 1));
    assert_eq!(sweep(now + DAY_NS / 2).await, 0);
    assert_eq!(sweep(now + 2 * DAY_NS).await, 2);
    assert_eq!((count("/staged/"), count("/trash/"), count("/tmp/half")), (0, 1, 0));
    assert_eq!(sweep(now + 31 * DAY_NS).await, 1);
    assert_eq!(count("/trash/"), 0);
    // What people see and what the ledger knows is as it was.
    let summary = rig.summary().await;
    assert_eq!(summary.visible["a.json"], b"two");
    assert_eq!(summary.outputs["a.json"].0, Digest::of(b"two"));
}

#[tokio::test]
async fn old_blobs_go_unless_somebody_needs_them() {
    let rig = Rig::new(true);
    let running = rig.start();
    let needed = running.blobs.put(&"needed".into()).await.unwrap();
    let other = running.blobs.put(&"other".into()).await.unwrap();
    let keep = |digest: &Digest| digest.to_wire() == needed.digest;
    let week = Duration::from_secs(7 * 24 * 3600);
    let now = 1_700_000_000_000_000_000;
    assert_eq!(running.blobs.sweep(&keep, week, now + DAY_NS).await.unwrap(), 0);
    assert_eq!(running.blobs.sweep(&keep, week, now + 8 * DAY_NS).await.unwrap(), 1);
    let digest = |blob: &ingle_proto::v1::BlobRef| Digest::from_wire("digest", &blob.digest).unwrap();
    assert_eq!(running.blobs.get(digest(&needed)).await.unwrap(), "needed");
    assert!(running.blobs.get(digest(&other)).await.is_err());
}
