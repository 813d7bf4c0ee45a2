//! Heat, power and memory pressure of this machine, read every two seconds and told as metrics and in beats.
//!
//! What isn't there is normal: a virtual machine has no sensors, energy counters may be root's alone, NVML comes with a
//! driver. Such metrics have no series then, and beats say 0.

mod files;
mod gpu;
mod meters;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpu::Gpus;
pub use meters::{HeatMeters, Summary};

/// How often sensors are read.
const EVERY: Duration = Duration::from_secs(2);
/// How long a machine counts as throttled after its counters last moved.
const THROTTLED_FOR: Duration = Duration::from_secs(10);
/// Longest time between two readings over which power is added up: longer, and the machine slept.
const ADDED_UP_MAX: Duration = Duration::from_secs(60);

/// What was read at one moment. Keys are bounded: `cpu`, `gpu`, `disk`, `board`, `other` for temperatures, `package` and
/// `gpu` for power and energy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Degrees Celsius of the hottest of each kind.
    pub temperatures: BTreeMap<&'static str, f64>,
    /// Watts, where they are told as such.
    pub watts: BTreeMap<&'static str, f64>,
    /// Counters of energy: joules so far and where they begin anew, by the counter's name.
    pub counters: BTreeMap<String, EnergyCounter>,
    /// Times that the processor was slowed down by heat, since the machine started.
    pub throttles: Option<u64>,
    /// An accelerator is slowed down by heat now.
    pub gpu_throttled: bool,
    /// Waiting for `cpu`, `memory` and `io`.
    pub pressures: Vec<Pressure>,
    /// Memory and swap.
    pub memory: Option<Memory>,
}

/// A counter of energy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EnergyCounter {
    /// `package` or `gpu`.
    pub source: &'static str,
    /// So far.
    pub joules: f64,
    /// It begins anew here; 0 if it doesn't.
    pub range: f64,
}

/// How much was waited for something: `/proc/pressure`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// `cpu`, `memory` or `io`.
    pub resource: &'static str,
    /// `some` or `full`: some of those who could work waited, or all of them.
    pub kind: &'static str,
    /// Share of the last ten seconds.
    pub ratio: f64,
    /// Since the machine started.
    pub seconds: f64,
}

/// Bytes: `/proc/meminfo`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of the machine.
    pub total: u64,
    /// To be had without swapping.
    pub available: u64,
    /// Of swap.
    pub swap_total: u64,
    /// Of that, used.
    pub swap_used: u64,
}

/// Reads the sensors below a root, which is `/` but in tests.
pub struct Sensors {
    root: PathBuf,
    gpus: Gpus,
    meters: HeatMeters,
    before: Option<(Instant, Reading)>,
    throttled_at: Option<Instant>,
}

impl Sensors {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(root: &Path, meters: HeatMeters) -> Self {
        Self { root: root.to_owned(), gpus: Gpus::default(), meters, before: None, throttled_at: None }
    }

    /// Reads for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sensors = self;
        loop {
            ticks.tick().await;
            // Some sensors answer over slow buses, and drivers may hang.
            let read = tokio::task::spawn_blocking(move || {
                sensors.look();
                sensors
            });
            match read.await {
                Ok(again) => sensors = again,
                Err(error) => {
                    tracing::warn!(%error, "sensors are no longer read");
                    return;
                }
            }
        }
    }

    /// Reads everything once, and tells it.
    pub fn look(&mut self) {
        let mut reading = files::read(&self.root);
        self.gpus.add_to(&mut reading);
        self.take(reading, Instant::now());
    }

    fn take(&mut self, reading: Reading, now: Instant) {
        let before = self.before.take().filter(|(at, _)| now.duration_since(*at) < ADDED_UP_MAX);
        let (mut joules, mut watts) = (BTreeMap::new(), reading.watts.clone());
        if let Some((at, before)) = &before {
            let seconds = now.duration_since(*at).as_secs_f64();
            for (name, counter) in &reading.counters {
                let Some(spent) = before.counters.get(name).and_then(|before| spent(before, counter)) else { continue };
                *joules.entry(counter.source).or_insert(0.0) += spent;
            }
            for (source, joules) in &joules {
                // Counters are exact where a reading is a moment's.
                if seconds > 0.0 {
                    watts.insert(*source, joules / seconds);
                }
            }
            for (source, watts) in &reading.watts {
                joules.entry(*source).or_insert(watts * seconds);
            }
            let more = |now: Option<u64>, before: Option<u64>| now > before && before.is_some();
            if more(reading.throttles, before.throttles) {
                self.throttled_at = Some(now);
            }
        }
        let lately = self.throttled_at.is_some_and(|at| now.duration_since(at) < THROTTLED_FOR);
        self.meters.tell(&reading, &watts, &joules, lately || reading.gpu_throttled);
        self.before = Some((now, reading));
    }
}

