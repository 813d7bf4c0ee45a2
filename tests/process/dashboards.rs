//! Dashboards and alert rules against a real Prometheus that scrapes a cluster at work: every expression parses and tells
//! something, every variable has values, and every metric of the manual is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ingle_proto::v1;
use ingle_tests::client::{embed_job, generate_job, object, ocr_job, question, tree};
use ingle_tests::eventually::patience;
use ingle_tests::models::FakeModel;
use ingle_tests::papers::{png, tiff};
use ingle_tests::prometheus::Prometheus;
use serde_json::Value;

use crate::world::World;

/// How Grafana would fill variables.
const FILLED: &[(&str, &str)] =
    &[("$__rate_interval", "1m"), ("$__range", "5m"), ("$instance", ".*"), ("$export", ".*")];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path).canonicalize().expect("it is committed")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// What may tell nothing on a machine or in a run like this, each with its reason.
struct Excused(Vec<String>);

impl Excused {
    fn read() -> Self {
        let list = json(&deploy("../tests/setup/may-be-empty.json"));
        let words = |entry: &Value| {
            assert!(entry["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{entry} needs a reason");
            entry["contains"].as_str().expect("a part of an expression").to_owned()
        };
        Self(list.as_array().expect("a list").iter().map(words).collect())
    }

    fn covers(&self, expression: &str) -> bool {
        self.0.iter().any(|part| expression.contains(part))
    }
}

/// (where it stands, the expression) of a panel.
type Expression = (String, String);
/// (where it stands, metric, label) of a variable.
type Variable = (String, String, String);

/// Of all panels, and all variables.
fn dashboards() -> (Vec<Expression>, Vec<Variable>) {
    let (mut expressions, mut variables) = (Vec::new(), Vec::new());
    let mut uids = BTreeSet::new();
    for entry in std::fs::read_dir(deploy("grafana/dashboards")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let board = json(&path);
        let uid = board["uid"].as_str().expect("a uid").to_owned();
        assert!(uids.insert(uid.clone()), "{uid} twice");
        for panel in board["panels"].as_array().expect("panels") {
            let title = panel["title"].as_str().expect("a title");
            assert!(title.ends_with('?'), "{uid}: {title:?} is no question");
            for target in panel["targets"].as_array().expect("targets") {
                let mut text = target["expr"].as_str().expect("an expression").to_owned();
                for (variable, value) in FILLED {
                    text = text.replace(variable, value);
                }
                assert!(!text.contains('$'), "{uid}: {title}: an unknown variable in {text}");
                expressions.push((format!("{uid}: {title}"), text));
            }
        }
        for variable in board["templating"]["list"].as_array().expect("variables") {
            let query = variable["definition"].as_str().unwrap_or_default();
            let Some(inside) = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')) else {
                continue;
            };
            let (metric, label) = inside.split_once(", ").expect("a metric and a label");
            variables.push((uid.clone(), metric.to_owned(), label.to_owned()));
        }
    }
    assert_eq!(uids.len(), 6, "{uids:?}");
    (expressions, variables)
}

/// Metrics that the manual names, as they are scraped.
fn manual() -> Vec<String> {
    let text = std::fs::read_to_string(deploy("../docs/metrics.md")).expect("the manual");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `ingle_"));
    rows.map(|row| {
        let name = format!("ingle_{}", row.split('`').next().expect("a name"));
        if row.contains("| histogram |") { format!("{name}_bucket") } else { name }
    })
    .collect()
}

/// A job of each kind, and what people ask meanwhile.
async fn work(world: &World, round: usize) {
    let client = &world.client;
    let here = |spec: v1::JobSpec, input: &str, model: &str, output: String| v1::JobSpec {
        model: model.into(),
        input: Some(tree(input)),
        output: Some(object(&output)),
        ..spec
    };
    let (vectors, answers, pages) = tokio::join!(
        client.done(here(embed_job(), "in", "words", format!("vectors-{round}"))),
        client.done(here(generate_job(), "in", "talk", format!("answers-{round}"))),
        client.done(here(ocr_job(), "scans", "eyes", format!("pages-{round}"))),
    );
    for job in [vectors, answers, pages] {
        assert_eq!(job.state(), v1::JobState::Succeeded, "{job:?}");
    }
    for number in 0..3 {
        client.generate(question(&format!("What about {number}?"))).await.expect("an answer");
        client.embed(&["a lamp", "a bridge"]).await.expect("vectors");
    }
    client.ocr(&png(&["a page", "of two lines"]), 1 << 20).await.expect("text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_expression_tells_something_of_a_cluster_at_work() {
    let models = [
        FakeModel::that_answers("talk", 12).at_ms_per_step(2).with_slots(2),
        FakeModel::that_embeds("words").at_ms_per_step(2),
        FakeModel::that_reads("eyes"),
    ];
    let world = World::start(2, &models).await;
    let mut targets = vec![("ingle-coordinator", world.coordinator.address("metrics"))];
    targets.push(("ingle-gateway", world.gateway.address("metrics")));
    targets.extend(world.nodes.iter().map(|node| ("ingle-node", node.address("metrics"))));
    let Some(prometheus) = Prometheus::start(&targets, &[deploy("prometheus/rules/inglenook.yml")]) else { return };
    world.share.documents(12);
    world.share.write("scans/letter.png", png(&["dear reader", "yours"]));
    world.share.write("scans/book.tif", tiff(&[vec!["page one"], vec!["page two"]]));
    // Files that are still written aren't kept in caches.
    world.share.age("in");
    world.share.age("scans");

    let (expressions, variables) = dashboards();
    assert!(expressions.len() > 80, "{} expressions are most of them", expressions.len());
    let excused = Excused::read();
    let begun = tokio::time::Instant::now();
    let mut round = 0;
    loop {
        // Again and again: a rate needs what moves between two scrapes.
        Box::pin(work(&world, round)).await;
        round += 1;
        let mut empty = Vec::new();
        for (place, expression) in &expressions {
            let series = prometheus.over_time(expression).await;
            let series = series.unwrap_or_else(|error| panic!("{place}: {expression}: {error}"));
            if series.is_empty() && !excused.covers(expression) {
                empty.push(format!("{place}: {expression}"));
            }
        }
        if empty.is_empty() {
            break;
        }
        assert!(begun.elapsed() < patience() * 2, "after {round} rounds these tell nothing:\n{}", empty.join("\n"));
    }
    for (board, metric, label) in variables {
        let values =
            prometheus.get(&format!("label/{label}/values"), &[("match[]", &metric)]).await.expect("an answer");
        assert!(values.as_array().is_some_and(|values| !values.is_empty()), "{board}: no {label} of {metric}");
    }
    let names = prometheus.get("label/__name__/values", &[]).await.expect("an answer");
    let names: BTreeSet<&str> = names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let unserved: Vec<String> =
        manual().into_iter().filter(|name| !names.contains(name.as_str()) && !excused.covers(name)).collect();
    assert!(unserved.is_empty(), "the manual names what nobody serves: {unserved:?}");

    let rules = prometheus.get("rules", &[]).await.expect("an answer");
    let rules: Vec<&Value> = rules["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    assert!(rules.len() >= 20, "{} rules", rules.len());
    for rule in rules {
        let (name, query) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("a query"));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        // A rule that is quiet because its metric is misspelt is no rule.
        let metrics =
            query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("ingle_"));
        for metric in metrics.filter(|metric| !excused.covers(metric)) {
            assert!(names.contains(metric), "{name} asks for {metric}, which nobody serves");
        }
        assert!(excused.covers(query) || rule["state"] != "firing", "{name} fires in a good house: {rule}");
    }
}
