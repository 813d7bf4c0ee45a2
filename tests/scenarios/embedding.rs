//! A folder becomes vectors; running again does only what changed.

use std::collections::{BTreeMap, BTreeSet};

use ingle_proto::v1::{self, JobState};
use ingle_tests::client::{counts, embed_job, object};
use ingle_tests::cluster::Cluster;
use ingle_tests::models::FakeModel;
use ingle_tests::parquet::{Row, rows};

fn by_document(rows: &[Row]) -> BTreeMap<&str, Vec<&Row>> {
    let mut documents: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        documents.entry(&row.path).or_default().push(row);
    }
    documents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_becomes_vectors_and_running_again_does_only_what_changed() {
    let cluster = Cluster::of(2).with(FakeModel::that_embeds("words")).over_nfs().start().await;
    let mut documents = cluster.share.documents(60);
    // Longer than the model reads at once: several passages.
    let long = (0..500).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
    cluster.share.write("in/long.txt", &long);
    documents.insert("long.txt".into(), long.clone());
    cluster.share.age("in");

    let job = cluster.client.success(embed_job()).await;
    let seen = counts(&job);
    assert_eq!((seen.total, seen.published, seen.failed, seen.unchanged), (61, 61, 0, 0), "{job:?}");
    let first = rows(&cluster.share, "out");
    let found = by_document(&first);
    assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), documents.keys().map(String::as_str).collect());
    for (name, rows) in &found {
        let text = documents[*name].as_bytes();
        for (number, row) in rows.iter().enumerate() {
            assert_eq!(row.passage as usize, number, "{name}: passages are numbered from 0, each once");
            let range = row.byte_start as usize..row.byte_end as usize;
            assert_eq!(row.text.as_bytes(), &text[range], "{name}: the range is where the passage lies");
            assert_eq!(row.vector.len(), 16);
            let length: f32 = row.vector.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-4, "{name}: vectors are of unit length, got {length}");
            assert_eq!(row.model.len(), 64, "{name}: a digest in hexadecimal");
        }
        let whole = rows.first().is_some_and(|row| row.byte_start == 0)
            && rows.last().is_some_and(|row| row.byte_end as usize >= text.trim_ascii_end().len());
        assert!(whole, "{name}: the passages reach from one end to the other: {rows:?}");
    }
    assert!(found["long.txt"].len() > 5, "500 words don't fit into one passage of 62");

    // The vectors are those that the model gives.
    let row = found["long.txt"][0];
    let answer = cluster.client.embed(&[&row.text]).await.expect("vectors");
    assert_eq!(answer.embeddings[0].vector, row.vector);

    // Nothing changed: nothing is done, and the files stay the very same.
    let before = cluster.share.identities("out");
    let again = counts(&cluster.client.success(embed_job()).await);
    assert_eq!((again.total, again.unchanged, again.published), (61, 61, 0));
    assert_eq!(cluster.share.identities("out"), before, "no part is written again");

    // One edited, one deleted, one touched without a change, one new.
    let mut names = documents.keys().filter(|name| *name != "long.txt").cloned().collect::<Vec<_>>().into_iter();
    let (edited, deleted, touched) = (names.next().unwrap(), names.next().unwrap(), names.next().unwrap());
    cluster.share.write(&format!("in/{edited}"), "an entirely different note");
    cluster.share.remove(&format!("in/{deleted}"));
    cluster.share.touch(&format!("in/{touched}"));
    cluster.share.write("in/new.md", "a new note");
    let job = cluster.client.success(embed_job()).await;
    let seen = counts(&job);
    assert_eq!((seen.published, seen.deleted, seen.unchanged), (2, 1, 59), "{job:?}");
    let second = rows(&cluster.share, "out");
    let found = by_document(&second);
    assert_eq!(found[edited.as_str()].len(), 1);
    assert_eq!(found[edited.as_str()][0].text, "an entirely different note");
    assert!(!found.contains_key(deleted.as_str()), "a deleted document leaves the vectors");
    assert!(found.contains_key("new.md"));
    let kept = |rows: &[Row]| {
        let same = |row: &&Row| row.path != edited && row.path != deleted && row.path != "new.md";
        rows.iter().filter(same).cloned().collect::<Vec<_>>()
    };
    assert_eq!(kept(&first), kept(&second), "what did not change stays as it was");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_are_not_read_are_skipped_with_their_reasons() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    cluster.share.write("in/a.md", "a note");
    cluster.share.write("in/latin.txt", b"caf\xE9 au lait");
    cluster.share.write("in/torn.pdf", b"%PDF-1.7");
    cluster.share.write("in/letter.docx", b"PK\x03\x04");
    cluster.share.write("in/photo.jpg", b"\xFF\xD8\xFF");
    cluster.share.write("in/noise", b"\0\x01");
    cluster.share.write("in/broken.txt", b"text\0\0\0\x01\x02\x03 no text");
    cluster.share.write("in/empty.md", b"");
    std::os::unix::fs::symlink("/etc/passwd", cluster.share.root().join("in/link.md")).expect("a link");

    let job = cluster.client.done(embed_job()).await;
    let items = cluster.client.items(&job.job_id).await;
    let outcome = |name: &str| items.get(name).map(|item| (item.outcome(), item.reason.clone()));
    for (name, word) in [("letter.docx", "office"), ("photo.jpg", "--text-from"), ("noise", "without an extension")] {
        let (outcome, reason) = outcome(name).unwrap_or_else(|| panic!("{name} is listed: {:?}", items.keys()));
        assert_eq!(outcome, v1::ItemOutcome::Skipped, "{name}");
        assert!(reason.contains(word), "{name}: {reason}");
    }
    let (broken, reason) = outcome("broken.txt").expect("it is listed");
    assert_eq!(broken, v1::ItemOutcome::Failed, "{reason}");
    assert!(reason.contains("not text"), "{reason}");
    assert_eq!(outcome("a.md").expect("listed").0, v1::ItemOutcome::Published);
    assert_eq!(outcome("latin.txt").expect("listed").0, v1::ItemOutcome::Published);
    let found = rows(&cluster.share, "out");
    assert!(found.iter().any(|row| row.text == "café au lait"), "{found:?}");
    assert!(!found.iter().any(|row| row.path == "link.md" || row.text.contains("root:")), "links are never followed");
    assert_eq!(outcome("torn.pdf").expect("listed").0, v1::ItemOutcome::Failed);
    // Two failed: the job says so by its state.
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    let seen = counts(&job);
    assert_eq!(seen.failed, 2);
    assert_eq!(seen.skipped as usize + seen.published as usize + 2, items.len(), "{job:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_given_with_a_job_globs_and_single_documents_are_inputs_too() {
    use v1::input_spec::Input;
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    cluster.share.write("in/a.md", "first");
    cluster.share.write("in/b.txt", "second");
    cluster.share.write("in/deep/c.md", "third");
    let job = |input, out: &str| v1::JobSpec {
        input: Some(v1::InputSpec { input: Some(input) }),
        output: Some(object(out)),
        ..embed_job()
    };
    let glob = v1::Glob { base: Some(object("in")), pattern: "**/*.md".into() };
    cluster.client.success(job(Input::Glob(glob), "globbed")).await;
    let texts = |out: &str| rows(&cluster.share, out).into_iter().map(|row| row.text).collect::<BTreeSet<_>>();
    assert_eq!(texts("globbed"), ["first", "third"].map(String::from).into());
    cluster.client.success(job(Input::Object(object("in/b.txt")), "single")).await;
    assert_eq!(texts("single"), ["second".to_owned()].into());
    let inline = v1::InlineInput { texts: vec!["spoken".into(), "sung".into()] };
    let done = cluster.client.success(job(Input::Inline(inline), "inline")).await;
    assert_eq!(counts(&done).published, 2);
    assert_eq!(texts("inline"), ["spoken", "sung"].map(String::from).into());
    cluster.stop().await;
}
