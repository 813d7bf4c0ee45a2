//! Mutual TLS from files: who shows the right certificate gets in, nobody else does.

use std::path::{Path, PathBuf};

use ingle_daemon::config::TlsConfig;
use ingle_daemon::grpc::{self, ConnectOptions, ServerLimits};
use tonic_health::pb::health_client::HealthClient;

use crate::rpc::{question, serve};

fn file(name: &str) -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon/tls").join(name))
}

fn tls(ca: &str, member: &str) -> TlsConfig {
    TlsConfig { ca: file(ca), cert: file(&format!("{member}.pem")), key: file(&format!("{member}.key")) }
}

#[tokio::test]
async fn only_the_right_certificates_meet() {
    ingle_daemon::tls::install_provider();
    let served = serve(ServerLimits::default(), &tls("ca.pem", "server")).await;
    let ask = async |address: String, tls: TlsConfig| -> Result<(), String> {
        let channel = grpc::connect(&address, &tls, &ConnectOptions::eager()).await.map_err(|e| e.to_string())?;
        HealthClient::new(channel).check(question()).await.map(drop).map_err(|e| e.to_string())
    };
    let address = served.address.to_string();
    let by_name = format!("https://localhost:{}", served.address.port());
    assert_eq!(ask(address.clone(), tls("ca.pem", "client")).await, Ok(()), "no scheme means TLS where there is a CA");
    assert_eq!(ask(by_name, tls("ca.pem", "client")).await, Ok(()));

    let anonymous = TlsConfig { ca: file("ca.pem"), ..TlsConfig::default() };
    assert!(ask(address.clone(), anonymous).await.is_err(), "a client without a certificate");
    assert!(ask(address.clone(), tls("ca.pem", "stranger")).await.is_err(), "a certificate of another authority");
    assert!(ask(address.clone(), tls("stranger-ca.pem", "client")).await.is_err(), "a server we don't trust");
    assert!(ask(address.clone(), TlsConfig::default()).await.is_err(), "plaintext");
    let mixed = TlsConfig { key: file("stranger.key"), ..tls("ca.pem", "client") };
    assert!(ask(address.clone(), mixed).await.is_err(), "another's key");
    assert_eq!(ask(address, tls("ca.pem", "client")).await, Ok(()), "still serving");
    served.stop().await;
}
