//! No file grows into a hub: ceilings for lines, for own modules imported, and for public items.

use std::collections::BTreeSet;

use super::{Finding, Tree};

/// A pleasant file has 100 to 250 lines; at this many it wants to be split by noun.
const LINES_MAX: usize = 600;
/// Distinct modules of ours that one file may import from.
const IMPORTS_MAX: usize = 24;
/// Public items at the top level of one file.
const ITEMS_MAX: usize = 60;

/// Files over the ceiling of lines, each with its own. The list and its numbers may only shrink.
const LONGER: &[(&str, usize)] = &[];

/// Checks every Rust and proto file except fixtures.
#[must_use]
pub fn check(tree: &Tree) -> Vec<Finding> {
    check_with(tree, LONGER)
}

fn check_with(tree: &Tree, longer: &[(&str, usize)]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in tree.texts() {
        let source = [".rs", ".proto", ".py", ".sh"].iter().any(|ending| path.ends_with(ending));
        if !source || path.contains("/fixtures/") {
            continue;
        }
        let lines = text.lines().count();
        let allowed = longer.iter().find(|(name, _)| *name == path);
        match allowed {
            Some((_, most)) if lines > *most => found.push(Finding::new(
                path,
                format!("has {lines} lines, and {most} was already an exception: split it by noun"),
            )),
            Some((_, most)) if lines <= LINES_MAX || lines + 50 < *most => found.push(Finding::new(
                path,
                format!("has shrunk to {lines} lines: lower or drop its line in xtask/src/tidy/size.rs (now {most})"),
            )),
            None if lines > LINES_MAX => {
                found.push(Finding::new(path, format!("has {lines} lines, at most {LINES_MAX}: split it by noun")));
            }
            _ => {}
        }
        if path.ends_with(".rs") {
            let imports = own_imports(text).len();
            if imports > IMPORTS_MAX {
                found
                    .push(Finding::new(path, format!("imports from {imports} modules of ours, at most {IMPORTS_MAX}")));
            }
            let items = public_items(text);
            if items > ITEMS_MAX {
                found.push(Finding::new(path, format!("has {items} public items, at most {ITEMS_MAX}")));
            }
        }
    }
    for (path, _) in longer.iter().filter(|(path, _)| tree.text(path).is_none()) {
        found.push(Finding::new(*path, "is excepted in xtask/src/tidy/size.rs but gone"));
    }
    found
}

/// Modules of this crate, and modules or crates of ours, that `use` items at the left margin name, over however many lines. Types taken straight
/// from a crate count as that crate, once.
fn own_imports(text: &str) -> BTreeSet<&str> {
    let is_module = |name: &&str| name.starts_with(|c: char| c.is_ascii_lowercase()) && *name != "self";
    let mut modules = BTreeSet::new();
    for path in use_paths(text) {
        let Some((first, rest)) = path.split_once("::") else { continue };
        if first != "crate" && first != "super" && !first.starts_with("ingle_") {
            continue;
        }
        let names: Vec<&str> = match rest.strip_prefix('{') {
            // `use crate::{a, b}` names several at once.
            Some(list) => top_level(list).map(|name| name.trim().split("::").next().unwrap_or(name)).collect(),
            None => rest.split("::").take(1).collect(),
        };
        let mut named = names.into_iter().filter(is_module).peekable();
        if named.peek().is_none() {
            modules.insert(first);
        }
        modules.extend(named);
    }
    modules
}

/// What stands between `use` and its semicolon.
fn use_paths(text: &str) -> impl Iterator<Item = &str> {
    let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    starts.filter_map(move |at| {
        let line = &text[at..];
        let path = line.strip_prefix("use ").or_else(|| line.strip_prefix("pub use "))?;
        path.split_once(';').map(|(path, _)| path)
    })
}

/// The parts of a list in braces whose opening one is gone; lists within stay whole.
fn top_level(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    list.split(move |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (c == ',' && depth == 0) || (c == '}' && depth < 0)
    })
}

/// Items at the left margin that other modules can see.
fn public_items(text: &str) -> usize {
    const WORDS: &[&str] = &["fn", "struct", "enum", "trait", "const", "static", "type", "async", "unsafe"];
    text.lines()
        .filter_map(|line| line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")))
        .filter(|rest| rest.split_whitespace().next().is_some_and(|word| WORDS.contains(&word)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str, longer: &[(&str, usize)]) -> usize {
        check_with(&Tree::of(&[(path, text)]), longer).len()
    }

    #[test]
    fn long_files_are_found() {
        let lines = |count: usize| "x\n".repeat(count);
        assert_eq!(problems("a.rs", &lines(600), &[]), 0);
        assert_eq!(problems("a.rs", &lines(601), &[]), 1);
        assert_eq!(problems("a/fixtures/b.rs", &lines(601), &[]), 0);
        assert_eq!(problems("a.md", &lines(601), &[]), 0);
    }

    #[test]
    fn exceptions_only_shrink() {
        let lines = |count: usize| "x\n".repeat(count);
        assert_eq!(problems("a.rs", &lines(700), &[("a.rs", 700)]), 0);
        assert_eq!(problems("a.rs", &lines(701), &[("a.rs", 700)]), 1, "it grew");
        assert_eq!(problems("a.rs", &lines(600), &[("a.rs", 700)]), 1, "the exception isn't needed");
        assert_eq!(problems("a.rs", &lines(620), &[("a.rs", 700)]), 1, "the exception is too wide");
        assert_eq!(problems("b.rs", "", &[("a.rs", 700)]), 1, "the file is gone");
    }

    #[test]
    fn hubs_are_found() {
        let uses: String = (0..=IMPORTS_MAX).map(|n| format!("use crate::m{n}::Thing;\n")).collect();
        assert_eq!(problems("a.rs", &uses, &[]), 1);
        let items: String = (0..=ITEMS_MAX).map(|n| format!("pub fn f{n}() {{}}\n")).collect();
        assert_eq!(problems("a.rs", &items, &[]), 1);
        assert_eq!(problems("a.rs", &items.replace("pub fn", "    pub fn"), &[]), 0, "methods belong to their type");
    }

    #[test]
    fn imports_over_several_lines_count() {
        let text = "use crate::{\n    a::{B, not_a_module},\n    c, D,\n};\nuse super::e::{\n    F,\n    G,\n};\n    use crate::inner;\n";
        assert_eq!(own_imports(text).into_iter().collect::<Vec<_>>(), ["a", "c", "e"]);
        let names: Vec<String> = (0..=IMPORTS_MAX).map(|n| format!("    m{n},\n")).collect();
        assert_eq!(problems("a.rs", &format!("use crate::{{\n{}}};\n", names.concat()), &[]), 1);
    }

    #[test]
    fn imports_are_counted_once() {
        let text = "use std::fmt;\nuse crate::a::{B, C};\nuse crate::a::D;\nuse crate::{e, f};\nuse ingle_proto::job::X;\nuse \
                    ingle_proto::{Y, Z};\n";
        assert_eq!(own_imports(text).into_iter().collect::<Vec<_>>(), ["a", "e", "f", "ingle_proto", "job"]);
    }
}
