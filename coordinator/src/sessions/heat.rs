//! Heat and power as beats tell them. Nothing is decided by them, so they stay out of the core; people are shown them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ingle_proto::{NodeId, v1};

use super::lock;
use crate::limits;

/// After this long a figure says nothing of now.
const FRESH_FOR: Duration = Duration::from_secs(30);

/// What one beat said.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: Instant,
    celsius: f64,
    watts: f64,
    pressure: f64,
    throttled: bool,
}

/// The latest word of each node. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Heat(Arc<Mutex<BTreeMap<String, Said>>>);

impl Heat {
    /// A node answered a beat.
    pub(super) fn told(&self, node: &NodeId, beat: &v1::BeatResponse) {
        let at = Instant::now();
        // A node's word, but never what breaks a table or a sum.
        let sane = |value: f64, most: f64| if value.is_finite() { value.clamp(0.0, most) } else { 0.0 };
        let said = Said {
            at,
            celsius: sane(beat.temperature_celsius, 200.0),
            watts: sane(beat.power_watts, 100_000.0),
            pressure: sane(beat.memory_pressure, 1.0),
            throttled: beat.throttled,
        };
        let mut all = lock(&self.0);
        if all.len() >= limits::NODES_MAX && !all.contains_key(node.as_str()) {
            all.retain(|_, said| at.duration_since(said.at) < FRESH_FOR);
        }
        all.insert(node.as_str().to_owned(), said);
    }

    /// Adds what is fresh.
    pub(super) fn add_to(&self, nodes: &mut [v1::NodeStatus]) {
        let all = lock(&self.0);
        for node in nodes {
            let Some(said) = all.get(&node.node_id).filter(|said| said.at.elapsed() < FRESH_FOR) else { continue };
            node.temperature_celsius = said.celsius;
            node.power_watts = said.watts;
            node.memory_pressure = said.pressure;
            node.throttled = said.throttled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_beat_says_is_shown_of_its_node_and_kept_within_reason() {
        let heat = Heat::default();
        let id = |text: &str| NodeId::parse(text).expect("a node's name");
        let beat = v1::BeatResponse {
            temperature_celsius: 71.5,
            power_watts: f64::INFINITY,
            memory_pressure: 7.0,
            throttled: true,
            ..Default::default()
        };
        let (one, two) = (format!("n-{:032x}", 1), format!("n-{:032x}", 2));
        heat.told(&id(&one), &beat);
        let status = |node_id: &str| v1::NodeStatus { node_id: node_id.to_owned(), ..Default::default() };
        let mut nodes = [status(&one), status(&two)];
        heat.add_to(&mut nodes);
        let shown = (nodes[0].temperature_celsius, nodes[0].power_watts, nodes[0].memory_pressure, nodes[0].throttled);
        assert_eq!(shown, (71.5, 0.0, 1.0, true));
        assert_eq!(nodes[1], status(&two), "another node's is not its own");
    }
}
