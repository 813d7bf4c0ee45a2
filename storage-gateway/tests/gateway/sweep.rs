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
    let count = |word: &str| rig.nas.files(true).keys().filter(|path| path.contains(word)).count();
    let sweep = async || sweep::sweep(&running.place, &running.publisher, Duration::ZERO).await.unwrap();
    assert_eq!((count("/staged/"), count("/trash/"), count("/tmp/half")), (1, 1, 1));
    // The server's clock is years behind ours, and only its own time counts.
    assert_eq!(sweep().await, 0);
    rig.nas.pass(DAY_NS / 2);
    assert_eq!(sweep().await, 0);
    rig.nas.pass(DAY_NS);
    assert_eq!(sweep().await, 2);
    assert_eq!((count("/staged/"), count("/trash/"), count("/tmp/")), (0, 1, 0));
    rig.nas.pass(30 * DAY_NS);
    assert_eq!(sweep().await, 1);
    assert_eq!(count("/trash/"), 0);
    // What people see and what the ledger knows is as it was.
    let summary = rig.summary().await;
    assert_eq!(summary.visible["a.json"], b"two");
    assert_eq!(summary.outputs["a.json"].0, Digest::of(b"two"));
}

#[tokio::test]
async fn a_persons_file_that_we_keep_is_never_swept() {
    let rig = Rig::new(true);
    let running = rig.start();
    rig.nas.replace("out/.inglenook/kept/j-1-0-7", b"theirs");
    rig.nas.pass(400 * DAY_NS);
    sweep::sweep(&running.place, &running.publisher, Duration::ZERO).await.unwrap();
    assert_eq!(rig.nas.get("out/.inglenook/kept/j-1-0-7").unwrap(), b"theirs");
}

#[tokio::test]
async fn of_blobs_only_those_abandoned_in_the_making_go() {
    let rig = Rig::new(true);
    let running = rig.start();
    let blob = running.blobs.put(&"blob".into()).await.unwrap();
    running.blobs.begin().await.unwrap().push("half".into()).await.unwrap();
    // The part of a document whose call died with its coordinator.
    let mut part = running.blobs.begin().await.unwrap();
    part.push("part".into()).await.unwrap();
    running.blobs.keep_of_call(part.seal().await.unwrap()).await.unwrap();
    let sweep = async || sweep::sweep_blobs(&running.blobs, Duration::ZERO).await.unwrap();
    assert_eq!(sweep().await, 0);
    rig.state.pass(400 * DAY_NS);
    assert_eq!(sweep().await, 2);
    let digest = Digest::from_wire("digest", &blob.digest).unwrap();
    assert_eq!(running.blobs.get(digest).await.unwrap(), "blob");
    assert_eq!(rig.state.files(true).len(), 1);
}
