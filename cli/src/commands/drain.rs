//! `ingle nodes drain`: a machine out of service, with what is still waited for.

use std::time::{Duration, Instant};

use clap::Args;
use ingle_proto::v1::{self, DrainPhase, NodeState};
use serde_json::json;

use super::nodes::{POLL, find, list, show};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human::{self, parse_duration};
use crate::json;
use crate::out::note;

/// How long a node may be away, or a coordinator silent, before we stop looking: another leader finds its nodes sooner.
const AWAY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node that was told to end may take: its own bounds add up to less.
const END_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The node: its identifier, the beginning of it, or its name
    node: String,
    /// How long what runs may take to finish; after that it goes back
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
    /// Keep it attached and drained, for `ingle nodes uncordon`; otherwise its process ends
    #[arg(long)]
    stay: bool,
    /// Return at once; the drain goes on
    #[arg(long)]
    no_wait: bool,
    /// What happens anyway; for scripts of earlier versions
    #[arg(long, hide = true, conflicts_with = "no_wait")]
    wait: bool,
}

/// Drains a node and tells how far that is, until it has left or has nothing left.
pub(crate) async fn run(client: &Client, args: &DrainArgs) -> Result<(), Failure> {
    let out = client.out;
    let node_id = find(&list(client).await?, &args.node)?.node_id.clone();
    let node = ask(client, &node_id, args.deadline, args.stay).await?;
    if args.no_wait {
        return show(out, &node);
    }
    let ended = wait(client, node).await?;
    if out.json {
        let mut value = json::node(&ended.last);
        value["left"] = json!(ended.left);
        return out.json(&value);
    }
    out.line(if ended.left {
        format!("{node_id} has left: its process has ended. Started again it takes work")
    } else {
        format!("{node_id} is drained and stays; `ingle nodes uncordon {node_id}` lets it work again")
    })
}

/// Asks for a drain.
pub(super) async fn ask(
    client: &Client,
    node_id: &str,
    deadline: Option<Duration>,
    stay: bool,
) -> Result<v1::NodeStatus, Failure> {
    let deadline_ms = deadline.map_or(0, |d| human::now_ms() + i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 2));
    let mut cluster = client.cluster().await?;
    let request = v1::DrainNodeRequest { node_id: node_id.to_owned(), deadline_ms, stay };
    Ok(client.call(cluster.drain_node(client.request(request))).await?.node.unwrap_or_default())
}

/// How a drain ended.
pub(super) struct Ended {
    /// The node as it was last seen.
    pub(super) last: v1::NodeStatus,
    /// Its process has ended; otherwise it stays.
    pub(super) left: bool,
}

/// Looks until the drain has ended, and tells people what it waits for.
pub(super) async fn wait(client: &Client, asked: v1::NodeStatus) -> Result<Ended, Failure> {
    let node_id = asked.node_id.clone();
    tokio::select! {
        ended = watch(client, asked) => ended,
        _ = tokio::signal::ctrl_c() => {
            Err(Failure::new(Exit::Interrupted, format!("stopped waiting; {node_id} goes on draining")))
        }
    }
}

async fn watch(client: &Client, asked: v1::NodeStatus) -> Result<Ended, Failure> {
    let mut progress = Progress { last: asked, told_to_end: false };
    let mut said: Vec<String> = Vec::new();
    let mut away: Option<Instant> = None;
    let mut ending: Option<Instant> = None;
    let first = progress.last.clone();
    let mut seen = Ok(Some(first));
    loop {
        let step = match seen {
            Ok(node) => progress.see(node),
            Err(failure) if failure_passes(&failure) => Step::Away(failure.message),
            Err(failure) => return Err(failure),
        };
        let (lines, patience) = match step {
            Step::Ended(left) => return Ok(Ended { last: progress.last, left }),
            Step::Failed(words) => return Err(Failure::new(Exit::WorkFailed, words)),
            Step::Waits(lines) => {
                (away, ending) = (None, None);
                (lines, None)
            }
            Step::Ends(lines) => {
                away = None;
                (lines, Some((*ending.get_or_insert_with(Instant::now), END_WITHIN)))
            }
            Step::Away(words) => (vec![words], Some((*away.get_or_insert_with(Instant::now), AWAY_WITHIN))),
        };
        if let Some((since, within)) = patience
            && since.elapsed() > within
        {
            let words = format!("{}, for {}; the drain goes on", lines.join("; "), human::duration(within));
            return Err(Failure::new(Exit::WorkFailed, words).hint(
                "`ingle nodes list` shows the node; a process that doesn't end (an older version doesn't know how) is \
                 ended by hand",
            ));
        }
        for line in lines.iter().filter(|line| !said.contains(line)) {
            note(client.out, format!("{}: {line}", progress.last.node_id));
        }
        said = lines;
        tokio::time::sleep(POLL).await;
        seen = list(client).await.map(|nodes| nodes.into_iter().find(|node| node.node_id == progress.last.node_id));
    }
}

/// Whether another look may see more: a coordinator that restarts, or another that takes over.
fn failure_passes(failure: &Failure) -> bool {
    failure.retryable()
}

/// What one look says.
#[derive(Debug, PartialEq)]
enum Step {
    /// It has: the process has ended, or the node stays.
    Ended(bool),
    /// It won't.
    Failed(String),
    /// For what.
    Waits(Vec<String>),
    /// Only the process is waited for.
    Ends(Vec<String>),
    /// Nobody can say at the moment.
    Away(String),
}

