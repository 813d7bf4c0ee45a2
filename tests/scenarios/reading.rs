//! Pages become text: pictures and PDFs of a tree, hostile ones among them, and a person's document at once.

use std::collections::BTreeSet;

use ingle_proto::v1::{self, ItemOutcome, JobState, PageSource};
use ingle_tests::client::{counts, embed_job, object, ocr_job};
use ingle_tests::cluster::{Cluster, counted};
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;
use ingle_tests::papers::{huge_png, pdf, png, tiff};
use ingle_tests::parquet::rows;
use ingle_tests::share::Share;
use tonic::Code;

use crate::bad_input::code_of;

/// Twenty documents that can be read, with a line that each of them holds.
fn good(share: &Share) -> Vec<(String, String)> {
    let mut documents = Vec::new();
    for number in 0..20 {
        let line = format!("letter number {number}");
        let (name, bytes) = match number % 4 {
            0 | 1 => (format!("letters/{number}.png"), png(&[&line, "with regards"])),
            2 => (format!("faxes/{number}.tif"), tiff(&[vec![&line], vec!["second page", "of it"]])),
            _ => (format!("{number}.pdf"), pdf(&[vec![&line, "printed"], vec!["the other side"]])),
        };
        share.write(&format!("in/{name}"), bytes);
        documents.push((name, line));
    }
    documents
}

