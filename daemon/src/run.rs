//! The frame of every `main`: settings, telemetry, metrics, the daemon's own work, and an end with a deadline.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{self, ConfigError, TelemetryConfig, TlsConfig};
use crate::metrics::{self, Metrics};
use crate::tasks::describe;
use crate::{BoxError, CommonArgs, OnFailure, Shutdown, Tasks, supervisor};

/// How long work may take to end once asked, unless the daemon's settings say otherwise.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// What the frame must know of a daemon's settings.
pub trait Settings: Serialize + DeserializeOwned + Default + Send + 'static {
    /// Where gRPC is served (`listen`).
    fn listen(&self) -> SocketAddr;
    /// Where metrics are served (`metrics`); nowhere if `None`.
    fn metrics(&self) -> Option<SocketAddr>;
    /// `[tls]`.
    fn tls(&self) -> &TlsConfig;
    /// `[telemetry]`.
    fn telemetry(&self) -> &TelemetryConfig;
    /// Checks what types can't say: ranges, names, what goes together.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that can't be used.
    fn check(&self) -> Result<(), ConfigError>;
    /// How long work may take to end once asked.
    fn drain_deadline(&self) -> Duration {
        DRAIN_DEADLINE
    }
    /// Every address that is listened at: sockets that systemd hands down must be among them.
    fn addresses(&self) -> Vec<SocketAddr> {
        std::iter::once(self.listen()).chain(self.metrics()).collect()
    }
}

/// What a daemon is handed to do its work with.
pub struct Context<C> {
    /// Checked.
    pub config: C,
    /// Register metrics here.
    pub metrics: Metrics,
    /// Start tasks here.
    pub tasks: Tasks,
    /// Set by signals and by tasks that fail.
    pub shutdown: Shutdown,
    /// Says what the daemon still waits for.
    pub readiness: Readiness,
    ready_file: Option<PathBuf>,
    metrics_address: Option<SocketAddr>,
}

impl<C> Context<C> {
    /// We serve at these addresses: prints `listening on ADDR` and writes the `--ready-file`. `grpc` is the main one.
    ///
    /// # Errors
    /// What the file system said about the ready file.
    pub fn announce(&self, mut addresses: BTreeMap<String, SocketAddr>) -> std::io::Result<()> {
        if let Some(metrics) = self.metrics_address {
            addresses.insert("metrics".to_owned(), metrics);
        }
        if let Some(path) = &self.ready_file {
            crate::ready::write(path, &addresses)?;
        }
        if let Some(grpc) = addresses.get("grpc") {
            supervisor::serving(&grpc.to_string());
            #[allow(clippy::print_stderr, reason = "the one line that says we serve, whatever the log filter")]
            {
                eprintln!("listening on {grpc}");
            }
        }
        tracing::info!(?addresses, "serving");
        Ok(())
    }
}

/// What `/readyz` answers. Starts as "starting". Clones share it.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<Result<(), String>>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Err("starting".to_owned()))))
    }
}

impl Readiness {
    /// We do our job.
    pub fn ready(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Ok(());
    }

    /// We can't, because of this.
    pub fn waiting(&self, reason: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Err(reason.into());
    }

