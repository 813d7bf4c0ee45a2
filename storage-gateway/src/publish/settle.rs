//! One output on its way to its visible name: the steps of "exactly one visible result".
//!
//! Every step looks at what is there and can be taken again after a crash between any two of them, or after a reply was
//! lost. What decides is, in this order: the trash name (only we make it, once per publish), the visible name, and
//! digests. The staged file stays until the outcome is durable, so recovery never has to guess whether it was shown.
//!
//! Nothing here removes or replaces bytes that aren't known to be ours: a file moves to the trash *before* its digest is
//! compared, since a comparison at its own name could be overtaken by a person's edit; one that turns out to be a
//! person's, or can't be read, goes back ([`super::beside`]).
//!
//! One output never holds up the others. What the storage refuses for good (a directory that may not be written, a mount
//! point below the place, a name it can't have) ends that output alone: a person's file goes back, our result is kept
//! beside, at the place's own level if need be, and is dropped if that is refused too; the reason says so, what the
//! ledger knew of the name stays, and the next job does the document again. Only what may pass by itself (no answer, no
//! space, an I/O error) leaves the publish open.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ingle_proto::{Digest, ObjectPath};

use super::beside::Back;
use super::linkless::{self, Put};
use super::names::trash_name;
use crate::export::{Export, ExportError, Kind, Replace};
use crate::file;
use crate::ledger::record::{Intent, Outcome, Publish, Result as Verdict};
use crate::place::Place;

/// How often a step is taken again because a person changed something in between.
pub(super) const TRIES: u32 = 16;

pub(super) type Settled<T> = Result<T, ExportError>;

/// Names and sizes of conflict files in a directory.
pub(super) type Listed = Arc<Vec<(Vec<u8>, u64)>>;

/// Works on the outputs of one publish.
pub struct Desk<'a> {
    pub(super) place: &'a Place,
    pub(super) publish: &'a Publish,
    /// Hard links are to be had.
    pub(super) link: bool,
    /// An earlier run may have taken any number of steps.
    pub(super) recovering: bool,
    made: Mutex<HashSet<ObjectPath>>,
    pub(super) listed: tokio::sync::Mutex<HashMap<ObjectPath, Listed>>,
}

/// What was found under the name we published under before.
enum Aside {
    /// What we published: it is in the trash now.
    Ours,
    /// Nothing: somebody removed it.
    Nothing,
    /// A person's: it is in the trash and must go back.
    Theirs,
    /// A directory or something else that is never touched.
    NotAFile,
    /// It is what we want to show already.
    ShownAlready,
}

impl<'a> Desk<'a> {
    /// For the outputs of `publish`.
    #[must_use]
    pub fn new(place: &'a Place, publish: &'a Publish, link: bool, recovering: bool) -> Self {
        Self { place, publish, link, recovering, made: Mutex::default(), listed: tokio::sync::Mutex::default() }
    }

    pub(super) fn export(&self) -> &dyn Export {
        &*self.place.export
    }

    pub(super) fn trash_name(&self, intent: &Intent) -> String {
        trash_name(&self.publish.job, self.publish.attempt, &self.publish.key, &intent.name)
    }

    pub(super) fn trash(&self, intent: &Intent) -> ObjectPath {
        self.place.trash(&self.trash_name(intent))
    }

    /// Takes every step that is left for one output.
    ///
    /// # Errors
    /// Those of the export that may pass by themselves: take the steps again later.
    pub async fn settle(&self, intent: &Intent) -> Settled<Outcome> {
        match self.steps(intent).await {
            Err(error) if !error.retryable() => self.refused(intent, &error).await,
            settled => settled,
        }
    }

    async fn steps(&self, intent: &Intent) -> Settled<Outcome> {
        if intent.keep {
            return Ok(outcome(intent, Verdict::Kept, ""));
        }
        if !intent.taken.is_empty() {
            return self.beside(intent, Verdict::Refused, &intent.taken).await;
        }
        let visible = self.visible(&intent.name)?;
        if self.recovering && !intent.remove && !self.link && self.is_missing(&self.staged(intent)?).await? {
            return self.moved_already(intent, &visible).await;
        }
        if intent.previous.is_empty() {
            return if intent.remove {
                Ok(outcome(intent, Verdict::Deleted, "nothing of ours had the name"))
            } else {
                self.show(intent, &visible).await
            };
        }
        match self.set_aside(intent, &visible).await? {
            Aside::ShownAlready => Ok(outcome(intent, Verdict::Published, "")),
            Aside::Ours | Aside::Nothing if intent.remove => Ok(outcome(intent, Verdict::Deleted, "")),
            Aside::Ours | Aside::Nothing => self.show(intent, &visible).await,
            Aside::Theirs => {
                let back = self.give_back(intent, &visible).await?;
                let reason = format!("the file was changed since we published it{}", back.words());
                self.conflict(intent, &reason).await
            }
            Aside::NotAFile => self.conflict(intent, "something that is no file has the name").await,
        }
    }

