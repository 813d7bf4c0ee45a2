//! Read: a range of an object, blob or staged result as a stream, with an end that says whether it stayed the same.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::OnFailure;
use ingle_proto::storage::Object;
use ingle_proto::v1::read_request::Source;
use ingle_proto::{Digest, ErrorCode, ObjectPath, Problem, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Answers, STALL, Service, access, attributes};
use crate::blob::{self, Blobs};
use crate::config::STATE_EXPORT;
use crate::export::{Attr, Export, ExportError, Kind};
use crate::file::{self, kind_name};
use crate::place::Place;

/// What is read.
struct Target {
    export: Arc<dyn Export>,
    name: String,
    path: ObjectPath,
    /// For people.
    shown: String,
    /// Of a blob: checked when all of it is read.
    digest: Option<Digest>,
}

pub(super) async fn begin(service: &Service, request: v1::ReadRequest) -> Result<Answers<v1::ReadResponse>, Problem> {
    let mut target = open(service, &request).await?;
    let attr = match (target.export.stat(&target.path).await, target.digest) {
        // Parts of calls' documents lie apart.
        (Err(error @ ExportError::NotFound(_)), Some(digest)) => {
            target.path = Blobs::of_call(digest);
            match target.export.stat(&target.path).await {
                Err(ExportError::NotFound(_)) => return Err(error.into()),
                found => found?,
            }
        }
        (found, _) => found?,
    };
    if attr.kind != Kind::File {
        return Err(Problem::new(
            ErrorCode::ObjectKind,
            format!("{}: is {}, expected a file", target.shown, kind_name(attr.kind)),
        ));
    }
    let (start, end) = range(&request, attr.size)?;
    let admitted = service.admission.enter(&target.name, end - start).await?;
    let reading = service.meters.reading(&target.name);
    let (out, answers) = mpsc::channel(1);
    service.tasks.spawn("read", OnFailure::Log, async move {
        let _held = (admitted, reading);
        if let Err(problem) = stream(&target, &attr, start, end, &out).await {
            let _ = tokio::time::timeout(STALL, out.send(Err(problem.into()))).await;
        }
        Ok::<_, std::convert::Infallible>(())
    });
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn open(service: &Service, request: &v1::ReadRequest) -> Result<Target, Problem> {
    let token = request.token.as_ref();
    match (&request.source, &request.staged) {
        (Some(_), Some(_)) => Err(Problem::invalid("staged", "and source are both set; name one")),
        (None, None) => Err(Problem::missing("source")),
        (Some(Source::Object(wire)), None) => {
            let object = access::visible(wire.clone())?;
            access::may_read(token, &object)?;
            Ok(Target {
                export: service.exports.get(&object, access::principal(token)).await?,
                name: object.export.clone(),
                shown: object.to_string(),
                path: object.path,
                digest: None,
            })
        }
        (Some(Source::Blob(wire)), None) => {
            let digest = Digest::from_wire("blob.digest", &wire.digest)?;
            Ok(Target {
                export: service.blobs.export().await?,
                name: STATE_EXPORT.to_owned(),
                shown: format!("blob {}", digest.hex()),
                path: Blobs::path(digest),
                digest: Some(digest),
            })
        }
        (None, Some(staged)) => {
            let wire = staged.place.clone().ok_or_else(|| Problem::missing("staged.place"))?;
            let object = Object::try_from(wire)?;
            access::may_use(token, &object)?;
            let export = service.exports.writable(&object, access::principal(token)).await?;
            let place = Place::new(object, export)?;
            Ok(Target {
                path: place.staged(&staged.name)?,
                name: place.object.export.clone(),
                shown: format!("staged result {} of {}", staged.name, place.object),
                export: place.export,
                digest: None,
            })
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

async fn stream(
    target: &Target,
    attr: &Attr,
    start: u64,
    end: u64,
    out: &mpsc::Sender<Result<v1::ReadResponse, Status>>,
) -> Result<(), Problem> {
    let changed = |what: String| {
        Problem::new(ErrorCode::ObjectChanged, format!("{}: {what} while it was read; read it again", target.shown))
    };
    send(out, v1::ReadResponse { attributes: Some(attributes(attr)), data: Bytes::new() }).await?;
    let mut hasher = target.digest.filter(|_| start == 0 && end == attr.size).map(|_| blake3::Hasher::new());
    let mut at = start;
    let mut chunks = std::pin::pin!(file::chunks(&*target.export, &target.path, start, end));
    while let Some(chunk) = chunks.next().await {
        let data = chunk?;
        at += data.len() as u64;
        if let Some(hasher) = &mut hasher {
            hasher.update(&data);
        }
        send(out, v1::ReadResponse { attributes: None, data }).await?;
    }
    if at != end {
        return Err(changed(format!("it shrank below {end} bytes")));
    }
    if let (Some(hasher), Some(digest)) = (hasher, target.digest)
        && Digest::from(hasher.finalize()) != digest
    {
        return Err(blob::mismatch(&target.path));
    }
    let now = match target.export.stat(&target.path).await {
        Err(crate::export::ExportError::NotFound(_)) => return Err(changed("it was removed".to_owned())),
        other => other?,
    };
    if (now.size, now.mtime_ns, now.file_id) != (attr.size, attr.mtime_ns, attr.file_id) {
        return Err(changed("it changed".to_owned()));
    }
    Ok(())
}

async fn send(out: &mpsc::Sender<Result<v1::ReadResponse, Status>>, message: v1::ReadResponse) -> Result<(), Problem> {
    match tokio::time::timeout(STALL, out.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Problem::new(ErrorCode::Cancelled, "nobody reads any more")),
        Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("nothing was taken for {} s", STALL.as_secs()))),
    }
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
}
