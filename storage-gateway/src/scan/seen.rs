//! What the last look saw of an input, so that the next one can tell what moved: across restarts, and for standing jobs.
//!
//! What is stored, per input and kind of job, in the place's `.inglenook/seen/` (see [`Seen`]): a digest per directory, the base's
//! file id, and marks of 16 bytes for documents that wait, are missing, or were listed to be done. What isn't: names, and
//! anything that the ledger knows. Losing it costs work and never truth: documents that failed are tried once more, and what is
//! missing has to be missed twice again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ingle_proto::{ErrorCode, Problem};

use super::digest::{DIGEST_BYTES, Mark};
use super::walk::Listed;
use crate::export::ExportError;
use crate::file;
use crate::ledger::frame;
use crate::ledger::record::Root;
use crate::limits::SEEN_BYTES_MAX;
use crate::place::Place;

/// As it is kept. Fields are added and never renumbered.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SeenRecord {
    /// Inode number of the base; 0 if not known.
    #[prost(uint64, tag = "1")]
    pub base_id: u64,
    /// Mark of a directory's name and its digest, one after another.
    #[prost(bytes = "vec", tag = "2")]
    pub directories: Vec<u8>,
    /// The standing job that the rest is of.
    #[prost(string, tag = "3")]
    pub job: String,
    /// Its pass that was listed last.
    #[prost(uint64, tag = "4")]
    pub pass: u64,
    /// Digest of what results must be of: with another one everything is tried again.
    #[prost(bytes = "vec", tag = "5")]
    pub context: Vec<u8>,
    /// Marks of documents that passes before listed, and that are not done.
    #[prost(bytes = "vec", tag = "6")]
    pub tried: Vec<u8>,
    /// Marks of documents that this pass listed.
    #[prost(bytes = "vec", tag = "7")]
    pub listed: Vec<u8>,
    /// Mark of a name, mark of the document, Unix milliseconds since when it is seen as it is.
    #[prost(bytes = "vec", tag = "8")]
    pub waiting: Vec<u8>,
    /// Mark of a name, Unix milliseconds of the first complete listing that missed it.
    #[prost(bytes = "vec", tag = "9")]
    pub missing: Vec<u8>,
}

/// The same, to look things up in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Inode number of the base; 0 if not known.
    pub base_id: u64,
    /// Digests of directories.
    pub directories: BTreeMap<Mark, Mark>,
    /// Of a standing job.
    pub standing: Standing,
}

/// What a standing job's looks remember.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Which job.
    pub job: String,
    /// Its pass that was listed last.
    pub pass: u64,
    /// Digest of what results must be of.
    pub context: Vec<u8>,
    /// Documents that passes before listed, and that are not done.
    pub tried: BTreeSet<Mark>,
    /// Documents that this pass listed.
    pub listed: BTreeSet<Mark>,
    /// By name: the document, and since when it is seen as it is, Unix milliseconds.
    pub waiting: BTreeMap<Mark, (Mark, i64)>,
    /// By name: when the first complete listing missed it, Unix milliseconds.
    pub missing: BTreeMap<Mark, i64>,
}

impl Standing {
    /// What a look of this pass begins with: what the passes before it listed has been tried.
    #[must_use]
    pub fn enter(&self, job: &str, pass: u64, context: &[u8]) -> Self {
        let mut now = Self { job: job.to_owned(), pass, context: context.to_vec(), ..Self::default() };
        // Whoever's complete listings missed a document, they did. The rest is one job's own, and of one model and prompt.
        now.missing.clone_from(&self.missing);
        if self.job != job || pass < self.pass {
            return now;
        }
        now.waiting.clone_from(&self.waiting);
        if self.context != context {
            return now;
        }
        now.tried.clone_from(&self.tried);
        if pass > self.pass {
            now.tried.extend(&self.listed);
        }
        now
    }
}

/// Where what is seen of an input lies in its place: inputs that list different documents have records of their own.
#[must_use]
pub fn name(kind: i32, root: &Root, scope: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&kind.to_le_bytes());
    for part in [root.export.as_bytes(), root.base.as_slice(), scope] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Reads it. What is absent, damaged or of a form that isn't known is as if nothing had been seen.
///
/// # Errors
/// Those of the export.
pub async fn load(place: &Place, name: &str) -> Result<Seen, Problem> {
    let path = place.seen(name);
    match place.export.stat(&path).await {
        Err(ExportError::NotFound(_)) => return Ok(Seen::default()),
        other => other?,
    };
    let data = match file::read_whole(&*place.export, &path, SEEN_BYTES_MAX).await {
        Err(problem) if problem.code == ErrorCode::TooLarge => {
            tracing::warn!(place = %place.object, %problem, "what was seen before is too much: the next look begins anew");
            return Ok(Seen::default());
        }
        other => other?,
    };
    match frame::decode::<SeenRecord>(&path, &data) {
        Ok(record) => Ok(record.into()),
        Err(problem) => {
            tracing::warn!(place = %place.object, %problem, "what was seen before is forgotten: the next look begins anew");
            Ok(Seen::default())
        }
    }
}

/// Keeps it in place of what was there.
///
/// # Errors
/// Those of the export.
pub async fn save(place: &Place, name: &str, seen: &Seen) -> Result<(), Problem> {
    let record = SeenRecord::from(seen);
    let sealed = file::write_whole(&place.export, &place.temporary(), &frame::encode(&record)).await?;
    Ok(sealed.replace(&place.seen(name)).await?)
}

