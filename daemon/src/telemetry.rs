//! Logs to standard error and, by configuration, spans over OTLP. Neither carries documents, prompts or secrets.

use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{LogFormat, TelemetryConfig};
use crate::lines::Traced;

/// Spans kept for export; further ones are dropped rather than waited for.
const QUEUE_SPANS_MAX: usize = 4096;
/// Spans in one export.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for company.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// Bound on one export, and on the last one when the guard is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Telemetry that can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `telemetry.log` isn't a filter.
    #[error("telemetry.log `{filter}`: {reason}; expected e.g. `info` or `info,ingle_gateway=debug`")]
    Filter {
        /// As configured.
        filter: String,
        /// What the parser said.
        reason: String,
    },
    /// `telemetry.otlp_endpoint` isn't an address.
    #[error("telemetry.otlp_endpoint `{endpoint}`: {reason}; expected e.g. `http://127.0.0.1:4317`")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What the exporter said.
        reason: String,
    },
    /// Called twice in one process.
    #[error("telemetry is set up already: {0}")]
    Twice(#[from] TryInitError),
}

impl TelemetryError {
    /// Never: settings don't mend themselves.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// Keeps telemetry going; dropping it sends the last spans, within three seconds. Drop it while the runtime still runs,
/// outside of it.
#[must_use = "dropping it ends telemetry"]
pub struct TelemetryGuard {
    provider: SdkTracerProvider,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// Sets up logs, trace context and export for the whole process. Needs a current tokio runtime when an endpoint is set;
/// an endpoint that doesn't answer costs spans, nothing else.
///
/// # Errors
/// [`TelemetryError`] for a filter or endpoint that can't be parsed, or a second call.
pub fn init(service: &'static str, config: &TelemetryConfig) -> Result<TelemetryGuard, TelemetryError> {
    let filter = check_filter(&config.log)?;
    let provider = provider(service, config.otlp_endpoint.as_deref())?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = if json {
        tracing_subscriber::fmt::layer().json().map_event_format(Traced).with_writer(std::io::stderr).boxed()
    } else {
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).boxed()
    };
    // Spans are made whatever the log filter says (trace context must pass through), but not those of libraries.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(crate::trace::SCOPE))
        .with_threads(false)
        .with_target(false)
        .with_filter(tracing_subscriber::filter::filter_fn(|meta| {
            meta.is_span() && *meta.level() <= tracing::Level::INFO && meta.target().starts_with("ingle")
        }));
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
    // For spans of what is over already, which `tracing` can't make. Last: a second call must not put its provider, which ends
    // with it, in the place of the first one's.
    opentelemetry::global::set_tracer_provider(provider.clone());
    Ok(TelemetryGuard { provider })
}

/// Reads a log filter.
///
/// # Errors
/// [`TelemetryError::Filter`] with what is wrong.
pub fn check_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

fn provider(service: &'static str, endpoint: Option<&str>) -> Result<SdkTracerProvider, TelemetryError> {
    let resource = Resource::builder().with_service_name(service).build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = endpoint else { return Ok(builder.build()) };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), reason: error.to_string() })?;
    let batches = BatchSpanProcessor::builder(exporter)
        .with_batch_config(
            BatchConfigBuilder::default()
                .with_max_queue_size(QUEUE_SPANS_MAX)
                .with_max_export_batch_size(BATCH_SPANS_MAX)
                .with_scheduled_delay(BATCH_DELAY)
                .build(),
        )
        .build();
    Ok(builder.with_span_processor(batches).build())
}
