//! The walk below a base, breadth first: which files there are, and which are passed over and why.
//!
//! Names beginning with a dot are not listed at all unless the export's settings open them (`.inglenook` never), nor what a NAS or a PC keeps on a share for itself
//! ([`HOUSEKEEPING`]), nor what the job itself makes.
//! Anything that can't be listed for a reason other than permission ends the walk: an I/O error is never an empty
//! directory, or documents would count as deleted.

use futures::{StreamExt as _, TryStreamExt as _};
use globset::{GlobBuilder, GlobMatcher};
use ingle_proto::job::TEXT_BYTES_MAX;
use ingle_proto::storage::OWN_DIRECTORY;
use ingle_proto::v1::JobKind;
use ingle_proto::{ErrorCode, ObjectPath, Problem};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::exclude::Exclude;
use crate::export::{Entry, Export, ExportError, Kind};
use crate::file::kind_name;
use crate::kinds;
use crate::limits::{DIRECTORY_ENTRIES_MAX, DOCUMENT_NAME_BYTES_MAX, LISTS_IN_FLIGHT, SCAN_DEPTH_MAX};
use crate::rules::is_hidden;

/// Previews, bins and snapshots that NAS systems and PCs leave on shares: nobody's documents, or somebody's deleted ones.
pub const HOUSEKEEPING: [&[u8]; 8] = [
    b"@eaDir",
    b"#recycle",
    b"#snapshot",
    b"@Recycle",
    b"lost+found",
    b"$RECYCLE.BIN",
    b"System Volume Information",
    b"Thumbs.db",
];

/// A name that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Relative to the base.
    pub name: Vec<u8>,
    /// In bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Why it is not taken, if so.
    pub skipped: Option<String>,
    /// Where its text lies that an OCR job made, and the time of that file's change.
    pub text: Option<(ObjectPath, i64)>,
}

/// What a job takes of the files there are.
#[derive(Debug, Clone, Copy)]
pub struct Taste {
    /// What the job does.
    pub job: JobKind,
    /// Pictures may have their text elsewhere.
    pub texts: bool,
    /// Names that begin with a dot too, but for our own.
    pub hidden: bool,
    /// Larger documents are passed over, bytes.
    pub document_bytes_max: u64,
}

/// What the walk came to.
#[derive(Debug, Default)]
pub struct Walked {
    /// Everything below the base that matches.
    pub found: Vec<Found>,
    /// Directories listed.
    pub directories: u64,
    /// Some directory could not be entered: what is missing may lie in there, so nothing counts as deleted.
    pub blind: bool,
}

/// A pattern below the base: `*` and `?` stay within a component, `**` crosses.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    /// Components that a match has at most; `None` with `**`.
    depth: Option<usize>,
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

/// How to walk.
pub struct Walk<'a> {
    /// What to walk on.
    pub export: &'a dyn Export,
    /// Where to begin.
    pub base: &'a ObjectPath,
    /// What to take; everything if `None`.
    pub pattern: Option<&'a Pattern>,
    /// What is left out: not listed, not entered.
    pub exclude: &'a Exclude,
    /// Output places below the base: not entered.
    pub places: &'a [ObjectPath],
    /// Names (relative to the base) that are results in such a place: not listed.
    pub ours: &'a (dyn Fn(&[u8]) -> bool + Sync),
    /// What is taken.
    pub taste: Taste,
    /// More entries than this are refused.
    pub entries_max: usize,
}

