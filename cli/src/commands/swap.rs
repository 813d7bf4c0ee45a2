//! `ingle nodes swap`: one machine out of service, another in, in the order in which nobody notices.

use std::time::{Duration, Instant};

use clap::Args;
use ingle_proto::v1::{self, NodeState};
use serde_json::json;

use super::nodes::{POLL, drained, find, list};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human::{self, parse_duration};
use crate::json;
use crate::out::note;

#[derive(Debug, Args)]
pub(crate) struct SwapArgs {
    /// The node that goes: its identifier, the beginning of it, or its name
    old: String,
    /// The node that comes; it may still have to join
    new: String,
    /// How long to wait for the new node to join and be ready
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    join_within: Duration,
    /// How long what runs on the old node may take to finish; after that it goes back
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    deadline: Option<Duration>,
}

/// Waits for the new node, loads there what the old one holds, then drains the old one.
pub(crate) async fn run(client: &Client, args: &SwapArgs) -> Result<(), Failure> {
    let old = find(&list(client).await?, &args.old)?.clone();
    let new = joined(client, &args.new, args.join_within).await?;
    if new.node_id == old.node_id {
        return Err(Failure::usage(format!("{} and {} are the same node", args.old, args.new)));
    }
    let loaded = warm(client, &old, &new).await?;
    let deadline_ms =
        args.deadline.map_or(0, |d| human::now_ms() + i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 2));
    note(client.out, format!("draining {}: {} running", old.node_id, old.running));
    let mut cluster = client.cluster().await?;
    let request = v1::DrainNodeRequest { node_id: old.node_id.clone(), deadline_ms };
    client.call(cluster.drain_node(client.request(request))).await?;
    drained(client, &old.node_id).await?;
    if client.out.json {
        return client.out.json(&json!({ "old": old.node_id, "new": new.node_id, "models": loaded }));
    }
    client.out.line(format!(
        "{} is drained and may be switched off; {} works in its place. For a machine that left for good: \
         ingle nodes uncordon {}",
        old.node_id, new.node_id, old.node_id
    ))
}

/// The new node, once it takes work.
async fn joined(client: &Client, wanted: &str, within: Duration) -> Result<v1::NodeStatus, Failure> {
    let (begun, mut said) = (Instant::now(), String::new());
    loop {
        let nodes = list(client).await?;
        let waits = match find(&nodes, wanted) {
            Ok(node) if node.state() == NodeState::Ready => return Ok(node.clone()),
            Ok(node) => format!("{wanted} is {}", json::node_state(node.state())),
            Err(failure) if failure.exit == Exit::NotFound => format!("{wanted} has not joined"),
            Err(failure) => return Err(failure),
        };
        if begun.elapsed() > within {
            let words = format!("{waits}, after {}; nothing was drained", human::duration(within));
            return Err(Failure::new(Exit::TryLater, words)
                .hint("`ingle nodes list` shows who is there; --join-within gives it longer"));
        }
        if waits != said {
            note(client.out, format!("waiting: {waits}"));
            said = waits;
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Exit::Interrupted, "stopped waiting; nothing was drained"));
            }
        }
    }
}

/// Loads on the new node what the old one holds. What it doesn't see or can't hold is said, and is no reason to stop: others
/// may have it.
async fn warm(client: &Client, old: &v1::NodeStatus, new: &v1::NodeStatus) -> Result<Vec<String>, Failure> {
    let mut loaded = Vec::new();
    for model in old.loaded.iter().filter_map(|loaded| loaded.model.as_ref()) {
        let mut models = client.models().await?;
        let request = v1::LoadModelRequest { model: model.name.clone(), node_id: new.node_id.clone() };
        match client.long_call(models.load_model(client.long_request(request))).await {
            Ok(answer) => {
                let took = human::duration(Duration::from_millis(answer.load_ms));
                note(client.out, format!("{} is loaded on {} in {took}", model.name, new.node_id));
                loaded.push(model.name.clone());
            }
            Err(failure) => {
                note(client.out, format!("{} isn't loaded on {}: {}", model.name, new.node_id, failure.message))
            }
        }
    }
    Ok(loaded)
}