struct Progress {
    last: v1::NodeStatus,
    told_to_end: bool,
}

impl Progress {
    fn see(&mut self, node: Option<v1::NodeStatus>) -> Step {
        let id = self.last.node_id.clone();
        let Some(node) = node else {
            // It is forgotten when it has said goodbye, which may be before we saw that it was told to.
            return Step::Ended(true);
        };
        let drain = node.drain.clone();
        let state = node.state();
        let word = json::node_state(state);
        if state != NodeState::Lost {
            self.last = node;
        }
        let Some(drain) = drain else {
            return match state {
                NodeState::Draining => Step::Waits(vec![running(self.last.running, 0)]),
                // An older coordinator tells nothing more, and has told nobody to end.
                NodeState::Drained => Step::Ended(false),
                NodeState::Lost => Step::Away(format!("{id} is lost")),
                _ if self.told_to_end => Step::Ended(true),
                _ => Step::Failed(format!("{id} is {word} instead of drained: somebody let it work again")),
            };
        };
        let mut lines: Vec<String> = drain.models.iter().map(model).collect();
        match drain.phase() {
            DrainPhase::Drained => Step::Ended(false),
            DrainPhase::Away if self.told_to_end => Step::Ends(vec!["its process ends".to_owned()]),
            DrainPhase::Away => Step::Away(format!("it is {word} and not attached")),
            DrainPhase::Leaving => {
                self.told_to_end = true;
                lines.push("nothing is left; its process ends".to_owned());
                Step::Ends(lines)
            }
            DrainPhase::Warming | DrainPhase::Finishing | DrainPhase::Unspecified => {
                lines.push(running(drain.batches, drain.calls));
                Step::Waits(lines)
            }
        }
    }
}

fn running(batches: u32, calls: u32) -> String {
    match (batches, calls) {
        (0, 0) => "nothing runs there any more".to_owned(),
        (batches, 0) => format!("waiting for {batches} batches"),
        (0, calls) => format!("waiting for {calls} answers"),
        (batches, calls) => format!("waiting for {batches} batches and {calls} answers"),
    }
}

fn model(warming: &v1::ModelWarming) -> String {
    let v1::ModelWarming { model, node_id, done, problem } = warming;
    match (done, node_id.is_empty()) {
        (false, _) => format!("loading {model} on {node_id}, for nobody else holds it"),
        (true, false) => format!("{model} is loaded on {node_id}"),
        (true, true) if problem.is_empty() => format!("{model} is loaded elsewhere"),
        (true, true) => format!("{model} isn't loaded elsewhere, and the drain goes on: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(state: NodeState, drain: Option<v1::DrainStatus>) -> Option<v1::NodeStatus> {
        Some(v1::NodeStatus { node_id: "n-1".into(), state: state.into(), drain, ..Default::default() })
    }

    fn phase(phase: DrainPhase) -> Option<v1::DrainStatus> {
        Some(v1::DrainStatus { phase: phase.into(), batches: 2, calls: 1, ..Default::default() })
    }

    fn progress() -> Progress {
        Progress { last: v1::NodeStatus { node_id: "n-1".into(), ..Default::default() }, told_to_end: false }
    }

    #[test]
    fn a_drain_is_followed_to_its_end() {
        let mut seen = progress();
        let warming = v1::DrainStatus {
            models: vec![
                v1::ModelWarming { model: "m".into(), node_id: "n-2".into(), ..Default::default() },
                v1::ModelWarming { model: "big".into(), done: true, problem: "too big".into(), ..Default::default() },
            ],
            ..phase(DrainPhase::Warming).expect("given")
        };
        let Step::Waits(lines) = seen.see(node(NodeState::Draining, Some(warming))) else { panic!("it waits") };
        assert_eq!(
            lines,
            [
                "loading m on n-2, for nobody else holds it",
                "big isn't loaded elsewhere, and the drain goes on: too big",
                "waiting for 2 batches and 1 answers"
            ]
        );
        // Another leader has not found its nodes yet.
        assert!(matches!(seen.see(node(NodeState::Lost, phase(DrainPhase::Away))), Step::Away(_)));
        assert!(matches!(seen.see(node(NodeState::Draining, phase(DrainPhase::Finishing))), Step::Waits(_)));
        assert!(matches!(seen.see(node(NodeState::Drained, phase(DrainPhase::Leaving))), Step::Ends(_)));
        assert!(matches!(seen.see(node(NodeState::Lost, phase(DrainPhase::Away))), Step::Ends(_)));
        assert_eq!(seen.last.state(), NodeState::Drained, "as it was last seen");
        assert_eq!(seen.see(None), Step::Ended(true));
        assert_eq!(seen.see(node(NodeState::Ready, None)), Step::Ended(true), "it was started again");
    }

    #[test]
    fn one_that_stays_or_is_let_work_again_is_told_apart() {
        assert_eq!(progress().see(node(NodeState::Drained, phase(DrainPhase::Drained))), Step::Ended(false));
        assert!(matches!(progress().see(node(NodeState::Ready, None)), Step::Failed(_)));
        // As an older coordinator tells it.
        assert!(matches!(progress().see(node(NodeState::Draining, None)), Step::Waits(_)));
        assert_eq!(progress().see(node(NodeState::Drained, None)), Step::Ended(false));
    }
}
