//! Whether the results of unchanged documents are still to be seen: one that somebody deleted is made again. That holds too for a
//! document whose content is still to be compared, since it changed too shortly before to trust its time stamp.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::v1::EntryAction;
use ingle_proto::{ObjectPath, Problem};

use super::compare::{Again, Judged};
use crate::export::{ExportError, Kind};
use crate::ledger::Ledger;
use crate::limits::{DIRECTORY_ENTRIES_MAX, LISTS_IN_FLIGHT};
use crate::place::Place;

/// Turns unchanged entries into entries to do where a result of theirs is gone. Lists each directory of results once.
///
/// # Errors
/// Those of the export.
pub async fn check(place: &Place, ledger: &Ledger, kind: i32, entries: &mut [Judged]) -> Result<(), Problem> {
    let mut directories: BTreeMap<ObjectPath, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| rests_on_results(entry)) {
        for output in ledger.outputs_of(kind, &entry.found.name) {
            let directory = place.visible(output)?.parent().unwrap_or_else(ObjectPath::root);
            directories.entry(directory).or_default();
        }
    }
    let lists: Vec<_> = directories.into_keys().map(|directory| files(place, directory)).collect();
    let present: BTreeMap<ObjectPath, BTreeSet<Vec<u8>>> =
        futures::stream::iter(lists).buffer_unordered(LISTS_IN_FLIGHT).try_collect().await?;
    for entry in entries.iter_mut().filter(|entry| rests_on_results(entry)) {
        for output in ledger.outputs_of(kind, &entry.found.name) {
            let path = place.visible(output)?;
            let directory = path.parent().unwrap_or_else(ObjectPath::root);
            if !present.get(&directory).is_some_and(|names| names.contains(path.file_name())) {
                entry.action = EntryAction::Do;
                // The same content must not settle it: the result itself is missing.
                entry.content_digest.clear();
                entry.results_current = false;
                entry.again = Some(Again::Unseen);
            }
        }
    }
    Ok(())
}

fn rests_on_results(entry: &Judged) -> bool {
    entry.action == EntryAction::Unchanged || (entry.action == EntryAction::Do && entry.results_current)
}

async fn files(place: &Place, directory: ObjectPath) -> Result<(ObjectPath, BTreeSet<Vec<u8>>), Problem> {
    let entries = match place.export.list(&directory, DIRECTORY_ENTRIES_MAX).await {
        Ok(entries) => entries,
        Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let files = entries.into_iter().filter(|entry| entry.attr.kind == Kind::File);
    Ok((directory, files.map(|entry| entry.name).collect()))
}
