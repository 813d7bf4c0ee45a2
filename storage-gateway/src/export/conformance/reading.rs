//! Clauses about reading and listing.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use ingle_proto::ObjectPath;

use super::Ground;
use crate::export::{ExportError, Kind};

/// Bytes that differ at every offset modulo a prime, so that a chunk at the wrong place shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i * 7 + i / 251) % 251).expect("below 251")).collect()
}

pub(super) async fn root_is_a_directory(on: Ground<'_>) {
    on.settle().await;
    let root = on.export.stat(&ObjectPath::root()).await.expect("the root");
    assert_eq!(root.kind, Kind::Directory);
    let names = on.export.list(&ObjectPath::root(), 10_000).await.expect("the root's entries");
    assert!(names.iter().any(|entry| entry.name == on.name.as_bytes()), "the clause's own directory is listed");
    assert!(names.iter().all(|entry| entry.name != b"." && entry.name != b".."));
}

pub(super) async fn big_file_in_chunks(on: Ground<'_>) {
    let bytes = pattern(5 * (1 << 20) + 12_345);
    on.put("big", &bytes);
    on.settle().await;
    let attr = on.export.stat(&on.at("big")).await.expect("stat");
    assert_eq!((attr.kind, attr.size), (Kind::File, bytes.len() as u64));
    assert_eq!(blake3::hash(&on.read("big").await.expect("read")), blake3::hash(&bytes), "whole, in chunks of 1 MiB");
    for (offset, length) in [(0, 1), (1, 4095), (65_535, 2), (1 << 20, 1 << 20), (777_777, 300_001)] {
        let part = on.export.read_at(&on.at("big"), offset, length).await.expect("read");
        let start = usize::try_from(offset).expect("small");
        assert_eq!(part, bytes[start..start + length as usize], "{length} bytes at {offset}");
    }
}

pub(super) async fn past_the_end_is_empty(on: Ground<'_>) {
    on.put("ten", b"0123456789");
    on.put("empty", b"");
    on.settle().await;
    for (offset, length, expected) in
        [(8, 100, "89"), (10, 1, ""), (11, 100, ""), (1 << 40, 1, ""), (i64::MAX as u64, 9, ""), (u64::MAX, 1, "")]
    {
        let part = on.export.read_at(&on.at("ten"), offset, length).await.expect("the end is no error");
        assert_eq!(part, expected.as_bytes(), "{length} bytes at {offset}");
    }
    assert!(on.export.read_at(&on.at("empty"), 0, 1 << 20).await.expect("an empty file").is_empty());
    assert!(on.export.read_at(&on.at("ten"), 0, 0).await.expect("no bytes asked").is_empty());
}

pub(super) async fn file_that_shrinks(on: Ground<'_>) {
    on.put("shrinks", pattern(300_000));
    on.settle().await;
    assert_eq!(on.export.read_at(&on.at("shrinks"), 0, 100_000).await.expect("read").len(), 100_000);
    std::fs::OpenOptions::new()
        .write(true)
        .open(on.behind("shrinks"))
        .and_then(|file| file.set_len(10))
        .expect("truncate behind its back");
    on.settle().await;
    assert!(on.export.read_at(&on.at("shrinks"), 100_000, 100_000).await.expect("past the new end").is_empty());
    assert_eq!(on.export.read_at(&on.at("shrinks"), 0, 100_000).await.expect("what is left").len(), 10);
}

pub(super) async fn many_at_once(on: Ground<'_>) {
    let bytes = pattern(2 << 20);
    on.put("shared", &bytes);
    on.settle().await;
    let path = on.at("shared");
    let mut reads = futures::stream::iter(0..200_usize)
        .map(|i| {
            let (path, offset) = (path.clone(), i * 10_007);
            async move { (offset, on.export.read_at(&path, offset as u64, 20_000).await.expect("read")) }
        })
        .buffer_unordered(64);
    while let Some((offset, part)) = reads.next().await {
        assert_eq!(part, bytes[offset..offset + 20_000], "at {offset}");
    }
}

pub(super) async fn changes_behind_the_back_show(on: Ground<'_>) {
    on.put("doc", b"old");
    on.settle().await;
    let old = on.export.stat(&on.at("doc")).await.expect("stat");
    assert_eq!(on.read("doc").await.expect("read"), b"old");
    on.put("new", b"newer text");
    std::fs::rename(on.behind("new"), on.behind("doc")).expect("an editor's save");
    on.settle().await;
    let new = on.export.stat(&on.at("doc")).await.expect("stat");
    if on.back.keeps_numbers() {
        assert_ne!(old.file_id, new.file_id, "another file has the name now");
    }
    assert_eq!(new.size, 10);
    assert_eq!(on.read("doc").await.expect("read"), b"newer text");
    std::fs::remove_file(on.behind("doc")).expect("removed behind its back");
    on.settle().await;
    assert!(matches!(on.export.stat(&on.at("doc")).await, Err(ExportError::NotFound(_))));
}

pub(super) async fn what_is_missing(on: Ground<'_>) {
    on.settle().await;
    for name in ["none", "none/below"] {
        let path = on.at(name);
        for (call, answer) in [
            ("stat", on.export.stat(&path).await.map(drop)),
            ("list", on.export.list(&path, 10).await.map(drop)),
            ("read", on.export.read_at(&path, 0, 1).await.map(drop)),
        ] {
            assert!(matches!(answer, Err(ExportError::NotFound(_))), "{call} of {name}: {answer:?}");
            let said = answer.expect_err("matched above").to_string();
            assert!(said.contains(name), "the error names the object: {said}");
        }
    }
}

pub(super) async fn directory_of_five_thousand(on: Ground<'_>) {
    let names: BTreeSet<Vec<u8>> =
        (0..5000).map(|i| format!("entry with a longish name to fill its pages, number {i:05}").into_bytes()).collect();
    for name in &names {
        on.put(std::str::from_utf8(name).expect("made of text"), b"x");
    }
    on.settle().await;
    let path = on.at("");
    let listed = on.export.list(&path, 5000).await.expect("5,000 of 5,000");
    assert_eq!(listed.len(), 5000, "each once");
    assert!(listed.iter().all(|entry| entry.attr.kind == Kind::File && entry.attr.size == 1));
    let listed: BTreeSet<Vec<u8>> = listed.into_iter().map(|entry| entry.name).collect();
    assert_eq!(listed, names);
    let over = on.export.list(&path, 4999).await;
    assert!(matches!(over, Err(ExportError::TooMany { limit: 4999, .. })), "{:?}", over.map(|l| l.len()));
    // Those whose contents are made from the directory make them many more times.
    std::fs::remove_dir_all(on.behind("")).expect("behind");
}
