//! Clauses about what isn't a plain file: symlinks, FIFOs, sockets, and directories where files are meant.

use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode};

use super::Ground;
use crate::export::{ExportError, Kind, Replace};

fn refused<T: std::fmt::Debug>(answer: &Result<T, ExportError>) -> bool {
    matches!(answer, Err(ExportError::Kind { .. }))
}

/// `real/deep/doc`, and a symlink in the place of each component; also one out of the export, and an absolute one.
fn maze(on: Ground<'_>) -> Vec<&'static str> {
    let outside = on.behind.parent().expect("a directory has a parent").join("outside the export");
    std::fs::create_dir_all(&outside).expect("behind");
    std::fs::write(outside.join("doc"), "secret").expect("behind");
    std::fs::create_dir_all(on.behind("real/deep")).expect("behind");
    on.put("real/deep/doc", b"text");
    for (target, link) in [
        ("real", "first"),
        ("deep", "real/middle"),
        ("doc", "real/deep/last"),
        ("../../outside the export", "escape"),
        ("../../../outside the export/doc", "real/escape"),
        (".", "real/dot"),
        ("loop", "loop"),
    ] {
        symlink(target, on.behind(link)).expect("behind");
    }
    symlink(outside.join("doc"), on.behind("absolute")).expect("behind");
    vec![
        "first/deep/doc",
        "real/middle/doc",
        "real/deep/last",
        "escape/doc",
        "real/escape",
        "real/dot/deep/doc",
        "loop/doc",
        "absolute",
    ]
}

pub(super) async fn symlinks_are_refused_everywhere(on: Ground<'_>) {
    let through = maze(on);
    on.settle().await;
    for name in through.into_iter().chain(["first", "loop", "real/middle"]) {
        let path = on.at(name);
        let answer = on.export.stat(&path).await;
        assert!(refused(&answer), "stat of {name}: {answer:?}");
        let answer = on.export.read_at(&path, 0, 10).await;
        assert!(refused(&answer), "read of {name}: {answer:?}");
        let answer = on.export.list(&path, 10).await;
        assert!(refused(&answer), "list of {name}: {:?}", answer.map(|entries| entries.len()));
    }
    // Who reads that wants to know which of the directories it is.
    for (name, link) in [("first/deep/doc", "first"), ("real/middle/doc", "real/middle")] {
        let Err(ExportError::Kind { path, found, .. }) = on.export.stat(&on.at(name)).await else {
            panic!("stat of {name} goes through a link");
        };
        assert!(path.ends_with(link) && found.contains("link"), "{name}: {path} is {found}");
    }
    let listed = on.export.list(&on.at("real"), 10).await.expect("list");
    let middle = listed.iter().find(|entry| entry.name == b"middle").expect("symlinks are listed");
    assert_eq!(middle.attr.kind, Kind::Symlink);
    assert_eq!(on.read("real/deep/doc").await.expect("the file itself"), b"text");
}

pub(super) async fn symlinks_change_nothing(on: Ground<'_>) {
    for name in maze(on) {
        let path = on.at(name);
        let answer = on.export.write_at(&path, 0, b"written".as_slice().into()).await;
        assert!(refused(&answer), "write to {name}: {answer:?}");
        let answer = on.export.commit(&path).await;
        assert!(refused(&answer), "commit of {name}: {answer:?}");
    }
    for directory in ["first", "real/middle", "escape", "real/dot", "loop"] {
        let below = on.at(format!("{directory}/new"));
        let doc = on.at("real/deep/doc");
        for (call, answer) in [
            ("create", on.export.create(&below).await),
            ("make_directory", on.export.make_directory(&below).await),
            ("make_directory", on.export.make_directory(&on.at(directory)).await),
            ("remove_directory", on.export.remove_directory(&on.at(directory)).await),
            ("link", on.export.link(&doc, &below).await),
            ("rename", on.export.rename(&doc, &below, Replace::Nothing).await),
            ("remove", on.export.remove(&below).await),
        ] {
            assert!(refused(&answer), "{call} through {directory}: {answer:?}");
        }
    }
    let outside = on.behind.parent().expect("a directory has a parent").join("outside the export");
    assert_eq!(std::fs::read(outside.join("doc")).expect("behind"), b"secret");
    assert_eq!(std::fs::read_dir(outside).expect("behind").count(), 1, "nothing was made outside");
    assert_eq!(std::fs::read(on.behind("real/deep/doc")).expect("behind"), b"text");
}

fn special(on: Ground<'_>) -> [&'static str; 2] {
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(CWD, on.behind(name), kind, Mode::from_raw_mode(0o666), 0).expect("behind");
    }
    ["fifo", "socket"]
}

pub(super) async fn fifos_and_sockets_are_never_opened(on: Ground<'_>) {
    let names = special(on);
    on.settle().await;
    for name in names {
        let path = on.at(name);
        assert_eq!(on.export.stat(&path).await.expect("stat says what it is").kind, Kind::Other);
        let answer = on.export.read_at(&path, 0, 10).await;
        assert!(refused(&answer), "read of {name}: {answer:?}");
        let answer = on.export.list(&path, 10).await;
        assert!(refused(&answer), "list of {name}: {:?}", answer.map(|entries| entries.len()));
        let answer = on.export.read_at(&on.at(format!("{name}/below")), 0, 10).await;
        assert!(refused(&answer), "read below {name}: {answer:?}");
    }
    let mut listed = on.export.list(&on.at(""), 10).await.expect("list");
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let found: Vec<_> = listed.iter().map(|entry| (entry.name.as_slice(), entry.attr.kind)).collect();
    assert_eq!(found, [(b"fifo".as_slice(), Kind::Other), (b"socket".as_slice(), Kind::Other)]);
}

pub(super) async fn fifos_take_no_writes(on: Ground<'_>) {
    for name in special(on) {
        let path = on.at(name);
        let answer = on.export.write_at(&path, 0, b"x".as_slice().into()).await;
        assert!(refused(&answer), "write to {name}: {answer:?}");
        let answer = on.export.commit(&path).await;
        assert!(refused(&answer), "commit of {name}: {answer:?}");
        let answer = on.export.create(&path).await;
        assert!(matches!(answer, Err(ExportError::Exists(_))), "create of {name}: {answer:?}");
    }
}

pub(super) async fn names_of_any_kind_are_moved(on: Ground<'_>) {
    special(on);
    symlink("elsewhere", on.behind("symlink")).expect("behind");
    for name in ["fifo", "symlink"] {
        let (from, to) = (on.at(name), on.at(format!("moved {name}")));
        on.export.rename(&from, &to, Replace::Nothing).await.expect("what a person put there moves as it is");
        on.export.link(&to, &from).await.expect("and can be given its name back");
        on.export.remove(&to).await.expect("and its other name go");
    }
    assert_eq!(std::fs::read_link(on.behind("symlink")).expect("behind"), std::path::Path::new("elsewhere"));
}

pub(super) async fn files_are_no_directories(on: Ground<'_>) {
    std::fs::create_dir(on.behind("directory")).expect("behind");
    on.put("doc", b"text");
    on.settle().await;
    let answer = on.export.read_at(&on.at("directory"), 0, 10).await;
    assert!(refused(&answer), "read of a directory: {answer:?}");
    let answer = on.export.list(&on.at("doc"), 10).await;
    assert!(refused(&answer), "list of a file: {answer:?}");
    let answer = on.export.stat(&on.at("doc/below")).await;
    assert!(refused(&answer), "stat below a file: {answer:?}");
}
