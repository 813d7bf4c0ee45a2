//! Why a model is where it is: for each node whether it holds it or could, what would have to leave, what keeps work away, and
//! when it would be done there.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::Core;
use super::explain::{shown, wire_terms};
use super::nodes::NodeEntry;
use super::placement::Size;

/// A short piece of work, to show when it would be done.
const SAMPLE: Size = Size { items: 1, bytes: 4096, output_tokens: 64, pages: 0 };

impl Core {
    /// Explains a model.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND` if no node sees it.
    pub fn explain_model(&self, name: &str) -> Result<v1::ExplainModelResponse, Problem> {
        let known = |status: &v1::ModelStatus| {
            status.info.as_ref().and_then(|info| info.model.as_ref()).is_some_and(|model| model.name == name)
        };
        let status = self.models().into_iter().find(known).ok_or_else(|| {
            let words = format!("no node sees a model named {name:.200?}; see `ingle models list`");
            Problem::new(ErrorCode::ModelNotFound, words)
        })?;
        let info = status.info.unwrap_or_default();
        let fits = self.explain_fit(name, 0, 1)?.nodes;
        let nodes: Vec<v1::ModelOnNode> = self
            .candidates(name)
            .into_iter()
            .filter_map(|(id, why)| {
                let node = self.nodes.get(&id)?;
                let fit = fits.iter().find(|fit| fit.node_id == id.as_str()).cloned().unwrap_or_default();
                let why = why.map_err(|why| self.with_times(&id, name, why));
                Some(self.model_on(&id, node, name, fit, why))
            })
            .collect();
        let outlook = self.outlook(info.kind(), name, SAMPLE).unwrap_or_default();
        let waiting = self.calls.values().filter(|call| call.attempt.is_none() && call.model == name).count();
        let running = self.calls.values().filter(|call| call.attempt.is_some() && call.model == name).count();
        Ok(v1::ExplainModelResponse {
            summary: summary(&info, &nodes),
            info: Some(info),
            nodes,
            calls_running: u32::try_from(running).unwrap_or(u32::MAX),
            calls_waiting: u32::try_from(waiting.max(outlook.waiting)).unwrap_or(u32::MAX),
            service_ms: shown(outlook.service),
            wait_ms: shown(outlook.wait),
        })
    }

    fn model_on(
        &self,
        id: &NodeId,
        node: &NodeEntry,
        name: &str,
        fit: v1::NodeFit,
        why: Result<(), String>,
    ) -> v1::ModelOnNode {
        let loaded = node.loaded(name).is_some();
        let room = if loaded { Some(Vec::new()) } else { leaving(node, fit.needed_bytes) };
        let evicted = node.evictions.iter().rev().find(|gone| gone.model.as_ref().is_some_and(|m| m.name == name));
        v1::ModelOnNode {
            node_id: id.to_string(),
            loaded,
            ready: why.is_ok(),
            why_not: why.as_ref().err().cloned().unwrap_or_default(),
            fit: Some(fit),
            memory_reserved: node.reserved,
            has_room: room.is_some(),
            leaving: room.unwrap_or_default(),
            evicted: evicted.cloned(),
            breakers: node.breakers.view(Some(name), self.now),
            terms: Some(wire_terms(id, why, &self.terms(id, name, SAMPLE))),
        }
    }
}

/// What would have to leave for so many bytes, as the node would choose it: what nobody uses, the longest unused first. `None` if that
/// isn't enough.
fn leaving(node: &NodeEntry, needed: u64) -> Option<Vec<v1::LeavingModel>> {
    let budget = node.attached.capacity.memory_budget_bytes;
    let mut reserved = node.reserved;
    let mut idle: Vec<&v1::LoadedModel> = node.attached.loaded.iter().filter(|loaded| !loaded.in_use).collect();
    idle.sort_by_key(|loaded| loaded.last_used_ms);
    let mut leaving = Vec::new();
    for loaded in idle {
        if reserved.saturating_add(needed) <= budget {
            break;
        }
        reserved = reserved.saturating_sub(loaded.memory_bytes);
        let model = loaded.model.as_ref().map(|model| model.name.clone()).unwrap_or_default();
        leaving.push(v1::LeavingModel { model, bytes: loaded.memory_bytes });
    }
    (reserved.saturating_add(needed) <= budget).then_some(leaving)
}

fn summary(info: &v1::ModelInfo, nodes: &[v1::ModelOnNode]) -> String {
    let named = |wanted: &dyn Fn(&v1::ModelOnNode) -> bool| {
        nodes.iter().filter(|node| wanted(node)).map(|node| node.node_id.as_str()).collect::<Vec<_>>()
    };
    let loaded = named(&|node| node.loaded);
    let ready = named(&|node| node.ready);
    if !info.problem.is_empty() && ready.is_empty() {
        return format!("it can't be run: {}", info.problem);
    }
    let holds = match loaded.as_slice() {
        [] => "it is loaded nowhere".to_owned(),
        [node] => format!("it is loaded on {node}"),
        many => format!("it is loaded on {} nodes", many.len()),
    };
    let first = nodes.iter().find(|node| !node.ready);
    match (ready.as_slice(), first) {
        ([], Some(node)) => format!("{holds}, and no node takes work of it now; {}: {}", node.node_id, node.why_not),
        ([], None) => format!("{holds}, and no node has joined"),
        ([node], _) => format!("{holds}; {node} takes work of it"),
        (many, _) => format!("{holds}; {} of {} nodes take work of it", many.len(), nodes.len()),
    }
}
