//! Blobs: immutable files in the state export, named by their digest.
//!
//! What is stored: `blobs/ab/<64 hex>`, and files in the making in `blobs/tmp/`. A blob is durable before anyone is
//! told its digest. What isn't: who needs it; the coordinator says that when old ones are swept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem, v1};

use crate::config::STATE_EXPORT;
use crate::export::{Export, ExportError, Kind};
use crate::exports::Exports;
use crate::file::{self, Named, Sealed, Writer};
use crate::limits::{DIRECTORY_ENTRIES_MAX, STAGED_KEPT, WHOLE_BLOB_BYTES_MAX};

/// The blobs of one state export.
#[derive(Clone)]
pub struct Blobs {
    state: Arc<Exports>,
}

impl Blobs {
    /// Those in the state export.
    #[must_use]
    pub fn new(state: Arc<Exports>) -> Self {
        Self { state }
    }

    /// What they lie on.
    ///
    /// # Errors
    /// As [`Exports::get`]: the state export can't be opened now.
    pub async fn export(&self) -> Result<Arc<dyn Export>, Problem> {
        self.state.get(STATE_EXPORT).await
    }

    /// Where a blob lies.
    #[must_use]
    pub fn path(digest: Digest) -> ObjectPath {
        let hex = digest.hex();
        plain(&format!("blobs/{}/{hex}", &hex[..2]))
    }

    /// Keeps these bytes. Keeping them twice is the same as once.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn put(&self, data: &Bytes) -> Result<v1::BlobRef, Problem> {
        let digest = Digest::of(data);
        let size = data.len() as u64;
        if !self.has(digest, size).await? {
            let sealed = file::write_whole(&self.export().await?, &temporary(), data).await?;
            self.keep(sealed).await?;
        }
        Ok(v1::BlobRef { digest: digest.to_wire(), size })
    }

    /// Begins a blob whose bytes come in pieces; give the result to [`Blobs::keep`].
    ///
    /// # Errors
    /// Those of the export.
    pub async fn begin(&self) -> Result<Writer, Problem> {
        Ok(Writer::begin(&self.export().await?, &temporary()).await?)
    }

    /// Gives a durable file its name as a blob.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn keep(&self, sealed: Sealed) -> Result<(), Problem> {
        let target = Self::path(sealed.digest);
        match sealed.name(&target).await? {
            Named::New => Ok(()),
            Named::Taken if self.has(sealed.digest, sealed.size).await? => {
                sealed.discard().await;
                Ok(())
            }
            // Cut short by something that isn't us: only bytes of this digest belong under this name.
            Named::Taken => Ok(sealed.replace(&target).await?),
        }
    }

    async fn has(&self, digest: Digest, size: u64) -> Result<bool, Problem> {
        match self.export().await?.stat(&Self::path(digest)).await {
            Ok(attr) => Ok(attr.kind == Kind::File && attr.size == size),
            Err(ExportError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// All bytes of a blob, checked against its digest.
    ///
    /// # Errors
    /// Those of the export; `DIGEST_MISMATCH` if the bytes are not those that were kept.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, Problem> {
        let path = Self::path(digest);
        let data = file::read_whole(&*self.export().await?, &path, WHOLE_BLOB_BYTES_MAX).await?;
        if Digest::of(&data) == digest { Ok(data) } else { Err(mismatch(&path)) }
    }

    /// Decodes a blob that holds one message.
    ///
    /// # Errors
    /// As [`Blobs::get`]; `INVALID_ARGUMENT` if it holds something else.
    pub async fn message<M: prost::Message + Default>(&self, field: &str, blob: &v1::BlobRef) -> Result<M, Problem> {
        let data = self.get(Digest::from_wire(field, &blob.digest)?).await?;
        M::decode(data).map_err(|error| Problem::invalid(field, format!("is not such a message: {error}")))
    }

    /// Removes blobs that `keep` doesn't want and that are older than `older_than` (by `now_ns`, nanoseconds since the
    /// epoch), and abandoned files in the making. Answers how many blobs went.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn sweep(
        &self,
        keep: &(dyn Fn(&Digest) -> bool + Sync),
        older_than: Duration,
        now_ns: i64,
    ) -> Result<u64, Problem> {
        let mut removed = 0;
        for directory in self.entries(&plain("blobs")).await? {
            let below = plain("blobs").join(&directory.name)?;
            let in_the_making = below == temporary();
            for entry in self.entries(&below).await? {
                let age = age(now_ns, entry.attr.ctime_ns.max(entry.attr.mtime_ns));
                let gone = if in_the_making {
                    age > STAGED_KEPT
                } else {
                    parse_hex(&entry.name).is_some_and(|digest| age > older_than && !keep(&digest))
                };
                if gone {
                    self.export().await?.remove(&below.join(&entry.name)?).await?;
                    removed += u64::from(!in_the_making);
                }
            }
        }
        Ok(removed)
    }

    async fn entries(&self, path: &ObjectPath) -> Result<Vec<crate::export::Entry>, Problem> {
        match self.export().await?.list(path, DIRECTORY_ENTRIES_MAX).await {
            Ok(entries) => Ok(entries),
            Err(ExportError::NotFound(_)) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How long ago, by two clocks that may disagree.
#[must_use]
pub fn age(now_ns: i64, then_ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now_ns.saturating_sub(then_ns)).unwrap_or(0))
}

/// The answer to bytes that are not those of the digest.
#[must_use]
pub fn mismatch(path: &ObjectPath) -> Problem {
    Problem::new(
        ErrorCode::DigestMismatch,
        format!("{}: its bytes are not those of its digest; look at the disk of the state export", path.display()),
    )
}

fn temporary() -> ObjectPath {
    plain("blobs/tmp")
}

fn plain(path: &str) -> ObjectPath {
    ObjectPath::new(path).expect("made of letters, digits and slashes")
}

fn parse_hex(name: &[u8]) -> Option<Digest> {
    blake3::Hash::from_hex(name).ok().map(Digest::from)
}
