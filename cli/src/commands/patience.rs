//! What a person is told while a call has no answer yet: after a moment why, and again whenever that changes.

use std::future::Future;
use std::time::Duration;

use ingle_proto::v1::{self, JobKind, NodeState};

use crate::client::Client;
use crate::exit::Failure;
use crate::human;
use crate::out::note;

/// How long nothing is said: most answers have begun by then.
const QUIET: Duration = Duration::from_millis(1500);
/// How often the reason is looked up.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long looking it up may take.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// Waits for an answer by a model, and says on standard error what it waits for.
pub(crate) async fn waited<T>(client: &Client, kind: JobKind, model: &str, answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    let mut said = String::new();
    let mut pause = QUIET;
    loop {
        tokio::select! {
            done = &mut answer => return done,
            () = tokio::time::sleep(pause) => {}
        }
        let why = tokio::select! {
            done = &mut answer => return done,
            why = why(client, kind, model) => why,
        };
        if why != said {
            note(client.out, format!("waiting: {why}"));
            said = why;
        }
        pause = LOOK_EVERY;
    }
}

async fn why(client: &Client, kind: JobKind, model: &str) -> String {
    let looked = tokio::time::timeout(LOOK_WITHIN, async {
        let nodes = client.cluster().await?.list_nodes(v1::ListNodesRequest {}).await;
        let models = client.models().await?.list_models(v1::ListModelsRequest::default()).await;
        let (nodes, models) = (nodes.map_err(|s| client.failure(&s))?, models.map_err(|s| client.failure(&s))?);
        Ok::<_, Failure>(reason(&nodes.into_inner().nodes, &models.into_inner().models, kind, model))
    });
    match looked.await {
        Ok(Ok(reason)) => reason,
        Ok(Err(failure)) => format!("the coordinator has taken the call, but not said why ({})", failure.message),
        Err(_) => "the coordinator has taken the call and is busy".to_owned(),
    }
}

/// Why a call has no answer yet, from what the coordinator shows of nodes and models. Pure.
fn reason(nodes: &[v1::NodeStatus], models: &[v1::ModelStatus], kind: JobKind, model: &str) -> String {
    if nodes.is_empty() {
        return "no node has joined yet; `ingle nodes list` shows them".to_owned();
    }
    let fitting = models.iter().find(|status| {
        let info = status.info.clone().unwrap_or_default();
        let name = info.model.unwrap_or_default().name;
        info.kind == i32::from(kind) && info.problem.is_empty() && (model.is_empty() || model == name)
    });
    let Some(fitting) = fitting else {
        return "the nodes are still reading their models; `ingle models list` shows those they have".to_owned();
    };
    let name = fitting.info.as_ref().and_then(|info| info.model.as_ref()).map_or("the model", |model| &model.name);
    let of = |ids: &[String]| nodes.iter().filter(|node| ids.contains(&node.node_id)).collect::<Vec<_>>();
    let ready = |node: &&&v1::NodeStatus| node.state() == NodeState::Ready;
    let seen = of(&fitting.seen_by);
    match seen.iter().find(ready) {
        None => match seen.first() {
            None => format!("no node that has {name} is there"),
            Some(node) => {
                let state = crate::json::node_state(node.state());
                let why = human::cut(&node.reason, 80);
                format!("no node that has {name} is ready; {} is {state} ({why})", node.node_id)
            }
        },
        Some(node) if of(&fitting.loaded_on).iter().any(|node| ready(&node)) => {
            format!("{name} is busy: {} attempts run on {}", node.running, node.node_id)
        }
        Some(node) => format!("{} is loading {name}", node.node_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, state: NodeState, reason: &str) -> v1::NodeStatus {
        v1::NodeStatus {
            node_id: id.into(),
            state: state.into(),
            reason: reason.into(),
            running: 2,
            ..Default::default()
        }
    }

    fn model(name: &str, kind: JobKind, seen: &[&str], loaded: &[&str]) -> v1::ModelStatus {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let model = Some(v1::ModelRef { name: name.into(), ..Default::default() });
        let info = Some(v1::ModelInfo { model, kind: kind.into(), ..Default::default() });
        v1::ModelStatus { info, seen_by: ids(seen), loaded_on: ids(loaded), fetching: Vec::new() }
    }

    #[test]
    fn what_is_waited_for_is_named() {
        let talk = |seen: &[&str], loaded: &[&str]| [model("talk", JobKind::Generate, seen, loaded)];
        let say = |nodes: &[v1::NodeStatus], models: &[v1::ModelStatus]| reason(nodes, models, JobKind::Generate, "");
        let ready = [node("n-1", NodeState::Ready, "")];
        assert!(say(&[], &[]).contains("no node has joined"));
        assert!(say(&ready, &[model("words", JobKind::Embed, &["n-1"], &[])]).contains("reading their models"));
        assert_eq!(say(&ready, &talk(&["n-1"], &[])), "n-1 is loading talk");
        assert_eq!(say(&ready, &talk(&["n-1"], &["n-1"])), "talk is busy: 2 attempts run on n-1");
        let silent = [node("n-1", NodeState::Suspect, "silent for over 3 s"), node("n-2", NodeState::Ready, "")];
        let told = say(&silent, &talk(&["n-1"], &["n-1"]));
        assert!(told.contains("n-1 is suspect (silent for over 3 s)"), "{told}");
        let other = reason(&ready, &talk(&["n-1"], &[]), JobKind::Generate, "another");
        assert!(other.contains("reading their models"), "{other}");
    }
}
