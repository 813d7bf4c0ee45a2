//! The Prometheus endpoint: /metrics for machines, /healthz (we run) and /readyz (we serve) for supervisors.

pub mod conventions;

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use tokio::net::TcpListener;

use crate::Shutdown;

/// A gauge of what isn't counted in whole numbers.
pub type FloatGauge = Gauge<f64, AtomicU64>;
/// A counter of the same.
pub type FloatCounter = Counter<f64, AtomicU64>;
/// A histogram for each set of labels.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry of one daemon's metrics; all names start with `ingle_`. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry that says who we are (`ingle_build_info`) and since when (`ingle_start_time_seconds`).
    #[must_use]
    pub fn new(service: &'static str) -> Self {
        let mut registry = Registry::with_prefix("ingle");
        let build = Info::new(vec![("service", service), ("version", crate::version())]);
        registry.register("build", "Which binary this is", build);
        let start = Gauge::<i64>::default();
        start.set(crate::clock::unix_ms() / 1000);
        registry.register("start_time_seconds", "When the process started, in Unix seconds", start);
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Registers any metric; `name` comes without the `ingle_` prefix, and without `_total` for counters.
    pub fn register<M: Metric + Clone>(&self, name: &'static str, help: &'static str, metric: M) -> M {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(name, help, metric.clone());
        metric
    }

    /// A counter.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// A gauge.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// A histogram of seconds, from a millisecond to about two minutes.
    pub fn seconds(&self, name: &'static str, help: &'static str) -> Histogram {
        self.register(name, help, Histogram::new(exponential_buckets(0.001, 2.0, 18)))
    }

    /// [`Metrics::seconds`] for each set of labels. Labels must come from a bounded set.
    pub fn seconds_by<L>(&self, name: &'static str, help: &'static str) -> Histograms<L>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Send + Sync + std::fmt::Debug + 'static,
    {
        let make: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        self.register(name, help, Family::new_with_constructor(make))
    }

    /// A histogram of small whole numbers: 1, 2, 4 … 512.
    pub fn numbers(&self, name: &'static str, help: &'static str) -> Histogram {
        self.register(name, help, Histogram::new(exponential_buckets(1.0, 2.0, 10)))
    }

    /// A gauge of what isn't whole.
    pub fn float_gauge(&self, name: &'static str, help: &'static str) -> FloatGauge {
        self.register(name, help, FloatGauge::default())
    }

    /// [`Metrics::float_gauge`] for each set of labels. Labels must come from a bounded set.
    pub fn float_gauges<L>(&self, name: &'static str, help: &'static str) -> Family<L, FloatGauge>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Send + Sync + std::fmt::Debug + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// A counter of what isn't whole, for each set of labels. Labels must come from a bounded set.
    pub fn float_counters<L>(&self, name: &'static str, help: &'static str) -> Family<L, FloatCounter>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Send + Sync + std::fmt::Debug + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// A counter for each set of labels. Labels must come from a bounded set.
    pub fn counters<L>(&self, name: &'static str, help: &'static str) -> Family<L, Counter>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Send + Sync + std::fmt::Debug + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// A gauge for each set of labels. Labels must come from a bounded set.
    pub fn gauges<L>(&self, name: &'static str, help: &'static str) -> Family<L, Gauge>
    where
        L: EncodeLabelSet + Clone + std::hash::Hash + Eq + Send + Sync + std::fmt::Debug + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        match encode(&mut text, &registry) {
            Ok(()) => text,
            // Writing to a string fails only if a metric's own encoding does.
            Err(_) => "# EOF\n".to_owned(),
        }
    }
}

/// Whether the daemon can do its job now: `Err` says what it waits for.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves until shutdown.
///
/// # Errors
/// What the system said.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    ready: Readiness,
    shutdown: Shutdown,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(
            "/metrics",
            get(move || {
                let text = metrics.text();
                async move { ([(header::CONTENT_TYPE, OPEN_METRICS)], text) }
            }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let answer = match ready() {
                    Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                };
                async move { answer }
            }),
        );
    axum::serve(listener, router).with_graceful_shutdown(shutdown.wait()).await
}

/// Binds the endpoint's listener.
///
/// # Errors
/// What the system said, with the address.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    crate::sockets::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("metrics address {address}: {error}")))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test owns what it spawns, and awaits it")]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a listener");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn serves_metrics_health_and_readiness() {
        let metrics = Metrics::new("ingle-test");
        metrics.counter("things", "Things done").inc_by(3);
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = Arc::clone(&ready);
        let readiness: Readiness = Arc::new(move || {
            if flag.load(std::sync::atomic::Ordering::Relaxed) { Ok(()) } else { Err("waiting for exports".into()) }
        });
        let serving = tokio::spawn(serve(listener, metrics, readiness, shutdown.clone()));

        let text = fetch(address, "/metrics").await;
        assert!(text.contains("application/openmetrics-text"), "{text}");
        assert!(text.contains("ingle_things_total 3"), "{text}");
        assert!(text.contains("ingle_build_info{service=\"ingle-test\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert_eq!(conventions::broken(&text), Vec::<String>::new());
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = fetch(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("waiting for exports"), "{waiting}");
        ready.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));

        shutdown.begin();
        serving.await.expect("no panic").expect("no error");
    }
}
