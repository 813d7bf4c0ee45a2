//! One output on its way to its visible name: the steps of "exactly one visible result".
//!
//! Every step looks at what is there and can be taken again after a crash between any two of them, or after a reply was
//! lost. What decides is, in this order: the trash name (only we make it, once per publish), the visible name, and
//! digests. The staged file stays until the outcome is durable, so recovery never has to guess whether it was shown.
//!
//! Nothing here removes or replaces bytes that aren't known to be ours: a file moves to the trash *before* its digest is
//! compared, since a comparison at its own name could be overtaken by a person's edit; one that turns out to be a
//! person's is linked back.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use ingle_proto::{Digest, ObjectPath};

use super::linkless::{self, Put};
use super::names::{conflict_name, flattened, trash_name};
use crate::export::{Export, ExportError, Kind, Replace};
use crate::file;
use crate::ledger::record::{Intent, Outcome, Publish, Result as Verdict};
use crate::place::Place;

/// Names tried beside a person's file before giving up.
const BESIDE_MAX: u32 = 100;
/// How often a step is taken again because a person changed something in between.
const TRIES: u32 = 16;

type Settled<T> = Result<T, ExportError>;

/// Works on the outputs of one publish.
pub struct Desk<'a> {
    place: &'a Place,
    publish: &'a Publish,
    /// Hard links are to be had.
    link: bool,
    /// An earlier run may have taken any number of steps.
    recovering: bool,
    made: Mutex<HashSet<ObjectPath>>,
}

