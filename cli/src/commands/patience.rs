//! What a person is told while a call has no answer yet: after a moment why, and again whenever that changes. And calls that
//! are put off: asked again when the coordinator says.

use std::future::Future;
use std::time::{Duration, Instant};

use ingle_proto::ErrorCode;
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

/// How long a call lets itself be put off in all, if `--timeout` doesn't say less.
const PUT_OFF_WITHIN: Duration = Duration::from_secs(60);
/// Least time before the same is asked again.
const PUT_OFF_LEAST: Duration = Duration::from_millis(100);

/// The patience of one call with a coordinator that has too much to do, or that nobody leads for the moment, and says when to
/// come again.
pub(crate) struct PutOff {
    left: Duration,
    said: Option<Instant>,
}

impl PutOff {
    pub(crate) fn new(client: &Client) -> Self {
        Self { left: client.at_most(PUT_OFF_WITHIN), said: None }
    }

    /// Waits as it was told, and answers true: ask again. False for every other failure, and where that would take too long.
    pub(crate) async fn again(&mut self, client: &Client, failure: &Failure) -> bool {
        let Some(delay) = self.delay(failure) else { return false };
        // Short delays may come one after the other: a person needn't read each of them.
        if self.said.is_none_or(|said| said.elapsed() >= LOOK_EVERY) {
            note(client.out, format!("waiting: {}; asking again in {}", failure.message, human::duration(delay)));
            self.said = Some(Instant::now());
        }
        tokio::time::sleep(delay).await;
        true
    }

    /// How long to wait before the same is asked again, taken off what is left; `None` if it shouldn't be.
    fn delay(&mut self, failure: &Failure) -> Option<Duration> {
        // Both say that nothing of the call was carried out.
        let refused = [ErrorCode::Overloaded, ErrorCode::NotLeader].map(ErrorCode::as_str);
        let refused = failure.code.is_some_and(|code| refused.contains(&code));
        let delay = failure.retry_after.filter(|_| refused)?.max(PUT_OFF_LEAST);
        self.left = self.left.checked_sub(delay)?;
        Some(delay)
    }
}

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
    fn what_says_when_to_come_again_is_asked_again_for_a_minute_in_all() {
        let failure = |code, delay| {
            let mut problem = ingle_proto::Problem::new(code, "too much to do");
            problem.retry_after = delay;
            Failure::from(problem)
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut put_off = PutOff { left: PUT_OFF_WITHIN, said: None };
        for (code, delay) in [
            (ErrorCode::Overloaded, None),
            (ErrorCode::Overloaded, seconds(61)),
            (ErrorCode::StorageFull, seconds(1)),
            (ErrorCode::NoNode, seconds(1)),
            (ErrorCode::ShuttingDown, seconds(1)),
            (ErrorCode::NotLeader, None),
        ] {
            assert_eq!(put_off.delay(&failure(code, delay)), None, "{code:?} {delay:?}");
        }
        let taken: Vec<_> =
            std::iter::from_fn(|| put_off.delay(&failure(ErrorCode::Overloaded, seconds(25)))).collect();
        assert_eq!(taken, [Duration::from_secs(25); 2], "a third one would be longer than a minute");
        let nobody_leads = failure(ErrorCode::NotLeader, seconds(2));
        assert_eq!(put_off.delay(&nobody_leads), seconds(2), "another will lead soon");
        assert_eq!(put_off.delay(&failure(ErrorCode::Overloaded, Some(Duration::ZERO))), Some(PUT_OFF_LEAST));
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
