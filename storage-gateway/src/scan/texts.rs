//! Where documents that have no text of their own have it: the output place of an OCR job, mirrored `NAME.txt`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::storage::{OWN_DIRECTORY, Object, display_bytes};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use super::walk::Found;
use crate::export::{Attr, Export, ExportError, Kind as FileKind};
use crate::exports::Exports;
use crate::kinds::{self, Kind};
use crate::ledger::Ledger;
use crate::limits::{DIRECTORY_ENTRIES_MAX, LISTS_IN_FLIGHT};
use crate::place::Place;
use crate::publish::Publisher;

/// A place to take texts from.
pub(super) struct Texts {
    object: Object,
    export: Arc<dyn Export>,
    /// Of the place, where it may have one: its results are no documents.
    ledger: Option<Arc<Ledger>>,
}

impl Texts {
    /// Opens it.
    ///
    /// # Errors
    /// `PATH_REFUSED` inside a directory of ours; `EXPORT_NOT_FOUND`; those of the export and of the ledger.
    pub(super) async fn open(
        exports: &Exports,
        publisher: &Publisher,
        object: &Object,
        principal: &str,
    ) -> Result<Self, Problem> {
        if object.path.components().any(|part| part == OWN_DIRECTORY) {
            return Err(Problem::new(ErrorCode::PathRefused, format!("text_from: {object} lies in .inglenook")));
        }
        let export = exports.get(object, principal).await?;
        // What can't be written has no ledger of ours, and what isn't there has none either. Where this principal may not read
        // it, what it says is nobody's to know.
        let ledger = match exports.writable(object, principal).await {
            Ok(export) if export.stat(&object.path).await.is_ok() => {
                match publisher.ledger(&Place::new(object.clone(), export)?).await {
                    Err(problem) if problem.code == ErrorCode::StorageDenied => None,
                    other => Some(other?),
                }
            }
            _ => None,
        };
        Ok(Self { object: object.clone(), export, ledger })
    }

    /// Its path, if it lies on this export.
    pub(super) fn on(&self, export: &str) -> Option<&ObjectPath> {
        (self.object.export == export).then_some(&self.object.path)
    }

    /// Whether an object is one of its results.
    pub(super) fn holds(&self, export: &str, path: &ObjectPath) -> bool {
        let ledger = self.ledger.as_ref().filter(|_| self.object.export == export);
        ledger
            .is_some_and(|ledger| path.below(&self.object.path).is_some_and(|visible| ledger.output(visible).is_some()))
    }

    /// Looks for the texts of what was found: one listing per directory of theirs, nothing is asked of a file. A document changes
    /// with its text; a picture without one is passed over.
    ///
    /// # Errors
    /// Those of the export.
    pub(super) async fn find(&self, found: &mut [Found]) -> Result<(), Problem> {
        let mut wanting: Vec<(&mut Found, Kind, Option<ObjectPath>)> = Vec::new();
        for found in found.iter_mut().filter(|found| found.skipped.is_none()) {
            let name = found.name.rsplit(|b| *b == b'/').next().unwrap_or_default();
            let Some(kind) = kinds::kind(name).ok().filter(|kind| *kind != Kind::Text) else { continue };
            let path = self.object.path.join(&[found.name.as_slice(), b".txt"].concat()).ok();
            wanting.push((found, kind, path));
        }
        let directories: BTreeSet<ObjectPath> =
            wanting.iter().filter_map(|(_, _, path)| path.as_ref()?.parent()).collect();
        let lists: Vec<_> = directories.into_iter().map(|directory| self.list(directory)).collect();
        let texts: BTreeMap<ObjectPath, Attr> = futures::stream::iter(lists)
            .buffer_unordered(LISTS_IN_FLIGHT)
            .try_fold(BTreeMap::new(), |mut all, some| async move {
                all.extend(some);
                Ok(all)
            })
            .await?;
        for (found, kind, path) in wanting {
            match path.and_then(|path| Some((texts.get(&path)?, path))) {
                Some((attr, path)) => {
                    found.mtime_ns = found.mtime_ns.max(attr.mtime_ns);
                    found.ctime_ns = found.ctime_ns.max(attr.ctime_ns);
                    found.text = Some((path, attr.mtime_ns));
                }
                None if kind == Kind::Picture => {
                    found.skipped = Some(format!(
                        "a picture has no text of its own, and {} holds no {}.txt: an OCR job over it comes first, or could not \
                         read it",
                        self.object,
                        display_bytes(&found.name)
                    ));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The texts in a directory; none where there is no such directory.
    async fn list(&self, directory: ObjectPath) -> Result<Vec<(ObjectPath, Attr)>, Problem> {
        let entries = match self.export.list(&directory, DIRECTORY_ENTRIES_MAX).await {
            Ok(entries) => entries,
            Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let texts =
            entries.into_iter().filter(|entry| entry.attr.kind == FileKind::File && entry.name.ends_with(b".txt"));
        Ok(texts.filter_map(|entry| Some((directory.join(&entry.name).ok()?, entry.attr))).collect())
    }
}
