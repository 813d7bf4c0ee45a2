//! Every error code has a page in docs/errors, and every page a code.

use std::collections::BTreeSet;

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
    for code in &codes {
        let page = format!("{PAGES}/{code}.md");
        match tree.text(&page) {
            None => found.push(Finding::new(&page, format!("is missing: {code} is in {CODES}"))),
            Some(text) => found.extend(page_problems(code, text).map(|problem| Finding::new(&page, problem))),
        }
    }
    for page in tree.in_folder(PAGES) {
        let name = page.rsplit('/').next().unwrap_or(page);
        let code = name.trim_end_matches(".md");
        if name != "README.md" && !codes.contains(code) {
            found.push(Finding::new(page, format!("is the page of no code in {CODES}")));
        }
    }
    found
}

/// The codes in the table: second column of lines such as `NoNode = "NO_NODE", Unavailable, true;`.
fn codes(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = \"")?;
            let (code, tail) = rest.split_once("\", ")?;
            let row = name.chars().all(char::is_alphanumeric) && tail.ends_with(';');
            (row && code.chars().all(|c| c.is_ascii_uppercase() || c == '_')).then_some(code)
        })
        .collect()
}

fn page_problems<'a>(code: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    let title = format!("# {code}");
    let untitled = (text.lines().next() != Some(title.as_str())).then(|| format!("should begin with `{title}`"));
    let missing = HEADINGS.iter().filter(|heading| !text.lines().any(|line| line == **heading));
    let short = HEADINGS.iter().filter(|heading| {
        text.split_once(*heading)
            .is_some_and(|(_, after)| after.split("\n## ").next().unwrap_or_default().split_whitespace().count() < 5)
    });
    untitled
        .into_iter()
        .chain(missing.map(|heading| format!("has no heading `{heading}`")))
        .chain(short.map(|heading| format!("says nothing under `{heading}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "codes! {\n    /// Busy.\n    NoNode = \"NO_NODE\", Unavailable, true;\n}\nlet x = \"y\";\n";
    const PAGE: &str = "# NO_NODE\n\n## What you see\n\nA call that ends at once.\n\n## Why\n\nThere is no node here now.\n\n\
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
        assert_eq!(page(&PAGE.replace("## Why", "## How")), ["has no heading `## Why`"]);
        assert_eq!(page(&PAGE.replace("There is no node here now.", "")), ["says nothing under `## Why`"]);
    }
}
