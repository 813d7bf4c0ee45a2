//! A ledger's files: an append-only log of small segments, folded now and then into one snapshot per bucket.
//!
//! `log/<seq>.seg` are numbered without gaps; `snap/<bucket>-<seq>.seg` holds a bucket as of that log segment. A file
//! gets its name only once it is durable, so every file with a name is whole, or damaged by someone else: an error.
//! Old files go after the new ones are durable; a crash between leaves both, and loading takes the newer.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use super::record::{LogSegment, Snapshot};
use super::{BUCKETS, Ledger, frame};
use crate::export::{Export, ExportError};
use crate::file::{self, Named};
use crate::limits::{
    DIRECTORY_ENTRIES_MAX, LEDGER_FILE_BYTES_MAX, LEDGER_LOG_SEGMENTS, LISTS_IN_FLIGHT, PUBLISHED_KEPT,
};

/// One place's ledger, on disk and in memory. After an error of [`Store::append`] the two may differ: load again.
pub struct Store {
    export: Arc<dyn Export>,
    directory: ObjectPath,
    /// Oldest and next log segment.
    oldest: u64,
    next: u64,
    /// Newest snapshot of each bucket.
    snapshots: BTreeMap<u32, u64>,
    ledger: Arc<Ledger>,
    fold_after: usize,
}

impl Store {
    /// Whether it is kept on this very export.
    #[must_use]
    pub fn lies_on(&self, export: &Arc<dyn Export>) -> bool {
        Arc::ptr_eq(&self.export, export)
    }

