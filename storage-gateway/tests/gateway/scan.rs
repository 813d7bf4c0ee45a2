//! Scans: what is listed, skipped, unchanged, deleted, and when a scan refuses rather than guesses.

use std::collections::BTreeMap;
use std::sync::Arc;

use ingle_gateway::exports::Exports;
use ingle_gateway::limits::Limits;
use ingle_gateway::scan::exclude::Exclude;
use ingle_gateway::scan::{Look, Request, Scanner};
use ingle_proto::storage::Object;
use ingle_proto::v1::{self, EntryAction, JobKind, input_spec::Input, scan_response::Message};
use ingle_proto::{Digest, ErrorCode, JobId, Problem};
use tokio::sync::mpsc;

use crate::rig::{Rig, Running};

pub(crate) struct Bench {
    pub(crate) rig: Rig,
    pub(crate) running: Running,
    scanner: Scanner,
}

#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) entries: BTreeMap<String, v1::SegmentEntry>,
    pub(crate) segments: Vec<v1::SegmentInfo>,
    pub(crate) done: v1::ScanDone,
}

impl Listing {
    pub(crate) fn names(&self, action: EntryAction) -> Vec<&str> {
        self.entries.iter().filter(|(_, e)| e.action() == action).map(|(n, _)| n.as_str()).collect()
    }
}

pub(crate) fn bench(limits: Limits) -> Bench {
    let rig = Rig::new(true);
    let running = rig.start();
    let exports = Exports::empty(running.meters.clone()).with("docs", running.place.export.clone());
    let scanner = Scanner::new(
        Arc::new(exports),
        running.publisher.clone(),
        running.blobs.clone(),
        running.fence.clone(),
        limits,
        running.meters.clone(),
    );
    Bench { rig, running, scanner }
}

fn reference(path: &str) -> v1::ObjectRef {
    v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() }
}

pub(crate) fn tree(path: &str) -> Input {
    Input::Tree(reference(path))
}

pub(crate) fn glob(base: &str, pattern: &str) -> Input {
    Input::Glob(v1::Glob { base: Some(reference(base)), pattern: pattern.into() })
}

