//! Documents that a listing misses: how many of them are believable, and whether a second complete listing misses them too.
//!
//! A result leaves only when two complete listings have missed its document. A scan of its own lists the directories concerned
//! a second time, after a pause; a standing job's next look is the second one.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::storage::{Object, display_bytes};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use super::compare::{Judged, Known};
use super::digest::{Mark, name_mark};
use crate::export::{Entry, Export, ExportError, Kind};
use crate::limits::{DIRECTORY_ENTRIES_MAX, LISTS_IN_FLIGHT, MISSING_AT_ONCE, SECOND_LOOK_AFTER, SUSPECTED_FOR};

/// Refuses to believe that most documents left at once: a disk that isn't mounted looks the same. `another` says that the base is
/// another directory than at the last look; then a few documents are enough.
///
/// # Errors
/// `DOCUMENTS_VANISHED` says how many, and what to do.
pub fn believable(base: &Object, known: &Known, another: bool) -> Result<(), Problem> {
    let missing = known.missing.len();
    if missing * 2 <= known.names || (missing < MISSING_AT_ONCE && !another) {
        return Ok(());
    }
    let first = known.missing.first().map(|entry| display_bytes(&entry.found.name)).unwrap_or_default();
    let replaced = if another { " and it is another directory than at the last look" } else { "" };
    Err(Problem::new(
        ErrorCode::DocumentsVanished,
        format!(
            "{base}: {missing} of {} known documents are missing at once (the first is {first}){replaced}, so nothing is deleted: \
             look whether the disk or export is mounted as it should be; if they were meant to go, submit again with \
             --allow-mass-deletion",
            known.names
        ),
    ))
}

/// Tells what a standing job's complete listing misses for the second time from what it misses for the first. `missing` is
/// what listings before missed, and becomes what this one misses.
pub fn confirmed(gone: Vec<Judged>, missing: &mut BTreeMap<Mark, i64>, begun_ms: i64) -> (Vec<Judged>, u64) {
    let before = std::mem::take(missing);
    let (mut deleted, mut suspected) = (Vec::new(), 0);
    for entry in gone {
        let name = name_mark(&entry.found.name);
        // A clock that went back makes it begin anew.
        let since = before.get(&name).copied().filter(|since| *since <= begun_ms).unwrap_or(begun_ms);
        missing.insert(name, since);
        if begun_ms - since >= SUSPECTED_FOR.as_millis() as i64 {
            deleted.push(entry);
        } else {
            suspected += 1;
        }
    }
    (deleted, suspected)
}

/// What a second look came to.
pub struct Looked {
    /// Missing from it too.
    pub gone: Vec<Judged>,
    /// There after all, as listed.
    pub back: Vec<(Judged, Entry)>,
}

