//! The gateway's metrics: names, descriptions, and one function per event.

use std::time::Duration;

use ingle_daemon::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

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
    call_seconds: Histogram,
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
        Self {
            calls: metrics.counters("gateway_nas_calls", "Calls to exports, by kind and outcome"),
            call_seconds: metrics.seconds("gateway_nas_call_seconds", "How long calls to exports took"),
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
        let outcome = match error {
            None => "ok",
            // Answers, not failures.
            Some(ExportError::NotFound(_)) => "not_found",
            Some(ExportError::Exists(_)) => "exists",
            Some(error) if error.retryable() => "unavailable",
            Some(_) => "refused",
        };
        self.calls.get_or_create(&CallLabels { export: export.to_owned(), call, outcome }).inc();
        self.call_seconds.observe(took.as_secs_f64());
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
