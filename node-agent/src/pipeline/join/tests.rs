//! Joins over parts in memory: what stays, what leaves, what is new, and in which order.

use super::super::schema::tests::{example, read, write};
use super::*;

fn entry(name: &str, action: EntryAction) -> v1::SegmentEntry {
    let mut entry =
        v1::SegmentEntry { name: name.as_bytes().to_vec().into(), size: 5, mtime_ns: 7, ..Default::default() };
    entry.set_action(action);
    entry
}

fn item(index: u32, outcome: ItemOutcome) -> v1::ItemResult {
    v1::ItemResult {
        index,
        outcome: outcome.into(),
        content_digest: vec![1; 32].into(),
        size: 6,
        mtime_ns: 8,
        ..Default::default()
    }
}

struct Case {
    dir: tempfile::TempDir,
    entries: Vec<v1::SegmentEntry>,
    items: Vec<v1::ItemResult>,
    present: Option<Vec<Row>>,
    new: Vec<Row>,
}

impl Case {
    fn new(entries: &[(&str, EntryAction)], items: &[(u32, ItemOutcome)]) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            entries: entries.iter().map(|(name, action)| entry(name, *action)).collect(),
            items: items.iter().map(|(index, outcome)| item(*index, *outcome)).collect(),
            present: None,
            new: Vec::new(),
        }
    }

    fn run(&self) -> (Merged, Vec<Row>) {
        let blob = v1::BlobRef { digest: vec![9; 32].into(), size: 1 };
        let segment = v1::Segment { bucket: 0, entries: self.entries.clone() };
        let manifest =
            v1::ResultManifest { items: self.items.clone(), segment: Some(blob.clone()), ..Default::default() };
        let fates = fates(&[(blob, segment)], &[manifest]).unwrap();
        let at = |name: &str| self.dir.path().join(name);
        let present = self.present.as_ref().map(|rows| {
            write(&at("present"), rows);
            at("present")
        });
        let partials = if self.new.is_empty() { vec![] } else { vec![at("new")] };
        if !self.new.is_empty() {
            write(&at("new"), &self.new);
        }
        let model_digest = Some("ab".repeat(32));
        let merge = Merge { fates, partials, present, merged: at("merged"), model: "m".into(), model_digest };
        let merged = merge.run().unwrap();
        let rows = if matches!(merged.what, What::Write { .. }) { read(&at("merged")) } else { vec![] };
        (merged, rows)
    }
}

fn names(rows: &[Row]) -> Vec<(&str, i32)> {
    rows.iter().map(|row| (row.path.as_str(), row.passage)).collect()
}

fn gone(merged: &Merged) -> Vec<String> {
    let gone = merged.inputs.iter().filter(|input| input.gone);
    gone.map(|input| String::from_utf8_lossy(&input.name).into_owned()).collect()
}

use EntryAction::{Deleted, Do, Unchanged};
use ItemOutcome::Committed;

#[test]
fn new_rows_replace_old_ones_in_path_order() {
    let mut case =
        Case::new(&[("b", Do), ("d", Do), ("a", Unchanged), ("c", Deleted)], &[(0, Committed), (1, Committed)]);
    case.present = Some(vec![example("a", 0), example("b", 0), example("b", 1), example("c", 0), example("other", 0)]);
    case.new = vec![example("b", 0), example("d", 0), example("d", 1)];
    let (merged, rows) = case.run();
    assert_eq!(names(&rows), [("a", 0), ("b", 0), ("d", 0), ("d", 1), ("other", 0)]);
    assert_eq!(gone(&merged), ["c"]);
    let done = merged.inputs.iter().find(|input| input.name.as_ref() == b"b").unwrap();
    assert_eq!((done.size, done.mtime_ns), (6, 8), "as it was read, not as it was listed");
}

#[test]
fn what_failed_keeps_its_last_vectors() {
    let mut case = Case::new(&[("a", Do), ("b", Do)], &[(0, ItemOutcome::Failed), (1, Committed)]);
    case.present = Some(vec![example("a", 0)]);
    case.new = vec![example("b", 0)];
    let (merged, rows) = case.run();
    assert_eq!(names(&rows), [("a", 0), ("b", 0)]);
    assert_eq!(merged.inputs.len(), 1, "nothing new is known of the failed one");
}

