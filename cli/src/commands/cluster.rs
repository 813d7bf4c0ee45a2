//! `ingle cluster`: what concerns the coordinators themselves.

use std::path::PathBuf;
use std::process::Stdio;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::up::binary;

const MIGRATE_EXAMPLES: &str = "\
Examples:
  sudo systemctl stop ingle-coordinator
  # in the settings: membership = 'etcd://10.0.0.11,10.0.0.12,10.0.0.13'
  sudo -u inglenook ingle cluster migrate-store --config /etc/inglenook/coordinator.toml
  sudo systemctl start ingle-coordinator";

/// Look after the coordinators
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    MigrateStore(MigrateArgs),
}

/// Move the jobs of a coordinator's disk into etcd, so that several coordinators can run
///
/// Run it once, on the coordinator's host and as its user, while it is stopped. All jobs come along, the ended ones too. The store
/// in etcd must hold none. The file stays, as jobs.sqlite.migrated.
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_EXAMPLES)]
pub(crate) struct MigrateArgs {
    /// The coordinator's settings, with membership in etcd
    #[arg(long, value_name = "FILE", default_value = "/etc/inglenook/coordinator.toml")]
    config: PathBuf,
}

pub(crate) async fn run(client: &Client, command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::MigrateStore(args) => migrate(client, &args).await,
    }
}

/// The coordinator's own program knows its stores.
async fn migrate(client: &Client, args: &MigrateArgs) -> Result<(), Failure> {
    let program = binary("ingle-coordinator")?;
    let mut command = tokio::process::Command::new(&program);
    command.arg("--migrate-store").arg("--config").arg(&args.config).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command
        .stderr(Stdio::piped())
        .output()
        .await
        .map_err(|error| Failure::new(Exit::WorkFailed, format!("{}: {error}", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // One line says what is wrong; the others are its log.
        let reason = said.lines().rev().find_map(|line| line.strip_prefix("ingle-coordinator: "));
        let reason = reason.or(said.lines().rev().find(|line| !line.trim().is_empty())).unwrap_or("it said nothing");
        return Err(Failure::new(Exit::WorkFailed, format!("the jobs were not moved: {reason}"))
            .hint("nothing is lost: set right what is wrong and run it again"));
    }
    if client.out.json {
        return client.out.json(&json!({ "migrated": true }));
    }
    client.out.line("the jobs are in etcd; start the coordinators now")
}
