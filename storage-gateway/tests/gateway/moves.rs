//! What moves in a folder: what a look costs, documents that are being written, that are missing, that failed before.

use std::time::Duration;

use ingle_gateway::limits::{LISTS_IN_FLIGHT, Limits, SUSPECTED_FOR};
use ingle_gateway::scan::{Look, Request};
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, EntryAction};

use crate::scan::{Bench, DOCUMENTS, Listing, bench, tree, usual};

const SECOND: i64 = 1_000_000_000;
const NONE: [&str; 0] = [];

impl Bench {
    /// Asks for a pass of a standing job.
    fn pass(&self, pass: u64) -> Request {
        Request { look: Look { pass, settle_ms: 10_000, ..Look::default() }, ..self.request(tree("in")) }
    }

    async fn look(&self, pass: u64) -> Listing {
        self.ask(self.pass(pass)).await.unwrap()
    }
}

/// As long as two complete listings have to lie apart.
async fn apart() {
    tokio::time::sleep(SUSPECTED_FOR + Duration::from_millis(20)).await;
}

#[tokio::test]
async fn a_look_costs_one_listing_per_directory_and_no_question_per_file() {
    let bench = bench(Limits::default());
    for number in 0..2_000 {
        bench.rig.nas.replace(&format!("in/{}/{}/{number}.md", number % 10, number % 70), b"x");
        bench.rig.nas.replace(&format!("in/{}/{}/{number}.pdf", number % 10, number % 70), b"x");
        bench.rig.nas.replace(&format!("texts/{}/{}/{number}.pdf.txt", number % 10, number % 70), b"x");
    }
    let from = Some(ingle_proto::storage::Object::parse("nas://docs/texts").unwrap());
    let first = bench.ask(Request { text_from: from.clone(), ..bench.request(tree("in")) }).await.unwrap();
    assert_eq!((first.done.entries, first.done.directories), (4_000, 81));
    assert!(first.entries["0/0/0.pdf"].text.is_some());
    let looks = bench.rig.nas.looks();
    let within = |of: &std::collections::BTreeMap<String, u32>, below: &str| -> Vec<u32> {
        of.iter()
            .filter(|(path, _)| path.starts_with(below) && !path.contains(".inglenook"))
            .map(|(_, times)| *times)
            .collect()
    };
    assert_eq!(within(&looks.lists, "in"), [1; 81], "every directory once");
    assert_eq!(within(&looks.lists, "texts"), [1; 70], "and every directory of texts");
    assert_eq!(within(&looks.stats, "in"), [1], "of the input only the folder itself is asked for");
    assert_eq!(within(&looks.stats, "texts"), [1]);
}

#[tokio::test]
async fn a_slow_directory_holds_up_no_other_and_the_order_of_answers_does_not_matter() {
    let bench = bench(Limits::default());
    for chain in 0..12 {
        for depth in 0..6 {
            let below = (0..depth).map(|d| format!("d{d}/")).collect::<String>();
            bench.rig.nas.replace(&format!("in/c{chain}/{below}{depth}.md"), b"x");
        }
    }
    let all = 1 + 12 * 6;
    bench.rig.nas.looks().slow = Some(("in/c0".into(), all - 6));
    let slow = bench.scan(tree("in")).await;
    assert_eq!(slow.entries.len(), 12 * 6);
    assert!(all > LISTS_IN_FLIGHT);
    bench.rig.nas.looks().slow = None;
    for seed in 0..20 {
        bench.rig.nas.looks().shuffled = Some(seed);
        let again = bench.scan(tree("in")).await;
        assert_eq!(again.segments, slow.segments, "seed {seed}");
        assert_eq!(again.done.directories_moved, 0, "seed {seed}");
    }
}

#[tokio::test]
async fn a_look_that_finds_nothing_new_writes_no_segments_and_tells_what_moved() {
    let bench = usual();
    let first = bench.look(1).await;
    assert_eq!(first.names(EntryAction::Do), DOCUMENTS);
    assert_eq!((first.done.documents, first.done.directories, first.done.directories_moved), (9, 3, 3));
    bench.publish(1, &first, &DOCUMENTS).await;
    for pass in [2, 2, 3] {
        let quiet = bench.look(pass).await;
        assert!(quiet.segments.is_empty());
        let done = quiet.done;
        assert_eq!((done.documents, done.unchanged, done.skipped, done.held, done.entries), (9, 5, 4, 0, 0));
        assert_eq!((done.waiting, done.suspected, done.directories_moved), (0, 0, 0));
    }
    bench.rig.nas.replace("in/sub/new.md", b"x");
    bench.rig.nas.pass(11 * SECOND);
    let look = bench.look(3).await;
    assert_eq!(look.names(EntryAction::Do), ["sub/new.md"]);
    assert_eq!(look.names(EntryAction::Skip).len(), 4, "where there is something to tell, they are told along");
    assert_eq!((look.done.unchanged, look.done.skipped, look.done.directories_moved), (5, 0, 1));
    // Across a restart of the gateway: what it saw lies in the place.
    bench.publish(2, &look, &["sub/new.md"]).await;
    assert!(bench.look(4).await.segments.is_empty());
}

