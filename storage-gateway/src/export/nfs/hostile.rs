//! Tests against servers that lie, stall, stop or lose replies; what each does is scripted per procedure.

mod listings;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ingle_proto::ObjectPath;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::record;
use super::xdr::Reader;
use super::{NfsExport, NfsOptions};
use crate::export::{Export, ExportError, Replace};
use crate::nfs_server::{NfsServer, NfsServerOptions};

/// What a man in the middle does with one call.
#[derive(Debug, Clone)]
enum Deed {
    /// Passes it on and hands back the reply.
    Pass,
    /// Passes it on, and ends the connection instead of handing back the reply.
    Lose,
    /// Ends the connection without passing it on.
    Drop,
    /// Says nothing, ever.
    Stall,
    /// Sends these bytes instead of a record, then ends the connection.
    Raw(Vec<u8>),
    /// Answers with another xid.
    Xid,
    /// Answers with these words after the xid and the message type.
    Words(Vec<u32>),
    /// Passes it on, and hands back the reply in fragments of so many bytes.
    Pieces(usize),
    /// Before the reply, hands back one to an xid of long ago.
    Again,
}

/// Program and procedure.
type Which = (u32, u32);
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;

/// A server with somebody in between.
struct Middle {
    port: u16,
    script: Arc<Mutex<HashMap<Which, Vec<Deed>>>>,
    calls: Arc<Mutex<Vec<Which>>>,
    _server: NfsServer,
    _accepting: tokio::task::JoinSet<()>,
}

impl Middle {
    async fn start(root: &Path) -> Self {
        let server = NfsServer::bind(root, NfsServerOptions::default()).await.expect("a server");
        let behind = server.local_addr();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let script: Arc<Mutex<HashMap<Which, Vec<Deed>>>> = Arc::default();
        let calls: Arc<Mutex<Vec<Which>>> = Arc::default();
        let mut accepting = tokio::task::JoinSet::new();
        accepting.spawn({
            let (script, calls) = (script.clone(), calls.clone());
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(behind).await.expect("the server is there");
                    connections.spawn(between(client, server, script.clone(), calls.clone()));
                }
            }
        });
        Self { port, script, calls, _server: server, _accepting: accepting }
    }

    /// What happens to the next calls of a procedure, the first first; after that all pass.
    fn next(&self, which: Which, deeds: impl IntoIterator<Item = Deed>) {
        let mut deeds: Vec<Deed> = deeds.into_iter().collect();
        deeds.reverse();
        self.script.lock().unwrap().insert(which, deeds);
    }

    fn count(&self, which: Which) -> usize {
        self.calls.lock().unwrap().iter().filter(|called| **called == which).count()
    }

    async fn mount(&self, deadline: Duration) -> NfsExport {
        let options = NfsOptions { deadline, connections: 1, ..NfsOptions::default() };
        NfsExport::connect(&format!("nfs://127.0.0.1:{}/", self.port), &options).await.expect("the client mounts")
    }
}

