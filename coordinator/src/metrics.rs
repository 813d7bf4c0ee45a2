//! The coordinator's metrics: names, descriptions, and one function per event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ingle_daemon::metrics::Metrics;
use ingle_proto::v1;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;

use crate::core::record::{Change, JobRecord};
use crate::store::Records;

/// Labels of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// All of them. Clones share them.
#[derive(Clone)]
pub struct Meters {
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
