//! Settings of the node: their names, defaults and ranges, and the command line that can set the most used ones.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ingle_daemon::config::{ConfigError, TelemetryConfig, TlsConfig, check_loopback};
use ingle_daemon::{CommonArgs, Settings};
use ingle_proto::job::DOCUMENT_BYTES_MAX;
use ingle_proto::storage::Object;
use serde::{Deserialize, Serialize};

/// Command line of `ingle-node`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "ingle-node", version = ingle_daemon::version(), about = "Loads models and runs what the coordinator asks")]
pub struct Args {
    /// Options that all daemons take.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where the models lie: nas://EXPORT/path, or a local directory
    #[arg(long, value_name = "URL")]
    pub models: Option<String>,
    /// The coordinator to register with, HOST:PORT
    #[arg(long, value_name = "ENDPOINT")]
    pub coordinator: Option<String>,
    /// Where to register instead: registry://HOST:PORT or etcd://HOST,HOST
    #[arg(long, value_name = "URL")]
    pub membership: Option<String>,
    /// Directory for the node's identity
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory for cached weights
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

impl Args {
    /// The settings that our own options stand for.
    #[must_use]
    pub fn overrides(&self) -> toml::Table {
        let mut table = toml::Table::new();
        let mut set = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        };
        set("models", self.models.clone());
        set("coordinator", self.coordinator.clone());
        set("membership", self.membership.clone());
        set("state_dir", self.state_dir.as_ref().map(|path| path.display().to_string()));
        set("cache_dir", self.cache_dir.as_ref().map(|path| path.display().to_string()));
        table
    }
}

/// Settings of the node. In the environment `INGLE_NODE_…`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Address of `Node.Work`.
    pub listen: SocketAddr,
    /// Address of `Node.Beat`.
    pub beat_listen: SocketAddr,
    /// Address of metrics; empty serves none.
    pub metrics: Option<SocketAddr>,
    /// Address that the coordinator dials for work, `HOST:PORT`; default `listen`.
    pub advertise: Option<String>,
    /// Address that the coordinator dials for beats; default `beat_listen`.
    pub beat_advertise: Option<String>,
    /// For people; default the host's name.
    pub name: Option<String>,
    /// Holds the identity key and the highest epoch.
    pub state_dir: PathBuf,
    /// Holds cached weights and files in the making.
    pub cache_dir: PathBuf,
    /// Most bytes of cached weights.
    pub cache_bytes_max: u64,
    /// Largest document with pages, in bytes; the gateway's `limits.document_bytes_max` says which are listed at all.
    pub document_bytes_max: u64,
    /// Most bytes of documents in `cache_dir`, in use or kept for another range of their pages; at least twice the above.
    pub spool_bytes_max: u64,
    /// `nas://EXPORT/path` or a local directory; none if absent.
    pub models: Option<String>,
    /// Gateway to read from, `HOST:PORT`; default the one the coordinator names.
    pub gateway: Option<String>,
    /// Coordinator to register with, `HOST:PORT`; without it and `membership` nobody is told of us.
    pub coordinator: Option<String>,
    /// Or where members register in general: `registry://HOST:PORT` or `etcd://HOST[:PORT][,HOST…]`.
    pub membership: Option<String>,
    /// Name and password for etcd, if it asks.
    pub etcd_user: Option<String>,
    /// See `etcd_user`.
    pub etcd_password: Option<String>,
    /// Bytes of memory left to the system; default a tenth, at least 512 MiB, at most 4 GiB.
    pub memory_reserve_bytes: Option<u64>,
    /// Compute threads; 0 takes all cores.
    pub threads: usize,
    /// Tokens of context per request.
    pub context: u32,
    /// Requests in a model at once, and attempts taken at once.
    pub slots: u32,
    /// Milliseconds that measuring the machine may take at start; 0 measures nothing.
    pub measure_ms: u64,
    /// Seconds after which an engine that makes no step is given up, and the process ends to be started anew, 1 to 3600.
    pub engine_stall_s: u64,
    /// Seconds that running work may take to end once we are asked to stop.
    pub drain_timeout_s: u64,
    /// PEM files.
    pub tls: TlsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7710)),
            beat_listen: SocketAddr::from(([127, 0, 0, 1], 7711)),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 7781))),
            advertise: None,
            beat_advertise: None,
            name: None,
            state_dir: PathBuf::from("node-state"),
            cache_dir: PathBuf::from("node-cache"),
            cache_bytes_max: 64 << 30,
            document_bytes_max: DOCUMENT_BYTES_MAX,
            spool_bytes_max: 8 << 30,
            models: None,
            gateway: None,
            coordinator: None,
            membership: None,
            etcd_user: None,
            etcd_password: None,
            memory_reserve_bytes: None,
            threads: 0,
            context: 4096,
            slots: 4,
            measure_ms: 300,
            engine_stall_s: 120,
            drain_timeout_s: 25,
            tls: TlsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Where models are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelsRoot {
    /// Through the gateway.
    Object(Object),
    /// On this machine; used in place.
    Directory(PathBuf),
}

