//! Volumes made by mke2fs, read by us and by `ext4-view`; spoilt ones; those that aren't read.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::export::disk::image::Image;

/// Longer than any test: what was read once is believed.
const AGE: Duration = Duration::from_secs(3600);

/// Makes a volume that holds what the directory holds. `None`, said aloud, where there is no mke2fs.
fn make(directory: &Path, size: &str, options: &[&str]) -> Option<tempfile::NamedTempFile> {
    let image = tempfile::NamedTempFile::new().expect("a file");
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(options)
        .arg("-d")
        .args([directory, image.path()])
        .arg(size)
        .output();
    match made {
        Ok(made) => {
            assert!(made.status.success(), "{options:?}: {}", String::from_utf8_lossy(&made.stderr));
            Some(image)
        }
        Err(why) => {
            eprintln!("SKIPPED: no mke2fs (Debian: e2fsprogs): {why}");
            None
        }
    }
}

fn debugfs(image: &Path, command: &str) {
    let done = Command::new("debugfs").args(["-w", "-R", command]).arg(image).output().expect("debugfs is with mke2fs");
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Every second block of it is a hole, so that it has as many extents as blocks.
fn holes(path: &Path, pieces: u64, block: u64) {
    let file = std::fs::File::create(path).expect("a file");
    for piece in 0..pieces {
        file.write_all_at(&pattern(usize::try_from(block).expect("small"), piece), piece * 2 * block).expect("written");
    }
    file.set_len(pieces * 2 * block + 1234).expect("a hole at the end");
}

/// A tree with what is easily got wrong.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a tempdir");
    let at = |name: &str| root.path().join(name);
    for (name, length) in [("empty", 0), ("one", 1), ("block", 4096), ("more", 4097), ("big", 3_500_000)] {
        std::fs::write(at(name), pattern(length, length as u64)).expect("written");
    }
    std::fs::create_dir_all(at("a/b/c/d")).expect("made");
    std::fs::write(at("a/b/c/d/deep"), "deep").expect("written");
    std::fs::create_dir(at("many")).expect("made");
    for i in 0..1200 {
        std::fs::write(at(&format!("many/a name of some length, number {i:05}")), i.to_string()).expect("written");
    }
    holes(&at("holes"), 1500, 4096);
    std::fs::File::create(at("only hole")).and_then(|file| file.set_len(2_000_000)).expect("a hole");
    symlink("a/b", at("fast")).expect("made");
    symlink("x".repeat(200), at("slow")).expect("made");
    std::fs::write(at("caf\u{e9}\u{fffd}"), "name").expect("written");
    root
}

/// Everything below a directory: kind and contents, by path.
type Seen = BTreeMap<String, (Kind, Vec<u8>)>;

fn behind(root: &Path) -> Seen {
    let mut seen = Seen::new();
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let kind = path.symlink_metadata().expect("attributes").file_type();
            let name = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
            let (kind, contents) = if kind.is_dir() {
                open.push(path);
                (Kind::Directory, Vec::new())
            } else if kind.is_symlink() {
                (Kind::Symlink, Vec::new())
            } else {
                (Kind::File, std::fs::read(path).expect("contents"))
            };
            seen.insert(name, (kind, contents));
        }
    }
    seen
}

async fn whole(volume: &Arc<Volume>, path: &ObjectPath, step: u32) -> Result<Vec<u8>, ExportError> {
    let mut out = Vec::new();
    loop {
        let part = volume.read(path, out.len() as u64, step).await?;
        if part.is_empty() {
            return Ok(out);
        }
        out.extend_from_slice(&part);
        assert!(out.len() < 64 << 20, "no file of these tests is that long");
    }
}

