//! What a job leaves out of its input: globs over names at any depth and over paths below the base. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ingle_proto::Problem;
use ingle_proto::extent::validate_exclude;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Exclude {
    /// Patterns without a `/`: held against every component.
    names: GlobSet,
    /// Patterns with one: held against every path on the way down.
    paths: GlobSet,
}

impl Exclude {
    /// Reads patterns, as `JobSpec.exclude` has them.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names the pattern and what is wrong with it.
    pub fn new(patterns: &[String]) -> Result<Self, Problem> {
        validate_exclude("exclude", patterns)?;
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for (at, pattern) in patterns.iter().enumerate() {
            let invalid = |error: &globset::Error| {
                Problem::invalid(format!("exclude[{at}]"), format!("{pattern:?}: {}", error.kind()))
            };
            let trimmed = pattern.trim_end_matches('/');
            let glob = GlobBuilder::new(trimmed)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| invalid(&error))?;
            if trimmed.contains('/') {
                paths.add(glob)
            } else {
                names.add(glob)
            };
        }
        let built = |set: GlobSetBuilder| {
            set.build().map_err(|error| Problem::invalid("exclude", format!("all of them together: {}", error.kind())))
        };
        Ok(Self { names: built(names)?, paths: built(paths)? })
    }

    /// Whether what has this path below the base is left out, looked at by itself: a walk asks on its way down.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.names.is_match(OsStr::from_bytes(name)) || self.paths.is_match(OsStr::from_bytes(path))
    }

    /// Whether a path below the base is left out, by itself or with a directory above.
    #[must_use]
    pub fn covers(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.chain([path.len()]).any(|end| self.matches(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exclude(patterns: &[&str]) -> Result<Exclude, Problem> {
        Exclude::new(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_count_at_any_depth_and_paths_from_the_base() {
        let some = exclude(&["*.log", "node_modules", "drafts/", "old/*.md", "a/**/z.txt"]).unwrap();
        for out in
            ["x.log", "a/b/x.log", "node_modules", "a/node_modules", "drafts", "old/x.md", "a/z.txt", "a/b/c/z.txt"]
        {
            assert!(some.matches(out.as_bytes()) && some.covers(out.as_bytes()), "{out}");
        }
        for kept in ["x.md", "x.log.md", "new/old/x.md", "old/a/x.md", "z.txt", "draft"] {
            assert!(!some.covers(kept.as_bytes()), "{kept}");
        }
        assert!(some.covers(b"a/node_modules/deep/x.md") && !some.matches(b"a/node_modules/deep/x.md"));
        assert!(!Exclude::default().covers(b"anything"));
        assert!(exclude(&["caf?.md"]).unwrap().matches(b"caf\xe9.md"), "names need not be UTF-8");
    }

    #[test]
    fn patterns_that_can_not_be_are_named() {
        for bad in ["[z", "../x", "/x", "", "{a"] {
            let problem = exclude(&["fine", bad]).unwrap_err();
            assert!(problem.message.starts_with("exclude[1]"), "{bad}: {}", problem.message);
        }
    }
}
