//! The store on a local disk: SQLite with a write-ahead log, synced at every commit, written by one thread.
//!
//! Stored in `jobs.sqlite` of the state directory: `records`, `archive`, and one row of `meta` (schema and the least
//! schema whose program can read it, the store's generation, the last epoch, the revision). Every row carries a digest
//! of itself, because SQLite notices damage to its trees but not to the values in them.
//! Not stored here: anything bulky; see the module above. Two processes can't have one store: `store.lock` is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use ingle_proto::Epoch;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::{ArchiveBounds, JobStore, Records, Snapshot, StoreError, below, check, whole};
use crate::core::record::Change;

const FILE: &str = "jobs.sqlite";
const LOCK: &str = "store.lock";
/// What this program writes.
const SCHEMA: i64 = 1;
/// The oldest program that can read what this one writes.
const LEAST_READER: i64 = 1;
/// `f_type` of a directory on NFS, whose locks and mappings SQLite's log can't rely on.
const NFS_MAGIC: i64 = 0x6969;
/// Requests that wait for the writer; the driver sends one at a time.
const REQUESTS_WAITING_MAX: usize = 16;
/// How long an answer may take before its outcome counts as unknown.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

const TABLES: &str = "
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        schema INTEGER NOT NULL, least_reader INTEGER NOT NULL,
        generation INTEGER NOT NULL, epoch INTEGER NOT NULL, revision INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE INDEX records_by_revision ON records (revision);
    CREATE TABLE archive (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
";

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Request {
    Commit(Epoch, Vec<Change>, Answer<u64>),
    Read(Option<u64>, Answer<Snapshot>),
    Archived(String, Answer<Records>),
}

/// A store in a directory, open for as long as this lives.
#[derive(Debug)]
pub struct SqliteStore {
    /// Taken only to let the writer end.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteStore {
    /// Opens the store of a state directory (makes it if there is none), checks all of it, and begins the next epoch,
    /// durably. Blocks: call it off the runtime.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Corrupt`] with what to do, or what the system said.
    pub fn open(directory: &Path) -> Result<(Self, Epoch), StoreError> {
        Self::open_with(directory, ArchiveBounds::default())
    }

    /// The same with another bound on what is kept of ended jobs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(directory: &Path, bounds: ArchiveBounds) -> Result<(Self, Epoch), StoreError> {
        std::fs::create_dir_all(directory).map_err(|error| StoreError::io(directory.display(), error))?;
        refuse_nfs(directory)?;
        let lock = lock(&directory.join(LOCK))?;
        let path = directory.join(FILE);
        if !path.try_exists().map_err(|error| StoreError::io(path.display(), error))? {
            make(directory, &path)?;
        }
        let mut writer = Writer { connection: connect(&path)?, path, bounds, archive: Archive::default(), _lock: lock };
        writer.verify()?;
        let stored = writer.meta()?;
        let epoch = Epoch { generation: stored.epoch.generation, revision: stored.epoch.revision + 1 };
        writer.commit(epoch, &[])?;
        let (requests, inbox) = mpsc::channel(REQUESTS_WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("job store".into())
            .spawn(move || writer.run(inbox))
            .map_err(|error| StoreError::io("thread of the job store", error))?;
        Ok((Self { requests: Some(requests), writer: Some(thread) }, epoch))
    }

    /// The store's file in a directory, if there is one.
    #[must_use]
    pub fn lies_in(directory: &Path) -> Option<PathBuf> {
        Some(directory.join(FILE)).filter(|path| path.exists())
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().expect("taken only when this is dropped");
        let gone = || StoreError::Gone("its thread ended".to_owned());
        let asked = async {
            requests.send(request(answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        tokio::time::timeout(ANSWER_WITHIN, asked)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unknown(format!("no answer within {ANSWER_WITHIN:?}"))))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The lock is let go by the time this returns, so that the store can be opened again.
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the job store's thread panicked");
        }
    }
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        self.ask(|answer| Request::Read(None, answer)).await
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<Change>) -> Result<u64, StoreError> {
        check(&changes)?;
        self.ask(|answer| Request::Commit(epoch, changes, answer)).await
    }

    async fn changes_since(&self, revision: u64) -> Result<Snapshot, StoreError> {
        self.ask(|answer| Request::Read(Some(revision), answer)).await
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        let prefix = prefix.to_owned();
        self.ask(|answer| Request::Archived(prefix, answer)).await
    }
}