impl Bench {
    pub(crate) fn request(&self, input: Input) -> Request {
        Request {
            epoch: None,
            job: Some(JobId::parse("j-1").unwrap()),
            input,
            place: Object::parse("nas://docs/out").unwrap(),
            kind: JobKind::Generate,
            model: vec![1; 32],
            parameters: vec![2; 32],
            force: false,
            text_from: None,
            exclude: Exclude::default(),
            principal: String::new(),
            look: Look::default(),
        }
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Listing, Problem> {
        let (out, mut answers) = mpsc::channel::<Result<v1::ScanResponse, tonic::Status>>(64);
        let collect = async {
            let mut listing = Listing::default();
            while let Some(answer) = answers.recv().await {
                match answer.unwrap().message.unwrap() {
                    Message::Progress(_) => {}
                    Message::Segment(info) => {
                        let segment: v1::Segment =
                            self.running.blobs.message("segment", info.blob.as_ref().unwrap()).await.unwrap();
                        assert_eq!(segment.entries.len(), info.entries as usize);
                        for entry in segment.entries {
                            let name = String::from_utf8_lossy(&entry.name).into_owned();
                            assert!(listing.entries.insert(name.clone(), entry).is_none(), "{name} twice");
                        }
                        listing.segments.push(info);
                    }
                    Message::Done(done) => listing.done = done,
                }
            }
            listing
        };
        let scan = async {
            let out = out;
            self.scanner.scan(request, &out).await
        };
        let (ended, listing) = tokio::join!(scan, collect);
        ended.map(|()| listing)
    }

    pub(crate) async fn scan(&self, input: Input) -> Listing {
        self.ask(self.request(input)).await.unwrap()
    }

    /// Publishes `NAME.json` for each document as a node would have made it from this listing.
    pub(crate) async fn publish(&self, attempt: u64, listing: &Listing, names: &[&str]) {
        self.publish_as("j-1", JobKind::Generate, attempt, listing, names).await;
    }

    /// [`Bench::publish`] for this job; answers the outcomes.
    pub(crate) async fn publish_as(
        &self,
        job: &str,
        kind: JobKind,
        attempt: u64,
        listing: &Listing,
        names: &[&str],
    ) -> Vec<v1::OutputOutcome> {
        let mut manifest = v1::ResultManifest::default();
        for (at, name) in names.iter().enumerate() {
            let entry = &listing.entries[*name];
            let data = bytes::Bytes::from(format!("result of {name} by {attempt}"));
            let staged = format!("j-1-{at}-{attempt}");
            let place = &self.running.place;
            let sealed = ingle_gateway::file::write_whole(&place.export, &place.temporary(), &data).await.unwrap();
            sealed.name(&place.staged(&staged).unwrap()).await.unwrap();
            manifest.outputs.push(v1::OutputResult {
                staged_name: staged,
                name: format!("{name}.json").into_bytes().into(),
                digest: Digest::of(&data).to_wire(),
                size: data.len() as u64,
                inputs: vec![v1::Provenance {
                    name: entry.name.clone(),
                    size: entry.size,
                    mtime_ns: entry.mtime_ns,
                    content_digest: Digest::of(name.as_bytes()).to_wire(),
                    gone: false,
                }],
                ..Default::default()
            });
        }
        let mut request = self.running.stage(attempt, &[]).await;
        request.manifest = self.running.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await.unwrap();
        (request.job, request.kind) = (JobId::parse(job).unwrap(), kind);
        let answer = self.running.publish(&request).await.unwrap();
        let outcomes = answer.outcomes.unwrap();
        let outcomes: v1::OutcomeManifest = self.running.blobs.message("outcomes", &outcomes).await.unwrap();
        outcomes.outputs
    }
}

pub(crate) fn usual() -> Bench {
    let bench = bench(Limits { document_bytes_max: 100, ..Limits::default() });
    let nas = &bench.rig.nas;
    for name in ["a.md", "b.txt", "sub/c.rs", "sub/deep/d.md", "README"] {
        nas.replace(&format!("in/{name}"), name.as_bytes());
    }
    nas.replace("in/photo.jpg", b"x");
    nas.replace("in/noext", b"x");
    nas.replace("in/big.txt", &[b'x'; 101]);
    nas.replace("in/.hidden.md", b"x");
    nas.replace("in/.git/config.md", b"x");
    nas.replace("in/.inglenook/x.md", b"x");
    nas.symlink("in/link.md");
    nas.replace("elsewhere/z.md", b"x");
    // Nobody has touched them for a while.
    nas.pass(10_000_000_000);
    bench
}

pub(crate) const DOCUMENTS: [&str; 5] = ["README", "a.md", "b.txt", "sub/c.rs", "sub/deep/d.md"];

#[tokio::test]
async fn a_tree_is_listed_with_reasons_for_what_is_passed_over() {
    let bench = usual();
    let listing = bench.scan(tree("in")).await;
    assert_eq!(listing.names(EntryAction::Do), DOCUMENTS);
    assert_eq!(listing.names(EntryAction::Skip), ["big.txt", "link.md", "noext", "photo.jpg"]);
    let reason = |name: &str| listing.entries[name].reason.clone();
    assert!(reason("big.txt").contains("100"), "{}", reason("big.txt"));
    assert!(reason("link.md").contains("symbolic link"));
    assert!(reason("photo.jpg").contains("--text-from"), "{}", reason("photo.jpg"));
    let done = v1::ScanDone {
        buckets: 1,
        entries: 9,
        documents: 9,
        directories: 3,
        directories_moved: 3,
        ..Default::default()
    };
    assert_eq!(listing.done, done);
    assert_eq!(listing.segments.len(), 1);
    assert_eq!(listing.segments[0].to_do, 5);
    assert_eq!(listing.entries["sub/c.rs"].object, Some(reference("in/sub/c.rs")));
    // The same input gives the same blobs.
    let again = bench.scan(tree("in")).await;
    assert_eq!(again.segments, listing.segments);
    assert_eq!(again.done.directories_moved, 0);
}

#[tokio::test]
async fn objects_and_globs_name_what_they_say() {
    let bench = usual();
    let names = |listing: &Listing| listing.names(EntryAction::Do).join(" ");
    assert_eq!(names(&bench.scan(Input::Object(reference("in/sub/c.rs"))).await), "c.rs");
    assert_eq!(names(&bench.scan(tree("in/sub/c.rs")).await), "c.rs", "whoever types a path need not know what it is");
    assert_eq!(names(&bench.scan(glob("in", "*.md")).await), "a.md");
    assert_eq!(names(&bench.scan(glob("in", "**/*.md")).await), "a.md sub/deep/d.md");
    assert_eq!(names(&bench.scan(glob("in", "sub/*")).await), "sub/c.rs");
    assert_eq!(names(&bench.scan(glob("in", "{a.md,b.txt,sub/deep/[a-e].md}")).await), "a.md b.txt sub/deep/d.md");
    assert_eq!(names(&bench.scan(glob("in", "*.nothing")).await), "");
    for (input, code) in [
        (Input::Object(reference("in")), ErrorCode::ObjectKind),
        (Input::Object(reference("in/none.md")), ErrorCode::ObjectNotFound),
        (Input::Object(reference("in/link.md")), ErrorCode::ObjectKind),
        (tree("in/link.md"), ErrorCode::ObjectKind),
        (tree("none"), ErrorCode::ObjectNotFound),
        (tree("in/.inglenook"), ErrorCode::PathRefused),
        (tree("in/../in"), ErrorCode::PathRefused),
        (glob("in", "../*"), ErrorCode::InvalidArgument),
        (glob("in", "/etc/*"), ErrorCode::InvalidArgument),
        (glob("in", "[z"), ErrorCode::InvalidArgument),
        (glob("in", ""), ErrorCode::InvalidArgument),
        (Input::Tree(v1::ObjectRef { export: "nope".into(), ..Default::default() }), ErrorCode::ExportNotFound),
        (Input::Inline(v1::InlineInput::default()), ErrorCode::InvalidArgument),
    ] {
        let shown = format!("{input:?}");
        assert_eq!(bench.ask(bench.request(input)).await.expect_err(&shown).code, code, "{shown}");
    }
}

#[tokio::test]
async fn a_job_that_reads_pages_takes_what_has_pages() {
    let bench = usual();
    bench.rig.nas.replace("in/scan.pdf", b"x");
    let listing = bench.ask(Request { kind: JobKind::Ocr, ..bench.request(tree("in")) }).await.unwrap();
    assert_eq!(listing.names(EntryAction::Do), ["photo.jpg", "scan.pdf"]);
    assert!(listing.entries["a.md"].reason.contains("has text already"), "{}", listing.entries["a.md"].reason);
}

#[tokio::test]
async fn texts_of_another_place_stand_for_documents_that_have_none() {
    let bench = usual();
    let nas = &bench.rig.nas;
    nas.replace("in/scan.pdf", b"x");
    nas.replace("in/sub/fax.tif", b"x");
    // The place lies among the documents: its files are none of them.
    nas.replace("in/read/photo.jpg.txt", b"words");
    nas.replace("in/read/sub/fax.tif.txt", b"words");
    nas.replace("in/read/other.txt", b"words");
    nas.replace("in/none.png", b"x");
    nas.pass(5_000_000_000);
    let ask = |from: &str| Request { text_from: Some(Object::parse(from).unwrap()), ..bench.request(tree("in")) };
    let listing = bench.ask(ask("nas://docs/in/read")).await.unwrap();
    let expected = ["README", "a.md", "b.txt", "photo.jpg", "scan.pdf", "sub/c.rs", "sub/deep/d.md", "sub/fax.tif"];
    assert_eq!(listing.names(EntryAction::Do), expected);
    let entry = |name: &str| &listing.entries[name];
    assert_eq!(entry("sub/fax.tif").text, Some(reference("in/read/sub/fax.tif.txt")));
    assert_eq!(entry("sub/fax.tif").mtime_ns, entry("sub/fax.tif").text_mtime_ns, "the later of both");
    assert_eq!((entry("scan.pdf").text.as_ref(), entry("a.md").text.as_ref()), (None, None));
    assert!(entry("none.png").reason.contains("none.png.txt"), "{}", entry("none.png").reason);
    assert!(!listing.entries.contains_key("read/other.txt"));
    // Results are current until the text is read anew.
    bench.publish(1, &listing, &expected).await;
    let again = bench.ask(ask("nas://docs/in/read")).await.unwrap();
    assert_eq!(again.names(EntryAction::Unchanged), expected);
    nas.pass(5_000_000_000);
    nas.replace("in/read/photo.jpg.txt", b"other words");
    let again = bench.ask(ask("nas://docs/in/read")).await.unwrap();
    assert_eq!(again.names(EntryAction::Do), ["photo.jpg"]);
    assert!(again.entries["photo.jpg"].results_current, "the node looks whether the words are others");
    // A place that isn't there holds no texts; one of ours can't be.
    let listing = bench.ask(ask("nas://docs/nowhere")).await.unwrap();
    assert!(listing.entries["photo.jpg"].reason.contains("nowhere"));
    assert_eq!(bench.ask(ask("nas://nope/x")).await.unwrap_err().code, ErrorCode::ExportNotFound);
    assert_eq!(bench.ask(ask("nas://docs/in/.inglenook")).await.unwrap_err().code, ErrorCode::PathRefused);
}

#[tokio::test]
async fn only_what_changed_is_done_again() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    let second = bench.scan(tree("in")).await;
    assert_eq!(second.names(EntryAction::Unchanged), DOCUMENTS);
    assert_eq!(second.names(EntryAction::Do), [""; 0]);

