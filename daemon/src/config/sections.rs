//! The sections that every daemon's settings hold: `[tls]` and `[telemetry]`, and the rule that plaintext stays local.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// `[tls]`: PEM files for the listener and for connections to other daemons.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates of the authority that signed our peers' certificates; with it, clients must show one.
    pub ca: Option<PathBuf>,
    /// Our certificate, with its chain.
    pub cert: Option<PathBuf>,
    /// The key of `cert`.
    pub key: Option<PathBuf>,
}

impl TlsConfig {
    /// Whether our listener speaks TLS.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.cert.is_some() && self.key.is_some()
    }

    /// Whether our connections speak TLS.
    #[must_use]
    pub fn connects(&self) -> bool {
        self.ca.is_some()
    }

    /// Checks that the three go together.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that is missing.
    pub fn check(&self) -> Result<(), ConfigError> {
        match (&self.cert, &self.key, &self.ca) {
            (Some(_), None, _) => Err(ConfigError::invalid("tls.key", "is required when tls.cert is set")),
            (None, Some(_), _) => Err(ConfigError::invalid("tls.cert", "is required when tls.key is set")),
            _ => Ok(()),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl LogFormat {
    /// As it is written in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// `[telemetry]`: logs and traces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Which lines are written, e.g. `info,ingle_gateway=debug`.
    pub log: String,
    /// Where spans go (OTLP over gRPC, e.g. `http://127.0.0.1:4317`); nowhere if absent.
    pub otlp_endpoint: Option<String>,
    /// How log lines look.
    pub log_format: LogFormat,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".into(), otlp_endpoint: None, log_format: LogFormat::Auto }
    }
}

impl TelemetryConfig {
    /// Checks the collector's address.
    ///
    /// # Errors
    /// [`ConfigError`] names `telemetry.otlp_endpoint`.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(()) };
        let uri = endpoint.parse::<http::Uri>().ok();
        let good = uri.is_some_and(|uri| {
            uri.scheme_str() == Some("http")
                && uri.port_u16().is_some()
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        if good {
            return Ok(());
        }
        Err(ConfigError::invalid(
            "telemetry.otlp_endpoint",
            format!(
                "`{endpoint}`: expected http://HOST:PORT, e.g. http://127.0.0.1:4317; \
                 for a collector elsewhere run one here that forwards over TLS"
            ),
        ))
    }
}

/// Refuses to listen in plaintext where other machines can reach us.
///
/// # Errors
/// [`ConfigError`] names `listen` and `tls.cert`.
pub fn check_loopback(listen: SocketAddr, tls: &TlsConfig) -> Result<(), ConfigError> {
    tls.check()?;
    if listen.ip().is_loopback() || tls.serves() {
        return Ok(());
    }
    Err(ConfigError::invalid(
        "listen",
        format!(
            "{listen} can be reached from other machines, and without TLS anyone there could use it: \
             set tls.cert, tls.key and tls.ca, or listen on 127.0.0.1"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_stays_on_loopback() {
        let none = TlsConfig::default();
        let full = TlsConfig { ca: Some("a".into()), cert: Some("c".into()), key: Some("k".into()) };
        let check = |addr: &str, tls: &TlsConfig| check_loopback(addr.parse().expect("an address"), tls);
        assert!(check("127.0.0.1:7700", &none).is_ok());
        assert!(check("[::1]:7700", &none).is_ok());
        assert!(check("192.0.2.1:7700", &full).is_ok());
        for addr in ["0.0.0.0:7700", "[::]:7700", "192.0.2.1:7700"] {
            let error = check(addr, &none).expect_err("plaintext for the world").to_string();
            assert!(error.contains("tls.cert") && error.contains(addr), "{error}");
        }
    }

    #[test]
    fn collectors_are_addressed_in_full() {
        let check = |endpoint: &str| {
            TelemetryConfig { otlp_endpoint: Some(endpoint.to_owned()), ..TelemetryConfig::default() }.check()
        };
        assert_eq!(TelemetryConfig::default().check(), Ok(()));
        assert_eq!(check("http://127.0.0.1:4317"), Ok(()));
        for bad in ["", "127.0.0.1:4317", "http://127.0.0.1", "https://collector.example:4317", "http://:1", "\0"] {
            let error = check(bad).expect_err(bad).to_string();
            assert!(error.contains("telemetry.otlp_endpoint"), "{error}");
        }
    }

    #[test]
    fn half_a_tls_section_is_refused() {
        let half = TlsConfig { cert: Some("c".into()), ..TlsConfig::default() };
        let error = check_loopback("127.0.0.1:1".parse().expect("an address"), &half).expect_err("no key");
        assert!(error.to_string().contains("tls.key"), "{error}");
    }
}
