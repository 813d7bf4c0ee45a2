//! From a commit's changes, in their order, to operations on keys that may stand in one transaction in any order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Records, below};
use crate::core::record::Change;

/// What a commit comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Live records to be written.
    pub(super) puts: BTreeMap<String, Vec<u8>>,
    /// Live records to be removed, one by one.
    pub(super) deletes: BTreeSet<String>,
    /// Ranges of live records to be removed, `from .. end`; none holds a key of `puts`.
    pub(super) ranges: Vec<(String, String)>,
    /// Archived records to be written.
    pub(super) archive: BTreeMap<String, Vec<u8>>,
}

impl Plan {
    /// Operations in all.
    pub(super) fn len(&self) -> usize {
        self.puts.len() + self.deletes.len() + self.ranges.len() + self.archive.len()
    }
}

/// Prefixes whose stored records are needed to plan the changes.
pub(super) fn archived_prefixes(changes: &[Change]) -> BTreeSet<&str> {
    let archived = changes.iter().filter_map(|change| match change {
        Change::Archive { prefix } => Some(prefix.as_str()),
        _ => None,
    });
    archived.collect()
}

/// Plans a commit. `stored` has the live records below each prefix that is archived.
pub(super) fn plan(changes: Vec<Change>, stored: &BTreeMap<String, Records>) -> Plan {
    let mut live: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    let mut emptied: Vec<String> = Vec::new();
    let mut archive = BTreeMap::new();
    for change in changes {
        match change {
            Change::Put { key, value } => drop(live.insert(key, Some(value))),
            Change::Delete { key } => drop(live.insert(key, None)),
            Change::Clear { prefix } => {
                live.retain(|key, _| !key.starts_with(&prefix));
                emptied.push(prefix);
            }
            Change::Archive { prefix } => {
                let before = stored.get(&prefix).into_iter().flatten();
                let gone = |key: &str| emptied.iter().any(|prefix| key.starts_with(prefix));
                archive.extend(before.filter(|(key, _)| !gone(key) && !live.contains_key(key)).cloned());
                live.retain(|key, value| {
                    let moved = key.starts_with(&prefix);
                    if moved && let Some(value) = value.take() {
                        archive.insert(key.clone(), value);
                    }
                    !moved
                });
                emptied.push(prefix);
            }
        }
    }
    let mut plan = Plan { archive, ..Plan::default() };
    for (key, value) in live {
        match value {
            Some(value) => drop(plan.puts.insert(key, value)),
            None if emptied.iter().any(|prefix| key.starts_with(prefix)) => {}
            None => drop(plan.deletes.insert(key)),
        }
    }
    emptied.sort_unstable();
    // A prefix sorts before all that begins with it.
    emptied.dedup_by(|next, kept| next.starts_with(kept.as_str()));
    for prefix in emptied {
        let end = below(&prefix);
        let mut from = prefix.clone();
        for key in plan.puts.range(prefix.clone()..end.clone()).map(|(key, _)| key) {
            if from < *key {
                plan.ranges.push((from, key.clone()));
            }
            // The first key after it.
            from = format!("{key}\0");
        }
        plan.ranges.push((from, end));
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each change does, one after another: the meaning that a plan must have all at once.
    fn applied(changes: &[Change], live: &mut BTreeMap<String, Vec<u8>>, archive: &mut BTreeMap<String, Vec<u8>>) {
        for change in changes {
            match change.clone() {
                Change::Put { key, value } => drop(live.insert(key, value)),
                Change::Delete { key } => drop(live.remove(&key)),
                Change::Clear { prefix } => live.retain(|key, _| !key.starts_with(&prefix)),
                Change::Archive { prefix } => live.retain(|key, value| {
                    if key.starts_with(&prefix) {
                        archive.insert(key.clone(), value.clone());
                    }
                    !key.starts_with(&prefix)
                }),
            }
        }
    }

    fn key() -> impl Strategy<Value = String> {
        proptest::sample::select(vec!["a", "p/1/a", "p/1/b", "p/1/c", "p/10/a", "p/10/b", "q"]).prop_map(str::to_owned)
    }

    fn change() -> impl Strategy<Value = Change> {
        let prefix = proptest::sample::select(vec!["p/", "p/1/", "p/10/", "p/1", "q"]).prop_map(str::to_owned);
        prop_oneof![
            4 => (key(), any::<u8>()).prop_map(|(key, value)| Change::Put { key, value: vec![value] }),
            2 => key().prop_map(|key| Change::Delete { key }),
            1 => prefix.clone().prop_map(|prefix| Change::Archive { prefix }),
            1 => prefix.prop_map(|prefix| Change::Clear { prefix }),
        ]
    }

    proptest! {
        #[test]
        fn a_plan_means_what_its_changes_mean(
            before in proptest::collection::btree_map(key(), proptest::collection::vec(any::<u8>(), 1), 0..7),
            changes in proptest::collection::vec(change(), 0..12),
        ) {
            let stored = archived_prefixes(&changes)
                .into_iter()
                .map(|prefix| {
                    let below = before.iter().filter(|(key, _)| key.starts_with(prefix));
                    (prefix.to_owned(), below.map(|(key, value)| (key.clone(), value.clone())).collect())
                })
                .collect();
            let (mut live, mut archive) = (before.clone(), BTreeMap::new());
            applied(&changes, &mut live, &mut archive);
            let plan = plan(changes, &stored);
            let mut planned = before;
            // Removals first, then writes: they don't touch each other.
            for (from, end) in &plan.ranges {
                prop_assert!(plan.puts.range(from.clone()..end.clone()).next().is_none(), "{plan:?}");
                planned.retain(|key, _| key < from || key >= end);
            }
            planned.retain(|key, _| !plan.deletes.contains(key));
            prop_assert!(plan.deletes.iter().all(|key| !plan.puts.contains_key(key)));
            planned.extend(plan.puts.clone());
            prop_assert_eq!(planned, live);
            prop_assert_eq!(plan.archive, archive);
        }
    }
}
