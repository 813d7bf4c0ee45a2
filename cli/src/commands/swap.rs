//! `ingle nodes swap`: one machine out of service, another in, in the order in which nobody notices.

use std::time::{Duration, Instant};

use clap::Args;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, NodeState};
use serde_json::json;

use super::drain::{ask, wait};
use super::nodes::{POLL, find, list};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human::{self, parse_duration};
use crate::json;
use crate::out::note;

/// How long a node that is ready may not have seen a model yet: it lists its models as it starts.
const SEEN_WITHIN: Duration = Duration::from_secs(15);
/// How long the coordinator may take to tell what a node said that it has loaded.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct SwapArgs {
    /// The node that goes: its identifier, the beginning of it, or its name
    old: String,
    /// The node that comes; it may still have to join
    new: String,
    /// How long to wait for the new node to join, be ready and have loaded what the old one holds
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    join_within: Duration,
    /// How long what runs on the old node may take to finish; after that it goes back
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
}

/// How long is left, and what was said last.
struct Patience {
    begun: Instant,
    within: Duration,
    said: String,
}

/// Waits for the new node, loads there what the old one holds, then drains the old one to its end.
pub(crate) async fn run(client: &Client, args: &SwapArgs) -> Result<(), Failure> {
    let old = find(&list(client).await?, &args.old)?.node_id.clone();
    let (new, loaded) = tokio::select! {
        made_ready = make_ready(client, args, &old) => made_ready?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(Exit::Interrupted, "stopped waiting; nothing was drained"));
        }
    };
    note(client.out, format!("draining {old}"));
    let asked = ask(client, &old, args.deadline, false).await?;
    let ended = wait(client, asked).await?;
    if client.out.json {
        return client.out.json(&json!({ "old": old, "new": new, "models": loaded, "left": ended.left }));
    }
    client.out.line(if ended.left {
        format!("{old} has left: its process has ended, and the machine may be switched off; {new} works in its place")
    } else {
        format!(
            "{old} is drained and may be switched off; {new} works in its place. For a machine that left for good: \
             ingle nodes uncordon {old}"
        )
    })
}

/// Until the new node is ready and holds what the old one does: the new one's identifier, and the models.
async fn make_ready(client: &Client, args: &SwapArgs, old: &str) -> Result<(String, Vec<String>), Failure> {
    let mut patience = Patience { begun: Instant::now(), within: args.join_within, said: String::new() };
    let new = joined(client, &args.new, &mut patience).await?;
    if new.node_id == old {
        return Err(Failure::usage(format!("{} and {} are the same node", args.old, args.new)));
    }
    // As it is now: the new one may have taken long to come.
    let holds = find(&list(client).await?, old)?.loaded.clone();
    let models: Vec<String> = holds.into_iter().filter_map(|loaded| Some(loaded.model?.name)).collect();
    let mut loaded = Vec::new();
    for model in models {
        if load(client, &model, &new.node_id, &mut patience).await? {
            loaded.push(model);
        }
    }
    let held = held(client, &new.node_id, &loaded).await?;
    for model in loaded.iter().filter(|model| !held.contains(model)) {
        note(client.out, format!("{model} is not held by {} any more: it has no room for all of them", new.node_id));
    }
    Ok((new.node_id, held))
}

impl Patience {
    /// Waits a moment for this, or says that it took too long.
    async fn wait(&mut self, client: &Client, for_what: &str) -> Result<(), Failure> {
        if self.begun.elapsed() > self.within {
            let words = format!("{for_what}, after {}; nothing was drained", human::duration(self.within));
            return Err(Failure::new(Exit::TryLater, words)
                .hint("`ingle nodes list` shows who is there; --join-within gives it longer"));
        }
        if for_what != self.said {
            note(client.out, format!("waiting: {for_what}"));
            for_what.clone_into(&mut self.said);
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}

/// The new node, once it takes work.
async fn joined(client: &Client, wanted: &str, patience: &mut Patience) -> Result<v1::NodeStatus, Failure> {
    loop {
        let nodes = list(client).await?;
        let waits = match find(&nodes, wanted) {
            Ok(node) if node.state() == NodeState::Ready => return Ok(node.clone()),
            Ok(node) => format!("{wanted} is {}", json::node_state(node.state())),
            Err(failure) if failure.exit == Exit::NotFound => format!("{wanted} has not joined"),
            Err(failure) => return Err(failure),
        };
        patience.wait(client, &waits).await?;
    }
}

/// Loads a model on the new node. What that can't hold or will never see is said, and is no reason to stop: others may have
/// it. What is only on its way is waited for.
async fn load(client: &Client, model: &str, new: &str, patience: &mut Patience) -> Result<bool, Failure> {
    let begun = Instant::now();
    loop {
        let mut models = client.models().await?;
        let request = v1::LoadModelRequest { model: model.to_owned(), node_id: new.to_owned() };
        let left = patience.within.saturating_sub(patience.begun.elapsed()).max(POLL);
        let loading = client.long_call(models.load_model(client.long_request(request)));
        let failure = match tokio::time::timeout(left, loading).await {
            Ok(Ok(answer)) => {
                let took = human::duration(Duration::from_millis(answer.load_ms));
                note(client.out, format!("{model} is loaded on {new} in {took}"));
                return Ok(true);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(Exit::TryLater, "it is still being loaded"),
        };
        let unseen = failure.code == Some(ErrorCode::ModelNotFound.as_str()) && begun.elapsed() < SEEN_WITHIN;
        if !failure.retryable() && !unseen {
            note(client.out, format!("{model} isn't loaded on {new}: {}", failure.message));
            return Ok(false);
        }
        patience.wait(client, &format!("{model} isn't loaded on {new} yet: {}", failure.message)).await?;
    }
}

/// Which of these models the node is seen to hold; waits a moment for all of them.
async fn held(client: &Client, new: &str, models: &[String]) -> Result<Vec<String>, Failure> {
    let begun = Instant::now();
    loop {
        let nodes = list(client).await?;
        let node = find(&nodes, new)?;
        let names: Vec<&str> = node.loaded.iter().filter_map(|l| Some(l.model.as_ref()?.name.as_str())).collect();
        let held: Vec<String> = models.iter().filter(|model| names.contains(&model.as_str())).cloned().collect();
        if held.len() == models.len() || begun.elapsed() > SHOWN_WITHIN {
            return Ok(held);
        }
        tokio::time::sleep(POLL).await;
    }
}