    async fn conflict(&self, intent: &Intent, reason: &str) -> Settled<Outcome> {
        self.beside(intent, Verdict::Conflict, reason).await
    }

    /// The storage won't have it: see the module.
    async fn refused(&self, intent: &Intent, error: &ExportError) -> Settled<Outcome> {
        let mut reason = format!("could not be shown: {error}");
        if intent.remove {
            reason = format!("could not be removed: {error}");
        }
        if let Ok(visible) = self.visible(&intent.name)
            && self.holds_theirs(intent).await?
        {
            let back = self.give_back(intent, &visible).await?;
            if !matches!(back, Back::Itself) {
                reason.push_str("; the file was changed since we published it");
                reason.push_str(&back.words());
            }
        }
        self.beside(intent, Verdict::Refused, &reason).await
    }

    /// Whether a person's file was moved away by this publish and is not back yet.
    async fn holds_theirs(&self, intent: &Intent) -> Settled<bool> {
        if intent.previous.is_empty() {
            return Ok(false);
        }
        let trash = self.trash(intent);
        if !self.is_missing(&trash).await? {
            return Ok(matches!(self.judge(intent, &trash).await?, Aside::Theirs));
        }
        Ok(!self.is_missing(&self.kept(intent)).await?)
    }

    /// [`tidy`] for one of our outputs.
    pub async fn tidy(&self, intent: &Intent) {
        let trash = (!intent.previous.is_empty()).then(|| self.trash_name(intent));
        tidy(self.place, &intent.staged, trash.as_deref()).await;
    }

