//! Stage: bytes from a node or the coordinator, durable under a unique name before anyone is told.
//!
//! Staging is unfenced: names are unique to their attempt, and what nobody publishes goes after a day.

use std::sync::Arc;

use bytes::Bytes;
use ingle_proto::storage::Object;
use ingle_proto::{Digest, ErrorCode, Problem, v1};

use crate::blob::Blobs;
use crate::exports::Exports;
use crate::file::{self, Named, Writer};
use crate::place::Place;

/// A file that is being staged.
pub struct Staging {
    writer: Writer,
    target: Target,
    size: u64,
    expected: Option<Digest>,
}

enum Target {
    Blob(Blobs),
    /// Needed by a call alone.
    PartOfCall(Blobs),
    Result(Box<Place>, String),
}

impl Staging {
    /// Checks the header and begins.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names the field; `TOO_LARGE`; `EXPORT_READ_ONLY` and others of the export.
    pub async fn begin(
        exports: &Arc<Exports>,
        blobs: &Blobs,
        header: v1::StageHeader,
        bytes_max: u64,
    ) -> Result<Self, Problem> {
        let expected =
            if header.digest.is_empty() { None } else { Some(Digest::from_wire("header.digest", &header.digest)?) };
        if header.size > bytes_max {
            return Err(Problem::new(
                ErrorCode::TooLarge,
                format!("header.size: {} bytes, more than limits.staged_bytes_max = {bytes_max}", header.size),
            ));
        }
        let (writer, target) = if header.blob {
            if !header.staged_name.is_empty() {
                return Err(Problem::invalid("header.staged_name", "must be empty for a blob: its digest names it"));
            }
            let target = if header.of_call { Target::PartOfCall } else { Target::Blob };
            (blobs.begin().await?, target(blobs.clone()))
        } else {
            let token = header.token.ok_or_else(|| Problem::missing("header.token"))?;
            let place = Object::try_from(token.place.clone().ok_or_else(|| Problem::missing("header.token.place"))?)?;
            let export = exports.writable(&place, &token.principal).await?;
            let place = Place::new(place, export)?.used_by(&token.principal);
            place.staged(&header.staged_name)?;
            let writer = Writer::begin(&place.export, &place.temporary()).await?;
            (writer, Target::Result(Box::new(place), header.staged_name))
        };
        Ok(Self { writer, target, size: header.size, expected })
    }

    /// Takes some bytes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there are more than announced; those of the export.
    pub async fn push(&mut self, data: Bytes) -> Result<(), Problem> {
        if self.writer.size() + data.len() as u64 > self.size {
            return Err(Problem::invalid("header.size", format!("{} bytes announced, and more came", self.size)));
        }
        Ok(self.writer.push(data).await?)
    }

    /// Makes it durable under its name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if there are fewer bytes than announced; `DIGEST_MISMATCH`; `NAME_TAKEN` if other bytes have
    /// the name; those of the export, retryable if the server restarted in between.
    pub async fn finish(self) -> Result<v1::StageResponse, Problem> {
        if self.writer.size() != self.size {
            let came = self.writer.size();
            self.writer.discard().await;
            return Err(Problem::invalid("header.size", format!("{} bytes announced, {came} came", self.size)));
        }
        let sealed = self.writer.seal().await?;
        let (digest, size) = (sealed.digest, sealed.size);
        if let Some(expected) = self.expected
            && expected != digest
        {
            sealed.discard().await;
            return Err(Problem::new(
                ErrorCode::DigestMismatch,
                format!("header.digest: expected {}, the bytes that came have {}", expected.hex(), digest.hex()),
            ));
        }
        match self.target {
            Target::Blob(blobs) => blobs.keep(sealed).await?,
            Target::PartOfCall(blobs) => blobs.keep_of_call(sealed).await?,
            Target::Result(place, name) => {
                let path = place.staged(&name)?;
                if sealed.name(&path).await? == Named::Taken {
                    sealed.discard().await;
                    let (there, _) = file::digest(&*place.export, &path).await?;
                    if there != digest {
                        return Err(Problem::new(
                            ErrorCode::NameTaken,
                            format!(
                                "staged_name {name:?}: other bytes are staged under it; each attempt needs its own name"
                            ),
                        ));
                    }
                }
            }
        }
        Ok(v1::StageResponse { digest: digest.to_wire(), size })
    }

    /// Gives it up: the sender went away.
    pub async fn discard(self) {
        self.writer.discard().await;
    }
}
