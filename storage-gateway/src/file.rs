//! Bytes into and out of an export: whole reads, digests, and files that get their name only once they are durable.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use ingle_proto::{CHUNK_BYTES, Digest, ErrorCode, ObjectPath, Problem};

use crate::buffers::PIECE_BYTES;
use crate::export::{Export, ExportError, Kind, Replace};
use crate::limits::{READ_AHEAD_PIECES, WRITES_IN_FLIGHT};

/// How often a small file is written again after the server restarted underneath.
const REWRITES: usize = 5;

/// Reads a file of at most `limit` bytes into memory.
///
/// # Errors
/// Those of the export; `TOO_LARGE` if there is more; `OBJECT_CHANGED` if it shrinks while it is read.
pub async fn read_whole(export: &dyn Export, path: &ObjectPath, limit: u64) -> Result<Bytes, Problem> {
    let size = regular_size(export, path).await?;
    if size > limit {
        return Err(Problem::new(
            ErrorCode::TooLarge,
            format!("{}: {size} bytes, expected at most {limit}", path.display()),
        ));
    }
    let mut out = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let mut chunks = std::pin::pin!(chunks(export, path, 0, size));
    while let Some(chunk) = chunks.next().await {
        out.extend_from_slice(&chunk?);
    }
    if out.len() as u64 != size {
        return Err(Problem::new(
            ErrorCode::ObjectChanged,
            format!("{}: had {size} bytes and now ends after {}", path.display(), out.len()),
        ));
    }
    Ok(out.into())
}

/// Digest and size of a file as it is now.
///
/// # Errors
/// Those of the export; [`ExportError::Kind`] for anything but a regular file.
pub async fn digest(export: &dyn Export, path: &ObjectPath) -> Result<(Digest, u64), ExportError> {
    let size = regular_size(export, path).await?;
    let mut hasher = blake3::Hasher::new();
    let mut total = 0;
    let mut chunks = std::pin::pin!(chunks(export, path, 0, size));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        total += chunk.len() as u64;
        hasher.update(&chunk);
    }
    // It may have grown since it was looked at.
    loop {
        let more = export.read_at(path, total, CHUNK_BYTES as u32).await?;
        if more.is_empty() {
            return Ok((hasher.finalize().into(), total));
        }
        total += more.len() as u64;
        hasher.update(&more);
    }
}

async fn regular_size(export: &dyn Export, path: &ObjectPath) -> Result<u64, ExportError> {
    let attr = export.stat(path).await?;
    match attr.kind {
        Kind::File => Ok(attr.size),
        other => Err(ExportError::Kind { path: path.display(), found: kind_name(other), expected: "a file" }),
    }
}

/// What people call a kind.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "a file",
        Kind::Directory => "a directory",
        Kind::Symlink => "a symbolic link",
        Kind::Other => "a FIFO, socket or device",
    }
}

/// The bytes `start .. end` in order, in pieces of at most 256 KiB, a few of them asked for ahead.
/// Ends early where the file does.
pub fn chunks<'a>(
    export: &'a dyn Export,
    path: &'a ObjectPath,
    start: u64,
    end: u64,
) -> impl futures::Stream<Item = Result<Bytes, ExportError>> + Send + 'a {
    let starts = (start..end).step_by(PIECE_BYTES);
    futures::stream::iter(starts)
        .map(move |at| {
            let length = (end - at).min(PIECE_BYTES as u64) as u32;
            async move { export.read_at(path, at, length).await }
        })
        .buffered(READ_AHEAD_PIECES)
        .scan(false, |ended, chunk| {
            let short = chunk.as_ref().is_ok_and(Bytes::is_empty);
            let stop = *ended || short;
            *ended |= short || chunk.is_err();
            std::future::ready((!stop).then_some(chunk))
        })
}

/// So many bytes of a file in the making may be without a place on the disk: the disk then works beside the wire, not after it.
const WRITE_BACK_BYTES: u64 = 32 << 20;

/// A file in the making, under a name that nobody else makes.
pub struct Writer {
    export: Arc<dyn Export>,
    temporary: ObjectPath,
    size: u64,
    /// Written back up to there, or on the way.
    written_back: u64,
    hasher: blake3::Hasher,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<(), ExportError>>>,
}