/// Lists the directories from which documents are missing once more, or where those are gone too, the ones above.
///
/// # Errors
/// Those of the export; `OBJECT_CHANGED` where a directory comes and goes.
pub async fn second_look(export: &dyn Export, base: &ObjectPath, missing: Vec<Judged>) -> Result<Looked, Problem> {
    let mut looked = Looked { gone: Vec::new(), back: Vec::new() };
    if missing.is_empty() {
        return Ok(looked);
    }
    tokio::time::sleep(SECOND_LOOK_AFTER).await;
    let parent = |path: &ObjectPath| path.parent().unwrap_or_else(ObjectPath::root);
    let mut paths = Vec::with_capacity(missing.len());
    for entry in missing {
        paths.push((base.join(&entry.found.name)?, entry));
    }
    let mut listed: BTreeMap<ObjectPath, BTreeMap<Vec<u8>, Entry>> = BTreeMap::new();
    let mut due: BTreeSet<ObjectPath> = paths.iter().map(|(path, _)| parent(path)).collect();
    while !due.is_empty() {
        let lists = std::mem::take(&mut due).into_iter().map(|directory| async move {
            let entries = export.list(&directory, DIRECTORY_ENTRIES_MAX).await;
            match entries {
                Ok(entries) => Ok((directory, Some(entries))),
                Err(ExportError::NotFound(_) | ExportError::Kind { .. }) if directory != *base => Ok((directory, None)),
                Err(error) => Err(Problem::from(error)),
            }
        });
        let answers: Vec<_> = futures::stream::iter(lists).buffer_unordered(LISTS_IN_FLIGHT).try_collect().await?;
        for (directory, entries) in answers {
            match entries {
                Some(entries) => {
                    let by_name = entries.into_iter().map(|entry| (entry.name.clone(), entry));
                    listed.insert(directory, by_name.collect());
                }
                None => drop(due.insert(parent(&directory))),
            }
        }
        due.retain(|directory| !listed.contains_key(directory));
    }
    for (path, entry) in paths {
        let (mut at, mut below) = (parent(&path), path.clone());
        // The base itself is listed, so this ends there at the latest.
        while !listed.contains_key(&at) {
            below = at;
            at = parent(&below);
        }
        match listed[&at].get(below.file_name()) {
            None => looked.gone.push(entry),
            Some(there) if below == path => {
                let there = there.clone();
                // A directory of its name is no document, and neither would be anything else of that kind.
                if there.attr.kind == Kind::Directory {
                    looked.gone.push(entry);
                } else {
                    looked.back.push((entry, there));
                }
            }
            Some(there) if there.attr.kind != Kind::Directory => looked.gone.push(entry),
            Some(_) => {
                let words = format!("{}: the directory comes and goes; scan again", below.display());
                return Err(Problem::new(ErrorCode::ObjectChanged, words));
            }
        }
    }
    Ok(looked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::walk::Found;
    use ingle_proto::v1::EntryAction;

    fn gone(name: String) -> Judged {
        Judged {
            found: Found { name: name.into_bytes(), ..Found::default() },
            inline_index: None,
            action: EntryAction::Deleted,
            content_digest: Vec::new(),
            results_current: false,
            again: None,
        }
    }

    fn known(names: usize, missing: usize) -> Known {
        Known { names, missing: (0..missing).map(|n| gone(format!("{n}.md"))).collect() }
    }

    #[test]
    fn most_documents_never_leave_at_once() {
        let base = Object::parse("nas://docs/in").unwrap();
        for (names, missing, another, fine) in [
            (0, 0, false, true),
            (0, 0, true, true),
            (5, 5, false, true),
            (9, 9, false, true),
            (10, 10, false, false),
            (20, 10, false, true),
            (20, 11, false, false),
            (100_000, 49_999, false, true),
            // A directory that was replaced: a few are enough, one of many isn't.
            (5, 5, true, false),
            (2, 1, true, true),
            (1, 1, true, false),
            (100, 40, true, true),
        ] {
            let said = believable(&base, &known(names, missing), another);
            assert_eq!(said.is_ok(), fine, "{missing} of {names}, {another}: {said:?}");
            if let Err(problem) = said {
                assert_eq!(problem.code, ErrorCode::DocumentsVanished);
                assert!(problem.message.contains("--allow-mass-deletion") && problem.message.contains("nas://docs/in"));
            }
        }
    }

    #[test]
    fn the_second_complete_listing_that_misses_a_document_deletes_it() {
        let mut missing = BTreeMap::new();
        let mut look = |names: &[&str], at: i64| {
            let (deleted, suspected) =
                confirmed(names.iter().map(|n| gone((*n).to_owned())).collect(), &mut missing, at);
            let names = deleted.iter().map(|entry| String::from_utf8(entry.found.name.clone()).unwrap());
            (names.collect::<Vec<_>>(), suspected)
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(look(&["a"], 1_000), (none.clone(), 1));
        assert_eq!(look(&["a", "b"], 2_500), (none.clone(), 2), "too soon after the first");
        assert_eq!(look(&["a", "b"], 3_000), (vec!["a".to_owned()], 1));
        // One that came back is suspected anew.
        assert_eq!(look(&[], 9_000), (none.clone(), 0));
        assert_eq!(look(&["b"], 20_000), (none.clone(), 1));
        assert_eq!(look(&["b"], 4_000), (none, 1), "the clock went back");
        assert_eq!(look(&["b"], 6_000), (vec!["b".to_owned()], 0));
    }
}
