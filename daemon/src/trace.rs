//! One trace through every hop: W3C trace context in gRPC metadata and in messages, and a span per RPC.

use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The name under which our spans are made.
pub(crate) const SCOPE: &str = "inglenook";

/// The context that this process was started in, for one that makes no spans of its own.
static OUTER: OnceLock<String> = OnceLock::new();

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct Traceparent(String);

impl Extractor for Traceparent {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

impl Injector for Traceparent {
    fn set(&mut self, key: &str, value: String) {
        if key == "traceparent" {
            self.0 = value;
        }
    }
}

/// Adds the current span's context to request headers (of HTTP, or `metadata.as_mut()` of gRPC).
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    if let Some(outer) = OUTER.get()
        && !context.span().span_context().is_valid()
    {
        HeadersMut(headers).set("traceparent", outer.clone());
        return;
    }
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeadersMut(headers));
    });
}

/// Hands `traceparent` on with every call that isn't made in a span: for a program that is part of another's trace and
/// exports nothing itself. The first word counts; malformed text changes nothing, and is told by `false`.
pub fn hand_on(traceparent: &str) -> bool {
    let context = TraceContextPropagator::new().extract(&Traceparent(traceparent.to_owned()));
    let good = context.span().span_context().is_valid();
    if good {
        let _first_word_counts = OUTER.set(traceparent.to_owned());
    }
    good
}

/// The context that request headers carry; an empty one if they carry none or a malformed one.
#[must_use]
pub fn extract(headers: &HeaderMap) -> opentelemetry::Context {
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

/// The current span's context as `traceparent` text, for work that travels inside a message.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    traceparent_of(&Span::current().context())
}

pub(crate) fn traceparent_of(context: &opentelemetry::Context) -> Option<String> {
    let mut carrier = Traceparent(String::new());
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut carrier));
    (!carrier.0.is_empty()).then_some(carrier.0)
}

/// The remote span that `traceparent` names; an empty context for what is malformed.
pub(crate) fn context_of(traceparent: &str) -> opentelemetry::Context {
    let carrier = Traceparent(traceparent.to_owned());
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&opentelemetry::Context::new(), &carrier)
    })
}

/// Makes `span` a child of the remote span that `traceparent` names. Malformed text changes nothing.
/// Call it before the span is entered.
pub fn set_parent(span: &Span, traceparent: &str) {
    adopt(span, context_of(traceparent));
}

/// Makes `span` a child of the remote span that request headers name, if they do. Call it before the span is entered.
pub fn join(span: &Span, headers: &HeaderMap) {
    adopt(span, extract(headers));
}

/// A span for one attempt, child of the remote span that `traceparent` names.
#[must_use]
pub fn span_with_parent(traceparent: &str) -> Span {
    let span = tracing::info_span!("attempt", job = tracing::field::Empty, attempt = tracing::field::Empty);
    set_parent(&span, traceparent);
    span
}

fn adopt(span: &Span, context: opentelemetry::Context) {
    if context.span().span_context().is_valid() {
        // Fails only where telemetry isn't set up, and then there is nothing to join.
        let _ = span.set_parent(context);
    }
}

/// Opens a span per RPC on the server: `rpc.server` with service, method, the caller's span as parent, and the status.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerTraceLayer;

impl<S> Layer<S> for ServerTraceLayer {
    type Service = ServerTrace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ServerTrace { inner }
    }
}

/// See [`ServerTraceLayer`].
#[derive(Debug, Clone)]
pub struct ServerTrace<S> {
    inner: S,
}

type ResponseFuture<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S, B> Service<http::Request<B>> for ServerTrace<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Error>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (service, method) = split_path(request.uri().path());
        let span = tracing::info_span!(
            "rpc.server",
            otel.name = format!("{service}/{method}"),
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = tracing::field::Empty,
        );
        adopt(&span, extract(request.headers()));
        let work = span.in_scope(|| self.inner.call(request)).instrument(span.clone());
        Box::pin(async move {
            let response = work.await?;
            // A refusal without a body carries its status in the headers.
            record_status(&span, response.headers());
            Ok(response.map(|body| Body::new(TracedBody { body, span })))
        })
    }
}

fn split_path(path: &str) -> (&str, &str) {
    // Bounded: whoever calls chooses the path, and it goes into logs.
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = &path[..path.floor_char_boundary(128)];
    path.split_once('/').unwrap_or((path, ""))
}

fn record_status(span: &Span, headers: &HeaderMap) {
    if let Some(code) = headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse::<i64>().ok()) {
        span.record("rpc.grpc.status_code", code);
    }
}

/// Keeps the RPC's span open until the last frame and reads the status from the trailers.
struct TracedBody {
    body: Body,
    span: Span,
}

impl http_body::Body for TracedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let polled = this.span.in_scope(|| Pin::new(&mut this.body).poll_frame(cx));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            record_status(&this.span, trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