/// Calls one after another: a script needs no more.
async fn between(
    mut client: TcpStream,
    mut server: TcpStream,
    script: Arc<Mutex<HashMap<Which, Vec<Deed>>>>,
    calls: Arc<Mutex<Vec<Which>>>,
) {
    let mut before: Option<Vec<u8>> = None;
    while let Ok(Some(call)) = record::read(&mut client).await {
        let mut head = Reader::new(call.clone());
        let words: Vec<u32> = (0..6).map(|_| head.u32().expect("a header")).collect();
        let which = (words[3], words[5]);
        calls.lock().unwrap().push(which);
        let deed = script.lock().unwrap().get_mut(&which).and_then(Vec::pop).unwrap_or(Deed::Pass);
        let forwarded = |bytes: &Bytes| {
            let mut out = record::begin(bytes.len());
            out.extend_from_slice(bytes);
            record::seal(&mut out);
            out
        };
        let mut reply = match &deed {
            Deed::Pass | Deed::Lose | Deed::Xid | Deed::Pieces(_) | Deed::Again => {
                server.write_all(&forwarded(&call)).await.expect("forward");
                forwarded(&record::read(&mut server).await.expect("a reply").expect("a reply"))
            }
            Deed::Drop => return,
            Deed::Stall => std::future::pending().await,
            Deed::Raw(bytes) => {
                let _ = client.write_all(bytes).await;
                return;
            }
            Deed::Words(rest) => {
                let all: Vec<u8> = [words[0], 1].iter().chain(rest).flat_map(|word| word.to_be_bytes()).collect();
                forwarded(&all.into())
            }
        };
        match deed {
            Deed::Lose => return,
            Deed::Xid => reply[4] ^= 0x80,
            Deed::Pieces(size) => {
                let pieces: Vec<&[u8]> = reply[4..].chunks(size).collect();
                let last = pieces.len() - 1;
                let of = |(at, piece): (usize, &&[u8])| {
                    let length = u32::try_from(piece.len()).expect("short") | u32::from(at == last) << 31;
                    [&length.to_be_bytes()[..], *piece].concat()
                };
                reply = pieces.iter().enumerate().flat_map(of).collect();
            }
            Deed::Again => {
                if let Some(before) = &before
                    && client.write_all(before).await.is_err()
                {
                    return;
                }
            }
            _ => {}
        }
        if client.write_all(&reply).await.is_err() {
            return;
        }
        before = Some(reply);
    }
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a valid path")
}

const SHORT: Duration = Duration::from_millis(800);
const LONG: Duration = Duration::from_secs(10);
/// Accepted, no verifier, success.
const ACCEPTED: [u32; 4] = [0, 0, 0, 0];

fn accepted(rest: &[u32]) -> Deed {
    Deed::Words([&ACCEPTED[..], rest].concat())
}

fn words_of(name: &[u8]) -> Vec<u32> {
    let mut padded = name.to_vec();
    padded.resize(name.len().next_multiple_of(4), 0);
    let length = u32::try_from(name.len()).expect("short");
    std::iter::once(length)
        .chain(padded.chunks(4).map(|word| u32::from_be_bytes(word.try_into().expect("four"))))
        .collect()
}

fn files(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root)
        .expect("behind")
        .map(|entry| entry.expect("behind").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn lost_replies_are_answered_for_the_final_state() {
    let root = tempfile::tempdir().unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    // Each change is carried out and its reply lost; then not carried out at all; then both.
    for (round, deeds) in [vec![Deed::Lose], vec![Deed::Drop], vec![Deed::Drop, Deed::Lose]].into_iter().enumerate() {
        let sent = |number| middle.count((NFS, number));
        for number in [8, 9, 12, 13, 14, 15] {
            middle.next((NFS, number), deeds.clone());
        }
        let (staged, visible, trash, directory) = (path("staged"), path("visible"), path("trash"), path("directory"));
        export.create(&staged).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        export.write_at(&staged, 0, "text".into()).await.unwrap();
        export.commit(&staged).await.unwrap();
        export.link(&staged, &visible).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(export.stat(&visible).await.unwrap().links, 2);
        export.remove(&staged).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(files(root.path()), ["visible"], "round {round}");
        export.rename(&visible, &trash, Replace::Nothing).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        export.make_directory(&directory).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(files(root.path()), ["directory", "trash"], "round {round}");
        assert_eq!(export.read_at(&trash, 0, 10).await.unwrap(), "text".as_bytes());
        export.remove_directory(&directory).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        let before = sent(12);
        export.remove(&trash).await.unwrap();
        assert_eq!(sent(12), before + 1);
        assert_eq!(files(root.path()), Vec::<String>::new());
        assert!(middle.script.lock().unwrap().values().all(Vec::is_empty), "every fault was met in round {round}");
    }
}

#[tokio::test]
async fn a_lost_link_never_takes_somebody_elses_name_for_its_own() {
    let root = tempfile::tempdir().unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    std::fs::write(root.path().join("staged"), "ours").unwrap();
    std::fs::write(root.path().join("visible"), "a person's").unwrap();
    middle.next((NFS, 15), [Deed::Drop]);
    let answer = export.link(&path("staged"), &path("visible")).await;
    assert!(matches!(answer, Err(ExportError::Exists(_))), "{answer:?}");
    middle.next((NFS, 8), [Deed::Lose]);
    let answer = export.create(&path("visible")).await;
    assert!(matches!(answer, Err(ExportError::Exists(_))), "{answer:?}");
    assert_eq!(std::fs::read(root.path().join("visible")).unwrap(), b"a person's");
}

#[tokio::test]
async fn a_reply_of_two_gib_is_refused_by_its_header() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    middle.next((NFS, 3), [Deed::Raw(vec![0xff; 4])]);
    let answer = export.stat(&path("doc")).await;
    assert!(matches!(&answer, Err(ExportError::Broken(said)) if said.contains("2147483647")), "{answer:?}");
    assert_eq!(export.stat(&path("doc")).await.expect("on a new connection").size, 4);
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_record_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    middle.next((NFS, 3), [Deed::Raw(vec![0x80, 0, 1, 0, 1, 2, 3]), Deed::Raw(vec![0x80]), Deed::Drop]);
    assert_eq!(export.stat(&path("doc")).await.expect("the fourth try").size, 4);
    assert_eq!(middle.count((NFS, 3)), 4);
}

