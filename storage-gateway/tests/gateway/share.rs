//! What people do on a share, past the gateway: on an export in memory, or in the directory behind a server.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// What is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Odd {
    Symlink,
    Fifo,
    Directory,
}

/// See the module. Paths are below the export's root.
pub(crate) trait Share: Send + Sync {
    /// The bytes of a regular file.
    fn get(&self, path: &str) -> Option<Vec<u8>>;
    /// The number of a symbolic link or FIFO.
    fn odd(&self, path: &str) -> Option<u64>;
    fn is_directory(&self, path: &str) -> bool;
    /// Writes a file, in place if there is one: every name of it shows the new bytes.
    fn edit(&self, path: &str, data: &[u8]) -> bool;
    /// Puts another file under the name, with the directories above.
    fn replace(&self, path: &str, data: &[u8]);
    fn delete(&self, path: &str) -> bool;
    /// Puts something that is no file under the name, which is free.
    fn make(&self, path: &str, what: Odd);
    /// Lets nobody change names in this directory.
    fn forbid(&self, directory: &str);
    /// Files outside `.inglenook` (or all), by path.
    fn files(&self, own: bool) -> BTreeMap<String, Vec<u8>>;
    /// Numbers of all symbolic links and FIFOs, by path.
    fn oddities(&self) -> BTreeMap<String, u64>;
}

/// A directory of this machine that a server serves.
pub(crate) struct Behind(pub(crate) PathBuf);

impl Behind {
    fn all(&self) -> Vec<(String, PathBuf, std::fs::Metadata)> {
        let mut found = Vec::new();
        let mut left = vec![self.0.clone()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let attr = path.symlink_metadata().unwrap();
                if attr.is_dir() {
                    left.push(path.clone());
                }
                found.push((path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned(), path, attr));
            }
        }
        found
    }
}

fn is_odd(attr: &std::fs::Metadata) -> bool {
    !attr.is_dir() && !attr.is_file()
}

impl Share for Behind {
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        let path = self.0.join(path);
        path.symlink_metadata().ok().filter(std::fs::Metadata::is_file).map(|_| std::fs::read(path).unwrap())
    }

    fn odd(&self, path: &str) -> Option<u64> {
        self.0.join(path).symlink_metadata().ok().filter(is_odd).map(|attr| attr.ino())
    }

    fn is_directory(&self, path: &str) -> bool {
        self.0.join(path).symlink_metadata().is_ok_and(|attr| attr.is_dir())
    }

    fn edit(&self, path: &str, data: &[u8]) -> bool {
        if self.get(path).is_none() {
            return false;
        }
        std::fs::write(self.0.join(path), data).unwrap();
        true
    }

    fn replace(&self, path: &str, data: &[u8]) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = Path::new(&self.0).join("being saved");
        std::fs::write(&new, data).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn delete(&self, path: &str) -> bool {
        let at = self.0.join(path);
        if self.is_directory(path) { std::fs::remove_dir(at).is_ok() } else { std::fs::remove_file(at).is_ok() }
    }

    fn make(&self, path: &str, what: Odd) {
        let path = self.0.join(path);
        match what {
            Odd::Directory => std::fs::create_dir(path).unwrap(),
            Odd::Symlink => symlink("/nowhere", path).unwrap(),
            Odd::Fifo => {
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
        }
    }

    fn forbid(&self, _: &str) {
        panic!("a server that runs as root refuses root nothing");
    }

    fn files(&self, own: bool) -> BTreeMap<String, Vec<u8>> {
        let shown = |name: &str| own || !name.contains(".inglenook");
        let files = self.all().into_iter().filter(|(name, _, attr)| attr.is_file() && shown(name));
        files.map(|(name, path, _)| (name, std::fs::read(path).unwrap())).collect()
    }

    fn oddities(&self) -> BTreeMap<String, u64> {
        self.all().into_iter().filter(|(_, _, attr)| is_odd(attr)).map(|(name, _, attr)| (name, attr.ino())).collect()
    }
}