    /// What is the case now.
    ///
    /// # Errors
    /// What we wait for.
    pub fn get(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Told once, when a daemon serves, at which addresses.
pub type Serving = Box<dyn FnOnce(BTreeMap<String, SocketAddr>) -> std::io::Result<()> + Send>;

/// A clean end.
const CODE_GOOD: u8 = 0;
/// Something failed.
const CODE_FAILED: u8 = 1;
/// Settings that can't be used.
const CODE_SETTINGS: u8 = 2;

/// Runs a daemon from its options to its exit code: 0 for a clean end, 1 for a failure, 2 for settings that can't be used.
///
/// `prefix` is that of environment variables, e.g. `INGLE_NODE`; `overrides` holds what the daemon's own options set, and
/// the common ones are added to it. `body` returns when the daemon has nothing more to do: usually it starts tasks,
/// calls [`Context::announce`] and waits for the shutdown.
pub fn run<C, F, W>(service: &'static str, prefix: &str, args: &CommonArgs, overrides: toml::Table, body: F) -> ExitCode
where
    C: Settings,
    F: FnOnce(Context<C>) -> W,
    W: Future<Output = Result<(), BoxError>>,
{
    ExitCode::from(run_to_code(service, prefix, args, overrides, body))
}

/// [`run`] for a caller that ends the process by itself.
pub fn run_to_code<C, F, W>(
    service: &'static str,
    prefix: &str,
    args: &CommonArgs,
    mut overrides: toml::Table,
    body: F,
) -> u8
where
    C: Settings,
    F: FnOnce(Context<C>) -> W,
    W: Future<Output = Result<(), BoxError>>,
{
    for (key, value) in args.overrides() {
        match (overrides.get_mut(&key), value) {
            (Some(toml::Value::Table(ours)), toml::Value::Table(common)) => ours.extend(common),
            (_, value) => {
                overrides.insert(key, value);
            }
        }
    }
    let config = match config::load::<C>(prefix, args.config.as_deref(), overrides)
        .map_err(BoxError::from)
        .and_then(|config| check(&config).map(|()| config))
    {
        Ok(config) => config,
        Err(error) => {
            say(&format!("{service}: {}", describe(&*error)));
            return CODE_SETTINGS;
        }
    };
    if args.check_config {
        say(&format!("{service}: settings are good"));
        return CODE_GOOD;
    }
    if let Err(error) = crate::sockets::inherit(&config.addresses()) {
        say(&format!("{service}: {error}"));
        return CODE_SETTINGS;
    }
    crate::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(service).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("{service}: can't start threads: {error}"));
            return CODE_FAILED;
        }
    };
    let entered = runtime.enter();
    let telemetry = match crate::telemetry::init(service, config.telemetry()) {
        Ok(guard) => guard,
        Err(error) => {
            say(&format!("{service}: {}", describe(&error)));
            return CODE_SETTINGS;
        }
    };
    drop(entered);
    let code = runtime.block_on(supervise(service, config, args.ready_file.clone(), body));
    // While the runtime still runs: the exporter's connection lives on it.
    drop(telemetry);
    runtime.shutdown_timeout(Duration::from_secs(2));
    code
}

/// Everything that `--check-config` looks at.
fn check<C: Settings>(config: &C) -> Result<(), BoxError> {
    config::check_loopback(config.listen(), config.tls())?;
    crate::tls::server_tls(config.tls())?;
    crate::tls::client_tls(config.tls())?;
    config.telemetry().check()?;
    crate::telemetry::check_filter(&config.telemetry().log)?;
    config.check()?;
    Ok(())
}

async fn supervise<C, F, W>(service: &'static str, config: C, ready_file: Option<PathBuf>, body: F) -> u8
where
    C: Settings,
    F: FnOnce(Context<C>) -> W,
    W: Future<Output = Result<(), BoxError>>,
{
    tracing::info!(service, version = crate::version(), "starting");
    let shutdown = Shutdown::new();
    let tasks = Tasks::new(shutdown.clone());
    let metrics = Metrics::new(service);
    crate::certificates::tell(&metrics, config.tls());
    let readiness = Readiness::default();
    let drain = config.drain_deadline();
    let signals = match shutdown.clone().on_signal() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("{service}: can't listen to signals: {error}"));
            return CODE_FAILED;
        }
    };
    // Not among the tasks: it must go on listening for the second signal until the very end.
    #[allow(clippy::disallowed_methods, reason = "lives as long as the process")]
    let signals = tokio::spawn(signals);
    // Nor this: whoever drains is alive.
    #[allow(clippy::disallowed_methods, reason = "lives as long as the process")]
    let watchdog = tokio::spawn(supervisor::watch(shutdown.clone()));

    let outcome = async {
        let mut metrics_address = None;
        if let Some(address) = config.metrics() {
            let listener = metrics::bind(address).await?;
            metrics_address = Some(listener.local_addr()?);
            let asked = readiness.clone();
            let ready: metrics::Readiness = Arc::new(move || asked.get());
            tasks.spawn(
                "metrics endpoint",
                OnFailure::Log,
                metrics::serve(listener, metrics.clone(), ready, shutdown.clone()),
            );
        }
        body(Context {
            config,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            readiness: readiness.clone(),
            ready_file,
            metrics_address,
        })
        .await
    }
    .await;

    readiness.waiting("stopping");
    let left = tasks.shutdown_all(drain).await;
    signals.abort();
    watchdog.abort();
    let mut code = CODE_GOOD;
    if let Err(error) = outcome {
        tracing::error!(reason = %describe(&*error), "failed");
        say(&format!("{service}: {}", describe(&*error)));
        code = CODE_FAILED;
    }
    if let Some(reason) = tasks.failure() {
        say(&format!("{service}: {reason}"));
        code = CODE_FAILED;
    }
    if !left.is_empty() {
        tracing::warn!(?left, ?drain, "did not end in time and were dropped");
    }
    tracing::info!(service, "stopped");
    code
}

/// A line for whoever started us, before and beside the log.
fn say(line: &str) {
    #[allow(clippy::print_stderr, reason = "said to a person at start, before there is a log")]
    {
        eprintln!("{line}");
    }
}
