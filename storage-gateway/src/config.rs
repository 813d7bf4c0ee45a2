//! Settings of the gateway: what the file and the environment (`INGLE_GATEWAY_…`) may hold, defaults, and checks.

mod iscsi;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ingle_daemon::config::{ConfigError, TelemetryConfig, TlsConfig};
use ingle_daemon::run::Settings;
use serde::{Deserialize, Serialize};

pub use self::iscsi::IscsiConfig;
use crate::cache::CacheConfig;
use crate::export::iscsi::{IscsiExport, IscsiOptions};
use crate::export::nfs::{GROUPS_MAX, NfsExport, NfsOptions, TRANSFER_MAX, TRANSFER_MIN};
use crate::limits::Limits;
use crate::principals::{self, Ids, Unmapped};
use crate::rules::{DOCUMENT_BYTES_CEILING, Hidden, Rules};

/// Prefix of environment variables.
pub const PREFIX: &str = "INGLE_GATEWAY";
/// Name under which metrics and errors speak of the state export.
pub const STATE_EXPORT: &str = "state";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics are served; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// What others dial to reach us, `HOST:PORT`; `listen` if absent.
    pub advertise: Option<String>,
    /// Where to register: `http://HOST:PORT` of a coordinator, or `etcd://HOST,HOST`; nowhere if absent.
    pub membership: Option<String>,
    /// Name for etcd, if it asks.
    pub etcd_user: Option<String>,
    /// Password of `etcd_user`.
    pub etcd_password: Option<String>,
    /// Holds the highest epoch seen, our identity, and the list of places. A local disk, not the NAS.
    pub state_dir: PathBuf,
    /// Where blobs lie; `<state_dir>/state` if absent.
    pub state_export: Option<ExportConfig>,
    /// What is served, by the name that jobs use.
    pub exports: BTreeMap<String, ExportConfig>,
    /// The endpoint for what is large, beside gRPC.
    pub ranges: RangesConfig,
    /// Pieces of files kept here.
    pub cache: CacheConfig,
    /// Who principals are on the NAS, by the names that requests carry.
    pub principals: BTreeMap<String, Ids>,
    /// What a principal gets that has no entry there: `export` (the export's own user) or `refuse`.
    pub principals_default: Unmapped,
    /// Caps.
    pub limits: Limits,
    /// Certificates.
    pub tls: TlsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Where files are served over HTTP/1.1, for what is large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RangesConfig {
    /// Whether they are.
    pub enabled: bool,
    /// Where; if absent the port after gRPC's, or any free one if that is taken. Nodes ask for it over gRPC.
    pub listen: Option<SocketAddr>,
    /// Socket for nodes on this machine; `<state_dir>/ranges.sock` if absent.
    pub socket: Option<PathBuf>,
}

impl RangesConfig {
    /// Where ranges are served by default beside gRPC's `address`.
    #[must_use]
    pub fn beside(&self, address: SocketAddr) -> Option<SocketAddr> {
        address.port().checked_add(1).map(|port| SocketAddr::new(address.ip(), port))
    }
}

impl Default for RangesConfig {
    fn default() -> Self {
        Self { enabled: true, listen: None, socket: None }
    }
}

/// One export.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// `nfs://HOST[:PORT]/PATH`, `iscsi://HOST[:PORT]/TARGET/LUN[?partition=N]` or `file:///DIRECTORY`.
    pub url: String,
    /// Nothing is ever written to it.
    #[serde(default)]
    pub read_only: bool,
    /// Output places lie at one of these paths or below it; anywhere if there is none.
    #[serde(default)]
    pub output_prefixes: Vec<String>,
    /// Names that begin with a dot: `named` (not listed, but who names one gets it), `listed` (like any others) or `refused`
    /// (neither); `.inglenook` never.
    #[serde(default)]
    pub hidden: Hidden,
    /// Largest document with pages that is read from it, in bytes, in place of `limits.document_bytes_max`.
    #[serde(default)]
    pub document_bytes_max: Option<u64>,
    /// How an `nfs://` server is talked to.
    #[serde(default)]
    pub nfs: NfsConfig,
    /// How an `iscsi://` target is talked to.
    #[serde(default)]
    pub iscsi: IscsiConfig,
}

/// How an NFS server is talked to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NfsConfig {
    /// User id presented to the server; this process's own if absent.
    pub uid: Option<u32>,
    /// Group id presented to the server; this process's own if absent.
    pub gid: Option<u32>,
    /// Further groups, at most 16.
    pub groups: Vec<u32>,
    /// TCP connections, 1 to 16.
    pub connections: usize,
    /// Longest that one call to the server may take, in seconds, 1 to 600.
    pub deadline_s: u64,
    /// Bytes of one READ, 4096 to 1048576 and never more than the server takes; what it prefers if absent.
    pub read_size: Option<u32>,
    /// Bytes of one WRITE, likewise.
    pub write_size: Option<u32>,
}

