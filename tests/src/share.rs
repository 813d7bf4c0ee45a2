//! A directory that people work in: documents go in, results are looked at.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Words of documents; distinct enough for vectors to differ.
const WORDS: [&str; 12] = [
    "hearth", "ember", "kettle", "ledger", "harbour", "winter", "lamp", "orchard", "letter", "bridge", "engine",
    "quiet",
];

/// What tells whether a file is the very same one as before: its inode and the time of its last change.
pub type Identity = (u64, i64, i64);

/// A directory with a person's files.
#[derive(Debug, Clone)]
pub struct Share {
    root: PathBuf,
}

impl Share {
    /// Makes it.
    ///
    /// # Panics
    /// The file system refuses.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        std::fs::create_dir_all(&root).expect("a directory");
        Self { root }
    }

    /// Where it lies.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Panics
    /// The file system refuses.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, content).expect("room for a file");
    }

    /// Removes a file.
    ///
    /// # Panics
    /// There is none.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.root.join(name)).expect("a file that was there");
    }

    /// Gives a file another time of change and leaves its content.
    ///
    /// # Panics
    /// There is none.
    pub fn touch(&self, name: &str) {
        let file = std::fs::File::options().append(true).open(self.root.join(name)).expect("a file");
        file.set_modified(std::time::SystemTime::now()).expect("its time can be set");
    }

    /// Makes all files below a directory an hour old, so that later changes can't fall into the same instant.
    ///
    /// # Panics
    /// The file system refuses.
    pub fn age(&self, directory: &str) {
        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        for name in self.names(directory) {
            let file =
                std::fs::File::options().append(true).open(self.root.join(directory).join(name)).expect("a file");
            file.set_modified(past).expect("its time can be set");
        }
    }

    /// `count` documents `in/<dir>/<number>.md`, all different; answers their names below `in`.
    pub fn documents(&self, count: usize) -> BTreeMap<String, String> {
        let documents: BTreeMap<_, _> =
            (0..count).map(|n| (format!("{}/{n:04}.md", WORDS[n % 5]), document(n))).collect();
        for (name, text) in &documents {
            self.write(&format!("in/{name}"), text);
        }
        documents
    }

    /// A file's bytes.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.root.join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// A file as JSON.
    ///
    /// # Panics
    /// It isn't.
    #[must_use]
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names of all files below a directory, what Inglenook keeps for itself left out, in order.
    #[must_use]
    pub fn names(&self, directory: &str) -> Vec<String> {
        self.identities(directory).into_keys().collect()
    }

    /// Which file each name below a directory is, what Inglenook keeps for itself left out.
    #[must_use]
    pub fn identities(&self, directory: &str) -> BTreeMap<String, Identity> {
        let base = self.root.join(directory);
        let mut found = BTreeMap::new();
        let mut open = vec![base.clone()];
        while let Some(directory) = open.pop() {
            // A directory of results may not be there yet, and files may come and go while we look.
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
                if metadata.is_dir() {
                    if entry.file_name() != ".inglenook" {
                        open.push(path);
                    }
                } else if let Ok(name) = path.strip_prefix(&base) {
                    let identity = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
                    found.insert(name.to_string_lossy().into_owned(), identity);
                }
            }
        }
        found
    }
}

/// A document of a few lines that no other number has.
#[must_use]
pub fn document(number: usize) -> String {
    let word = |at: usize| WORDS[(number * 7 + at * at + at) % WORDS.len()];
    let line = |from: usize| (from..from + 6).map(word).collect::<Vec<_>>().join(" ");
    format!("# Note {number}\n\n{}\n{}\nsigned {number}\n", line(number), line(number / 3))
}