    // Touched, changed, grown, and new.
    bench.rig.nas.set_mtime("in/a.md", 1_700_000_500_000_000_000);
    bench.rig.nas.edit("in/b.txt", b"other, and longer");
    bench.rig.nas.replace("in/new.md", b"x");
    let third = bench.scan(tree("in")).await;
    assert_eq!(third.names(EntryAction::Do), ["a.md", "b.txt", "new.md"]);
    let entry = &third.entries["a.md"];
    assert_eq!(entry.content_digest, Digest::of(b"a.md").to_wire());
    assert!(entry.results_current && !third.entries["new.md"].results_current);

    // Another prompt: everything, and the content's digest alone settles nothing.
    let other = Request { parameters: vec![9; 32], ..bench.request(tree("in")) };
    let listing = bench.ask(other).await.unwrap();
    assert_eq!(listing.names(EntryAction::Unchanged), [""; 0]);
    assert!(listing.entries.values().all(|e| !e.results_current));
    let forced = Request { force: true, ..bench.request(tree("in")) };
    let listing = bench.ask(forced).await.unwrap();
    assert_eq!(listing.names(EntryAction::Do).len(), 6);
    assert!(listing.entries.values().all(|e| e.content_digest.is_empty()));
    // Another kind of job knows nothing of these.
    let embed = Request { kind: JobKind::Embed, ..bench.request(tree("in")) };
    assert_eq!(bench.ask(embed).await.unwrap().names(EntryAction::Do).len(), 6);
}