#[tokio::test]
async fn a_server_that_never_answers_meets_the_deadline() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(SHORT).await;
    middle.next((NFS, 3), [Deed::Stall]);
    let begun = Instant::now();
    let answer = export.stat(&path("doc")).await;
    assert!(matches!(&answer, Err(ExportError::Unavailable(said)) if said.contains("no reply within")), "{answer:?}");
    assert!(begun.elapsed() >= SHORT, "not before its time");
    // The silent connection was given up, so the next call doesn't wait behind it.
    assert_eq!(export.stat(&path("doc")).await.expect("on a new connection").size, 4);
}

#[tokio::test]
async fn a_reply_to_what_was_never_asked_ends_the_connection() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    middle.next((NFS, 3), [Deed::Xid]);
    let answer = export.stat(&path("doc")).await;
    assert!(matches!(&answer, Err(ExportError::Broken(said)) if said.contains("never sent")), "{answer:?}");
    assert_eq!(export.stat(&path("doc")).await.expect("on a new connection").size, 4);
}

#[tokio::test]
async fn malformed_results_are_broken_and_named() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    for (which, words, said) in [
        // A status that is none; a handle of 65 bytes; of none; words too many.
        (3, vec![4711], "NFSPROC3_LOOKUP"),
        (3, vec![0, 65], "65 bytes"),
        (3, vec![0, 0, 0, 0], "empty file handle"),
        (3, [vec![0], words_of(b"hhhh"), vec![0, 0, 9]].concat(), "too many"),
        // More data than asked for; a count that isn't the data's.
        (6, vec![0, 0, 100, 0, 100], "100 bytes"),
        (6, vec![0, 0, 3, 0, 0], "3 are announced"),
        // Neither data nor the end.
        (6, vec![0, 0, 0, 0, 0], "no bytes"),
    ] {
        // Known for a moment, so that READ is what comes next.
        if which == 6 {
            export.stat(&path("doc")).await.unwrap();
        }
        let twice = if said == "no bytes" { 2 } else { 1 };
        middle.next((NFS, which), vec![accepted(&words); twice]);
        let answer = match which {
            3 => export.stat(&path("doc")).await.map(drop),
            _ => export.read_at(&path("doc"), 0, 50).await.map(drop),
        };
        assert!(matches!(&answer, Err(ExportError::Broken(words)) if words.contains(said)), "{said}: {answer:?}");
    }
}

