//! The machine's metrics, and the few figures of them that beats carry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ingle_daemon::metrics::{FloatCounter, FloatGauge, Metrics};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Reading;

/// Labels of a sensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Labels of power and energy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

/// Labels of waiting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PressureLabels {
    resource: &'static str,
    kind: &'static str,
}

/// What beats carry; 0 for what isn't known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// Of the hottest of processor and accelerators; of the board where neither is told.
    pub temperature_celsius: f64,
    /// Of processor and accelerators together.
    pub power_watts: f64,
    /// Share of the last ten seconds in which something waited for memory.
    pub memory_pressure: f64,
    /// Slowed down by heat.
    pub throttled: bool,
}

/// The machine's metrics. Clones share them.
#[derive(Clone)]
pub struct HeatMeters {
    temperatures: Family<KindLabels, FloatGauge>,
    watts: Family<SourceLabels, FloatGauge>,
    joules: Family<SourceLabels, FloatCounter>,
    throttled: Gauge,
    pressure: Family<PressureLabels, FloatGauge>,
    stalled: Family<PressureLabels, FloatCounter>,
    memory_total: Gauge,
    memory_available: Gauge,
    swap_total: Gauge,
    swap_used: Gauge,
    summary: Arc<Mutex<Summary>>,
}

impl HeatMeters {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            temperatures: metrics
                .float_gauges("node_temperature_celsius", "Temperature of the hottest sensor of each kind"),
            watts: metrics.float_gauges("node_power_watts", "Power that processor packages and accelerators draw"),
            joules: metrics.float_counters(
                "node_energy_joules",
                "Energy that processor packages and accelerators have used since the node started",
            ),
            throttled: metrics.gauge("node_throttled", "Whether heat slows the machine down, now or seconds ago"),
            pressure: metrics.float_gauges(
                "node_pressure_ratio",
                "Share of the last ten seconds in which some or all work waited for a resource",
            ),
            stalled: metrics.float_counters(
                "node_pressure_stalled_seconds",
                "Time for which some or all work has waited for a resource since the machine started",
            ),
            memory_total: metrics.gauge("node_memory_total_bytes", "Memory of the machine"),
            memory_available: metrics
                .gauge("node_memory_available_bytes", "Memory that could be had now without swapping"),
            swap_total: metrics.gauge("node_swap_total_bytes", "Swap space of the machine"),
            swap_used: metrics.gauge("node_swap_used_bytes", "Swap space in use"),
            summary: Arc::default(),
        }
    }

    /// What beats carry.
    #[must_use]
    pub fn summary(&self) -> Summary {
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reading, with power and energy since the one before as they were worked out.
    pub(super) fn tell(
        &self,
        reading: &Reading,
        watts: &BTreeMap<&'static str, f64>,
        joules: &BTreeMap<&'static str, f64>,
        throttled: bool,
    ) {
        for (kind, celsius) in &reading.temperatures {
            self.temperatures.get_or_create(&KindLabels { kind }).set(*celsius);
        }
        for (source, watts) in watts {
            self.watts.get_or_create(&SourceLabels { source }).set(*watts);
        }
        for (source, joules) in joules {
            self.joules.get_or_create(&SourceLabels { source }).inc_by(joules.max(0.0));
        }
        self.throttled.set(i64::from(throttled));
        for pressure in &reading.pressures {
            let labels = PressureLabels { resource: pressure.resource, kind: pressure.kind };
            self.pressure.get_or_create(&labels).set(pressure.ratio);
            let stalled = self.stalled.get_or_create(&labels);
            let more = pressure.seconds - stalled.get();
            if more > 0.0 {
                stalled.inc_by(more);
            }
        }
        if let Some(memory) = reading.memory {
            let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.memory_total.set(bytes(memory.total));
            self.memory_available.set(bytes(memory.available));
            self.swap_total.set(bytes(memory.swap_total));
            self.swap_used.set(bytes(memory.swap_used));
        }
        let of = |kind: &str| reading.temperatures.get(kind).copied();
        let hottest = match (of("cpu"), of("gpu")) {
            (Some(cpu), Some(gpu)) => Some(cpu.max(gpu)),
            (cpu, gpu) => cpu.or(gpu).or_else(|| of("board")),
        };
        let waits = reading.pressures.iter().find(|p| p.resource == "memory" && p.kind == "some");
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = Summary {
            temperature_celsius: hottest.unwrap_or(0.0),
            power_watts: watts.values().sum(),
            memory_pressure: waits.map_or(0.0, |pressure| pressure.ratio),
            throttled,
        };
    }

    /// A series of each metric, so that a test sees all names.
    #[cfg(test)]
    pub(crate) fn show_everything(&self) {
        let pressures = vec![super::Pressure { resource: "memory", kind: "some", ratio: 0.5, seconds: 1.0 }];
        let temperatures = BTreeMap::from([("cpu", 50.0)]);
        let each = BTreeMap::from([("package", 10.0)]);
        self.tell(&Reading { temperatures, pressures, ..Reading::default() }, &each, &each, false);
    }
}
