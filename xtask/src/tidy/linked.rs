//! What is linked: one TLS provider (aws-lc-rs), and no crate that was decided against.

use super::{Finding, Metadata};

/// Crates that must not be linked, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "rustls has one provider here, aws-lc-rs; two of them panic at the first handshake"),
    ("openssl", "TLS is rustls"),
    ("openssl-sys", "TLS is rustls"),
    ("native-tls", "TLS is rustls"),
    ("async-std", "the runtime is tokio"),
    ("figment", "unmaintained; settings are read by ingle-daemon"),
    ("sled", "state is SQLite or etcd"),
    ("madsim", "simulation drives the pure core"),
    ("opentelemetry-prometheus", "metrics are prometheus-client's"),
];

/// Checks every package in the tree that cargo resolves for this platform.
#[must_use]
pub fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut found: Vec<Finding> = BANNED
        .iter()
        .filter(|(banned, _)| metadata.linked.contains(*banned))
        .map(|(banned, why)| {
            Finding::new(*banned, format!("is linked: {why} (`cargo tree -i {banned}` tells who asks for it)"))
        })
        .collect();
    let rustls = metadata.linked.contains("rustls");
    if rustls && !metadata.linked.contains("aws-lc-rs") {
        found.push(Finding::new("rustls", "is linked without its provider aws-lc-rs"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linking(names: &[&str]) -> Vec<Finding> {
        check(&Metadata { linked: names.iter().map(|name| (*name).into()).collect(), ..Metadata::default() })
    }

    #[test]
    fn banned_crates_are_found() {
        assert_eq!(linking(&["rustls", "aws-lc-rs", "tokio", "ring-buffer"]), []);
        for (banned, _) in BANNED {
            let found = linking(&["aws-lc-rs", banned]);
            assert!(found.len() == 1 && found[0].place == *banned, "{found:?}");
        }
    }

    #[test]
    fn rustls_needs_its_provider() {
        assert_eq!(linking(&["rustls"]).len(), 1);
        assert_eq!(linking(&[]), []);
    }
}