    /// The first step of a replacement or removal: whatever has the name goes to the trash, and is looked at there.
    async fn set_aside(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Aside> {
        let trash = self.trash(intent);
        if self.recovering && !self.is_missing(&self.kept(intent)).await? {
            return Ok(Aside::Theirs);
        }
        for _ in 0..TRIES {
            match self.export().stat(&trash).await {
                // A symbolic link too: it was set in the way after our look at the name, and moved as it is.
                Ok(_) | Err(ExportError::Kind { .. }) => return self.judge(intent, &trash).await,
                Err(ExportError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
            let attr = match self.export().stat(visible).await {
                Ok(attr) => attr,
                Err(ExportError::NotFound(_)) => return Ok(Aside::Nothing),
                Err(ExportError::Kind { .. }) => return Ok(Aside::NotAFile),
                Err(error) => return Err(error),
            };
            if attr.kind != Kind::File {
                return Ok(Aside::NotAFile);
            }
            if !intent.remove && self.shown_already(intent, visible, attr.file_id).await? {
                return Ok(Aside::ShownAlready);
            }
            match self.export().rename(visible, &trash, Replace::Nothing).await {
                // Gone in between, or the trash directory is missing: look again.
                Err(ExportError::NotFound(_)) => self.make(&self.place.trash_directory()).await?,
                // Reply lost and sent again: it is there.
                Ok(()) | Err(ExportError::Exists(_) | ExportError::Kind { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(busy(visible))
    }

    /// Whether the visible file is what we want to show: equal bytes need no replacing, and after a crash the staged
    /// file may have been linked there already.
    async fn shown_already(&self, intent: &Intent, visible: &ObjectPath, file_id: u64) -> Settled<bool> {
        if !self.recovering && intent.previous != intent.digest {
            return Ok(false);
        }
        if self.recovering && self.link {
            match self.export().stat(&self.staged(intent)?).await {
                Ok(staged) if staged.file_id == file_id => return Ok(true),
                Ok(_) | Err(ExportError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.holds(visible, &intent.digest).await
    }

    /// Whose the file in the trash is. What can't be read isn't known to be ours.
    async fn judge(&self, intent: &Intent, trash: &ObjectPath) -> Settled<Aside> {
        match file::digest(self.export(), trash).await {
            Ok((digest, _)) if digest.0[..] == intent.previous[..] => Ok(Aside::Ours),
            // Without links an empty file can be a placeholder of ours that a crash left. No bytes are in it to lose.
            Ok((_, 0)) if !self.link && self.recovering => Ok(Aside::Ours),
            Err(error) if error.retryable() => Err(error),
            Ok(_) | Err(_) => Ok(Aside::Theirs),
        }
    }

    /// Gives our result its visible name, if nobody has it.
    async fn show(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Outcome> {
        let staged = self.staged(intent)?;
        if let Some(parent) = visible.parent() {
            match self.make(&parent).await {
                Err(ExportError::Kind { .. } | ExportError::Exists(_)) => {
                    let reason = "something that is no directory has the name of a directory above";
                    return self.conflict(intent, reason).await;
                }
                other => other?,
            }
        }
        for _ in 0..TRIES {
            match self.put(&staged, visible).await {
                Ok(Put::Done) => return Ok(outcome(intent, Verdict::Published, "")),
                Ok(Put::Taken) => {
                    return if self.holds(visible, &intent.digest).await? {
                        Ok(outcome(intent, Verdict::Published, "the very same file was there already"))
                    } else {
                        self.conflict(intent, "a file that is not ours has the name and was kept").await
                    };
                }
                Err(ExportError::NotFound(_)) => {
                    if self.is_missing(&staged).await? {
                        return self.moved_already(intent, visible).await;
                    }
                    if let Some(parent) = visible.parent() {
                        match self.make_again(&parent).await {
                            Err(ExportError::Kind { .. } | ExportError::Exists(_)) => {
                                return self.conflict(intent, "the directory it belongs in was replaced").await;
                            }
                            other => other?,
                        }
                    }
                }
                Err(ExportError::Kind { .. }) => {
                    return self.conflict(intent, "something that is no file has the name").await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(busy(visible))
    }

    /// The staged file is gone, though its publish isn't over. Without links that is how a step ends: it was renamed.
    async fn moved_already(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Outcome> {
        if self.holds(visible, &intent.digest).await? {
            return Ok(outcome(intent, Verdict::Published, ""));
        }
        if let Some(name) = self.found_beside(&intent.name, digest_of(intent)?).await? {
            // Our earlier file would have been moved away for a person's to be met: it was never moved.
            let mut told = if !intent.previous.is_empty() && self.holds(visible, &intent.previous).await? {
                outcome(intent, Verdict::Refused, "could not be shown: the storage refused it")
            } else {
                outcome(intent, Verdict::Conflict, "a person's file has the name and was kept")
            };
            told.conflict_name = name;
            return Ok(told);
        }
        if self.link {
            let reason = "our result disappeared before it was published; run the job again";
            return Ok(outcome(intent, Verdict::Conflict, reason));
        }
        Ok(outcome(intent, Verdict::Published, "and changed or removed by somebody since"))
    }

    /// Gives a file another name without replacing anything.
    pub(super) async fn put(&self, from: &ObjectPath, to: &ObjectPath) -> Settled<Put> {
        if !self.link {
            return linkless::put(self.export(), from, to, self.recovering).await;
        }
        match self.export().link(from, to).await {
            Ok(()) => Ok(Put::Done),
            Err(ExportError::Exists(_)) => Ok(Put::Taken),
            Err(error) => Err(error),
        }
    }

    /// Whether a file has these bytes. One that can't be read isn't known to.
    pub(super) async fn holds(&self, path: &ObjectPath, digest: &[u8]) -> Settled<bool> {
        match file::digest(self.export(), path).await {
            Ok((found, _)) => Ok(found.0[..] == *digest),
            Err(error) if error.retryable() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Whether nothing has the name. What may not be looked at is there.
    pub(super) async fn is_missing(&self, path: &ObjectPath) -> Settled<bool> {
        match self.export().stat(path).await {
            Err(ExportError::NotFound(_)) => Ok(true),
            Err(error) if error.retryable() => Err(error),
            Ok(_) | Err(_) => Ok(false),
        }
    }

    pub(super) async fn make(&self, directory: &ObjectPath) -> Settled<()> {
        let known = self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(directory);
        if known || directory.is_root() { Ok(()) } else { self.make_again(directory).await }
    }

    pub(super) async fn make_again(&self, directory: &ObjectPath) -> Settled<()> {
        if directory.is_root() {
            return Ok(());
        }
        self.export().make_directory(directory).await?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.clone());
        Ok(())
    }

    pub(super) fn visible(&self, name: &[u8]) -> Settled<ObjectPath> {
        self.place.visible(name).map_err(|problem| ExportError::Path(problem.message))
    }

    pub(super) fn staged(&self, intent: &Intent) -> Settled<ObjectPath> {
        self.place.staged(&intent.staged).map_err(|problem| ExportError::Path(problem.message))
    }
}

/// Removes names that are of no use once an outcome is durable. What can't be removed now goes with the sweep.
///
/// A person's file that was linked back has a second name in the trash: only a file that has another name is removed
/// there, so no bytes go.
pub(super) async fn tidy(place: &Place, staged: &str, trash: Option<&str>) {
    if let Ok(staged) = place.staged(staged) {
        let _ = place.export.remove(&staged).await;
    }
    if let Some(trash) = trash.map(|name| place.trash(name))
        && let Ok(attr) = place.export.stat(&trash).await
        && attr.kind == Kind::File
        && attr.links > 1
    {
        let _ = place.export.remove(&trash).await;
    }
}

pub(super) fn outcome(intent: &Intent, verdict: Verdict, reason: &str) -> Outcome {
    Outcome { name: intent.name.clone(), result: verdict.into(), conflict_name: Vec::new(), reason: reason.to_owned() }
}

pub(super) fn digest_of(intent: &Intent) -> Settled<Digest> {
    Digest::from_wire("digest", &intent.digest).map_err(|problem| ExportError::Path(problem.message))
}

fn busy(path: &ObjectPath) -> ExportError {
    ExportError::Unavailable(format!("{}: is changed again and again while it is published", path.display()))
}
