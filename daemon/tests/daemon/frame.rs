//! A whole process in the frame that every daemon uses: this binary starts itself again as a small daemon.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use ingle_daemon::config::{ConfigError, TelemetryConfig, TlsConfig};
use ingle_daemon::{BoxError, CommonArgs, OnFailure, Settings};
use serde::{Deserialize, Serialize};

pub(super) const CHILD: &str = "INGLE_FRAME_TEST_CHILD";
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
    /// What the daemon does: "serve", "fail", "panic" or "deaf".
    behaviour: String,
    drain_ms: u64,
    tls: TlsConfig,
    telemetry: TelemetryConfig,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            behaviour: "serve".into(),
            drain_ms: 300,
            tls: TlsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Settings for Sample {
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
        if ["serve", "fail", "panic", "deaf"].contains(&self.behaviour.as_str()) {
            return Ok(());
        }
        Err(ConfigError::invalid("behaviour", "expected serve, fail, panic or deaf"))
    }

    fn drain_deadline(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

/// Is the daemon if the environment says so, and otherwise nothing.
#[test]
fn child() {
    let Some(arguments) = std::env::var_os(CHILD) else { return };
    let arguments = arguments.into_string().expect("ours");
    let args = Args::parse_from(std::iter::once("sample").chain(arguments.split('\n').filter(|text| !text.is_empty())));
    let code = ingle_daemon::run_to_code::<Sample, _, _>(
        "ingle-sample",
        "INGLE_SAMPLE",
        &args.common,
        toml::Table::new(),
        |context| async move {
            let listener = ingle_daemon::grpc::bind(context.config.listen).await?;
            context.announce(BTreeMap::from([("grpc".to_owned(), listener.local_addr()?)]))?;
            context.readiness.ready();
            let span = tracing::info_span!(target: "ingle_sample", "work");
            span.in_scope(|| tracing::info!(target: "ingle_sample", "inside a span"));
            match context.config.behaviour.as_str() {
                "fail" => return Err("the dog ate it".into()),
                "panic" => context.tasks.spawn("jumpy", OnFailure::Shutdown, async {
                    std::future::ready(()).await;
                    panic!("a mouse");
                    #[allow(unreachable_code, reason = "gives the future its type")]
                    Ok::<(), BoxError>(())
                }),
                "deaf" => {
                    context.tasks.spawn("deaf", OnFailure::Log, std::future::pending::<Result<(), BoxError>>());
                }
                _ => {}
            }
            context.shutdown.wait().await;
            Ok(())
        },
    );
    std::process::exit(i32::from(code));
}

pub(super) struct Daemon(pub(super) Child);

impl Daemon {
    pub(super) fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("we run"));
        command
            .args(["frame::child", "--exact", "--nocapture"])
            .env(CHILD, arguments.join("\n"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self(command.spawn().expect("ourselves"))
    }

    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Its exit code and what it said.
    pub(super) fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (self.0.wait().expect("ours").code(), said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn once<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} doesn't happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn addresses(path: &Path) -> BTreeMap<String, SocketAddr> {
    once("the ready file", || serde_json::from_slice(&std::fs::read(path).ok()?).ok())
}

#[test]
fn serves_until_told_to_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let daemon = Daemon::start(&["--ready-file", ready.to_str().expect("UTF-8"), "--log-format", "text"], &[]);
    let taken = addresses(&ready);
    assert!(taken["grpc"].port() > 0 && taken["metrics"].port() > 0, "{taken:?}");
    std::net::TcpStream::connect(taken["grpc"]).expect("it listens");
    std::net::TcpStream::connect(taken["metrics"]).expect("it listens");
    daemon.signal("-TERM");
    let (code, said) = daemon.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("listening on {}", taken["grpc"])), "{said}");
    assert!(said.contains("stopped"), "{said}");
}

#[test]
fn a_collector_that_is_down_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let arguments = ["--ready-file", ready.to_str().expect("UTF-8"), "--log-format", "json"];
    let daemon = Daemon::start(&arguments, &[("INGLE_SAMPLE_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1")]);
    addresses(&ready);
    daemon.signal("-INT");
    let (code, said) = daemon.end();
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<serde_json::Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().any(|line| line["fields"]["message"] == "stopped"), "JSON lines: {said}");
    let inside = lines.iter().find(|line| line["fields"]["message"] == "inside a span").expect("it was said");
    let digits = |key: &str| inside[key].as_str().map_or(0, |id| id.chars().filter(char::is_ascii_hexdigit).count());
    assert_eq!((digits("trace_id"), digits("span_id")), (32, 16), "a line leads to its trace: {inside}");
    assert!(lines.iter().all(|line| line["fields"]["message"] != "stopped" || line["trace_id"].is_null()), "{said}");
}

#[test]
fn failures_and_panics_end_with_one() {
    for (behaviour, reason) in [("fail", "the dog ate it"), ("panic", "jumpy: panicked: a mouse")] {
        let (code, said) = Daemon::start(&[], &[("INGLE_SAMPLE_BEHAVIOUR", behaviour)]).end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn what_does_not_stop_is_named_and_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let daemon =
        Daemon::start(&["--ready-file", ready.to_str().expect("UTF-8")], &[("INGLE_SAMPLE_BEHAVIOUR", "deaf")]);
    addresses(&ready);
    daemon.signal("-TERM");
    let (code, said) = daemon.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("did not end in time") && said.contains("deaf"), "{said}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let ready = dir.path().join("ready.json");
    let environment = [("INGLE_SAMPLE_BEHAVIOUR", "deaf"), ("INGLE_SAMPLE_DRAIN_MS", "600000")];
    let daemon = Daemon::start(&["--ready-file", ready.to_str().expect("UTF-8")], &environment);
    let metrics = addresses(&ready)["metrics"];
    daemon.signal("-TERM");
    // The metrics endpoint stops listening once shutdown has begun.
    once("the first signal", || std::net::TcpStream::connect(metrics).err());
    daemon.signal("-TERM");
    let (code, said) = daemon.end();
    assert_eq!(code, Some(130), "{said}");
}

#[test]
fn settings_are_checked_without_serving() {
    let (code, said) = Daemon::start(&["--check-config"], &[]).end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("settings are good"), "{said}");
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 6] = [
        (&["--check-config"], &[("INGLE_SAMPLE_BEHAVIOR", "serve")], "did you mean `behaviour`?"),
        (&["--check-config"], &[("INGLE_SAMPLE_BEHAVIOUR", "dance")], "expected serve, fail, panic or deaf"),
        (&["--check-config", "--listen", "0.0.0.0:0"], &[], "tls.cert"),
        (&["--check-config", "--config", "/nonexistent.toml"], &[], "/nonexistent.toml"),
        (&["--check-config"], &[("INGLE_SAMPLE_TELEMETRY__LOG", "=,=")], "telemetry.log"),
        // Without --check-config the answer is the same: it never serves with these.
        (&[], &[("INGLE_SAMPLE_TLS__CA", "/nonexistent.pem")], "tls.ca"),
    ];
    for (arguments, environment, reason) in cases {
        let (code, said) = Daemon::start(arguments, environment).end();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(reason), "{reason} in {said}");
    }
}
