//! Our clients against servers that aren't ours: NFS against NFS-Ganesha here, iSCSI against Debian's tgt, the job store against etcd.

mod iscsi;
mod jobs;

use std::path::PathBuf;
use std::sync::Arc;

use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::export::{Export, ExportError, User, conformance};
use ingle_gateway::file::Writer;
use ingle_proto::ObjectPath;
use ingle_tests::nas::Ganesha;

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

/// `None`, said aloud, where it can't run. What is installed and broken fails the test.
fn ganesha(root: &std::path::Path) -> Option<Ganesha> {
    match Ganesha::start(root) {
        Ok(server) => Some(server),
        Err(why) if why.contains("isn't ready") => panic!("{why}"),
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

async fn connect(url: &str) -> NfsExport {
    NfsExport::connect(url, &NfsOptions::default()).await.expect("the client mounts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nfs_ganesha_conforms() {
    let (_base, root) = root();
    let Some(server) = ganesha(&root) else { return };
    let export = connect(&server.url()).await;
    conformance::all(&export, &root).await;
}

/// What is written back on the way is not taken for durable: a server that was killed in between is found out at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_write_notices_that_ganesha_was_killed_in_the_middle() {
    let (_base, root) = root();
    let Some(mut server) = ganesha(&root) else { return };
    let export: Arc<dyn Export> = Arc::new(connect(&server.url()).await);
    let piece = bytes::Bytes::from(vec![7; 1 << 20]);
    for killed in [true, false] {
        let mut writer = Writer::begin(&export, &ObjectPath::root()).await.expect("begin");
        for number in 0..80 {
            if killed && number == 50 {
                // Its verifier is the second it was started in.
                tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
                server.restart().expect("it comes back");
            }
            writer.push(piece.clone()).await.expect("writes are repeated");
        }
        match writer.seal().await {
            Err(ExportError::VerifierChanged(_)) => assert!(killed),
            Ok(sealed) => assert!(!killed && sealed.size == 80 << 20),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The write verifier of a server that was killed is another one: what was not committed must be written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_ganesha_is_noticed_and_ridden_out() {
    let (_base, root) = root();
    let Some(mut server) = ganesha(&root) else { return };
    let export = connect(&server.url()).await;
    export.make_directory(&path("a/b")).await.expect("make");
    let doc = path("a/b/doc");
    export.create(&doc).await.expect("create");
    export.write_at(&doc, 0, "text".into()).await.expect("write");
    // Its verifier is the second it was started in.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    server.restart().expect("it comes back");
    let answer = export.commit(&doc).await;
    assert!(matches!(answer, Err(ExportError::VerifierChanged(_))), "{answer:?}");
    export.write_at(&doc, 0, "text".into()).await.expect("written again");
    export.commit(&doc).await.expect("durable now");
    assert_eq!(std::fs::read(root.join("a/b/doc")).expect("behind"), b"text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ganesha_refuses_a_stranger_and_an_unknown_path() {
    use std::os::unix::fs::PermissionsExt as _;
    let (base, root) = root();
    // The way to the export is open for all; the file isn't.
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).expect("behind");
    std::fs::write(root.join("private"), "mine").expect("behind");
    std::fs::set_permissions(root.join("private"), std::fs::Permissions::from_mode(0o600)).expect("behind");
    let Some(server) = ganesha(&root) else { return };
    let stranger = connect(&format!("{}&uid=54321&gid=54321", server.url())).await;
    let answer = stranger.read_at(&path("private"), 0, 10).await;
    assert!(matches!(answer, Err(ExportError::Denied { .. })), "{answer:?}");
    let answer = stranger.create(&path("new")).await;
    assert!(matches!(answer, Err(ExportError::Denied { .. })), "{answer:?}");
    let elsewhere = server.url().replace("root?", "nowhere?");
    let answer = NfsExport::connect(&elsewhere, &NfsOptions::default()).await.err().expect("no such export");
    assert!(matches!(answer, ExportError::NotFound(_) | ExportError::Denied { .. }), "{answer:?}");
}

/// Another server's modes decide too, for each user by itself, over one mount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ganesha_decides_for_each_principal() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let (base, root) = root();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("behind");
    };
    mode(base.path(), 0o755);
    let Some(server) = ganesha(&root) else { return };
    std::fs::create_dir(root.join("listed")).expect("behind");
    std::fs::create_dir(root.join("theirs")).expect("behind");
    for (name, bits) in [("own", 0o600), ("team", 0o640), ("all", 0o644), ("listed/all", 0o644)] {
        std::fs::write(root.join(name), "text").expect("behind");
        chown(root.join(name), Some(1001), Some(2000)).expect("behind");
        mode(&root.join(name), bits);
    }
    chown(root.join("theirs"), Some(1001), Some(1001)).expect("behind");
    // Who may list it may not go through it.
    mode(&root.join("listed"), 0o744);
    let export = connect(&server.url()).await;
    for name in ["own", "team", "all", "listed/all"] {
        export.read_at(&path(name), 0, 9).await.expect("root reads all");
    }
    let user = |uid, groups: &[u32]| User { uid, gid: uid, groups: groups.to_vec() };
    for (who, can, adds) in [
        (user(1001, &[]), [true, true, true, false], true),
        (user(1002, &[2000]), [false, true, true, false], false),
        (user(1003, &[7]), [false, false, true, false], false),
    ] {
        let theirs = export.as_user(&who).expect("NFS knows users");
        // Servers differ over whether that alone lists it; what a listing brings opens nothing in it.
        let _ = theirs.list(&path("listed"), 9).await;
        for (name, can) in ["own", "team", "all", "listed/all"].into_iter().zip(can) {
            let path = path(name);
            for answer in [theirs.readable(&path).await.map(drop), theirs.read_at(&path, 0, 9).await.map(drop)] {
                let denied = matches!(answer, Err(ExportError::Denied { .. }));
                assert_eq!((answer.is_ok(), denied), (can, !can), "{who:?} {name}: {answer:?}");
            }
        }
        assert_eq!(theirs.may_add(&path("theirs")).await.expect("asked"), adds, "{who:?}");
        let made = theirs.create(&path("theirs/new")).await;
        assert_eq!(made.is_ok(), adds, "{who:?}: {made:?}");
    }
    assert_eq!(std::fs::metadata(root.join("theirs/new")).expect("made").uid(), 1001);
    let (_, attr) = export.read_with_attr(&path("all"), 0, 9).await.expect("read");
    assert_eq!(attr.expect("Ganesha tells them").size, 4);
}