async fn ours(volume: &Arc<Volume>) -> Seen {
    let mut seen = Seen::new();
    let mut open = vec![ObjectPath::root()];
    while let Some(directory) = open.pop() {
        for entry in volume.list(&directory, 10_000).await.expect("a listing") {
            let path = directory.join(&entry.name).expect("a name");
            if path.components().next() == Some(b"lost+found") {
                continue;
            }
            let contents = match entry.attr.kind {
                Kind::File => {
                    let step = [333_333, READ_MAX, 70_000][seen.len() % 3];
                    let contents = whole(volume, &path, step).await.expect("contents");
                    assert_eq!(contents.len() as u64, entry.attr.size);
                    contents
                }
                Kind::Directory => {
                    open.push(path.clone());
                    Vec::new()
                }
                _ => Vec::new(),
            };
            seen.insert(String::from_utf8(path.as_bytes().to_vec()).expect("text"), (entry.attr.kind, contents));
        }
    }
    seen
}

/// What another reader sees.
fn theirs(image: &Path) -> Seen {
    let volume = ext4_view::Ext4::load_from_path(image).expect("a volume that it reads");
    let mut seen = Seen::new();
    let mut open = vec!["/".to_owned()];
    while let Some(directory) = open.pop() {
        for entry in volume.read_dir(directory.as_str()).expect("a listing") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().as_str().expect("text").to_owned();
            let path = format!("{directory}{name}");
            if name == "." || name == ".." || path.starts_with("/lost+found") {
                continue;
            }
            let kind = entry.file_type().expect("a kind");
            let (kind, contents) = if kind.is_dir() {
                open.push(format!("{path}/"));
                (Kind::Directory, Vec::new())
            } else if kind.is_symlink() {
                (Kind::Symlink, Vec::new())
            } else {
                (Kind::File, volume.read(path.as_str()).expect("contents"))
            };
            seen.insert(path[1..].to_owned(), (kind, contents));
        }
    }
    seen
}

fn same(a: &Seen, b: &Seen, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}: other names");
    for (name, seen) in a {
        assert!(seen == &b[name], "{what}: {name} differs");
    }
}

async fn open(image: &Path) -> Result<Arc<Volume>, ExportError> {
    Volume::open(Arc::new(Image::file(image)), AGE).await.map(Arc::new)
}

#[tokio::test]
async fn every_kind_of_volume_reads_as_its_directory() {
    let root = tree();
    let expected = behind(root.path());
    for (options, peer) in [
        (&[][..], true),
        (&["-b", "1024", "-g", "2048"], true),
        // `ext4-view` refuses holes in files without extents.
        (&["-b", "1024", "-O", "^extents,^64bit,^flex_bg,^metadata_csum,^has_journal"], false),
        (&["-O", "^metadata_csum,^64bit", "-I", "128"], true),
        (&["-b", "1024", "-O", "meta_bg,^resize_inode", "-E", "packed_meta_blocks=0"], false),
        (&["-O", "mmp,large_dir,ea_inode,encrypt,metadata_csum_seed"], false),
        (&["-O", "bigalloc", "-C", "16384"], false),
        (&["-b", "16384"], false),
    ] {
        let Some(image) = make(root.path(), "120M", options) else { return };
        let volume = open(image.path()).await.expect("a volume that is read");
        let seen = ours(&volume).await;
        same(&seen, &expected, &format!("{options:?}"));
        if peer {
            same(&seen, &theirs(image.path()), &format!("{options:?}, beside ext4-view"));
        }
    }
}

