//! Every export that needs no server: the conformance suite, and what only a directory of this machine can show.

use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::metrics::Metrics;
use ingle_gateway::config::{Config, ExportConfig};
use ingle_gateway::export::conformance;
use ingle_gateway::export::faulty::{Faults, Faulty};
use ingle_gateway::export::local::LocalExport;
use ingle_gateway::export::{Export, ExportError, Kind, Replace};
use ingle_gateway::exports::Exports;
use ingle_gateway::metrics::Meters;
use ingle_proto::ObjectPath;

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a valid path")
}

/// A directory named `root` in a tempdir of its own: the suite puts things beside it.
fn root() -> (tempfile::TempDir, std::path::PathBuf) {
    let base = tempfile::tempdir().expect("a tempdir");
    let root = base.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    (base, root)
}

#[tokio::test]
async fn local_conforms() {
    let (_base, root) = root();
    let export = LocalExport::open(&root, false).expect("open");
    conformance::all(&export, &root).await;
}

#[tokio::test]
async fn read_only_local_reads_and_refuses_every_change() {
    let (_base, root) = root();
    let export = LocalExport::open(&root, true).expect("open");
    conformance::reading(&export, &root).await;
    assert!(!export.abilities().await.expect("abilities").write);
    std::fs::write(root.join("doc"), "text").expect("behind");
    let (doc, new) = (path("doc"), path("new"));
    for answer in [
        export.create(&new).await,
        export.write_at(&doc, 0, "x".into()).await,
        export.commit(&doc).await,
        export.link(&doc, &new).await,
        export.rename(&doc, &new, Replace::Nothing).await,
        export.remove(&doc).await,
        export.make_directory(&new).await,
        export.remove_directory(&new).await,
    ] {
        assert!(matches!(answer, Err(ExportError::ReadOnly(_))), "{answer:?}");
    }
    assert_eq!(std::fs::read(root.join("doc")).expect("behind"), b"text");
}

#[test]
fn a_root_that_is_none_is_refused() {
    let (base, root) = root();
    std::fs::write(base.path().join("file"), "x").expect("behind");
    let missing = LocalExport::open(&root.join("none"), false).expect_err("missing");
    assert!(matches!(missing, ExportError::NotFound(_)), "{missing:?}");
    let file = LocalExport::open(&base.path().join("file"), false).expect_err("a file");
    assert!(matches!(file, ExportError::Kind { .. }), "{file:?}");
}

