//! Manifests: names that say something, shared lints and versions, one cargo feature.

use toml::{Table, Value};

use super::{Finding, Metadata, Tree};

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "utils", "util", "types", "shared", "helpers", "misc", "core"];
/// The only cargo feature, and who has it.
const FEATURE: &str = "cuda";
const FEATURE_HOLDERS: &[&str] = &["ingle-engine-candle", "ingle-node"];

/// Checks each member's manifest.
#[must_use]
pub fn check(tree: &Tree, metadata: &Metadata) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        let mut say = |problem: String| found.push(Finding::new(&package.manifest, problem));
        let short = package.name.strip_prefix("ingle-").unwrap_or(&package.name);
        if EMPTY_NAMES.contains(&short) {
            say(format!("a crate called `{short}` says nothing: name it for a capability"));
        }
        for feature in &package.features {
            if feature != FEATURE || !FEATURE_HOLDERS.contains(&package.name.as_str()) {
                say(format!(
                    "feature `{feature}`: `{FEATURE}` is the house's only one (in {})",
                    FEATURE_HOLDERS.join(", ")
                ));
            }
        }
        match tree.text(&package.manifest).map(str::parse::<Table>) {
            Some(Ok(manifest)) => manifest_problems(&manifest).into_iter().for_each(say),
            Some(Err(error)) => say(format!("isn't TOML: {error}")),
            None => say("isn't in the tree".into()),
        }
    }
    found
}

fn manifest_problems(manifest: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    let inherits = |value: Option<&Value>| value.and_then(|value| value.get("workspace")?.as_bool()) == Some(true);
    if !inherits(manifest.get("lints")) {
        problems.push("needs `[lints] workspace = true`".into());
    }
    let package = manifest.get("package");
    for key in ["version", "edition", "rust-version", "license", "publish"] {
        if !inherits(package.and_then(|package| package.get(key))) {
            problems.push(format!("needs `{key}.workspace = true`"));
        }
    }
    let described = package.and_then(|package| package.get("description")).and_then(Value::as_str);
    if described.is_none_or(str::is_empty) {
        problems.push("needs a `description`: one line that says what it is for".into());
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let entries = manifest.get(section).and_then(Value::as_table).into_iter().flatten();
        for (name, entry) in entries {
            if !inherits(Some(entry)) && entry.get("path").is_none() {
                problems.push(format!("{section}.{name}: versions stand once, in the root's [workspace.dependencies]"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::metadata::Package;
    use super::*;

    const GOOD: &str = "\
[package]
name = 'ingle-a'
description = 'Counts sheep'
version.workspace = true
edition.workspace = true
rust-version.workspace = true
license.workspace = true
publish.workspace = true
[lints]
workspace = true
[dependencies]
serde.workspace = true
[dev-dependencies]
tempfile = { workspace = true }
";

    fn problems(name: &str, features: &[&str], manifest: &str) -> Vec<String> {
        let package = Package {
            name: name.into(),
            features: features.iter().map(|feature| (*feature).into()).collect(),
            manifest: "a/Cargo.toml".into(),
            ..Package::default()
        };
        let found = check(
            &Tree::of(&[("a/Cargo.toml", manifest)]),
            &Metadata { packages: vec![package], ..Metadata::default() },
        );
        found.into_iter().map(|finding| finding.problem).collect()
    }

    #[test]
    fn a_sound_manifest_passes() {
        assert_eq!(problems("ingle-a", &[], GOOD), Vec::<String>::new());
        assert_eq!(problems("ingle-node", &["cuda"], GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_lapse_is_named() {
        let one = |name: &str, features: &[&str], manifest: &str, word: &str| {
            let problems = problems(name, features, manifest);
            assert!(problems.len() == 1 && problems[0].contains(word), "{word}: {problems:?}");
        };
        one("ingle-common", &[], GOOD, "`common`");
        one("ingle-a", &["fast"], GOOD, "`fast`");
        one("ingle-a", &["cuda"], GOOD, "`cuda`");
        one("ingle-a", &[], &GOOD.replace("[lints]\nworkspace = true\n", ""), "[lints]");
        one("ingle-a", &[], &GOOD.replace("license.workspace = true", "license = 'MIT'"), "license.workspace");
        one("ingle-a", &[], &GOOD.replace("serde.workspace = true", "serde = '1'"), "dependencies.serde");
        one("ingle-a", &[], &GOOD.replace("description = 'Counts sheep'\n", ""), "description");
        one("ingle-a", &[], "not [toml", "isn't TOML");
    }
}
