//! Every module opens with a sentence: one that can't be described in a sentence is the wrong size.

use super::{Finding, Tree};

/// Checks every Rust file.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust().filter_map(|(path, text)| Some(Finding::new(path, problem(text)?))).collect()
}

fn problem(text: &str) -> Option<&'static str> {
    // The first paragraph of the `//!` block that heads the file; attributes may stand before it.
    let mut lines = text.lines().skip_while(|line| line.trim().is_empty() || line.starts_with("#!["));
    let paragraph: Vec<&str> = lines
        .by_ref()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let sentence = paragraph.join(" ");
    if sentence.is_empty() {
        return Some("opens without a `//!` sentence that says what the module is for");
    }
    if sentence.starts_with("Placeholder") {
        return Some("is a placeholder: what stands here must work, or not stand here");
    }
    if sentence.split_whitespace().count() < 3 || !sentence.trim_end_matches(['`', '*', ')']).ends_with(['.', ':']) {
        return Some("its first `//!` paragraph isn't a sentence");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_passes() {
        for good in [
            "//! Counts sheep.\n\nfn main() {}\n".replace("Counts sheep", "Counts the sheep"),
            "#![no_std]\n//! Counts sheep until\n//! one sleeps.\n//!\n//! More words\n".into(),
            "\n//! Keeps what `count` needs: sheep and fences.\nuse std::fmt;\n".into(),
        ] {
            assert_eq!(problem(&good), None, "{good}");
        }
    }

    #[test]
    fn anything_else_does_not() {
        for bad in [
            "",
            "fn main() {}\n",
            "/// Doc of an item.\nfn f() {}\n//! too late.\n",
            "//!\n//! Counts the sheep.\n",
            "//! sheep\n",
            "//! Sheep, fences and other things without end\n",
            "//! Placeholder sentence that ends.\n",
        ] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }
}
