//! A ledger's files: damage is named, folding survives a kill at every call, and nothing is forgotten.

use std::sync::Arc;

use ingle_gateway::export::Export;
use ingle_gateway::ledger::record::{Done, Input, Intent, LogSegment, Outcome, Publish, Result as Verdict};
use ingle_gateway::ledger::store::Store;
use ingle_proto::{Digest, ErrorCode, ObjectPath};

use crate::memory::Memory;
use crate::plan::{Ending, Plan, Planned};

fn directory() -> ObjectPath {
    ObjectPath::new("out/.inglenook/ledger").unwrap()
}

fn begin(number: u64) -> LogSegment {
    let intent = Intent {
        name: format!("o{}.json", number % 40).into_bytes(),
        staged: format!("s{number}"),
        digest: Digest::of(&number.to_le_bytes()).0.to_vec(),
        size: number,
        inputs: vec![Input {
            name: format!("o{}", number % 40).into_bytes(),
            size: number,
            mtime_ns: 1,
            content_digest: vec![3; 32],
            gone: false,
        }],
        ..Default::default()
    };
    let publish = Publish {
        key: format!("j-1/{number}/x"),
        job: "j-1".into(),
        attempt: number,
        kind: 3,
        intents: vec![intent],
        ..Default::default()
    };
    LogSegment { seq: 0, publish: Some(publish), done: None }
}

fn end(number: u64) -> LogSegment {
    let outcome = Outcome {
        name: format!("o{}.json", number % 40).into_bytes(),
        result: Verdict::Published.into(),
        ..Default::default()
    };
    let done = Done { key: format!("j-1/{number}/x"), outcomes: vec![outcome], at_ms: i64::MAX, ..Default::default() };
    LogSegment { seq: 0, publish: None, done: Some(done) }
}

/// A part made by job after job: what it is made from, and whether it was made from nothing.
fn part(number: u64, input: &str, anew: bool) -> [LogSegment; 2] {
    let (mut begun, mut ended) = (begin(number), end(number));
    let publish = begun.publish.as_mut().unwrap();
    publish.intents[0].name = b"part".to_vec();
    publish.intents[0].anew = anew;
    publish.intents[0].inputs[0].name = input.as_bytes().to_vec();
    ended.done.as_mut().unwrap().outcomes[0].name = b"part".to_vec();
    [begun, ended]
}

#[tokio::test]
async fn a_part_made_from_nothing_holds_nothing_of_earlier_ones() {
    let export: Arc<dyn Export> = Arc::new(Memory::new(true));
    let mut store = load(&export).await.unwrap();
    for segment in [part(1, "notes.md", true), part(2, "code.rs", false)].into_iter().flatten() {
        store.append(segment).await.unwrap();
    }
    let ledger = store.ledger();
    assert!(ledger.input(3, b"notes.md").is_some() && ledger.input(3, b"code.rs").is_some());
    // The file was gone: what it held of notes.md is gone too, and must be made again.
    for segment in part(3, "code.rs", true) {
        store.append(segment).await.unwrap();
    }
    let ledger = load(&export).await.unwrap().ledger();
    assert!(ledger.input(3, b"notes.md").is_none() && ledger.input(3, b"code.rs").is_some());
}

async fn load(export: &Arc<dyn Export>) -> Result<Store, ingle_proto::Problem> {
    let mut store = Store::load(export.clone(), directory()).await?;
    store.fold_after(6);
    Ok(store)
}

fn told(store: &Store) -> Vec<(Vec<u8>, u64, Vec<Vec<u8>>)> {
    let ledger = store.ledger();
    ledger.outputs().map(|(n, o)| (n.to_vec(), o.attempt, o.inputs.keys().cloned().collect())).collect()
}

#[tokio::test]
async fn folding_keeps_everything_and_few_files() {
    let memory = Arc::new(Memory::new(true));
    let export: Arc<dyn Export> = memory.clone();
    let mut store = load(&export).await.unwrap();
    for number in 1..=100 {
        store.append(begin(number)).await.unwrap();
        assert!(!store.fold_if_due(0).await.unwrap(), "nothing is folded while a publish is open");
        store.append(end(number)).await.unwrap();
        store.fold_if_due(0).await.unwrap();
        if number % 7 == 0 {
            let again = load(&export).await.unwrap();
            assert_eq!(told(&again), told(&store), "after {number}");
            assert!(again.ledger().done(&format!("j-1/{number}/x")).is_some());
            store = again;
        }
    }
    assert_eq!(told(&store).len(), 40);
    assert!(memory.files(true).len() < 16 + 8, "{:?}", memory.files(true).keys());
    // Input state comes back too.
    assert_eq!(store.ledger().input(3, b"o7").unwrap().size, 87);
}

