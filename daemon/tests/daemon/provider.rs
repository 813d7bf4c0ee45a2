//! One provider of cryptography: two would make rustls panic at the first connection.

use std::process::Command;

#[test]
fn aws_lc_is_the_only_provider_in_the_workspace() {
    let tree = |package: &str| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--workspace", "--edges", "normal,build,dev", "--invert", package])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs tests, so it is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(tree("ring"), "", "ring must not be linked: switch the dependency to aws-lc-rs");
    assert!(tree("aws-lc-rs").contains("ingle-daemon"), "the check itself finds what is there");
}

#[test]
fn installing_it_twice_is_fine() {
    ingle_daemon::tls::install_provider();
    ingle_daemon::tls::install_provider();
    let provider = rustls::crypto::CryptoProvider::get_default().expect("installed");
    let ours = rustls::crypto::aws_lc_rs::default_provider();
    assert_eq!(provider.cipher_suites, ours.cipher_suites);
}
