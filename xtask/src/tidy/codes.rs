//! Every error code has a page in docs/errors that says the same as the code, and every page a code.

use std::collections::BTreeMap;

use super::{Finding, Tree};

const CODES: &str = "proto/src/code.rs";
const PAGES: &str = "docs/errors";
/// What every page answers.
const HEADINGS: &[&str] = &["## What you see", "## Why", "## What to do"];

/// Compares the codes with the pages.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let codes = tree.text(CODES).map(codes).unwrap_or_default();
    let mut found = Vec::new();
    if codes.is_empty() {
        found.push(Finding::new(CODES, "holds no lines of the form `Name = \"CODE\", GrpcCode, retryable;`"));
    }
    for (code, line) in &codes {
        let page = format!("{PAGES}/{code}.md");
        match tree.text(&page) {
            None => found.push(Finding::new(&page, format!("is missing: {code} is in {CODES}"))),
            Some(text) => found.extend(page_problems(code, line, text).map(|problem| Finding::new(&page, problem))),
        }
    }
    for page in tree.in_folder(PAGES) {
        let name = page.rsplit('/').next().unwrap_or(page);
        let code = name.trim_end_matches(".md");
        if name != "README.md" && !codes.contains_key(code) {
            found.push(Finding::new(page, format!("is the page of no code in {CODES}")));
        }
    }
    found
}

/// The codes in the table, from lines such as `NoNode = "NO_NODE", Unavailable, true;`, each with what its page says of it.
fn codes(text: &str) -> BTreeMap<&str, String> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = \"")?;
            let (code, tail) = rest.split_once("\", ")?;
            let (grpc, retry) = tail.strip_suffix(';')?.split_once(", ")?;
            let row = name.chars().all(char::is_alphanumeric) && matches!(retry, "true" | "false");
            let known = row && code.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            let again = if retry == "true" { "worth trying again" } else { "the same call will fail again" };
            known.then(|| (code, format!("gRPC status `{}`; {again}.", shouted(grpc))))
        })
        .collect()
}

/// `NotFound` as gRPC writes it: `NOT_FOUND`.
fn shouted(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_uppercase());
    }
    text
}

fn page_problems(code: &str, line: &str, text: &str) -> impl Iterator<Item = String> {
    let mut problems = Vec::new();
    let title = format!("# {code}");
    if text.lines().next() != Some(title.as_str()) {
        problems.push(format!("should begin with `{title}`"));
    }
    if !text.lines().any(|there| there == line) {
        problems.push(format!("should say: {line}"));
    }
    for heading in HEADINGS {
        match text.split_once(&format!("\n{heading}\n")) {
            None => problems.push(format!("has no heading `{heading}`")),
            Some((_, after)) => {
                if after.split("\n## ").next().unwrap_or_default().split_whitespace().count() < 5 {
                    problems.push(format!("says nothing under `{heading}`"));
                }
            }
        }
    }
    problems.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "codes! {\n    /// Busy.\n    NoNode = \"NO_NODE\", Unavailable, true;\n}\nlet x = \"y\";\n";
    const PAGE: &str = "# NO_NODE\n\ngRPC status `UNAVAILABLE`; worth trying again.\n\n## What you see\n\nA call that ends at once.\n\n## Why\n\nThere is no node here now.\n\n\
                        ## What to do\n\nStart a node, then try again.\n";

    fn problems(table: &str, page: &str, name: &str) -> Vec<String> {
        let found = check(&Tree::of(&[(CODES, table), (name, page)]));
        found.into_iter().map(|finding| finding.problem).collect()
    }

    #[test]
    fn a_code_with_its_page_passes() {
        assert_eq!(problems(TABLE, PAGE, "docs/errors/NO_NODE.md"), Vec::<String>::new());
    }

    #[test]
    fn pages_and_codes_go_together() {
        let found = problems(TABLE, PAGE, "docs/errors/NODE.md");
        assert!(found.len() == 2 && found.iter().any(|problem| problem.contains("no code")), "{found:?}");
        assert_eq!(problems("", PAGE, "docs/errors/NO_NODE.md").len(), 2);
    }

    #[test]
    fn a_page_answers_three_questions() {
        let page = |text: &str| problems(TABLE, text, "docs/errors/NO_NODE.md");
        assert_eq!(page(&PAGE.replace("# NO_NODE", "# NODE")), ["should begin with `# NO_NODE`"]);
        assert_eq!(page(&PAGE.replace("UNAVAILABLE", "ABORTED")).len(), 1);
        assert_eq!(page(&PAGE.replace("## Why", "## How")), ["has no heading `## Why`"]);
        assert_eq!(page(&PAGE.replace("There is no node here now.", "")), ["says nothing under `## Why`"]);
    }
}
