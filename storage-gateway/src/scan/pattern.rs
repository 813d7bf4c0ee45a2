//! A glob's names below its base. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use globset::{GlobBuilder, GlobMatcher};
use ingle_proto::Problem;

/// A pattern below the base: `*` and `?` stay within a component, `**` crosses.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    /// Components that a match has at most; `None` with `**`.
    pub(super) depth: Option<usize>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with what is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, Problem> {
        let invalid = |why: &str| Problem::invalid("input.glob.pattern", format!("{pattern:?}: {why}"));
        if pattern.is_empty() || pattern.len() > 4096 {
            return Err(invalid("expected 1 to 4096 bytes"));
        }
        if pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
            return Err(invalid("must stay below its base"));
        }
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|error| invalid(&error.kind().to_string()))?;
        let depth = (!pattern.contains("**")).then(|| pattern.split('/').count());
        Ok(Self { matcher: glob.compile_matcher(), depth })
    }

    /// Whether a name below the base matches.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        self.matcher.is_match(OsStr::from_bytes(name))
    }
}
