//! Our iSCSI initiator and what lies on units, against Debian's tgt.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ingle_gateway::export::conformance::{self, Behind};
use ingle_gateway::export::iscsi::{Account, IscsiExport, IscsiOptions};
use ingle_gateway::export::{Export, ExportError, Kind, Replace};
use ingle_proto::ObjectPath;
use ingle_tests::tgt::{self, Content, NO_MKE2FS, TARGET, Tgt};

const MIB: u64 = 1 << 20;

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect("a valid path")
}

/// `None`, said aloud, where it can't run. What is installed and broken fails the test.
fn target() -> Option<Tgt> {
    match Tgt::start() {
        Ok(server) => Some(server),
        Err(why) if why.contains("isn't ready") || why.contains("failed") => panic!("{why}"),
        Err(why) => {
            eprintln!("SKIPPED: {why}");
            None
        }
    }
}

/// A target whose unit 1 is a volume with what `fill` puts into a directory.
fn volume(size: u64, fill: impl FnOnce(&Path)) -> Option<(tempfile::TempDir, Tgt)> {
    let mut server = target()?;
    let base = tempfile::tempdir().expect("a tempdir");
    let root = base.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    fill(&root);
    let image = base.path().join("unit");
    match tgt::ext4(&root, &image, size, &[]) {
        Ok(()) => {}
        Err(why) if why == NO_MKE2FS => {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        Err(why) => panic!("{why}"),
    }
    server.unit(1, &image).expect("a unit");
    Some((base, server))
}

async fn connect(url: &str) -> IscsiExport {
    IscsiExport::connect(url, &IscsiOptions::default()).await.expect("the volume opens")
}

async fn refused(url: &str, options: &IscsiOptions) -> ExportError {
    IscsiExport::connect(url, options).await.err().expect("refused")
}

fn pattern(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u64(..).to_le_bytes()).flatten().take(length).collect()
}

/// A unit's volume, made anew from a directory whenever a clause has put something there.
struct Image {
    directory: PathBuf,
    image: PathBuf,
    age: Duration,
}

#[async_trait]
impl Behind for Image {
    fn directory(&self) -> &Path {
        &self.directory
    }

    async fn settle(&self) {
        tgt::ext4(&self.directory, &self.image, 64 * MIB, &[]).expect("made anew");
        // Until nothing that was read before is believed any more.
        tokio::time::sleep(self.age * 2).await;
    }