#[tokio::test]
async fn attributes_and_refusals_are_those_of_the_contract() {
    let root = tree();
    let Some(image) = make(root.path(), "120M", &[]) else { return };
    let volume = open(image.path()).await.expect("a volume");
    let path = |text: &str| ObjectPath::new(text).expect("a path");
    let behind = root.path().join("a/b/c/d/deep").metadata().expect("attributes");
    let attr = volume.stat(&path("a/b/c/d/deep")).await.expect("attributes");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((attr.size, attr.links, attr.mode), (4, 1, behind.mode() & 0o7777));
    // mke2fs keeps seconds only.
    assert_eq!(attr.mtime_ns / 1_000_000_000, behind.mtime());
    for (call, answer) in [
        ("through a link", volume.stat(&path("fast/c")).await.map(drop)),
        ("a link", volume.stat(&path("slow")).await.map(drop)),
        ("read of a link", volume.read(&path("fast"), 0, 9).await.map(drop)),
        ("below a file", volume.stat(&path("one/x")).await.map(drop)),
        ("list of a file", volume.list(&path("one"), 9).await.map(drop)),
        ("read of a directory", volume.read(&path("a"), 0, 9).await.map(drop)),
    ] {
        assert!(matches!(answer, Err(ExportError::Kind { .. })), "{call}: {answer:?}");
    }
    assert_eq!(volume.stat(&path("a/none")).await, Err(ExportError::NotFound("a/none".to_owned())));
    assert!(matches!(volume.list(&path("many"), 1199).await, Err(ExportError::TooMany { limit: 1199, .. })));
    assert_eq!(volume.read(&path("one"), u64::MAX, 9).await, Ok(Bytes::new()));
    let many = volume.find(&path("many")).await.expect("a directory");
    let read = async |limit| volume.read_index(&many, || "many".to_owned(), limit).await.map(|index| index.len());
    assert_eq!(
        read(1199).await,
        Err(ExportError::TooMany { path: "many".to_owned(), limit: 1199 }),
        "while it is read"
    );
    assert_eq!(read(1200).await, Ok(1200));
}

#[test]
fn directories_on_the_way_are_named() {
    let path = ObjectPath::new("a/b/c").expect("a path");
    for (components, name) in [(0, "the export's root"), (1, "a"), (2, "a/b"), (3, "a/b/c"), (usize::MAX, "a/b/c")] {
        assert_eq!(name_above(&path, components), name);
    }
    assert_eq!(name_above(&ObjectPath::root(), usize::MAX), "the export's root");
}

#[tokio::test]
async fn what_is_not_read_is_refused_by_name() {
    let root = tempfile::tempdir().expect("a tempdir");
    std::fs::write(root.path().join("doc"), "text").expect("written");
    let refusal = async |image: &Path| open(image).await.err().expect("refused");
    let Some(image) = make(root.path(), "8M", &["-O", "inline_data"]) else { return };
    let said = refusal(image.path()).await.to_string();
    assert!(said.contains("inline_data"), "{said}");
    let image = make(root.path(), "8M", &[]).expect("as before");
    assert!(open(image.path()).await.is_ok());
    debugfs(image.path(), "feature needs_recovery");
    let error = refusal(image.path()).await;
    assert!(error.retryable() && error.to_string().contains("needs_recovery"), "{error}");
    let bare = make(root.path(), "8M", &["-O", "^has_journal"]).expect("as before");
    assert!(open(bare.path()).await.is_ok());
    debugfs(bare.path(), "set_super_value state 0");
    let error = refusal(bare.path()).await;
    assert!(error.retryable() && error.to_string().contains("no journal"), "{error}");
    let journal = tempfile::NamedTempFile::new().expect("a file");
    let made = Command::new("mke2fs").args(["-q", "-F", "-O", "journal_dev"]).arg(journal.path()).arg("8M").status();
    assert!(made.expect("mke2fs").success());
    let said = refusal(journal.path()).await.to_string();
    assert!(said.contains("journal"), "{said}");
    let mut bytes = std::fs::read(image.path()).expect("the image");
    bytes[1024 + 0x62] |= 0x40;
    let unknown = Volume::open(Arc::new(Image::memory(bytes)), AGE).await.err().expect("refused");
    assert!(unknown.to_string().contains("aren't known") && !unknown.retryable(), "{unknown}");
}

