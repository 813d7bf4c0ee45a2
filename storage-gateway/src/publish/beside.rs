//! Where things go that can't have their own name: a person's file that we moved, and our result when a person's file
//! has its name.
//!
//! In this order: the name itself (a person's file only), `NAME.conflict-ATTEMPT` beside it, the same at the place's own
//! level, and for a person's file `.inglenook/kept/`, which is never swept. Our result is dropped where none of these can
//! be had: a job makes it again. A result whose bytes lie beside already, from whichever attempt, stays there.
//!
//! Nothing here fails for a reason that doesn't pass by itself, but for one: a person's file that not even our own
//! directory will take. Then nothing can be written into the ledger either.

use std::sync::Arc;

use ingle_proto::storage::display_bytes;
use ingle_proto::{Digest, ObjectPath};

use super::linkless::{self, Put};
use super::names::{conflict_name, flattened};
use super::settle::{Desk, Listed, Settled, TRIES, digest_of, outcome};
use crate::export::{ExportError, Kind, Replace};
use crate::ledger::record::{Intent, Outcome, Result as Verdict};
use crate::limits::DIRECTORY_ENTRIES_MAX;

/// Names tried beside a person's file before giving up.
const BESIDE_MAX: u32 = 100;

/// Where a person's file went that we had moved.
pub(super) enum Back {
    /// To its own name.
    Itself,
    /// To this one: another has its own.
    Beside(Vec<u8>),
    /// Into our directory: nothing else would take it.
    Kept(ObjectPath),
}

impl Back {
    /// Goes on after "the file was changed since we published it".
    pub(super) fn words(&self) -> String {
        match self {
            Self::Itself => " and was kept".to_owned(),
            Self::Beside(name) => {
                format!("; the changed one is kept as {}, for another has its name", display_bytes(name))
            }
            Self::Kept(path) => format!(
                "; the changed one is kept as {}, for it could not be put back; move it where it belongs",
                path.display()
            ),
        }
    }
}

