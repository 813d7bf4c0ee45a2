//! Blobs: immutable files in the state export, named by their digest.
//!
//! What is stored: `blobs/ab/<64 hex>`, and files in the making in `blobs/tmp/`. A blob is durable before anyone is
//! told its digest. What isn't: who needs it. So none is ever removed, only what was abandoned in the making
//! (docs/decisions/2026-11-21-blobs-stay.md).
//!
//! Parts of documents that a call brings lie apart, in `blobs/calls/<64 hex>`: they go when the coordinator says that the call
//! has ended, or a day later.

use std::sync::Arc;

use bytes::Bytes;
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem, v1};

use crate::config::STATE_EXPORT;
use crate::export::{Export, ExportError, Kind};
use crate::exports::Exports;
use crate::file::{self, Named, Sealed, Writer};
use crate::limits::WHOLE_BLOB_BYTES_MAX;

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
    /// As [`Exports::ours`]: the state export can't be opened now.
    pub async fn export(&self) -> Result<Arc<dyn Export>, Problem> {
        self.state.ours(STATE_EXPORT).await
    }

    /// Where blobs are in the making.
    #[must_use]
    pub fn temporary() -> ObjectPath {
        plain("blobs/tmp")
    }

    /// Where parts of calls' documents lie.
    #[must_use]
    pub fn calls() -> ObjectPath {
        plain("blobs/calls")
    }

    /// Where a part of a call's document lies.
    #[must_use]
    pub fn of_call(digest: Digest) -> ObjectPath {
        plain(&format!("blobs/calls/{}", digest.hex()))
    }

    /// Removes a part of a call's document; whether there was one.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn forget(&self, digest: Digest) -> Result<bool, Problem> {
        let (export, path) = (self.export().await?, Self::of_call(digest));
        match export.stat(&path).await {
            Err(ExportError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
            Ok(_) => match export.remove(&path).await {
                Ok(()) => Ok(true),
                Err(ExportError::NotFound(_)) => Ok(false),
                Err(error) => Err(error.into()),
            },
        }
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
            let sealed = file::write_whole(&self.export().await?, &Self::temporary(), data).await?;
            self.keep(sealed).await?;
        }
        Ok(v1::BlobRef { digest: digest.to_wire(), size })
    }

    /// Begins a blob whose bytes come in pieces; give the result to [`Blobs::keep`].
    ///
    /// # Errors
    /// Those of the export.
    pub async fn begin(&self) -> Result<Writer, Problem> {
        Ok(Writer::begin(&self.export().await?, &Self::temporary()).await?)
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

    /// The same for a part of a call's document. One that is there already is replaced: it is as old as this call then.
    ///
    /// # Errors
    /// Those of the export.
    pub async fn keep_of_call(&self, sealed: Sealed) -> Result<(), Problem> {
        let target = Self::of_call(sealed.digest);
        match sealed.name(&target).await? {
            Named::New => Ok(()),
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
}

/// The answer to bytes that are not those of the digest.
#[must_use]
pub fn mismatch(path: &ObjectPath) -> Problem {
    Problem::new(
        ErrorCode::DigestMismatch,
        format!("{}: its bytes are not those of its digest; look at the disk of the state export", path.display()),
    )
}

fn plain(path: &str) -> ObjectPath {
    ObjectPath::new(path).expect("made of letters, digits and slashes")
}
