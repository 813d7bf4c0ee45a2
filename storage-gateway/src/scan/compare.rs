//! Found names against the ledger: what is to be done, what is unchanged, what left. Pure.

use std::collections::BTreeSet;

use ingle_proto::v1::EntryAction;

use super::walk::Found;
use crate::ledger::Ledger;
use crate::ledger::record::Root;

/// A file changed this close to the scan that saw it may have changed again with the same time stamp.
const RACY_NS: i64 = 2_000_000_000;

/// What results must be of to count.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// `JobKind` of the wire.
    pub kind: i32,
    /// Digest of the model.
    pub model: Vec<u8>,
    /// Digest of the parameters.
    pub parameters: Vec<u8>,
    /// Where names count.
    pub root: Root,
    /// Everything is done again.
    pub force: bool,
}

/// An entry with its fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// As found.
    pub found: Found,
    /// Index of an inline text.
    pub inline_index: Option<u32>,
    /// What is to be done.
    pub action: EntryAction,
    /// What an earlier run saw, if known.
    pub content_digest: Vec<u8>,
    /// If the content is the same, nothing is to be done.
    pub results_current: bool,
}

/// Judges one found name. `content` is its digest where that is known without reading (texts given with the job).
#[must_use]
pub fn judge(ledger: &Ledger, wanted: &Wanted, found: Found, content: Option<&[u8]>) -> Judged {
    let mut judged = Judged {
        found,
        inline_index: None,
        action: EntryAction::Do,
        content_digest: Vec::new(),
        results_current: false,
    };
    if judged.found.skipped.is_some() {
        judged.action = EntryAction::Skip;
        return judged;
    }
    let known = ledger
        .input(wanted.kind, &judged.found.name)
        .filter(|known| !wanted.force && !known.stale && known.root.as_ref() == Some(&wanted.root));
    let Some(known) = known else { return judged };
    judged.results_current = known.model == wanted.model && known.parameters == wanted.parameters;
    judged.content_digest.clone_from(&known.content_digest);
    let same = match content {
        Some(content) => content == known.content_digest,
        None => {
            let scanned_ns = known.scanned_ms.saturating_mul(1_000_000);
            known.size == judged.found.size
                && known.mtime_ns == judged.found.mtime_ns
                && known.mtime_ns < scanned_ns.saturating_sub(RACY_NS)
        }
    };
    if same && judged.results_current {
        judged.action = EntryAction::Unchanged;
    }
    judged
}

/// Names that the ledger knows from this root, that `covered` says this scan would have found, and that it did not.
#[must_use]
pub fn deleted(
    ledger: &Ledger,
    wanted: &Wanted,
    present: &BTreeSet<&[u8]>,
    covered: impl Fn(&[u8]) -> bool,
) -> Vec<Judged> {
    ledger
        .input_names(wanted.kind)
        .filter(|name| !present.contains(name) && covered(name))
        .filter_map(|name| {
            let known = ledger.input(wanted.kind, name)?;
            (known.root.as_ref() == Some(&wanted.root)).then(|| Judged {
                found: Found { name: name.to_vec(), size: known.size, mtime_ns: known.mtime_ns, ..Found::default() },
                inline_index: None,
                action: EntryAction::Deleted,
                content_digest: known.content_digest.clone(),
                results_current: false,
            })
        })
        .collect()
}
