//! From the files below the models' location to model folders and their names. Pure but for the walk of a local directory.

use std::collections::BTreeMap;
use std::path::Path;

use crate::limits;

/// A file as a listing shows it: enough to see that it changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct FileStamp {
    /// Relative to the folder it is listed for, `/` between components.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// A folder that holds a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// What it is called.
    pub name: String,
    /// Below the models' location; empty for the location itself.
    pub path: String,
    /// Files that make the model, in the engine's order.
    pub files: Vec<FileStamp>,
}

impl Folder {
    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }
}

/// Finds the folders that hold a model among all files below the location. `files_of` is the engine's judgement over the
/// names in a folder; `root_name` names a model that lies in the location itself.
///
/// A folder is one if its own files make a model; files in folders below it (`1_Pooling/config.json`) may belong to it too.
/// Models are named after their folder, or by their whole path where two folders share a name.
pub(super) fn find(
    files: &[FileStamp],
    root_name: &str,
    files_of: impl Fn(&[String]) -> Option<Vec<String>>,
) -> Vec<Folder> {
    let mut folders: BTreeMap<&str, Vec<(&str, &FileStamp)>> = BTreeMap::new();
    for file in files {
        let mut at = file.name.rfind('/');
        loop {
            let (folder, rest) = at.map_or(("", file.name.as_str()), |at| (&file.name[..at], &file.name[at + 1..]));
            if folder.is_empty() || folder.split('/').count() <= limits::MODELS_DEPTH {
                folders.entry(folder).or_default().push((rest, file));
            }
            match at {
                Some(cut) => at = file.name[..cut].rfind('/'),
                None => break,
            }
        }
    }
    let mut found: Vec<Folder> = Vec::new();
    for (path, below) in folders {
        let own: Vec<String> =
            below.iter().map(|(name, _)| *name).filter(|n| !n.contains('/')).map(str::to_owned).collect();
        let Some(by_own) = files_of(&own) else { continue };
        let all: Vec<String> = below.iter().map(|(name, _)| (*name).to_owned()).collect();
        let names = files_of(&all).unwrap_or(by_own);
        let stamp = |name: &String| {
            let (_, stamp) = below.iter().find(|(other, _)| other == name)?;
            Some(FileStamp { name: name.clone(), size: stamp.size, mtime_ns: stamp.mtime_ns })
        };
        let files: Vec<FileStamp> = names.iter().filter_map(stamp).collect();
        if files.is_empty() || files.len() != names.len() {
            continue;
        }
        let name = match path.rsplit('/').next() {
            Some("") | None => root_name,
            Some(name) => name,
        };
        found.push(Folder { name: name.to_owned(), path: path.to_owned(), files });
    }
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for folder in &found {
        *count.entry(folder.name.clone()).or_default() += 1;
    }
    for folder in &mut found {
        if count[&folder.name] > 1 && !folder.path.is_empty() {
            folder.name.clone_from(&folder.path);
        }
    }
    found.truncate(limits::MODELS_MAX);
    found
}

/// Files below a local directory, links to files followed. Blocks.
///
/// # Errors
/// What the system said of the directory itself; what can't be read below it is left out.
pub(super) fn walk(root: &Path) -> std::io::Result<Vec<FileStamp>> {
    let mut files = Vec::new();
    let mut seen = 0usize;
    let mut open = vec![(root.to_owned(), String::new(), 0usize)];
    while let Some((dir, prefix, depth)) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(error),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > limits::MODELS_ENTRIES {
                return Ok(files);
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if metadata.is_dir() && depth <= limits::MODELS_DEPTH {
                open.push((entry.path(), path, depth + 1));
            } else if metadata.is_file() {
                files.push(FileStamp { name: path, size: metadata.len(), mtime_ns: mtime_ns(&metadata) });
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A file's time of change, in nanoseconds since 1970.
pub(super) fn mtime_ns(metadata: &std::fs::Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt as _;
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_of(names: &[String]) -> Option<Vec<String>> {
        let gguf = names.iter().find(|name| !name.contains('/') && name.ends_with(".gguf"));
        if let Some(gguf) = gguf {
            return Some(vec![gguf.clone()]);
        }
        let has = |name: &str| names.iter().any(|other| other == name);
        (has("config.json") && has("model.safetensors")).then(|| {
            let wanted = ["config.json", "model.safetensors", "1_Pooling/config.json"];
            wanted.iter().filter(|name| has(name)).map(ToString::to_string).collect()
        })
    }

    fn check(names: &[&str], expect: &[(&str, &str, usize)]) {
        let files: Vec<FileStamp> =
            names.iter().map(|name| FileStamp { name: (*name).into(), size: 1, mtime_ns: 2 }).collect();
        let found = find(&files, "root", files_of);
        let got: Vec<(&str, &str, usize)> =
            found.iter().map(|f| (f.name.as_str(), f.path.as_str(), f.files.len())).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn folders_with_models_are_named_after_themselves() {
        check(&["mini/config.json", "mini/model.safetensors", "mini/1_Pooling/config.json"], &[("mini", "mini", 3)]);
        check(&["a/b/llm/x.gguf", "a/readme.md"], &[("llm", "a/b/llm", 1)]);
        check(&["x.gguf"], &[("root", "", 1)]);
        check(&["notes/config.json"], &[]);
        check(&[], &[]);
    }

    #[test]
    fn two_of_one_name_are_told_apart_and_deep_ones_are_left() {
        check(&["a/m/x.gguf", "b/m/x.gguf", "c/x.gguf"], &[("a/m", "a/m", 1), ("b/m", "b/m", 1), ("c", "c", 1)]);
        check(&["1/2/3/4/x.gguf"], &[("4", "1/2/3/4", 1)]);
        check(&["1/2/3/4/5/x.gguf"], &[]);
    }

    #[test]
    fn a_walk_follows_links_to_files_and_survives_loops() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("m")).unwrap();
        std::fs::write(dir.path().join("blob"), "12345").unwrap();
        std::os::unix::fs::symlink(dir.path().join("blob"), dir.path().join("m/x.gguf")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("m/loop")).unwrap();
        let files = walk(dir.path()).unwrap();
        assert!(files.iter().any(|file| file.name == "m/x.gguf" && file.size == 5));
        assert!(files.len() < 100);
        assert!(walk(&dir.path().join("absent")).is_err());
    }
}