/// Joules between two readings of a counter; none where it went back for no reason that we know.
fn spent(before: &EnergyCounter, now: &EnergyCounter) -> Option<f64> {
    let spent = now.joules - before.joules;
    if spent >= 0.0 {
        return Some(spent);
    }
    (now.range > 0.0 && spent + now.range >= 0.0).then_some(spent + now.range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ingle_daemon::metrics::Metrics;

    fn sensors() -> (Sensors, Metrics) {
        let metrics = Metrics::new("ingle-test");
        (Sensors::new(Path::new("/nonexistent"), HeatMeters::new(&metrics)), metrics)
    }

    fn counted(joules: f64) -> Reading {
        let counter = EnergyCounter { source: "package", joules, range: 1000.0 };
        Reading { counters: BTreeMap::from([("intel-rapl:0".to_owned(), counter)]), ..Reading::default() }
    }

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        metrics.text().lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    #[test]
    fn energy_adds_up_over_a_counter_that_begins_anew() {
        let (mut sensors, metrics) = sensors();
        let begun = Instant::now();
        for (second, joules) in [(0, 900.0), (2, 960.0), (4, 20.0)] {
            sensors.take(counted(joules), begun + Duration::from_secs(second));
        }
        assert_eq!(value(&metrics, "ingle_node_energy_joules_total{source=\"package\"}"), Some(120.0));
        assert_eq!(value(&metrics, "ingle_node_power_watts{source=\"package\"}"), Some(30.0));
        assert!((sensors.meters.summary().power_watts - 30.0).abs() < 1e-9);
        sensors.take(counted(500.0), begun + Duration::from_secs(4000));
        assert_eq!(value(&metrics, "ingle_node_energy_joules_total{source=\"package\"}"), Some(120.0), "it slept");
    }

    #[test]
    fn power_without_a_counter_is_added_up() {
        let (mut sensors, metrics) = sensors();
        let begun = Instant::now();
        for second in [0, 2, 4] {
            let reading = Reading { watts: BTreeMap::from([("gpu", 50.0)]), ..Reading::default() };
            sensors.take(reading, begun + Duration::from_secs(second));
        }
        assert_eq!(value(&metrics, "ingle_node_energy_joules_total{source=\"gpu\"}"), Some(200.0));
    }

    #[test]
    fn throttling_shows_for_a_while() {
        let (mut sensors, _metrics) = sensors();
        let begun = Instant::now();
        let throttled = |sensors: &mut Sensors, second, throttles| {
            sensors.take(Reading { throttles, ..Reading::default() }, begun + Duration::from_secs(second));
            sensors.meters.summary().throttled
        };
        assert!(!throttled(&mut sensors, 0, Some(7)), "what was before us isn't now");
        assert!(throttled(&mut sensors, 2, Some(8)));
        assert!(throttled(&mut sensors, 10, Some(8)));
        assert!(!throttled(&mut sensors, 13, Some(8)));
        assert!(!throttled(&mut sensors, 14, None), "no sensor any more");
    }

    #[test]
    fn a_machine_without_sensors_says_nothing() {
        let (mut sensors, metrics) = sensors();
        sensors.gpus = Gpus::absent();
        sensors.look();
        sensors.look();
        assert_eq!(sensors.meters.summary(), Summary::default());
        let text = metrics.text();
        for name in ["node_temperature_celsius{", "node_power_watts{", "node_pressure_ratio{", "node_energy_joules"] {
            assert!(!text.contains(name), "{name} in {text}");
        }
    }
}