#[tokio::test]
async fn a_document_is_taken_once_it_has_been_still() {
    let bench = usual();
    let nas = &bench.rig.nas;
    bench.publish(1, &bench.look(1).await, &DOCUMENTS).await;
    nas.replace("in/growing.md", b"half");
    nas.pass(5 * SECOND);
    let look = bench.look(2).await;
    assert_eq!((look.segments.len(), look.done.waiting, look.done.documents), (0, 1, 10));
    assert!(nas.edit("in/growing.md", b"half and more"));
    nas.pass(9 * SECOND);
    assert_eq!(bench.look(2).await.done.waiting, 1, "it grew in the meantime");
    nas.pass(2 * SECOND);
    let look = bench.look(2).await;
    assert_eq!((look.names(EntryAction::Do), look.done.waiting), (vec!["growing.md"], 0));
    bench.publish(2, &look, &["growing.md"]).await;
    // A known document that is being changed keeps its result and is not missing.
    assert!(nas.edit("in/a.md", b"changed"));
    // What is written with an old time, as `cp -p` does, has changed just now all the same.
    nas.replace("in/copied.md", b"x");
    nas.set_mtime("in/copied.md", 1_600_000_000 * SECOND);
    let look = bench.look(3).await;
    assert_eq!((look.segments.len(), look.done.waiting, look.done.suspected), (0, 2, 0));
    assert!(nas.get("out/a.md.json").is_some());
    nas.pass(11 * SECOND);
    assert_eq!(bench.look(3).await.names(EntryAction::Do), ["a.md", "copied.md"]);
    // The first look tells of those that wait, with the reason.
    nas.replace("in/late.md", b"x");
    let first =
        bench.ask(Request { job: Some(ingle_proto::JobId::parse("j-2").unwrap()), ..bench.pass(1) }).await.unwrap();
    assert_eq!((first.names(EntryAction::Wait), first.done.waiting), (vec!["late.md"], 1));
    assert!(first.entries["late.md"].reason.contains("10 s"), "{}", first.entries["late.md"].reason);
    assert_eq!(first.segments[0].waiting, 1);
    // A job that looks once waits for nothing.
    assert!(bench.scan(tree("in")).await.names(EntryAction::Do).contains(&"late.md"));
}

#[tokio::test]
async fn a_result_leaves_when_two_complete_listings_missed_its_document() {
    let bench = usual();
    let nas = &bench.rig.nas;
    bench.publish(1, &bench.look(1).await, &DOCUMENTS).await;
    assert!(nas.delete("in/a.md"));
    let look = bench.look(2).await;
    assert_eq!((look.segments.len(), look.done.suspected, look.done.documents), (0, 1, 8));
    // An error is no listing, and one that is not complete doesn't count.
    apart().await;
    nas.break_directory(Some("in/sub/deep"));
    assert_eq!(bench.ask(bench.pass(2)).await.unwrap_err().code, ErrorCode::StorageProtocol);
    nas.break_directory(None);
    nas.deny(Some("in/sub/deep"));
    let look = bench.look(2).await;
    assert_eq!((look.names(EntryAction::Deleted), look.done.suspected), (vec![], 0));
    nas.deny(None);
    let look = bench.look(2).await;
    assert_eq!(look.names(EntryAction::Deleted), ["a.md"]);
    // One that is back in time loses nothing, and is suspected anew the next time.
    nas.replace("in/a.md", b"a.md");
    assert!(nas.delete("in/b.txt"));
    assert_eq!(bench.look(3).await.done.suspected, 1);
    nas.replace("in/b.txt", b"b.txt");
    nas.pass(11 * SECOND);
    bench.look(3).await;
    apart().await;
    assert!(nas.delete("in/b.txt"));
    assert_eq!(bench.look(3).await.names(EntryAction::Deleted), NONE);
}

