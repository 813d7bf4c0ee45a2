//! The gateway's metrics: names, descriptions, and one function per event.

use std::sync::LazyLock;
use std::time::Duration;

use ingle_daemon::metrics::{Histograms, Metrics};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::export::ExportError;
use crate::ledger::record::Result as Verdict;

/// Labels of a call to a NAS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    export: String,
    call: &'static str,
    outcome: &'static str,
}

/// Labels of what concerns one export.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExportLabels {
    export: String,
}

/// Labels of a kind of call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    call: &'static str,
}

/// Handles that an NFS server no longer knew. Of this process, for they are met far below whatever counts calls.
pub(crate) static STALE_HANDLES: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Labels of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    outcome: &'static str,
}

/// Labels of a look into the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TierLabels {
    found: &'static str,
}

/// Labels of a scanned entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ActionLabels {
    action: &'static str,
}

/// All of them. Clones share them.
#[derive(Clone)]
pub struct Meters {
    calls: Family<CallLabels, Counter>,
    call_seconds: Histograms<KindLabels>,
    available: Family<ExportLabels, Gauge>,
    bytes_read: Family<ExportLabels, Counter>,
    bytes_written: Family<ExportLabels, Counter>,
    reads: Family<ExportLabels, Gauge>,
    publishes: Family<OutcomeLabels, Counter>,
    entries: Family<ActionLabels, Counter>,
    cached: Family<TierLabels, Counter>,
    damaged: Counter,
}

impl Meters {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        metrics.register(
            "gateway_nas_stale_handles",
            "Handles that an NFS server no longer knew: the file was replaced, or the server exports anew",
            STALE_HANDLES.clone(),
        );
        Self {
            calls: metrics.counters("gateway_nas_calls", "Calls to exports, by kind and outcome"),
            call_seconds: metrics.seconds_by("gateway_nas_call_seconds", "How long calls to exports took, by kind"),
            available: metrics.gauges("gateway_export_available", "Whether the last call to an export found it there"),
            bytes_read: metrics.counters("gateway_read_bytes", "Bytes read from exports"),
            bytes_written: metrics.counters("gateway_written_bytes", "Bytes written to exports"),
            reads: metrics.gauges("gateway_reads_in_flight", "Reads open now"),
            publishes: metrics.counters("gateway_publishes", "Outputs published, by outcome"),
            entries: metrics.counters("gateway_scan_entries", "Entries listed by scans, by what is to be done"),
            cached: metrics
                .counters("gateway_cache_pieces", "Pieces looked for in the cache, by where they were found"),
            damaged: metrics
                .counter("gateway_cache_damaged_pieces", "Pieces on the cache's disk that failed their checksum"),
        }
    }

    /// A call to an export ended.
    pub fn call(&self, export: &str, call: &'static str, error: Option<&ExportError>, took: Duration) {
        let there = error.is_none_or(|error| !error.retryable());
        self.available.get_or_create(&ExportLabels { export: export.to_owned() }).set(i64::from(there));
        let outcome = match error {
            None => "ok",
            // Answers, not failures.
            Some(ExportError::NotFound(_)) => "not_found",
            Some(ExportError::Exists(_)) => "exists",
            Some(error) if error.retryable() => "unavailable",
            Some(_) => "refused",
        };
        self.calls.get_or_create(&CallLabels { export: export.to_owned(), call, outcome }).inc();
        self.call_seconds.get_or_create(&KindLabels { call }).observe(took.as_secs_f64());
    }

    /// Bytes came.
    pub fn read(&self, export: &str, bytes: u64) {
        self.bytes_read.get_or_create(&ExportLabels { export: export.to_owned() }).inc_by(bytes);
    }

    /// Bytes went.
    pub fn written(&self, export: &str, bytes: u64) {
        self.bytes_written.get_or_create(&ExportLabels { export: export.to_owned() }).inc_by(bytes);
    }

    /// A read began; it ends when the answer is dropped.
    #[must_use]
    pub fn reading(&self, export: &str) -> Reading {
        let gauge = self.reads.get_or_create(&ExportLabels { export: export.to_owned() }).clone();
        gauge.inc();
        Reading(gauge)
    }

    /// An output was settled.
    pub fn publish(&self, verdict: Verdict) {
        let outcome = match verdict {
            Verdict::Published => "published",
            Verdict::Kept => "kept",
            Verdict::Conflict => "conflict",
            Verdict::Deleted => "deleted",
            Verdict::Refused => "refused",
            Verdict::Unspecified => "unspecified",
        };
        self.publishes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A piece was looked for: found in `memory`, on `disk`, or `none` of them.
    pub fn cached(&self, found: &'static str) {
        self.cached.get_or_create(&TierLabels { found }).inc();
    }

    /// A piece on disk was not what was written.
    pub fn damaged_piece(&self) {
        self.damaged.inc();
    }

    /// Entries were listed.
    pub fn scanned(&self, action: &'static str, entries: u64) {
        self.entries.get_or_create(&ActionLabels { action }).inc_by(entries);
    }
}

/// A read that is open.
pub struct Reading(Gauge);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ingle_daemon::metrics::conventions;

    #[test]
    fn names_follow_the_conventions_and_calls_say_whether_the_nas_is_there() {
        let metrics = Metrics::new("ingle-test");
        let meters = Meters::new(&metrics);
        let took = Duration::from_millis(3);
        meters.call("docs", "read", None, took);
        meters.call("docs", "stat", Some(&ExportError::NotFound("a".into())), took);
        meters.call("away", "list", Some(&ExportError::Unavailable("silent".into())), took);
        meters.read("docs", 5);
        meters.written("docs", 7);
        meters.publish(Verdict::Published);
        meters.cached("memory");
        meters.damaged_piece();
        meters.scanned("new", 3);
        drop(meters.reading("docs"));
        let text = metrics.text();
        assert_eq!(conventions::broken(&text), Vec::<String>::new());
        for line in [
            "ingle_gateway_export_available{export=\"docs\"} 1",
            "ingle_gateway_export_available{export=\"away\"} 0",
            "ingle_gateway_nas_call_seconds_count{call=\"read\"} 1",
            "ingle_gateway_nas_calls_total{export=\"away\",call=\"list\",outcome=\"unavailable\"} 1",
            "ingle_gateway_reads_in_flight{export=\"docs\"} 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        assert!(text.contains("ingle_gateway_nas_stale_handles_total "), "told before there is one: {text}");
    }
}
