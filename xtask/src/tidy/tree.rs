//! The files of the house as text: what git tracks or would track, or a walk where there is no git.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// Paths (relative, `/` between components) and contents. Files that aren't UTF-8 are there without text.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, Option<String>>,
}

/// Folders that hold nothing of ours; only looked at when git can't tell.
const NOT_OURS: &[&str] = &[".git", "target", ".cache", ".demo", "__pycache__", "node_modules"];

impl Tree {
    /// Reads the working tree below `root`: tracked files and new ones that git doesn't ignore.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let names = match git_names(root) {
            Some(names) => names,
            None => walked_names(root)?,
        };
        let mut files = BTreeMap::new();
        for name in names {
            let path = root.join(&name);
            // A tracked file may be deleted in the working tree; a link is judged by its target's own entry.
            let Ok(kind) = std::fs::symlink_metadata(&path) else { continue };
            if kind.is_file() {
                let bytes = std::fs::read(&path).with_context(|| format!("reading {name}"))?;
                files.insert(name, String::from_utf8(bytes).ok());
            }
        }
        Ok(Self { files })
    }

    /// A tree for tests.
    #[must_use]
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(path, text)| ((*path).into(), Some((*text).into()))).collect() }
    }

    /// Whether a file, or a folder with files in it, is there.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.contains_key(path)
            || self.files.range(folder.clone()..).next().is_some_and(|(next, _)| next.starts_with(&folder))
    }

    /// Text of a file.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Every file that is text, as (path, text).
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// Every Rust file, as (path, text).
    pub fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Paths of files directly in `folder`.
    pub fn in_folder<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.files.keys().filter_map(move |path| {
            let name = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!name.contains('/')).then_some(path.as_str())
        })
    }
}

/// What git lists; nothing where there is no git or no repository.
fn git_names(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        // A checkout that another user owns is still ours to read.
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names: Vec<String> = text.split('\0').filter(|name| !name.is_empty()).map(Into::into).collect();
    names.dedup();
    Some(names)
}

fn walked_names(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                if !NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                    open.push(path);
                }
            } else if kind.is_file() {
                let name = path.strip_prefix(root).context("a walk stays below its root")?;
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_files_and_folders() {
        let tree = Tree::of(&[("a/b.rs", "x"), ("a-c", "y"), ("top.md", "z")]);
        assert!(tree.has("a") && tree.has("a/") && tree.has("a/b.rs") && tree.has("top.md"));
        assert!(!tree.has("a/b") && !tree.has("top"));
        assert_eq!(tree.rust().collect::<Vec<_>>(), [("a/b.rs", "x")]);
        assert_eq!(tree.in_folder("a").collect::<Vec<_>>(), ["a/b.rs"]);
    }

    #[test]
    fn a_walk_sees_what_git_would() {
        let folder = std::env::temp_dir().join(format!("xtask-walk-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("target")).expect("a folder");
        std::fs::create_dir_all(folder.join("src")).expect("a folder");
        for file in ["target/big.rs", "src/lib.rs", "README.md"] {
            std::fs::write(folder.join(file), "x").expect("a file");
        }
        let mut names = walked_names(&folder).expect("a walk");
        names.sort();
        std::fs::remove_dir_all(&folder).expect("cleared");
        assert_eq!(names, ["README.md", "src/lib.rs"]);
    }
}