/// What was found under the name we published under before.
enum Aside {
    /// What we published: it is in the trash now.
    Ours,
    /// Nothing: somebody removed it.
    Nothing,
    /// A person's: its bytes are in the trash and must go back.
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
        Self { place, publish, link, recovering, made: Mutex::default() }
    }

    fn export(&self) -> &dyn Export {
        &*self.place.export
    }

    fn trash_name(&self, intent: &Intent) -> String {
        trash_name(&self.publish.job, self.publish.attempt, &self.publish.key, &intent.name)
    }

    fn trash(&self, intent: &Intent) -> ObjectPath {
        self.place.trash(&self.trash_name(intent))
    }

    /// Takes every step that is left for one output.
    ///
    /// # Errors
    /// Those of the export: take the steps again later.
    pub async fn settle(&self, intent: &Intent) -> Settled<Outcome> {
        if intent.keep {
            return Ok(outcome(intent, Verdict::Kept, ""));
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
                let reason = match back {
                    None => "the file was changed since we published it and was kept".to_owned(),
                    Some(name) => format!(
                        "the file was changed since we published it; the changed one is kept as {}, for another has its name",
                        ingle_proto::storage::display_bytes(&name)
                    ),
                };
                self.beside(intent, &reason).await
            }
            Aside::NotAFile => self.beside(intent, "something that is no file has the name").await,
        }
    }

    /// [`tidy`] for one of our outputs.
    pub async fn tidy(&self, intent: &Intent) {
        let trash = (!intent.previous.is_empty()).then(|| self.trash_name(intent));
        tidy(self.place, &intent.staged, trash.as_deref()).await;
    }

    /// The first step of a replacement or removal: whatever has the name goes to the trash, and is looked at there.
    async fn set_aside(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Aside> {
        let trash = self.trash(intent);
        for _ in 0..TRIES {
            match self.export().stat(&trash).await {
                Ok(_) => return self.judge(intent, &trash).await,
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

    async fn judge(&self, intent: &Intent, trash: &ObjectPath) -> Settled<Aside> {
        match file::digest(self.export(), trash).await {
            Ok((digest, _)) if digest.0[..] == intent.previous[..] => Ok(Aside::Ours),
            // Without links an empty file can be a placeholder of ours that a crash left. No bytes are in it to lose.
            Ok((_, 0)) if !self.link && self.recovering => Ok(Aside::Ours),
            Ok(_) | Err(ExportError::Kind { .. }) => Ok(Aside::Theirs),
            Err(error) => Err(error),
        }
    }

    /// Puts a person's file back under its name, or beside it if another has that by now. Answers that other name.
    async fn give_back(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Option<Vec<u8>>> {
        let trash = self.trash(intent);
        for _ in 0..TRIES {
            match self.put(&trash, visible).await {
                Ok(Put::Done) => return Ok(None),
                Ok(Put::Taken) => break,
                // Its directory went away in between; the file comes back all the same.
                Err(ExportError::NotFound(_)) => {
                    if let Some(parent) = visible.parent() {
                        match self.make_again(&parent).await {
                            Err(ExportError::Kind { .. } | ExportError::Exists(_)) => break,
                            other => other?,
                        }
                    }
                }
                Err(ExportError::Kind { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        let (theirs, _) = file::digest(self.export(), &trash).await?;
        self.put_beside(&trash, &intent.name, theirs).await.map(Some)
    }

    /// Gives our result its visible name, if nobody has it.
    async fn show(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Outcome> {
        let staged = self.staged(intent)?;
        if let Some(parent) = visible.parent() {
            match self.make(&parent).await {
                Err(ExportError::Kind { .. } | ExportError::Exists(_)) => {
                    return self
                        .beside(intent, "something that is no directory has the name of a directory above")
                        .await;
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
                        self.beside(intent, "a file that is not ours has the name and was kept").await
                    };
                }
                Err(ExportError::NotFound(_)) => {
                    if self.is_missing(&staged).await? {
                        return self.moved_already(intent, visible).await;
                    }
                    if let Some(parent) = visible.parent() {
                        match self.make_again(&parent).await {
                            Err(ExportError::Kind { .. } | ExportError::Exists(_)) => {
                                return self.beside(intent, "the directory it belongs in was replaced").await;
                            }
                            other => other?,
                        }
                    }
                }
                Err(ExportError::Kind { .. }) => {
                    return self.beside(intent, "something that is no file has the name").await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(busy(visible))
    }

    /// A conflict: our result goes beside (for a removal there is none).
    async fn beside(&self, intent: &Intent, reason: &str) -> Settled<Outcome> {
        let mut told = outcome(intent, Verdict::Conflict, reason);
        if intent.remove {
            return Ok(told);
        }
        let staged = self.staged(intent)?;
        let digest = digest_of(intent)?;
        if self.is_missing(&staged).await? {
            match self.found_beside(&intent.name, digest).await? {
                Some(name) => told.conflict_name = name,
                None => told.reason.push_str("; our result disappeared before it was published, run the job again"),
            }
            return Ok(told);
        }
        told.conflict_name = self.put_beside(&staged, &intent.name, digest).await?;
        Ok(told)
    }

    /// Puts a file under the first free conflict name, or finds it there.
    async fn put_beside(&self, from: &ObjectPath, name: &[u8], digest: Digest) -> Settled<Vec<u8>> {
        let flat = flattened(name);
        // A name whose directory can't be had goes to the place's own level.
        for base in [name, &flat] {
            for n in 1..=BESIDE_MAX {
                let candidate = conflict_name(base, self.publish.attempt, n);
                let path = self.visible(&candidate)?;
                if let Some(parent) = path.parent() {
                    match self.make_again(&parent).await {
                        Err(ExportError::Kind { .. } | ExportError::Exists(_)) => break,
                        other => other?,
                    }
                }
                match self.put(from, &path).await {
                    Ok(Put::Done) => return Ok(candidate),
                    Ok(Put::Taken) if self.holds(&path, &digest.0).await? => return Ok(candidate),
                    Ok(Put::Taken) | Err(ExportError::Kind { .. } | ExportError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Err(ExportError::Exists(format!(
            "{}: and {BESIDE_MAX} names like it with .conflict-{}; move some away",
            ingle_proto::storage::display_bytes(name),
            self.publish.attempt
        )))
    }

    /// The staged file is gone, though its publish isn't over. Without links that is how a step ends: it was renamed.
    async fn moved_already(&self, intent: &Intent, visible: &ObjectPath) -> Settled<Outcome> {
        if self.holds(visible, &intent.digest).await? {
            return Ok(outcome(intent, Verdict::Published, ""));
        }
        if let Some(name) = self.found_beside(&intent.name, digest_of(intent)?).await? {
            let mut told = outcome(intent, Verdict::Conflict, "a person's file has the name and was kept");
            told.conflict_name = name;
            return Ok(told);
        }
        if self.link {
            let reason = "our result disappeared before it was published; run the job again";
            return Ok(outcome(intent, Verdict::Conflict, reason));
        }
        Ok(outcome(intent, Verdict::Published, "and changed or removed by somebody since"))
    }

    async fn found_beside(&self, name: &[u8], digest: Digest) -> Settled<Option<Vec<u8>>> {
        let flat = flattened(name);
        for base in [name, &flat] {
            for n in 1..=BESIDE_MAX {
                let candidate = conflict_name(base, self.publish.attempt, n);
                let path = self.visible(&candidate)?;
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

    /// Gives a file another name without replacing anything.
    async fn put(&self, from: &ObjectPath, to: &ObjectPath) -> Settled<Put> {
        if !self.link {
            return linkless::put(self.export(), from, to, self.recovering).await;
        }
        match self.export().link(from, to).await {
            Ok(()) => Ok(Put::Done),
            Err(ExportError::Exists(_)) => Ok(Put::Taken),
            Err(error) => Err(error),
        }
    }

    async fn holds(&self, path: &ObjectPath, digest: &[u8]) -> Settled<bool> {
        match file::digest(self.export(), path).await {
            Ok((found, _)) => Ok(found.0[..] == *digest),
            Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn is_missing(&self, path: &ObjectPath) -> Settled<bool> {
        match self.export().stat(path).await {
            Ok(_) => Ok(false),
            Err(ExportError::NotFound(_)) => Ok(true),
            Err(ExportError::Kind { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn make(&self, directory: &ObjectPath) -> Settled<()> {
        let known = self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(directory);
        if known || directory.is_root() { Ok(()) } else { self.make_again(directory).await }
    }

    async fn make_again(&self, directory: &ObjectPath) -> Settled<()> {
        if directory.is_root() {
            return Ok(());
        }
        self.export().make_directory(directory).await?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.clone());
        Ok(())
    }

    fn visible(&self, name: &[u8]) -> Settled<ObjectPath> {
        self.place.visible(name).map_err(|problem| ExportError::Path(problem.message))
    }

    fn staged(&self, intent: &Intent) -> Settled<ObjectPath> {
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

fn outcome(intent: &Intent, verdict: Verdict, reason: &str) -> Outcome {
    Outcome { name: intent.name.clone(), result: verdict.into(), conflict_name: Vec::new(), reason: reason.to_owned() }
}

fn digest_of(intent: &Intent) -> Settled<Digest> {
    Digest::from_wire("digest", &intent.digest).map_err(|problem| ExportError::Path(problem.message))
}

fn busy(path: &ObjectPath) -> ExportError {
    ExportError::Unavailable(format!("{}: is changed again and again while it is published", path.display()))
}
