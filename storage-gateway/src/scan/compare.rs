//! Found names against the ledger: what is to be done, what is unchanged, what left. Pure.

use std::collections::BTreeSet;

use ingle_proto::v1::EntryAction;

use super::walk::Found;
use crate::ledger::Ledger;
use crate::ledger::record::Root;

/// A file changed this close to the scan that saw it may have changed again with the same time stamp: 2 s is the coarsest there
/// is (FAT), and 1 s how far the time of a scan may lie after the NAS's own.
pub const RACY_NS: i64 = 3_000_000_000;

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

impl Wanted {
    /// Stands for what results must be of: with another one, what could not be done may be.
    #[must_use]
    pub fn context(&self) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.model.len() as u64).to_le_bytes()).update(&self.model).update(&self.parameters);
        hasher.finalize().as_bytes().to_vec()
    }
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
    /// It is to be done only because its times are too young to be trusted, or because its result is gone.
    pub again: Option<Again>,
}

/// Why a document is to be done though it looks as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It changed too shortly before the scan that saw it, or its attributes changed since.
    Racy,
    /// Somebody removed a result of it.
    Unseen,
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
        again: None,
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
            let alike = known.size == judged.found.size && known.mtime_ns == judged.found.mtime_ns;
            // Whoever writes can set the modification time back; the time of the attributes' change says that something was.
            let trusted_ns = known.scanned_ms.saturating_mul(1_000_000).saturating_sub(RACY_NS);
            let racy = known.mtime_ns.max(judged.found.ctime_ns) >= trusted_ns;
            judged.again = (alike && racy && judged.results_current).then_some(Again::Racy);
            alike && !racy
        }
    };
    if same && judged.results_current {
        judged.action = EntryAction::Unchanged;
    }
    judged
}

/// What of a root the ledger knows that a scan would have found.
#[derive(Debug, Default)]
pub struct Known {
    /// How many names; not counted where none is missing.
    pub names: usize,
    /// Those that the scan did not find.
    pub missing: Vec<Judged>,
}

/// Names that the ledger knows from this root and that `covered` says this scan would have found.
#[must_use]
pub fn known(ledger: &Ledger, wanted: &Wanted, present: &BTreeSet<&[u8]>, covered: impl Fn(&[u8]) -> bool) -> Known {
    let of_root =
        |name: &[u8]| ledger.input(wanted.kind, name).filter(|known| known.root.as_ref() == Some(&wanted.root));
    let absent = ledger.input_names(wanted.kind).filter(|name| !present.contains(name) && covered(name));
    let missing: Vec<Judged> = absent
        .filter_map(|name| {
            let known = of_root(name)?;
            Some(Judged {
                found: Found { name: name.to_vec(), size: known.size, mtime_ns: known.mtime_ns, ..Found::default() },
                inline_index: None,
                action: EntryAction::Deleted,
                content_digest: known.content_digest.clone(),
                results_current: false,
                again: None,
            })
        })
        .collect();
    let all = || ledger.input_names(wanted.kind).filter(|name| covered(name) && of_root(name).is_some()).count();
    Known { names: if missing.is_empty() { 0 } else { all() }, missing }
}