impl NodeConfig {
    /// Where models are looked for.
    ///
    /// # Errors
    /// [`ConfigError`] for a URL of another kind.
    pub fn models_root(&self) -> Result<Option<ModelsRoot>, ConfigError> {
        let Some(models) = self.models.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        if models.starts_with("nas://") {
            return Object::parse(models)
                .map(|object| Some(ModelsRoot::Object(object)))
                .map_err(|problem| ConfigError::invalid("models", problem.message));
        }
        let path = models.strip_prefix("file://").unwrap_or(models);
        if path.contains("://") {
            return Err(ConfigError::invalid(
                "models",
                format!("expected nas://EXPORT/path or a directory, got {models}"),
            ));
        }
        Ok(Some(ModelsRoot::Directory(PathBuf::from(path))))
    }

    /// URL of the members' store to register with.
    #[must_use]
    pub fn membership_url(&self) -> Option<String> {
        match (&self.membership, &self.coordinator) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(endpoint)) if endpoint.contains("://") => Some(endpoint.clone()),
            (None, Some(endpoint)) => Some(format!("registry://{endpoint}")),
            (None, None) => None,
        }
    }

    /// Compute threads to use.
    #[must_use]
    pub fn compute_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        }
    }

    /// Documents of jobs that may be open in processes of their own at a time: one per slot, but no more than there are
    /// compute threads to read their pages, and two at least.
    #[must_use]
    pub fn parsers(&self) -> u32 {
        let threads = u32::try_from(self.compute_threads()).unwrap_or(u32::MAX);
        self.slots.min(threads.max(2))
    }

    /// Bytes left to the system on a machine of `memory_bytes`.
    #[must_use]
    pub fn reserve_bytes(&self, memory_bytes: u64) -> u64 {
        self.memory_reserve_bytes.unwrap_or_else(|| (memory_bytes / 10).clamp(512 << 20, 4 << 30))
    }

    /// How we are called for people.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(crate::device::host_name)
    }
}

impl Settings for NodeConfig {
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
        check_loopback(self.beat_listen, &self.tls).map_err(|error| ConfigError::invalid("beat_listen", error))?;
        self.models_root()?;
        range("threads", self.threads as u64, 0, 1024)?;
        range("context", u64::from(self.context), 16, 1 << 20)?;
        range("slots", u64::from(self.slots), 1, 256)?;
        range("measure_ms", self.measure_ms, 0, 10_000)?;
        range("engine_stall_s", self.engine_stall_s, 1, 3600)?;
        range("drain_timeout_s", self.drain_timeout_s, 1, 3600)?;
        range("cache_bytes_max", self.cache_bytes_max, 1 << 20, 1 << 50)?;
        range("document_bytes_max", self.document_bytes_max, 1 << 20, 16 << 30)?;
        range("spool_bytes_max", self.spool_bytes_max, 2 * self.document_bytes_max, 1 << 42)?;
        if self.name.as_ref().is_some_and(|name| name.len() > 255 || name.chars().any(char::is_control)) {
            return Err(ConfigError::invalid("name", "expected at most 255 bytes without control characters"));
        }
        if self.coordinator.is_some() && self.membership.is_some() {
            return Err(ConfigError::invalid("membership", "set either coordinator or membership, not both"));
        }
        if self.etcd_user.is_some() != self.etcd_password.is_some() {
            return Err(ConfigError::invalid("etcd_password", "etcd_user and etcd_password go together"));
        }
        Ok(())
    }

    fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_s)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        [self.listen, self.beat_listen].into_iter().chain(self.metrics).collect()
    }
}

fn range(key: &str, value: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::invalid(key, format!("expected {low} to {high}, got {value}")))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn defaults_are_good_and_ranges_are_named() {
        assert!(NodeConfig::default().check().is_ok());
        for (key, bad) in [
            ("slots", NodeConfig { slots: 0, ..Default::default() }),
            ("context", NodeConfig { context: 1, ..Default::default() }),
            ("document_bytes_max", NodeConfig { document_bytes_max: 1 << 40, ..Default::default() }),
            ("spool_bytes_max", NodeConfig { spool_bytes_max: 1 << 30, ..Default::default() }),
            ("threads", NodeConfig { threads: 5000, ..Default::default() }),
            ("engine_stall_s", NodeConfig { engine_stall_s: 0, ..Default::default() }),
            ("drain_timeout_s", NodeConfig { drain_timeout_s: 0, ..Default::default() }),
            ("models", NodeConfig { models: Some("s3://x/y".into()), ..Default::default() }),
            ("models", NodeConfig { models: Some("nas://docs/../x".into()), ..Default::default() }),
            ("beat_listen", NodeConfig { beat_listen: "0.0.0.0:1".parse().unwrap(), ..Default::default() }),
            ("name", NodeConfig { name: Some("a\nb".into()), ..Default::default() }),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(key), "{key}");
        }
    }

    #[test]
    fn options_become_settings() {
        let args =
            Args::parse_from(["ingle-node", "--models", "nas://m/x", "--state-dir", "/s", "--listen", "127.0.0.1:0"]);
        let table = args.overrides();
        assert_eq!(table["models"].as_str(), Some("nas://m/x"));
        assert_eq!(table["state_dir"].as_str(), Some("/s"));
        assert!(!table.contains_key("cache_dir"));
    }

    #[test]
    fn a_reserve_is_kept() {
        let config = NodeConfig::default();
        assert_eq!(config.reserve_bytes(1 << 30), 512 << 20);
        assert_eq!(config.reserve_bytes(20 << 30), 2 << 30);
        assert_eq!(config.reserve_bytes(512 << 30), 4 << 30);
    }
}
