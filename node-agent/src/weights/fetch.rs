//! Copies a model's files: ranged reads in parallel, hashed as they come, synced before the model counts as there.

use std::io::Write as _;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use ingle_proto::v1;
use ingle_proto::{Digest, ErrorCode, Problem};

use super::FileDigest;
use super::folders::FileStamp;
use crate::limits;
use crate::storage::Gateway;

/// Reads one file of the NAS into `path`. The listing's size and time must still hold at every range.
///
/// # Errors
/// `OBJECT_CHANGED` if the file isn't what was listed; what the gateway or the local disk said.
pub(super) async fn file(
    gateway: &Gateway,
    object: &v1::ObjectRef,
    stamp: &FileStamp,
    path: &Path,
) -> Result<FileDigest, Problem> {
    let ranges = stamp.size.div_ceil(limits::WEIGHTS_RANGE_BYTES);
    let mut reads = futures::stream::iter(0..ranges)
        .map(|range| async move {
            let offset = range * limits::WEIGHTS_RANGE_BYTES;
            let length = limits::WEIGHTS_RANGE_BYTES.min(stamp.size - offset);
            let (attributes, bytes) = gateway.range(object, offset, length).await?;
            if attributes.size != stamp.size || attributes.mtime_ns != stamp.mtime_ns || bytes.len() as u64 != length {
                return Err(changed(&stamp.name));
            }
            Ok(bytes)
        })
        .buffered(limits::WEIGHTS_RANGES_IN_FLIGHT);
    let target = path.to_owned();
    let mut writer = blocking(move || Ok((std::fs::File::create(&target)?, blake3::Hasher::new()))).await?;
    while let Some(bytes) = reads.try_next().await? {
        writer = blocking(move || {
            let (mut file, mut hasher) = writer;
            hasher.update(&bytes);
            file.write_all(&bytes)?;
            Ok((file, hasher))
        })
        .await?;
    }
    let digest = blocking(move || {
        writer.0.sync_all()?;
        Ok(Digest::from(writer.1.finalize()))
    })
    .await?;
    Ok(FileDigest { name: stamp.name.clone(), size: stamp.size, digest })
}

/// Hashes a local file; its size and time must still be those listed. Blocks.
///
/// # Errors
/// `OBJECT_CHANGED`, or what the system said.
pub(super) fn hash_local(path: &Path, stamp: &FileStamp) -> Result<FileDigest, Problem> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(|error| local(&error))?;
    std::io::copy(&mut file, &mut hasher).map_err(|error| local(&error))?;
    let after = file.metadata().map_err(|error| local(&error))?;
    if after.len() != stamp.size || super::folders::mtime_ns(&after) != stamp.mtime_ns || hasher.count() != stamp.size {
        return Err(changed(&stamp.name));
    }
    Ok(FileDigest { name: stamp.name.clone(), size: stamp.size, digest: hasher.finalize().into() })
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

fn local(error: &std::io::Error) -> Problem {
    Problem::new(ErrorCode::Internal, format!("local disk: {error}"))
}