/// The one row about the store itself.
#[derive(Debug, Clone, Copy)]
struct Meta {
    schema: i64,
    least_reader: i64,
    epoch: Epoch,
    revision: u64,
}

impl Meta {
    fn sum(&self) -> Vec<u8> {
        let text = format!("{}/{}/{}/{}", self.schema, self.least_reader, self.epoch, self.revision);
        digest(&[text.as_bytes()])
    }
}

/// How much lies in the archive, counted at the start and kept up with each commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Archive {
    records: u64,
    bytes: u64,
}

/// What the writing thread owns.
struct Writer {
    connection: Connection,
    path: PathBuf,
    bounds: ArchiveBounds,
    archive: Archive,
    /// Ends with the process, however that ends.
    _lock: File,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // A caller that no longer waits is no fault of the store's: sends may fail.
        while let Some(request) = requests.blocking_recv() {
            match request {
                Request::Commit(epoch, changes, answer) => drop(answer.send(self.commit(epoch, &changes))),
                Request::Read(after, answer) => drop(answer.send(self.read(after))),
                Request::Archived(prefix, answer) => drop(answer.send(self.archived(&prefix))),
            }
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "closing the job store");
        }
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<u64, StoreError> {
        let path = self.path.clone();
        let fail = |error| failed(&path, error);
        let stored = self.meta()?;
        if epoch < stored.epoch {
            return Err(StoreError::Fenced { ours: epoch, stored: stored.epoch });
        }
        let meta = Meta { epoch, revision: stored.revision + 1, ..stored };
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let mut archive = self.archive;
        for change in changes {
            if let Change::Archive { prefix } = change {
                let moved = measure(&transaction, "records", prefix).map_err(fail)?;
                archive.records += moved.records;
                archive.bytes += moved.bytes;
            }
            apply(&transaction, change, meta.revision).map_err(fail)?;
        }
        if archive != self.archive {
            trim(&transaction, self.bounds, &mut archive).map_err(fail)?;
        }
        write_meta(&transaction, &meta).map_err(fail)?;
        match transaction.commit() {
            Ok(()) => {
                self.archive = archive;
                Ok(meta.revision)
            }
            Err(error) => Err(match failed(&path, error) {
                // Its pages may have reached the disk although syncing them failed.
                StoreError::Io { place, reason } => StoreError::Unknown(format!("{place}: {reason}")),
                other => other,
            }),
        }
    }

    fn read(&mut self, after: Option<u64>) -> Result<Snapshot, StoreError> {
        let meta = self.meta()?;
        let sql = "SELECT key, value, revision, sum FROM records WHERE revision > ?1 ORDER BY key";
        let after = after.map_or(-1, stored_number);
        let records = self.rows(sql, params![after])?;
        Ok(Snapshot { revision: meta.revision, epoch: meta.epoch, records })
    }

    fn archived(&mut self, prefix: &str) -> Result<Records, StoreError> {
        let sql = "SELECT key, value, revision, sum FROM archive WHERE key >= ?1 AND key < ?2 ORDER BY key";
        self.rows(sql, params![prefix, below(prefix)])
    }

    fn rows(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Records, StoreError> {
        let fail = |error| failed(&self.path, error);
        let mut statement = self.connection.prepare_cached(sql).map_err(fail)?;
        let rows = statement.query_map(values, row).map_err(fail)?;
        rows.map(|row| {
            let (key, value, revision, sum) = row.map_err(fail)?;
            if sum != digest(&[key.as_bytes(), &revision.to_le_bytes(), &value]) {
                return Err(corrupt(&self.path, format!("record {key} is not what was written")));
            }
            Ok((key, value))
        })
        .collect()
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT schema, least_reader, generation, epoch, revision, sum FROM meta WHERE one = 1")
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| {
                    let epoch = Epoch { generation: number(row, 2)?, revision: number(row, 3)? };
                    let meta =
                        Meta { schema: row.get(0)?, least_reader: row.get(1)?, epoch, revision: number(row, 4)? };
                    Ok((meta, row.get::<_, Vec<u8>>(5)?))
                };
                statement.query_row([], read).optional()
            })
            .map_err(|error| failed(&self.path, error))?;
        match found {
            Some((meta, sum)) if sum == meta.sum() => Ok(meta),
            Some(_) => Err(corrupt(&self.path, "its description of itself is not what was written")),
            None => Err(corrupt(&self.path, "it doesn't describe itself")),
        }
    }

    /// Reads everything once, before anything is built on it.
    fn verify(&mut self) -> Result<(), StoreError> {
        let verdict: String = self
            .connection
            .pragma_query_value(None, "quick_check", |row| row.get(0))
            .map_err(|error| failed(&self.path, error))?;
        if verdict != "ok" {
            return Err(corrupt(&self.path, verdict.lines().next().unwrap_or("quick_check failed")));
        }
        let meta = self.meta()?;
        if meta.least_reader > SCHEMA {
            return Err(StoreError::Corrupt {
                place: self.path.display().to_string(),
                reason: format!(
                    "a newer ingle-coordinator wrote it: it needs schema {}, we know {SCHEMA}",
                    meta.least_reader
                ),
                remedy: "start that version again, or a newer one".into(),
            });
        }
        self.read(None).map(drop)?;
        self.archived("").map(drop)?;
        self.archive = measure(&self.connection, "archive", "").map_err(|error| failed(&self.path, error))?;
        Ok(())
    }
}

