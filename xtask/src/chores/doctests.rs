//! Which packages have examples in their comments: only for those is rustdoc worth its time.

use crate::tidy::{Metadata, Tree};

/// Packages with a library whose comments hold Rust examples.
pub(super) fn packages(tree: &Tree, metadata: &Metadata) -> Vec<String> {
    metadata
        .packages
        .iter()
        .filter(|package| {
            let folder = package.manifest.trim_end_matches("Cargo.toml");
            let source = format!("{folder}src/");
            tree.has(&format!("{source}lib.rs"))
                && tree.rust().any(|(path, text)| path.starts_with(&source) && has_example(text))
        })
        .map(|package| package.name.clone())
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
            if !open && matches!(language.trim(), "" | "rust" | "no_run" | "should_panic") {
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
        assert!(has_example("//! ```rust\n//! f();\n//! ```\n"));
        assert!(!has_example("/// ```text\n/// a\n/// ```\nfn f() {}\n"), "the closing fence opens nothing");
        assert!(!has_example("// ```\nfn f() {}\n"));
    }
}
