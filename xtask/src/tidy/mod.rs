//! What no compiler checks: each rule is a small module with its own tests on good and bad input.

pub mod codes;
pub mod docs;
pub mod edges;
pub mod examples;
pub mod leftovers;
pub mod licences;
pub mod linked;
pub mod manifests;
pub mod metadata;
pub mod metrics;
pub mod modules;
pub mod places;
pub mod rpcs;
pub mod size;
pub mod tree;

use std::path::Path;

pub use metadata::Metadata;
pub use tree::Tree;

/// Something that isn't as the house wants it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// A file, with a line where one helps, or a crate.
    pub place: String,
    /// What was expected, and what to do.
    pub problem: String,
}

impl Finding {
    /// A finding at a place.
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

type Check = fn(&Tree, &Metadata) -> Vec<Finding>;

/// Every check, in the order they are told.
const CHECKS: &[(&str, Check)] = &[
    ("edges", |_, metadata| edges::check(metadata)),
    ("manifests", manifests::check),
    ("linked", |_, metadata| linked::check(metadata)),
    ("licences", licences::check),
    ("modules", |tree, _| modules::check(tree)),
    ("size", |tree, _| size::check(tree)),
    ("leftovers", |tree, _| leftovers::check(tree)),
    ("examples", |tree, _| examples::check(tree)),
    ("places", |tree, _| places::check(tree)),
    ("codes", |tree, _| codes::check(tree)),
    ("rpcs", |tree, _| rpcs::check(tree)),
    ("metrics", |tree, _| metrics::check(tree)),
    ("docs", |tree, _| docs::check(tree)),
];

/// Runs every check over the workspace at `root`; pairs of (check, finding).
///
/// # Errors
/// If the tree can't be read or cargo can't describe it.
pub fn findings(root: &Path) -> anyhow::Result<Vec<(&'static str, Finding)>> {
    let tree = Tree::read(root)?;
    let metadata = Metadata::read(root)?;
    let mut all = Vec::new();
    for (name, check) in CHECKS {
        let mut found = check(&tree, &metadata);
        found.sort();
        all.extend(found.into_iter().map(|finding| (*name, finding)));
    }
    Ok(all)
}

/// Prints what [`findings`] finds; whether there was nothing.
///
/// # Errors
/// As [`findings`].
pub fn report(root: &Path) -> anyhow::Result<bool> {
    let found = findings(root)?;
    for (check, finding) in &found {
        crate::say(&format!("tidy: {check}: {}: {}", finding.place, finding.problem));
    }
    match found.len() {
        0 => crate::say(&format!("tidy: {} checks, nothing found", CHECKS.len())),
        count => crate::say(&format!("tidy: {count} found")),
    }
    Ok(found.is_empty())
}
