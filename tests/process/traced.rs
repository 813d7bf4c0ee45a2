//! One job's trace: from the coordinator's dispatch into the node, and on into the gateway that the node reads and stages by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks, grpc};
use ingle_tests::client::{counts, generate_job};
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::world::World;

/// Spans as they come in over OTLP, each with what is said of its process.
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
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            seen.extend(spans.map(|span| (about.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A trace that begins with a dispatch, goes on in a node's attempt, and reaches the gateway from there.
    fn whole(&self) -> Result<(), String> {
        let seen = self.0.lock().expect("no panic");
        let mut traces: BTreeMap<&[u8], Vec<&(String, Span)>> = BTreeMap::new();
        for entry in seen.iter() {
            traces.entry(&entry.1.trace_id).or_default().push(entry);
        }
        let whole = traces.values().any(|spans| {
            let of = |service: &str, name: &str, parents: &BTreeSet<Vec<u8>>| -> BTreeSet<Vec<u8>> {
                let fits = |(about, span): &&&(String, Span)| {
                    about.contains(service)
                        && span.name.starts_with(name)
                        && (parents.is_empty() || parents.contains(&span.parent_span_id))
                };
                spans.iter().filter(fits).map(|(_, span)| span.span_id.clone()).collect()
            };
            let dispatches = of("ingle-coordinator", "dispatch", &BTreeSet::new());
            if dispatches.is_empty() {
                return false;
            }
            let attempts = of("ingle-node", "attempt", &dispatches);
            let reads = |method| of("ingle-gateway", method, &attempts);
            !attempts.is_empty()
                && !reads("ingle.v1.Storage/Read").is_empty()
                && !reads("ingle.v1.Storage/Stage").is_empty()
        });
        let names: BTreeSet<_> = seen.iter().map(|(about, span)| (about.as_str(), span.name.as_str())).collect();
        if whole { Ok(()) } else { Err(format!("{} spans: {names:?}", seen.len())) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_dispatch_through_the_node_into_the_gateway() {
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
    let more = format!("[telemetry]\notlp_endpoint = '{endpoint}'\n");
    let world = World::start_with(1, &[FakeModel::that_answers("talk", 3)], &more).await;
    world.share.documents(4);
    let job = world.client.success(generate_job()).await;
    assert_eq!(counts(&job).published, 4, "{job:?}");
    eventually("a whole trace", || async { collector.whole() }).await;
    drop(world);
    tasks.shutdown_all(std::time::Duration::from_secs(5)).await;
}