#[tokio::test]
async fn a_result_that_somebody_deleted_is_made_again() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    assert!(bench.rig.nas.delete("out/sub/c.rs.json"));
    let second = bench.scan(tree("in")).await;
    assert_eq!(second.names(EntryAction::Do), ["sub/c.rs"]);
    // Nothing is to be settled by the content alone: the result is what is missing.
    let entry = &second.entries["sub/c.rs"];
    assert!(!entry.results_current && entry.content_digest.is_empty());
    bench.publish(2, &second, &["sub/c.rs"]).await;
    assert!(bench.rig.nas.get("out/sub/c.rs.json").is_some());
    assert_eq!(bench.scan(tree("in")).await.names(EntryAction::Do), [""; 0]);
}

#[tokio::test]
async fn a_file_as_young_as_the_scan_is_looked_into_again() {
    let bench = usual();
    let now_ns = ingle_daemon::clock::unix_ms() * 1_000_000;
    bench.rig.nas.set_mtime("in/a.md", now_ns);
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    let second = bench.scan(tree("in")).await;
    assert_eq!(second.names(EntryAction::Do), ["a.md"], "it may have changed again within the clock's grain");
    assert!(second.entries["a.md"].results_current);
}

#[tokio::test]
async fn a_place_that_somebody_removed_begins_anew() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    for name in bench.rig.nas.files(true).into_keys().filter(|name| name.starts_with("out/")) {
        assert!(bench.rig.nas.delete(&name));
    }
    let second = bench.scan(tree("in")).await;
    assert_eq!(second.names(EntryAction::Do), DOCUMENTS, "memory must not outlive the files");
    bench.publish(2, &second, &DOCUMENTS).await;
    // What is on disk now is whole: the next start reads it.
    let again = bench.rig.start();
    let ledger = again.publisher.ledger(&again.place).await.unwrap();
    assert!(ledger.output(b"a.md.json").is_some());
}

