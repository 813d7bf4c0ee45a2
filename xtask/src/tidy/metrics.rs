//! Rules and dashboards name only metrics that some daemon registers, the manual names all of them, and each alert leads to a
//! heading of the runbook.

use std::collections::BTreeSet;

use super::{Finding, Tree};

/// Calls that register a metric; its name is their first argument, without the prefix.
const REGISTERS: &[&str] = &[
    ".counter(",
    ".counters(",
    ".float_counters(",
    ".gauge(",
    ".gauges(",
    ".float_gauge(",
    ".float_gauges(",
    ".seconds(",
    ".seconds_by(",
    ".numbers(",
    ".register(",
];
/// The manual of metrics, with a row for each.
const MANUAL: &str = "docs/metrics.md";
/// Where alerts lead.
const RUNBOOK: &str = "docs/operations/runbook.md";
/// Crates whose code registers nothing that a daemon serves.
const ELSEWHERE: &[&str] = &["xtask/", "tests/", "benches/"];
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
    found.extend(manual(tree));
    found.extend(runbook(tree));
    found
}

/// Compares the manual's rows with the code, both ways.
fn manual(tree: &Tree) -> Vec<Finding> {
    let code = tree.rust().filter(|(path, _)| !ELSEWHERE.iter().any(|folder| path.starts_with(folder)));
    // Names in tests of the code aren't served by anybody.
    let code: Vec<&str> = code.map(|(_, text)| text.split("#[cfg(test)]").next().unwrap_or("")).collect();
    let known: BTreeSet<&str> = code.iter().flat_map(|text| registered(text)).filter(|name| plain(name)).collect();
    let Some(text) = tree.text(MANUAL) else {
        return if known.is_empty() {
            Vec::new()
        } else {
            vec![Finding::new(MANUAL, "is missing: it names all metrics")]
        };
    };
    let rows: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `ingle_")?.split('`').next())
        .map(|name| ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name))
        .collect();
    let absent = known.difference(&rows).map(|name| format!("has no row for {PREFIX}{name}, which a daemon registers"));
    let stale = rows.difference(&known).map(|name| format!("has a row for {PREFIX}{name}, which no daemon registers"));
    absent.chain(stale).map(|words| Finding::new(MANUAL, words)).collect()
}

/// Whether it can be a metric: other registries take names too.
fn plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Each alert names a heading of the runbook that is there, and says what it is about.
fn runbook(tree: &Tree) -> Vec<Finding> {
    let headings: BTreeSet<String> =
        tree.text(RUNBOOK).unwrap_or("").lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| path.starts_with("deploy/prometheus/rules")) {
        let mut alerts = text.split("- alert: ").skip(1);
        for alert in &mut alerts {
            let name = alert.lines().next().unwrap_or("").trim();
            let field = |key: &str| {
                alert.lines().find_map(|line| line.trim().strip_prefix(key)).map(|value| value.trim().trim_matches('"'))
            };
            if field("summary:").is_none_or(str::is_empty) {
                found.push(Finding::new(path, format!("{name} has no summary")));
            }
            match field("runbook_url:").and_then(|link| link.rsplit_once('#')) {
                Some((file, heading)) if file.ends_with(RUNBOOK) && headings.contains(heading) => {}
                Some((_, heading)) => {
                    found.push(Finding::new(path, format!("{name} leads to #{heading}, which {RUNBOOK} doesn't have")));
                }
                None => found.push(Finding::new(path, format!("{name} has no runbook_url with a heading"))),
            }
        }
    }
    found
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
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
        let manual = "| `ingle_node_steps_total` | counter |\n| `ingle_node_step_seconds` | histogram |";
        let rules = |expr: &str| {
            let files = [("a/src/m.rs", code), (MANUAL, manual), ("deploy/grafana/a.json", expr)];
            check(&Tree::of(&files)).len()
        };
        assert_eq!(rules("rate(ingle_node_steps_total[5m])"), 0);
        assert_eq!(rules("ingle_node_step_seconds_bucket + ingle_node_step_seconds_sum"), 0);
        assert_eq!(rules("rate(ingle_node_stops_total[5m])"), 1);
        assert_eq!(rules("job=~\"ingle-.*\" and my_ingle_thing"), 0, "only whole names");
    }

    #[test]
    fn the_manual_and_the_code_tell_the_same() {
        let code = "metrics.float_gauges(\"node_watts\", \"…\");\n#[cfg(test)]\nmetrics.counter(\"things\", \"…\");";
        let told = |manual: &str| check(&Tree::of(&[("a/src/m.rs", code), (MANUAL, manual)])).len();
        assert_eq!(told("| `ingle_node_watts` | gauge |"), 0);
        assert_eq!(told("nothing"), 1);
        assert_eq!(told("| `ingle_node_watts` | gauge |\n| `ingle_node_volts` | gauge |"), 1);
        assert_eq!(check(&Tree::of(&[("a/src/m.rs", code)])).len(), 1, "no manual");
    }

    #[test]
    fn alerts_lead_to_headings() {
        let rule = |name: &str, rest: &str| format!("rules:\n  - alert: {name}\n    expr: up == 0\n{rest}");
        let told = |rule: &str| {
            let files = [("deploy/prometheus/rules/a.yml", rule), (RUNBOOK, "# Runbook\n## A node is hot, or slow\n")];
            check(&Tree::of(&files)).len()
        };
        let link = "      runbook_url: https://x/docs/operations/runbook.md#a-node-is-hot-or-slow\n";
        assert_eq!(told(&rule("Hot", &format!("      summary: \"it is hot\"\n{link}"))), 0);
        assert_eq!(told(&rule("Hot", link)), 1, "no summary");
        assert_eq!(told(&rule("Hot", "      summary: \"it is hot\"\n")), 1, "no link");
        let dead = "      summary: a\n      runbook_url: docs/operations/runbook.md#gone\n";
        assert_eq!(told(&rule("Hot", dead)), 1);
    }
}
