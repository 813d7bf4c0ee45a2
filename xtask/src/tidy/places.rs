//! No file names a place that only one machine has: home folders, checkouts, hosts of package registries.

use super::{Finding, Tree};

/// What must not stand in a file, split so that this one doesn't hold it, and why.
const PATTERNS: &[(&str, &str)] = &[
    (concat!("/ro", "ot/"), "a folder of one machine"),
    (concat!("/wo", "rk/"), "a folder of one machine"),
    (concat!("/home", "/runner"), "a folder of one machine"),
    (concat!("/tmp/", "team"), "a folder of one machine"),
    (concat!("pypi", ".org"), "a registry's host; name the package, the machine knows its index"),
    (concat!("pythonhosted", ".org"), "a registry's host; name the package, the machine knows its index"),
    (concat!("static.", "crates.io"), "a registry's host; name the crate"),
    (concat!("index.", "crates.io"), "a registry's host; name the crate"),
    (concat!("deb.", "debian.org"), "a registry's host; name the package, the machine knows its mirror"),
    (concat!("registry.", "npmjs.org"), "a registry's host; name the package"),
];

/// Checks every file but lock files, which cargo writes.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| !path.ends_with(".lock") && !path.starts_with("LICENSE")) {
        for (index, line) in text.lines().enumerate() {
            for (pattern, why) in PATTERNS.iter().filter(|(pattern, _)| line.contains(pattern)) {
                found.push(Finding::new(format!("{path}:{}", index + 1), format!("names {pattern}: {why}")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_one_machine_are_found() {
        for (pattern, _) in PATTERNS {
            let text = format!("# fine\npath = \"{pattern}x\"\n");
            let found = check(&Tree::of(&[("a.toml", &text)]));
            assert!(found.len() == 1 && found[0].place == "a.toml:2", "{found:?}");
            assert_eq!(check(&Tree::of(&[("Cargo.lock", &text)])), []);
        }
        assert_eq!(check(&Tree::of(&[("a.toml", "data = \"/var/lib/ingle\"\nnetwork = true\n")])), []);
    }
}
