//! The coordinator's metrics: names, descriptions, and one function per event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ingle_daemon::metrics::{FloatGauge, Histograms, Metrics};
use ingle_proto::{Epoch, v1};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;

use crate::core::record::{Change, JobRecord};
use crate::core::tally::{Stand, Tally};
use crate::store::{Records, StoreError};

/// Labels of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// Labels of an item.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ItemLabels {
    state: &'static str,
}

/// Labels of what failed or waits: a stable error code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: String,
}

/// Labels of what is tried again or refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Labels of a piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Labels of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlacementLabels {
    kind: &'static str,
    /// `held` by the node already, or `to_load`.
    weights: &'static str,
}

/// Labels of an attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// Who leads, as one coordinator sees it, whether or not it does itself. Clones share it.
#[derive(Clone)]
pub struct Reign {
    leading: Gauge,
    generation: Gauge,
    revision: Gauge,
    changes: Counter,
}

impl Reign {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            leading: metrics.gauge("coordinator_leading", "Whether this coordinator leads"),
            generation: metrics
                .gauge("coordinator_epoch_generation", "Generation of the epoch that this coordinator leads in"),
            revision: metrics
                .gauge("coordinator_epoch_revision", "Revision of the epoch that this coordinator leads in"),
            changes: metrics
                .counter("coordinator_leader_changes", "Times that this coordinator saw another leader than before"),
        }
    }

    /// We lead.
    pub fn leads(&self, epoch: Epoch) {
        self.leading.set(1);
        self.generation.set(i64::try_from(epoch.generation).unwrap_or(i64::MAX));
        self.revision.set(i64::try_from(epoch.revision).unwrap_or(i64::MAX));
    }

    /// Another leads than before.
    pub fn changed(&self) {
        self.changes.inc();
    }
}

/// All of them. Clones share them.
#[derive(Clone)]
pub struct Meters {
    items: Family<ItemLabels, Gauge>,
    held: Family<CodeLabels, Gauge>,
    queue_age: FloatGauge,
    calls_waiting: Gauge,
    calls_running: Gauge,
    attempts_running: Gauge,
    breakers_open: Gauge,
    eta: FloatGauge,
    placements: Family<PlacementLabels, Counter>,
    attempts: Family<AttemptLabels, Counter>,
    attempt_seconds: Histograms<KindLabels>,
    expected_seconds: Histograms<KindLabels>,
    retries: Family<ReasonLabels, Counter>,
    set_aside: Family<CodeLabels, Counter>,
    store_seconds: Histogram,
    store_refusals: Family<ReasonLabels, Counter>,
    events: Counter,
    commit_seconds: Histogram,
    commits_unknown: Counter,
    jobs: Family<StateLabels, Gauge>,
    items_queued: Gauge,
    items_running: Gauge,
    nodes: Gauge,
    nodes_ready: Gauge,
    store_full: Gauge,
    /// State by key of every job's live record.
    states: Arc<Mutex<BTreeMap<String, v1::JobState>>>,
}