fn text(share: &Share, name: &str) -> String {
    String::from_utf8(share.read(name)).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_becomes_text_and_hostile_documents_fail_with_their_reasons() {
    let cluster = Cluster::of(2).with(FakeModel::that_reads("eyes")).start().await;
    let share = &cluster.share;
    let documents = good(share);
    share.write("in/huge.png", huge_png(100_000));
    share.write("in/torn.pdf", &pdf(&[vec!["never seen"]])[..40]);
    share.write("in/named.tif", b"MZ\x90\0 not a picture at all\0\0");
    share.write("in/notes.md", "text already");
    share.write("in/letter.docx", "PK");
    share.age("in");

    let job = cluster.client.done(ocr_job()).await;
    let seen = counts(&job);
    assert_eq!(job.state(), JobState::Failed, "some failed: {job:?}");
    assert_eq!((seen.published, seen.failed, seen.skipped, seen.quarantined), (20, 3, 2, 0), "{job:?}");
    let items = cluster.client.items(&job.job_id).await;
    for (name, code) in [("huge.png", "TOO_LARGE"), ("torn.pdf", "DOCUMENT_MALFORMED"), ("named.tif", "DOCUMENT_KIND")]
    {
        let item = &items[name];
        assert_eq!((item.outcome(), item.code.as_str()), (ItemOutcome::Failed, code), "{item:?}");
        assert!(!item.reason.is_empty());
    }
    assert!(items["notes.md"].reason.contains("has text already"), "{:?}", items["notes.md"]);
    assert_eq!(items["letter.docx"].outcome(), ItemOutcome::Skipped);

    let expected: BTreeSet<_> =
        documents.iter().flat_map(|(name, _)| [format!("{name}.json"), format!("{name}.txt")]).collect();
    assert_eq!(share.names("out").into_iter().collect::<BTreeSet<_>>(), expected, "nothing of the others");
    for (name, line) in &documents {
        let json = share.json(&format!("out/{name}.json"));
        assert_eq!((json["schema"].as_u64(), json["path"].as_str()), (Some(1), Some(name.as_str())));
        assert_eq!((json["model"].as_str(), json["model_digest"].as_str().map(str::len)), (Some("eyes"), Some(64)));
        let pages = json["pages"].as_array().expect("pages");
        assert_eq!(json["page_count"].as_u64(), Some(pages.len() as u64));
        let source = if name.ends_with("pdf") { "text" } else { "ocr" };
        assert!(pages.iter().all(|page| page["source"] == source), "{name}: {json}");
        assert_eq!(pages[0]["lines"][0]["text"], line.as_str(), "{name}");
        assert_eq!(pages[0]["lines"][0]["box"].as_array().map(Vec::len), Some(4));
        let text = text(share, &format!("out/{name}.txt"));
        assert!(text.starts_with(line), "{name}: {text:?}");
        assert_eq!(text.matches('\x0c').count() + 1, pages.len(), "{name}: pages are parted by form feeds");
        assert_eq!(items[name].pages as usize, pages.len());
    }
    let fax = documents.iter().find(|(name, _)| name.ends_with("tif")).expect("one");
    assert_eq!(text(share, &format!("out/{}.txt", fax.0)), format!("{}\n\x0csecond page\nof it\n", fax.1));
    // Nobody had to be started again over them.
    for node in &cluster.nodes {
        assert_eq!(counted(&node.metrics.text(), "ingle_node_model_restarts_total"), 0);
    }

    // One edited, one gone; the others stay the very same files.
    let before = share.identities("out");
    share.write("in/letters/0.png", png(&["another letter"]));
    share.remove("in/faxes/2.tif");
    let seen = counts(&cluster.client.done(ocr_job()).await);
    assert_eq!((seen.published, seen.unchanged, seen.deleted, seen.failed), (1, 18, 1, 3));
    let after = share.identities("out");
    assert_eq!(text(share, "out/letters/0.png.txt"), "another letter\n");
    assert!(!after.contains_key("faxes/2.tif.txt") && !after.contains_key("faxes/2.tif.json"));
    let same = before.iter().filter(|(name, identity)| after.get(*name) == Some(*identity)).count();
    assert_eq!(same, 36, "eighteen documents with two files each");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_hurts_the_model_costs_its_document_only() {
    let cluster = Cluster::of(2).with(FakeModel::that_reads("eyes").panicking_at("dynamite")).start().await;
    for number in 0..6 {
        cluster.share.write(&format!("in/{number}.png"), png(&["harmless"]));
    }
    cluster.share.write("in/bad.png", png(&["a box of dynamite"]));
    let job = cluster.client.done(ocr_job()).await;
    assert_eq!((counts(&job).published, counts(&job).quarantined), (6, 1), "{job:?}");
    assert_eq!(cluster.client.item(&job.job_id, "bad.png").await.0, ItemOutcome::Quarantined);
    assert_eq!(cluster.share.names("out").len(), 12);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_document_is_read_at_once() {
    let cluster = Cluster::of(2).with(FakeModel::that_reads("eyes")).start().await;
    let client = &cluster.client;
    let answer = client.ocr(&png(&["one line", "another"]), 1000).await.expect("its text");
    assert_eq!(answer.text, "one line\nanother\n");
    assert_eq!(answer.pages.len(), 1);
    assert_eq!(answer.pages[0].source(), PageSource::Ocr);
    assert_eq!(answer.pages[0].lines.iter().map(|line| line.r#box.len()).collect::<Vec<_>>(), [8, 8]);
    assert_eq!(answer.model.expect("which model").name, "eyes");
    // In many pieces, and larger than one part of it that the coordinator holds.
    let long: Vec<Vec<&str>> = (0..90).map(|_| vec!["the same page"; 500]).collect();
    let document = tiff(&long);
    assert!(document.len() > 5 << 20);
    let answer = client.ocr(&document, 1 << 20).await.expect("its text");
    assert_eq!((answer.pages.len(), answer.text.matches('\x0c').count()), (90, 89));
    assert!(answer.pages.iter().zip(1..).all(|(page, number)| page.number == number && page.lines.len() == 500));
    // A PDF's own text needs no model, and its scans do.
    let answer = client.ocr(&pdf(&[vec!["Printed words"], vec![]]), 4096).await.expect("its text");
    let sources: Vec<_> = answer.pages.iter().map(v1::OcrPage::source).collect();
    assert_eq!(sources, [PageSource::Text, PageSource::Ocr], "{:?}", answer.pages);
    assert!(answer.text.starts_with("Printed words\n\x0c"), "{:?}", answer.text);

    let many: Vec<Vec<&str>> = (0..101).map(|_| vec!["x"]).collect();
    let refused = [
        ("nothing", client.ocr(&[], 1).await, "INVALID_ARGUMENT"),
        ("no picture", client.ocr(b"plain text", 100).await, "DOCUMENT_KIND"),
        ("torn", client.ocr(&png(&["x"])[..40], 100).await, "DOCUMENT_MALFORMED"),
        ("huge", client.ocr(&huge_png(100_000), 100).await, "TOO_LARGE"),
        ("101 pages", client.ocr(&tiff(&many), 1 << 20).await, "TOO_LARGE"),
        ("a piece of 2 MiB", client.ocr(&vec![0; 2 << 20], 2 << 20).await, "INVALID_ARGUMENT"),
        ("65 MiB", client.ocr(&vec![0; 65 << 20], 1 << 20).await, "TOO_LARGE"),
    ];
    for (what, answer, code) in refused {
        let status = answer.expect_err(what);
        assert_eq!((status.code(), code_of(&status).as_str()), (Code::InvalidArgument, code), "{what}: {status:?}");
    }
    client.ocr(&png(&["still there"]), 100).await.expect("it serves on");
    // What came for a call leaves with it.
    eventually("the calls' documents are gone", || async {
        match cluster.parts_of_calls() {
            0 => Ok(()),
            left => Err(format!("{left} parts are left")),
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_take_each_document_once_with_the_text_it_has() {
    let models = [FakeModel::that_reads("eyes"), FakeModel::that_embeds("words")];
    let [eyes, words] = models;
    let cluster = Cluster::of(2).with(eyes).with(words).start().await;
    let share = &cluster.share;
    share.write("in/note.md", "a note of its own");
    share.write("in/printed.pdf", pdf(&[vec!["printed words"]]));
    share.write("in/scan.png", png(&["scanned words"]));
    share.write("in/mixed.pdf", pdf(&[vec!["first printed"], vec![]]));
    share.write("in/lost.png", png(&["never read"]));
    share.age("in");
    let ocr = |out: &str| v1::JobSpec { output: Some(object(out)), ..ocr_job() };
    // Results among the documents: they are results all the same.
    let mut spec = ocr("in/read");
    spec.input = Some(v1::InputSpec {
        input: Some(v1::input_spec::Input::Glob(v1::Glob {
            base: Some(object("in")),
            pattern: "{scan.png,mixed.pdf,printed.pdf}".into(),
        })),
    });
    cluster.client.success(spec).await;
    let embed = || {
        let mut spec = embed_job();
        spec.embed = Some(v1::EmbedOptions { text_from: Some(object("in/read")), ..Default::default() });
        spec
    };
    let job = cluster.client.success(embed()).await;
    assert_eq!((counts(&job).published, counts(&job).skipped), (4, 1), "{job:?}");
    let (outcome, item) = cluster.client.item(&job.job_id, "lost.png").await;
    assert_eq!(outcome, ItemOutcome::Skipped);
    assert!(item.reason.contains("in/read") && item.reason.contains("OCR"), "{item:?}");
    let found: BTreeSet<(String, String)> =
        rows(share, "out").into_iter().map(|row| (row.path, row.text.trim().to_owned())).collect();
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["mixed.pdf", "note.md", "printed.pdf", "scan.png"], "each once: {found:?}");
    let says = |name: &str, word: &str| found.iter().any(|(path, text)| path == name && text.contains(word));
    assert!(says("note.md", "a note") && says("printed.pdf", "printed words") && says("scan.png", "scanned words"));
    assert!(says("mixed.pdf", "first printed"), "{found:?}");

    // Nothing changed: nothing to do. Read anew: what hangs on it is done again, and only that.
    let again = counts(&cluster.client.success(embed()).await);
    assert_eq!((again.unchanged, again.published), (4, 0));
    share.write("in/scan.png", png(&["scanned other words"]));
    let mut spec = ocr("in/read");
    spec.input = Some(v1::InputSpec { input: Some(v1::input_spec::Input::Object(object("in/scan.png"))) });
    cluster.client.success(spec).await;
    let job = cluster.client.success(embed()).await;
    assert_eq!((counts(&job).unchanged, counts(&job).published), (3, 1), "{job:?}");
    assert!(rows(share, "out").iter().any(|row| row.path == "scan.png" && row.text.contains("other words")));

    // Without a place to take text from, scans and pictures are passed over.
    let plain = v1::JobSpec { output: Some(object("plain")), ..embed_job() };
    let job = cluster.client.done(plain).await;
    for name in ["scan.png", "lost.png"] {
        let (outcome, item) = cluster.client.item(&job.job_id, name).await;
        assert_eq!(outcome, ItemOutcome::Skipped, "{item:?}");
        assert!(item.reason.contains("--text-from"), "{item:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_document_is_shared_by_the_nodes_and_its_ranges_join() {
    // Slow enough for both nodes to have the model before all is read.
    let model = FakeModel::that_reads("eyes").at_ms_per_step(8).poisoned_by("arsenic");
    let cluster = Cluster::of(2).with(model).start().await;
    let share = &cluster.share;
    let lines: Vec<String> = (1..=50).map(|number| format!("page {number} of it")).collect();
    let mut pages: Vec<Vec<&str>> = lines.iter().map(|line| vec![line.as_str(), "and more"]).collect();
    share.write("in/long.tif", tiff(&pages));
    share.write("in/printed.pdf", pdf(&pages));
    pages[20] = vec!["a page of arsenic"];
    share.write("in/poisoned.tif", tiff(&pages));
    share.write("in/short.png", png(&["short"]));
    share.age("in");
    let job = cluster.client.success(ocr_job()).await;
    assert_eq!((counts(&job).published, counts(&job).total), (4, 4), "{job:?}");
    let whole: Vec<String> = lines.iter().map(|line| format!("{line}\nand more\n")).collect();
    for name in ["long.tif", "printed.pdf"] {
        assert_eq!(text(share, &format!("out/{name}.txt")), whole.join("\x0c"), "{name}: in page order");
        let json = share.json(&format!("out/{name}.json"));
        let numbers: Vec<_> = json["pages"].as_array().expect("pages").iter().map(|p| p["number"].as_u64()).collect();
        assert_eq!(numbers, (1..=50).map(Some).collect::<Vec<_>>());
        let item = cluster.client.item(&job.job_id, name).await.1;
        assert_eq!((item.pages, item.reason.as_str(), item.outcome()), (50, "", ItemOutcome::Published));
    }
    for node in &cluster.nodes {
        assert!(counted(&node.metrics.text(), "ingle_node_pages_total") > 0, "both take part");
    }
    // One page is set aside; the others are there, and the document says what it lacks.
    let item = cluster.client.item(&job.job_id, "poisoned.tif").await.1;
    assert_eq!((item.outcome(), item.code.as_str()), (ItemOutcome::Published, "COMPUTE_FAILED"), "{item:?}");
    assert!(item.reason.contains("1 of its 50 pages could not be read; page 21"), "{item:?}");
    assert_eq!(counts(&job).incomplete, 1, "{job:?}");
    let request = v1::ListItemsRequest { job_id: job.job_id.clone(), incomplete: true, ..Default::default() };
    let listed = cluster.client.jobs.clone().list_items(request).await.expect("a page").into_inner().items;
    assert_eq!(listed.iter().map(|item| item.name.as_ref()).collect::<Vec<_>>(), [b"poisoned.tif"]);
    let json = share.json("out/poisoned.tif.json");
    assert_eq!(json["pages"][20]["error"]["code"], "COMPUTE_FAILED", "{}", json["pages"][20]);
    assert!(json["pages"][20]["source"].is_null() && json["pages"][21]["lines"][0]["text"] == "page 22 of it");
    let seen = counts(&cluster.client.success(ocr_job()).await);
    assert_eq!((seen.unchanged, seen.published), (4, 0), "nothing is done again");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_document_is_read_from_the_share_once_by_each_node() {
    let model = FakeModel::that_reads("eyes").at_ms_per_step(4);
    let cluster = Cluster::of(2).with(model).start().await;
    let pages: Vec<Vec<&str>> = (0..100).map(|_| vec!["a page of it"]).collect();
    // Bytes that no page needs, as pictures would be.
    let mut document = tiff(&pages);
    document.resize(8 << 20, 0);
    cluster.share.write("in/long.tif", &document);
    let job = cluster.client.success(ocr_job()).await;
    assert_eq!(counts(&job).published, 1, "{job:?}");
    let read: u64 = cluster.nodes.iter().map(|node| counted(&node.metrics.text(), "ingle_node_read_bytes_total")).sum();
    // Twice the document, and manifests; it was opened seven times at least: to count its pages, and once for each range.
    assert!(read < 18 << 20, "{read} bytes were read of a document of 8 MiB");
    // Another document of that name: what is kept of the old one is of no use.
    let mut other = tiff(&pages.iter().map(|_| vec!["another page"]).collect::<Vec<_>>());
    other.resize(8 << 20, 0);
    cluster.share.write("in/long.tif", &other);
    cluster.client.success(ocr_job()).await;
    let text = text(&cluster.share, "out/long.tif.txt");
    assert!(text.starts_with("another page\n") && !text.contains("a page of it"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_larger_than_memory_likes_are_read_up_to_the_bound() {
    let cluster = Cluster::of(1).with(FakeModel::that_reads("eyes")).start().await;
    let sized = |name: &str, bytes: &[u8], size: u64| {
        cluster.share.write(name, bytes);
        let file = std::fs::File::options().append(true).open(cluster.share.root().join(name)).expect("a file");
        file.set_len(size).expect("a hole needs no room");
    };
    sized("in/big.tif", &tiff(&[vec!["a large page"]]), 100 << 20);
    sized("in/beyond.tif", &tiff(&[vec!["never seen"]]), (1 << 30) + 1);
    let job = cluster.client.success(ocr_job()).await;
    assert_eq!((counts(&job).published, counts(&job).skipped), (1, 1), "{job:?}");
    assert_eq!(text(&cluster.share, "out/big.tif.txt"), "a large page\n");
    let (outcome, item) = cluster.client.item(&job.job_id, "beyond.tif").await;
    assert_eq!(outcome, ItemOutcome::Skipped);
    assert!(item.reason.contains("1073741824") && item.reason.contains("limits.document_bytes_max"), "{item:?}");
    cluster.stop().await;
}
