//! `ingle nodes`: what machines there are, what they have and do; drain one and give it work again.

use std::time::Duration;

use clap::{Args, Subcommand};
use ingle_proto::v1::{self, NodeState};
use serde_json::{Value, json};

use super::drain::DrainArgs;
use super::swap::SwapArgs;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json;
use crate::out::{Colour, Out};

/// How often a draining node is looked at.
pub(super) const POLL: Duration = Duration::from_millis(500);

/// Machines that run models: list, show, drain, swap, uncordon
#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// List the nodes
    #[command(after_help = "Examples:\n  ingle nodes list\n  ingle nodes list --json")]
    List,
    /// Show one node with what it has and does
    #[command(after_help = "Examples:\n  ingle nodes show node-1")]
    Show(NodeArgs),
    /// Take a node out of service: its work finishes or goes back, and its process ends
    #[command(after_help = "Examples:\n  ingle nodes drain node-1 --deadline 5m\n  ingle nodes drain node-1 --stay")]
    Drain(DrainArgs),
    /// Replace a node by another: wait for the new one, load there what the old one holds, drain the old one to its end
    #[command(
        after_help = "Examples:\n  ingle nodes swap nuc-2 strix-1\n  ingle nodes swap nuc-2 strix-1 --deadline 5m"
    )]
    Swap(SwapArgs),
    /// Let a drained node take work again
    #[command(after_help = "Examples:\n  ingle nodes uncordon node-1")]
    Uncordon(NodeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node: its identifier, the beginning of it, or its name
    node: String,
}

pub(crate) async fn run(client: &Client, command: NodesCommand) -> Result<(), Failure> {
    let out = client.out;
    let nodes = list(client).await?;
    match command {
        NodesCommand::Swap(args) => super::swap::run(client, &args).await,
        NodesCommand::List if out.json => {
            out.json(&json!({ "nodes": nodes.iter().map(json::node).collect::<Value>() }))
        }
        NodesCommand::List => table(out, &nodes),
        NodesCommand::Show(args) => show(out, find(&nodes, &args.node)?),
        NodesCommand::Drain(args) => super::drain::run(client, &args).await,
        NodesCommand::Uncordon(args) => {
            let node_id = find(&nodes, &args.node)?.node_id.clone();
            let mut cluster = client.cluster().await?;
            let request = v1::UncordonNodeRequest { node_id };
            let node = client.call(cluster.uncordon_node(client.request(request))).await?.node.unwrap_or_default();
            show(out, &node)
        }
    }
}

pub(super) async fn list(client: &Client) -> Result<Vec<v1::NodeStatus>, Failure> {
    let mut cluster = client.cluster().await?;
    Ok(client.call(cluster.list_nodes(client.request(v1::ListNodesRequest {}))).await?.nodes)
}

/// A node by identifier, by name, or by the beginning of its identifier if only one begins so.
pub(super) fn find<'a>(nodes: &'a [v1::NodeStatus], wanted: &str) -> Result<&'a v1::NodeStatus, Failure> {
    let exactly = nodes.iter().find(|n| n.node_id == wanted);
    let matching = |test: &dyn Fn(&v1::NodeStatus) -> bool| -> Vec<&'a v1::NodeStatus> {
        nodes.iter().filter(|n| test(n)).collect()
    };
    let mut found = exactly.map(|n| vec![n]).unwrap_or_default();
    if found.is_empty() {
        found = matching(&|n| n.name == wanted);
    }
    if found.is_empty() && !wanted.is_empty() {
        found = matching(&|n| n.node_id.starts_with(wanted));
    }
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let mut failure = Failure::new(Exit::NotFound, format!("no node {wanted:?}"))
                .hint("`ingle nodes list` shows the nodes there are");
            failure.code = Some(ingle_proto::ErrorCode::NodeNotFound.as_str());
            Err(failure)
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|n| n.node_id.as_str()).collect();
            Err(Failure::usage(format!("{wanted:?} names {} nodes: {}", several.len(), ids.join(", "))))
        }
    }
}