impl Meters {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            items: metrics.gauges("coordinator_items", "Items of open jobs, by state"),
            held: metrics.gauges("coordinator_jobs_held", "Open jobs that can't go on now, by the error code of why"),
            queue_age: metrics.float_gauge(
                "coordinator_queue_age_seconds",
                "How long the oldest work that could run has waited for a node",
            ),
            calls_waiting: metrics.gauge("coordinator_calls_waiting", "Interactive calls that wait for a node"),
            calls_running: metrics.gauge("coordinator_calls_running", "Interactive calls that nodes work on"),
            attempts_running: metrics.gauge("coordinator_attempts_running", "Attempts that are on nodes"),
            breakers_open: metrics
                .gauge("coordinator_breakers_open", "Nodes and models on nodes that are kept from work after failures"),
            eta: metrics.float_gauge(
                "coordinator_jobs_eta_seconds",
                "Time until the last of the running jobs is expected to be done; 0 where that isn't known",
            ),
            placements: metrics.counters(
                "coordinator_placements",
                "Decisions where work goes, by kind and by whether the node held the model",
            ),
            attempts: metrics.counters("coordinator_attempts", "Attempts that ended, by kind and outcome"),
            attempt_seconds: metrics
                .seconds_by("coordinator_attempt_seconds", "From the dispatch of an attempt to its good end"),
            expected_seconds: metrics.seconds_by(
                "coordinator_attempt_expected_seconds",
                "What was expected of the attempts in coordinator_attempt_seconds",
            ),
            retries: metrics.counters(
                "coordinator_retries",
                "Work that went back into a queue: free of charge, charged to it, or in halves",
            ),
            set_aside: metrics.counters(
                "coordinator_items_set_aside",
                "Items that were quarantined, by the error code of their last failure",
            ),
            store_seconds: metrics.seconds(
                "coordinator_store_write_seconds",
                "One durable write of the job store: an fsync on disk, a quorum in etcd",
            ),
            store_refusals: metrics
                .counters("coordinator_store_refusals", "Writes that the job store did not confirm, by reason"),
            events: metrics.counter("coordinator_events", "Events that the core has taken"),
            commit_seconds: metrics
                .seconds("coordinator_commit_seconds", "How long changes took to be durable, tries included"),
            commits_unknown: metrics
                .counter("coordinator_commits_unknown", "Commits whose outcome had to be read from the store"),
            jobs: metrics.gauges("coordinator_jobs", "Jobs that the store holds, by state"),
            items_queued: metrics.gauge("coordinator_items_queued", "Items that wait for a node"),
            items_running: metrics.gauge("coordinator_items_running", "Items that nodes work on"),
            nodes: metrics.gauge("coordinator_nodes", "Nodes that are members"),
            nodes_ready: metrics.gauge("coordinator_nodes_ready", "Nodes that take new work"),
            store_full: metrics.gauge("coordinator_store_full", "1 while the job store has no room for more jobs"),
            states: Arc::default(),
        }
    }

    /// The core takes an event.
    pub fn event(&self) {
        self.events.inc();
    }

    /// A commit is durable.
    pub fn commit(&self, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// A commit had no answer.
    pub fn unknown(&self) {
        self.commits_unknown.inc();
    }

    /// Whether jobs are refused for want of room.
    pub fn store_full(&self, full: bool) {
        self.store_full.set(full.into());
    }

    /// The store was read.
    pub fn jobs_loaded(&self, records: &Records) {
        let mut states = self.states();
        states.extend(records.iter().filter_map(|(key, value)| Some((key.clone(), state(key, value)?))));
        self.count(&states);
    }

    /// Changes are about to be committed.
    pub fn jobs_changed(&self, changes: &[Change]) {
        let mut states = self.states();
        let mut touched = false;
        for change in changes {
            touched |= match change {
                Change::Put { key, value } => {
                    state(key, value).is_some_and(|state| states.insert(key.clone(), state) != Some(state))
                }
                Change::Delete { key } => states.remove(key).is_some(),
                Change::Archive { prefix } | Change::Clear { prefix } => {
                    let before = states.len();
                    states.retain(|key, _| !key.starts_with(prefix.as_str()));
                    states.len() != before
                }
            };
        }
        if touched {
            self.count(&states);
        }
    }

    /// The cluster in numbers.
    pub fn status(&self, status: &v1::GetStatusResponse) {
        self.items_queued.set(i64::try_from(status.items_queued).unwrap_or(i64::MAX));
        self.items_running.set(i64::try_from(status.items_running).unwrap_or(i64::MAX));
        self.nodes.set(status.nodes_total.into());
        self.nodes_ready.set(status.nodes_ready.into());
    }

    /// One try to write durably ended.
    pub fn written(&self, took: Duration, error: Option<&StoreError>) {
        let Some(error) = error else { return self.store_seconds.observe(took.as_secs_f64()) };
        let reason = match error {
            StoreError::Full(_) => "full",
            StoreError::Unknown(_) => "unknown",
            StoreError::Fenced { .. } | StoreError::NotLeading => "fenced",
            StoreError::Io { .. } | StoreError::InUse { .. } | StoreError::Gone(_) => "unavailable",
            StoreError::Corrupt { .. } | StoreError::Bounds(_) => "refused",
        };
        self.store_refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// What the core has counted since the last time.
    pub fn tally(&self, tally: &Tally) {
        for ((kind, held), count) in &tally.placed {
            let weights = if *held { "held" } else { "to_load" };
            self.placements.get_or_create(&PlacementLabels { kind, weights }).inc_by(*count);
        }
        for end in &tally.ends {
            self.attempts.get_or_create(&AttemptLabels { kind: end.kind, outcome: end.outcome }).inc();
            // Who fails is often quick, and says nothing of what was expected.
            if end.outcome == "done" {
                let labels = KindLabels { kind: end.kind };
                self.attempt_seconds.get_or_create(&labels).observe(end.took_ms as f64 / 1e3);
                self.expected_seconds.get_or_create(&labels).observe(end.expected_ms.max(0.0) / 1e3);
            }
        }
        for (reason, count) in &tally.retried {
            self.retries.get_or_create(&ReasonLabels { reason }).inc_by(*count);
        }
        for (code, count) in &tally.set_aside {
            self.set_aside.get_or_create(&CodeLabels { code: code.clone() }).inc_by(*count);
        }
    }

    /// How things stand.
    pub fn stand(&self, stand: &Stand) {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, items) in &stand.items {
            self.items.get_or_create(&ItemLabels { state }).set(whole(*items));
        }
        self.held.clear();
        for (code, jobs) in &stand.held {
            self.held.get_or_create(&CodeLabels { code: code.clone() }).set(whole(*jobs));
        }
        self.queue_age.set(stand.oldest_ms as f64 / 1e3);
        self.calls_waiting.set(whole(stand.calls_waiting));
        self.calls_running.set(whole(stand.calls_running));
        self.attempts_running.set(whole(stand.attempts));
        self.breakers_open.set(whole(stand.breakers_open));
        self.eta.set(stand.eta_ms as f64 / 1e3);
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<String, v1::JobState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, states: &BTreeMap<String, v1::JobState>) {
        let mut counts: BTreeMap<&'static str, i64> = BTreeMap::new();
        for state in states.values() {
            *counts.entry(name(*state)).or_default() += 1;
        }
        for state in (1..).map_while(|number| v1::JobState::try_from(number).ok()).map(name) {
            self.jobs.get_or_create(&StateLabels { state }).set(counts.get(state).copied().unwrap_or(0));
        }
    }
}

