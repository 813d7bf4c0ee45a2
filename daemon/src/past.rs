//! Spans of what is over already, or began before anybody could open one: waiting in a queue, the phases of a generation.

use std::time::SystemTime;

use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::trace;

/// What spans are told by: names and values that hold no content.
pub type About<'a> = &'a [(&'static str, &'a str)];

/// A span that began at a given time; it ends when dropped.
#[derive(Debug)]
pub struct Past {
    context: Context,
}

impl Past {
    /// Below the remote span that `traceparent` names; of a trace of its own where that is empty or malformed.
    #[must_use]
    pub fn begun(traceparent: &str, name: &'static str, start: SystemTime, about: About<'_>) -> Self {
        let parent = trace::context_of(traceparent);
        let tracer = opentelemetry::global::tracer(trace::SCOPE);
        let builder = tracer.span_builder(name).with_start_time(start).with_attributes(attributes(about));
        let span = tracer.build_with_context(builder, &parent);
        Self { context: parent.with_span(span) }
    }

    /// Its context as text, for work that travels inside a message; empty where telemetry isn't set up.
    #[must_use]
    pub fn traceparent(&self) -> String {
        trace::traceparent_of(&self.context).unwrap_or_default()
    }

    /// A part of it that is over.
    pub fn phase(&self, name: &'static str, start: SystemTime, end: SystemTime, about: About<'_>) {
        emit(&self.context, name, start, end, about);
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

/// A part of the current span that is over. Nothing where there is no current span.
pub fn phase(name: &'static str, start: SystemTime, end: SystemTime, about: About<'_>) {
    let parent = tracing::Span::current().context();
    if parent.span().span_context().is_valid() {
        emit(&parent, name, start, end, about);
    }
}

fn emit(parent: &Context, name: &'static str, start: SystemTime, end: SystemTime, about: About<'_>) {
    let tracer = opentelemetry::global::tracer(trace::SCOPE);
    let builder = tracer.span_builder(name).with_start_time(start).with_attributes(attributes(about));
    tracer.build_with_context(builder, parent).end_with_timestamp(end.max(start));
}

fn attributes(about: About<'_>) -> Vec<KeyValue> {
    about.iter().map(|(key, value)| KeyValue::new(*key, (*value).to_owned())).collect()
}
