//! From a URL in the settings to a store of members.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc;
use ingle_daemon::tls::TlsError;

use crate::etcd::Etcd;
use crate::limits::CALL_DEADLINE;
use crate::memory::Memory;
use crate::remote::Remote;
use crate::seam::Membership;

/// Where etcd listens if the URL doesn't say.
const ETCD_PORT: u16 = 2379;

/// A user of etcd. Its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("user", &self.user).finish_non_exhaustive()
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Files for TLS; without `tls.ca` only this machine is spoken to.
    pub tls: TlsConfig,
    /// Whom etcd knows us as, if it asks.
    pub etcd_user: Option<EtcdUser>,
    /// Bound on every call.
    pub deadline: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { tls: TlsConfig::default(), etcd_user: None, deadline: CALL_DEADLINE }
    }
}

/// No store of members, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Not a URL of a store.
    #[error(
        "membership `{url}`: {reason}; expected etcd://HOST[:PORT][,HOST…], registry://HOST:PORT, \
             http(s)://HOST:PORT or memory"
    )]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It doesn't answer.
    #[error("membership `{url}` can't be reached: {reason}")]
    Unreachable {
        /// As given.
        url: String,
        /// What the transport said.
        reason: String,
    },
    /// The connection's settings can't be used.
    #[error(transparent)]
    Grpc(#[from] grpc::ConnectError),
    /// The TLS files can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ConnectError {
    /// Whether trying again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Grpc(error) => error.retryable(),
            Self::Url { .. } | Self::Tls(_) => false,
        }
    }
}

/// Connects to a store of members: `etcd://host1[:2379],host2`, `registry://host:port` or `http(s)://host:port` (a
/// coordinator's registry), or `memory` (a registry of this process alone).
///
/// # Errors
/// [`ConnectError`]; an unreachable store is found out by the first call unless etcd asks for a user.
pub async fn connect(url: &str, options: &ConnectOptions) -> Result<Arc<dyn Membership>, ConnectError> {
    if url == "memory" {
        return Ok(Arc::new(Memory::new()));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(ConnectError::Url { url: url.to_owned(), reason: "it has no scheme".into() });
    };
    match scheme {
        "etcd" => Ok(Arc::new(Etcd::connect(url, options).await?)),
        // Speaks TLS where there is an authority to check the other side by.
        "registry" => Ok(Arc::new(Remote::connect(rest, &options.tls)?.deadline(options.deadline))),
        "http" | "https" => Ok(Arc::new(Remote::connect(url, &options.tls)?.deadline(options.deadline))),
        _ => Err(ConnectError::Url { url: url.to_owned(), reason: format!("`{scheme}` is no scheme of ours") }),
    }
}

/// The endpoints of an `etcd://` URL, as etcd's client takes them.
pub(crate) fn etcd_endpoints(url: &str, tls: &TlsConfig) -> Result<Vec<String>, ConnectError> {
    let bad = |reason: String| ConnectError::Url { url: url.to_owned(), reason };
    let hosts = url.strip_prefix("etcd://").ok_or_else(|| bad("it doesn't start with etcd://".into()))?;
    if hosts.contains('@') {
        return Err(ConnectError::Url {
            // The URL holds a password: don't repeat it.
            url: "etcd://…@…".to_owned(),
            reason: "it holds a user: set user and password in the settings".into(),
        });
    }
    let scheme = if tls.connects() { "https" } else { "http" };
    let mut endpoints = Vec::new();
    for host in hosts.trim_end_matches('/').split(',') {
        let uri: http::Uri = format!("{scheme}://{host}").parse().map_err(|_| bad(format!("`{host}` is no host")))?;
        let name = uri.host().filter(|name| !name.is_empty()).ok_or_else(|| bad(format!("`{host}` is no host")))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad(format!("`{host}` is more than a host")));
        }
        if !tls.connects() && !is_loopback(name) {
            return Err(grpc::ConnectError::Plaintext { endpoint: host.to_owned() }.into());
        }
        endpoints.push(format!("{scheme}://{name}:{}", uri.port_u16().unwrap_or(ETCD_PORT)));
    }
    Ok(endpoints)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_urls_become_endpoints() {
        let plain = TlsConfig::default();
        let secure = TlsConfig { ca: Some("ca.pem".into()), ..TlsConfig::default() };
        let check = |url: &str, tls: &TlsConfig, expected: &[&str]| {
            assert_eq!(etcd_endpoints(url, tls).expect(url), expected, "{url}");
        };
        check("etcd://localhost", &plain, &["http://localhost:2379"]);
        check("etcd://127.0.0.1:9,[::1]:8/", &plain, &["http://127.0.0.1:9", "http://[::1]:8"]);
        check("etcd://a,b.example:1", &secure, &["https://a:2379", "https://b.example:1"]);
        for url in ["etcd://", "etcd://a b", "etcd://localhost,,", "etcd://localhost/x", "http://localhost"] {
            let error = etcd_endpoints(url, &plain).expect_err(url);
            assert!(!error.retryable() && error.to_string().contains("expected etcd://"), "{error}");
        }
        let error = etcd_endpoints("etcd://192.0.2.1", &plain).expect_err("plaintext").to_string();
        assert!(error.contains("tls.ca"), "{error}");
        let error = etcd_endpoints("etcd://root:secret@localhost", &plain).expect_err("a password").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn urls_choose_the_store() {
        let options = ConnectOptions::default();
        for url in ["memory", "registry://127.0.0.1:1", "http://localhost:1", "etcd://localhost:1"] {
            assert!(connect(url, &options).await.is_ok(), "{url}");
        }
        for url in ["", "zookeeper://x", "registry://192.0.2.1:1", "https://localhost:1", "registry://127.0.0.1"] {
            assert!(connect(url, &options).await.is_err_and(|error| !error.retryable()), "{url}");
        }
    }
}