#[tokio::test]
async fn statuses_come_through_by_name_and_busy_ones_are_repeated() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    middle.next((NFS, 3), [accepted(&[5, 0])]);
    let answer = export.stat(&path("doc")).await;
    assert!(matches!(&answer, Err(ExportError::Broken(said)) if said.contains("NFS3ERR_IO")), "{answer:?}");
    for full in [28, 69] {
        middle.next((NFS, 7), [accepted(&[full, 0, 0])]);
        let answer = export.write_at(&path("doc"), 0, "x".into()).await;
        assert!(matches!(answer, Err(ExportError::Full(_))), "{answer:?}");
    }
    middle.next((NFS, 7), [accepted(&[30, 0, 0])]);
    assert!(matches!(export.write_at(&path("doc"), 0, "x".into()).await, Err(ExportError::ReadOnly(_))));
    // JUKEBOX: "ask me again".
    middle.next((NFS, 3), [accepted(&[10008, 0]), accepted(&[10008, 0])]);
    assert_eq!(export.stat(&path("doc")).await.expect("asked a third time").size, 4);
    // Stale once, then found; stale for good, then said.
    middle.next((NFS, 6), [accepted(&[70, 0])]);
    assert_eq!(export.read_at(&path("doc"), 0, 10).await.expect("looked up again"), "text".as_bytes());
    middle.next((NFS, 6), vec![accepted(&[70, 0]); 3]);
    let answer = export.read_at(&path("doc"), 0, 10).await;
    assert!(matches!(&answer, Err(ExportError::Unavailable(said)) if said.contains("NFS3ERR_STALE")), "{answer:?}");
    let mounts = middle.count((MOUNT, 1));
    assert_eq!(mounts, 2, "the root's handle was fetched again before giving up");
}

#[tokio::test]
async fn short_reads_and_writes_are_continued() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), "text").unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    // Two bytes, and not the end.
    let short = |data: &[u8]| {
        let n = u32::try_from(data.len()).expect("short");
        accepted(&[vec![0, 0, n, 0], words_of(data)].concat())
    };
    middle.next((NFS, 6), [short(b"te")]);
    assert_eq!(export.read_at(&path("doc"), 0, 10).await.expect("read"), "text".as_bytes());
    // A WRITE that takes one byte of three (its verifier is the real server's first, else the commit must fail).
    middle.next((NFS, 7), [accepted(&[0, 0, 0, 1, 0, 1, 2])]);
    export.write_at(&path("doc"), 0, "TEX".into()).await.expect("continued");
    let answer = export.commit(&path("doc")).await;
    assert!(matches!(answer, Err(ExportError::VerifierChanged(_))), "two verifiers: {answer:?}");
    middle.next((NFS, 7), [accepted(&[0, 0, 0, 0, 0, 1, 2])]);
    let answer = export.write_at(&path("doc"), 0, "TEX".into()).await;
    assert!(matches!(answer, Err(ExportError::Broken(_))), "no byte taken: {answer:?}");
}

async fn refused(reply: Deed, which: Which) -> ExportError {
    let root = tempfile::tempdir().unwrap();
    let middle = Middle::start(root.path()).await;
    middle.next(which, [reply]);
    let options = NfsOptions { deadline: LONG, ..NfsOptions::default() };
    let url = format!("nfs://127.0.0.1:{}/", middle.port);
    NfsExport::connect(&url, &options).await.err().expect("refused")
}

#[tokio::test]
async fn servers_of_version_4_only_are_told_apart() {
    for which in [(MOUNT, 1), (NFS, 19)] {
        // PROG_MISMATCH 4 to 4, PROG_UNAVAIL.
        for outcome in [vec![0, 0, 0, 2, 4, 4], vec![0, 0, 0, 1]] {
            let said = refused(Deed::Words(outcome), which).await;
            assert!(
                matches!(&said, ExportError::Unsupported(words) if words.contains("version 3; enable it")),
                "{said}"
            );
            assert!(!said.retryable());
        }
    }
}