    fn keeps_numbers(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iscsi_reads_as_every_export_does() {
    let Some((base, server)) = volume(64 * MIB, |_| {}) else { return };
    let age = Duration::from_millis(50);
    let options = IscsiOptions { metadata_age: age, ..IscsiOptions::default() };
    let export = IscsiExport::connect(&server.url(1), &options).await.expect("the volume opens");
    let behind = Image { directory: base.path().join("root"), image: base.path().join("unit"), age };
    conformance::reading_from(&export, &behind).await;
    std::fs::write(behind.directory.join("doc"), "text").expect("behind");
    behind.settle().await;
    assert!(!export.abilities().await.expect("abilities").write);
    let (doc, new) = (path("doc"), path("new"));
    for answer in [
        export.create(&new).await,
        export.write_at(&doc, 0, "x".into()).await,
        export.commit(&doc).await,
        export.link(&doc, &new).await,
        export.rename(&doc, &new, Replace::Anything).await,
        export.remove(&doc).await,
        export.make_directory(&new).await,
        export.remove_directory(&new).await,
    ] {
        assert!(matches!(answer, Err(ExportError::ReadOnly(_))), "{answer:?}");
    }
    assert_eq!(export.read_at(&doc, 0, 9).await.expect("read"), "text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_and_a_large_directory() {
    let bytes = pattern(300 << 20);
    let fill = |root: &Path| {
        std::fs::write(root.join("large"), &bytes).expect("behind");
        std::fs::create_dir(root.join("many")).expect("behind");
        for i in 0..10_000 {
            std::fs::write(root.join(format!("many/document {i}.txt")), i.to_string()).expect("behind");
        }
    };
    let Some((_base, server)) = volume(500 * MIB, fill) else { return };
    let export = connect(&server.url(1)).await;
    let (mut hash, mut at) = (blake3::Hasher::new(), 0);
    loop {
        let part = export.read_at(&path("large"), at, 1 << 20).await.expect("read");
        if part.is_empty() {
            break;
        }
        hash.update(&part);
        at += part.len() as u64;
    }
    assert_eq!(hash.finalize(), blake3::hash(&bytes));
    let listed = export.list(&path("many"), 10_000).await.expect("list");
    assert_eq!(listed.len(), 10_000);
    assert!(listed.iter().all(|entry| entry.attr.kind == Kind::File && entry.attr.size <= 4));
    for i in (0..10_000).step_by(97) {
        let text = export.read_at(&path(&format!("many/document {i}.txt")), 0, 100).await.expect("read");
        assert_eq!(text, i.to_string());
    }
}

/// The target dies and comes back while a file is read: the reader sees nothing but the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_target_is_ridden_out() {
    let bytes = pattern(48 << 20);
    let fill = |root: &Path| std::fs::write(root.join("doc"), &bytes).expect("behind");
    let Some((_base, mut server)) = volume(100 * MIB, fill) else { return };
    let export = connect(&server.url(1)).await;
    let killed = AtomicBool::new(false);
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        if read.len() >= 10 << 20 && !killed.swap(true, Ordering::Relaxed) {
            server.kill();
            let doc = path("doc");
            let more = export.read_at(&doc, 20 << 20, 1 << 20);
            let back = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                tokio::task::block_in_place(|| server.restart()).expect("it comes back");
            };
            let (more, ()) = tokio::join!(more, back);
            assert_eq!(more.expect("read in a new session"), bytes[20 << 20..21 << 20]);
        }
        let part = export.read_at(&path("doc"), read.len() as u64, 1 << 20).await.expect("read");
        read.extend_from_slice(&part);
    }
    assert!(read == bytes);
    server.kill();
    let options = IscsiOptions { deadline: Duration::from_millis(700), ..IscsiOptions::default() };
    let error = refused(&server.url(1), &options).await;
    assert!(error.retryable() && error.to_string().contains("no connection"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_and_passwords() {
    let bytes = pattern(3 << 20);
    let fill = |root: &Path| std::fs::write(root.join("doc"), &bytes).expect("behind");
    let Some((base, mut server)) = volume(50 * MIB, fill) else { return };
    let usual = IscsiOptions::default();
    let with = IscsiOptions { header_digest: true, data_digest: true, ..usual.clone() };
    let said = refused(&server.url(1), &with).await.to_string();
    assert!(said.contains("igest"), "the target's are off: {said}");
    for key in ["HeaderDigest", "DataDigest"] {
        server.say(&["--op", "update", "--mode", "target", "--tid", "1", "-n", key, "-v", "CRC32C"]).expect("on");
    }
    let export = IscsiExport::connect(&server.url(1), &with).await.expect("with digests");
    for (offset, length) in [(0, 1 << 20), (1 << 20, 1 << 20), (777, 3), (2 << 20, 1 << 20)] {
        let part = export.read_at(&path("doc"), offset, length).await.expect("read");
        let start = usize::try_from(offset).expect("small");
        assert_eq!(part, bytes[start..start + length as usize], "{length} at {offset}");
    }
    for key in ["HeaderDigest", "DataDigest"] {
        server.say(&["--op", "update", "--mode", "target", "--tid", "1", "-n", key, "-v", "None"]).expect("off");
    }
    let password = |name: &str, text: &str| {
        let file = base.path().join(name);
        std::fs::write(&file, text).expect("a file");
        file
    };
    server.say(&["--op", "new", "--mode", "account", "--user", "gw", "--password", "secretsecret12"]).expect("account");
    server.say(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", "gw"]).expect("bound");
    let account = |file| Some(Account { user: "gw".to_owned(), password_file: file });
    let right = IscsiOptions { account: account(password("right", "secretsecret12\n")), ..usual.clone() };
    let wrong = IscsiOptions { account: account(password("wrong", "secretsecret13")), ..usual.clone() };
    let export = IscsiExport::connect(&server.url(1), &right).await.expect("with the password");
    assert_eq!(export.read_at(&path("doc"), 5, 5).await.expect("read"), bytes[5..10]);
    for (options, words) in [(&wrong, "gw"), (&usual, "password_file")] {
        let error = refused(&server.url(1), options).await;
        assert!(matches!(error, ExportError::Denied { .. }) && error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    server.say(&["--op", "new", "--mode", "account", "--user", "nas", "--password", "othersecret34"]).expect("account");
    server.say(&["--op", "bind", "--mode", "account", "--tid", "1", "--user", "nas", "--outgoing"]).expect("bound");
    let nas = |file| Some(Account { user: "nas".to_owned(), password_file: file });
    let both = IscsiOptions { mutual: nas(password("theirs", "othersecret34")), ..right.clone() };
    let export = IscsiExport::connect(&server.url(1), &both).await.expect("both know the other's password");
    assert_eq!(export.read_at(&path("doc"), 5, 5).await.expect("read"), bytes[5..10]);
    let impostor = IscsiOptions { mutual: nas(password("not theirs", "othersecret35")), ..right };
    let error = refused(&server.url(1), &impostor).await;
    assert!(error.to_string().contains("mutual"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_named_beside_what_is() {
    let Some((_base, mut server)) = volume(20 * MIB, |_| {}) else { return };
    let usual = IscsiOptions::default();
    server.say(&["--op", "new", "--mode", "target", "--tid", "2", "-T", "iqn.2026-11.test:other"]).expect("another");
    server.say(&["--op", "bind", "--mode", "target", "--tid", "2", "-I", "127.0.0.1"]).expect("bound");
    let error = refused(&server.url(1).replace("units", "none"), &usual).await;
    assert!(matches!(error, ExportError::NotFound(_)), "{error:?}");
    for name in [TARGET, "iqn.2026-11.test:other"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = refused(&server.url(7), &usual).await;
    assert!(matches!(error, ExportError::NotFound(_)) && error.to_string().contains("it has 0, 1"), "{error}");
    let error = refused(&server.url(0), &usual).await;
    assert!(error.to_string().contains("a storage array controller"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_found_and_others_refused_by_name() {
    let Some((base, mut server)) = volume(20 * MIB, |root| std::fs::write(root.join("doc"), "text").expect("behind"))
    else {
        return;
    };
    let at = |name: &str| base.path().join(name);
    let unit = at("unit");
    let ext4 = || Content::Image(&unit);
    let xfs = || Content::Mark(0, b"XFSB");
    let disks = [
        tgt::disk(&at("gpt"), &[xfs(), ext4()], true),
        tgt::disk(&at("mbr"), &[ext4(), Content::Mark(0, b"LUKS\xba\xbe")], false),
        tgt::disk(&at("two"), &[ext4(), ext4()], true),
        tgt::disk(&at("none"), &[xfs(), Content::Mark(512, b"LABELONE")], true),
    ];
    for (lun, disk) in (2..).zip(disks) {
        server.unit(lun, &disk.expect("a disk")).expect("a unit");
    }
    for (lun, mark, name) in [
        (6, (0, &b"XFSB"[..]), "XFS"),
        (7, (0x10040, b"_BHRfS_M"), "btrfs"),
        (8, (0, b"LUKS\xba\xbe"), "LUKS"),
        (9, (512, b"LABELONE"), "LVM"),
        (10, (0, b"nothing"), "nothing that is known"),
    ] {
        let mut bytes = vec![0; 1 << 20];
        bytes[mark.0..mark.0 + mark.1.len()].copy_from_slice(mark.1);
        let file = at(&format!("marked {lun}"));
        std::fs::write(&file, bytes).expect("a file");
        server.unit(lun, &file).expect("a unit");
        let error = refused(&server.url(lun), &IscsiOptions::default()).await;
        assert!(matches!(error, ExportError::Unsupported(_)) && error.to_string().contains(name), "{name}: {error}");
    }
    for url in [
        server.url(2),
        server.url(3),
        format!("{}?partition=2", server.url(4)),
        format!("{}?partition=1", server.url(3)),
    ] {
        let export = connect(&url).await;
        assert_eq!(export.read_at(&path("doc"), 0, 9).await.expect("read"), "text", "{url}");
        assert_eq!(export.url(), url);
    }
    let error = refused(&server.url(4), &IscsiOptions::default()).await.to_string();
    assert!(error.contains("?partition=N") && error.contains("2 \"part\": ext4"), "{error}");
    let error = refused(&server.url(5), &IscsiOptions::default()).await.to_string();
    assert!(error.contains("1 \"part\": it holds XFS") && error.contains("LVM"), "{error}");
    let error = refused(&format!("{}?partition=9", server.url(2)), &IscsiOptions::default()).await.to_string();
    assert!(error.contains("it has 1, 2"), "{error}");
    let error = refused(&format!("{}?partition=1", server.url(2)), &IscsiOptions::default()).await.to_string();
    assert!(error.contains("XFS"), "{error}");
}
