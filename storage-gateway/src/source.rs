//! What a read request names, for whom, and how it comes: the one way for gRPC and the range endpoint.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use ingle_proto::storage::Object;
use ingle_proto::v1::read_request::Source;
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem, v1};

use crate::access;
use crate::admission::{Admission, Admitted};
use crate::blob::{self, Blobs};
use crate::config::STATE_EXPORT;
use crate::export::{Attr, Export, ExportError};
use crate::exports::Exports;
use crate::metrics::{Meters, Reading};
use crate::place::Place;
use crate::reading::{Document, Reader};

/// How often a file that changed before anything of it was sent is opened again.
const REOPENED_MAX: usize = 2;

/// What is read.
struct Target {
    export: Arc<dyn Export>,
    name: String,
    path: ObjectPath,
    /// For people.
    shown: String,
    /// Of a blob: checked when all of it is read.
    digest: Option<Digest>,
    /// It will be wanted again.
    lasting: bool,
}

/// Everything a read needs. Clones share it.
#[derive(Clone)]
pub struct Sources {
    /// Where objects lie.
    pub exports: Arc<Exports>,
    /// Where blobs lie.
    pub blobs: Blobs,
    /// How files are read.
    pub reader: Reader,
    /// How many at once.
    pub admission: Arc<Admission>,
    /// Counts.
    pub meters: Meters,
}

/// The bytes of a range, in order; the last ones come only once it is certain that all were of one version.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Problem>> + Send>>;

/// A range of a file, open.
pub struct Opened {
    /// As the file was when it was opened.
    pub attr: Attr,
    /// Tells this version of it from any other.
    pub etag: String,
    /// The range.
    pub start: u64,
    /// Its end.
    pub end: u64,
    /// Its bytes.
    pub pieces: Pieces,
    /// Given back when the reader is done.
    pub held: (Admitted, Reading),
}

impl Sources {
    /// Opens what a request names, and waits until the first bytes are there.
    ///
    /// # Errors
    /// `PATH_REFUSED`, `STORAGE_DENIED`, `OVERLOADED` with when to come back, `INVALID_ARGUMENT` for a range past the end,
    /// those of the export.
    pub async fn open(&self, request: &v1::ReadRequest) -> Result<Opened, Problem> {
        let target = self.target(request).await?;
        let mut reopened = 0;
        loop {
            let document = Arc::new(self.document(&target).await?);
            let (start, end) = range(request, document.attr.size)?;
            let held = (self.admission.enter(&target.name, end - start).await?, self.meters.reading(&target.name));
            let digest = target.digest.filter(|_| start == 0 && end == document.attr.size);
            let (reader, of) = (self.reader.clone(), Arc::clone(&document));
            // What was kept of it is no better: whoever asks again gets what the NAS has.
            let spoilt = async move { reader.forget(&of).await };
            let mut pieces = checked(self.reader.pieces(&document, start, end).boxed(), digest, &target.path, spoilt);
            let first = pieces.next().await;
            // It changed between the look at it and its first bytes: nobody has seen any.
            if matches!(&first, Some(Err(problem)) if problem.code == ErrorCode::ObjectChanged)
                && reopened < REOPENED_MAX
            {
                reopened += 1;
                continue;
            }
            let pieces = match first {
                Some(Err(problem)) => return Err(problem),
                first => futures::stream::iter(first).chain(pieces).boxed(),
            };
            let etag = format!("{:032x}", u128::from_be_bytes(document.version.0));
            return Ok(Opened { attr: document.attr.clone(), etag, start, end, pieces, held });
        }
    }

    async fn document(&self, target: &Target) -> Result<Document, Problem> {
        let open = |path: ObjectPath| {
            let (export, shown) = (Arc::clone(&target.export), target.shown.clone());
            self.reader.open(&target.name, export, path, shown, target.lasting)
        };
        match (open(target.path.clone()).await, target.digest) {
            // Parts of calls' documents lie apart.
            (Err(error @ ExportError::NotFound(_)), Some(digest)) => match open(Blobs::of_call(digest)).await {
                Err(ExportError::NotFound(_)) => Err(error.into()),
                found => Ok(found?),
            },
            (found, _) => Ok(found?),
        }
    }

