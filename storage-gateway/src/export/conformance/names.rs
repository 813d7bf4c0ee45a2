//! Clauses about names: bytes, as they are, none confused with another.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use ingle_proto::ObjectPath;

use super::Ground;
use crate::export::ExportError;

/// Names that someone or something has trouble with.
const ODD: [&[u8]; 12] = [
    b"latin-1 caf\xe9.txt",
    b"\xff\xfe",
    "caf\u{e9} composed".as_bytes(),
    "cafe\u{301} composed".as_bytes(),
    b"%2e%2e",
    b"...",
    b"..hidden",
    b" ",
    b"two\nlines",
    b"back\\slash",
    b"-rf",
    b"*?[a]",
];

pub(super) async fn listed_as_they_are(on: Ground<'_>) {
    for name in ODD {
        on.put(OsStr::from_bytes(name), name);
    }
    on.settle().await;
    let mut listed: Vec<Vec<u8>> =
        on.export.list(&on.at(""), 100).await.expect("list").into_iter().map(|entry| entry.name).collect();
    listed.sort();
    let mut expected: Vec<Vec<u8>> = ODD.iter().map(|name| name.to_vec()).collect();
    expected.sort();
    assert_eq!(listed, expected);
    for name in ODD {
        // Each holds its own name: the composed and the decomposed form are two files.
        assert_eq!(on.read(name).await.expect("read"), name);
    }
}

pub(super) async fn any_bytes_can_be_created(on: Ground<'_>) {
    for name in ODD {
        on.write(name, name).await;
    }
    for name in ODD {
        assert_eq!(std::fs::read(on.behind(OsStr::from_bytes(name))).expect("behind"), name);
        let again = on.export.create(&on.at(name)).await;
        assert!(matches!(again, Err(ExportError::Exists(_))), "{again:?}");
    }
}

pub(super) async fn longest_and_too_long(on: Ground<'_>) {
    let longest = "n".repeat(255);
    on.put(&longest, b"long");
    on.settle().await;
    assert_eq!(on.read(&longest).await.expect("255 bytes are a name"), b"long");
    assert_eq!(on.export.list(&on.at(""), 10).await.expect("list")[0].name, longest.as_bytes());
    // What can't be said can't be asked: these never reach an export.
    for impossible in ["n".repeat(256), "..".into(), "a/../../b".into(), "/etc/passwd".into(), "a//b".into()] {
        assert!(ObjectPath::new(impossible.as_bytes()).is_err(), "{impossible}");
    }
    let multibyte = "ä".repeat(127);
    on.put(&multibyte, b"ae");
    on.settle().await;
    assert_eq!(on.read(&multibyte).await.expect("254 bytes"), b"ae");
}
