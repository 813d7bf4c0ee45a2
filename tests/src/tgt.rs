//! A real iSCSI target for tests: Debian's tgt on loopback, started and ended by the test that needs it; and what lies on
//! its units.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest that the target may take to answer.
const READY_MAX: Duration = Duration::from_secs(20);
/// The name of the target that every server has.
pub const TARGET: &str = "iqn.2026-11.test:units";
/// What [`ext4`] says where it can't run.
pub const NO_MKE2FS: &str = "no mke2fs (Debian: e2fsprogs)";

/// tgt with one target on loopback, whose units are files. Dropping it kills it.
pub struct Tgt {
    child: Child,
    home: TempDir,
    port: u16,
    /// What was said to it: said again after a restart.
    said: Vec<Vec<String>>,
}

impl Tgt {
    /// Starts it, with a target that has no units yet.
    ///
    /// # Errors
    /// It can't run here: says what is missing. Tests print that and skip.
    pub fn start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("tgt needs root".to_owned());
        }
        let home = tempfile::tempdir().map_err(|error| format!("no tempdir: {error}"))?;
        let port = crate::ports::port();
        let child = launch(home.path(), port)?;
        let mut server = Self { child, home, port, said: Vec::new() };
        server.wait_until_ready()?;
        server.say(&["--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET])?;
        server.say(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "127.0.0.1"])?;
        Ok(server)
    }

    /// Serves a file as a unit, for reading.
    ///
    /// # Errors
    /// It doesn't take it: says why.
    pub fn unit(&mut self, lun: u16, file: &Path) -> Result<(), String> {
        let (lun, file) = (lun.to_string(), file.to_string_lossy().into_owned());
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", &lun];
        self.say(&[&["--op", "new"][..], &unit, &["-b", &file, "--bstype", "rdwr"]].concat())?;
        self.say(&[&["--op", "update"][..], &unit, &["--params", "readonly=1"]].concat())
    }

    /// Says something to it by `tgtadm`, now and after each restart.
    ///
    /// # Errors
    /// It refuses: says why.
    pub fn say(&mut self, words: &[&str]) -> Result<(), String> {
        self.tell(words)?;
        self.said.push(words.iter().map(|word| (*word).to_owned()).collect());
        Ok(())
    }

    fn tell(&self, words: &[&str]) -> Result<(), String> {
        let done = Command::new("tgtadm")
            .args(["-C", &control(self.port), "--lld", "iscsi"])
            .args(words)
            .output()
            .map_err(|error| format!("no tgtadm (Debian: tgt): {error}"))?;
        if done.status.success() {
            return Ok(());
        }
        Err(format!("tgtadm {} failed: {}", words.join(" "), String::from_utf8_lossy(&done.stderr)))
    }

    /// The URL of a unit.
    #[must_use]
    pub fn url(&self, lun: u16) -> String {
        format!("iscsi://127.0.0.1:{}/{TARGET}/{lun}", self.port)
    }

    /// Kills it as a power failure would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same port with the same units.
    ///
    /// # Errors
    /// It didn't come up: says why.
    pub fn restart(&mut self) -> Result<(), String> {
        self.kill();
        self.child = launch(self.home.path(), self.port)?;
        self.wait_until_ready()?;
        for words in &self.said {
            self.tell(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let answers = std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            if answers && self.tell(&["--op", "show", "--mode", "target"]).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > READY_MAX {
                let log = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
                return Err(format!("tgt isn't ready ({ended:?}); its log:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        self.kill();
        // It leaves its control socket behind when it is killed.
        for ending in ["", ".lock"] {
            let _ = std::fs::remove_file(format!("/var/run/tgtd/socket.{}{ending}", control(self.port)));
        }
    }
}

/// Its control socket is numbered after the port, in the fifteen bits that it takes. 0 is that of the machine's own server.
fn control(port: u16) -> String {
    (port & 0x7fff).max(1).to_string()
}

fn launch(home: &Path, port: u16) -> Result<Child, String> {
    let log = File::create(home.join("log")).map_err(|error| format!("no log: {error}"))?;
    let errors = log.try_clone().map_err(|error| format!("no log: {error}"))?;
    Command::new("tgtd")
        .args(["-f", "-C", &control(port), "--iscsi", &format!("portal=127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("no tgtd (Debian: tgt): {error}"))
}

/// Makes an ext4 volume with what a directory holds: in a new file, or in the place of what a file held.
///
/// # Errors
/// [`NO_MKE2FS`], or it failed: says why.
pub fn ext4(directory: &Path, image: &Path, size: u64, options: &[&str]) -> Result<(), String> {
    let file = File::options().create(true).truncate(false).write(true).open(image);
    file.and_then(|file| file.set_len(size)).map_err(|error| format!("{}: {error}", image.display()))?;
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard"])
        .args(options)
        .arg("-d")
        .args([directory, image])
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => NO_MKE2FS.to_owned(),
            _ => format!("mke2fs: {error}"),
        })?;
    if made.status.success() { Ok(()) } else { Err(format!("mke2fs: {}", String::from_utf8_lossy(&made.stderr))) }
}

/// What goes into a partition: an image, or a few bytes at a place.
pub enum Content<'a> {
    /// All of a file.
    Image(&'a Path),
    /// These bytes, so far from its beginning.
    Mark(usize, &'a [u8]),
}

/// Bytes at which the first partition begins, and by which each is aligned.
const ALIGNED: u64 = 1 << 20;

/// Makes a disk with one partition per content, behind a GPT or an MBR.
///
/// # Errors
/// Files can't be read or written.
pub fn disk(path: &Path, contents: &[Content<'_>], gpt: bool) -> std::io::Result<PathBuf> {
    let disk = File::create(path)?;
    let (mut at, mut parts) = (ALIGNED, Vec::new());
    for content in contents {
        let size = match content {
            Content::Image(image) => {
                let bytes = std::fs::read(image)?;
                disk.write_all_at(&bytes, at)?;
                bytes.len() as u64
            }
            Content::Mark(place, bytes) => {
                disk.write_all_at(bytes, at + *place as u64)?;
                ALIGNED
            }
        };
        parts.push((at / 512, size / 512));
        at = (at + size).next_multiple_of(ALIGNED);
    }
    disk.set_len(at + ALIGNED)?;
    let table = if gpt { gpt_of(&parts, (at + ALIGNED) / 512) } else { mbr_of(&parts) };
    disk.write_all_at(&table, 0)?;
    Ok(path.to_owned())
}

fn mbr_of(parts: &[(u64, u64)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (index, (start, count)) in parts.iter().enumerate() {
        let entry = &mut sector[446 + 16 * index..][..16];
        entry[4] = 0x83;
        entry[8..16].copy_from_slice(&(start | count << 32).to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn gpt_of(parts: &[(u64, u64)], blocks: u64) -> Vec<u8> {
    let mut entries = vec![0; 128 * 128];
    for (index, (start, count)) in parts.iter().enumerate() {
        let entry = &mut entries[index * 128..][..128];
        entry[..16].fill(0x11);
        entry[16] = u8::try_from(index + 1).expect("a few");
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&(start + count - 1).to_le_bytes());
        entry[56..64].copy_from_slice(b"p\0a\0r\0t\0");
    }
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, number) in [(8, 0x0001_0000_u32), (12, 92), (80, 128), (84, 128), (88, crc32(&entries))] {
        header[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    for (at, number) in [(24, 1), (32, blocks - 1), (40, 34), (48, blocks - 34), (72, 2)] {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let sum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    // A protective MBR before it, as every GPT has.
    let mut first = mbr_of(&[(1, blocks - 1)]);
    first[446 + 4] = 0xee;
    [first, header, entries].concat()
}

/// Bit by bit: a test's table is small.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
