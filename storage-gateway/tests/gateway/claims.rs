//! Names: whose one is where two inputs share a place, which are kept apart, and which are left out of an input.

use ingle_gateway::limits::Limits;
use ingle_gateway::scan::Request;
use ingle_gateway::scan::exclude::Exclude;
use ingle_proto::JobId;
use ingle_proto::v1::{self, EntryAction, ItemOutcome, JobKind, input_spec::Input};

use crate::scan::{Bench, DOCUMENTS, Listing, bench, tree, usual};

/// Two folders that share one name and have one of their own each.
fn folders() -> Bench {
    let bench = bench(Limits::default());
    for name in ["one/same.md", "one/first.md", "two/same.md", "two/second.md"] {
        bench.rig.nas.replace(name, name.as_bytes());
    }
    // Nobody has touched them for a while.
    bench.rig.nas.pass(10_000_000_000);
    bench
}

async fn listed(bench: &Bench, job: &str, input: Input, kind: JobKind) -> Listing {
    bench.ask(Request { job: Some(JobId::parse(job).unwrap()), kind, ..bench.request(input) }).await.unwrap()
}

fn shown(bench: &Bench, name: &str) -> String {
    String::from_utf8(bench.rig.nas.get(name).unwrap_or_default().to_vec()).unwrap()
}

#[tokio::test]
async fn a_name_stays_with_the_document_that_had_it_first() {
    let bench = folders();
    let first = bench.scan(tree("one")).await;
    bench.publish_as("j-1", JobKind::Generate, 1, &first, &["first.md", "same.md"]).await;
    let before = shown(&bench, "out/same.md.json");
    let second = listed(&bench, "j-2", tree("two"), JobKind::Generate).await;
    assert_eq!(second.names(EntryAction::Do), ["second.md"]);
    assert_eq!(second.names(EntryAction::Conflict), ["same.md"]);
    let reason = &second.entries["same.md"].reason;
    assert!(reason.contains("nas://docs/two/same.md") && reason.contains("nas://docs/one/same.md"), "{reason}");
    assert_eq!(second.segments.iter().map(|info| info.conflict).sum::<u32>(), 1);
    bench.publish_as("j-2", JobKind::Generate, 2, &second, &["second.md"]).await;
    assert_eq!(shown(&bench, "out/same.md.json"), before);
    // Neither is done again, and neither job takes the other's documents for deleted ones.
    assert_eq!(bench.scan(tree("one")).await.names(EntryAction::Unchanged), ["first.md", "same.md"]);
    let again = listed(&bench, "j-2", tree("two"), JobKind::Generate).await;
    assert_eq!(again.names(EntryAction::Unchanged), ["second.md"]);
    assert_eq!((again.names(EntryAction::Conflict), again.names(EntryAction::Deleted)), (vec!["same.md"], vec![]));
}

#[tokio::test]
async fn a_document_that_left_gives_its_name_free() {
    let bench = folders();
    let first = bench.scan(tree("one")).await;
    bench.publish_as("j-1", JobKind::Generate, 1, &first, &["first.md", "same.md"]).await;
    assert!(bench.rig.nas.delete("one/same.md"));
    let second = listed(&bench, "j-2", tree("two"), JobKind::Generate).await;
    assert_eq!(second.names(EntryAction::Do), ["same.md", "second.md"]);
    let told = bench.publish_as("j-2", JobKind::Generate, 2, &second, &["same.md", "second.md"]).await;
    assert!(told.iter().all(|output| output.outcome() == ItemOutcome::Published), "{told:?}");
    assert_eq!(shown(&bench, "out/same.md.json"), "result of same.md by 2");
    // The first folder's job neither removes it nor, with its document back, takes it again.
    assert_eq!(bench.scan(tree("one")).await.names(EntryAction::Deleted), [""; 0]);
    bench.rig.nas.replace("one/same.md", b"back again");
    assert_eq!(bench.scan(tree("one")).await.names(EntryAction::Conflict), ["same.md"]);
}

#[tokio::test]
async fn jobs_that_list_at_the_same_time_do_not_overwrite_each_other_either() {
    for kind in [JobKind::Generate, JobKind::Embed] {
        let bench = folders();
        let first = listed(&bench, "j-1", tree("one"), kind).await;
        let second = listed(&bench, "j-2", tree("two"), kind).await;
        assert_eq!(second.names(EntryAction::Do), ["same.md", "second.md"], "nothing is published yet");
        bench.publish_as("j-1", kind, 1, &first, &["same.md"]).await;
        let told = bench.publish_as("j-2", kind, 2, &second, &["same.md", "second.md"]).await;
        let same = told.iter().find(|output| output.name.as_ref() == b"same.md.json").unwrap();
        assert_eq!(same.outcome(), ItemOutcome::Conflict);
        assert!(same.reason.contains("two/same.md") && same.reason.contains("one/same.md"), "{}", same.reason);
        assert_eq!(shown(&bench, "out/same.md.json"), "result of same.md by 1");
        let beside = String::from_utf8(same.conflict_name.to_vec()).unwrap();
        assert_eq!(shown(&bench, &format!("out/{beside}")), "result of same.md by 2", "both are kept");
        assert_eq!(shown(&bench, "out/second.md.json"), "result of second.md by 2");
        // What the first gave is as good as before, also to a gateway that starts anew.
        assert_eq!(listed(&bench, "j-1", tree("one"), kind).await.names(EntryAction::Unchanged), ["same.md"]);
        assert_eq!(listed(&bench, "j-2", tree("two"), kind).await.names(EntryAction::Conflict), ["same.md"]);
        let anew = bench.rig.start();
        let ledger = anew.publisher.ledger(&anew.place).await.unwrap();
        assert_eq!(ledger.output(b"same.md.json").unwrap().job, "j-1");
    }
}

