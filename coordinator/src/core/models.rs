//! Which model does the work: chosen by name, or as the only one of its kind; waited for while it is on its way to a node.

use std::collections::BTreeMap;
use std::time::Duration;

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::Core;

/// Why a node can't run a model that is on its way to it.
pub(super) const UNREAD: &str = "its weights are still being read there";

/// What nodes say of models, by name.
#[derive(Default)]
struct Seen {
    /// Those that can do the work, with their digests.
    known: BTreeMap<String, Vec<u8>>,
    /// Those that do something else.
    others: BTreeMap<String, v1::JobKind>,
    /// Those that can't be run, with why.
    broken: BTreeMap<String, String>,
    /// A node has told what it has: a name that nobody knows is a mistake.
    settled: bool,
}

/// A model on its way to a node: nobody can tell yet what it is.
pub(super) struct Coming<'a> {
    node: &'a NodeId,
    name: &'a str,
    fetch: v1::ModelFetch,
}

impl Core {
    /// The model a job of this kind should use: by name, or the only one of its kind. `None` while no node can tell.
    pub(super) fn choose_model(&self, kind: v1::JobKind, name: &str) -> Result<Option<(String, Vec<u8>)>, Problem> {
        let Seen { known, others, broken, settled } = self.seen(kind);
        let coming = self.coming(name).is_some();
        if name.is_empty() {
            return match known.len() {
                1 => Ok(known.into_iter().next()),
                0 if settled && !coming => Err(Problem::new(
                    ErrorCode::ModelNotFound,
                    format!("no node has a model that can {}; see `ingle models list`", word(kind)),
                )),
                0 => Ok(None),
                _ => Err(Problem::new(
                    ErrorCode::ModelNotFound,
                    format!("several models can {}: {}; name one", word(kind), join(known.keys())),
                )),
            };
        }
        if let Some(digest) = known.get(name) {
            return Ok(Some((name.to_owned(), digest.clone())));
        }
        if let Some(other) = others.get(name) {
            let (can, cannot) = (word(*other), word(kind));
            let words =
                format!("model {name} can {can}, not {cannot}; models that can {cannot}: {}", join(known.keys()));
            return Err(Problem::new(ErrorCode::ModelUnusable, words));
        }
        // One node may be able to run what is broken on another.
        if coming {
            return Ok(None);
        }
        if let Some(problem) = broken.get(name) {
            return Err(Problem::new(ErrorCode::ModelUnusable, format!("model {name}: {problem}")));
        }
        if settled {
            let words =
                format!("no node has a model named {name:?}; models that can {}: {}", word(kind), join(known.keys()));
            return Err(Problem::new(ErrorCode::ModelNotFound, words));
        }
        Ok(None)
    }

    fn seen(&self, kind: v1::JobKind) -> Seen {
        let mut seen = Seen::default();
        for (_, node) in self.nodes.iter().filter(|(_, node)| node.connected && !node.left) {
            seen.settled |= !node.attached.models.is_empty();
            for info in &node.attached.models {
                let Some(model) = &info.model else { continue };
                if !info.problem.is_empty() {
                    seen.broken.insert(model.name.clone(), info.problem.clone());
                } else if info.kind() == kind {
                    seen.known.insert(model.name.clone(), model.digest.to_vec());
                } else {
                    seen.others.insert(model.name.clone(), info.kind());
                }
            }
        }
        seen
    }

    /// A model of this name, or any if it is empty, that is on its way to a node: where it will be there first.
    pub(super) fn coming(&self, name: &str) -> Option<Coming<'_>> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.connected && !node.left);
        let all = nodes.flat_map(|(id, node)| {
            node.fetching.iter().filter_map(move |info| {
                let model = info.model.as_ref()?;
                Some(Coming { node: id, name: &model.name, fetch: info.fetch.unwrap_or_default() })
            })
        });
        let wanted = all.filter(|coming| name.is_empty() || coming.name == name);
        wanted.min_by_key(|coming| coming.left_ms().unwrap_or(u64::MAX))
    }

    /// Why no model can be chosen yet. Without numbers: whoever waits is told when it is another reason.
    pub(super) fn why_unread(&self, name: &str) -> String {
        if name.is_empty() || self.coming(name).is_none() {
            return "nodes are still reading their models".to_owned();
        }
        format!("model {name} is on its way: its weights are being read; `ingle models list` shows how far they are")
    }
}

impl Coming<'_> {
    /// Milliseconds until it is there at the pace so far; `None` before it has begun.
    pub(super) fn left_ms(&self) -> Option<u64> {
        let v1::ModelFetch { bytes, bytes_total, bytes_per_second } = self.fetch;
        let left = bytes_total.saturating_sub(bytes) as f64;
        (bytes_per_second > 0.0).then(|| (left * 1e3 / bytes_per_second) as u64)
    }

    /// What somebody is told who can't wait for it.
    pub(super) fn problem(&self) -> Problem {
        let v1::ModelFetch { bytes, bytes_total, .. } = self.fetch;
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let far = match self.left_ms() {
            Some(left_ms) => {
                format!("{} of {} MB are there, {} s left", mb(bytes), mb(bytes_total), left_ms.div_ceil(1000))
            }
            None => "its weights are being read, or wait for that".to_owned(),
        };
        let words = format!(
            "model {} is on its way to {}: {far}; come back later, `ingle models list` shows how far it is",
            self.name, self.node
        );
        let after_ms = self.left_ms().unwrap_or(5_000).clamp(1_000, 60_000);
        Problem::new(ErrorCode::NoNode, words).retry_after(Duration::from_millis(after_ms))
    }
}

fn word(kind: v1::JobKind) -> &'static str {
    match kind {
        v1::JobKind::Embed => "embed",
        v1::JobKind::Ocr => "read pages",
        v1::JobKind::Generate => "generate",
        v1::JobKind::Unspecified => "do this",
    }
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