impl Default for NfsConfig {
    fn default() -> Self {
        let usual = NfsOptions::default();
        Self {
            uid: None,
            gid: None,
            groups: Vec::new(),
            connections: usual.connections,
            deadline_s: usual.deadline.as_secs(),
            read_size: None,
            write_size: None,
        }
    }
}

impl NfsConfig {
    /// As the client takes it.
    #[must_use]
    pub fn options(&self) -> NfsOptions {
        let usual = NfsOptions::default();
        NfsOptions {
            deadline: Duration::from_secs(self.deadline_s),
            connections: self.connections,
            uid: self.uid.unwrap_or(usual.uid),
            gid: self.gid.unwrap_or(usual.gid),
            groups: self.groups.clone(),
            read_size: self.read_size,
            write_size: self.write_size,
        }
    }

    fn check(&self, key: &str) -> Result<(), ConfigError> {
        let invalid = |name: &str, words: &str| Err(ConfigError::invalid(format!("{key}.nfs.{name}"), words));
        if !(1..=16).contains(&self.connections) {
            return invalid("connections", "expected 1 to 16");
        }
        if !(1..=600).contains(&self.deadline_s) {
            return invalid("deadline_s", "expected 1 to 600 seconds");
        }
        if self.groups.len() > GROUPS_MAX {
            return invalid("groups", "expected at most 16");
        }
        for (name, size) in [("read_size", self.read_size), ("write_size", self.write_size)] {
            if size.is_some_and(|size| !(TRANSFER_MIN..=TRANSFER_MAX).contains(&size)) {
                return invalid(name, "expected 4096 to 1048576 bytes");
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7720)),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 7782))),
            advertise: None,
            membership: None,
            etcd_user: None,
            etcd_password: None,
            state_dir: PathBuf::from("/var/lib/inglenook/gateway"),
            state_export: None,
            exports: BTreeMap::new(),
            ranges: RangesConfig::default(),
            cache: CacheConfig::default(),
            principals: BTreeMap::new(),
            principals_default: Unmapped::default(),
            limits: Limits::default(),
            tls: TlsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Config {
    /// Where blobs lie.
    #[must_use]
    pub fn state_export(&self) -> ExportConfig {
        self.state_export.clone().unwrap_or_else(|| ExportConfig {
            url: format!("file://{}", self.state_dir.join("state").display()),
            ..ExportConfig::default()
        })
    }
}

impl Settings for Config {
    fn listen(&self) -> SocketAddr {
        self.listen
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let ranges = self.ranges.listen.or_else(|| self.ranges.beside(self.listen)).filter(|_| self.ranges.enabled);
        std::iter::once(self.listen).chain(self.metrics).chain(ranges).collect()
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
        for (name, export) in &self.exports {
            let key = format!("exports.{name}");
            ingle_proto::storage::export_name(name).map_err(|problem| ConfigError::invalid(&key, problem.message))?;
            check_url(&format!("{key}.url"), &export.url)?;
            export.nfs.check(&key)?;
            Rules::new(&key, export)?;
            export.iscsi.check(&key)?;
        }
        principals::check(&self.principals)?;
        let state = self.state_export();
        check_url("state_export.url", &state.url)?;
        if state.url.starts_with("iscsi://") {
            return Err(ConfigError::invalid("state_export.url", "blobs are written there, and iscsi:// is only read"));
        }
        if state.read_only {
            return Err(ConfigError::invalid("state_export.read_only", "is true, but blobs are written there"));
        }
        if self.etcd_user.is_some() != self.etcd_password.is_some() {
            return Err(ConfigError::invalid("etcd_password", "etcd_user and etcd_password go together"));
        }
        if self.membership.is_none() && self.advertise.is_some() {
            return Err(ConfigError::invalid("advertise", "is told to members, but membership isn't set"));
        }
        if let Some(listen) = self.ranges.listen {
            ingle_daemon::config::check_loopback(listen, &self.tls)
                .map_err(|error| ConfigError::invalid("ranges.listen", error))?;
        }
        for (key, value, most) in
            [("cache.memory_mib", self.cache.memory_mib, 1 << 20), ("cache.disk_mib", self.cache.disk_mib, 1 << 30)]
        {
            if value > most {
                return Err(ConfigError::invalid(key, format!("expected 0 to {most}, got {value}")));
            }
        }
        let limits = &self.limits;
        for (key, value, most) in [
            ("limits.reads_max", limits.reads_max, 65_536),
            ("limits.read_mib_max", limits.read_mib_max, 1 << 20),
            ("limits.reads_waiting_max", limits.reads_waiting_max, 1 << 20),
            ("limits.scans_max", limits.scans_max, 1024),
            ("limits.scan_entries_max", limits.scan_entries_max, 100_000_000),
        ] {
            if !(1..=most).contains(&value) {
                return Err(ConfigError::invalid(key, format!("expected 1 to {most}, got {value}")));
            }
        }
        if !(1..=DOCUMENT_BYTES_CEILING).contains(&limits.document_bytes_max) {
            let words = format!("expected 1 to {DOCUMENT_BYTES_CEILING} (16 GiB), got {}", limits.document_bytes_max);
            return Err(ConfigError::invalid("limits.document_bytes_max", words));
        }
        Ok(())
    }
}

