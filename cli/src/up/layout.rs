//! Where everything lies below the data directory, and the lock that keeps a second `up` out.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::exit::{Exit, Failure};

/// How long the lock is waited for: an `up` that was killed holds it until its last thread has ended.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// How often it is tried.
const LOCK_EVERY: Duration = Duration::from_millis(25);

/// The data directory: what was given, `$XDG_DATA_HOME/inglenook`, or `~/.local/share/inglenook`.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => variable("XDG_DATA_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
            .ok_or_else(|| {
                Failure::usage("neither HOME nor XDG_DATA_HOME is set").hint("name a directory with --data")
            })?
            .join("inglenook"),
    };
    Ok(std::path::absolute(dir)?)
}

/// The data directory, ours alone while this lives.
pub(crate) struct Layout {
    data: PathBuf,
    _lock: File,
}

impl Layout {
    /// Makes what is missing and takes the lock.
    pub(crate) fn open(data: &Path) -> Result<Self, Failure> {
        let at = |path: &Path, error: std::io::Error| {
            Failure::new(Exit::WorkFailed, format!("{}: {error}", path.display()))
                .hint("name a directory that may be written with --data")
        };
        make(data).map_err(|error| at(data, error))?;
        let data = data.canonicalize().map_err(|error| at(data, error))?;
        if data.to_str().is_none() {
            return Err(Failure::usage(format!(
                "--data {}: its name is not UTF-8, which settings files are",
                data.display()
            )));
        }
        let path = data.join("lock");
        let mut options = File::options();
        let mut lock = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| at(&path, error))?;
        if !taken_within(&lock, LOCK_WITHIN) {
            let mut holder = String::new();
            // Only who it is: it may be empty for a moment.
            let _ = (&mut lock).take(32).read_to_string(&mut holder);
            let holder = holder.trim();
            let who = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            return Err(Failure::new(
                Exit::Refused,
                format!("{} is in use by another `ingle up`{who}", data.display()),
            )
            .hint(
                "stop that one with Ctrl-C, or name another directory with --data and other ports with --port-base",
            ));
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|error| at(&path, error))?;
        let layout = Self { data, _lock: lock };
        for dir in [layout.run(), layout.logs(), layout.models(), layout.state()] {
            make(&dir).map_err(|error| at(&dir, error))?;
        }
        Ok(layout)
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Settings, ready files and process ids.
    pub(crate) fn run(&self) -> PathBuf {
        self.data.join("run")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.data.join("models")
    }

    /// The state export: blobs.
    pub(crate) fn state(&self) -> PathBuf {
        self.data.join("state")
    }

    /// A daemon's own directory.
    pub(crate) fn of(&self, daemon: &str) -> PathBuf {
        self.data.join(daemon)
    }

    /// Whether the default models' directory holds nothing that could be a model.
    pub(crate) fn no_models(&self) -> bool {
        let entries = std::fs::read_dir(self.models()).into_iter().flatten().filter_map(Result::ok);
        !entries.into_iter().any(|e| e.path().is_dir() && !e.file_name().to_string_lossy().starts_with('.'))
    }
}

/// Takes the lock. Nothing else goes on in this process yet, so that it may sleep.
fn taken_within(lock: &File, patience: Duration) -> bool {
    let began = Instant::now();
    loop {
        if flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if began.elapsed() > patience {
            return false;
        }
        std::thread::sleep(LOCK_EVERY);
    }
}

/// For its owner only: logs and job state are nobody else's.
fn make(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_kept_out_until_the_first_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Layout::open(dir.path()).expect("free");
        let failure = Layout::open(dir.path()).err().expect("in use");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.message.contains(&std::process::id().to_string()), "{}", failure.message);
        // One that is about to end is waited for.
        let (tell, told) = std::sync::mpsc::sync_channel::<()>(0);
        let ending = std::thread::spawn(move || {
            let _ = told.recv();
            drop(first);
        });
        tell.send(()).expect("it waits");
        let again = Layout::open(dir.path()).expect("free again");
        ending.join().expect("no panic");
        assert!(again.no_models());
        std::fs::create_dir(again.models().join(".part")).expect("room");
        assert!(again.no_models());
        std::fs::create_dir(again.models().join("m")).expect("room");
        assert!(!again.no_models());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let failure = Layout::open(file.path()).err().expect("no directory");
        assert!(failure.message.contains(&file.path().display().to_string()) && failure.hint.is_some());
    }
}
