//! Results made from an earlier visible file: one that another publish has overtaken is refused, and nothing else is.

use ingle_gateway::publish::Request;
use ingle_proto::v1::ItemOutcome;
use ingle_proto::{Digest, ErrorCode, v1};

use crate::rig::{Output, Rig, Running};

use Output::{Keep, Remove, Show};

/// As [`Running::stage`], each output made from a visible file of these bytes (none: from nothing).
async fn staged(running: &Running, attempt: u64, outputs: &[Output], based_on: Option<&[u8]>) -> Request {
    let request = running.stage(attempt, outputs).await;
    let mut manifest: v1::ResultManifest = running.blobs.message("m", &request.manifest).await.unwrap();
    for output in &mut manifest.outputs {
        output.based_on = Some(based_on.map(|data| Digest::of(data).to_wire()).unwrap_or_default());
    }
    let blob = running.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await.unwrap();
    Request { manifest: blob, ..request }
}

const PART: &str = "part-0000.parquet";

#[tokio::test]
async fn of_two_joins_of_one_part_the_second_is_made_again() {
    for first in [None, Some(b"P0".as_slice())] {
        let rig = Rig::new(true);
        let running = rig.start();
        if first.is_some() {
            let request = staged(&running, 1, &[Show(PART, b"P0")], None).await;
            running.publish(&request).await.unwrap();
        }
        // Both have read what was there; one is faster.
        let slow = staged(&running, 2, &[Show(PART, b"P0 and A")], first).await;
        let fast = staged(&running, 3, &[Show(PART, b"P0 and B")], first).await;
        running.publish(&fast).await.unwrap();
        let problem = running.publish(&slow).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::ResultOutdated, "{problem}");
        assert!(problem.retryable() && problem.message.contains(PART));
        // Neither does it keep or take away what it never saw.
        for output in [Keep(PART), Remove(PART)] {
            let request = staged(&running, 4, &[output], first).await;
            assert_eq!(running.publish(&request).await.unwrap_err().code, ErrorCode::ResultOutdated);
        }
        assert_eq!(rig.visible()[PART], b"P0 and B");
        assert_eq!(rig.summary().await.open, 0);
        // Asked again, what was published says so still.
        assert_eq!(running.publish(&fast).await.unwrap().published, 1);
        let again = staged(&running, 5, &[Show(PART, b"P0 and B and A")], Some(b"P0 and B")).await;
        assert_eq!(running.publish(&again).await.unwrap().published, 1);
        assert_eq!(rig.visible()[PART], b"P0 and B and A");
    }
}

/// Made again, it would come out the same: a person's change is a conflict, and a deletion nothing at all.
#[tokio::test]
async fn what_people_did_to_a_part_makes_no_result_outdated() {
    let rig = Rig::new(true);
    let running = rig.start();
    let request = staged(&running, 1, &[Show(PART, b"P0")], None).await;
    running.publish(&request).await.unwrap();
    rig.nas.delete(&format!("out/{PART}"));
    let request = staged(&running, 2, &[Show(PART, b"A")], None).await;
    assert_eq!(running.publish(&request).await.unwrap().published, 1);
    rig.nas.replace(&format!("out/{PART}"), b"a person's");
    for attempt in 3..5 {
        let request = staged(&running, attempt, &[Show(PART, b"A and B")], Some(b"a person's")).await;
        let response = running.publish(&request).await.unwrap();
        assert_eq!(running.outcomes(&response).await[PART].0, ItemOutcome::Conflict);
    }
    assert_eq!(rig.visible()[PART], b"a person's");
    // A directory in its place can't have been read either.
    rig.nas.delete(&format!("out/{PART}"));
    rig.nas.make_directory_of_theirs(&format!("out/{PART}"));
    let request = staged(&running, 6, &[Show(PART, b"B")], None).await;
    assert_eq!(running.publish(&request).await.unwrap().conflict, 1);
}
