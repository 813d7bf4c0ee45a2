//! How documents are cut into batches: shared out towards a job's end, but never into crumbs.

use ingle_proto::v1;

use super::{Rig, sent};

/// Documents of each batch of a job, in the order of dispatch; each document takes `ms`.
fn batches(nodes: u32, documents: usize, ms: u64) -> Vec<u32> {
    let mut rig = Rig::new();
    for number in 1..=nodes {
        rig.attach(number, &[]);
    }
    let mut waiting = rig.job(v1::JobKind::Embed, &vec![1; documents]);
    let mut counts = Vec::new();
    while !waiting.is_empty() {
        let next = waiting.remove(0);
        let Some(batch) = next.batch.as_ref().filter(|batch| !batch.join) else { continue };
        counts.push(batch.count);
        let passed = rig.pass(100, &(1..=nodes).collect::<Vec<_>>());
        waiting.extend(sent(&passed));
        let done = rig.complete_in(&next, u64::from(batch.count) * ms * 1_000);
        waiting.extend(sent(&done));
    }
    assert_eq!(counts.iter().sum::<u32>() as usize, documents, "each document once: {counts:?}");
    counts
}

#[test]
fn a_job_of_short_documents_ends_without_crumbs() {
    // Ten milliseconds each: fifty are worth sharing out, one is not.
    let counts = batches(1, 300, 10);
    // Those of four are from before anything was measured; the last is what was left.
    let (first, rest) = counts.split_at(2);
    assert_eq!(first, [4, 4]);
    assert!(rest[..rest.len() - 1].iter().all(|count| *count >= 45), "{counts:?}");
    assert!(counts.len() <= 6, "{counts:?}");
}

#[test]
fn long_documents_are_still_shared_out() {
    // Two seconds each: every one that is left may go to another node.
    let counts = batches(2, 40, 2_000);
    assert!(counts.iter().rev().take(3).all(|count| *count == 1), "{counts:?}");
}
