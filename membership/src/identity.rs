//! Who a daemon is: a key made once in its state directory, never a host name or an address.
//!
//! Stored: `identity.key`, 32 random bytes that only the owner may read. A lock on it tells apart two processes on one
//! directory; two copies of a directory are told apart by the registry, which admits one incarnation at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ingle_proto::NodeId;

const KEY_FILE: &str = "identity.key";
const KEY_BYTES: usize = 32;

/// No identity, and why.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system refuses.
    #[error("identity {path}: {error}", path = .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// The file is not a key of ours.
    #[error("identity {path}: holds {bytes} bytes; expected {KEY_BYTES}: restore it, or remove it to join as another",
        path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// How long it is.
        bytes: u64,
    },
    /// Another process of this machine uses it.
    #[error("identity {path}: another process uses this state directory: end it, or give this one its own",
        path = .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

impl IdentityError {
    /// Whether trying again may help: the other process may end.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// A daemon's identity, locked for as long as this lives.
#[derive(Debug)]
pub struct Identity {
    digest: String,
    incarnation: String,
    place: String,
    /// Its lock ends with the process, however that ends.
    _lock: File,
}

impl Identity {
    /// Opens the identity of a state directory, making directory and key if they don't exist.
    ///
    /// # Errors
    /// [`IdentityError`]: in use, malformed, or what the system said.
    pub fn open(state_directory: &Path) -> Result<Self, IdentityError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| IdentityError::Io { path, error }
        };
        std::fs::create_dir_all(state_directory).map_err(io(state_directory))?;
        let path = state_directory.join(KEY_FILE);
        if !path.try_exists().map_err(io(&path))? {
            make(state_directory, &path).map_err(io(&path))?;
        }
        let mut file = File::open(&path).map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(IdentityError::Io { path, error }),
        }
        let about = file.metadata().map_err(io(&path))?;
        let mut key = [0; KEY_BYTES];
        if about.len() != KEY_BYTES as u64 {
            return Err(IdentityError::Malformed { path, bytes: about.len() });
        }
        file.read_exact(&mut key).map_err(io(&path))?;
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut place = blake3::Hasher::new();
        place.update(&boot).update(&about.dev().to_le_bytes()).update(&about.ino().to_le_bytes());
        let mut start = [0; 8];
        random(&mut start).map_err(io(Path::new("/dev/urandom")))?;
        Ok(Self {
            digest: blake3::hash(&key).to_hex()[..16].to_owned(),
            incarnation: hex(&start),
            place: place.finalize().to_hex()[..16].to_owned(),
            _lock: file,
        })
    }

    /// As a node: `n-` and the first 16 hexadecimal digits of the key's BLAKE3 digest.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId::parse(&self.with_prefix("n")).expect("a letter, a dash and hexadecimal digits")
    }

    /// As another kind of member: `PREFIX-` and the same digits.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.digest)
    }

    /// Names this start of the process: 16 hexadecimal digits.
    #[must_use]
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Names the very file that we hold locked, on this boot of this machine. Whoever registered from the same place
    /// before us must have ended, for we hold the lock: we may take its registration over without waiting.
    /// A copy of the directory, here or elsewhere, is another place.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }
}

/// Makes the key such that it is there whole or not at all, and only one of two makers wins.
fn make(directory: &Path, path: &Path) -> std::io::Result<()> {
    let mut key = [0; KEY_BYTES];
    random(&mut key)?;
    let mut suffix = [0; 8];
    random(&mut suffix)?;
    let staged = directory.join(format!("{KEY_FILE}.{}", hex(&suffix)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    let written = file.write_all(&key).and_then(|()| file.sync_all());
    // A link fails if another process was first; its key is then the key.
    let linked = written.and_then(|()| match std::fs::hard_link(&staged, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    });
    std::fs::remove_file(&staged)?;
    linked?;
    File::open(directory)?.sync_all()
}

fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("deep/state");
        let first = Identity::open(&state).expect("made");
        let (node, incarnation, place) = (first.node_id(), first.incarnation().to_owned(), first.place().to_owned());
        assert_eq!(node.as_str().len(), 18);
        assert_eq!(first.with_prefix("g")[2..], node.as_str()[2..]);
        drop(first);
        let key = state.join(KEY_FILE);
        let mode = std::fs::metadata(&key).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "only the owner may read it");
        let hash = blake3::hash(&std::fs::read(&key).expect("readable")).to_hex();
        assert_eq!(node.as_str(), format!("n-{}", &hash[..16]));
        let second = Identity::open(&state).expect("still there");
        assert_eq!(second.node_id(), node);
        assert_eq!(second.place(), place);
        assert_ne!(second.incarnation(), incarnation, "each start is another");
        assert_eq!(std::fs::read_dir(&state).expect("a directory").count(), 1, "nothing staged is left");
    }

    #[test]
    fn two_processes_on_one_directory_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Identity::open(dir.path()).expect("made");
        let error = Identity::open(dir.path()).expect_err("locked");
        assert!(matches!(error, IdentityError::InUse { .. }) && error.retryable(), "{error}");
        drop(first);
        Identity::open(dir.path()).expect("free again");
    }

    #[test]
    fn a_copy_is_the_same_node_in_another_place() {
        let (dir, copy) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let original = Identity::open(dir.path()).expect("made");
        std::fs::copy(dir.path().join(KEY_FILE), copy.path().join(KEY_FILE)).expect("copied");
        let copied = Identity::open(copy.path()).expect("another file");
        assert_eq!(original.node_id(), copied.node_id());
        assert_ne!(original.place(), copied.place());
    }

    #[test]
    fn a_damaged_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        for content in [&b""[..], &[1; 31], &[1; 33]] {
            std::fs::write(dir.path().join(KEY_FILE), content).expect("written");
            let error = Identity::open(dir.path()).expect_err("not a key");
            assert!(matches!(error, IdentityError::Malformed { .. }) && !error.retryable(), "{error}");
            assert_eq!(std::fs::read(dir.path().join(KEY_FILE)).expect("readable"), content);
        }
    }

    #[test]
    fn makers_at_once_agree() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(KEY_FILE);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| make(dir.path(), &path).expect("made or found"));
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
        Identity::open(dir.path()).expect("one key");
    }
}
