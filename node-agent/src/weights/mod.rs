//! Which models there are and where their files lie: listed through the gateway or in a directory, cached by content.
//!
//! A model is named after its folder. Its digest is BLAKE3 over the (name, size, digest) list of its files; a model that
//! is read through the gateway is copied once into `cache_dir/models/<digest>` and used from there. A copy doesn't end with
//! the work that wanted it. What can't be read now is tried again; only content is refused for good.

mod cache;
mod catalogue;
mod copies;
mod evict;
mod fetch;
mod folders;
pub mod hash;

pub use cache::Cache;
pub(crate) use cache::Pin;
pub use catalogue::{Catalogue, ReadyModel};
pub use fetch::Progress;
pub use folders::{FileStamp, Folder};

use ingle_proto::Digest;

/// One file of a model, as its identity counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Relative to the model's folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of its content.
    pub digest: Digest,
}

/// A model's identity. Lengths stand before names, so that no two lists read the same.
#[must_use]
pub fn model_digest(files: &[FileDigest]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&(file.name.len() as u64).to_le_bytes());
        hasher.update(file.name.as_bytes());
        hasher.update(&file.size.to_le_bytes());
        hasher.update(&file.digest.0);
    }
    hasher.finalize().into()
}

/// Takes a model's files out of the page cache: it is in memory now, in the form that it is computed in. Blocks.
pub fn let_pages_go(dir: &std::path::Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(file) = std::fs::File::open(file.path()) {
            // Advice, and nothing depends on it.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_follows_names_sizes_and_contents() {
        let file = |name: &str, text: &str| FileDigest {
            name: name.into(),
            size: text.len() as u64,
            digest: Digest::of(text.as_bytes()),
        };
        let base = model_digest(&[file("a", "1"), file("b", "2")]);
        assert_eq!(base, model_digest(&[file("a", "1"), file("b", "2")]));
        assert_ne!(base, model_digest(&[file("b", "2"), file("a", "1")]));
        assert_ne!(base, model_digest(&[file("a", "1"), file("c", "2")]));
        assert_ne!(base, model_digest(&[file("a", "1"), file("b", "3")]));
    }
}