/// A symlink swapped in between any two system calls is never followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn symlink_swapped_between_check_and_open() {
    let (base, root) = root();
    std::fs::write(base.path().join("secret"), "secret").expect("behind");
    std::fs::create_dir(root.join("d")).expect("behind");
    let name = root.join("d/doc");
    let export = LocalExport::open(&root, false).expect("open");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, spare) = (stop.clone(), root.join("spare"));
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::write(&spare, "public").expect("behind");
                std::fs::rename(&spare, &name).expect("behind");
                std::os::unix::fs::symlink("../../secret", &spare).expect("behind");
                std::fs::rename(&spare, &name).expect("behind");
            }
        }
    });
    let mut seen = [0; 2];
    // On a busy machine the other thread may rest for thousands of reads: we go on until both were met.
    for turn in 0..300_000 {
        if turn >= 3000 && seen.iter().all(|count| *count > 0) {
            break;
        }
        match export.read_at(&path("d/doc"), 0, 100).await {
            Ok(bytes) => {
                assert_ne!(bytes, "secret".as_bytes(), "left the root");
                seen[0] += 1;
            }
            Err(ExportError::Kind { .. }) => seen[1] += 1,
            Err(ExportError::NotFound(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().expect("the swapper ends");
    assert!(seen[0] > 0 && seen[1] > 0, "both were met: {seen:?}");
}

#[tokio::test]
async fn devices_are_named_but_not_opened() {
    // /dev/null as an "export's" entry: nothing has to be made for it.
    let export = LocalExport::open(std::path::Path::new("/dev"), true).expect("open");
    assert_eq!(export.stat(&path("null")).await.expect("stat").kind, Kind::Other);
    let answer = export.read_at(&path("null"), 0, 1).await;
    assert!(matches!(answer, Err(ExportError::Kind { .. })), "{answer:?}");
}

#[tokio::test]
async fn slow_but_sound_conforms() {
    let (_base, root) = root();
    let inner = Arc::new(LocalExport::open(&root, false).expect("open"));
    let faults = Faults { seed: 7, delayed: 0.3, delay_max: Duration::from_millis(2), ..Faults::default() };
    conformance::all(&Faulty::new(inner, faults), &root).await;
}

#[tokio::test]
async fn faults_are_those_of_the_seed() {
    let outcomes = |faults: Faults| async move {
        let (_base, root) = root();
        let export = Faulty::new(Arc::new(LocalExport::open(&root, false).expect("open")), faults);
        let mut outcomes = Vec::new();
        for i in 0..200 {
            let name = format!("f{i}");
            let answer = export.create(&path(&name)).await;
            assert!(answer.as_ref().err().is_none_or(ExportError::retryable), "{answer:?}");
            outcomes.push((answer.is_ok(), root.join(name).exists()));
        }
        outcomes
    };
    let count = |outcomes: &[(bool, bool)], what| outcomes.iter().filter(|outcome| **outcome == what).count();
    let faults = Faults { seed: 11, refused: 0.2, lost: 0.2, ..Faults::default() };
    let first = outcomes(faults.clone()).await;
    assert_eq!(first, outcomes(faults.clone()).await, "the same seed");
    assert_ne!(first, outcomes(Faults { seed: 12, ..faults }).await, "another seed");
    let [fine, lost, refused] = [(true, true), (false, true), (false, false)].map(|what| count(&first, what));
    assert_eq!((fine + lost + refused, count(&first, (true, false))), (200, 0));
    assert!(fine > 80 && lost > 10 && refused > 10, "all three were met: {fine} {lost} {refused}");
}

#[tokio::test]
async fn truncated_reads_are_shorter_than_the_file() {
    let (_base, root) = root();
    std::fs::write(root.join("doc"), [7; 1000]).expect("behind");
    let inner = Arc::new(LocalExport::open(&root, false).expect("open"));
    let export = Faulty::new(inner, Faults { truncated: 1.0, ..Faults::default() });
    let read = export.read_at(&path("doc"), 0, 1000).await.expect("read");
    assert!(read.len() < 1000 && read.iter().all(|byte| *byte == 7));
}

/// Exports of a configuration with one directory, `docs`.
fn exports_of(root: &std::path::Path) -> Exports {
    let docs = ExportConfig { url: format!("file://{}", root.display()), ..ExportConfig::default() };
    let config = Config { exports: [("docs".to_owned(), docs)].into(), ..Config::default() };
    Exports::new(&config, Meters::new(&Metrics::new("test")))
}

/// A disk mounted at the directory after the start, as far as a test without privileges can show it.
#[tokio::test]
async fn another_directory_at_the_roots_path_is_seen() {
    let (base, root) = root();
    std::fs::write(root.join("under the mount point"), "x").expect("behind");
    let exports = exports_of(&root);
    let before = exports.ours("docs").await.expect("opened");
    assert!(Arc::ptr_eq(&before, &exports.ours("docs").await.expect("the same")), "opened once");
    std::fs::rename(&root, base.path().join("covered")).expect("moved");
    let gone = exports.ours("docs").await.err().expect("the path leads nowhere");
    assert!(gone.retryable() && gone.message.contains("is not there any more"), "{gone}");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::write(root.join("on the disk"), "x").expect("behind");
    let after = exports.ours("docs").await.expect("opened again");
    let names = |entries: Vec<ingle_gateway::export::Entry>| entries.into_iter().map(|e| e.name).collect::<Vec<_>>();
    assert_eq!(names(after.list(&ObjectPath::root(), 9).await.expect("a list")), [b"on the disk"]);
    // What was under way ends where it began.
    assert_eq!(names(before.list(&ObjectPath::root(), 9).await.expect("a list")), [b"under the mount point"]);
}
