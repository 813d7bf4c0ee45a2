//! The options that every daemon takes.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::LogFormat;

/// Options shared by all daemons; flatten them into the daemon's own `clap` parser.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CommonArgs {
    /// TOML file with settings; every setting can also come from the environment
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address for gRPC; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address for /metrics, /healthz and /readyz; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Read and check the settings, say what is wrong, and end with 0 (good) or 2 (not)
    #[arg(long)]
    pub check_config: bool,
    /// How log lines look; auto is text on a terminal and JSON otherwise
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Write the addresses taken to this file, as JSON, once serving
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

impl CommonArgs {
    /// The settings these options stand for, as the last layer of [`crate::config::load`].
    #[must_use]
    pub fn overrides(&self) -> toml::Table {
        let mut table = toml::Table::new();
        if let Some(listen) = self.listen {
            table.insert("listen".into(), listen.to_string().into());
        }
        if let Some(metrics) = self.metrics {
            table.insert("metrics".into(), metrics.to_string().into());
        }
        if let Some(format) = self.log_format {
            let mut telemetry = toml::Table::new();
            telemetry.insert("log_format".into(), format.as_str().into());
            table.insert("telemetry".into(), telemetry.into());
        }
        table
    }
}
