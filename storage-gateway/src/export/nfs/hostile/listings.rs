//! Directories that lie: impossible names, pages that lead nowhere or never end, and handles that are worth something.

use std::sync::atomic::{AtomicUsize, Ordering};

use ingle_proto::ObjectPath;

use super::super::xdr::put;
use super::{Deed, LONG, Middle, NFS, accepted, path, words_of};
use crate::export::nfs::{NfsExport, NfsOptions};
use crate::export::{Export, ExportError};
use crate::nfs_server::{NfsServer, NfsServerOptions};

/// A READDIRPLUS page: no attributes, verifier zero, entries of (name, cookie) without attributes.
fn page(entries: &[(&[u8], u32)], end: bool) -> Deed {
    let mut words = vec![0, 0, 0, 0];
    for (name, cookie) in entries {
        words.extend([1, 0, 77]);
        words.extend(words_of(name));
        words.extend([0, *cookie, 0, 0]);
    }
    words.extend([0, u32::from(end)]);
    accepted(&words)
}

#[tokio::test]
async fn impossible_names_in_a_listing_are_broken() {
    let root = tempfile::tempdir().unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    let long = [b'x'; 256];
    for bad in [b"../../etc/passwd".as_slice(), b"a/b", b"nul\0", b"", &long] {
        middle.next((NFS, 17), [page(&[(b".", 1), (bad, 2)], true)]);
        let answer = export.list(&ObjectPath::root(), 10).await;
        assert!(matches!(answer, Err(ExportError::Broken(_))), "{bad:?}: {answer:?}");
    }
    // Names without attributes, gone when they are looked up: left out.
    middle.next((NFS, 17), [page(&[(b".", 1), (b"..", 2), (b"ghost", 3)], true)]);
    assert_eq!(export.list(&ObjectPath::root(), 10).await.expect("list"), []);
}

#[tokio::test]
async fn listings_that_lead_nowhere_are_found_out() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    let root_path = ObjectPath::root();
    let circles: [Vec<Deed>; 3] = [
        // The same page for ever; two pages in turn; an empty one before the end.
        vec![page(&[(b"doc", 5)], false), page(&[(b"doc", 5)], false)],
        vec![page(&[(b"doc", 5)], false), page(&[(b"doc", 6)], false), page(&[(b"doc", 5)], false)],
        vec![page(&[], false)],
    ];
    for deeds in circles {
        middle.next((NFS, 17), deeds);
        let answer = export.list(&root_path, 10).await;
        assert!(matches!(answer, Err(ExportError::Broken(_))), "{answer:?}");
    }
    // A cookie that went bad starts over, and not for ever.
    let bad = || accepted(&[10003, 0]);
    middle.next((NFS, 17), [page(&[(b"doc", 5)], false), bad()]);
    assert_eq!(export.list(&root_path, 10).await.expect("the second time").len(), 1);
    middle.next((NFS, 17), [bad(), bad(), bad(), bad()]);
    let answer = export.list(&root_path, 10).await;
    assert!(matches!(&answer, Err(ExportError::Broken(said)) if said.contains("NFS3ERR_BAD_COOKIE")), "{answer:?}");
    // A server without READDIRPLUS is asked for names.
    middle.next((NFS, 17), [accepted(&[10004, 0])]);
    let listed = export.list(&root_path, 10).await.expect("READDIR and LOOKUP");
    assert_eq!((listed.len(), listed[0].attr.size), (1, 4));
    assert_eq!(middle.count((NFS, 16)), 1);
}

