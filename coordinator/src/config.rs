//! Settings of the coordinator: what the file and the environment (`INGLE_COORDINATOR_…`) may hold, defaults, checks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ingle_daemon::config::{ConfigError, TelemetryConfig, TlsConfig};
use ingle_daemon::grpc;
use ingle_daemon::run::Settings;
use serde::{Deserialize, Serialize};

use crate::limits;

/// Prefix of environment variables.
pub const PREFIX: &str = "INGLE_COORDINATOR";
/// `membership` of a coordinator that keeps the members itself.
pub const REGISTRY: &str = "registry";

/// Where jobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStoreKind {
    /// In `state_dir`: for one coordinator.
    Sqlite,
    /// Beside the members, for several coordinators: whichever leads has all jobs.
    Etcd,
}

/// Command line of `ingle-coordinator`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "ingle-coordinator", version = ingle_daemon::version(), about = "Accepts, persists, schedules and watches jobs")]
pub struct Args {
    /// Options that all daemons take.
    #[command(flatten)]
    pub common: ingle_daemon::CommonArgs,
    /// Directory for the job store and the coordinator's identity; a local disk, not the NAS
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The storage gateway, HOST:PORT; without it the first that registers
    #[arg(long, value_name = "ENDPOINT")]
    pub gateway: Option<String>,
    /// Where members register: `registry` (with us) or etcd://HOST,HOST
    #[arg(long, value_name = "URL")]
    pub membership: Option<String>,
    /// Move the jobs of `state_dir` into etcd, and end; run it on one host, with its coordinator stopped
    #[arg(long)]
    pub migrate_store: bool,
}

impl Args {
    /// The settings that our own options stand for.
    #[must_use]
    pub fn overrides(&self) -> toml::Table {
        let mut table = toml::Table::new();
        let state_dir = self.state_dir.as_ref().map(|path| path.display().to_string());
        for (key, value) in
            [("state_dir", state_dir), ("gateway", self.gateway.clone()), ("membership", self.membership.clone())]
        {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        }
        table
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics are served; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// What others dial to reach us, `HOST:PORT`; `listen` if absent. Told to etcd only.
    pub advertise: Option<String>,
    /// Holds the job store and our identity. A local disk, not the NAS.
    pub state_dir: PathBuf,
    /// The storage gateway, `HOST:PORT`; the first that registers if absent.
    pub gateway: Option<String>,
    /// Where members register: `registry` (with us) or `etcd://HOST[:PORT][,HOST…]`.
    pub membership: String,
    /// Where jobs are kept; absent: in etcd if the members are there, else in `state_dir`.
    pub job_store: Option<JobStoreKind>,
    /// Nodes that don't register: `WORK_HOST:PORT` or `WORK_HOST:PORT/BEAT_HOST:PORT`.
    pub nodes: Vec<String>,
    /// Seconds that calls may take to end once we are asked to stop.
    pub drain_timeout_s: u64,
    /// Name for etcd, if it asks.
    pub etcd_user: Option<String>,
    /// Password of `etcd_user`.
    pub etcd_password: Option<String>,
    /// How much etcd was told to keep (its `--quota-backend-bytes`), bytes: 64 MiB to 64 GiB. Only 3.6 and later say it themselves.
    pub etcd_quota_bytes: u64,
    /// Certificates.
    pub tls: TlsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 7780))),
            advertise: None,
            state_dir: PathBuf::from("/var/lib/inglenook/coordinator"),
            gateway: None,
            membership: REGISTRY.into(),
            job_store: None,
            nodes: Vec::new(),
            drain_timeout_s: 10,
            etcd_user: None,
            etcd_password: None,
            etcd_quota_bytes: crate::store::etcd::QUOTA_BYTES,
            tls: TlsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Config {
    /// Whether we keep the members ourselves.
    #[must_use]
    pub fn own_registry(&self) -> bool {
        self.membership == REGISTRY
    }

    /// Where jobs are kept.
    #[must_use]
    pub fn job_store(&self) -> JobStoreKind {
        let default = if self.own_registry() { JobStoreKind::Sqlite } else { JobStoreKind::Etcd };
        self.job_store.unwrap_or(default)
    }

    /// Nodes that don't register: where work and where beats are dialled.
    pub fn static_nodes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes.iter().map(|node| node.split_once('/').unwrap_or((node, node)))
    }

    fn check_endpoint(&self, key: &str, endpoint: &str) -> Result<(), ConfigError> {
        let (host, port) = endpoint.rsplit_once(':').unwrap_or_default();
        let host = host.rsplit("://").next().unwrap_or_default();
        if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(ConfigError::invalid(key, format!("{endpoint:?}: expected HOST:PORT")));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !local && !self.tls.connects() {
            let error = grpc::ConnectError::Plaintext { endpoint: endpoint.to_owned() };
            return Err(ConfigError::invalid(key, error));
        }
        Ok(())
    }
}

