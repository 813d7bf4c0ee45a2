//! Traces through every hop: a job's from its dispatch through node and gateway to the NAS, a person's from the client on. And
//! what neither spans nor logs hold: content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use ingle_daemon::{BoxError, OnFailure, Shutdown, Tasks, grpc};
use ingle_proto::v1;
use ingle_tests::client::{counts, embed_job, generate_job, object, question};
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;
use ingle_tests::process::binary;
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

/// A span as tests look at it.
#[derive(Debug, Clone)]
struct Seen {
    service: String,
    name: String,
    id: Vec<u8>,
    parent: Vec<u8>,
    begun: u64,
}

impl Collector {
    fn of_trace(&self, trace: &[u8]) -> Vec<Seen> {
        let seen = self.0.lock().expect("no panic");
        let of = seen.iter().filter(|(_, span)| span.trace_id == trace);
        let services = ["ingle-coordinator", "ingle-node", "ingle-gateway"];
        of.map(|(about, span)| Seen {
            service: services.iter().find(|name| about.contains(**name)).unwrap_or(&"ingle").to_string(),
            name: span.name.clone(),
            id: span.span_id.clone(),
            parent: span.parent_span_id.clone(),
            begun: span.start_time_unix_nano,
        })
        .collect()
    }

    /// Whether a trace has these (service, span, its parent's name), and all its links hold. `outside` is the span of whoever
    /// began it, which isn't sent here.
    fn holds(&self, trace: &[u8], outside: &[u8], wanted: &[(&str, &str, &str)]) -> Result<(), String> {
        let spans = self.of_trace(trace);
        let by_id: BTreeMap<&[u8], &Seen> = spans.iter().map(|span| (span.id.as_slice(), span)).collect();
        let mut wrong = Vec::new();
        for span in spans.iter().filter(|span| !span.parent.is_empty() && span.parent != outside) {
            match by_id.get(span.parent.as_slice()) {
                None => wrong.push(format!("{}: its parent never came", span.name)),
                // What is told afterwards is told in whole milliseconds.
                Some(parent) if span.begun + 2_000_000 < parent.begun => {
                    wrong.push(format!("{} begins before {}", span.name, parent.name));
                }
                Some(_) => {}
            }
        }
        for (service, name, above) in wanted {
            let parent_of = |span: &Seen| by_id.get(span.parent.as_slice()).map_or("", |parent| parent.name.as_str());
            let there = |span: &&Seen| {
                let service_fits = span.service == *service && span.name == *name;
                service_fits && if *above == "outside" { span.parent == outside } else { parent_of(span) == *above }
            };
            if !spans.iter().any(|span| there(&span)) {
                wrong.push(format!("no span {name} of {service} below {above}"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?} among {spans:#?}")) }
    }

    fn text(&self) -> String {
        format!("{:?}", self.0.lock().expect("no panic"))
    }
}

/// A collector that listens, and the settings that send spans there.
async fn collecting(log: &str) -> (Collector, Tasks, String, String) {
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
    let settings = format!("[telemetry]\notlp_endpoint = '{endpoint}'\nlog = '{log}'\nlog_format = 'json'\n");
    (collector, tasks, endpoint, settings)
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_dispatch_through_the_node_into_the_gateway() {
    let (collector, tasks, _, more) = collecting("info").await;
    let world = World::start_with(1, &[FakeModel::that_answers("talk", 3)], &more).await;
    world.share.documents(4);
    let job = world.client.success(generate_job()).await;
    assert_eq!(counts(&job).published, 4, "{job:?}");
    eventually("a whole trace", || async { collector.whole() }).await;
    drop(world);
    tasks.shutdown_all(std::time::Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_request_is_one_trace_from_the_client_on() {
    let (collector, tasks, endpoint, more) = collecting("info").await;
    let world = World::start_with(1, &[FakeModel::that_answers("talk", 5)], &more).await;

    // As grpcurl would send it.
    let (trace, outside) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let mut request = Request::new(question("What burns in the hearth?"));
    let traceparent = format!("00-{trace}-{outside}-01").parse().expect("ASCII");
    request.metadata_mut().insert("traceparent", traceparent);
    let mut frames = world.client.inference.clone().generate(request).await.expect("an answer").into_inner();
    while frames.message().await.expect("whole").is_some() {}
    let rpc = "ingle.v1.Inference/Generate";
    let wanted = [
        ("ingle-coordinator", rpc, "outside"),
        ("ingle-coordinator", "dispatch", rpc),
        ("ingle-coordinator", "queue", "dispatch"),
        ("ingle-coordinator", "place", "dispatch"),
        ("ingle-node", "attempt", "dispatch"),
        ("ingle-node", "fetch", "attempt"),
        ("ingle-node", "load", "attempt"),
        ("ingle-node", "wait", "attempt"),
        ("ingle-node", "prefill", "attempt"),
        ("ingle-node", "decode", "attempt"),
    ];
    let (trace, outside) = (bytes(trace), bytes(outside));
    eventually("the whole trace", || async { collector.holds(&trace, &outside, &wanted) }).await;

    // As a script runs it, whose own span is sent elsewhere.
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut command = tokio::process::Command::new(binary("ingle"));
    let coordinator = format!("http://{}", world.coordinator.address("grpc"));
    command.args(["chat", "And in the stove?", "--json", "--coordinator", &coordinator]).kill_on_drop(true);
    command.env("TRACEPARENT", format!("00-{trace}-00f067aa0ba902b7-01")).env("INGLE_OTLP_ENDPOINT", &endpoint);
    let output = command.output().await.expect("ingle runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wanted = [
        ("ingle", "ingle", "outside"),
        ("ingle-coordinator", rpc, "ingle"),
        ("ingle-node", "attempt", "dispatch"),
        ("ingle-node", "decode", "attempt"),
    ];
    let (trace, outside) = (bytes(trace), bytes("00f067aa0ba902b7"));
    eventually("the command's trace", || async { collector.holds(&trace, &outside, &wanted) }).await;

    // Without a place for its own span it hands on what it was given, and nonsense is refused.
    let trace = "11112222333344445555666677778888";
    let handed = |parent: &str| {
        let mut command = tokio::process::Command::new(binary("ingle"));
        command.args(["chat", "And now?", "--json", "--coordinator", &coordinator]).kill_on_drop(true);
        command.env("TRACEPARENT", parent).env_remove("INGLE_OTLP_ENDPOINT");
        command
    };
    let output = handed(&format!("00-{trace}-00f067aa0ba902b7-01")).output().await.expect("ingle runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = bytes(trace);
    let wanted = [("ingle-coordinator", rpc, "outside"), ("ingle-node", "attempt", "dispatch")];
    eventually("the trace that was handed on", || async { collector.holds(&trace, &outside, &wanted) }).await;
    let output = handed("nonsense").output().await.expect("ingle runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("TRACEPARENT"), "{said}");
    drop(world);
    tasks.shutdown_all(std::time::Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_reads_the_nas_within_its_trace() {
    let (collector, tasks, _, more) = collecting("info").await;
    let world = World::start_with(1, &[FakeModel::that_answers("talk", 3)], &more).await;
    world.share.documents(3);
    world.client.success(generate_job()).await;
    let read = "ingle.v1.Storage/Read";
    let wanted = [
        ("ingle-coordinator", "queue", "dispatch"),
        ("ingle-coordinator", "place", "dispatch"),
        ("ingle-node", "attempt", "dispatch"),
        ("ingle-node", "prefill", "attempt"),
        ("ingle-node", "decode", "attempt"),
        ("ingle-gateway", read, "attempt"),
        ("ingle-gateway", "nas.read", read),
    ];
    eventually("a batch's whole trace", || async {
        let traces: BTreeSet<Vec<u8>> =
            collector.0.lock().expect("no panic").iter().map(|(_, span)| span.trace_id.clone()).collect();
        let told: Vec<String> = traces.iter().filter_map(|trace| collector.holds(trace, &[], &wanted).err()).collect();
        if told.len() < traces.len() { Ok(()) } else { Err(told.join("\n")) }
    })
    .await;
    drop(world);
    tasks.shutdown_all(std::time::Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_logs_nor_spans_hold_what_people_write() {
    const MARKER: &str = "xylophone7391";
    let (collector, tasks, _, more) = collecting("debug,h2=info,hyper=info").await;
    let models = [FakeModel::that_answers("talk", 5).poisoned_by("arsenic"), FakeModel::that_embeds("words")];
    let world = World::start_with(1, &models, &more).await;
    world.share.write("in/letter.md", format!("Dear {MARKER}, the hearth is warm."));
    world.share.write("in/bad.md", format!("Dear {MARKER}, mind the arsenic."));
    let options = v1::GenerateOptions {
        prompt: format!("{MARKER} {{{{ document }}}}"),
        system: MARKER.into(),
        max_tokens: 16,
        ..Default::default()
    };
    let spec =
        v1::JobSpec { generate: Some(options), model: "talk".into(), output: Some(object("a")), ..generate_job() };
    let answers = world.client.submit(spec).await;
    let spec = v1::JobSpec { model: "words".into(), output: Some(object("v")), ..embed_job() };
    world.client.success(spec).await;
    world.client.job_that(&answers, "the good one's answer", |job| counts(job).published > 0).await;
    world.client.generate(question(&format!("Who is {MARKER}?"))).await.expect("an answer");
    // What fails must not be quoted either.
    world.client.generate(question(&format!("{MARKER} and arsenic"))).await.expect_err("it can't be computed");
    world.client.embed(&[MARKER]).await.expect("vectors");
    // The bad one may have failed for good by now, and the job have ended.
    let _ = world.client.jobs.clone().cancel_job(v1::CancelJobRequest { job_id: answers.clone() }).await;
    world.client.end_of(&answers).await;
    // Spans come with a delay; those of the last calls are the last.
    eventually("spans of calls", || async {
        let text = collector.text();
        if text.contains("Inference/Embed") { Ok(()) } else { Err(format!("{} bytes of spans", text.len())) }
    })
    .await;
    let logs = world.logs();
    assert!(logs.contains("\"trace_id\":\""), "lines within a request lead to its trace");
    drop(world);
    for (what, text) in [("logs", logs), ("spans", collector.text())] {
        let line = text.lines().find(|line| line.contains(MARKER)).map(|line| {
            let at = line.find(MARKER).unwrap_or(0);
            let from = line.floor_char_boundary(at.saturating_sub(300));
            line[from..].chars().take(600).collect::<String>()
        });
        assert_eq!(line, None, "{what} hold content");
    }
    tasks.shutdown_all(std::time::Duration::from_secs(5)).await;
}