fn apply(connection: &Connection, change: &Change, revision: u64) -> rusqlite::Result<()> {
    const PUT: &str = "INSERT OR REPLACE INTO records (key, value, revision, sum) VALUES (?1, ?2, ?3, ?4)";
    const CLEAR: &str = "DELETE FROM records WHERE key >= ?1 AND key < ?2";
    const MOVE: &str = "INSERT OR REPLACE INTO archive (key, value, revision, sum)
        SELECT key, value, revision, sum FROM records WHERE key >= ?1 AND key < ?2";
    match change {
        Change::Put { key, value } => {
            let revision = stored_number(revision);
            let sum = digest(&[key.as_bytes(), &revision.to_le_bytes(), value]);
            connection.prepare_cached(PUT)?.execute(params![key, value, revision, sum])?;
        }
        Change::Delete { key } => {
            connection.prepare_cached("DELETE FROM records WHERE key = ?1")?.execute([key])?;
        }
        Change::Archive { prefix } => {
            let range = params![prefix, below(prefix)];
            connection.prepare_cached(MOVE)?.execute(range)?;
            connection.prepare_cached(CLEAR)?.execute(range)?;
        }
        Change::Clear { prefix } => {
            connection.prepare_cached(CLEAR)?.execute(params![prefix, below(prefix)])?;
        }
    }
    Ok(())
}

/// How much lies below a prefix of a table of ours.
fn measure(connection: &Connection, table: &'static str, prefix: &str) -> rusqlite::Result<Archive> {
    let sql = format!(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(key) + LENGTH(value)), 0) FROM {table} WHERE key >= ?1 AND key < ?2"
    );
    let read = |row: &Row<'_>| Ok(Archive { records: number(row, 0)?, bytes: number(row, 1)? });
    connection.prepare_cached(&sql)?.query_row(params![prefix, below(prefix)], read)
}

/// Lets the oldest jobs leave the archive until it is within its bounds. The newest one stays, however large.
fn trim(connection: &Connection, bounds: ArchiveBounds, archive: &mut Archive) -> rusqlite::Result<()> {
    // One by one they are found in the index; asked for together, every key is looked at.
    const ENDS: &str = "SELECT (SELECT MIN(key) FROM archive WHERE key >= ?1 AND key < ?2),
        (SELECT MAX(key) FROM archive WHERE key >= ?1 AND key < ?2)";
    const DROP: &str = "DELETE FROM archive WHERE key >= ?1 AND key < ?2";
    // Parts of jobs first: they are many, and a job is still told without them.
    for kind in ["parts/", ""] {
        while archive.records > bounds.records || archive.bytes > bounds.bytes {
            let ends = |row: &Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?));
            let found = connection.prepare_cached(ENDS)?.query_row(params![kind, below(kind)], ends)?;
            let (Some(oldest), Some(newest)) = found else { break };
            let (oldest, newest) = (whole(&oldest), whole(&newest));
            if oldest == newest {
                break;
            }
            let gone = measure(connection, "archive", oldest)?;
            connection.prepare_cached(DROP)?.execute(params![oldest, below(oldest)])?;
            archive.records = archive.records.saturating_sub(gone.records);
            archive.bytes = archive.bytes.saturating_sub(gone.bytes);
        }
    }
    Ok(())
}