impl Writer {
    /// Begins an empty file in `directory`, which is made if need be.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn begin(export: &Arc<dyn Export>, directory: &ObjectPath) -> Result<Self, ExportError> {
        let name = format!("{:032x}.tmp", fastrand::u128(..));
        let temporary = directory.join(name.as_bytes()).map_err(|problem| ExportError::Path(problem.message))?;
        match export.create(&temporary).await {
            Err(ExportError::NotFound(_)) => {
                export.make_directory(directory).await?;
                export.create(&temporary).await?;
            }
            other => other?,
        }
        Ok(Self {
            export: Arc::clone(export),
            temporary,
            size: 0,
            written_back: 0,
            hasher: blake3::Hasher::new(),
            in_flight: FuturesUnordered::new(),
        })
    }

    /// Where it lies until it has its name.
    #[must_use]
    pub fn path(&self) -> &ObjectPath {
        &self.temporary
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends; returns while a few writes are still under way.
    ///
    /// # Errors
    /// Those of this or of an earlier write.
    pub async fn push(&mut self, mut data: Bytes) -> Result<(), ExportError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK_BYTES));
            if self.in_flight.len() >= WRITES_IN_FLIGHT
                && let Some(done) = self.in_flight.next().await
            {
                done?;
            }
            self.hasher.update(&piece);
            let (export, path, offset) = (Arc::clone(&self.export), self.temporary.clone(), self.size);
            self.size += piece.len() as u64;
            self.in_flight.push(Box::pin(async move { export.write_at(&path, offset, piece).await }));
            if self.size - self.written_back >= WRITE_BACK_BYTES {
                self.written_back = self.size;
                let (export, path) = (Arc::clone(&self.export), self.temporary.clone());
                self.in_flight.push(Box::pin(async move { export.write_back(&path).await }));
            }
        }
        Ok(())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// Those of the writes and of the commit.
    pub async fn seal(mut self) -> Result<Sealed, ExportError> {
        while let Some(done) = self.in_flight.next().await {
            done?;
        }
        self.export.commit(&self.temporary).await?;
        Ok(Sealed {
            digest: self.hasher.finalize().into(),
            size: self.size,
            temporary: self.temporary,
            export: self.export,
        })
    }

    /// Gives it up. What can't be removed now goes with the sweep.
    pub async fn discard(self) {
        let _ = self.export.remove(&self.temporary).await;
    }
}

/// A durable file without its name yet.
pub struct Sealed {
    /// Of its bytes.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    temporary: ObjectPath,
    export: Arc<dyn Export>,
}

/// What [`Sealed::name`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The file has its name.
    New,
    /// Something has the name already; it was left alone.
    Taken,
}

impl Sealed {
    /// Gives it its name, never replacing anything, and forgets the temporary one. The directory is made if need be.
    ///
    /// # Errors
    /// Those of the export; then the name may or may not be given.
    pub async fn name(&self, target: &ObjectPath) -> Result<Named, ExportError> {
        let mut made = false;
        loop {
            let given = if self.export.abilities().await?.link {
                self.export.link(&self.temporary, target).await
            } else {
                self.export.rename(&self.temporary, target, Replace::Nothing).await
            };
            match given {
                Ok(()) => {
                    // A leftover costs a directory entry until the sweep, and nothing else.
                    let _ = self.export.remove(&self.temporary).await;
                    return Ok(Named::New);
                }
                Err(ExportError::Exists(_)) => return Ok(Named::Taken),
                Err(ExportError::NotFound(_)) if !made => {
                    if let Some(parent) = target.parent() {
                        self.export.make_directory(&parent).await?;
                    }
                    made = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the place of a file of ours.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn replace(self, target: &ObjectPath) -> Result<(), ExportError> {
        match self.export.rename(&self.temporary, target, Replace::Anything).await {
            Err(ExportError::NotFound(_)) => {
                if let Some(parent) = target.parent() {
                    self.export.make_directory(&parent).await?;
                }
                self.export.rename(&self.temporary, target, Replace::Anything).await
            }
            other => other,
        }
    }

    /// Gives it up.
    pub async fn discard(self) {
        let _ = self.export.remove(&self.temporary).await;
    }
}

/// Writes a small file from memory, again if the server restarts underneath.
///
/// # Errors
/// Those of the export.
pub async fn write_whole(
    export: &Arc<dyn Export>,
    directory: &ObjectPath,
    data: &Bytes,
) -> Result<Sealed, ExportError> {
    let mut tries = 0;
    loop {
        let mut writer = Writer::begin(export, directory).await?;
        let pushed = writer.push(data.clone()).await;
        let sealed = match pushed {
            Ok(()) => writer.seal().await,
            Err(error) => Err(error),
        };
        match sealed {
            Err(ExportError::VerifierChanged(_)) if tries < REWRITES => tries += 1,
            other => return other,
        }
    }
}