impl Settings for Config {
    fn listen(&self) -> SocketAddr {
        self.listen
    }

    fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    fn tls(&self) -> &TlsConfig {
        &self.tls
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.state_dir.as_os_str().is_empty() {
            return Err(ConfigError::invalid("state_dir", "is empty; expected a directory"));
        }
        if !self.own_registry() && !self.membership.starts_with("etcd://") {
            let words = format!("{:?}: expected {REGISTRY:?} or etcd://HOST[:PORT][,HOST…]", self.membership);
            return Err(ConfigError::invalid("membership", words));
        }
        if self.own_registry() && self.job_store == Some(JobStoreKind::Etcd) {
            let words = "is in etcd, but membership is our own registry; set membership to etcd://HOST[:PORT][,HOST…]";
            return Err(ConfigError::invalid("job_store", words));
        }
        if self.own_registry() && self.advertise.is_some() {
            return Err(ConfigError::invalid("advertise", "is told to etcd, but membership is our own registry"));
        }
        if self.etcd_user.is_some() != self.etcd_password.is_some() {
            return Err(ConfigError::invalid("etcd_password", "etcd_user and etcd_password go together"));
        }
        if !((64 << 20)..=(64 << 30)).contains(&self.etcd_quota_bytes) {
            let words = format!("expected 67108864 (64 MiB) to 68719476736 (64 GiB), got {}", self.etcd_quota_bytes);
            return Err(ConfigError::invalid("etcd_quota_bytes", words));
        }
        if let Some(gateway) = &self.gateway {
            self.check_endpoint("gateway", gateway)?;
        }
        if self.nodes.len() > limits::NODES_MAX {
            return Err(ConfigError::invalid("nodes", format!("expected at most {}", limits::NODES_MAX)));
        }
        for (work, beat) in self.static_nodes() {
            self.check_endpoint("nodes", work)?;
            self.check_endpoint("nodes", beat)?;
        }
        if !(1..=3600).contains(&self.drain_timeout_s) {
            let words = format!("expected 1 to 3600 seconds, got {}", self.drain_timeout_s);
            return Err(ConfigError::invalid("drain_timeout_s", words));
        }
        Ok(())
    }

    fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("coordinator.toml");
        std::fs::write(&file, text).unwrap();
        let config: Config = ingle_daemon::config::load_from(PREFIX, Some(&file), Vec::new(), toml::Table::new())
            .map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn usual_files_are_taken() {
        assert_eq!(load("").unwrap(), Config::default());
        let config = load(
            "state_dir = '/s'\ngateway = '127.0.0.1:7720'\nmembership = 'etcd://localhost'\n\
             nodes = ['localhost:1/localhost:2', '[::1]:3']",
        )
        .unwrap();
        assert!(!config.own_registry());
        assert_eq!(config.job_store(), JobStoreKind::Etcd);
        let alone = load("membership = 'etcd://localhost'\njob_store = 'sqlite'").unwrap();
        assert_eq!((alone.job_store(), Config::default().job_store()), (JobStoreKind::Sqlite, JobStoreKind::Sqlite));
        assert_eq!(config.static_nodes().collect::<Vec<_>>(), [("localhost:1", "localhost:2"), ("[::1]:3", "[::1]:3")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("state_dir = ''", "state_dir"),
            ("membership = 'zookeeper://x'", "membership"),
            ("gateway = 'nas'", "gateway"),
            ("gateway = '192.0.2.1:7720'", "tls.ca"),
            ("gateway = 'localhost:99999'", "gateway"),
            ("nodes = ['localhost:1/']", "nodes"),
            ("nodes = ['host/path']", "nodes"),
            ("advertise = 'localhost:1'", "advertise"),
            ("job_store = 'etcd'", "membership"),
            ("job_store = 'paper'", "job_store"),
            ("etcd_user = 'root'", "etcd_password"),
            ("drain_timeout_s = 0", "drain_timeout_s"),
            ("drain_timeout_s = -1", "drain_timeout_s"),
            ("statedir = '/s'", "state_dir"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn options_become_settings() {
        let args = Args::parse_from(["ingle-coordinator", "--gateway", "localhost:1", "--state-dir", "/s"]);
        let table = args.overrides();
        assert_eq!(table["gateway"].as_str(), Some("localhost:1"));
        assert_eq!(table["state_dir"].as_str(), Some("/s"));
        assert!(!table.contains_key("membership"));
    }
}
