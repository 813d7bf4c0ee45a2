//! A command as part of a trace: of the one that `TRACEPARENT` names, told to where `INGLE_OTLP_ENDPOINT` says.

use ingle_daemon::config::{LogFormat, TelemetryConfig};
use ingle_daemon::telemetry::{self, TelemetryGuard};
use ingle_daemon::trace;
use tracing::Span;

use crate::exit::Failure;

/// Where whoever started us says which trace this belongs to.
const PARENT: &str = "TRACEPARENT";
/// Where spans go: OTLP over gRPC.
const ENDPOINT: &str = "INGLE_OTLP_ENDPOINT";

/// What lasts as long as the command.
pub(crate) struct Traces {
    /// Around all that the command does.
    pub(crate) span: Span,
    guard: Option<TelemetryGuard>,
}

impl Traces {
    /// Must be called in a runtime. Without either variable nothing is done.
    ///
    /// # Errors
    /// A variable that holds something else.
    pub(crate) fn begin() -> Result<Self, Failure> {
        let said = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let (parent, endpoint) = (said(PARENT), said(ENDPOINT));
        let Some(endpoint) = endpoint else {
            if let Some(parent) = parent
                && !trace::hand_on(&parent)
            {
                return Err(Failure::usage(format!("{PARENT} is `{parent}`, and no W3C trace context"))
                    .hint("expected 00-TRACE-SPAN-FLAGS in hexadecimal digits, or no such variable"));
            }
            return Ok(Self { span: Span::none(), guard: None });
        };
        // What we say to a person isn't a log.
        let config = TelemetryConfig { log: "off".into(), otlp_endpoint: Some(endpoint), log_format: LogFormat::Text };
        config.check().map_err(|error| Failure::usage(format!("{ENDPOINT}: {error}")))?;
        let guard =
            telemetry::init("ingle", &config).map_err(|error| Failure::usage(format!("{ENDPOINT}: {error}")))?;
        let span = tracing::info_span!("ingle", otel.kind = "client");
        if let Some(parent) = parent {
            trace::set_parent(&span, &parent);
        }
        Ok(Self { span, guard: Some(guard) })
    }

    /// Sends what is left, within seconds. Not in the runtime, which must still be there.
    pub(crate) fn end(self) {
        drop(self.span);
        drop(self.guard);
    }
}
