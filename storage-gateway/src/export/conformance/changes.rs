//! Clauses about creating, writing, naming and removing.

use futures::StreamExt as _;

use super::Ground;
use crate::export::{ExportError, Kind, Replace};

fn exists(answer: &Result<(), ExportError>) -> bool {
    matches!(answer, Err(ExportError::Exists(_)))
}

fn missing(answer: &Result<(), ExportError>) -> bool {
    matches!(answer, Err(ExportError::NotFound(_)))
}

pub(super) async fn create_is_exclusive(on: Ground<'_>) {
    let path = on.at("new");
    on.export.create(&path).await.expect("a free name");
    let attr = on.export.stat(&path).await.expect("stat");
    assert_eq!((attr.kind, attr.size, attr.mode), (Kind::File, 0, 0o644));
    assert!(exists(&on.export.create(&path).await), "the name is taken");
    std::fs::create_dir(on.behind("directory")).expect("behind");
    assert!(exists(&on.export.create(&on.at("directory")).await));
    std::os::unix::fs::symlink("nowhere", on.behind("dangling")).expect("behind");
    assert!(exists(&on.export.create(&on.at("dangling")).await));
    assert!(!on.behind("nowhere").exists(), "nothing was made through the symlink");
    assert!(missing(&on.export.create(&on.at("none/new")).await));
    // Of many at once, one makes it.
    let race = on.at("race");
    let made = futures::stream::iter(0..16)
        .map(|_| on.export.create(&race))
        .buffer_unordered(16)
        .filter(|answer| {
            assert!(answer.is_ok() || exists(answer), "{answer:?}");
            std::future::ready(answer.is_ok())
        })
        .count()
        .await;
    assert_eq!(made, 1);
}

pub(super) async fn committed_is_there(on: Ground<'_>) {
    on.write("doc", b"the text").await;
    assert_eq!(std::fs::read(on.behind("doc")).expect("behind"), b"the text");
    assert_eq!(on.read("doc").await.expect("read"), b"the text");
    // A second round of the same sequence, and a commit with nothing to do.
    on.put_durably("doc", &[(8, b", and more")]).await;
    on.export.commit(&on.at("doc")).await.expect("commit again");
    assert_eq!(on.read("doc").await.expect("read"), b"the text, and more");
    on.export.create(&on.at("empty")).await.expect("create");
    on.export.commit(&on.at("empty")).await.expect("an empty file is committed too");
    for answer in
        [on.export.write_at(&on.at("none"), 0, b"x".as_slice().into()).await, on.export.commit(&on.at("none")).await]
    {
        assert!(missing(&answer), "{answer:?}");
    }
}

pub(super) async fn written_out_of_order(on: Ground<'_>) {
    let bytes: Vec<u8> = (0..3 * (1 << 20) + 17_u32).map(|i| i.to_be_bytes()[2] ^ i.to_be_bytes()[3]).collect();
    let path = on.at("big");
    on.export.create(&path).await.expect("create");
    let size = 700_001;
    let parts: Vec<(u64, &[u8])> =
        (0..bytes.len()).step_by(size).rev().map(|at| (at as u64, &bytes[at..bytes.len().min(at + size)])).collect();
    on.put_durably("big", &parts).await;
    assert_eq!(blake3::hash(&std::fs::read(on.behind("big")).expect("behind")), blake3::hash(&bytes));
}

pub(super) async fn link_never_replaces(on: Ground<'_>) {
    on.write("staged", b"ours").await;
    on.put("theirs", b"a person's");
    std::os::unix::fs::symlink("theirs", on.behind("symlink")).expect("behind");
    let staged = on.at("staged");
    on.export.link(&staged, &on.at("visible")).await.expect("a free name");
    let (a, b) = (on.export.stat(&staged).await.expect("a"), on.export.stat(&on.at("visible")).await.expect("b"));
    assert_eq!((a.file_id, a.links), (b.file_id, 2), "one file, two names");
    on.export.link(&staged, &on.at("visible")).await.expect("repeated, for its reply may have been lost");
    for taken in ["theirs", "symlink"] {
        let answer = on.export.link(&staged, &on.at(taken)).await;
        assert!(exists(&answer), "onto {taken}: {answer:?}");
        assert!(answer.expect_err("matched above").to_string().contains(taken), "the error names the target");
    }
    assert_eq!(std::fs::read(on.behind("theirs")).expect("behind"), b"a person's");
    assert!(missing(&on.export.link(&on.at("none"), &on.at("other")).await));
    assert!(missing(&on.export.link(&staged, &on.at("none/other")).await));
    std::fs::create_dir(on.behind("directory")).expect("behind");
    let answer = on.export.link(&on.at("directory"), &on.at("other")).await;
    assert!(matches!(answer, Err(ExportError::Kind { .. })), "a directory has one name: {answer:?}");
    assert!(exists(&on.export.link(&staged, &on.at("directory")).await));
}

