//! `ingle status`: the cluster in a few numbers.

use clap::Args;
use ingle_proto::v1;
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::Failure;
use crate::out::Colour;

const EXAMPLES: &str = "\
Examples:
  ingle status
  ingle status --json --coordinator http://127.0.0.1:7700";

/// Show the cluster in a few numbers
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {}

pub(crate) async fn run(client: &Client, _: StatusArgs) -> Result<(), Failure> {
    let mut cluster = client.cluster().await?;
    let status = client.call(cluster.get_status(client.request(v1::GetStatusRequest {}))).await?;
    let epoch = status.epoch.unwrap_or_default();
    if client.out.json {
        return client.out.json(&to_json(&status));
    }
    let out = client.out;
    let gateway = if status.gateway_ready {
        format!("{} {}", status.gateway, out.paint(Colour::Green, "ready"))
    } else {
        format!("{} {}", status.gateway, out.paint(Colour::Red, "not ready: no documents can be read or written"))
    };
    let nodes = format!("{} of {} ready", status.nodes_ready, status.nodes_total);
    let nodes = if status.nodes_ready == 0 { out.paint(Colour::Red, &nodes) } else { nodes };
    out.facts(&[
        (
            "coordinator",
            format!("{}, version {}, epoch {}.{}", client.endpoint, status.version, epoch.generation, epoch.revision),
        ),
        ("gateway", gateway),
        ("nodes", nodes),
        ("open jobs", status.jobs_open.to_string()),
        ("documents", format!("{} queued, {} running", status.items_queued, status.items_running)),
    ])
}

/// The few numbers, for scripts.
pub(crate) fn to_json(status: &v1::GetStatusResponse) -> Value {
    let epoch = status.epoch.unwrap_or_default();
    json!({
        "version": status.version,
        "epoch": { "generation": epoch.generation, "revision": epoch.revision },
        "nodes_ready": status.nodes_ready, "nodes_total": status.nodes_total,
        "jobs_open": status.jobs_open,
        "items_queued": status.items_queued, "items_running": status.items_running,
        "gateway": status.gateway, "gateway_ready": status.gateway_ready,
    })
}