#[tokio::test]
async fn what_changes_shows_when_what_was_read_is_too_old() {
    let root = tempfile::tempdir().expect("a tempdir");
    std::fs::write(root.path().join("doc"), "old").expect("written");
    let Some(image) = make(root.path(), "8M", &[]) else { return };
    let believing = open(image.path()).await.expect("a volume");
    let disk = Arc::new(Image::file(image.path()));
    let volume = Volume::open(disk, Duration::ZERO).await.map(Arc::new).expect("a volume");
    let doc = ObjectPath::new("doc").expect("a path");
    for volume in [&volume, &believing] {
        assert_eq!(volume.read(&doc, 0, 99).await.as_deref(), Ok(&b"old"[..]));
        assert!(volume.still().await.expect("there"));
    }
    debugfs(image.path(), "rm doc");
    let other = root.path().join("newer");
    std::fs::write(&other, "newer text").expect("written");
    debugfs(image.path(), &format!("write {} doc", other.display()));
    assert_eq!(volume.read(&doc, 0, 99).await.as_deref(), Ok(&b"newer text"[..]));
    assert_eq!(believing.stat(&doc).await.map(|attr| attr.size), Ok(3), "within its age");
    debugfs(image.path(), "rm doc");
    assert!(matches!(volume.stat(&doc).await, Err(ExportError::NotFound(_))));
    debugfs(image.path(), "feature needs_recovery");
    assert!(volume.still().await.is_err_and(|error| error.retryable()), "mounted elsewhere since");
    let again = make(root.path(), "8M", &[]).expect("as before");
    std::fs::copy(again.path(), image.path()).expect("made anew in its place");
    assert_eq!(volume.still().await, Ok(false));
}

#[tokio::test]
async fn a_look_after_a_read_believes_nothing_that_was_read_before() {
    let root = tempfile::tempdir().expect("a tempdir");
    std::fs::write(root.path().join("doc"), "text").expect("written");
    let Some(image) = make(root.path(), "8M", &[]) else { return };
    let volume = open(image.path()).await.expect("a volume");
    let doc = ObjectPath::new("doc").expect("a path");
    let (data, attr) = volume.read_and_look(&doc, 0, 99).await.expect("as it was made");
    assert_eq!((&data[..], attr.size), (&b"text"[..], 4));
    debugfs(image.path(), "set_inode_field doc mtime 20200101000000");
    assert_eq!(volume.stat(&doc).await.as_ref(), Ok(&attr), "within its age");
    assert_eq!(volume.read_and_look(&doc, 0, 99).await, Err(ExportError::Changed("doc".to_owned())));
    let (_, now) = volume.read_and_look(&doc, 0, 99).await.expect("what it changed to, read again");
    assert_ne!(now.mtime_ns, attr.mtime_ns);
    debugfs(image.path(), "feature needs_recovery");
    let error = volume.read_and_look(&doc, 0, 99).await.expect_err("mounted elsewhere since");
    assert!(error.retryable() && error.to_string().contains("needs_recovery"), "{error}");
}

/// Most reads of the disk that one call may take on a volume of 4 MiB, however it was spoilt.
const READS_MAX: usize = 20_000;

/// Counts what is read of it.
struct Counted {
    disk: Image,
    reads: AtomicUsize,
}

impl Counted {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { disk: Image::memory(bytes), reads: AtomicUsize::new(0) })
    }

    /// How many since the last time.
    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Disk for Counted {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.disk.read(offset, length).await
    }

    fn shown(&self) -> String {
        self.disk.shown()
    }
}