#[tokio::test]
async fn a_job_that_looks_once_looks_twice_before_it_deletes() {
    let bench = usual();
    let nas = &bench.rig.nas;
    bench.publish(1, &bench.scan(tree("in")).await, &DOCUMENTS).await;
    // A server that leaves a name out of one listing, as some do while a directory changes.
    nas.looks().overlooked = Some("in/sub/c.rs".into());
    let listing = bench.scan(tree("in")).await;
    assert_eq!(
        (listing.names(EntryAction::Deleted), listing.names(EntryAction::Unchanged)),
        (vec![], DOCUMENTS.to_vec())
    );
    // Gone with its directory: the one above is asked.
    for name in ["in/sub/deep/d.md", "in/sub/deep", "in/a.md"] {
        assert!(nas.delete(name));
    }
    nas.looks().lists.clear();
    nas.looks().stats.clear();
    assert_eq!(bench.scan(tree("in")).await.names(EntryAction::Deleted), ["a.md", "sub/deep/d.md"]);
    let looks = nas.looks();
    assert_eq!((looks.lists["in"], looks.lists["in/sub"], looks.lists["in/sub/deep"]), (2, 2, 1));
    assert!(!looks.stats.contains_key("in/a.md"), "directories are listed again, files aren't asked for");
}

#[tokio::test]
async fn a_directory_that_vanishes_under_a_look_is_an_error_and_deletes_nothing() {
    let bench = usual();
    bench.publish(1, &bench.scan(tree("in")).await, &DOCUMENTS).await;
    bench.rig.nas.looks().vanishing = Some("in/sub".into());
    let problem = bench.ask(bench.request(tree("in"))).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::ObjectChanged, "{problem}");
    assert!(problem.retryable());
}

#[tokio::test]
async fn most_documents_gone_at_once_are_not_believed() {
    let bench = bench(Limits::default());
    let nas = &bench.rig.nas;
    let names: Vec<String> = (0..20).map(|n| format!("{n:02}.md")).collect();
    names.iter().for_each(|name| nas.replace(&format!("in/{name}"), b"x"));
    nas.pass(11 * SECOND);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    bench.publish(1, &bench.look(1).await, &all).await;
    for name in &names[..11] {
        assert!(nas.delete(&format!("in/{name}")));
    }
    for request in [bench.request(tree("in")), bench.pass(2), bench.pass(2)] {
        let problem = bench.ask(request).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::DocumentsVanished);
        assert!(problem.message.contains("11 of 20") && !problem.retryable(), "{problem}");
    }
    // Restored in part: what is missing now is believed.
    nas.replace("in/10.md", b"x");
    assert_eq!(bench.look(2).await.done.suspected, 10);
    // Somebody who means it.
    assert!(nas.delete("in/10.md"));
    let look = Look { allow_mass_deletion: true, ..Look::default() };
    let listing = bench.ask(Request { look, ..bench.request(tree("in")) }).await.unwrap();
    assert_eq!(listing.names(EntryAction::Deleted).len(), 11);
}

#[tokio::test]
async fn a_folder_in_place_of_another_deletes_nothing() {
    let bench = usual();
    let nas = &bench.rig.nas;
    bench.publish(1, &bench.scan(tree("in")).await, &DOCUMENTS).await;
    // The disk isn't mounted: the directory below the mount point is there, and empty.
    let there = nas.files(true);
    for name in there.keys().filter(|name| name.starts_with("in/")) {
        assert!(nas.delete(name));
    }
    nas.remount();
    for request in [bench.request(tree("in")), bench.pass(1)] {
        let problem = bench.ask(request).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::DocumentsVanished);
        assert!(problem.message.contains("another directory"), "{problem}");
    }
    // Mounted again, on another device: everything is as it was.
    for name in DOCUMENTS {
        nas.replace(&format!("in/{name}"), name.as_bytes());
    }
    assert_eq!(bench.scan(tree("in")).await.names(EntryAction::Deleted), NONE);
}

