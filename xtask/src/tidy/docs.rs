//! Documents tell the truth about the tree: paths they name exist, links lead somewhere, the map stays short.

use super::{Finding, Tree, edges};

const MAP: &str = "ARCHITECTURE.md";
/// A map that nobody reads is no map.
const MAP_LINES_MAX: usize = 300;
/// Documents that must be there.
const NEEDED: &[&str] = &[
    "README.md",
    MAP,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/glossary.md",
    "docs/style.md",
    "docs/errors",
    "docs/decisions",
    "docs/operations",
    "benches/README.md",
    "deploy/README.md",
];

/// Checks documents that must exist, links in all of them, and paths and edges that the map names.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut found: Vec<Finding> = NEEDED
        .iter()
        .filter(|path| !tree.has(path))
        .map(|path| Finding::new(*path, "is missing: the house's readers expect it"))
        .collect();
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".md")) {
        if path.contains("/fixtures/") || path.starts_with("deploy/demo/share/") {
            continue;
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in links(text) {
            let target = resolve(folder, link);
            if !tree.has(&target) {
                found.push(Finding::new(path, format!("links to {link}, which isn't there")));
            }
        }
    }
    if let Some(map) = tree.text(MAP) {
        let lines = map.lines().count();
        if lines > MAP_LINES_MAX {
            found.push(Finding::new(MAP, format!("has {lines} lines, at most {MAP_LINES_MAX}")));
        }
        for named in paths_named(map).filter(|named| !tree.has(named)) {
            found.push(Finding::new(MAP, format!("names `{named}`, which isn't there")));
        }
        for (member, uses) in edges::rows().filter(|(member, uses)| !has_row(map, member, uses)) {
            let wanted = table_row(member, uses);
            found.push(Finding::new(MAP, format!("its edges table should hold the row: {wanted}")));
        }
    }
    found
}

/// Targets of relative links, without anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        let relative = !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:");
        relative.then_some(target)
    })
}

fn resolve(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Words in backticks that look like paths of this tree: with a slash and no blank, wildcard or placeholder.
fn paths_named(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2)).filter(|word| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
        plain && word.contains('/') && !word.starts_with(['/', '.']) && !word.contains("..")
    })
}

fn table_row(member: &str, uses: &[&str]) -> String {
    let uses = if uses.is_empty() { "–".to_owned() } else { uses.join(", ") };
    format!("| {member} | {uses} |")
}

fn has_row(map: &str, member: &str, uses: &[&str]) -> bool {
    let wanted = table_row(member, uses);
    map.lines().any(|line| line.replace('`', "").trim() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with all that is needed and a sound map, plus `more`.
    fn problems(more: &[(&str, &str)]) -> Vec<String> {
        let rows: String = edges::rows().map(|(member, uses)| table_row(member, uses) + "\n").collect();
        let mut files: Vec<(&str, &str)> = NEEDED
            .iter()
            .map(|path| (*path, ""))
            .filter(|(path, _)| path.ends_with(".md") && *path != MAP)
            .chain([("docs/errors/A.md", ""), ("docs/decisions/a.md", ""), ("docs/operations/a.md", "")])
            .collect();
        files.push((MAP, &rows));
        files.extend_from_slice(more);
        check(&Tree::of(&files)).into_iter().map(|finding| format!("{}: {}", finding.place, finding.problem)).collect()
    }

    #[test]
    fn a_sound_house_passes() {
        assert_eq!(problems(&[]), Vec::<String>::new());
        assert_eq!(
            problems(&[("x/a.md", "[b](b.md), [web](https://example.org/x), [c](#c)"), ("x/b.md", "")]),
            Vec::<String>::new()
        );
        assert_eq!(problems(&[("x/a.md", "[up](../README.md#five)")]), Vec::<String>::new());
    }

    #[test]
    fn dead_links_are_found() {
        assert_eq!(problems(&[("x/a.md", "see [b](b.md)")]), ["x/a.md: links to b.md, which isn't there"]);
    }

    #[test]
    fn absentees_are_named() {
        let found = check(&Tree::of(&[]));
        assert_eq!(found.len(), NEEDED.len());
    }

    #[test]
    fn the_map_must_match_the_tree() {
        let rows: String = edges::rows().map(|(member, uses)| table_row(member, uses) + "\n").collect();
        let dead = rows.clone() + "`proto/src/gone.rs` and `proto/` and `a b/c` and `trait X`\n```\n`in/code`\n```\n";
        assert_eq!(problems(&[(MAP, &dead)]).len(), 2, "both paths, nothing else");
        let stale = rows.replace("| ingle-proto | – |", "| `ingle-proto` | ingle-daemon |");
        let found = problems(&[(MAP, &stale)]);
        assert!(found.len() == 1 && found[0].contains("| ingle-proto | – |"), "{found:?}");
        assert_eq!(problems(&[(MAP, &(rows + &"x\n".repeat(300)))]).len(), 1);
    }
}