/// A node of extents: as many entries as said, one block of the file after the other, which all lead to the same place.
fn spoil(node: &mut [u8], depth: u16, count: u16, at: u32) {
    for (half, place) in [0xf30a, count, count, depth, 0, 0].into_iter().zip(node.chunks_exact_mut(2)) {
        place.copy_from_slice(&u16::to_le_bytes(half));
    }
    for (first, entry) in (0_u32..u32::from(count)).zip(node[12..].chunks_exact_mut(12)) {
        let words = if depth > 0 { [first, at, 0] } else { [first, 1, at] };
        for (word, place) in words.into_iter().zip(entry.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// A tree of extents in which every index of a level leads to the same node: more ways through it than can be gone.
async fn a_tree_without_end_ends(sound: &[u8]) {
    let file = ObjectPath::new("holes").expect("a path");
    let volume = Volume::open(Arc::new(Image::memory(sound.to_vec())), AGE).await.expect("a volume");
    let inode = volume.file(&file).await.expect("a file");
    let map = usize::try_from(volume.place(inode.number).await.expect("a place")).expect("in memory") + 0x28;
    for indexes in 1..=4 {
        let mut bytes = sound.to_vec();
        spoil(&mut bytes[map..][..60], 5, indexes, 4004);
        for depth in 0..5_u16 {
            // 84 entries have room in a node of 1 KiB; they lead to the next node, or to some block of data.
            let at = if depth > 0 { 4000 + u32::from(depth) - 1 } else { 100 };
            spoil(&mut bytes[(4000 + usize::from(depth)) * 1024..][..1024], depth, 84, at);
        }
        let disk = Counted::new(bytes);
        let volume = Volume::open(disk.clone(), Duration::ZERO).await.map(Arc::new).expect("a volume");
        let answer = volume.read(&file, 0, READ_MAX).await;
        assert!(matches!(answer, Err(ExportError::Broken(_))), "{indexes} indexes: {answer:?}");
        let reads = disk.reads();
        assert!(reads < 100, "{indexes} indexes: {reads} reads");
    }
}

/// Metadata with bytes changed, with checksums and without: never a panic, a hang, or more memory than there is data.
#[tokio::test]
async fn spoilt_volumes_end_in_errors() {
    let root = tempfile::tempdir().expect("a tempdir");
    std::fs::create_dir_all(root.path().join("a/b")).expect("made");
    for i in 0..300 {
        std::fs::write(root.path().join(format!("a/b/name {i}")), "x").expect("written");
    }
    holes(&root.path().join("holes"), 300, 1024);
    let (mut broken, mut fine) = (0, 0);
    for options in
        [&["-b", "1024", "-O", "^metadata_csum"][..], &["-b", "1024"], &["-b", "1024", "-O", "^extents,^64bit"]]
    {
        let Some(image) = make(root.path(), "4M", options) else { return };
        let sound = std::fs::read(image.path()).expect("the image");
        if options.contains(&"^metadata_csum") {
            a_tree_without_end_ends(&sound).await;
        }
        for seed in 0..150 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = sound.clone();
            for _ in 0..random.usize(1..40) {
                // What is in use, mostly: the beginning, with the tables of inodes.
                let at = random.usize(1024..400_000);
                bytes[at] = random.u8(..);
            }
            let disk = Counted::new(bytes);
            let volume = match Volume::open(disk.clone(), AGE).await {
                Ok(volume) => Arc::new(volume),
                Err(_) => {
                    broken += 1;
                    continue;
                }
            };
            let mut open = vec![(ObjectPath::root(), 0)];
            while let Some((directory, depth)) = open.pop() {
                let listed = volume.list(&directory, 1000).await;
                assert!(disk.reads() <= READS_MAX, "{options:?}, seed {seed}: {directory:?}");
                match listed {
                    Ok(entries) => {
                        for entry in entries {
                            let Ok(path) = directory.join(&entry.name) else { continue };
                            match entry.attr.kind {
                                Kind::Directory if depth < 4 => open.push((path, depth + 1)),
                                Kind::File => {
                                    let read = volume.read(&path, 0, READ_MAX).await;
                                    assert!(disk.reads() <= READS_MAX, "{options:?}, seed {seed}: {path:?}");
                                    match read {
                                        Ok(_) => fine += 1,
                                        Err(_) => broken += 1,
                                    }
                                }
                                _ => {}
                            }
                        }
                    }
                    Err(_) => broken += 1,
                }
            }
        }
    }
    assert!(broken > 100 && fine > 1000, "both were met: {broken} {fine}");
}
