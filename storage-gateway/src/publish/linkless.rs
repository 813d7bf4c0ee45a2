//! Giving a file a name where there are no hard links: a placeholder made exclusively, then RENAME over it.
//!
//! The placeholder is looked at right before the RENAME and must still be empty. Between that look and the RENAME a
//! person could write into it: a gap that no protocol without LINK can close.

use ingle_proto::ObjectPath;

use crate::export::{Export, ExportError, Kind, Replace};

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// The file has the name.
    Done,
    /// Something else has it, and was left alone.
    Taken,
}

/// Moves `from` to the free name `to`. After a crash an empty file there counts as the placeholder: it has no bytes to lose.
pub(super) async fn put(
    export: &dyn Export,
    from: &ObjectPath,
    to: &ObjectPath,
    recovering: bool,
) -> Result<Put, ExportError> {
    let made = match export.create(to).await {
        Ok(()) => true,
        Err(ExportError::Exists(_)) if recovering => false,
        Err(ExportError::Exists(_)) => return Ok(Put::Taken),
        Err(error) => return Err(error),
    };
    match export.stat(to).await {
        Ok(attr) if attr.kind == Kind::File && attr.size == 0 => {}
        Ok(_) | Err(ExportError::Kind { .. }) => return Ok(Put::Taken),
        // Removed in between: the caller looks again.
        Err(error) => return Err(error),
    }
    match export.rename(from, to, Replace::Anything).await {
        Ok(()) => Ok(Put::Done),
        Err(error) => {
            // It can't be filled (another file system is mounted there), so it must not stay: an empty file of ours
            // would be taken for a person's.
            if made
                && !error.retryable()
                && export.stat(to).await.is_ok_and(|attr| attr.kind == Kind::File && attr.size == 0)
            {
                export.remove(to).await?;
            }
            Err(error)
        }
    }
}