#[tokio::test]
async fn refusals_name_the_option_that_helps() {
    // MNT3ERR_ACCES, and AUTH_TOOWEAK from the RPC layer.
    for reply in [accepted(&[13]), Deed::Words(vec![1, 1, 5])] {
        let said = refused(reply, (MOUNT, 1)).await;
        let ExportError::Denied { by, .. } = &said else { panic!("{said}") };
        let privileged = rustix::process::geteuid().is_root();
        assert!(by.contains(if privileged { "client list" } else { "`insecure`" }), "{said}");
    }
    let url = super::url::NfsUrl::parse("nfs://nas/x").unwrap();
    let said = super::mount::denied(&url, "MNT3ERR_ACCES", false).to_string();
    assert!(said.contains("`insecure`") && said.contains("MNT3ERR_ACCES") && said.contains("nfs://nas/x"), "{said}");
    // Kerberos only: flavor RPCSEC_GSS krb5.
    let said = refused(accepted(&[vec![0], words_of(b"handle"), vec![1, 390_003]].concat()), (MOUNT, 1)).await;
    assert!(matches!(&said, ExportError::Unsupported(words) if words.contains("sec=sys")), "{said}");
    // A handle of 2^31 bytes, and an array of flavors that long.
    for words in [vec![0, 0x8000_0000], [vec![0], words_of(b"handle"), vec![0x8000_0000]].concat()] {
        assert!(matches!(refused(accepted(&words), (MOUNT, 1)).await, ExportError::Broken(_)));
    }
}

#[tokio::test]
async fn replies_come_in_pieces_and_twice() {
    let root = tempfile::tempdir().unwrap();
    let text: Vec<u8> = (0..5000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(root.path().join("doc"), &text).unwrap();
    let middle = Middle::start(root.path()).await;
    let export = middle.mount(LONG).await;
    for size in [1, 7, 13, 1000] {
        // More fragments than are taken would be an attack of its own: one byte each only for the small reply.
        let which = if size == 1 { 3 } else { 6 };
        export.handles().clear();
        middle.next((NFS, which), [Deed::Pieces(size), Deed::Again]);
        assert_eq!(export.stat(&path("doc")).await.expect("stat").size, 5000);
        assert_eq!(export.read_at(&path("doc"), 0, 5000).await.expect("read"), text, "{size}");
        assert_eq!(export.read_at(&path("doc"), 0, 5000).await.expect("read again"), text, "{size}");
    }
    // As many fragments as bytes, of a reply of 5000: the connection ends, and the call is answered on another.
    middle.next((NFS, 6), [Deed::Pieces(1)]);
    let answer = export.read_at(&path("doc"), 0, 5000).await;
    assert!(matches!(&answer, Err(ExportError::Broken(said)) if said.contains("fragments")), "{answer:?}");
    assert_eq!(export.read_at(&path("doc"), 0, 5000).await.expect("on a new connection"), text);
}

#[tokio::test]
async fn reads_and_writes_are_of_the_size_that_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("doc"), vec![7; 64 << 10]).unwrap();
    let middle = Middle::start(root.path()).await;
    let options = NfsOptions { read_size: Some(4096), write_size: Some(8192), ..NfsOptions::default() };
    let url = format!("nfs://127.0.0.1:{}/", middle.port);
    let export = NfsExport::connect(&url, &options).await.expect("the client mounts");
    assert_eq!(export.read_at(&path("doc"), 0, 64 << 10).await.expect("read").len(), 64 << 10);
    assert_eq!(middle.count((NFS, 6)), 16);
    export.write_at(&path("doc"), 0, vec![8; 64 << 10].into()).await.expect("write");
    assert_eq!(middle.count((NFS, 7)), 8);
}
