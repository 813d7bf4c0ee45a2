//! Folder jobs: embedding, joining, generating, and what goes wrong with documents.

use std::io::Write as _;
use std::sync::atomic::Ordering;

use ingle_node_agent::pipeline::BEGUN;
use ingle_node_agent::pipeline::schema::{PartReader, Row};
use ingle_proto::v1::{self, FailureKind, ItemOutcome, JobKind, assign::Work, work_request};

use super::gateway::Gateway;
use super::harness::{Leader, Node, batch, batch_of, entry};

const EMBED: (&str, &str) =
    ("mini", r#"{"task": "embed", "dimensions": 8, "context": 34, "poison": "venom", "panic": "boom"}"#);
const WRITE: (&str, &str) = ("writer", r#"{"task": "generate", "context": 200, "output_tokens": 12, "slots": 3}"#);

fn rows(bytes: &[u8]) -> Vec<Row> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let mut reader = PartReader::open(file.path()).unwrap();
    std::iter::from_fn(|| reader.next_row().unwrap()).collect()
}

fn manifest(gateway: &Gateway, complete: &v1::Complete) -> v1::ResultManifest {
    gateway.message(complete.manifest.as_ref().unwrap())
}

async fn join(leader: &mut Leader, attempt: u64, work: v1::JoinWork, digest: &[u8]) -> v1::OutputResult {
    let model = Some(v1::ModelRef { name: "mini".into(), digest: digest.to_vec().into() });
    leader.assign_model(attempt, model, Work::Join(work)).await;
    let complete = leader.ended(attempt).await.unwrap();
    let mut made = manifest(&leader.gateway, &complete);
    assert_eq!(made.outputs.len(), 1, "{made:?}");
    made.outputs.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_become_vectors_in_a_part_and_only_changes_are_done_again() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    let long = "many words make a long document. ".repeat(40);
    let documents: &[(&str, &[u8])] = &[
        ("b.md", b"hello world"),
        ("a/long.txt", long.as_bytes()),
        ("empty.txt", b""),
        ("latin.txt", b"caf\xE9 cr\xE8me"),
        ("binary.txt", b"\x7fELF\0\0\0"),
    ];
    let work = batch(&leader.gateway, JobKind::Embed, documents);
    let segment = work.segment.clone().unwrap();
    leader.assign(1, "mini", Work::Batch(work)).await;
    let complete = leader.ended(1).await.unwrap();
    assert_eq!((complete.count, complete.committed, complete.failed), (5, 4, 1));
    assert_eq!(complete.model_digest.len(), 32);
    let made = manifest(&leader.gateway, &complete);
    let bad = &made.items[4];
    assert_eq!((bad.outcome(), bad.code.as_str()), (ItemOutcome::Failed, "DOCUMENT_MALFORMED"));
    assert!(bad.reason.starts_with("not text"), "{}", bad.reason);
    assert_eq!(made.items[2].passages, 0);
    assert!(made.items[1].passages > 3);

    let place_name = bytes::Bytes::from_static(b"part-0003.parquet");
    let work = v1::JoinWork {
        bucket: 3,
        segments: vec![segment],
        manifests: vec![complete.manifest.clone().unwrap()],
        output_name: place_name.clone(),
        document: None,
    };
    let output = join(&mut leader, 2, work, &complete.model_digest).await;
    assert_eq!(output.staged_name, "j-1-3-2.parquet");
    assert_eq!(output.based_on.as_deref(), Some(b"".as_slice()), "nothing was there");
    let part = leader.gateway.staged(&output.staged_name);
    let first = rows(&part);
    let paths: Vec<&str> = first.iter().map(|row| row.path.as_str()).collect();
    assert!(paths.is_sorted() && paths.contains(&"b.md") && !paths.contains(&"binary.txt"));
    let cafe = first.iter().find(|row| row.path == "latin.txt").unwrap();
    assert_eq!(cafe.text, "café crème");
    let pieces: Vec<&Row> = first.iter().filter(|row| row.path == "a/long.txt").collect();
    for row in &pieces {
        assert_eq!(row.text, long[row.byte_start as usize..row.byte_end as usize], "ranges are those of the file");
        assert!((row.vector.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
    }
    assert_eq!(pieces.last().unwrap().byte_end as usize, long.len());
    assert_eq!(output.inputs.iter().filter(|input| !input.gone).count(), 4);

    // The second run: one changed, one touched, one deleted.
    leader.gateway.put("docs/out/part-0003.parquet", part.to_vec());
    leader.gateway.put("docs/in/b.md", *b"other words entirely");
    let known = |name: &str, index: usize| {
        let content_digest = made.items[index].content_digest.clone();
        v1::SegmentEntry { content_digest, results_current: true, ..entry(name) }
    };
    let mut entries = vec![known("b.md", 0), known("latin.txt", 3)];
    let mut deleted = entry("a/long.txt");
    deleted.set_action(v1::EntryAction::Deleted);
    entries.push(deleted);
    let mut work = batch_of(&leader.gateway, JobKind::Embed, entries);
    work.count = 2;
    let segment = work.segment.clone().unwrap();
    leader.assign(3, "mini", Work::Batch(work)).await;
    let complete = leader.ended(3).await.unwrap();
    assert_eq!((complete.committed, complete.unchanged), (1, 1));
    let work = v1::JoinWork {
        bucket: 3,
        segments: vec![segment],
        manifests: vec![complete.manifest.clone().unwrap()],
        output_name: place_name,
        document: None,
    };
    let output = join(&mut leader, 4, work, &complete.model_digest).await;
    assert_eq!(output.based_on, Some(ingle_proto::Digest::of(&part).to_wire()), "as the join read it");
    let second = rows(&leader.gateway.staged(&output.staged_name));
    let paths: Vec<&str> = second.iter().map(|row| row.path.as_str()).collect();
    assert_eq!(paths, ["b.md", "latin.txt"]);
    assert_eq!(second[0].text, "other words entirely");
    assert_eq!(second[1], *cafe);
    assert!(output.inputs.iter().any(|input| input.gone && input.name.as_ref() == b"a/long.txt"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_become_json_and_text_files() {
    let node = Node::start(&[WRITE]).await;
    let mut leader = node.lead().await;
    let long = "word ".repeat(2000);
    let mut work = batch(&leader.gateway, JobKind::Generate, &[("a.md", b"short"), ("b.md", long.as_bytes())]);
    let options = v1::GenerateOptions {
        prompt: "Sum up {{ name }}: {{ document }}".into(),
        system: "Be brief.".into(),
        max_tokens: 12,
        ..Default::default()
    };
    work.generate = Some(options.clone());
    leader.assign(1, "writer", Work::Batch(work)).await;
    let complete = leader.ended(1).await.unwrap();
    assert_eq!((complete.count, complete.committed, complete.outputs), (2, 2, 4));
    let made = manifest(&leader.gateway, &complete);
    assert_eq!((made.items[0].truncated, made.items[1].truncated), (false, true));
    let output = |name: &str| made.outputs.iter().find(|output| output.name.as_ref() == name.as_bytes()).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&leader.gateway.staged(&output("a.md.json").staged_name)).unwrap();
    let text = leader.gateway.staged(&output("a.md.txt").staged_name);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["path"], "a.md");
    assert_eq!(json["model"], "writer");
    assert_eq!(json["usage"]["output_tokens"], 12);
    assert_eq!(json["truncated_input"], false);
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap().trim_end_matches('\n')).as_bytes(), text.as_ref());
    assert_eq!(output("a.md.json").inputs.len(), 1);

    // What was done before is kept; a document that left takes its files along.
    let known = v1::SegmentEntry {
        content_digest: made.items[0].content_digest.clone(),
        results_current: true,
        ..entry("a.md")
    };
    let mut deleted = entry("gone.md");
    deleted.set_action(v1::EntryAction::Deleted);
    let mut work = batch_of(&leader.gateway, JobKind::Generate, vec![known, deleted]);
    (work.count, work.generate) = (1, Some(options));
    let segment = work.segment.clone().unwrap();
    leader.assign(2, "writer", Work::Batch(work)).await;
    let complete = leader.ended(2).await.unwrap();
    assert_eq!(complete.unchanged, 1);
    assert!(manifest(&leader.gateway, &complete).outputs.iter().all(|output| output.keep));
    let removal = v1::JoinWork { segments: vec![segment], ..Default::default() };
    leader.assign(3, "writer", Work::Join(removal)).await;
    let complete = leader.ended(3).await.unwrap();
    let names: Vec<_> =
        manifest(&leader.gateway, &complete).outputs.into_iter().filter(|o| o.remove).map(|o| o.name).collect();
    assert_eq!(names, ["gone.md.json", "gone.md.txt"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_and_panics_fail_the_batch_and_not_the_node() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    for (attempt, text) in [(1, "a drop of venom"), (2, "it goes boom")] {
        let work = batch(&leader.gateway, JobKind::Embed, &[("ok.md", b"fine"), ("bad.md", text.as_bytes())]);
        leader.assign(attempt, "mini", Work::Batch(work)).await;
        let failed = leader.ended(attempt).await.unwrap_err();
        assert_eq!((failed.kind(), failed.code.as_str()), (FailureKind::Item, "COMPUTE_FAILED"), "{failed:?}");
    }
    let work = batch(&leader.gateway, JobKind::Embed, &[("ok.md", b"fine")]);
    leader.assign(3, "mini", Work::Batch(work)).await;
    assert_eq!(leader.ended(3).await.unwrap().committed, 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_fault_it_is_is_said() {
    let node = Node::start(&[EMBED, WRITE]).await;
    let mut leader = node.lead().await;
    let mut attempt = 0;
    let mut check = async |model: &str, work: v1::BatchWork, kind: FailureKind, code: &str| {
        attempt += 1;
        leader.assign(attempt, model, Work::Batch(work)).await;
        let failed = leader.ended(attempt).await.unwrap_err();
        assert_eq!((failed.kind(), failed.code.as_str()), (kind, code), "{failed:?}");
    };
    let gateway = &node.gateway;
    let plain = || batch(gateway, JobKind::Embed, &[("ok.md", b"fine")]);
    check("absent", plain(), FailureKind::Model, "MODEL_NOT_FOUND").await;
    check("writer", plain(), FailureKind::Model, "MODEL_UNUSABLE").await;
    check("mini", v1::BatchWork { count: 2, ..plain() }, FailureKind::Input, "INVALID_ARGUMENT").await;
    check("mini", v1::BatchWork { kind: JobKind::Ocr.into(), ..plain() }, FailureKind::Model, "MODEL_UNUSABLE").await;
    check("mini", v1::BatchWork { kind: 0, ..plain() }, FailureKind::Input, "UNIMPLEMENTED").await;
    let prompt = Some(v1::GenerateOptions { prompt: "{{ documnet }}".into(), max_tokens: 4, ..Default::default() });
    let work = v1::BatchWork { kind: JobKind::Generate.into(), generate: prompt, ..plain() };
    check("writer", work, FailureKind::Input, "INVALID_ARGUMENT").await;
    gateway.state.failing_reads.store(100, Ordering::SeqCst);
    check("mini", plain(), FailureKind::Storage, "STORAGE_UNAVAILABLE").await;
    gateway.state.failing_reads.store(0, Ordering::SeqCst);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_outages_and_lost_documents_don_t_fail_a_batch() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead().await;
    node.gateway.state.failing_reads.store(3, Ordering::SeqCst);
    node.gateway.put("docs/in/here.md", *b"still here");
    let inline = v1::SegmentEntry { object: None, inline_index: Some(1), ..entry("text-1") };
    let mut work = batch_of(&node.gateway, JobKind::Embed, vec![entry("gone.md"), entry("here.md"), inline]);
    work.payload = Some(node.gateway.blob(&v1::InlineInput { texts: vec!["zero".into(), "one".into()] }));
    leader.assign(1, "mini", Work::Batch(work)).await;
    let complete = leader.ended(1).await.unwrap();
    assert_eq!((complete.skipped, complete.committed), (1, 2));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_a_batch_after_its_item() {
    let slow = r#"{"task": "generate", "context": 200, "output_tokens": 20, "step_ms": 4, "slots": 1}"#;
    let node = Node::start(&[("slow", slow)]).await;
    let mut leader = node.lead().await;
    let documents: Vec<(String, Vec<u8>)> = (0..30).map(|i| (format!("{i:02}.md"), b"text".to_vec())).collect();
    let documents: Vec<(&str, &[u8])> = documents.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let mut work = batch(&leader.gateway, JobKind::Generate, &documents);
    work.generate = Some(v1::GenerateOptions { prompt: "{{ document }}".into(), max_tokens: 20, ..Default::default() });
    leader.assign(1, "slow", Work::Batch(work.clone())).await;
    leader
        .until(|message| match message {
            v1::work_response::Message::Progress(progress) if progress.stage != BEGUN => Some(progress),
            _ => None,
        })
        .await;
    leader.send(work_request::Message::Drain(v1::DrainCommand { drain: true, leave: false })).await;
    let complete = leader.ended(1).await.unwrap();
    assert!(complete.count >= 1 && complete.count < 30, "{}", complete.count);
    assert_eq!(manifest(&leader.gateway, &complete).items.len(), complete.count as usize);
    leader.assign(2, "slow", Work::Batch(work)).await;
    let refused = leader.ended(2).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code.as_str()), (FailureKind::Node, "SHUTTING_DOWN"));
    leader.send(work_request::Message::Drain(v1::DrainCommand { drain: false, leave: false })).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_window_is_in_the_model_the_next_is_gathered() {
    // A window is 17 of these texts, and each takes the model a second.
    let slow = ("slow", r#"{"task": "embed", "dimensions": 8, "context": 512, "step_ms": 1000}"#);
    let node = Node::start(&[slow]).await;
    let mut leader = node.lead().await;
    let text = (0..500).map(|number| format!("word{number} ")).collect::<String>();
    let names: Vec<String> = (0..60).map(|number| format!("{number:02}.txt")).collect();
    let documents: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), text.as_bytes())).collect();
    let work = batch(&leader.gateway, JobKind::Embed, &documents);
    let state = std::sync::Arc::clone(&leader.gateway.state);
    leader.assign(1, "slow", Work::Batch(work)).await;
    let gathered = async {
        // Two windows: what is only read ahead of one is no more than eight documents.
        while state.object_reads.load(Ordering::SeqCst) < 34 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = gathered => {}
        () = leader.until(|message| match message {
            v1::work_response::Message::Progress(progress) if progress.stage != BEGUN => Some(()),
            _ => None,
        }) => {
            panic!("the first window was through the model before the second was gathered")
        }
    }
    let cancel = v1::CancelAttempt { attempt: 1, reason: "it was seen".into() };
    leader.send(work_request::Message::Cancel(cancel)).await;
    assert_eq!(leader.ended(1).await.unwrap_err().kind(), FailureKind::Cancelled);
    node.stop().await;
}
