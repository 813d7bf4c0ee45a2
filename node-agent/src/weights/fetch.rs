//! Copies a model's files: ranged reads in parallel, hashed as they come, synced before the model counts as there.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::FileDigest;
use super::folders::FileStamp;
use crate::bulk::Wanted;
use crate::limits;
use crate::storage::Gateway;

/// Parts that may wait for the disk before reading waits for it too.
const WRITES_WAITING: usize = 2;
/// When to come back where the local disk or the cache had no room.
const ROOM_RETRY: Duration = Duration::from_secs(2);

/// How far a model's copy has come.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    done: AtomicU64,
    total: u64,
}

impl Progress {
    /// Of a copy of so many bytes that begins now.
    pub(super) fn begin(total: u64) -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), done: AtomicU64::new(0), total })
    }

    /// Bytes that came, bytes in all, and bytes per second so far.
    #[must_use]
    pub fn told(&self) -> (u64, u64, f64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.total, done as f64 / self.begun.elapsed().as_secs_f64().max(0.001))
    }
}

/// Reads one file of the NAS into `path`. The listing's size and time must hold, and all parts be of one version.
///
/// # Errors
/// `OBJECT_CHANGED` if the file isn't what was listed; what the gateway or the local disk said.
pub(super) async fn file(
    gateway: &Gateway,
    object: &v1::ObjectRef,
    stamp: &FileStamp,
    path: &Path,
    progress: &Progress,
) -> Result<FileDigest, Problem> {
    let spare: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (sender, parts) = mpsc::channel(WRITES_WAITING);
    let writing = tokio::task::spawn_blocking({
        let (path, spare) = (path.to_owned(), Arc::clone(&spare));
        move || write(&path, parts, &spare)
    });
    let read = read(gateway, object, stamp, progress, &spare, sender).await;
    // However that ended, nothing is written any more once this has answered.
    let written =
        writing.await.map_err(|error| Problem::new(ErrorCode::Internal, format!("writing ended: {error}")))?;
    read?;
    let (digest, size) = written.map_err(|error| local(&error))?;
    if size != stamp.size {
        return Err(changed(&stamp.name));
    }
    Ok(FileDigest { name: stamp.name.clone(), size, digest })
}

/// Reads the parts and hands them on in order.
async fn read(
    gateway: &Gateway,
    object: &v1::ObjectRef,
    stamp: &FileStamp,
    progress: &Progress,
    spare: &Mutex<Vec<Vec<u8>>>,
    parts: mpsc::Sender<Vec<u8>>,
) -> Result<(), Problem> {
    let etag: Mutex<Option<String>> = Mutex::default();
    let part = |range: u64| {
        let etag = &etag;
        async move {
            let offset = range * limits::WEIGHTS_RANGE_BYTES;
            let length = limits::WEIGHTS_RANGE_BYTES.min(stamp.size - offset);
            let known = etag.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let wanted = Wanted { object, token: None, offset, length, etag: known.as_deref(), lasting: true };
            let buffer = spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let part = gateway.part(wanted, buffer).await?;
            let mut etag = etag.lock().unwrap_or_else(PoisonError::into_inner);
            let same = *etag.get_or_insert_with(|| part.etag.clone()) == part.etag;
            if !same || part.size != stamp.size || part.mtime_ns != stamp.mtime_ns || part.bytes.len() as u64 != length
            {
                return Err(changed(&stamp.name));
            }
            progress.done.fetch_add(length, Ordering::Relaxed);
            Ok(part.bytes)
        }
    };
    let ranges = stamp.size.div_ceil(limits::WEIGHTS_RANGE_BYTES);
    // The first part alone: it says which version the others must be of.
    let first = if ranges > 0 { Some(part(0).await?) } else { None };
    let rest = futures::stream::iter(1..ranges).map(part).buffered(limits::WEIGHTS_RANGES_IN_FLIGHT);
    let mut all = std::pin::pin!(futures::stream::iter(first.map(Ok)).chain(rest));
    while let Some(bytes) = all.try_next().await? {
        // A disk that fails ends the other side, which says why.
        if parts.send(bytes).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes parts in order: hashes, writes, and hands their memory back. Blocks.
fn write(
    path: &Path,
    mut parts: mpsc::Receiver<Vec<u8>>,
    spare: &Mutex<Vec<Vec<u8>>>,
) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::create(path)?;
    let mut hasher = blake3::Hasher::new();
    while let Some(part) = parts.blocking_recv() {
        hasher.update(&part);
        file.write_all(&part)?;
        spare.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }
    file.sync_all()?;
    Ok((Digest::from(hasher.finalize()), hasher.count()))
}

/// Hashes a local file; its size and time must still be those listed. Blocks.
///
/// # Errors
/// `OBJECT_CHANGED`, or what the system said.
pub(super) fn hash_local(path: &Path, stamp: &FileStamp) -> Result<FileDigest, Problem> {
    let (digest, size) = super::hash::file(path).map_err(|error| unread(&stamp.name, &error))?;
    let after = std::fs::metadata(path).map_err(|error| unread(&stamp.name, &error))?;
    if after.len() != stamp.size || super::folders::mtime_ns(&after) != stamp.mtime_ns || size != stamp.size {
        return Err(changed(&stamp.name));
    }
    Ok(FileDigest { name: stamp.name.clone(), size: stamp.size, digest })
}

/// A listed file that couldn't be read: one that is shorter now, or gone, isn't the one that was listed.
fn unread(name: &str, error: &std::io::Error) -> Problem {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::NotFound => changed(name),
        _ => local(error),
    }
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(local(&error)),
        Err(error) => Err(Problem::new(ErrorCode::Internal, format!("file work panicked: {error}"))),
    }
}

fn changed(name: &str) -> Problem {
    Problem::new(ErrorCode::ObjectChanged, format!("{name} changed while it was read"))
}

/// A full disk passes; anything else a person has to see to.
fn local(error: &std::io::Error) -> Problem {
    let words = format!("local disk: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Problem::new(ErrorCode::Overloaded, words).retry_after(ROOM_RETRY)
        }
        _ => Problem::new(ErrorCode::Internal, words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_a_person_has_to_see_to() {
        let code = |kind: ErrorKind| unread("weights", &kind.into()).code;
        assert_eq!(code(ErrorKind::UnexpectedEof), ErrorCode::ObjectChanged);
        assert_eq!(code(ErrorKind::NotFound), ErrorCode::ObjectChanged);
        assert_eq!(code(ErrorKind::PermissionDenied), ErrorCode::Internal);
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            assert!(local(&kind.into()).retryable());
        }
        assert!(!local(&ErrorKind::PermissionDenied.into()).retryable());
    }

    #[test]
    fn a_local_file_is_hashed_as_it_was_listed_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, "12345").unwrap();
        let mtime_ns = super::super::folders::mtime_ns(&std::fs::metadata(&path).unwrap());
        let stamp = FileStamp { name: "weights".into(), size: 5, mtime_ns };
        assert_eq!(hash_local(&path, &stamp).unwrap().digest, Digest::of(b"12345"));
        for other in [FileStamp { size: 6, ..stamp.clone() }, FileStamp { mtime_ns: mtime_ns + 1, ..stamp.clone() }] {
            assert_eq!(hash_local(&path, &other).unwrap_err().code, ErrorCode::ObjectChanged);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hash_local(&path, &stamp).unwrap_err().code, ErrorCode::ObjectChanged);
    }
}
