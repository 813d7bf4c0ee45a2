//! The suite that every export runs: each clause of the contract, against the directory behind the export.
//!
//! It panics at the first clause that doesn't hold, naming it. Doubles run it too.

mod changes;
mod kinds;
mod names;
mod reading;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use ingle_proto::ObjectPath;

use super::{Export, ExportError};

/// Longest one clause may take: a call that hangs fails its clause instead of the whole run.
const CLAUSE_MAX: Duration = Duration::from_secs(120);

/// How often a file is written again.
const REWRITES: usize = 8;
/// What lies behind an export: a directory that tests write to.
#[async_trait]
pub trait Behind: Send + Sync {
    /// That directory.
    fn directory(&self) -> &Path;

    /// Makes what was put there show through the export.
    async fn settle(&self);

    /// Whether a file keeps its inode number over that.
    fn keeps_numbers(&self) -> bool {
        true
    }
}

/// The export's own directory: what is put there is there.
struct Itself<'a>(&'a Path);

#[async_trait]
impl Behind for Itself<'_> {
    fn directory(&self) -> &Path {
        self.0
    }

    async fn settle(&self) {}
}

/// A clause's own ground: a directory in the export, and the same one behind its back.
#[derive(Clone, Copy)]
struct Ground<'a> {
    export: &'a dyn Export,
    name: &'static str,
    behind: &'a Path,
    back: &'a dyn Behind,
}

impl Ground<'_> {
    /// A path below this clause's directory.
    fn at(&self, name: impl AsRef<[u8]>) -> ObjectPath {
        let base = ObjectPath::new(self.name).expect("clause names are plain");
        base.join(name.as_ref()).expect("the clause's own names are valid")
    }

    /// The same object, behind the export's back.
    fn behind(&self, name: impl AsRef<std::ffi::OsStr>) -> PathBuf {
        self.behind.join(self.name).join(name.as_ref())
    }

    /// Puts a file there behind the export's back.
    fn put(&self, name: impl AsRef<std::ffi::OsStr>, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.behind(name), bytes).expect("the directory behind is ours to write");
    }

    /// What was put behind the export's back shows through it from here on.
    async fn settle(&self) {
        self.back.settle().await;
    }

    /// Reads a whole file through the export.
    async fn read(&self, name: impl AsRef<[u8]>) -> Result<Vec<u8>, ExportError> {
        let path = self.at(name);
        let mut out = Vec::new();
        loop {
            let part = self.export.read_at(&path, out.len() as u64, 1 << 20).await?;
            if part.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(&part);
        }
    }

    /// Creates, writes and commits a file through the export.
    async fn write(&self, name: impl AsRef<[u8]>, bytes: &'static [u8]) {
        self.export.create(&self.at(name.as_ref())).await.expect("a free name");
        self.put_durably(name, &[(0, bytes)]).await;
    }

    /// Writes and commits, again from the start where the server says that it may have lost what was not committed.
    async fn put_durably(&self, name: impl AsRef<[u8]>, parts: &[(u64, &[u8])]) {
        let path = self.at(name);
        for _ in 0..REWRITES {
            futures::stream::iter(parts)
                .map(|(at, bytes)| self.export.write_at(&path, *at, bytes::Bytes::copy_from_slice(bytes)))
                .buffer_unordered(3)
                .for_each(|answer| async { answer.expect("a write into our own file") })
                .await;
            match self.export.commit(&path).await {
                Err(ExportError::VerifierChanged(_)) => {}
                other => return other.expect("a commit of our own file"),
            }
        }
        panic!("{}: the server restarted {REWRITES} times in a row", path.display());
    }
}

macro_rules! clauses {
    ($export:expr, $back:expr, [$($module:ident :: $clause:ident),* $(,)?]) => {$(
        let name = stringify!($clause);
        let behind = $back.directory();
        std::fs::create_dir(behind.join(name)).expect("the directory behind is empty and ours");
        let ground = Ground { export: $export, name, behind, back: $back };
        tokio::time::timeout(CLAUSE_MAX, $module::$clause(ground))
            .await
            .unwrap_or_else(|_| panic!("{name}: did not end within {} s", CLAUSE_MAX.as_secs()));
    )*};
}

/// Runs every clause against a writable export whose root is the empty directory `behind`.
///
/// # Panics
/// At the first clause that doesn't hold.
pub async fn all(export: &dyn Export, behind: &Path) {
    let abilities = export.abilities().await.expect("abilities are answered");
    assert!(abilities.write && abilities.link, "the suite needs a writable export with hard links: {abilities:?}");
    reading(export, behind).await;
    let behind = Itself(behind);
    clauses!(
        export,
        &behind,
        [
            changes::create_is_exclusive,
            changes::committed_is_there,
            changes::written_out_of_order,
            changes::link_never_replaces,
            changes::rename_replaces_what_it_may,
            changes::rename_onto_its_own_other_name,
            changes::remove_may_be_repeated,
            changes::directories_are_made_with_those_above,
            changes::only_empty_directories_go,
            kinds::symlinks_change_nothing,
            kinds::fifos_take_no_writes,
            kinds::names_of_any_kind_are_moved,
            names::any_bytes_can_be_created,
        ]
    );
}

/// Runs the clauses that only read: for exports that can't be written too. `behind` is the empty directory behind it.
///
/// # Panics
/// At the first clause that doesn't hold.
pub async fn reading(export: &dyn Export, behind: &Path) {
    reading_from(export, &Itself(behind)).await;
}

/// The same for an export whose contents are made from a directory, rather than being one.
///
/// # Panics
/// At the first clause that doesn't hold.
pub async fn reading_from(export: &dyn Export, behind: &dyn Behind) {
    assert!(export.url().contains("://") && !export.url().contains('@'), "a URL without credentials: {}", export.url());
    clauses!(
        export,
        behind,
        [
            reading::root_is_a_directory,
            reading::big_file_in_chunks,
            reading::past_the_end_is_empty,
            reading::file_that_shrinks,
            reading::many_at_once,
            reading::changes_behind_the_back_show,
            reading::what_is_missing,
            reading::directory_of_five_thousand,
            kinds::symlinks_are_refused_everywhere,
            kinds::fifos_and_sockets_are_never_opened,
            kinds::files_are_no_directories,
            names::listed_as_they_are,
            names::longest_and_too_long,
        ]
    );
}