#[tokio::test]
async fn folding_killed_at_every_call_loses_nothing() {
    for link in [true, false] {
        for at in 0.. {
            for ending in [Ending::NotDone, Ending::ReplyLost] {
                let memory = Arc::new(Memory::new(link));
                let export: Arc<dyn Export> = memory.clone();
                let mut store = load(&export).await.unwrap();
                for number in 1..=5 {
                    store.append(begin(number)).await.unwrap();
                    store.append(end(number)).await.unwrap();
                }
                store.fold_if_due(0).await.unwrap();
                for number in 6..=9 {
                    store.append(begin(number)).await.unwrap();
                    store.append(end(number)).await.unwrap();
                }
                let expected = told(&store);
                let plan = Plan::default();
                let planned: Arc<dyn Export> =
                    Arc::new(Planned { inner: memory.clone(), people_at: memory.clone(), plan: plan.clone() });
                let mut killed = load(&planned).await.unwrap();
                plan.crash_at(at, ending);
                let _ = killed.fold_if_due(0).await;
                if !plan.crashed() {
                    assert!(at > 10, "a fold takes more calls than {at}");
                    break;
                }
                memory.lose_uncommitted();
                let mut again = load(&export).await.unwrap();
                assert_eq!(told(&again), expected, "links {link}, call {at}, {ending:?}");
                // And it goes on: fold again, append, load again.
                again.fold_if_due(0).await.unwrap();
                again.append(begin(10)).await.unwrap();
                again.append(end(10)).await.unwrap();
                assert_eq!(told(&load(&export).await.unwrap()), told(&again));
            }
            if at > 400 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn damaged_and_missing_segments_are_named() {
    let memory = Arc::new(Memory::new(true));
    let export: Arc<dyn Export> = memory.clone();
    let mut store = load(&export).await.unwrap();
    for number in 1..=2 {
        store.append(begin(number)).await.unwrap();
        store.append(end(number)).await.unwrap();
    }
    let path = "out/.inglenook/ledger/log/0000000000000002.seg";
    let whole = memory.get(path).unwrap();
    let mut flipped = whole.clone();
    flipped[30] ^= 1;
    for damaged in [&whole[..whole.len() - 1], &whole[..20], b"", &flipped] {
        memory.edit(path, damaged);
        let problem = load(&export).await.err().expect("damaged");
        assert_eq!(problem.code, ErrorCode::DigestMismatch);
        assert!(problem.message.contains("0000000000000002.seg"), "{problem}");
    }
    memory.delete(path);
    let problem = load(&export).await.err().expect("missing");
    assert!(problem.message.contains("0000000000000002.seg"), "{problem}");
    memory.replace(path, &memory.get("out/.inglenook/ledger/log/0000000000000001.seg").unwrap());
    let problem = load(&export).await.err().expect("another segment's bytes");
    assert!(problem.message.contains("0000000000000002.seg"), "{problem}");
    memory.replace(path, &whole);
    // What a NAS or a crash leaves beside them is no segment.
    memory.replace("out/.inglenook/ledger/log/.nfs00001", b"x");
    memory.replace("out/.inglenook/ledger/tmp/0123.tmp", b"half");
    assert_eq!(told(&load(&export).await.unwrap()), told(&store));
    memory.replace("out/.inglenook/ledger/log/what.seg", b"x");
    assert!(load(&export).await.err().expect("foreign").message.contains("what.seg"));
}

#[tokio::test]
async fn two_writers_of_one_place_notice() {
    let memory = Arc::new(Memory::new(true));
    let export: Arc<dyn Export> = memory.clone();
    let mut one = load(&export).await.unwrap();
    let mut two = load(&export).await.unwrap();
    one.append(begin(1)).await.unwrap();
    assert_eq!(two.append(begin(2)).await.unwrap_err().code, ErrorCode::NameTaken);
    assert_eq!(load(&export).await.unwrap().ledger().open().len(), 1);
}

#[tokio::test]
async fn a_conflict_of_one_output_makes_its_document_to_do_again() {
    let memory = Arc::new(Memory::new(true));
    let export: Arc<dyn Export> = memory.clone();
    let mut store = load(&export).await.unwrap();
    let LogSegment { publish: Some(mut publish), .. } = begin(1) else { unreachable!("made above") };
    let mut text = publish.intents[0].clone();
    text.name = b"o1.txt".to_vec();
    publish.intents.push(text);
    let outcome =
        |name: &str, verdict: Verdict| Outcome { name: name.into(), result: verdict.into(), ..Default::default() };
    let done = Done {
        key: publish.key.clone(),
        outcomes: vec![outcome("o1.json", Verdict::Conflict), outcome("o1.txt", Verdict::Published)],
        ..Default::default()
    };
    store.append(LogSegment { seq: 0, publish: Some(publish), done: None }).await.unwrap();
    store.append(LogSegment { seq: 0, publish: None, done: Some(done) }).await.unwrap();
    for store in [store, load(&export).await.unwrap()] {
        let ledger = store.ledger();
        assert!(ledger.output(b"o1.json").is_none() && ledger.output(b"o1.txt").is_some());
        assert!(ledger.input(3, b"o1").unwrap().stale);
    }
}