    /// Whether the files that memory stands for are there: somebody may have removed the whole place.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn is_there(&self) -> Result<bool, Problem> {
        let newest = if self.next > self.oldest {
            log_path(&self.directory, self.next - 1)
        } else if let Some((bucket, seq)) = self.snapshots.iter().next() {
            snapshot_path(&self.directory, *bucket, *seq)
        } else {
            return Ok(true);
        };
        // Listed rather than looked up: what a name led to a moment ago may still be remembered.
        let directory = newest.parent().unwrap_or_else(ObjectPath::root);
        Ok(names(&*self.export, &directory).await?.iter().any(|name| name.as_slice() == newest.file_name()))
    }

    /// Reads the ledger below `directory`; an absent one is empty.
    ///
    /// # Errors
    /// Those of the export; `DIGEST_MISMATCH` names a file that is damaged or missing.
    pub async fn load(export: Arc<dyn Export>, directory: ObjectPath) -> Result<Self, Problem> {
        let (snap, log) = (directory.join(b"snap")?, directory.join(b"log")?);
        let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
        let mut outdated = Vec::new();
        for name in names(&*export, &snap).await? {
            let Some((bucket, seq)) = parse_snapshot(&name) else { return Err(foreign(&snap, &name)) };
            match newest.get(&bucket).copied() {
                Some(other) if other >= seq => outdated.push((bucket, seq)),
                other => {
                    outdated.extend(other.map(|older| (bucket, older)));
                    newest.insert(bucket, seq);
                }
            }
        }
        let mut ledger = Ledger::default();
        let reads: Vec<_> = newest
            .iter()
            .map(|(bucket, seq)| read::<Snapshot>(&*export, snapshot_path(&directory, *bucket, *seq)))
            .collect();
        let snapshots: Vec<Snapshot> = futures::stream::iter(reads).buffered(LISTS_IN_FLIGHT).try_collect().await?;
        for (snapshot, (bucket, seq)) in snapshots.into_iter().zip(&newest) {
            if snapshot.bucket != *bucket || snapshot.seq != *seq || snapshot.buckets != BUCKETS {
                return Err(missing(
                    &snapshot_path(&directory, *bucket, *seq),
                    "holds another bucket than its name says",
                ));
            }
            ledger.restore(snapshot)?;
        }

        let mut seqs = Vec::new();
        for name in names(&*export, &log).await? {
            seqs.push(parse_log(&name).ok_or_else(|| foreign(&log, &name))?);
        }
        seqs.sort_unstable();
        let folded = newest.values().copied().max().unwrap_or(0);
        let oldest = seqs.first().copied().unwrap_or(folded + 1);
        if oldest > folded + 1 {
            return Err(missing(&log_path(&directory, folded + 1), "is missing"));
        }
        if let Some(gap) = seqs.windows(2).find(|pair| pair[1] != pair[0] + 1) {
            return Err(missing(&log_path(&directory, gap[0] + 1), "is missing"));
        }
        let reads: Vec<_> = seqs.iter().map(|seq| read::<LogSegment>(&*export, log_path(&directory, *seq))).collect();
        let segments: Vec<LogSegment> = futures::stream::iter(reads).buffered(LISTS_IN_FLIGHT).try_collect().await?;
        for (segment, seq) in segments.into_iter().zip(&seqs) {
            if segment.seq != *seq {
                return Err(missing(&log_path(&directory, *seq), "holds another segment than its name says"));
            }
            let covered = |bucket: u32| newest.get(&bucket).copied().unwrap_or(0) >= *seq;
            if let Some(publish) = segment.publish {
                ledger.begin(publish);
            }
            if let Some(done) = segment.done {
                // Folded, and its intents are gone already: the fold ended halfway through removing old segments, which
                // it began only when every bucket was durable.
                if *seq <= folded && !ledger.is_open(&done.key) {
                    continue;
                }
                ledger.finish(&done, |bucket| !covered(bucket))?;
            }
        }
        let next = seqs.last().copied().unwrap_or(0).max(folded) + 1;
        let store = Self {
            export,
            directory,
            oldest,
            next,
            snapshots: newest,
            ledger: Arc::new(ledger),
            fold_after: LEDGER_LOG_SEGMENTS,
        };
        for (bucket, seq) in outdated {
            // Left by a crash; if it can't go now it goes next time.
            let _ = store.export.remove(&snapshot_path(&store.directory, bucket, seq)).await;
        }
        Ok(store)
    }

    /// Folds after this many log segments instead of the usual number.
    pub fn fold_after(&mut self, segments: usize) {
        self.fold_after = segments.max(1);
    }

    /// The ledger as of now; it doesn't change under the holder.
    #[must_use]
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// Makes a segment durable, then applies it. Its number is set here.
    ///
    /// # Errors
    /// Those of the export; `NAME_TAKEN` if somebody else appended.
    pub async fn append(&mut self, mut segment: LogSegment) -> Result<(), Problem> {
        segment.seq = self.next;
        let path = log_path(&self.directory, self.next);
        self.write(&path, &segment).await?;
        self.next += 1;
        let ledger = Arc::make_mut(&mut self.ledger);
        if let Some(publish) = segment.publish {
            ledger.begin(publish);
        }
        if let Some(done) = segment.done {
            ledger.finish(&done, |_| true)?;
        }
        Ok(())
    }

    async fn write(&self, path: &ObjectPath, message: &impl prost::Message) -> Result<(), Problem> {
        let temporary = self.directory.join(b"tmp")?;
        let sealed = file::write_whole(&self.export, &temporary, &frame::encode(message)).await?;
        match sealed.name(path).await? {
            Named::New => Ok(()),
            Named::Taken => {
                sealed.discard().await;
                Err(Problem::new(
                    ErrorCode::NameTaken,
                    format!("{}: another gateway writes to this place; let one own it", path.display()),
                ))
            }
        }
    }

    /// Folds the log into snapshots if it has grown long and nothing is open. `now_ms`: Unix milliseconds.
    ///
    /// # Errors
    /// Those of the export; the ledger is as it was, whatever was done.
    pub async fn fold_if_due(&mut self, now_ms: i64) -> Result<bool, Problem> {
        let length = usize::try_from(self.next - self.oldest).unwrap_or(usize::MAX);
        if length < self.fold_after || !self.ledger.open.is_empty() {
            return Ok(false);
        }
        let kept_ms = i64::try_from(PUBLISHED_KEPT.as_millis()).unwrap_or(i64::MAX);
        let seq = self.next - 1;
        let ledger = Arc::make_mut(&mut self.ledger);
        ledger.forget_done_before(now_ms.saturating_sub(kept_ms));
        let dirty = ledger.dirty();
        let mut old = Vec::new();
        for bucket in dirty {
            let snapshot = self.ledger.snapshot(bucket, seq);
            let path = snapshot_path(&self.directory, bucket, seq);
            match self.write(&path, &snapshot).await {
                // By an earlier fold that ended halfway.
                Err(problem) if problem.code == ErrorCode::NameTaken => {
                    let there: Snapshot = read(&*self.export, path.clone()).await?;
                    if there.seq != seq {
                        return Err(problem);
                    }
                }
                other => other?,
            }
            old.extend(self.snapshots.insert(bucket, seq).filter(|older| *older != seq).map(|older| (bucket, older)));
        }
        Arc::make_mut(&mut self.ledger).clean();
        // Now that everything is in durable snapshots: oldest first, so that what is left has no gap.
        while self.oldest <= seq {
            self.export.remove(&log_path(&self.directory, self.oldest)).await?;
            self.oldest += 1;
        }
        for (bucket, older) in old {
            self.export.remove(&snapshot_path(&self.directory, bucket, older)).await?;
        }
        Ok(true)
    }
}