    async fn target(&self, request: &v1::ReadRequest) -> Result<Target, Problem> {
        let (token, lasting) = (request.token.as_ref(), request.lasting);
        match (&request.source, &request.staged) {
            (Some(_), Some(_)) => Err(Problem::invalid("staged", "and source are both set; name one")),
            (None, None) => Err(Problem::missing("source")),
            (Some(Source::Object(wire)), None) => {
                let object = access::visible(wire.clone())?;
                access::may_read(token, &object)?;
                Ok(Target {
                    export: self.exports.get(&object, access::principal(token)).await?,
                    name: object.export.clone(),
                    shown: object.to_string(),
                    path: object.path,
                    digest: None,
                    lasting,
                })
            }
            (Some(Source::Blob(wire)), None) => {
                let digest = Digest::from_wire("blob.digest", &wire.digest)?;
                Ok(Target {
                    export: self.blobs.export().await?,
                    name: STATE_EXPORT.to_owned(),
                    shown: format!("blob {}", digest.hex()),
                    path: Blobs::path(digest),
                    digest: Some(digest),
                    lasting,
                })
            }
            (None, Some(staged)) => {
                let wire = staged.place.clone().ok_or_else(|| Problem::missing("staged.place"))?;
                let object = Object::try_from(wire)?;
                access::may_use(token, &object)?;
                let export = self.exports.writable(&object, access::principal(token)).await?;
                let place = Place::new(object, export)?;
                Ok(Target {
                    path: place.staged(&staged.name)?,
                    name: place.object.export.clone(),
                    shown: format!("staged result {} of {}", staged.name, place.object),
                    export: place.export,
                    digest: None,
                    lasting,
                })
            }
        }
    }
}

/// The bytes asked for; a length past the end is cut.
fn range(request: &v1::ReadRequest, size: u64) -> Result<(u64, u64), Problem> {
    if request.offset > size {
        return Err(Problem::invalid("offset", format!("{} is past the end at {size}", request.offset)));
    }
    let end = match request.length {
        0 => size,
        length => request
            .offset
            .checked_add(length)
            .ok_or_else(|| Problem::invalid("length", "offset + length is more than 2^64"))?
            .min(size),
    };
    Ok((request.offset, end))
}

/// Holds a blob's last piece back until all of it is known to be what its name says; else does what is to be done with
/// what is `spoilt`.
fn checked(
    pieces: Pieces,
    digest: Option<Digest>,
    path: &ObjectPath,
    spoilt: impl Future<Output = ()> + Send + 'static,
) -> Pieces {
    let Some(digest) = digest else { return pieces };
    let path = path.clone();
    let state = (pieces.peekable(), blake3::Hasher::new(), false, Some(Box::pin(spoilt)));
    futures::stream::try_unfold(state, move |(mut pieces, mut hasher, ended, mut spoilt)| {
        let path = path.clone();
        async move {
            if ended {
                return Ok(None);
            }
            let piece = pieces.next().await.transpose()?;
            hasher.update(piece.as_deref().unwrap_or_default());
            let ended = Pin::new(&mut pieces).peek().await.is_none();
            if ended && Digest::from(hasher.finalize()) != digest {
                if let Some(spoilt) = spoilt.take() {
                    spoilt.await;
                }
                return Err(blob::mismatch(&path));
            }
            Ok(piece.map(|piece| (piece, (pieces, hasher, ended, spoilt))))
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let ask = |offset, length| range(&v1::ReadRequest { offset, length, ..Default::default() }, 10).ok();
        assert_eq!(ask(0, 0), Some((0, 10)));
        assert_eq!(ask(3, 4), Some((3, 7)));
        assert_eq!(ask(3, 100), Some((3, 10)));
        assert_eq!(ask(10, 0), Some((10, 10)));
        assert_eq!(ask(11, 0), None);
        assert_eq!(ask(5, u64::MAX), None);
        assert_eq!(ask(u64::MAX, 1), None);
    }

    #[tokio::test]
    async fn the_last_piece_waits_for_the_digest() {
        let path = ObjectPath::new("b").expect("a valid path");
        let pieces = |texts: &[&'static str]| -> Pieces {
            futures::stream::iter(texts.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect::<Vec<_>>())
                .boxed()
        };
        let digest = Digest::of(b"one two");
        let whole: Vec<_> =
            checked(pieces(&["one", " two"]), Some(digest), &path, async { panic!("it is good") }).collect().await;
        assert!(whole.len() == 2 && whole.iter().all(Result::is_ok));
        let (told, heard) = std::sync::mpsc::sync_channel(1);
        let spoilt = async move { told.send(()).expect("heard") };
        let wrong: Vec<_> = checked(pieces(&["one", " twO"]), Some(digest), &path, spoilt).collect().await;
        assert!(wrong[0].is_ok());
        assert_eq!(wrong[1].as_ref().expect_err("held back").code, ErrorCode::DigestMismatch);
        heard.try_recv().expect("said");
        let cut: Vec<_> = checked(pieces(&[]), Some(digest), &path, async {}).collect().await;
        assert_eq!(cut[0].as_ref().expect_err("cut to nothing").code, ErrorCode::DigestMismatch);
        assert_eq!(checked(pieces(&[]), Some(Digest::of(b"")), &path, async {}).count().await, 0);
    }
}
