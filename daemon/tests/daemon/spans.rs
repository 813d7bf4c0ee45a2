//! A span's way: from a caller over gRPC into a server, inside a message, and out to a collector.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ingle_daemon::config::{TelemetryConfig, TlsConfig};
use ingle_daemon::grpc::{self, ConnectOptions, ServerLimits};
use ingle_daemon::past::{Past, phase};
use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks, telemetry, trace};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tracing::Instrument as _;

use crate::rpc::{question, serve};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().expect("no panic");
        for resource in request.into_inner().resource_spans {
            let about = format!("{:?}", resource.resource);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push((about.clone(), span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn find(&self, name: &str, trace: &[u8]) -> Option<(String, Span)> {
        let seen = self.0.lock().expect("no panic");
        seen.iter().find(|(_, span)| span.name == name && span.trace_id == trace).cloned()
    }
}

/// The only test of this binary that sets telemetry up, for that can be done once in a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_through_every_hop_to_the_collector() {
    assert_eq!(trace::current_traceparent(), None, "no telemetry, no trace");
    let collector = Collector::default();
    let tasks = Tasks::new(Shutdown::new());
    let listener = grpc::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let (service, stop) = (TraceServiceServer::new(collector.clone()), tasks.shutdown().wait());
    tasks.spawn("collector", OnFailure::Shutdown, async move {
        let mut server = tonic::transport::Server::builder();
        server.add_service(service).serve_with_incoming_shutdown(grpc::incoming(listener), stop).await?;
        Ok::<(), BoxError>(())
    });
    // Lines are for warnings only: spans are made whatever the log filter says.
    let config = TelemetryConfig { log: "warn".into(), otlp_endpoint: Some(endpoint), ..Default::default() };
    let guard = telemetry::init("ingle-test", &config).expect("first time");
    assert!(telemetry::init("ingle-test", &config).is_err(), "once in a process");

    let served = serve(ServerLimits::default(), &TlsConfig::default()).await;
    let channel = grpc::connect_lazy(&served.address.to_string(), &TlsConfig::default(), &ConnectOptions::default())
        .expect("a loopback address");
    let root = tracing::info_span!(target: "ingle_test", "root");
    let traceparent = async {
        HealthClient::new(channel.clone()).check(question()).await.expect("healthy");
        let unknown = tonic_health::pb::HealthCheckRequest { service: "unknown".into() };
        HealthClient::new(channel).check(unknown).await.expect_err("no such service");
        trace::current_traceparent().expect("in a span")
    }
    .instrument(root.clone())
    .await;
    drop(root);
    // As a node does with what it finds in a message, also if that is nonsense.
    trace::span_with_parent(&traceparent).in_scope(|| assert!(trace::current_traceparent().is_some()));
    trace::span_with_parent("nonsense").in_scope(|| assert!(trace::current_traceparent().is_some()));
    // As a coordinator does with what waited, and a node with what it has done.
    let (begun, now) = (SystemTime::now() - Duration::from_secs(3), SystemTime::now());
    let dispatch = Past::begun(&traceparent, "dispatch", begun, &[("node", "n-1")]);
    dispatch.phase("queue", begun, now, &[]);
    let inner = tracing::info_span!(target: "ingle_test", "work");
    trace::set_parent(&inner, &dispatch.traceparent());
    inner.in_scope(|| phase("decode", now, SystemTime::now(), &[("tokens", "7")]));
    phase("nowhere", begun, now, &[]);
    drop((inner, dispatch));
    served.stop().await;
    // Sends the last spans; waits, so not on a thread that the collector needs.
    tokio::task::spawn_blocking(move || drop(guard)).await.expect("no panic");

    let parts: Vec<&str> = traceparent.split('-').collect();
    let [_, trace_id, span_id, _] = parts[..] else { panic!("{traceparent}") };
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
    };
    let (trace_id, span_id) = (bytes(trace_id), bytes(span_id));
    let (about, root) = collector.find("root", &trace_id).expect("exported at the end");
    assert!(about.contains("ingle-test"), "{about}");
    assert_eq!(root.span_id, span_id);
    let (_, server) = collector.find("grpc.health.v1.Health/Check", &trace_id).expect("the server's span");
    assert_eq!(server.parent_span_id, span_id, "child of the caller's");
    assert_eq!(server.kind, 2, "a server's");
    let attributes = format!("{:?}", server.attributes);
    for expected in ["grpc.health.v1.Health", "Check", "rpc.grpc.status_code"] {
        assert!(attributes.contains(expected), "{expected} in {attributes}");
    }
    let statuses: Vec<String> = {
        let seen = collector.0.lock().expect("no panic");
        let of_trace = seen.iter().filter(|(_, span)| span.trace_id == trace_id && span.kind == 2);
        of_trace
            .flat_map(|(_, span)| span.attributes.clone())
            .filter(|attribute| attribute.key == "rpc.grpc.status_code")
            .map(|attribute| format!("{:?}", attribute.value))
            .collect()
    };
    assert!(statuses.iter().any(|status| status.contains("IntValue(0)")), "{statuses:?}");
    assert!(statuses.iter().any(|status| status.contains("IntValue(5)")), "NOT_FOUND in {statuses:?}");
    let (_, attempt) = collector.find("attempt", &trace_id).expect("the message's span");
    assert_eq!(attempt.parent_span_id, span_id);
    let names = || {
        let seen = collector.0.lock().expect("no panic");
        seen.iter().map(|(_, span)| format!("{} of {:02x?}", span.name, span.trace_id)).collect::<Vec<_>>()
    };
    let of = |name| collector.find(name, &trace_id).unwrap_or_else(|| panic!("no span {name} in {:?}", names())).1;
    let (dispatch, work) = (of("dispatch"), of("work"));
    assert_eq!(dispatch.parent_span_id, span_id);
    let lasted = dispatch.end_time_unix_nano - dispatch.start_time_unix_nano;
    assert!(lasted >= 3_000_000_000, "it began when it was said to: {lasted} ns");
    assert!(format!("{:?}", dispatch.attributes).contains("n-1"));
    assert_eq!(of("queue").parent_span_id, dispatch.span_id);
    assert_eq!(work.parent_span_id, dispatch.span_id);
    assert_eq!(of("decode").parent_span_id, work.span_id);
    let nowhere = collector.0.lock().expect("no panic").iter().any(|(_, span)| span.name == "nowhere");
    assert!(!nowhere, "without a span around it there is nothing to be part of");
    tasks.shutdown_all(Duration::from_secs(5)).await;
}
