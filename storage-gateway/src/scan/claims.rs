//! Whose a name in a place is. Results are named after their documents' paths below the input, so that documents of two inputs
//! can ask for one name: the one that had it first keeps it for as long as it is there, and the other is told so.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use ingle_proto::storage::{Object, display_bytes};
use ingle_proto::v1::{EntryAction, JobKind};
use ingle_proto::{ErrorCode, ObjectPath};

use super::compare::{Judged, Wanted};
use crate::export::ExportError;
use crate::exports::Exports;
use crate::ledger::Ledger;
use crate::ledger::record::Root;
use crate::limits::LISTS_IN_FLIGHT;

/// Inputs of which names were taken over that a publish is told of, in a record of at most 64 KiB; of further ones everything
/// stays.
const REPLACES_MAX: usize = 8;

/// Marks entries whose name belongs to another document that is still there. Answers the inputs whose documents have left, so
/// that their names are free. What can't be looked at counts as there.
pub async fn settle(
    exports: &Exports,
    ledger: &Ledger,
    wanted: &Wanted,
    entries: &mut [Judged],
    principal: &str,
) -> Vec<Root> {
    let claimed: Vec<(usize, i32, Root)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.action == EntryAction::Do)
        .filter_map(|(at, entry)| {
            let (kind, root) = ledger.held_elsewhere(wanted.kind, &entry.found.name, &wanted.root)?;
            Some((at, kind, root.clone()))
        })
        .collect();
    let looks: Vec<_> = claimed
        .into_iter()
        .map(|(at, kind, root)| {
            let name = entries[at].found.name.clone();
            async move { (at, kind, is_there(exports, &root, &name, principal).await, root) }
        })
        .collect();
    // In order, so that the same documents are told the same whatever answers first.
    let looked: Vec<_> = futures::stream::iter(looks).buffered(LISTS_IN_FLIGHT * 8).collect().await;
    let mut replaces = BTreeSet::new();
    for (at, kind, there, root) in looked {
        if !there && (replaces.contains(&root) || replaces.len() < REPLACES_MAX) {
            replaces.insert(root);
            continue;
        }
        let entry = &mut entries[at];
        entry.action = EntryAction::Conflict;
        entry.found.skipped = Some(reason(wanted.kind, &wanted.root, kind, &root, &entry.found.name));
    }
    replaces.into_iter().collect()
}

/// Whether a document that a result was made from is still there, or may be.
async fn is_there(exports: &Exports, root: &Root, name: &[u8], principal: &str) -> bool {
    // Texts given with a job are nowhere else than in their job, and never leave.
    if root.export.is_empty() {
        return true;
    }
    let Ok(path) = ObjectPath::new(root.base.clone()).and_then(|base| base.join(name)) else { return true };
    let object = Object { export: root.export.clone(), path };
    let export = match exports.get(&object, principal).await {
        Ok(export) => export,
        // An export that is served no longer has no documents.
        Err(problem) => return problem.code != ErrorCode::ExportNotFound,
    };
    !matches!(export.stat(&object.path).await, Err(ExportError::NotFound(_)))
}

/// Why a document is not done, naming it and the one that has its name.
#[must_use]
pub fn reason(kind: i32, root: &Root, holder: i32, theirs: &Root, name: &[u8]) -> String {
    let made = match JobKind::try_from(holder) {
        Ok(JobKind::Ocr) if holder != kind => "text (of an OCR job)",
        Ok(JobKind::Generate) if holder != kind => "answer (of a generate job)",
        _ => "result",
    };
    let (ours, theirs) = (document(root, name), document(theirs, name));
    format!(
        "{ours} would take the name of the {made} of {theirs}, which was kept: give this job an output place of its own, or \
         name one input above both"
    )
}

fn document(root: &Root, name: &[u8]) -> String {
    let path = ObjectPath::new(root.base.clone()).and_then(|base| base.join(name));
    match path {
        _ if root.export.is_empty() => {
            // Texts of several jobs are told apart by the digest of all of them.
            let digest: String = root.base.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("{} of the texts {digest}…", display_bytes(name))
        }
        Ok(path) => Object { export: root.export.clone(), path }.to_string(),
        Err(_) => format!("nas://{}/…/{}", root.export, display_bytes(name)),
    }
}