pub(super) async fn rename_replaces_what_it_may(on: Ground<'_>) {
    on.put("a", b"a");
    on.put("b", b"b");
    std::fs::create_dir(on.behind("directory")).expect("behind");
    on.export.rename(&on.at("a"), &on.at("directory/a"), Replace::Nothing).await.expect("a free name");
    assert!(!on.behind("a").exists());
    let answer = on.export.rename(&on.at("b"), &on.at("directory/a"), Replace::Nothing).await;
    assert!(exists(&answer), "{answer:?}");
    assert_eq!(std::fs::read(on.behind("directory/a")).expect("behind"), b"a", "untouched");
    assert_eq!(std::fs::read(on.behind("b")).expect("behind"), b"b", "untouched");
    on.export.rename(&on.at("b"), &on.at("directory/a"), Replace::Anything).await.expect("a placeholder of ours");
    assert_eq!(std::fs::read(on.behind("directory/a")).expect("behind"), b"b");
    assert!(!on.behind("b").exists());
    on.put("over", b"over");
    let answer = on.export.rename(&on.at("over"), &on.at("directory"), Replace::Anything).await;
    assert!(matches!(answer, Err(ExportError::Kind { .. })), "never over a directory: {answer:?}");
    assert!(on.behind("over").exists() && on.behind("directory/a").exists());
    for replace in [Replace::Nothing, Replace::Anything] {
        assert!(missing(&on.export.rename(&on.at("b"), &on.at("c"), replace).await));
        let answer = on.export.rename(&on.at("directory"), &on.at("c"), replace).await;
        assert!(matches!(answer, Err(ExportError::Kind { .. })), "files only: {answer:?}");
    }
}

pub(super) async fn rename_onto_its_own_other_name(on: Ground<'_>) {
    on.write("staged", b"ours").await;
    on.export.link(&on.at("staged"), &on.at("visible")).await.expect("link");
    on.export.rename(&on.at("staged"), &on.at("visible"), Replace::Anything).await.expect("rename");
    assert!(!on.behind("staged").exists(), "the system calls that done and leaves both; the caller wants one");
    assert_eq!(std::fs::read(on.behind("visible")).expect("behind"), b"ours");
    on.export.rename(&on.at("visible"), &on.at("visible"), Replace::Anything).await.expect("onto itself");
    assert_eq!(std::fs::read(on.behind("visible")).expect("behind"), b"ours", "and still there");
}

pub(super) async fn remove_may_be_repeated(on: Ground<'_>) {
    on.put("doc", b"x");
    on.export.remove(&on.at("doc")).await.expect("remove");
    assert!(!on.behind("doc").exists());
    on.export.remove(&on.at("doc")).await.expect("gone already");
    on.export.remove(&on.at("none/doc")).await.expect("gone with its directory");
    std::fs::create_dir(on.behind("directory")).expect("behind");
    let answer = on.export.remove(&on.at("directory")).await;
    assert!(matches!(answer, Err(ExportError::Kind { .. })), "{answer:?}");
    assert!(on.behind("directory").exists());
}

pub(super) async fn directories_are_made_with_those_above(on: Ground<'_>) {
    on.export.make_directory(&on.at("a/b/c")).await.expect("make");
    on.export.make_directory(&on.at("a/b/c")).await.expect("there already");
    let attr = on.export.stat(&on.at("a/b")).await.expect("stat");
    assert_eq!((attr.kind, attr.mode & 0o777), (Kind::Directory, 0o755));
    on.write("a/b/c/doc", b"x").await;
    for below in ["a/b/c/doc", "a/b/c/doc/d"] {
        let answer = on.export.make_directory(&on.at(below)).await;
        assert!(matches!(answer, Err(ExportError::Kind { .. })), "{below}: {answer:?}");
    }
}

pub(super) async fn only_empty_directories_go(on: Ground<'_>) {
    on.export.make_directory(&on.at("a")).await.expect("make");
    on.write("a/doc", b"x").await;
    let answer = on.export.remove_directory(&on.at("a")).await;
    assert!(matches!(answer, Err(ExportError::NotEmpty(_))), "{answer:?}");
    let answer = on.export.remove_directory(&on.at("a/doc")).await;
    assert!(matches!(answer, Err(ExportError::Kind { .. })), "{answer:?}");
    on.export.remove(&on.at("a/doc")).await.expect("remove");
    on.export.remove_directory(&on.at("a")).await.expect("empty now");
    on.export.remove_directory(&on.at("a")).await.expect("gone already");
    assert!(!on.behind("a").exists());
    // A directory made anew under a name that was known is the new one.
    on.export.make_directory(&on.at("a")).await.expect("make again");
    on.write("a/doc", b"y").await;
    assert_eq!(on.read("a/doc").await.expect("read"), b"y");
}
