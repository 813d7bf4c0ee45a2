//! The walk below a base: which files there are, and which are passed over and why.
//!
//! A directory costs one listing that brings attributes along, nothing is asked of a file, and several directories are listed
//! at once whatever their depth. What comes of it doesn't depend on which of them answers first.
//!
//! Names beginning with a dot are not listed at all unless the export's settings open them (`.inglenook` never), nor what a NAS or a PC keeps on a share for itself
//! ([`HOUSEKEEPING`]), nor what the job itself makes.
//! Anything that can't be listed for a reason other than permission ends the walk: an I/O error is never an empty
//! directory, or documents would count as deleted.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use ingle_proto::job::TEXT_BYTES_MAX;
use ingle_proto::storage::OWN_DIRECTORY;
use ingle_proto::v1::JobKind;
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use super::digest::DirectoryDigest;
use super::exclude::Exclude;
use super::pattern::Pattern;
use crate::export::{Attr, Entry, Export, ExportError, Kind};
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
    /// Nanoseconds since the epoch; of a document with its text elsewhere the later of both.
    pub mtime_ns: i64,
    /// The same of the attributes' last change: a writer that sets the other one back can't set this one.
    pub ctime_ns: i64,
    /// Inode number.
    pub file_id: u64,
    /// Why it is not taken, if so.
    pub skipped: Option<String>,
    /// Where its text lies that an OCR job made, and the time of that file's change.
    pub text: Option<(ObjectPath, i64)>,
}

impl Found {
    /// A file as it is listed.
    #[must_use]
    pub fn listed(name: &[u8], attr: &Attr, skipped: Option<String>) -> Self {
        Self {
            name: name.to_vec(),
            size: attr.size,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
            file_id: attr.file_id,
            skipped,
            text: None,
        }
    }
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
    /// Everything below the base that matches, by name.
    pub found: Vec<Found>,
    /// Directories listed, by name below the base.
    pub directories: Vec<Listed>,
    /// Some directory could not be entered: what is missing may lie in there, so nothing counts as deleted.
    pub blind: bool,
}

/// A directory that was listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Relative to the base.
    pub name: Vec<u8>,
    /// Over its entries: see [`super::digest`].
    pub digest: [u8; 16],
}

/// A directory that is still to be listed, and how deep it lies.
type Due = (ObjectPath, usize);

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
        let mut due: Vec<Due> = vec![(self.base.clone(), 0)];
        let mut lists = FuturesUnordered::new();
        loop {
            while lists.len() < LISTS_IN_FLIGHT
                && let Some((directory, depth)) = due.pop()
            {
                lists.push(async move {
                    let listed = self.export.list(&directory, DIRECTORY_ENTRIES_MAX).await;
                    (directory, depth, listed)
                });
            }
            let Some((directory, depth, listed)) = lists.next().await else { break };
            if let Some(entries) = self.entries(&directory, listed, &mut walked)? {
                let mut digest = DirectoryDigest::default();
                for entry in entries {
                    self.take(&directory, &entry, depth, (&mut walked, &mut due, &mut digest));
                }
                let name = self.relative(&directory).to_vec();
                walked.directories.push(Listed { name, digest: digest.finish() });
            }
            // The base itself is none of them.
            let directories = walked.directories.len().saturating_sub(1);
            if walked.found.len() + directories + due.len() > self.entries_max {
                return Err(Problem::new(
                    ErrorCode::TooLarge,
                    format!(
                        "input has more than {} entries; split the job, or raise limits.scan_entries_max",
                        self.entries_max
                    ),
                ));
            }
            progress(walked.found.len() as u64, walked.directories.len() as u64);
        }
        walked.found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        walked.directories.sort_unstable();
        Ok(walked)
    }

    /// A listing's entries; none of a directory that may not be entered, which is noted.
    fn entries(
        &self,
        directory: &ObjectPath,
        listed: Result<Vec<Entry>, ExportError>,
        walked: &mut Walked,
    ) -> Result<Option<Vec<Entry>>, Problem> {
        match listed {
            Ok(entries) => Ok(Some(entries)),
            Err(ExportError::Denied { .. }) if directory != self.base => {
                walked.blind = true;
                let name = self.relative(directory).to_vec();
                let reason = "permission denied: the directory could not be entered".to_owned();
                walked.found.push(Found { name, skipped: Some(reason), ..Found::default() });
                Ok(None)
            }
            Err(error @ ExportError::NotFound(_)) if directory != self.base => {
                let words = format!("{error}: it was there a moment ago; scan again");
                Err(Problem::new(ErrorCode::ObjectChanged, words))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn relative<'p>(&self, path: &'p ObjectPath) -> &'p [u8] {
        path.below(self.base).unwrap_or_default()
    }

    fn take(
        &self,
        directory: &ObjectPath,
        entry: &Entry,
        depth: usize,
        (walked, due, digest): (&mut Walked, &mut Vec<Due>, &mut DirectoryDigest),
    ) {
        let hidden = is_hidden(&entry.name) && (!self.taste.hidden || entry.name == OWN_DIRECTORY);
        if hidden || HOUSEKEEPING.contains(&entry.name.as_slice()) {
            return;
        }
        let Ok(path) = directory.join(&entry.name) else {
            let mut name = self.relative(directory).to_vec();
            name.push(b'/');
            name.extend_from_slice(&entry.name);
            let skipped = Some("the path is longer than 4096 bytes".to_owned());
            walked.blind |= entry.attr.kind == Kind::Directory;
            digest.add(entry);
            walked.found.push(Found::listed(&name, &entry.attr, skipped));
            return;
        };
        let name = self.relative(&path);
        if self.exclude.matches(name) {
            return;
        }
        if entry.attr.kind == Kind::Directory {
            let within = self.pattern.and_then(|p| p.depth).is_none_or(|most| depth + 1 < most);
            if self.places.contains(&path) || !within {
                return;
            }
            digest.add(entry);
            if depth + 1 >= SCAN_DEPTH_MAX {
                walked.blind = true;
                let skipped = Some(format!("lies more than {SCAN_DEPTH_MAX} directories deep"));
                walked.found.push(Found { name: name.to_vec(), skipped, ..Found::default() });
                return;
            }
            due.push((path, depth + 1));
            return;
        }
        if self.pattern.is_some_and(|pattern| !pattern.matches(name)) || (self.ours)(name) {
            return;
        }
        digest.add(entry);
        walked.found.push(Found::listed(name, &entry.attr, judge(entry, self.taste).err()));
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
        let setting = "limits.document_bytes_max of the gateway's settings, or that of the export";
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