fn check_url(key: &str, url: &str) -> Result<(), ConfigError> {
    let expected = "expected nfs://HOST/PATH, iscsi://HOST/TARGET/LUN or file:///DIRECTORY";
    match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => Ok(()),
        // Read, not dialled: a NAS that is down is no mistake of the settings.
        Some(("nfs", _)) => {
            NfsExport::new(url, &NfsOptions::default()).map(drop).map_err(|error| ConfigError::invalid(key, error))
        }
        Some(("iscsi", _)) => {
            IscsiExport::new(url, &IscsiOptions::default()).map(drop).map_err(|error| ConfigError::invalid(key, error))
        }
        // Not shown: a password may stand in it.
        _ if url.contains('@') => Err(ConfigError::invalid(key, expected)),
        _ => Err(ConfigError::invalid(key, format!("{url:?}: {expected}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let config: Config = ingle_daemon::config::load_from(PREFIX, Some(&file), Vec::new(), toml::Table::new())
            .map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_usual_file_is_taken() {
        let config = load(
            "state_dir = '/tmp/x'\nprincipals_default = 'refuse'\n[exports.docs]\nurl = 'nfs://nas/docs'\nread_only = true\n\
             nfs.read_size = 65536\n[exports.out]\nurl = 'file:///srv/out'\noutput_prefixes = ['results']\nhidden = 'listed'\n\
             document_bytes_max = 1000\n[principals.anna]\nuid = 1000\ngid = 100\n",
        )
        .unwrap();
        assert_eq!(config.exports["docs"].nfs.options().read_size, Some(65_536));
        assert_eq!((config.principals["anna"].uid, config.principals_default), (1000, Unmapped::Refuse));
        assert_eq!((config.exports["out"].hidden, config.exports["docs"].hidden), (Hidden::Listed, Hidden::Named));
        assert!(config.exports["docs"].read_only);
        assert_eq!(config.state_export().url, "file:///tmp/x/state");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("[exports.'a b']\nurl = 'file:///x'", "exports.a b"),
            ("[exports.docs]\nurl = 'file://relative'", "exports.docs.url"),
            ("etcd_user = 'root'\n[exports.docs]\nurl = 'file:///x'", "etcd_password"),
            ("[exports.docs]\nurl = 'http://x/y'", "exports.docs.url"),
            ("[exports.docs]\nurl = 'iscsi://x/y/0'", "iqn."),
            ("[state_export]\nurl = 'iscsi://x/iqn.y/0'", "only read"),
            (
                "[exports.docs]\nurl = 'iscsi://x/iqn.y/0'\n[exports.docs.iscsi]\nuser = 'gw'",
                "docs.iscsi.password_file",
            ),
            ("[exports.docs]\nurl = 'iscsi://x/iqn.y/0'\n[exports.docs.iscsi]\npassword = 'x'", "password"),
            ("[exports.docs]\nurl = 'iscsi://x/iqn.y/0'\n[exports.docs.iscsi]\ndepth = 0", "docs.iscsi.depth"),
            (
                "[exports.docs]\nurl = 'iscsi://x/iqn.y/0'\n[exports.docs.iscsi]\ninitiator = 'me'",
                "docs.iscsi.initiator",
            ),
            ("[exports.docs]\nurl = 'nfs:///y'", "exports.docs.url"),
            ("[exports.docs]\nread_only = true", "url"),
            ("[exports.docs]\nurl = 'file:///x'\nreadonly = true", "readonly"),
            ("[state_export]\nurl = 'file:///x'\nread_only = true", "state_export.read_only"),
            ("advertise = '10.0.0.5:7720'", "advertise"),
            ("[limits]\nreads_max = 0", "limits.reads_max"),
            ("[limits]\ndocument_bytes_max = 0", "limits.document_bytes_max"),
            ("[exports.docs]\nurl = 'file:///x'\noutput_prefixes = ['..']", "exports.docs.output_prefixes"),
            ("[exports.docs]\nurl = 'file:///x'\ndocument_bytes_max = 0", "exports.docs.document_bytes_max"),
            ("[exports.docs]\nurl = 'nfs://nas/docs'\nnfs.write_size = 512", "docs.nfs.write_size"),
            ("[principals.anna]\nuid = 1000", "gid"),
            ("principals_default = 'nobody'", "principals_default"),
            ("[exports.docs]\nurl = 'nfs://nas/docs'\n[exports.docs.nfs]\nconnections = 17", "docs.nfs.connections"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