#[tokio::test]
async fn a_deleted_result_of_a_young_file_is_made_again() {
    let bench = usual();
    let now_ns = ingle_daemon::clock::unix_ms() * 1_000_000;
    bench.rig.nas.set_mtime("in/a.md", now_ns);
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    assert!(bench.rig.nas.delete("out/a.md.json"));
    let second = bench.scan(tree("in")).await;
    let entry = &second.entries["a.md"];
    assert!(!entry.results_current && entry.content_digest.is_empty(), "equal content must not settle it");
}

#[tokio::test]
async fn what_left_is_deleted_only_where_this_scan_looked() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    bench.rig.nas.delete("in/a.md");
    bench.rig.nas.delete("in/sub/c.rs");
    assert_eq!(bench.scan(tree("in")).await.names(EntryAction::Deleted), ["a.md", "sub/c.rs"]);
    assert_eq!(bench.scan(glob("in", "*.md")).await.names(EntryAction::Deleted), ["a.md"]);
    // Another folder, or one document, writing to the same place deletes nothing.
    assert_eq!(bench.scan(tree("elsewhere")).await.names(EntryAction::Deleted), [""; 0]);
    assert_eq!(bench.scan(tree("in/sub")).await.names(EntryAction::Deleted), [""; 0]);
    assert_eq!(bench.scan(Input::Object(reference("in/b.txt"))).await.names(EntryAction::Deleted), [""; 0]);
}

#[tokio::test]
async fn an_error_is_never_an_empty_directory() {
    let bench = usual();
    let first = bench.scan(tree("in")).await;
    bench.publish(1, &first, &DOCUMENTS).await;
    bench.rig.nas.break_directory(Some("in/sub"));
    let problem = bench.ask(bench.request(tree("in"))).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::StorageProtocol);
    bench.rig.nas.break_directory(None);
    // A directory that may not be entered is said, and nothing counts as deleted anywhere.
    bench.rig.nas.deny(Some("in/sub"));
    bench.rig.nas.delete("in/a.md");
    let listing = bench.scan(tree("in")).await;
    assert!(listing.entries["sub"].reason.contains("permission"));
    assert_eq!(listing.names(EntryAction::Deleted), [""; 0]);
    bench.rig.nas.deny(Some("in"));
    assert_eq!(bench.ask(bench.request(tree("in"))).await.unwrap_err().code, ErrorCode::StorageDenied);
}

