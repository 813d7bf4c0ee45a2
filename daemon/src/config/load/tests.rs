//! Layers, names and types of settings.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;

use serde::Deserialize;

use super::*;
use crate::config::{TelemetryConfig, TlsConfig};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    listen: SocketAddr,
    name: String,
    slots: u32,
    exports: BTreeMap<String, String>,
    peers: Vec<String>,
    tls: TlsConfig,
    telemetry: TelemetryConfig,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            name: "one".into(),
            slots: 2,
            exports: BTreeMap::new(),
            peers: Vec::new(),
            tls: TlsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

fn with(file: &str, environment: &[(&str, &str)], overrides: &str) -> Result<Sample, ConfigError> {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a temporary file");
    on_disk.write_all(file.as_bytes()).expect("room for a few bytes");
    let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    load_from("INGLE_SAMPLE", Some(on_disk.path()), environment, overrides.parse().expect("TOML"))
}

#[test]
fn later_layers_win() {
    let sample = with(
        "slots = 3\nname = 'file'\n[tls]\nca = '/file/ca'\ncert = '/file/cert'",
        &[("INGLE_SAMPLE_NAME", "env"), ("INGLE_SAMPLE_TLS__CA", "/env/ca"), ("INGLE_OTHER_SLOTS", "9")],
        "name = 'flag'",
    )
    .expect("good settings");
    assert_eq!(sample.slots, 3);
    assert_eq!(sample.name, "flag");
    assert_eq!(sample.tls.ca.as_deref(), Some(Path::new("/env/ca")));
    assert_eq!(sample.tls.cert.as_deref(), Some(Path::new("/file/cert")));
    assert_eq!(sample.listen.port(), 7700);
}

#[test]
fn environment_values_are_toml_where_they_parse() {
    let sample = with(
        "",
        &[
            ("INGLE_SAMPLE_SLOTS", "7"),
            ("INGLE_SAMPLE_PEERS", "['a', \"b\"]"),
            ("INGLE_SAMPLE_EXPORTS", "{docs = 'nfs://nas/docs'}"),
            ("INGLE_SAMPLE_EXPORTS__MORE", "file:///x"),
            ("INGLE_SAMPLE_NAME", "12"),
            ("INGLE_SAMPLE_LISTEN", "127.0.0.1:0"),
        ],
        "",
    )
    .expect("good settings");
    assert_eq!(sample.slots, 7);
    assert_eq!(sample.peers, ["a", "b"]);
    assert_eq!(sample.exports["docs"], "nfs://nas/docs");
    assert_eq!(sample.exports["more"], "file:///x");
    assert_eq!(sample.name, "12", "text that looks like a number stays text");
    assert_eq!(sample.listen.port(), 0);
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let error = with("[telemetry]\notlp_endpont = 'x'", &[], "").expect_err("misspelt");
    let ConfigError::Unknown { key, nearest, origin } = &error else { panic!("{error:?}") };
    assert_eq!(key, "telemetry.otlp_endpont");
    assert_eq!(nearest.as_deref(), Some("telemetry.otlp_endpoint"));
    assert!(origin.starts_with('/'), "names the file: {origin}");

    let error = with("", &[("INGLE_SAMPLE_LISEN", "x")], "").expect_err("misspelt").to_string();
    assert!(error.contains("INGLE_SAMPLE_LISEN") && error.contains("`listen`"), "{error}");
    let error = with("", &[("INGLE_SAMPLE_TLS__CAA", "x")], "").expect_err("misspelt").to_string();
    assert!(error.contains("INGLE_SAMPLE_TLS__CAA") && error.contains("`tls.ca`"), "{error}");
    assert!(with("", &[("INGLE_SAMPLE_", "x")], "").is_err());
    assert!(with("", &[("INGLE_SAMPLE_TLS____CA", "x")], "").is_err());
}

#[test]
fn wrong_types_name_key_and_layer() {
    let error = with("slots = 'many'", &[], "").expect_err("not a number").to_string();
    assert!(error.contains("`slots`") && error.contains("u32") && error.contains('/'), "{error}");
    let error = with("", &[("INGLE_SAMPLE_SLOTS", "-1")], "").expect_err("negative").to_string();
    assert!(error.contains("`slots`") && error.contains("INGLE_SAMPLE_SLOTS"), "{error}");
    let error = with("[telemetry]\nlog_format = 'xml'", &[], "").expect_err("no such format").to_string();
    assert!(error.contains("telemetry.log_format") && error.contains("xml"), "{error}");
    let error = with("tls = 3", &[], "").expect_err("not a table").to_string();
    assert!(error.contains("`tls`"), "{error}");
}

#[test]
fn a_value_cannot_smuggle_in_further_keys() {
    let sample = with("", &[("INGLE_SAMPLE_NAME", "1\nslots = 9")], "").expect("text");
    assert_eq!(sample.name, "1\nslots = 9");
    assert_eq!(sample.slots, 2);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let missing = Path::new("/nonexistent/ingle.toml");
    let error = load_from::<Sample>("X", Some(missing), [], Table::new()).expect_err("no such file").to_string();
    assert!(error.contains("/nonexistent/ingle.toml"), "{error}");
    let error = with("slots = = 3", &[], "").expect_err("not TOML").to_string();
    assert!(error.contains("line 1"), "{error}");
    assert!(with(&"#".repeat((1 << 20) + 1), &[], "").is_err(), "too long");
    assert!(with(&format!("peers = {}", "[".repeat(10_000)), &[], "").is_err(), "too deep");
}

#[test]
fn what_is_wrong_with_a_password_is_said_without_it() {
    for file in [
        "name = 'x'\nexports.etcd_password = hunter2\n",
        "exports.etcd_password = 'hunter2\n",
        "exports = { etcd_password = \"hunter2\n",
        "exports.etcd_password = ['hunter2']",
    ] {
        let error = with(file, &[], "").expect_err(file).to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("line") || error.contains("etcd_password"), "{error}");
    }
    let error = with("exports.etcd_password = 8675309", &[], "").expect_err("a number").to_string();
    assert!(error.contains("exports.etcd_password") && !error.contains("8675309"), "{error}");
    // Other lines are shown as they are.
    let error = with("name = hunter2", &[], "").expect_err("no quotes").to_string();
    assert!(error.contains("hunter2"), "{error}");
}
