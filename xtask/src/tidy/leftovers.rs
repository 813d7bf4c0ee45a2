//! Nothing unfinished: no notes to oneself in comments, no stubs, no tests switched off.

use super::{Finding, Tree};

/// Words of notes to oneself, split so that this file doesn't hold them.
const NOTES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// Code that stands for code.
const STUBS: &[&str] = &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ig", "nore")];
const ENDINGS: &[&str] = &[".rs", ".proto", ".py", ".sh", ".toml", ".yml", ".yaml", ".md", "Makefile", ".j2"];

/// Checks every file of code, settings and documentation.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| ENDINGS.iter().any(|ending| path.ends_with(ending))) {
        if path.contains("/fixtures/") || path.starts_with("deploy/demo/share/") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if let Some(word) = NOTES.iter().find(|word| has_word(line, word)) {
                found.push(Finding::new(
                    format!("{path}:{}", index + 1),
                    format!("{word}: do it now, or open an issue"),
                ));
            }
            if path.ends_with(".rs")
                && let Some(stub) = STUBS.iter().find(|stub| line.trim_start_matches(' ').contains(*stub))
            {
                found.push(Finding::new(
                    format!("{path}:{}", index + 1),
                    format!("`{stub}…`: nothing is left open here"),
                ));
            }
        }
    }
    found
}

/// Whether `word` stands in `line` on its own.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).into_iter().map(|finding| finding.place).collect()
    }

    #[test]
    fn notes_to_oneself_are_found() {
        for word in NOTES {
            assert_eq!(places("a.rs", &format!("fn f() {{}}\n// {word}: later\n")), ["a.rs:2"]);
            assert_eq!(places("a.md", word), ["a.md:1"]);
            assert_eq!(places("a.rs", &format!("const {word}_LIST: u8 = 1; // MY{word}")), Vec::<String>::new());
            assert_eq!(places("a/fixtures/b.rs", &format!("// {word}")), Vec::<String>::new());
        }
    }

    #[test]
    fn stubs_and_sleeping_tests_are_found() {
        for stub in STUBS {
            assert_eq!(places("a.rs", &format!("    {stub}")), ["a.rs:1"]);
            assert_eq!(places("a.md", &format!("    {stub}")), Vec::<String>::new());
        }
    }
}