impl Walk<'_> {
    /// Walks; tells `progress` about entries and directories so far.
    ///
    /// # Errors
    /// Those of the export; `TOO_LARGE` past the bound on entries.
    pub async fn run(&self, mut progress: impl FnMut(u64, u64)) -> Result<Walked, Problem> {
        let mut walked = Walked::default();
        let mut level = vec![self.base.clone()];
        let mut depth = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            let mut lists = futures::stream::iter(level.into_iter().map(Ok))
                .map_ok(|directory| async move {
                    let listed = self.export.list(&directory, DIRECTORY_ENTRIES_MAX).await;
                    Ok::<_, Problem>((directory, listed))
                })
                .try_buffered(LISTS_IN_FLIGHT);
            while let Some(listed) = lists.next().await {
                let (directory, listed) = listed?;
                let entries = match listed {
                    Ok(entries) => entries,
                    Err(ExportError::Denied { .. }) if directory != *self.base => {
                        walked.blind = true;
                        let name = self.relative(&directory).to_vec();
                        let reason = "permission denied: the directory could not be entered".to_owned();
                        walked.found.push(Found { name, skipped: Some(reason), ..Found::default() });
                        continue;
                    }
                    Err(error @ ExportError::NotFound(_)) if directory != *self.base => {
                        return Err(Problem::new(
                            ErrorCode::ObjectChanged,
                            format!("{error}: it was there a moment ago; scan again"),
                        ));
                    }
                    Err(error) => return Err(error.into()),
                };
                walked.directories += 1;
                for entry in entries {
                    self.take(&directory, entry, depth, &mut walked, &mut next)?;
                }
                if walked.found.len() + next.len() > self.entries_max {
                    return Err(Problem::new(
                        ErrorCode::TooLarge,
                        format!(
                            "input has more than {} entries; split the job, or raise limits.scan_entries_max",
                            self.entries_max
                        ),
                    ));
                }
                progress(walked.found.len() as u64, walked.directories);
            }
            drop(lists);
            level = next;
            depth += 1;
        }
        Ok(walked)
    }

    fn relative<'p>(&self, path: &'p ObjectPath) -> &'p [u8] {
        path.below(self.base).unwrap_or_default()
    }

    fn take(
        &self,
        directory: &ObjectPath,
        entry: Entry,
        depth: usize,
        walked: &mut Walked,
        next: &mut Vec<ObjectPath>,
    ) -> Result<(), Problem> {
        let hidden = is_hidden(&entry.name) && (!self.taste.hidden || entry.name == OWN_DIRECTORY);
        if hidden || HOUSEKEEPING.contains(&entry.name.as_slice()) {
            return Ok(());
        }
        let Ok(path) = directory.join(&entry.name) else {
            let mut name = self.relative(directory).to_vec();
            name.push(b'/');
            name.extend_from_slice(&entry.name);
            let skipped = Some("the path is longer than 4096 bytes".to_owned());
            walked.blind |= entry.attr.kind == Kind::Directory;
            let (size, mtime_ns) = (entry.attr.size, entry.attr.mtime_ns);
            walked.found.push(Found { name, size, mtime_ns, skipped, text: None });
            return Ok(());
        };
        let name = self.relative(&path);
        if self.exclude.matches(name) {
            return Ok(());
        }
        if entry.attr.kind == Kind::Directory {
            let within = self.pattern.and_then(|p| p.depth).is_none_or(|most| depth + 1 < most);
            if self.places.contains(&path) || !within {
                return Ok(());
            }
            if depth + 1 >= SCAN_DEPTH_MAX {
                walked.blind = true;
                let skipped = Some(format!("lies more than {SCAN_DEPTH_MAX} directories deep"));
                walked.found.push(Found { name: name.to_vec(), skipped, ..Found::default() });
                return Ok(());
            }
            next.push(path);
            return Ok(());
        }
        if self.pattern.is_some_and(|pattern| !pattern.matches(name)) || (self.ours)(name) {
            return Ok(());
        }
        let skipped = judge(&entry, self.taste).err();
        let (size, mtime_ns) = (entry.attr.size, entry.attr.mtime_ns);
        walked.found.push(Found { name: name.to_vec(), size, mtime_ns, skipped, text: None });
        Ok(())
    }
}

/// Whether a file is a document to take.
///
/// # Errors
/// The reason why not, for the listing.
pub fn judge(entry: &Entry, taste: Taste) -> Result<(), String> {
    let document_bytes_max = taste.document_bytes_max;
    match entry.attr.kind {
        Kind::File => {}
        Kind::Symlink => return Err("a symbolic link: never followed".to_owned()),
        other => return Err(format!("{}: never opened", kind_name(other))),
    }
    let kind = kinds::taken(taste.job, &entry.name, taste.texts)?;
    let size = entry.attr.size;
    if size > document_bytes_max {
        let setting = "document_bytes_max of the gateway's settings, of the export or under limits";
        return Err(format!("{size} bytes, more than the limit of {document_bytes_max} ({setting})"));
    }
    if kind == kinds::Kind::Text && size > TEXT_BYTES_MAX {
        return Err(format!("{size} bytes, more than the limit of {TEXT_BYTES_MAX} for a text"));
    }
    if entry.name.len() > DOCUMENT_NAME_BYTES_MAX {
        return Err(format!("its name has more than {DOCUMENT_NAME_BYTES_MAX} bytes: results' names would not fit"));
    }
    Ok(())
}