/// Pages go on where they were when entries come and go between them, and after a restart of the server.
#[tokio::test]
async fn cookies_survive_changes_and_restarts() {
    let root = tempfile::tempdir().unwrap();
    let name = |i: usize| format!("a name that fills its page, number {i:04}");
    for i in 0..2000 {
        std::fs::write(root.path().join(name(i)), "").unwrap();
    }
    let server = NfsServer::bind(root.path(), NfsServerOptions::default()).await.unwrap();
    let listen = server.local_addr();
    let export = NfsExport::connect(&server.url(), &NfsOptions::default()).await.unwrap();
    let handle = export.mounted().await.unwrap().root;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let (mut cookie, pages) = (0, AtomicUsize::new(0));
    let mut server = Some(server);
    loop {
        let page = export.server.page(&handle, cookie, Default::default(), true).await.unwrap();
        cookie = page.entries.last().expect("no empty pages").cookie;
        seen.extend(page.entries.into_iter().map(|entry| entry.name));
        if page.end {
            break;
        }
        match pages.fetch_add(1, Ordering::Relaxed) {
            0 => {
                for i in 0..50 {
                    std::fs::write(root.path().join(format!("new {i}")), "").unwrap();
                    std::fs::remove_file(root.path().join(name(i))).unwrap();
                }
            }
            1 => {
                server.take().expect("once").shutdown().await;
                server = Some(
                    NfsServer::bind(root.path(), NfsServerOptions { listen, ..Default::default() }).await.unwrap(),
                );
            }
            _ => {}
        }
    }
    assert!(pages.into_inner() >= 2, "the directory has several pages");
    for i in 50..2000 {
        let count = seen.iter().filter(|seen| **seen == name(i).as_bytes()).count();
        assert_eq!(count, 1, "{} was there all the time", name(i));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "nothing twice");
}

#[tokio::test]
async fn a_listing_made_up_for_ever_ends() {
    let root = tempfile::tempdir().unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    // Always new cookies, and names that aren't there when they are looked up.
    let pages = (0..40_u32).map(|at| {
        let names: Vec<(Vec<u8>, u32)> =
            (0..50).map(|i| (format!("ghost {at} {i}").into_bytes(), at * 50 + i + 3)).collect();
        let entries: Vec<(&[u8], u32)> = names.iter().map(|(name, cookie)| (name.as_slice(), *cookie)).collect();
        page(&entries, false)
    });
    middle.next((NFS, 17), pages);
    let answer = export.list(&ObjectPath::root(), 10).await;
    assert!(matches!(answer, Err(ExportError::TooMany { limit: 10, .. })), "{answer:?}");
}

#[tokio::test]
async fn what_a_listing_brings_is_read_without_another_look() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("d")).unwrap();
    std::fs::write(root.path().join("d/doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    let directory = export.directory(&path("d")).await.unwrap();
    let found = export.server.lookup(&directory, b"doc").await.unwrap();
    let attr = export.server.getattr(&found.handle).await.unwrap();
    let words = |value: &dyn Fn(&mut Vec<u8>)| -> Vec<u32> {
        let mut bytes = Vec::new();
        value(&mut bytes);
        bytes.chunks(4).map(|word| u32::from_be_bytes(word.try_into().expect("four"))).collect()
    };
    let attributes = words(&|out| put(out, &attr));
    let listed = [
        vec![0, 0, 0, 0, 1, 0, 77],
        words_of(b"doc"),
        vec![0, 5, 1],
        attributes,
        vec![1],
        words_of(&found.handle),
        vec![0, 1],
    ]
    .concat();
    // ACCESS without LOOKUP: whoever may not go through the directory has no use of its handles.
    for (through, looks) in [(accepted(&[0, 0, 0]), 1), (accepted(&[0, 0, 2]), 0)] {
        middle.next((NFS, 17), [accepted(&listed)]);
        middle.next((NFS, 4), [through]);
        assert_eq!(export.list(&path("d"), 10).await.expect("list").len(), 1);
        let before = middle.count((NFS, 3));
        assert_eq!(export.read_at(&path("d/doc"), 0, 10).await.expect("read"), "text".as_bytes());
        assert_eq!(middle.count((NFS, 3)) - before, looks);
        export.handles().forget(&path("d/doc"));
    }
}
