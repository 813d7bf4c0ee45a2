//! Licences: both texts stand at the root, and every member says the same.

use super::{Finding, Metadata, Tree};

const EXPRESSION: &str = "Apache-2.0 OR MIT";
/// Files and a line that only the right text holds.
const TEXTS: &[(&str, &str)] = &[("LICENSE-APACHE", "Apache License"), ("LICENSE-MIT", "Permission is hereby granted")];

/// Checks texts and manifests.
#[must_use]
pub fn check(tree: &Tree, metadata: &Metadata) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, words) in TEXTS {
        if !tree.text(name).is_some_and(|text| text.contains(words)) {
            found.push(Finding::new(*name, format!("should hold the licence's text (\"{words}\")")));
        }
    }
    for package in &metadata.packages {
        if package.licence.as_deref() != Some(EXPRESSION) {
            let says = package.licence.as_deref().unwrap_or("nothing");
            found.push(Finding::new(&package.manifest, format!("licence is {says}, expected {EXPRESSION}")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::metadata::Package;
    use super::*;

    #[test]
    fn both_texts_and_one_expression() {
        let package = |licence: Option<&str>| Metadata {
            packages: vec![Package { licence: licence.map(Into::into), manifest: "a".into(), ..Package::default() }],
            ..Metadata::default()
        };
        let tree =
            Tree::of(&[("LICENSE-APACHE", "…Apache License…"), ("LICENSE-MIT", "Permission is hereby granted, …")]);
        assert_eq!(check(&tree, &package(Some(EXPRESSION))), []);
        assert_eq!(check(&tree, &package(Some("MIT"))).len(), 1);
        assert_eq!(check(&tree, &package(None)).len(), 1);
        assert_eq!(check(&Tree::of(&[("LICENSE-MIT", "")]), &Metadata::default()).len(), 2);
    }
}
