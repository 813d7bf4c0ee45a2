//! The built-in NFS server, spoken to by our own client: the conformance suite, restarts, rights, limits.

mod trouble;

use std::path::{Path, PathBuf};

use ingle_gateway::export::conformance;
use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::export::{Export, ExportError, Kind, Replace};
use ingle_gateway::nfs_server::{NfsServer, NfsServerOptions, Squash};
use ingle_proto::ObjectPath;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a valid path")
}

/// A directory named `root` in a tempdir of its own: the suite puts things beside it.
fn root() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().expect("a tempdir");
    let root = base.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    (base, root)
}

async fn serve(root: &Path, options: NfsServerOptions) -> NfsServer {
    NfsServer::bind(root, options).await.expect("the server starts")
}

async fn connect(url: &str) -> NfsExport {
    NfsExport::connect(url, &NfsOptions::default()).await.expect("the client mounts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builtin_server_conforms() {
    let (_base, root) = root();
    let server = serve(&root, NfsServerOptions::default()).await;
    let export = connect(&server.url()).await;
    conformance::all(&export, &root).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_server_reads_and_refuses_every_change() {
    let (_base, root) = root();
    let server = serve(&root, NfsServerOptions { read_only: true, ..Default::default() }).await;
    let export = connect(&server.url()).await;
    conformance::reading(&export, &root).await;
    std::fs::write(root.join("doc"), "text").expect("behind");
    let (doc, new) = (path("doc"), path("new"));
    for answer in [
        export.create(&new).await,
        export.write_at(&doc, 0, "x".into()).await,
        export.link(&doc, &new).await,
        export.rename(&doc, &new, Replace::Nothing).await,
        export.remove(&doc).await,
        export.make_directory(&new).await,
    ] {
        assert!(matches!(answer, Err(ExportError::ReadOnly(_))), "{answer:?}");
    }
    assert_eq!(std::fs::read(root.join("doc")).expect("behind"), b"text");
}

/// Handles are the same after a restart, and what the new process doesn't know is looked up again by the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_is_ridden_out_and_uncommitted_writes_are_told() {
    let (_base, root) = root();
    let server = serve(&root, NfsServerOptions::default()).await;
    let listen = server.local_addr();
    let export = connect(&server.url()).await;
    export.make_directory(&path("a/b")).await.expect("make");
    let doc = path("a/b/doc");
    export.create(&doc).await.expect("create");
    export.write_at(&doc, 0, "first half, ".into()).await.expect("write");
    server.shutdown().await;
    let server = serve(&root, NfsServerOptions { listen, ..Default::default() }).await;
    export.write_at(&doc, 12, "second half".into()).await.expect("the client finds its file again");
    let answer = export.commit(&doc).await;
    assert!(matches!(answer, Err(ExportError::VerifierChanged(_))), "{answer:?}");
    export.write_at(&doc, 0, "first half, second half".into()).await.expect("everything again");
    export.commit(&doc).await.expect("and now it is durable");
    assert_eq!(std::fs::read(root.join("a/b/doc")).expect("behind"), b"first half, second half");
    // A restart between create and its repetition: other names are free, this one is taken.
    server.shutdown().await;
    let _server = serve(&root, NfsServerOptions { listen, ..Default::default() }).await;
    assert!(matches!(export.create(&doc).await, Err(ExportError::Exists(_))));
    assert_eq!(export.list(&path("a/b"), 10).await.expect("list").len(), 1);
    export.rename(&doc, &path("moved"), Replace::Nothing).await.expect("rename");
    assert_eq!(export.read_at(&path("moved"), 0, 5).await.expect("read"), "first".as_bytes());
}

/// A server that comes back within the deadline is waited for; one that doesn't is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_is_waited_for_then_named() {
    let (_base, root) = root();
    std::fs::write(root.join("doc"), "text").expect("behind");
    let server = serve(&root, NfsServerOptions::default()).await;
    let (listen, url) = (server.local_addr(), server.url());
    let options = NfsOptions { deadline: std::time::Duration::from_secs(4), ..NfsOptions::default() };
    let export = NfsExport::connect(&url, &options).await.expect("mount");
    server.shutdown().await;
    let said = export.stat(&path("doc")).await.expect_err("nobody answers");
    assert!(
        matches!(&said, ExportError::Unavailable(words) if words.contains("127.0.0.1") && words.contains("doc")),
        "{said}"
    );
    assert!(said.retryable());
    // The same export goes on when the server is back, also while a call waits for it.
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { (export.read_at(&path("doc"), 0, 10).await, export) });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let _server = serve(&root, NfsServerOptions { listen, ..Default::default() }).await;
    let (read, export) = waiting.join_next().await.expect("one task").expect("it ends");
    assert_eq!(read.expect("the server came back in time"), "text".as_bytes());
    assert_eq!(export.stat(&path("doc")).await.expect("stat").size, 4);
    // An export made while its server is down mounts when first used.
    NfsExport::new(&url, &options).expect("nothing is opened yet").stat(&path("doc")).await.expect("mounts now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_rights_count() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (_base, root) = root();
    let chmod = |name: &str, mode: u32| {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).expect("behind");
    };
    std::fs::write(root.join("private"), "mine").expect("behind");
    std::fs::write(root.join("public"), "all's").expect("behind");
    std::fs::create_dir(root.join("closed")).expect("behind");
    std::fs::write(root.join("closed/doc"), "x").expect("behind");
    chmod("private", 0o600);
    chmod("closed", 0o700);
    let server = serve(&root, NfsServerOptions::default()).await;
    // Somebody who isn't the server's own user.
    let stranger = format!("{}&uid=54321&gid=54321", server.url());
    let export = connect(&stranger).await;
    assert_eq!(export.read_at(&path("public"), 0, 10).await.expect("readable for all"), "all's".as_bytes());
    for answer in [
        export.read_at(&path("private"), 0, 10).await.map(drop),
        export.stat(&path("closed/doc")).await.map(drop),
        export.list(&path("closed"), 10).await.map(drop),
        export.write_at(&path("public"), 0, "x".into()).await,
        export.create(&path("new")).await,
        export.remove(&path("public")).await,
        export.rename(&path("public"), &path("moved"), Replace::Nothing).await,
        export.make_directory(&path("made")).await,
        export.link(&path("private"), &path("linked")).await,
    ] {
        assert!(matches!(answer, Err(ExportError::Denied { .. })), "{answer:?}");
    }
    assert_eq!(std::fs::read(root.join("public")).expect("behind"), b"all's");
    // Squashed, everybody is the server's user.
    let all = serve(&root, NfsServerOptions { squash: Squash::All, ..Default::default() }).await;
    let squashed = connect(&format!("{}&uid=54321&gid=54321", all.url())).await;
    assert_eq!(squashed.read_at(&path("private"), 0, 10).await.expect("read"), "mine".as_bytes());
    squashed.create(&path("new")).await.expect("create");
    if rustix::process::geteuid().is_root() {
        // In a directory of their own, people own what they make.
        std::fs::create_dir(root.join("theirs")).expect("behind");
        std::os::unix::fs::chown(root.join("theirs"), Some(54321), Some(54321)).expect("behind");
        export.create(&path("theirs/doc")).await.expect("create");
        export.write_at(&path("theirs/doc"), 0, "x".into()).await.expect("write");
        export.make_directory(&path("theirs/sub")).await.expect("make");
        for made in ["theirs/doc", "theirs/sub"] {
            let meta = std::fs::metadata(root.join(made)).expect("behind");
            assert_eq!((meta.uid(), meta.gid()), (54321, 54321), "{made}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_below_may_be_mounted_and_is_not_left() {
    let (_base, root) = root();
    std::fs::create_dir_all(root.join("sub/deeper")).expect("behind");
    std::fs::write(root.join("above"), "x").expect("behind");
    std::fs::write(root.join("sub/doc"), "text").expect("behind");
    std::os::unix::fs::symlink("/", root.join("slash")).expect("behind");
    let server = serve(&root, NfsServerOptions::default()).await;
    let port = server.local_addr().port();
    let url = |path: &str| format!("nfs://localhost:{port}/{path}");
    let export = connect(&url("sub/")).await;
    assert_eq!(export.read_at(&path("doc"), 0, 10).await.expect("read"), "text".as_bytes());
    assert_eq!(export.stat(&path("deeper")).await.expect("stat").kind, Kind::Directory);
    assert!(matches!(export.stat(&path("above")).await, Err(ExportError::NotFound(_))));
    for (bad, status) in [("none", "MNT3ERR_NOENT"), ("sub/doc", "MNT3ERR_NOTDIR"), ("slash/etc", "MNT3ERR_NOTDIR")] {
        let answer = NfsExport::connect(&url(bad), &NfsOptions::default()).await.err().expect("no such directory");
        assert!(matches!(&answer, ExportError::NotFound(said) if said.contains(status)), "{bad}: {answer:?}");
    }
    let dots = NfsExport::connect(&url("sub/%2e%2e/%2e%2e"), &NfsOptions::default()).await.err().expect("refused");
    assert!(matches!(dots, ExportError::Path(_)), "{dots:?}");
}

/// A raw call: xid 7, program, version, procedure, no credential, arguments.
fn call(program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
    let words = [7, 0, 2, program, version, procedure, 0, 0, 0, 0];
    let mut body: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    body.extend_from_slice(arguments);
    let mut record = (0x8000_0000 | u32::try_from(body.len()).expect("small")).to_be_bytes().to_vec();
    record.extend(body);
    record
}

async fn exchange(server: &NfsServer, record: &[u8]) -> Vec<u32> {
    let mut stream = tokio::net::TcpStream::connect(server.local_addr()).await.expect("connect");
    stream.write_all(record).await.expect("send");
    stream.shutdown().await.expect("that is all");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.expect("reply");
    reply.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().expect("four"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rpc_that_cannot_be_carried_out_is_answered_so() {
    let (_base, root) = root();
    let server = serve(&root, NfsServerOptions::default()).await;
    // Header, xid, reply, accepted, verifier, then what became of it.
    let of = |outcome: &[u32]| [&[7, 1, 0, 0, 0][..], outcome].concat();
    for (record, expected) in [
        (call(100_003, 3, 0, &[]), of(&[0])),
        (call(100_003, 4, 0, &[]), of(&[2, 3, 3])),
        (call(100_003, 3, 99, &[]), of(&[3])),
        (call(100_999, 1, 0, &[]), of(&[1])),
        (call(100_003, 3, 1, &[0xff; 4]), of(&[4])),
        (call(100_003, 3, 1, &[0, 0, 0, 4, 1, 2, 3, 4]), of(&[0, 10001])),
        (call(100_000, 2, 3, &[0, 1, 0x86, 0xa3, 0, 0, 0, 3, 0, 0, 0, 6, 0, 0, 0, 0]), {
            of(&[0, u32::from(server.local_addr().port())])
        }),
        (call(100_000, 2, 3, &[0, 1, 0x86, 0xa3, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 0]), of(&[0, 0])),
    ] {
        let reply = exchange(&server, &record).await;
        assert_eq!(reply[1..], expected, "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_are_cut_off_and_others_served() {
    let (_base, root) = root();
    std::fs::write(root.join("doc"), "text").expect("behind");
    let server = serve(&root, NfsServerOptions { connections_max: 8, ..Default::default() }).await;
    // A record of 2 GiB, a reply instead of a call, a record cut short, a kerberos credential.
    assert_eq!(exchange(&server, &[0xff, 0xff, 0xff, 0xff, 1, 2, 3]).await, Vec::<u32>::new());
    let mut reply = call(100_003, 3, 0, &[]);
    reply[11] = 1;
    assert_eq!(exchange(&server, &reply).await, Vec::<u32>::new());
    assert_eq!(exchange(&server, &call(100_003, 3, 0, &[])[..20]).await, Vec::<u32>::new());
    let mut kerberos = call(100_003, 3, 0, &[]);
    kerberos[31] = 6;
    assert_eq!(exchange(&server, &kerberos).await[1..], [7, 1, 1, 1, 2], "denied: AUTH_REJECTEDCRED");
    // Connections beyond the limit are closed, and their places come back.
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut stream = tokio::net::TcpStream::connect(server.local_addr()).await.expect("connect");
        stream.write_all(&call(100_003, 3, 0, &[])).await.expect("send");
        let mut reply = [0; 28];
        stream.read_exact(&mut reply).await.expect("each of the eight is served");
        idle.push(stream);
    }
    let mut ninth = tokio::net::TcpStream::connect(server.local_addr()).await.expect("connect");
    assert_eq!(ninth.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    drop(idle);
    let export = connect(&server.url()).await;
    assert_eq!(export.read_at(&path("doc"), 0, 10).await.expect("served again"), "text".as_bytes());
}

/// A person saves over a name the moment the server has given it: theirs stays, whatever the server was about to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_saved_over_a_fresh_link_stays() {
    let (_base, root) = root();
    let server = serve(&root, NfsServerOptions::default()).await;
    let export = connect(&server.url()).await;
    std::fs::write(root.join("ours"), "ours").expect("behind");
    let rounds = 300;
    let person = {
        let root = root.clone();
        std::thread::spawn(move || {
            for round in 0..rounds {
                let (new, saved) = (root.join(format!("name-{round}")), root.join("being saved"));
                std::fs::write(&saved, "theirs").expect("a file");
                while new.symlink_metadata().is_err() {
                    std::hint::spin_loop();
                }
                std::fs::rename(&saved, &new).expect("a save");
            }
        })
    };
    for round in 0..rounds {
        // Whatever it answers: the person may have been faster.
        let _ = export.link(&path("ours"), &path(&format!("name-{round}"))).await;
    }
    person.join().expect("the person is done");
    for round in 0..rounds {
        let there = std::fs::read(root.join(format!("name-{round}")));
        assert_eq!(there.ok().as_deref(), Some(b"theirs".as_slice()), "round {round}");
    }
    assert_eq!(std::fs::read(root.join("ours")).expect("behind"), b"ours");
    // What isn't a file is linked as itself, not as what it points to.
    std::os::unix::fs::symlink("ours", root.join("pointer")).expect("behind");
    export.link(&path("pointer"), &path("pointer too")).await.expect("link");
    assert_eq!(std::fs::read_link(root.join("pointer too")).expect("a symbolic link"), Path::new("ours"));
    server.shutdown().await;
}
