//! Who may depend on whom: the table that ARCHITECTURE.md prints, and that only `engine-candle` compiles candle.

use super::metadata::Kind;
use super::{Finding, Metadata};

/// One row: a member, what of ours it may use, and what of ours only its tests may use besides.
struct Row {
    name: &'static str,
    uses: &'static [&'static str],
    tests_use: &'static [&'static str],
}

const fn row(name: &'static str, uses: &'static [&'static str]) -> Row {
    Row { name, uses, tests_use: &[] }
}

/// The direction of dependencies, lowest first. A crate that isn't here isn't in the house.
const EDGES: &[Row] = &[
    row("ingle-proto", &[]),
    row("ingle-daemon", &[]),
    row("ingle-engine", &[]),
    row("ingle-iscsi", &[]),
    row("ingle-membership", &["ingle-proto", "ingle-daemon"]),
    row("ingle-engine-candle", &["ingle-engine"]),
    row("ingle-parse", &["ingle-engine"]),
    row("ingle-coordinator", &["ingle-proto", "ingle-daemon", "ingle-membership"]),
    row("ingle-gateway", &["ingle-proto", "ingle-daemon", "ingle-membership", "ingle-iscsi"]),
    row("ingle-node-agent", &["ingle-proto", "ingle-daemon", "ingle-membership", "ingle-engine", "ingle-parse"]),
    row("ingle-node", &["ingle-node-agent", "ingle-engine-candle"]),
    row("ingle", &["ingle-proto", "ingle-daemon"]),
    Row {
        name: "ingle-tests",
        uses: &[
            "ingle-proto",
            "ingle-daemon",
            "ingle-engine",
            "ingle-membership",
            "ingle-coordinator",
            "ingle-gateway",
            "ingle-node-agent",
        ],
        tests_use: &["ingle-engine-candle"],
    },
    row(
        "ingle-benches",
        &[
            "ingle-proto",
            "ingle-daemon",
            "ingle-coordinator",
            "ingle-engine",
            "ingle-engine-candle",
            "ingle-gateway",
            "ingle-node-agent",
            "ingle-tests",
        ],
    ),
    row("xtask", &[]),
];

/// The only crate that compiles candle.
const CANDLE: &str = "ingle-engine-candle";

/// Compares what cargo says with the table.
#[must_use]
pub fn check(metadata: &Metadata) -> Vec<Finding> {
    let ours: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let Some(row) = EDGES.iter().find(|row| row.name == package.name) else {
            found.push(Finding::new(
                &package.name,
                "is in no row of the edges table: say in xtask/src/tidy/edges.rs and ARCHITECTURE.md what it may use",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if name.starts_with("candle-") && package.name != CANDLE {
                found.push(Finding::new(&package.name, format!("depends on {name}; only {CANDLE} compiles candle")));
            }
            let allowed = row.uses.contains(&name) || (dependency.kind == Kind::Dev && row.tests_use.contains(&name));
            // A crate's tests may name the crate itself (to turn a feature on).
            if ours.contains(&name) && !allowed && name != package.name {
                let may = if row.uses.is_empty() { "nothing of ours".to_owned() } else { row.uses.join(", ") };
                found.push(Finding::new(&package.name, format!("depends on {name}; it may use {may}")));
            }
        }
    }
    for row in EDGES.iter().filter(|row| !ours.contains(&row.name)) {
        found.push(Finding::new(row.name, "stands in the edges table but not in the workspace"));
    }
    found
}

/// The table as ARCHITECTURE.md prints it: member, what it uses.
pub fn rows() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    EDGES.iter().map(|row| (row.name, row.uses))
}

#[cfg(test)]
mod tests {
    use super::super::metadata::{Dependency, Package};
    use super::*;

    /// The house as the table wants it, with more edges.
    fn house(more: &[(&str, &str, Kind)]) -> Metadata {
        let packages = EDGES
            .iter()
            .map(|row| {
                let mut dependencies: Vec<Dependency> =
                    row.uses.iter().map(|name| Dependency { name: (*name).into(), kind: Kind::Normal }).collect();
                for (from, to, kind) in more {
                    if *from == row.name {
                        dependencies.push(Dependency { name: (*to).into(), kind: *kind });
                    }
                }
                Package { name: row.name.into(), dependencies, ..Package::default() }
            })
            .collect();
        Metadata { packages, ..Metadata::default() }
    }

    fn problem(from: &str, to: &str, kind: Kind) -> Option<String> {
        let found = check(&house(&[(from, to, kind)]));
        assert!(found.len() <= 1, "{found:?}");
        found.into_iter().next().map(|finding| format!("{}: {}", finding.place, finding.problem))
    }

    #[test]
    fn the_table_itself_is_sound() {
        assert_eq!(check(&house(&[])), []);
        assert_eq!(problem("ingle-tests", "ingle-engine-candle", Kind::Dev), None);
        assert_eq!(problem(CANDLE, "candle-core", Kind::Normal), None);
        assert_eq!(problem("ingle-membership", "ingle-membership", Kind::Dev), None);
    }

    #[test]
    fn daemons_never_meet() {
        for from in ["ingle-coordinator", "ingle-gateway", "ingle-node-agent", "ingle"] {
            for to in ["ingle-coordinator", "ingle-gateway", "ingle-node-agent"] {
                for kind in [Kind::Normal, Kind::Dev, Kind::Build] {
                    if from != to {
                        assert!(problem(from, to, kind).is_some(), "{from} -> {to}");
                    }
                }
            }
        }
        let words = problem("ingle-proto", "ingle-daemon", Kind::Normal).expect("an edge too many");
        assert!(words.contains("nothing of ours"), "{words}");
    }

    #[test]
    fn candle_stays_in_its_crate() {
        assert!(problem("ingle-node-agent", "candle-core", Kind::Normal).is_some());
        assert!(problem("ingle-node", "candle-nn", Kind::Normal).is_some());
        assert!(problem("ingle-tests", "ingle-engine-candle", Kind::Normal).is_some(), "only its tests link candle");
    }

    #[test]
    fn strangers_and_absentees_are_named() {
        let mut metadata = house(&[]);
        metadata.packages.pop();
        metadata.packages.push(Package { name: "ingle-extra".into(), ..Package::default() });
        let places: Vec<String> = check(&metadata).into_iter().map(|finding| finding.place).collect();
        assert_eq!(places, ["ingle-extra", "xtask"]);
    }
}