#[test]
fn nothing_changed_keeps_the_part_and_refreshes_what_is_known() {
    let mut case = Case::new(&[("a", Do)], &[(0, ItemOutcome::Unchanged)]);
    case.present = Some(vec![example("a", 0)]);
    let (merged, _) = case.run();
    assert_eq!(merged.what, What::Keep);
    assert_eq!(merged.inputs.len(), 1);
}

#[test]
fn without_documents_the_part_goes() {
    let mut case = Case::new(&[("a", Deleted)], &[]);
    case.present = Some(vec![example("a", 0)]);
    let (merged, _) = case.run();
    assert_eq!(merged.what, What::Remove);
    assert_eq!(gone(&merged), ["a"]);
    assert_eq!(Case::new(&[("a", EntryAction::Skip)], &[]).run().0.what, What::Nothing);
}

#[test]
fn empty_documents_make_an_empty_part() {
    let (merged, rows) = Case::new(&[("a", Do)], &[(0, Committed)]).run();
    assert!(matches!(merged.what, What::Write { .. }));
    assert_eq!(rows, []);
}

#[test]
fn rows_of_another_model_leave() {
    let mut case = Case::new(&[("a", Do), ("b", Do)], &[(0, Committed), (1, ItemOutcome::Failed)]);
    let old = |name: &str| Row { model: "cd".repeat(32), ..example(name, 0) };
    case.present = Some(vec![old("a"), old("b")]);
    case.new = vec![example("a", 0)];
    assert_eq!(names(&case.run().1), [("a", 0)]);
}

#[test]
fn a_part_that_is_not_ours_is_not_read() {
    let mut case = Case::new(&[("a", Do), ("b", Unchanged)], &[(0, Committed)]);
    case.new = vec![example("a", 0)];
    case.present = Some(vec![]);
    let path = case.dir.path().join("foreign");
    std::fs::write(&path, "a person's notes").unwrap();
    let fates = fates(
        &[(v1::BlobRef::default(), v1::Segment { bucket: 0, entries: case.entries.clone() })],
        &[v1::ResultManifest { items: case.items.clone(), ..Default::default() }],
    )
    .unwrap();
    write(&case.dir.path().join("new"), &case.new);
    let merged = case.dir.path().join("merged");
    let partials = vec![case.dir.path().join("new")];
    let merge =
        Merge { fates, partials, present: Some(path), merged: merged.clone(), model: "m".into(), model_digest: None };
    assert!(matches!(merge.run().unwrap().what, What::Write { .. }));
    assert_eq!(names(&read(&merged)), [("a", 0)]);
}

#[test]
fn manifests_of_foreign_segments_are_refused() {
    let segment = v1::Segment { bucket: 0, entries: vec![entry("a", Do)] };
    let blob = v1::BlobRef { digest: vec![1; 32].into(), size: 1 };
    let other = v1::BlobRef { digest: vec![2; 32].into(), size: 1 };
    let manifest = v1::ResultManifest { segment: Some(other), ..Default::default() };
    assert!(fates(&[(blob.clone(), segment.clone())], &[manifest]).is_err());
    let beyond =
        v1::ResultManifest { items: vec![item(9, Committed)], segment: Some(blob.clone()), ..Default::default() };
    assert!(fates(&[(blob, segment)], &[beyond]).is_err());
}

#[test]
fn names_that_look_like_others_stay_apart() {
    let names: [&[u8]; 4] = [b"a%FF", b"a\xFF", b"a%0A", b"a\n"];
    let named = |name: &[u8]| v1::SegmentEntry { name: name.to_vec().into(), ..entry("", Do) };
    let segment = v1::Segment { bucket: 0, entries: names.iter().map(|name| named(name)).collect() };
    let fates = fates(&[(v1::BlobRef::default(), segment)], &[]).unwrap();
    let kept: BTreeSet<&[u8]> = fates.values().map(|fate| fate.name.as_ref()).collect();
    assert_eq!(kept, BTreeSet::from(names));
}