#[tokio::test]
async fn what_could_not_be_done_is_told_again_when_it_changes_or_its_pass_is_not_over() {
    let bench = usual();
    let nas = &bench.rig.nas;
    let first = bench.look(1).await;
    bench.publish(1, &first, &DOCUMENTS[1..]).await;
    // The coordinator has not heard of the listing, or its pass was cut off.
    let again = bench.look(1).await;
    assert_eq!((again.names(EntryAction::Do), again.names(EntryAction::Unchanged).len()), (vec!["README"], 4));
    for pass in 2..5 {
        let look = bench.look(pass).await;
        assert_eq!((look.segments.len(), look.done.held, look.done.unchanged), (0, 1, 4), "pass {pass}");
    }
    // A pass that was listed and cut off is listed again, whole.
    assert!(nas.edit("in/README", b"mended"));
    nas.pass(11 * SECOND);
    for _ in 0..2 {
        let look = bench.look(5).await;
        assert_eq!((look.names(EntryAction::Do), look.done.held), (vec!["README"], 0));
    }
    assert_eq!(bench.look(6).await.done.held, 1);
    // A result that somebody removed is made again, tried or not.
    assert!(nas.delete("out/a.md.json"));
    assert_eq!(bench.look(6).await.names(EntryAction::Do), ["a.md"]);
    // Another prompt is another matter, and so is another job.
    let other = Request { parameters: vec![9; 32], ..bench.pass(7) };
    assert_eq!(bench.ask(other).await.unwrap().names(EntryAction::Do), DOCUMENTS);
    let other = Request { job: Some(ingle_proto::JobId::parse("j-9").unwrap()), ..bench.pass(2) };
    assert_eq!(bench.ask(other).await.unwrap().names(EntryAction::Do), ["README", "a.md"]);
}

#[tokio::test]
async fn what_was_seen_may_be_lost_or_damaged() {
    let bench = usual();
    let nas = &bench.rig.nas;
    bench.publish(1, &bench.look(1).await, &DOCUMENTS[1..]).await;
    assert!(nas.delete("in/a.md"));
    assert_eq!(bench.look(2).await.done.suspected, 1);
    apart().await;
    let kept: Vec<String> = nas.files(true).into_keys().filter(|name| name.contains("/seen/")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(nas.edit(&kept[0], b"not what it was"));
    let look = bench.look(2).await;
    assert_eq!(look.names(EntryAction::Do), ["README"], "what failed is tried once more");
    assert_eq!(
        (look.names(EntryAction::Deleted), look.done.suspected),
        (vec![], 1),
        "and what is missing is suspected anew"
    );
    let look = bench.look(3).await;
    assert_eq!((look.done.held, look.segments.len()), (1, 0));
}

#[tokio::test]
async fn a_time_stamp_that_was_set_back_does_not_hide_a_change() {
    let bench = usual();
    let nas = &bench.rig.nas;
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    let mtime_ns = first.entries["a.md"].mtime_ns;
    // Same size, same time, other words.
    assert!(nas.edit("in/a.md", b"x.md"));
    nas.set_mtime("in/a.md", mtime_ns);
    let second = bench.scan(tree("in")).await;
    assert_eq!(second.names(EntryAction::Do), ["a.md"]);
    assert!(second.entries["a.md"].results_current, "the node compares the content");
    nas.set_ctime("in/a.md", mtime_ns);
    assert_eq!(bench.scan(tree("in")).await.names(EntryAction::Do), NONE);
}

#[tokio::test]
async fn coarse_times_and_a_clock_that_lags_are_not_trusted() {
    // The NAS of these tests lives in another year: what counts is how old a document is by its own clock.
    for (age, trusted) in [(0, false), (1, false), (2, false), (4, true)] {
        let bench = bench(Limits::default());
        bench.rig.nas.replace("in/a.md", b"x");
        let second = bench.rig.nas.now_ns() / SECOND * SECOND;
        // As FAT keeps times: whole seconds, every other one.
        bench.rig.nas.set_mtime("in/a.md", second - second % (2 * SECOND));
        bench.rig.nas.set_ctime("in/a.md", second - second % (2 * SECOND));
        bench.rig.nas.pass(age * SECOND);
        let first = bench.scan(tree("in")).await;
        bench.publish(1, &first, &["a.md"]).await;
        let again = bench.scan(tree("in")).await;
        let expected = if trusted { EntryAction::Unchanged } else { EntryAction::Do };
        assert_eq!(again.entries["a.md"].action(), expected, "{age} s old when it was scanned");
    }
}

#[tokio::test]
async fn a_settle_time_out_of_its_bounds_is_refused() {
    let wire = v1::ScanRequest {
        settle_s: 3601,
        kind: v1::JobKind::Embed.into(),
        input: Some(v1::InputSpec { input: Some(tree("in")) }),
        place: Some(v1::ObjectRef { export: "docs".into(), path: "out".into() }),
        ..Default::default()
    };
    let problem = ingle_gateway::scan::check(wire.clone()).unwrap_err();
    assert!(problem.message.contains("settle_s"), "{problem}");
    let scope = |exclude: &[&str]| {
        let exclude = exclude.iter().map(|pattern| (*pattern).to_owned()).collect();
        ingle_gateway::scan::check(v1::ScanRequest { settle_s: 0, exclude, ..wire.clone() }).unwrap().look.scope
    };
    assert_ne!(scope(&["a", "b"]), scope(&["ab"]), "what is left out belongs to what was seen");
}
