//! The sweeper: slowly removes what a crash or a cancelled job left in places' own directories and among blobs in the making.

use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::{BoxError, Shutdown};
use ingle_proto::{ObjectPath, Problem};

use crate::blob::Blobs;
use crate::export::{Export, ExportError, Kind};
use crate::exports::Exports;
use crate::file::Writer;
use crate::limits::{DIRECTORY_ENTRIES_MAX, STAGED_KEPT, SWEEP_EVERY, SWEEP_PACE, TRASH_KEPT};
use crate::place::Place;
use crate::publish::Publisher;

/// Rolls forward what earlier runs began, in all places known, then sweeps them every few hours until shutdown.
///
/// # Errors
/// What the system said about the state directory.
pub async fn run(
    exports: Arc<Exports>,
    publisher: Arc<Publisher>,
    blobs: Blobs,
    shutdown: Shutdown,
) -> Result<(), BoxError> {
    let mut backoff = ingle_daemon::backoff::Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        let mut all = true;
        for (object, principal) in publisher.known_places()? {
            if shutdown.begun() {
                return Ok(());
            }
            let done = async {
                let place = Place::new(object.clone(), exports.writable(&object, &principal).await?)?;
                // Reading the ledger rolls forward; only then is nothing in the directories still needed.
                publisher.ledger(&place).await?;
                sweep(&place, &publisher, SWEEP_PACE).await
            };
            match done.await {
                Ok(removed) => tracing::debug!(place = %object, removed, "swept"),
                Err(problem) => {
                    all &= !problem.retryable();
                    tracing::warn!(place = %object, %problem, "could not be swept; trying again later");
                }
            }
        }
        match sweep_blobs(&blobs, SWEEP_PACE).await {
            Ok(removed) => tracing::debug!(removed, "swept blobs in the making"),
            Err(problem) => {
                all &= !problem.retryable();
                tracing::warn!(%problem, "the state export could not be swept; trying again later");
            }
        }
        let pause = if all { SWEEP_EVERY } else { backoff.next_random() };
        if all {
            backoff.reset();
        }
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Removes staged leftovers older than a day, abandoned files in the making, and trash older than thirty days, all by the
/// server's clock. Answers how many files went.
///
/// # Errors
/// Those of the export.
pub async fn sweep(place: &Place, publisher: &Publisher, pace: Duration) -> Result<u64, Problem> {
    let mut removed = 0;
    let now_ns = now_at(&place.export, &place.temporary()).await?;
    let ledger_temporary = place.ledger().join(b"tmp")?;
    for (directory, kept) in [
        (place.staged_directory(), STAGED_KEPT),
        (place.temporary(), STAGED_KEPT),
        (ledger_temporary, STAGED_KEPT),
        (place.trash_directory(), TRASH_KEPT),
        (place.jobs_directory(), TRASH_KEPT),
        (place.seen_directory(), TRASH_KEPT),
    ] {
        for path in old(&*place.export, &directory, kept, now_ns).await? {
            // A publish that began since may need it: it would have looked for it first, and finishes before us.
            publisher.undisturbed(&place.object, place.export.remove(&path)).await?;
            removed += 1;
            tokio::time::sleep(pace).await;
        }
    }
    Ok(removed)
}

/// Removes abandoned blobs in the making, and parts of calls' documents that nobody removed, older than a day. Answers how
/// many went.
///
/// # Errors
/// Those of the state export.
pub async fn sweep_blobs(blobs: &Blobs, pace: Duration) -> Result<u64, Problem> {
    let export = blobs.export().await?;
    let now_ns = now_at(&export, &Blobs::temporary()).await?;
    let mut removed = 0;
    for directory in [Blobs::temporary(), Blobs::calls()] {
        for path in old(&*export, &directory, STAGED_KEPT, now_ns).await? {
            match export.remove(&path).await {
                // A call that ends may remove its own at the same time.
                Err(ExportError::NotFound(_)) | Ok(()) => removed += 1,
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(pace).await;
        }
    }
    Ok(removed)
}

/// What time it is where the files' times come from, nanoseconds since the epoch: that of a file just made in `directory`.
/// The gateway's own clock may be days from a NAS's that lost its battery.
async fn now_at(export: &Arc<dyn Export>, directory: &ObjectPath) -> Result<i64, ExportError> {
    let probe = Writer::begin(export, directory).await?;
    let attr = export.stat(probe.path()).await;
    probe.discard().await;
    Ok(attr?.ctime_ns)
}

/// How long ago; nothing is older than it is young.
fn age(now_ns: i64, then_ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now_ns.saturating_sub(then_ns)).unwrap_or(0))
}

async fn old(
    export: &dyn Export,
    directory: &ObjectPath,
    kept: Duration,
    now_ns: i64,
) -> Result<Vec<ObjectPath>, Problem> {
    let entries = match export.list(directory, DIRECTORY_ENTRIES_MAX).await {
        Ok(entries) => entries,
        Err(ExportError::NotFound(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut paths = Vec::new();
    for entry in entries {
        // The later of both: a rename into the trash changes ctime only, and old bytes may have an old mtime.
        let since = entry.attr.ctime_ns.max(entry.attr.mtime_ns);
        if entry.attr.kind == Kind::File && age(now_ns, since) > kept {
            paths.push(directory.join(&entry.name)?);
        }
    }
    Ok(paths)
}