fn write_meta(connection: &Connection, meta: &Meta) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO meta (one, schema, least_reader, generation, epoch, revision, sum)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            meta.schema,
            meta.least_reader,
            stored_number(meta.epoch.generation),
            stored_number(meta.epoch.revision),
            stored_number(meta.revision),
            meta.sum()
        ])
        .map(drop)
}

/// Makes an empty store beside its place and moves it there whole, so that a file that lacks something is never taken
/// for one in the making.
fn make(directory: &Path, path: &Path) -> Result<(), StoreError> {
    let log = directory.join(format!("{FILE}-wal"));
    if log.exists() {
        return Err(corrupt(path, format!("it is missing, but its log {} is there", log.display())));
    }
    let staged = directory.join(format!("{FILE}.making"));
    let io = |error: std::io::Error| StoreError::io(staged.display(), error);
    for suffix in ["", "-journal"] {
        match std::fs::remove_file(directory.join(format!("{FILE}.making{suffix}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    let generation = u64::try_from(ingle_daemon::clock::unix_ms() / 1000).unwrap_or(0).max(1);
    let fill = || {
        let mut connection = Connection::open(&staged)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        let epoch = Epoch { generation, revision: 0 };
        write_meta(&transaction, &Meta { schema: SCHEMA, least_reader: LEAST_READER, epoch, revision: 0 })?;
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)
    };
    fill().map_err(|error| failed(&staged, error))?;
    // Specifications hold people's prompts and paths; SQLite gives its log the same permissions.
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    std::fs::rename(&staged, path).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    // SQLite would take a file shorter than its smallest page for a new database and begin to fill it.
    let bytes = std::fs::metadata(path).map_err(|error| StoreError::io(path.display(), error))?.len();
    if bytes < 512 {
        return Err(corrupt(path, format!("it holds only {bytes} bytes")));
    }
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // NORMAL would not sync at each commit, and a promise would be lost with the power.
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(connection)
    };
    open().map_err(|error| failed(path, error))
}

fn refuse_nfs(directory: &Path) -> Result<(), StoreError> {
    let about = rustix::fs::statfs(directory).map_err(|error| StoreError::io(directory.display(), error))?;
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "its width differs between platforms")]
    if about.f_type as i64 == NFS_MAGIC {
        let words = "is on NFS, where SQLite's log isn't safe: set state_dir to a directory on a local disk";
        return Err(StoreError::io(directory.display(), words));
    }
    Ok(())
}

/// Takes the directory for this process and says so in the file.
fn lock(path: &Path) -> Result<File, StoreError> {
    let io = |error: std::io::Error| StoreError::io(path.display(), error);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
            let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            return Err(StoreError::InUse { place: path.display().to_string(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

type StoredRow = (String, Vec<u8>, i64, Vec<u8>);

fn row(row: &Row<'_>) -> rusqlite::Result<StoredRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

/// Counters stay far below the bound of SQLite's integers.
fn stored_number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Eight bytes that tell damage, not malice.
fn digest(parts: &[&[u8]]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().as_bytes()[..8].to_vec()
}

fn corrupt(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Corrupt {
        place: path.display().to_string(),
        reason: format!("it is damaged: {}", reason.into()),
        remedy: "restore the state directory from a backup made while the coordinator stood still; \
                 moving the directory away starts without jobs"
            .into(),
    }
}

fn failed(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(format!("{}: {error}; free space on its disk", path.display())),
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory,
        ) => StoreError::io(path.display(), error),
        // All our statements are fixed: what else they meet is a file that isn't what we wrote.
        _ => corrupt(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_whose_thread_ended_says_so_and_is_not_asked_again() {
        let (requests, inbox) = mpsc::channel(1);
        drop(inbox);
        let store = SqliteStore { requests: Some(requests), writer: None };
        for error in [
            store.load().await.unwrap_err(),
            store.commit(Epoch::default(), Vec::new()).await.unwrap_err(),
            store.changes_since(0).await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Gone(_)) && !error.retryable(), "{error}");
        }
    }
}
