//! How records lie in etcd: keys below one root, each value with the commit that wrote it and a digest of all of that.
//!
//! `<root>meta` is JSON, so that `etcdctl get` shows it; `<root>r/<key>` are live records, `<root>a/<key>` archived ones.

use ingle_proto::Epoch;
use serde::{Deserialize, Serialize};

use super::super::{StoreError, below};

/// What this program writes.
const SCHEMA: u32 = 1;
/// The oldest program that can read what this one writes.
const LEAST_READER: u32 = 1;
/// Commit and digest, before each value.
const HEAD_BYTES: usize = 16;

/// The store about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    schema: u32,
    least_reader: u32,
    generation: u64,
    epoch: u64,
    pub(super) revision: u64,
}

impl Meta {
    /// Of a new store.
    pub(super) fn new(generation: u64) -> Self {
        Self { schema: SCHEMA, least_reader: LEAST_READER, generation, epoch: 0, revision: 0 }
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch { generation: self.generation, revision: self.epoch }
    }

    /// After a commit of this epoch; a newer program's schema stays until a migration rewrites it.
    pub(super) fn after(self, epoch: Epoch, revision: u64) -> Self {
        Self { generation: epoch.generation, epoch: epoch.revision, revision, ..self }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("five numbers")
    }

    /// # Errors
    /// [`StoreError::Corrupt`] for what isn't ours, or is of a newer program that we can't read.
    pub(super) fn decode(place: &str, value: &[u8]) -> Result<Self, StoreError> {
        let meta: Self = serde_json::from_slice(value).map_err(|error| corrupt(place, error.to_string()))?;
        if meta.least_reader > SCHEMA {
            return Err(StoreError::Corrupt {
                place: place.to_owned(),
                reason: format!(
                    "a newer ingle-coordinator wrote it: it needs schema {}, we know {SCHEMA}",
                    meta.least_reader
                ),
                remedy: "start that version again, or a newer one".into(),
            });
        }
        Ok(meta)
    }
}

/// Keys below one root.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    root: String,
}

/// Which records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shelf {
    Live,
    Archive,
}

impl Keys {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn meta(&self) -> String {
        format!("{}meta", self.root)
    }

    pub(super) fn of(&self, shelf: Shelf, key: &str) -> String {
        let letter = match shelf {
            Shelf::Live => 'r',
            Shelf::Archive => 'a',
        };
        format!("{}{letter}/{key}", self.root)
    }

    /// From the first key below a prefix to the first that isn't.
    pub(super) fn range(&self, shelf: Shelf, prefix: &str) -> (String, String) {
        let from = self.of(shelf, prefix);
        let end = below(&from);
        (from, end)
    }

    /// The record's own key.
    pub(super) fn strip<'k>(&self, shelf: Shelf, key: &'k [u8]) -> Option<&'k str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.of(shelf, ""))
    }
}

/// A value as it is stored.
pub(super) fn encode(key: &str, revision: u64, value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEAD_BYTES + value.len());
    stored.extend_from_slice(&revision.to_le_bytes());
    stored.extend_from_slice(&sum(key, revision, value));
    stored.extend_from_slice(value);
    stored
}

/// Which commit wrote it, and the value.
///
/// # Errors
/// [`StoreError::Corrupt`] names the record.
pub(super) fn decode<'v>(key: &str, stored: &'v [u8]) -> Result<(u64, &'v [u8]), StoreError> {
    let (head, value) =
        stored.split_at_checked(HEAD_BYTES).ok_or_else(|| corrupt(key, "it is too short".to_owned()))?;
    let revision = u64::from_le_bytes(*head.first_chunk().expect("sixteen bytes"));
    if head[8..] != sum(key, revision, value) {
        return Err(corrupt(key, "it isn't what was written".to_owned()));
    }
    Ok((revision, value))
}

/// Eight bytes that tell damage, not malice.
fn sum(key: &str, revision: u64, value: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key.as_bytes());
    hasher.update(&revision.to_le_bytes()).update(value);
    *hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes")
}

pub(super) fn corrupt(place: &str, reason: String) -> StoreError {
    StoreError::Corrupt {
        place: place.to_owned(),
        reason: format!("it is damaged: {reason}"),
        remedy: "restore etcd from a snapshot (`etcdctl snapshot restore`), and start the coordinators again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_damage_is_noticed() {
        let stored = encode("jobs/1", 7, b"value");
        assert_eq!(decode("jobs/1", &stored), Ok((7, &b"value"[..])));
        for at in 0..stored.len() {
            let mut flipped = stored.clone();
            flipped[at] ^= 1;
            assert!(matches!(decode("jobs/1", &flipped), Err(StoreError::Corrupt { .. })), "byte {at}");
        }
        assert!(decode("jobs/2", &stored).is_err(), "another record's value");
        assert!(decode("jobs/1", &stored[..10]).is_err());
    }

    #[test]
    fn a_newer_program_s_store_is_refused_by_name() {
        let meta = Meta { schema: 9, least_reader: 9, ..Meta::new(1) };
        let error = Meta::decode("meta", &meta.encode()).expect_err("from the future");
        assert!(error.to_string().contains("newer"), "{error}");
        let meta = Meta { schema: 9, ..Meta::new(1) };
        assert_eq!(Meta::decode("meta", &meta.encode()), Ok(meta), "newer, but readable");
        assert!(Meta::decode("meta", b"{}").is_err());
    }
}
