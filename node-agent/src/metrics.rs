//! What the node counts; names without the `ingle_` prefix that the registry adds.

use ingle_daemon::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::heat::HeatMeters;

/// Labels of an attempt that ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttemptLabels {
    /// `embed`, `generate`, `ocr`, `join`, and `embed_call`, `generate_call`, `ocr_call`.
    pub kind: &'static str,
    /// `done`, or the kind of failure.
    pub outcome: &'static str,
}

/// The node's metrics. Clones share them.
#[derive(Clone)]
pub struct NodeMetrics {
    /// Attempts ended.
    pub attempts: Family<AttemptLabels, Counter>,
    /// Attempts running.
    pub running: Gauge,
    /// Requests waiting for a slot of a model.
    pub waiting: Gauge,
    /// Engine steps.
    pub steps: Counter,
    /// Seconds of one engine step.
    pub step_seconds: Histogram,
    /// Tokens read by models.
    pub tokens_in: Counter,
    /// Tokens written by models.
    pub tokens_out: Counter,
    /// Passages embedded for jobs.
    pub passages: Counter,
    /// Pages of documents read or found unreadable.
    pub pages: Counter,
    /// From a person's request to the first token of its answer.
    pub first_token_seconds: Histogram,
    /// Between two tokens of a person's answer.
    pub inter_token_seconds: Histogram,
    /// Requests in a model at one step.
    pub step_requests: Histogram,
    /// Requests in models now.
    pub requests: Gauge,
    /// Requests that all loaded models may have at once.
    pub slots: Gauge,
    /// Bytes of KV cache that requests in models fill.
    pub kv_bytes: Gauge,
    /// Bytes of KV cache that loaded models may fill.
    pub kv_reserved_bytes: Gauge,
    /// Models loaded.
    pub loads: Counter,
    /// Bytes of their weights.
    pub loaded_bytes: Counter,
    /// Seconds of one load.
    pub load_seconds: Histogram,
    /// Bytes of memory that loaded models take.
    pub model_bytes: Gauge,
    /// Bytes read from gateways.
    pub read_bytes: Counter,
    /// Bytes staged at gateways.
    pub staged_bytes: Counter,
    /// Storage calls tried again.
    pub storage_retries: Counter,
    /// Model threads that panicked or failed and were reloaded.
    pub model_restarts: Counter,
    /// What the machine says of itself.
    pub heat: HeatMeters,
    /// Engines that made no step for too long.
    pub stalled: Counter,
}

impl NodeMetrics {
    /// Registers all of them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            attempts: metrics.counters("node_attempts", "Attempts ended, by kind and outcome"),
            running: metrics.gauge("node_attempts_running", "Attempts running"),
            waiting: metrics.gauge("node_requests_waiting", "Requests waiting for a slot of a model"),
            steps: metrics.counter("node_engine_steps", "Engine steps"),
            step_seconds: metrics.seconds("node_engine_step_seconds", "Time of one engine step"),
            tokens_in: metrics.counter("node_tokens_read", "Tokens read by models"),
            tokens_out: metrics.counter("node_tokens_written", "Tokens written by models"),
            passages: metrics.counter("node_passages", "Passages embedded for jobs"),
            pages: metrics.counter("node_pages", "Pages of documents read or found unreadable"),
            first_token_seconds: metrics.seconds(
                "node_time_to_first_token_seconds",
                "From a person's request, its time in queues included, to the first token of the answer",
            ),
            inter_token_seconds: metrics
                .seconds("node_inter_token_seconds", "Between two tokens of an answer that a person waits for"),
            step_requests: metrics
                .numbers("node_engine_step_requests", "Requests that shared one engine step: the batch's occupancy"),
            requests: metrics.gauge("node_requests_in_models", "Requests that loaded models work on now"),
            slots: metrics.gauge("node_slots", "Requests that all loaded models may work on at once"),
            kv_bytes: metrics.gauge("node_kv_cache_used_bytes", "KV cache that requests in models fill now"),
            kv_reserved_bytes: metrics
                .gauge("node_kv_cache_reserved_bytes", "KV cache that is set aside for loaded models"),
            loaded_bytes: metrics.counter("node_model_loaded_bytes", "Bytes of weights of the models that were loaded"),
            loads: metrics.counter("node_model_loads", "Models loaded"),
            load_seconds: metrics.seconds("node_model_load_seconds", "Time of loading a model"),
            model_bytes: metrics.gauge("node_model_bytes", "Memory that loaded models take"),
            read_bytes: metrics.counter("node_read_bytes", "Bytes read from gateways"),
            staged_bytes: metrics.counter("node_staged_bytes", "Bytes staged at gateways"),
            storage_retries: metrics.counter("node_storage_retries", "Storage calls tried again"),
            model_restarts: metrics.counter("node_model_restarts", "Models reloaded after a failure of their thread"),
            heat: HeatMeters::new(metrics),
            stalled: metrics
                .counter("node_engine_stalls", "Engines that made no step for too long; the node starts anew"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new("ingle-test");
        let node = NodeMetrics::new(&metrics);
        node.attempts.get_or_create(&AttemptLabels { kind: "embed", outcome: "done" }).inc();
        node.heat.show_everything();
        let text = metrics.text();
        assert_eq!(ingle_daemon::metrics::conventions::broken(&text), Vec::<String>::new());
        assert!(text.contains("ingle_node_attempts_total{kind=\"embed\",outcome=\"done\"} 1"), "{text}");
    }
}