/// How many directories are new, gone, or hold other entries than before.
#[must_use]
pub fn moved(before: &BTreeMap<Mark, Mark>, now: &BTreeMap<Mark, Mark>) -> u64 {
    let other = now.iter().filter(|(name, digest)| before.get(*name) != Some(digest)).count();
    let gone = before.keys().filter(|name| !now.contains_key(*name)).count();
    (other + gone) as u64
}

/// Directories as they are remembered.
#[must_use]
pub fn digests(listed: &[Listed]) -> BTreeMap<Mark, Mark> {
    listed.iter().map(|directory| (super::digest::name_mark(&directory.name), directory.digest)).collect()
}

impl From<&Seen> for SeenRecord {
    fn from(seen: &Seen) -> Self {
        let standing = &seen.standing;
        let marks = |marks: &BTreeSet<Mark>| marks.iter().flatten().copied().collect();
        Self {
            base_id: seen.base_id,
            directories: seen.directories.iter().flat_map(|(name, digest)| [*name, *digest].concat()).collect(),
            job: standing.job.clone(),
            pass: standing.pass,
            context: standing.context.clone(),
            tried: marks(&standing.tried),
            listed: marks(&standing.listed),
            waiting: standing
                .waiting
                .iter()
                .flat_map(|(name, (found, since))| [&name[..], found, &since.to_le_bytes()].concat())
                .collect(),
            missing: standing
                .missing
                .iter()
                .flat_map(|(name, since)| [&name[..], &since.to_le_bytes()].concat())
                .collect(),
        }
    }
}

impl From<SeenRecord> for Seen {
    fn from(record: SeenRecord) -> Self {
        let marks = |packed: Vec<u8>| -> BTreeSet<Mark> { pieces(packed, DIGEST_BYTES, |piece| piece.mark()) };
        Self {
            base_id: record.base_id,
            directories: pieces(record.directories, 2 * DIGEST_BYTES, |piece| (piece.mark(), piece.mark())),
            standing: Standing {
                job: record.job,
                pass: record.pass,
                context: record.context,
                tried: marks(record.tried),
                listed: marks(record.listed),
                waiting: pieces(record.waiting, 2 * DIGEST_BYTES + 8, |piece| {
                    (piece.mark(), (piece.mark(), piece.get_i64_le()))
                }),
                missing: pieces(record.missing, DIGEST_BYTES + 8, |piece| (piece.mark(), piece.get_i64_le())),
            },
        }
    }
}

use bytes::Buf as _;

/// Reads marks off a piece that is as long as it should be.
trait Marks: bytes::Buf {
    fn mark(&mut self) -> Mark {
        let mut mark = [0; DIGEST_BYTES];
        self.copy_to_slice(&mut mark);
        mark
    }
}

impl Marks for Bytes {}

/// A list that is packed in pieces of one size; what is left over at its end is no piece.
fn pieces<T, C: FromIterator<T>>(packed: Vec<u8>, size: usize, read: impl Fn(&mut Bytes) -> T) -> C {
    let mut packed = Bytes::from(packed);
    std::iter::from_fn(move || (packed.len() >= size).then(|| read(&mut packed.split_to(size)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::digest::name_mark;

    fn seen() -> Seen {
        let mark = |name: &str| name_mark(name.as_bytes());
        Seen {
            base_id: 7,
            directories: [(mark(""), mark("x")), (mark("sub"), mark("y"))].into(),
            standing: Standing {
                job: "1/j-3".into(),
                pass: 4,
                context: vec![1, 2],
                tried: [mark("t")].into(),
                listed: [mark("l"), mark("m")].into(),
                waiting: [(mark("w"), (mark("w1"), 1_700_000_000_000))].into(),
                missing: [(mark("g"), -5)].into(),
            },
        }
    }

    #[test]
    fn what_is_seen_reads_back_and_damage_never_panics() {
        let record = SeenRecord::from(&seen());
        assert_eq!(Seen::from(record.clone()), seen());
        for cut in 0..40 {
            let mut short = record.clone();
            for packed in [&mut short.directories, &mut short.listed, &mut short.waiting, &mut short.missing] {
                packed.truncate(packed.len().saturating_sub(cut));
            }
            let _ = Seen::from(short);
        }
    }

    #[test]
    fn what_a_pass_listed_is_tried_in_the_next_one_only() {
        let before = seen().standing;
        let context = before.context.clone();
        let again = before.enter("1/j-3", 4, &context);
        assert_eq!((again.tried.len(), again.listed.len()), (1, 0), "the same pass is listed again whole");
        let next = before.enter("1/j-3", 5, &context);
        assert_eq!(next.tried.len(), 3);
        assert_eq!((&next.waiting, &next.missing), (&before.waiting, &before.missing));
        let other_prompt = before.enter("1/j-3", 5, b"other");
        assert!(other_prompt.tried.is_empty() && !other_prompt.waiting.is_empty());
        let other_job = before.enter("1/j-9", 1, &context);
        assert!(other_job.tried.is_empty() && other_job.waiting.is_empty() && !other_job.missing.is_empty());
        let restored = before.enter("1/j-3", 2, &context);
        assert!(restored.tried.is_empty(), "a coordinator whose store is an older one tries everything again");
    }

    #[test]
    fn directories_that_moved_are_counted() {
        let before = seen().directories;
        assert_eq!(moved(&before, &before), 0);
        let mut now = before.clone();
        now.insert(name_mark(b"new"), name_mark(b"z"));
        now.insert(name_mark(b"sub"), name_mark(b"other"));
        assert_eq!(moved(&before, &now), 2);
        now.remove(&name_mark(b""));
        assert_eq!(moved(&before, &now), 3);
    }
}
