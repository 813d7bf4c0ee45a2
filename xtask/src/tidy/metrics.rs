//! Rules and dashboards name only metrics that some daemon registers.

use std::collections::BTreeSet;

use super::{Finding, Tree};

/// Calls that register a metric; its name is their first argument, without the prefix.
const REGISTERS: &[&str] = &[".counter(", ".counters(", ".gauge(", ".gauges(", ".seconds(", ".register("];
const PREFIX: &str = "ingle_";
/// What Prometheus adds to a metric's name.
const ENDINGS: &[&str] = &["_total", "_bucket", "_sum", "_count", "_info"];

/// Compares names below `deploy/` with those in the code.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let known: BTreeSet<&str> = tree.rust().flat_map(|(_, text)| registered(text)).collect();
    let mut found = Vec::new();
    for (path, text) in tree.texts() {
        let is_ours = path.starts_with("deploy/prometheus/") || path.starts_with("deploy/grafana/");
        for name in is_ours.then(|| used(text)).into_iter().flatten() {
            let bare = name.trim_start_matches(PREFIX);
            let base = ENDINGS.iter().find_map(|ending| bare.strip_suffix(ending)).unwrap_or(bare);
            if !known.contains(bare) && !known.contains(base) {
                found.push(Finding::new(path, format!("names the metric {name}, which no daemon registers")));
            }
        }
    }
    found
}

fn registered(text: &str) -> impl Iterator<Item = &str> {
    REGISTERS.iter().flat_map(move |call| {
        text.split(call).skip(1).filter_map(|rest| {
            let name = rest.trim_start().strip_prefix('"')?.split('"').next()?;
            (!name.is_empty()).then_some(name)
        })
    })
}

fn used(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(PREFIX)
        .filter(|(at, _)| !text[..*at].ends_with(is_part))
        .map(|(at, _)| {
            let rest = &text[at..];
            &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_be_registered() {
        let code = "let a = metrics.counter(\"node_steps\", \"…\");\nlet b = metrics.seconds(\n    \"node_step_seconds\", \"…\");";
        let rules = |expr: &str| check(&Tree::of(&[("a/src/m.rs", code), ("deploy/prometheus/rules.yml", expr)])).len();
        assert_eq!(rules("rate(ingle_node_steps_total[5m])"), 0);
        assert_eq!(rules("ingle_node_step_seconds_bucket + ingle_node_step_seconds_sum"), 0);
        assert_eq!(rules("rate(ingle_node_stops_total[5m])"), 1);
        assert_eq!(rules("job=~\"ingle-.*\" and my_ingle_thing"), 0, "only whole names");
    }
}
