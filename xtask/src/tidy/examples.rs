//! Comments hold no Rust code that nothing runs: examples are programs in `examples/`, or tests.

use super::{Finding, Tree};

/// Checks the comments of every library and program.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust()
        .filter(|(path, text)| !path.starts_with("xtask/") && has_example(text))
        .map(|(path, _)| {
            Finding::new(path, "a comment holds Rust code that no test runs: make it a program in examples/, or a test")
        })
        .collect()
}

/// Whether a comment opens a fence that rustdoc would run.
fn has_example(text: &str) -> bool {
    let mut open = false;
    for line in text.lines().map(str::trim_start) {
        let Some(words) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            open = false;
            continue;
        };
        if let Some(language) = words.trim_start().strip_prefix("```") {
            if !open && language.split(',').any(|word| matches!(word.trim(), "" | "rust" | "no_run" | "should_panic")) {
                return true;
            }
            open = !open;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rust_fences_count() {
        assert!(has_example("/// Text.\n/// ```\n/// f();\n/// ```\nfn f() {}\n"));
        assert!(has_example("//! ```rust,no_run\n//! f();\n//! ```\n"));
        assert!(has_example("//! ```rust\n//! f();\n//! ```\n"));
        assert!(!has_example("/// ```text\n/// a\n/// ```\nfn f() {}\n"), "the closing fence opens nothing");
        assert!(!has_example("// ```\nfn f() {}\n"));
    }
}