#[tokio::test]
async fn kinds_of_jobs_that_name_their_results_alike_do_not_share_a_place() {
    let bench = bench(Limits::default());
    bench.rig.nas.replace("in/scan.pdf", b"x");
    let read = listed(&bench, "j-1", tree("in"), JobKind::Ocr).await;
    bench.publish_as("j-1", JobKind::Ocr, 1, &read, &["scan.pdf"]).await;
    let asked = listed(&bench, "j-2", tree("in"), JobKind::Generate).await;
    let reason = &asked.entries["scan.pdf"].reason;
    assert!(asked.names(EntryAction::Conflict) == ["scan.pdf"] && reason.contains("OCR"), "{reason}");
    // Vectors have names of their own.
    let embedded = listed(&bench, "j-3", tree("in"), JobKind::Embed).await;
    assert_eq!(embedded.names(EntryAction::Do), ["scan.pdf"]);
}

#[tokio::test]
async fn texts_of_another_job_do_not_replace_those_of_the_first() {
    let bench = folders();
    let texts = async |texts: &[&str]| {
        let payload = v1::InlineInput { texts: texts.iter().map(|text| (*text).to_owned()).collect() };
        Input::Payload(bench.running.blobs.put(&prost::Message::encode_to_vec(&payload).into()).await.unwrap())
    };
    let first = listed(&bench, "j-1", texts(&["one"]).await, JobKind::Generate).await;
    bench.publish_as("j-1", JobKind::Generate, 1, &first, &["text-000001"]).await;
    let second = listed(&bench, "j-2", texts(&["another", "two"]).await, JobKind::Generate).await;
    assert_eq!(second.names(EntryAction::Conflict), ["text-000001"]);
    assert_eq!(second.names(EntryAction::Do), ["text-000002"]);
}

#[tokio::test]
async fn what_is_excluded_is_neither_listed_nor_deleted() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish_as("j-1", JobKind::Generate, 1, &first, &["README", "a.md", "b.txt", "sub/c.rs"]).await;
    let without = |patterns: &[&str]| {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Request { exclude: Exclude::new(&patterns).unwrap(), ..bench.request(tree("in")) }
    };
    let names = |listing: &Listing| listing.entries.keys().cloned().collect::<Vec<_>>().join(" ");
    let all = "README a.md b.txt big.txt link.md noext photo.jpg sub/c.rs sub/deep/d.md";
    assert_eq!(names(&bench.ask(without(&[])).await.unwrap()), all);
    for (patterns, left) in [
        (&["*.txt", "deep", "nothing/here"][..], "README a.md link.md noext photo.jpg sub/c.rs"),
        (&["sub/*.rs", "*.jpg"], "README a.md b.txt big.txt link.md noext sub/deep/d.md"),
        (&["**/*.md", "[A-Z]*"], "b.txt big.txt noext photo.jpg sub/c.rs"),
        (&["sub"], "README a.md b.txt big.txt link.md noext photo.jpg"),
    ] {
        let listing = bench.ask(without(patterns)).await.unwrap();
        assert_eq!(names(&listing), left, "{patterns:?}");
    }
    // A file that left is deleted by a job that would have seen it, and by no other.
    bench.rig.nas.delete("in/sub/c.rs");
    assert_eq!(bench.ask(without(&["sub"])).await.unwrap().names(EntryAction::Deleted), [""; 0]);
    assert_eq!(bench.ask(without(&["*.md"])).await.unwrap().names(EntryAction::Deleted), ["sub/c.rs"]);
    let single = Request { input: tree("in/a.md"), ..without(&["*.md"]) };
    assert!(bench.ask(single).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn what_a_nas_keeps_for_itself_is_no_document() {
    let bench = usual();
    for name in ["in/@eaDir/a.md", "in/sub/#recycle/old.txt", "in/lost+found/x.txt", "in/.hidden/x.txt"] {
        bench.rig.nas.replace(name, b"somebody's deleted words");
    }
    let listing = bench.scan(tree("in")).await;
    assert_eq!(listing.names(EntryAction::Do), DOCUMENTS);
    assert!(listing.names(EntryAction::Skip).iter().all(|name| !name.contains("eaDir") && !name.contains("recycle")));
}

#[tokio::test]
async fn names_that_are_not_utf8_and_look_alikes_are_kept_apart() {
    let bench = bench(Limits::default());
    let nas = &bench.rig.nas;
    nas.replace("in/caf\u{e9}.md", b"nfc");
    nas.replace("in/cafe\u{301}.md", b"nfd");
    nas.replace("in/a b\nc.md", b"x");
    nas.replace("in/%2e%2e.md", b"x");
    let listing = bench.scan(tree("in")).await;
    assert_eq!(listing.names(EntryAction::Do).len(), 4);
    let long = "x".repeat(230) + ".md";
    nas.replace(&format!("in/{long}"), b"x");
    let listing = bench.scan(tree("in")).await;
    assert!(listing.entries[&long].reason.contains("215"), "{}", listing.entries[&long].reason);
}