/// As in `state="LISTING"`.
fn name(state: v1::JobState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("JOB_STATE_").unwrap_or(name)
}

fn state(key: &str, value: &[u8]) -> Option<v1::JobState> {
    if !key.starts_with("jobs/") {
        return None;
    }
    JobRecord::decode(value).ok().map(|record| record.state())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tally::End;
    use ingle_daemon::metrics::conventions;

    #[test]
    fn names_follow_the_conventions_and_ends_are_told_once() {
        let metrics = Metrics::new("ingle-test");
        let (meters, reign) = (Meters::new(&metrics), Reign::new(&metrics));
        let end = |outcome| End { kind: "embed", outcome, took_ms: 1500, expected_ms: 2000.0 };
        let tally = Tally {
            placed: BTreeMap::from([(("embed", false), 2)]),
            ends: [end("done"), end("died")].into(),
            retried: BTreeMap::from([("halved", 1)]),
            set_aside: BTreeMap::from([("DOCUMENT_MALFORMED".to_owned(), 3)]),
        };
        meters.tally(&tally);
        meters.written(Duration::from_millis(3), None);
        meters.written(Duration::from_millis(3), Some(&StoreError::Full("no space".into())));
        let held = BTreeMap::from([("STORAGE_UNAVAILABLE".to_owned(), 1)]);
        meters.stand(&Stand { items: BTreeMap::from([("queued", 4)]), held, oldest_ms: 2500, ..Stand::default() });
        reign.leads(Epoch { generation: 7, revision: 9 });
        reign.changed();
        let text = metrics.text();
        assert_eq!(conventions::broken(&text), Vec::<String>::new());
        for line in [
            "ingle_coordinator_placements_total{kind=\"embed\",weights=\"to_load\"} 2",
            "ingle_coordinator_attempts_total{kind=\"embed\",outcome=\"died\"} 1",
            "ingle_coordinator_attempt_seconds_sum{kind=\"embed\"} 1.5",
            "ingle_coordinator_attempt_expected_seconds_sum{kind=\"embed\"} 2.0",
            "ingle_coordinator_attempt_seconds_count{kind=\"embed\"} 1",
            "ingle_coordinator_retries_total{reason=\"halved\"} 1",
            "ingle_coordinator_items_set_aside_total{code=\"DOCUMENT_MALFORMED\"} 3",
            "ingle_coordinator_store_write_seconds_count 1",
            "ingle_coordinator_store_refusals_total{reason=\"full\"} 1",
            "ingle_coordinator_items{state=\"queued\"} 4",
            "ingle_coordinator_jobs_held{code=\"STORAGE_UNAVAILABLE\"} 1",
            "ingle_coordinator_queue_age_seconds 2.5",
            "ingle_coordinator_epoch_generation 7",
            "ingle_coordinator_leader_changes_total 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        meters.stand(&Stand::default());
        let text = metrics.text();
        assert!(!text.contains("STORAGE_UNAVAILABLE"), "nothing is held any more: {text}");
    }
}
