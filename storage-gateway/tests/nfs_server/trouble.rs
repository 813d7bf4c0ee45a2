//! The built-in NFS server with something wrong with it, and our own client: what is ridden out, what is told and how, and whose
//! rights count.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::export::{Export, ExportError, User, conformance};
use ingle_gateway::nfs_server::{Faults, Full, NfsFaults, NfsServer, NfsServerOptions, Trouble};
use ingle_proto::ObjectPath;

use super::{path, root};

async fn serve(root: &Path, faults: &Arc<Faults>) -> NfsServer {
    let options = NfsServerOptions { faults: faults.clone(), ..Default::default() };
    NfsServer::bind(root, options).await.expect("the server starts")
}

/// A client that doesn't wait long.
async fn hurried(url: &str) -> NfsExport {
    let options = NfsOptions { deadline: Duration::from_secs(1), ..NfsOptions::default() };
    NfsExport::connect(url, &options).await.expect("the client mounts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_ridden_out_is() {
    let mut met = [0; 6];
    for seed in 1..=3 {
        let (_base, root) = root();
        let faults = Faults::new(NfsFaults {
            seed,
            stale: 150,
            short_reads: 5,
            verifier_changes: 8,
            bad_cookies: 24,
            disconnects: 120,
            delays: 20,
            delay_max: Duration::from_millis(5),
        });
        let server = serve(&root, &faults).await;
        let export = NfsExport::connect(&server.url(), &NfsOptions::default()).await.expect("the client mounts");
        conformance::all(&export, &root).await;

        for (total, times) in met.iter_mut().zip(faults.struck()) {
            *total += times;
        }
        server.shutdown().await;
    }
    assert!(met.iter().all(|times| *times > 0), "every fault was met: {met:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lasts_is_told_and_ends_when_it_is_mended() {
    let (_base, root) = root();
    std::fs::write(root.join("doc"), "the text").expect("behind");
    std::fs::create_dir(root.join("sub")).expect("behind");
    let faults = Faults::new(NfsFaults::default());
    let server = serve(&root, &faults).await;
    let export = hurried(&server.url()).await;
    let doc = path("doc");
    let mend = || faults.set(|trouble| *trouble = Trouble::default());

    faults.set(|trouble| trouble.hung = true);
    let answer = export.read_at(&doc, 0, 100).await;
    assert!(matches!(answer, Err(ExportError::Unavailable(_))), "{answer:?}");
    mend();
    assert_eq!(export.read_at(&doc, 0, 100).await.expect("awake again"), "the text");

    for (full, status) in [(Full::Space, "NFS3ERR_NOSPC"), (Full::Quota, "NFS3ERR_DQUOT")] {
        faults.set(|trouble| trouble.full = Some(full));
        for answer in [
            export.create(&path("new")).await,
            export.write_at(&doc, 0, "x".into()).await,
            export.make_directory(&path("made")).await,
        ] {
            assert!(matches!(&answer, Err(ExportError::Full(words)) if words.contains(status)), "{answer:?}");
            assert!(answer.expect_err("matched above").retryable());
        }
        assert_eq!(export.read_at(&doc, 0, 100).await.expect("reading goes on"), "the text");
        mend();
    }

    faults.set(|trouble| trouble.read_only = true);
    let answer = export.create(&path("new")).await;
    assert!(matches!(&answer, Err(error @ ExportError::ReadOnly(_)) if error.retryable()), "{answer:?}");
    assert!(!export.may_add(&path("sub")).await.expect("asked"), "nobody may add to it");
    mend();
    assert!(export.may_add(&path("sub")).await.expect("asked"));

    faults.set(|trouble| trouble.wrong_lengths = true);
    let answer = export.read_at(&doc, 0, 100).await;
    assert!(matches!(&answer, Err(ExportError::Broken(words)) if words.contains("announced")), "{answer:?}");
    mend();
    faults.set(|trouble| trouble.corrupt = true);
    assert_ne!(export.read_at(&doc, 0, 100).await.expect("who should know"), "the text");
    mend();
    assert_eq!(export.read_at(&doc, 0, 100).await.expect("read"), "the text");
    export.create(&path("new")).await.expect("written again");
    server.shutdown().await;
}

/// What a server shows that isn't the former directory, or isn't shown yet, is never taken for "nothing there".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_directory_under_the_same_name_is_not_worked_on() {
    let (base, root) = root();
    std::fs::write(root.join("doc"), "text").expect("behind");
    let faults = Arc::default();
    let server = serve(&root, &faults).await;
    let listen = server.local_addr();
    let again = |at: PathBuf| async move {
        let options = NfsServerOptions { listen, ..Default::default() };
        NfsServer::bind(&at, options).await.expect("the port is free")
    };
    let export = hurried(&server.url()).await;
    assert_eq!(export.stat(&path("doc")).await.expect("stat").size, 4);
    server.shutdown().await;
    let other = base.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let server = again(other.clone()).await;
    for answer in [export.stat(&path("doc")).await.map(drop), export.create(&path("new")).await] {
        assert!(
            matches!(&answer, Err(ExportError::Unavailable(words)) if words.contains("another directory")),
            "{answer:?}"
        );
    }
    assert_eq!(std::fs::read_dir(&other).expect("behind").count(), 0, "nothing was made there");
    server.shutdown().await;
    let server = again(root.clone()).await;
    assert_eq!(export.stat(&path("doc")).await.expect("the former one").size, 4);
    server.shutdown().await;

    // Below a directory that the server doesn't show for a while: its documents aren't missing.
    std::fs::create_dir(root.join("volume")).expect("behind");
    std::fs::write(root.join("volume/doc"), "text").expect("behind");
    let server = again(root.clone()).await;
    let url = format!("nfs://127.0.0.1:{}/volume", server.local_addr().port());
    let export = hurried(&url).await;
    assert_eq!(export.stat(&path("doc")).await.expect("stat").size, 4);
    std::fs::rename(root.join("volume"), base.path().join("unmounted")).expect("behind");
    let late = NfsExport::new(&url, &NfsOptions::default()).expect("nothing is opened yet");
    for answer in [export.stat(&path("doc")).await, late.stat(&path("doc")).await] {
        assert!(
            matches!(&answer, Err(ExportError::Unavailable(words)) if words.contains("can't be mounted now")),
            "{answer:?}"
        );
    }
    std::fs::rename(base.path().join("unmounted"), root.join("volume")).expect("behind");
    assert_eq!(export.stat(&path("doc")).await.expect("shown again").size, 4);
    assert_eq!(late.stat(&path("doc")).await.expect("shown at last").size, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_share_the_mount_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make files of several users");
        return;
    }
    let (_base, root) = root();
    for (name, mode) in [("own", 0o600), ("team", 0o640), ("all", 0o644)] {
        std::fs::write(root.join(name), name).expect("behind");
        chown(root.join(name), Some(1001), Some(2000)).expect("behind");
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).expect("behind");
    }
    std::fs::create_dir(root.join("theirs")).expect("behind");
    chown(root.join("theirs"), Some(1001), Some(2000)).expect("behind");
    let server = serve(&root, &Arc::default()).await;
    let export = NfsExport::connect(&server.url(), &NfsOptions::default()).await.expect("the client mounts");
    let user = |uid, groups: &[u32]| User { uid, gid: uid, groups: groups.to_vec() };
    // The export's own user knows every handle by now.
    for name in ["own", "team", "all"] {
        export.read_at(&path(name), 0, 9).await.expect("root reads all");
    }
    for (who, can, adds) in [
        (user(1001, &[]), [true, true, true], true),
        (user(1002, &[2000]), [false, true, true], false),
        (user(1003, &[7, 8]), [false, false, true], false),
    ] {
        let theirs = export.as_user(&who).expect("NFS knows users");
        assert_eq!(theirs.user(), Some(who.clone()));
        for (name, can) in ["own", "team", "all"].into_iter().zip(can) {
            let path = path(name);
            let answers = [theirs.readable(&path).await.map(drop), theirs.read_at(&path, 0, 9).await.map(drop)];
            for answer in answers {
                let denied = matches!(answer, Err(ExportError::Denied { .. }));
                assert_eq!((answer.is_ok(), denied), (can, !can), "{who:?} {name}: {answer:?}");
            }
        }
        let (data, attr) = theirs.read_with_attr(&path("all"), 0, 9).await.expect("read");
        assert_eq!((data.as_ref(), attr.expect("READ tells them").size), (&b"all"[..], 3));
        assert_eq!(theirs.may_add(&path("theirs")).await.expect("asked"), adds, "{who:?}");
        assert!(matches!(theirs.readable(&ObjectPath::root()).await, Err(ExportError::Kind { .. })));
    }
}
