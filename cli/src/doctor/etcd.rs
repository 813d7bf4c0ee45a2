//! etcd, where the settings of a daemon on this machine name it: each member is asked how it is.

use std::collections::BTreeMap;
use std::path::Path;

use ingle_daemon::config::TlsConfig;
use serde::Deserialize;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsProvider, parse_pem};

use super::here::Settings;
use super::{Check, WITHIN};

/// Where a member listens unless its address says otherwise.
const PORT: &str = "2379";
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Most members that are asked.
const MEMBERS_MAX: usize = 16;

/// What a member says of itself at `/health`. It is a text there, and not a truth value.
#[derive(Debug, Deserialize)]
struct Health {
    health: String,
    #[serde(default)]
    reason: String,
}

pub(super) async fn look(settings: &[Settings], checks: &mut Vec<Check>) {
    // Several daemons of one machine name the same members: each is asked once.
    let mut members: BTreeMap<String, TlsConfig> = BTreeMap::new();
    for settings in settings {
        for member in members_of(settings.text("membership").unwrap_or_default()) {
            members.entry(member).or_insert_with(|| settings.tls());
        }
    }
    let (all, mut well) = (members.len().min(MEMBERS_MAX), 0);
    for (member, tls) in members.into_iter().take(MEMBERS_MAX) {
        // HTTP here is blocking, within its deadline.
        let asked = tokio::task::spawn_blocking(move || (health(&member, &tls), member)).await;
        let Ok((answer, member)) = asked else { continue };
        checks.push(match answer {
            Ok(()) => {
                well += 1;
                Check::ok("etcd", format!("{member} is healthy"))
            }
            Err(why) => {
                let todo = "see whether it runs (`systemctl status etcd` there), and its address and certificates";
                Check::warn("etcd", format!("{member}: {why}"), todo)
            }
        });
    }
    if all > 0 && well * 2 <= all {
        let said = format!("{well} of {all} members are healthy, no majority: no coordinator can lead");
        checks.push(Check::fail("etcd", said, "bring members back before anything else"));
    }
}

/// `etcd://a,b:2380` names two; anything else none.
fn members_of(membership: &str) -> Vec<String> {
    let Some(hosts) = membership.strip_prefix("etcd://") else { return Vec::new() };
    let hosts = hosts.split('/').next().unwrap_or_default();
    let named = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
    named
        .map(|host| {
            let port = host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            if port && !host.ends_with(']') { host.to_owned() } else { format!("{host}:{PORT}") }
        })
        .collect()
}

fn health(member: &str, tls: &TlsConfig) -> Result<(), String> {
    let scheme = if tls.connects() { "https" } else { "http" };
    let mut config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(WITHIN)).proxy(None);
    if tls.connects() {
        config = config.tls_config(secure(tls)?);
    }
    let agent = config.build().new_agent();
    let mut response = agent.get(format!("{scheme}://{member}/health")).call().map_err(|error| error.to_string())?;
    let status = response.status();
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let text = text.map_err(|error| format!("its answer can't be read: {error}"))?;
    let health: Health = serde_json::from_str(&text).map_err(|_| format!("answered {status}, and not as etcd does"))?;
    match health.health.as_str() {
        "true" => Ok(()),
        _ if health.reason.is_empty() => Err("it says that it is not healthy".to_owned()),
        _ => Err(format!("it is not healthy: {}", health.reason)),
    }
}

fn secure(tls: &TlsConfig) -> Result<ureq::tls::TlsConfig, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let certificates = |pem: &[u8]| -> Vec<Certificate<'static>> {
        let items = parse_pem(pem).filter_map(Result::ok);
        items
            .filter_map(|item| match item {
                PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect()
    };
    let mut config = ureq::tls::TlsConfig::builder().provider(TlsProvider::Rustls);
    if let Some(ca) = &tls.ca {
        config = config.root_certs(RootCerts::new_with_certs(&certificates(&read(ca)?)));
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let private = PrivateKey::from_pem(&read(key)?).map_err(|error| format!("{}: {error}", key.display()))?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&certificates(&read(cert)?), private)));
    }
    Ok(config.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_from_the_setting() {
        assert_eq!(members_of("etcd://a, b:2380"), ["a:2379", "b:2380"]);
        assert_eq!(members_of("etcd://[::1],[::1]:2380"), ["[::1]:2379", "[::1]:2380"]);
        assert_eq!(members_of("etcd://10.0.0.1/prefix"), ["10.0.0.1:2379"]);
        for none in ["registry", "", "http://127.0.0.1:7700", "etcd://"] {
            assert!(members_of(none).is_empty(), "{none}");
        }
    }
}
