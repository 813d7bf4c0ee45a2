//! Whether a job's principal may write its place, asked of the NAS before anything is walked: who can't write there learns it
//! at once, and not after a night of work.

use ingle_proto::storage::{OWN_DIRECTORY, Object};
use ingle_proto::{ErrorCode, ObjectPath, Problem};

use crate::export::{ExportError, Kind, User};
use crate::file::Writer;
use crate::place::Place;

/// Asks for the place, or for the nearest directory above it that is there, and for our own directory in it.
///
/// # Errors
/// `STORAGE_DENIED` names the place and the user; those of the export.
pub(super) async fn check(place: &Place) -> Result<(), Problem> {
    let path = &place.object.path;
    let (nearest, own) = (nearest(place, path).await?, path.join(OWN_DIRECTORY)?);
    let mut asked = vec![nearest];
    match place.export.stat(&own).await {
        Ok(attr) if attr.kind == Kind::Directory => asked.push(own),
        Ok(_) | Err(ExportError::NotFound(_) | ExportError::Kind { .. }) => {}
        Err(ExportError::Denied { .. }) => return Err(denied(place, &own)),
        Err(error) => return Err(error.into()),
    }
    for directory in asked {
        if !place.export.may_add(&directory).await? {
            // A file system that has become read-only grants nobody anything: only a write tells the two apart.
            return match Writer::begin(&place.export, &place.temporary()).await {
                Err(ExportError::Denied { .. }) => Err(denied(place, &directory)),
                Err(error) => Err(error.into()),
                Ok(writer) => {
                    writer.discard().await;
                    Err(denied(place, &directory))
                }
            };
        }
    }
    Ok(())
}

async fn nearest(place: &Place, path: &ObjectPath) -> Result<ObjectPath, Problem> {
    let mut at = path.clone();
    loop {
        match place.export.stat(&at).await {
            Err(ExportError::NotFound(_)) => {}
            Err(ExportError::Denied { .. }) => return Err(denied(place, &at)),
            other => {
                // What is no directory is told when it is used as one.
                other?;
                return Ok(at);
            }
        }
        match at.parent() {
            Some(parent) => at = parent,
            None => return Ok(at),
        }
    }
}

fn denied(place: &Place, directory: &ObjectPath) -> Problem {
    let asked = Object { export: place.object.export.clone(), path: directory.clone() };
    let who = match place.export.user() {
        Some(User { uid, gid, .. }) => format!("uid {uid}, gid {gid}"),
        None => "the gateway's own user".to_owned(),
    };
    Problem::new(
        ErrorCode::StorageDenied,
        format!(
            "{}: the NAS lets {who} make nothing in {asked}; give that user the right there, or choose another place",
            place.object
        ),
    )
}
