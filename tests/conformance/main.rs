//! Our clients against servers that aren't ours: NFS against NFS-Ganesha here, iSCSI against Debian's tgt.

mod iscsi;

use std::path::PathBuf;

use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::export::{Export, ExportError, conformance};
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
