//! `ingle nodes drain` and `swap`: what is asked, what is told meanwhile, and how it ends.

use std::sync::Mutex;

use ingle_proto::v1::{self, DrainPhase, NodeState};
use ingle_proto::{ErrorCode, Problem};

use super::coordinator::{Coordinator, Script};
use super::{code, json, stderr, stdout};

fn node(id: &str, state: NodeState, drain: Option<v1::DrainStatus>) -> v1::NodeStatus {
    v1::NodeStatus { node_id: id.into(), name: format!("name-{id}"), state: state.into(), drain, ..Default::default() }
}

fn holding(models: &[&str], node: v1::NodeStatus) -> v1::NodeStatus {
    let loaded = models.iter().map(|name| v1::LoadedModel {
        model: Some(v1::ModelRef { name: (*name).into(), ..Default::default() }),
        ..Default::default()
    });
    v1::NodeStatus { loaded: loaded.collect(), ..node }
}

fn draining(phase: DrainPhase, batches: u32, models: Vec<v1::ModelWarming>) -> Vec<v1::NodeStatus> {
    let state = if phase == DrainPhase::Leaving { NodeState::Drained } else { NodeState::Draining };
    let status = v1::DrainStatus { phase: phase.into(), batches, models, ..Default::default() };
    vec![node("n-1", state, Some(status)), node("n-2", NodeState::Ready, None)]
}

fn ready() -> Vec<v1::NodeStatus> {
    vec![node("n-1", NodeState::Ready, None), node("n-2", NodeState::Ready, None)]
}

/// As the command looks: to find the node, twice, and then at how far it is.
fn leaves() -> Script {
    let warming = |done| v1::ModelWarming { model: "m".into(), node_id: "n-2".into(), done, ..Default::default() };
    let looks = vec![
        ready(),
        ready(),
        draining(DrainPhase::Warming, 2, vec![warming(false)]),
        draining(DrainPhase::Finishing, 1, vec![warming(true)]),
        draining(DrainPhase::Leaving, 0, vec![warming(true)]),
        vec![node("n-2", NodeState::Ready, None)],
    ];
    Script { looks: Mutex::new(looks.into()), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_told_until_the_process_has_ended() {
    let coordinator = Coordinator::start(leaves()).await;
    let output = coordinator.ingle(&["nodes", "drain", "name-n-1", "--deadline", "5m"]).await;
    let said = stderr(&output);
    assert_eq!(code(&output), 0, "{said}");
    for expected in ["loading m on n-2", "waiting for 1 batches", "m is loaded on n-2", "its process ends"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(stdout(&output).contains("n-1 has left"), "{}", stdout(&output));
    let asked = coordinator.script.drains.lock().expect("no panic").clone();
    assert!(asked.len() == 1 && !asked[0].stay && asked[0].deadline_ms > 0, "{asked:?}");

    let coordinator = Coordinator::start(leaves()).await;
    let output = coordinator.ingle(&["nodes", "drain", "n-1", "--json"]).await;
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    let told = json(&stdout(&output));
    assert_eq!((&told["left"], &told["drain"]["phase"]), (&serde_json::json!(true), &serde_json::json!("leaving")));
    assert_eq!(told["drain"]["models"][0]["node_id"], "n-2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stays_is_told_as_drained_and_nobody_has_to_wait() {
    let stays = v1::DrainStatus { phase: DrainPhase::Drained.into(), stays: true, ..Default::default() };
    let drained = vec![node("n-1", NodeState::Drained, Some(stays))];
    let looks = vec![ready(), ready(), drained];
    let coordinator = Coordinator::start(Script { looks: Mutex::new(looks.into()), ..Script::default() }).await;
    let output = coordinator.ingle(&["nodes", "drain", "n-1", "--stay"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("ingle nodes uncordon n-1"), "{}", stdout(&output));
    assert!(coordinator.script.drains.lock().expect("no panic")[0].stay);

    let looks = vec![ready(), ready(), draining(DrainPhase::Finishing, 3, Vec::new())];
    let coordinator = Coordinator::start(Script { looks: Mutex::new(looks.into()), ..Script::default() }).await;
    let output = coordinator.ingle(&["nodes", "drain", "n-1", "--no-wait", "--json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json(&stdout(&output))["state"], "draining");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_waits_for_the_models_and_then_for_the_end() {
    let old = || holding(&["m", "vast"], node("n-1", NodeState::Ready, None));
    let (coming, come) = (node("n-2", NodeState::Suspect, None), node("n-2", NodeState::Ready, None));
    let both = vec![old(), holding(&["m"], come.clone())];
    let looks = vec![
        vec![old()],
        vec![old()],
        vec![old()],
        vec![old(), coming],
        vec![old(), come],
        both.clone(),
        both,
        draining(DrainPhase::Leaving, 0, Vec::new()),
        vec![node("n-2", NodeState::Ready, None)],
    ];
    let loadings = vec![
        Err(Problem::new(ErrorCode::NoNode, "the model is on its way")),
        Ok(()),
        Err(Problem::new(ErrorCode::ModelDoesNotFit, "it is too large")),
    ];
    let script = Script { looks: Mutex::new(looks.into()), loadings: Mutex::new(loadings.into()), ..Script::default() };
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&["nodes", "swap", "n-1", "n-2"]).await;
    let said = stderr(&output);
    assert_eq!(code(&output), 0, "{said}");
    for expected in [
        "n-2 has not joined",
        "n-2 is suspect",
        "m isn't loaded on n-2 yet",
        "m is loaded on n-2",
        "vast isn't loaded on n-2",
        "draining n-1",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(stdout(&output).contains("n-1 has left"), "{}", stdout(&output));
    let loads: Vec<String> =
        coordinator.script.loads.lock().expect("no panic").iter().map(|load| load.model.clone()).collect();
    assert_eq!(loads, ["m", "m", "vast"]);
    let drains = coordinator.script.drains.lock().expect("no panic").clone();
    assert!(drains.len() == 1 && drains[0].node_id == "n-1" && !drains[0].stay, "{drains:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_whose_new_node_never_has_the_model_drains_nothing() {
    let nodes = vec![holding(&["m"], node("n-1", NodeState::Ready, None)), node("n-2", NodeState::Ready, None)];
    let loadings = vec![Err(Problem::new(ErrorCode::NoNode, "the model is on its way"))];
    let script =
        Script { looks: Mutex::new([nodes].into()), loadings: Mutex::new(loadings.into()), ..Script::default() };
    let coordinator = Coordinator::start(script).await;
    let output = coordinator.ingle(&["nodes", "swap", "n-1", "n-2", "--join-within", "1s"]).await;
    let said = stderr(&output);
    assert!(code(&output) != 0 && said.contains("nothing was drained") && said.contains("--join-within"), "{said}");
    assert!(coordinator.script.drains.lock().expect("no panic").is_empty());
}