async fn read<M: prost::Message + Default>(export: &dyn Export, path: ObjectPath) -> Result<M, Problem> {
    let data = file::read_whole(export, &path, LEDGER_FILE_BYTES_MAX).await?;
    frame::decode(&path, &data)
}

async fn names(export: &dyn Export, directory: &ObjectPath) -> Result<Vec<Vec<u8>>, Problem> {
    match export.list(directory, DIRECTORY_ENTRIES_MAX).await {
        // Other names are a NAS's or a person's (`.nfs0001`, `@eaDir`), and not ours to judge.
        Ok(entries) => Ok(entries.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(b".seg")).collect()),
        Err(ExportError::NotFound(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn log_path(directory: &ObjectPath, seq: u64) -> ObjectPath {
    directory.join(format!("log/{seq:016x}.seg").as_bytes()).expect("a short plain name below a place")
}

fn snapshot_path(directory: &ObjectPath, bucket: u32, seq: u64) -> ObjectPath {
    directory.join(format!("snap/{bucket:04x}-{seq:016x}.seg").as_bytes()).expect("a short plain name below a place")
}

fn parse_log(name: &[u8]) -> Option<u64> {
    let hex = std::str::from_utf8(name).ok()?.strip_suffix(".seg")?;
    if hex.len() == 16 { u64::from_str_radix(hex, 16).ok() } else { None }
}

fn parse_snapshot(name: &[u8]) -> Option<(u32, u64)> {
    let (bucket, seq) = std::str::from_utf8(name).ok()?.strip_suffix(".seg")?.split_once('-')?;
    Some((u32::from_str_radix(bucket, 16).ok()?, u64::from_str_radix(seq, 16).ok()?))
}

fn foreign(directory: &ObjectPath, name: &[u8]) -> Problem {
    Problem::new(
        ErrorCode::DigestMismatch,
        format!(
            "{}/{}: is not a ledger file of this version; move it out of .inglenook",
            directory.display(),
            ingle_proto::storage::display_bytes(name)
        ),
    )
}

fn missing(path: &ObjectPath, what: &str) -> Problem {
    Problem::new(
        ErrorCode::DigestMismatch,
        format!(
            "{}: {what}; restore the place's .inglenook/ledger from a backup of the share, or move the place's .inglenook away: \
             everything is done again then",
            path.display()
        ),
    )
}