impl Desk<'_> {
    pub(super) fn kept(&self, intent: &Intent) -> ObjectPath {
        self.place.kept(&self.trash_name(intent))
    }

    /// Puts a person's file back under its name, or where it can be had.
    pub(super) async fn give_back(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Back> {
        let trash = self.trash(intent);
        let kept = self.kept(intent);
        if self.recovering && self.is_missing(&trash).await? && !self.is_missing(&kept).await? {
            return Ok(Back::Kept(kept));
        }
        for _ in 0..TRIES {
            match self.put_theirs(&trash, visible).await {
                Ok(Put::Done) => return Ok(Back::Itself),
                Ok(Put::Taken) => break,
                // Its directory went away in between; the file comes back all the same.
                Err(ExportError::NotFound(_)) => {
                    if let Some(parent) = visible.parent() {
                        match self.make_again(&parent).await {
                            Err(error) if !error.retryable() => break,
                            other => other?,
                        }
                    }
                }
                Err(error) if error.retryable() => return Err(error),
                Err(_) => break,
            }
        }
        // What is no file has no bytes to be told apart by: a name that it has already answers for itself.
        let theirs = match crate::file::digest(self.export(), &trash).await {
            Ok((digest, _)) => Some(digest),
            Err(error) if error.retryable() => return Err(error),
            Err(_) => None,
        };
        if let Some(name) = self.put_beside(&trash, &intent.name, theirs, true).await? {
            return Ok(Back::Beside(name));
        }
        self.make(&self.place.kept_directory()).await?;
        match self.export().rename(&trash, &kept, Replace::Nothing).await {
            Ok(()) | Err(ExportError::Exists(_)) => Ok(Back::Kept(kept)),
            Err(error) => Err(error),
        }
    }

    /// As [`Desk::put`], for a file of another owner: a system that lets nobody link what isn't theirs still lets them
    /// move it, as we have done before.
    async fn put_theirs(&self, from: &ObjectPath, to: &ObjectPath) -> Settled<Put> {
        match self.put(from, to).await {
            Err(ExportError::Denied { .. }) if self.link => {
                linkless::put(self.export(), from, to, self.recovering).await
            }
            other => other,
        }
    }

    /// Our result goes beside (for a removal there is none).
    pub(super) async fn beside(&self, intent: &Intent, verdict: Verdict, reason: &str) -> Settled<Outcome> {
        let mut told = outcome(intent, verdict, reason);
        let (Ok(staged), Ok(digest)) = (self.staged(intent), digest_of(intent)) else {
            return Ok(told);
        };
        if self.is_missing(&staged).await? {
            match self.found_beside(&intent.name, digest).await? {
                Some(name) => told.conflict_name = name,
                None => told.reason.push_str("; our result disappeared before it was published, run the job again"),
            }
            return Ok(told);
        }
        if let Some(name) = self.beside_since_earlier(intent, digest).await? {
            told.conflict_name = name;
        } else if let Some(name) = self.put_beside(&staged, &intent.name, Some(digest), false).await? {
            told.conflict_name = name;
        } else {
            told.reason.push_str("; nor could our result be kept beside it; run the job again when that is mended");
        }
        Ok(told)
    }

    /// Puts a file under the first free conflict name, or finds it there. `None` if no such name can be had.
    async fn put_beside(
        &self,
        from: &ObjectPath,
        name: &[u8],
        digest: Option<Digest>,
        theirs: bool,
    ) -> Settled<Option<Vec<u8>>> {
        let flat = flattened(name);
        // A name whose directory can't be had goes to the place's own level.
        for base in [name, &flat] {
            for n in 1..=BESIDE_MAX {
                let candidate = conflict_name(base, self.publish.attempt, n);
                let Ok(path) = self.visible(&candidate) else { break };
                if let Some(parent) = path.parent() {
                    match self.make_again(&parent).await {
                        Err(error) if !error.retryable() => break,
                        other => other?,
                    }
                }
                let put = if theirs { self.put_theirs(from, &path).await } else { self.put(from, &path).await };
                match put {
                    Ok(Put::Done) => return Ok(Some(candidate)),
                    Ok(Put::Taken) => {
                        if let Some(digest) = digest
                            && self.holds(&path, &digest.0).await?
                        {
                            return Ok(Some(candidate));
                        }
                    }
                    Err(ExportError::Kind { .. } | ExportError::NotFound(_)) => {}
                    Err(error) if error.retryable() => return Err(error),
                    Err(_) => break,
                }
            }
        }
        Ok(None)
    }

    /// Our result under one of the names that this publish would have given it.
    pub(super) async fn found_beside(&self, name: &[u8], digest: Digest) -> Settled<Option<Vec<u8>>> {
        let flat = flattened(name);
        for base in [name, &flat] {
            for n in 1..=BESIDE_MAX {
                let candidate = conflict_name(base, self.publish.attempt, n);
                let Ok(path) = self.visible(&candidate) else { break };
                if self.is_missing(&path).await? {
                    break;
                }
                if self.holds(&path, &digest.0).await? {
                    return Ok(Some(candidate));
                }
            }
        }
        Ok(None)
    }

    /// The same bytes beside, put there by whichever attempt.
    async fn beside_since_earlier(&self, intent: &Intent, digest: Digest) -> Settled<Option<Vec<u8>>> {
        let flat = flattened(&intent.name);
        for base in [intent.name.as_slice(), &flat] {
            let candidate = conflict_name(base, self.publish.attempt, 1);
            let Ok(path) = self.visible(&candidate) else { continue };
            let directory = path.parent().unwrap_or_else(ObjectPath::root);
            let stem = stem(path.file_name()).to_vec();
            let listed = self.conflicts_in(&directory).await?;
            let same = listed.iter().filter(|(name, size)| *size == intent.size && name.starts_with(&stem));
            for (name, _) in same.take(BESIDE_MAX as usize) {
                let Ok(path) = directory.join(name) else { continue };
                if self.holds(&path, &digest.0).await?
                    && let Some(name) = path.below(&self.place.object.path)
                {
                    return Ok(Some(name.to_vec()));
                }
            }
        }
        Ok(None)
    }

    /// Conflict files of a directory, listed once in a publish.
    async fn conflicts_in(&self, directory: &ObjectPath) -> Settled<Listed> {
        let mut listed = self.listed.lock().await;
        if let Some(known) = listed.get(directory) {
            return Ok(Arc::clone(known));
        }
        let entries = match self.export().list(directory, DIRECTORY_ENTRIES_MAX).await {
            Ok(entries) => entries,
            Err(error) if error.retryable() => return Err(error),
            Err(_) => Vec::new(),
        };
        let files = entries.into_iter().filter(|entry| entry.attr.kind == Kind::File);
        let ours = files.filter(|entry| stem(&entry.name).len() < entry.name.len());
        let found: Listed = Arc::new(ours.map(|entry| (entry.name, entry.attr.size)).collect());
        listed.insert(directory.clone(), Arc::clone(&found));
        Ok(found)
    }
}

/// `NAME.conflict-` of `NAME.conflict-7-2`; a name that is none, whole.
fn stem(name: &[u8]) -> &[u8] {
    const MARK: &[u8] = b".conflict-";
    match name.windows(MARK.len()).rposition(|part| part == MARK) {
        Some(at) => &name[..at + MARK.len()],
        None => name,
    }
}