#[tokio::test]
async fn results_are_not_input_of_the_job_that_writes_them() {
    let bench = usual();
    // Results beside the documents: the place is the input itself.
    let beside =
        |bench: &Bench| Request { place: Object::parse("nas://docs/in").unwrap(), ..bench.request(tree("in")) };
    let first = bench.ask(beside(&bench)).await.unwrap();
    let place =
        ingle_gateway::place::Place::new(Object::parse("nas://docs/in").unwrap(), bench.running.place.export.clone())
            .unwrap();
    let data = bytes::Bytes::from_static(b"{}");
    let sealed = ingle_gateway::file::write_whole(&place.export, &place.temporary(), &data).await.unwrap();
    sealed.name(&place.staged("s").unwrap()).await.unwrap();
    let entry = &first.entries["a.md"];
    let manifest = v1::ResultManifest {
        outputs: vec![v1::OutputResult {
            staged_name: "s".into(),
            name: "a.md.json".into(),
            digest: Digest::of(&data).to_wire(),
            size: 2,
            inputs: vec![v1::Provenance {
                name: entry.name.clone(),
                size: entry.size,
                mtime_ns: entry.mtime_ns,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut request = bench.running.stage(1, &[]).await;
    request.manifest = bench.running.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await.unwrap();
    bench.running.publisher.publish(&place, request).await.unwrap();
    assert!(bench.rig.nas.get("in/a.md.json").is_some());
    let second = bench.ask(beside(&bench)).await.unwrap();
    assert!(!second.entries.contains_key("a.md.json"));
    assert_eq!(second.names(EntryAction::Unchanged), ["a.md"]);
    // For a job with another place it is a document like any other.
    assert!(bench.scan(tree("in")).await.entries.contains_key("a.md.json"));
    // A place below the input is not entered.
    bench.rig.nas.replace("in/results/x.md", b"x");
    let inside = Request { place: Object::parse("nas://docs/in/results").unwrap(), ..bench.request(tree("in")) };
    assert!(!bench.ask(inside).await.unwrap().entries.contains_key("results/x.md"));
}

#[tokio::test]
async fn texts_given_with_the_job_are_numbered() {
    let bench = usual();
    let payload = v1::InlineInput { texts: vec!["one".into(), "two".into()] };
    let blob = bench.running.blobs.put(&prost::Message::encode_to_vec(&payload).into()).await.unwrap();
    let listing = bench.scan(Input::Payload(blob)).await;
    assert_eq!(listing.names(EntryAction::Do), ["text-000001", "text-000002"]);
    let entry = &listing.entries["text-000002"];
    assert_eq!((entry.inline_index, entry.object.clone(), entry.size), (Some(1), None, 3));
}

#[tokio::test]
async fn buckets_are_fixed_at_the_first_use() {
    let bench = bench(Limits::default());
    for number in 0..1500 {
        bench.rig.nas.replace(&format!("in/{:02}/{number:05}.md", number % 30), b"x");
    }
    let embed = |bench: &Bench| Request { kind: JobKind::Embed, ..bench.request(tree("in")) };
    let listing = bench.ask(embed(&bench)).await.unwrap();
    assert_eq!(listing.done.buckets, 4);
    assert_eq!(listing.entries.len(), 1500);
    for number in 0..4 {
        bench.rig.nas.replace(&format!("in/more{number}.md"), b"x");
    }
    for number in 1500..4000 {
        bench.rig.nas.replace(&format!("in/{number:05}.md"), b"x");
    }
    let listing = bench.ask(embed(&bench)).await.unwrap();
    assert_eq!(listing.done.buckets, 4, "more documents, the same buckets");
    assert!(listing.segments.iter().all(|s| s.entries <= 1000 && s.bucket < 4));
}

#[tokio::test]
async fn bounds_and_old_leaders_are_refused() {
    let bench = bench(Limits { scan_entries_max: 10, ..Limits::default() });
    for number in 0..11 {
        bench.rig.nas.replace(&format!("in/{number}.md"), b"x");
    }
    assert_eq!(bench.ask(bench.request(tree("in"))).await.unwrap_err().code, ErrorCode::TooLarge);
    let epoch = |revision| Some(ingle_proto::Epoch { generation: 1, revision });
    bench.rig.nas.delete("in/1.md");
    bench.ask(Request { epoch: epoch(5), ..bench.request(tree("in")) }).await.unwrap();
    let stale = Request { epoch: epoch(4), ..bench.request(tree("in")) };
    assert_eq!(bench.ask(stale).await.unwrap_err().code, ErrorCode::EpochStale);
}
