//! What a pass of a standing job tells: the first one everything, a later one only what has to be told anew. Pure.
//!
//! A document that an earlier pass listed, that is still to be done and still looks the same could not be done then: it is held
//! until it changes, or a poisonous one would be tried again every half a minute.

use std::collections::BTreeSet;

use ingle_proto::v1::EntryAction;

use super::compare::{Again, Judged};
use super::digest::found_mark;
use super::seen::Standing;
use crate::limits::SKIPPED_TOLD_MAX;

/// Documents that a listing says nothing of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Done, and not changed since.
    pub unchanged: u64,
    /// Of no kind that the job takes.
    pub skipped: u64,
    /// Tried before.
    pub held: u64,
}

/// Takes from the entries what needs no telling, and notes what is told. `begun_ms`: when the look began, Unix milliseconds.
pub fn anew(entries: &mut Vec<Judged>, standing: &mut Standing, begun_ms: i64) -> Carried {
    let whole = standing.pass <= 1;
    let tried = std::mem::take(&mut standing.tried);
    let mut held = BTreeSet::new();
    let mut carried = Carried::default();
    let mut told = false;
    entries.retain(|entry| match entry.action {
        EntryAction::Unchanged => {
            carried.unchanged += u64::from(!whole);
            whole
        }
        EntryAction::Do | EntryAction::Conflict | EntryAction::Deleted => {
            let mark = found_mark(&entry.found, entry.action.into());
            if !whole && tried.contains(&mark) && !must_again(entry, begun_ms) {
                held.insert(mark);
                match (entry.action, entry.again) {
                    // It has its result; only its time can't be trusted, and never will be.
                    (_, Some(Again::Racy)) => carried.unchanged += 1,
                    (EntryAction::Deleted, _) => {}
                    _ => carried.held += 1,
                }
                return false;
            }
            standing.listed.insert(mark);
            told = true;
            true
        }
        EntryAction::Skip | EntryAction::Wait | EntryAction::Unspecified => true,
    });
    standing.tried = held;
    if whole {
        return carried;
    }
    let skipped = |entry: &Judged| matches!(entry.action, EntryAction::Skip | EntryAction::Unspecified);
    let passed_over = entries.iter().filter(|entry| skipped(entry)).count();
    if !told {
        entries.clear();
    }
    if !told || passed_over > SKIPPED_TOLD_MAX {
        entries.retain(|entry| !skipped(entry));
        carried.skipped = passed_over as u64;
    }
    carried
}

/// Whether it is done again though it was tried: its result was removed, or its time will be old enough to be trusted one day.
fn must_again(entry: &Judged, begun_ms: i64) -> bool {
    let stamp_ms = entry.found.mtime_ns.max(entry.found.ctime_ns) / 1_000_000;
    match entry.again {
        Some(Again::Unseen) => true,
        Some(Again::Racy) => stamp_ms <= begun_ms,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::walk::Found;

    fn entry(name: &str, action: EntryAction) -> Judged {
        Judged {
            found: Found { name: name.into(), size: 3, mtime_ns: 5_000_000, ..Found::default() },
            inline_index: None,
            action,
            content_digest: Vec::new(),
            results_current: false,
            again: None,
        }
    }

    fn look(standing: &Standing, pass: u64, mut entries: Vec<Judged>) -> (Vec<String>, Carried, Standing) {
        let mut now = standing.enter("j", pass, b"c");
        let carried = anew(&mut entries, &mut now, 1_000);
        let names = entries.iter().map(|entry| String::from_utf8(entry.found.name.clone()).unwrap());
        (names.collect(), carried, now)
    }

    #[test]
    fn what_failed_is_held_until_it_changes() {
        use EntryAction::{Conflict, Deleted, Do, Skip, Unchanged, Wait};
        let all = || {
            vec![
                entry("a", Do),
                entry("b", Conflict),
                entry("c", Deleted),
                entry("s", Skip),
                entry("u", Unchanged),
                entry("w", Wait),
            ]
        };
        let (told, carried, first) = look(&Standing::default(), 1, all());
        assert_eq!((told.len(), carried), (6, Carried::default()), "the first pass tells everything");
        let (told, _, again) = look(&first, 1, all());
        assert_eq!((told.len(), &again), (6, &first), "a pass that did not get done is told again");
        let (told, carried, second) = look(&again, 2, all());
        assert!(told.is_empty(), "{told:?}");
        assert_eq!(carried, Carried { unchanged: 1, skipped: 1, held: 2 });
        let (told, _, third) = look(&second, 3, all());
        assert!(told.is_empty(), "as long as nothing changes");
        let mut changed = all();
        changed[0].found.ctime_ns = 7;
        let (told, carried, fourth) = look(&third, 3, changed.clone());
        assert_eq!(told, ["a", "s", "w"], "what waits and what is skipped is told along");
        assert_eq!(carried, Carried { unchanged: 1, skipped: 0, held: 1 });
        let (told, ..) = look(&fourth, 3, changed.clone());
        assert_eq!(told, ["a", "s", "w"], "its pass is not over");
        assert!(look(&fourth, 4, changed).0.is_empty());
        // What is no longer there is remembered no longer.
        let (_, _, empty) = look(&fourth, 4, Vec::new());
        assert_eq!((empty.tried.len(), empty.listed.len()), (0, 0));
    }

    #[test]
    fn a_result_that_was_removed_and_a_time_that_can_not_be_trusted_yet_are_told_again() {
        for (again, stamp_ms, told) in
            [(None, 5, 0), (Some(Again::Unseen), 5, 1), (Some(Again::Racy), 5, 1), (Some(Again::Racy), 99_000, 0)]
        {
            let mut one = entry("a", EntryAction::Do);
            (one.again, one.found.mtime_ns) = (again, stamp_ms * 1_000_000);
            let (_, _, first) = look(&Standing::default(), 1, vec![one.clone()]);
            let (names, carried, _) = look(&first, 2, vec![one]);
            assert_eq!(names.len(), told, "{again:?} {stamp_ms}");
            let future = again == Some(Again::Racy) && told == 0;
            assert_eq!(carried.unchanged, u64::from(future), "it has its result");
        }
    }
}
