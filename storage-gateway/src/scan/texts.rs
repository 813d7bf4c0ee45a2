//! Where documents that have no text of their own have it: the output place of an OCR job, mirrored `NAME.txt`.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::storage::{OWN_DIRECTORY, Object, display_bytes};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use super::walk::Found;
use crate::export::{Export, ExportError, Kind as FileKind};
use crate::exports::Exports;
use crate::kinds::{self, Kind};
use crate::ledger::Ledger;
use crate::limits::LISTS_IN_FLIGHT;
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

    /// Looks for the texts of what was found. A document changes with its text; a picture without one is passed over.
    ///
    /// # Errors
    /// Those of the export.
    pub(super) async fn find(&self, found: &mut [Found]) -> Result<(), Problem> {
        let wanting = found.iter_mut().filter(|found| found.skipped.is_none()).filter_map(|found| {
            let name = found.name.rsplit(|b| *b == b'/').next().unwrap_or_default();
            kinds::kind(name).ok().filter(|kind| *kind != Kind::Text).map(|kind| (found, kind))
        });
        let looks: Vec<_> = wanting.map(|(found, kind)| self.look(found, kind)).collect();
        futures::stream::iter(looks).buffer_unordered(LISTS_IN_FLIGHT * 8).try_collect::<()>().await
    }

    async fn look(&self, found: &mut Found, kind: Kind) -> Result<(), Problem> {
        let name = [found.name.as_slice(), b".txt"].concat();
        let there = match self.object.path.join(&name) {
            Ok(path) => match self.export.stat(&path).await {
                Ok(attr) if attr.kind == FileKind::File => Some((path, attr.mtime_ns)),
                Ok(_) | Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => None,
                Err(error) => return Err(error.into()),
            },
            Err(_) => None,
        };
        match there {
            Some((path, mtime_ns)) => {
                found.mtime_ns = found.mtime_ns.max(mtime_ns);
                found.text = Some((path, mtime_ns));
            }
            None if kind == Kind::Picture => {
                found.skipped = Some(format!(
                    "a picture has no text of its own, and {} holds no {}: an OCR job over it comes first, or could not read it",
                    self.object,
                    display_bytes(&name)
                ));
            }
            None => {}
        }
        Ok(())
    }
}