fn table(out: Out, nodes: &[v1::NodeStatus]) -> Result<(), Failure> {
    if nodes.is_empty() {
        return out.line("no nodes; `ingle-node` joins with the coordinator's address in its settings");
    }
    let now = human::now_ms();
    let rows = nodes.iter().map(|node| {
        let capacity = node.capacity.clone().unwrap_or_default();
        let models: Vec<String> = node.loaded.iter().filter_map(|l| l.model.as_ref().map(|m| m.name.clone())).collect();
        vec![
            node.node_id.clone(),
            node.name.clone(),
            state(out, node.state()),
            capacity.cores.to_string(),
            format!("{} of {}", human::bytes(node.memory_reserved), human::bytes(capacity.memory_budget_bytes)),
            format!("{}/{}", node.running, capacity.slots),
            models.join(", "),
            human::age(node.last_beat_ms, now),
        ]
    });
    out.table(&["NODE", "NAME", "STATE", "CORES", "MEMORY", "RUNNING", "MODELS", "BEAT"], rows.collect())
}

fn state(out: Out, state: NodeState) -> String {
    let word = json::node_state(state);
    match state {
        NodeState::Ready => out.paint(Colour::Green, &word),
        NodeState::Suspect | NodeState::Draining | NodeState::Drained => out.paint(Colour::Yellow, &word),
        NodeState::Lost => out.paint(Colour::Red, &word),
        NodeState::Unspecified => word,
    }
}

pub(super) fn show(out: Out, node: &v1::NodeStatus) -> Result<(), Failure> {
    if out.json {
        return out.json(&json::node(node));
    }
    let capacity = node.capacity.clone().unwrap_or_default();
    let busy = std::time::Duration::from_millis(node.busy_ms);
    out.facts(&[
        ("node", node.node_id.clone()),
        ("name", node.name.clone()),
        ("state", state(out, node.state())),
        ("reason", node.reason.clone()),
        ("breakers", super::explaining::breakers(node)),
        ("address", node.address.clone()),
        ("version", node.version.clone()),
        ("processor", format!("{} ({} cores; {})", capacity.cpu, capacity.cores, capacity.instruction_sets.join(" "))),
        (
            "memory",
            format!(
                "{}; models may take {}, hold {}",
                human::bytes(capacity.memory_bytes),
                human::bytes(capacity.memory_budget_bytes),
                human::bytes(node.memory_reserved)
            ),
        ),
        (
            "measured",
            format!(
                "{}/s from memory, {} operations/s",
                human::bytes(capacity.memory_bandwidth.max(0.0) as u64),
                human::count(capacity.compute_f32.max(0.0) as u64)
            ),
        ),
        ("engine", capacity.backend.clone()),
        ("devices", capacity.devices.join(", ")),
        (
            "running",
            format!("{} of {} slots, busy {} since it joined", node.running, capacity.slots, human::duration(busy)),
        ),
        ("last beat", human::age(node.last_beat_ms, human::now_ms())),
    ])?;
    if node.loaded.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let speed = |v: f64| if v > 0.0 { format!("{v:.0}/s") } else { "–".to_owned() };
    let rows = node.loaded.iter().map(|l| {
        vec![
            l.model.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
            human::bytes(l.memory_bytes),
            format!("{}/{}", l.free_slots, l.slots),
            speed(l.prefill_tokens_per_second),
            speed(l.decode_tokens_per_second),
            if l.document_bytes_per_second > 0.0 {
                format!("{}/s", human::bytes(l.document_bytes_per_second as u64))
            } else {
                "–".into()
            },
        ]
    });
    out.table(&["MODEL", "MEMORY", "FREE", "TOKENS READ", "TOKENS WRITTEN", "DOCUMENTS"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_found_by_name_and_beginning() {
        let node =
            |id: &str, name: &str| v1::NodeStatus { node_id: id.into(), name: name.into(), ..Default::default() };
        let nodes = [node("n-abc1", "nuc"), node("n-abd2", "strix"), node("n-x", "nuc")];
        assert_eq!(find(&nodes, "strix").expect("by name").node_id, "n-abd2");
        assert_eq!(find(&nodes, "n-abc").expect("by beginning").node_id, "n-abc1");
        assert_eq!(find(&nodes, "n-x").expect("exactly").node_id, "n-x");
        assert_eq!(find(&nodes, "nuc").expect_err("two").exit, Exit::Usage);
        assert_eq!(find(&nodes, "n-ab").expect_err("two").exit, Exit::Usage);
        assert_eq!(find(&nodes, "pi").expect_err("none").exit, Exit::NotFound);
        assert_eq!(find(&nodes, "").expect_err("none").exit, Exit::NotFound);
    }
}
