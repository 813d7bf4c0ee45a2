//! The conventions of names: whole words, base units, `_total` for what only grows, and a sentence of help for each.

/// Units that aren't base units, and what to use for them.
const UNITS: &[(&str, &str)] = &[
    ("_ms", "_seconds"),
    ("_us", "_seconds"),
    ("_ns", "_seconds"),
    ("_milliseconds", "_seconds"),
    ("_microseconds", "_seconds"),
    ("_minutes", "_seconds"),
    ("_hours", "_seconds"),
    ("_days", "_seconds"),
    ("_kib", "_bytes"),
    ("_mib", "_bytes"),
    ("_gib", "_bytes"),
    ("_kilobytes", "_bytes"),
    ("_megabytes", "_bytes"),
    ("_percent", "_ratio"),
    ("_milliwatts", "_watts"),
    ("_millidegrees", "_celsius"),
];
const TYPES: &[&str] = &["counter", "gauge", "histogram", "info"];
/// Most different sets of labels of one metric on a page: more is a label that isn't bounded.
const SERIES_MAX: usize = 400;

/// What of a page in OpenMetrics breaks the conventions, in words; empty for a good one.
#[must_use]
pub fn broken(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut described: Vec<(&str, &str)> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            described.push((name, help));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let help = described.iter().find(|(known, _)| *known == name).map_or("", |(_, help)| help);
            found.extend(judge(name, kind, help));
            let series = page.lines().filter(|line| is_sample_of(line, name)).count();
            if series > SERIES_MAX && kind != "histogram" {
                found.push(format!("{name} has {series} series: are its labels bounded?"));
            }
        }
    }
    if !page.ends_with("# EOF\n") {
        found.push("the page doesn't end with `# EOF`".to_owned());
    }
    found
}

fn is_sample_of(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
}

fn judge(name: &str, kind: &str, help: &str) -> Vec<String> {
    let mut found = Vec::new();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.starts_with("ingle_") || !name.chars().all(plain) || name.contains("__") || name.ends_with('_') {
        found.push(format!("{name}: expected ingle_ and words in lower case with single underscores"));
    }
    if !TYPES.contains(&kind) {
        found.push(format!("{name}: its type is {kind}"));
    }
    for (unit, instead) in UNITS {
        if name.ends_with(unit) {
            found.push(format!("{name}: base units only: {instead} instead of {unit}"));
        }
    }
    // `_total` and `_info` are put there by the encoding.
    for ending in ["_total", "_count", "_sum", "_bucket", "_info"] {
        if name.ends_with(ending) {
            found.push(format!("{name}: {ending} comes by itself, or means something else"));
        }
    }
    if kind == "histogram" && name.contains("time") && !name.ends_with("_seconds") {
        found.push(format!("{name}: a histogram of times ends in _seconds"));
    }
    // The encoding adds the full stop.
    let words = help.trim_end_matches('.');
    if words.split(' ').count() < 2 || !words.starts_with(|c: char| c.is_uppercase()) || words.ends_with('.') {
        found.push(format!("{name}: its help is {help:?}; expected a sentence with a capital and without a full stop"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str, kind: &str, help: &str) -> String {
        format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} 1\n# EOF\n")
    }

    #[test]
    fn good_names_pass() {
        for (name, kind) in [
            ("ingle_node_pages", "counter"),
            ("ingle_node_model_load_seconds", "histogram"),
            ("ingle_node_temperature_celsius", "gauge"),
            ("ingle_build", "info"),
        ] {
            assert_eq!(broken(&page(name, kind, "What it is")), Vec::<String>::new());
        }
    }

    #[test]
    fn bad_names_units_and_helps_are_told() {
        for (name, kind, help) in [
            ("node_pages", "counter", "What it is"),
            ("ingle_nodePages", "counter", "What it is"),
            ("ingle_node__pages", "counter", "What it is"),
            ("ingle_node_load_ms", "gauge", "What it is"),
            ("ingle_node_cache_mib", "gauge", "What it is"),
            ("ingle_node_used_percent", "gauge", "What it is"),
            ("ingle_node_pages_total", "counter", "What it is"),
            ("ingle_node_load_time", "histogram", "What it is"),
            ("ingle_node_pages", "untyped", "What it is"),
            ("ingle_node_pages", "counter", "pages"),
            ("ingle_node_pages", "counter", "what it is"),
        ] {
            assert_eq!(broken(&page(name, kind, help)).len(), 1, "{name} {kind} {help}");
        }
        assert_eq!(broken("# TYPE ingle_node_pages counter\n# EOF\n").len(), 1, "no help");
        assert_eq!(broken("").len(), 1, "cut off");
        let many: String = (0..500).map(|n| format!("ingle_a_b{{job=\"{n}\"}} 1\n")).collect();
        let many = format!("# HELP ingle_a_b What it is.\n# TYPE ingle_a_b gauge\n{many}# EOF\n");
        assert_eq!(broken(&many).len(), 1, "a label without bounds");
    }
}
