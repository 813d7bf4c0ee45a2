//! Reads what lies on the cache's disk now and then, slowly: what rots is found before somebody needs it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::disk::Found;
use super::{OnDisk, lock};
use crate::metrics::Meters;

/// Pause between two pieces at least: a mebibyte a second, eight gibibytes in a good two hours.
const PACE: Duration = Duration::from_millis(250);
/// Pause for each unit of time that a piece took: a disk that is busy is left to others.
const YIELD: u32 = 20;
/// Pause between two rounds.
const ROUND: Duration = Duration::from_secs(24 * 3600);

/// Ends a task when dropped.
pub(super) struct Ending(pub(super) AbortHandle);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Goes round for ever.
pub(super) async fn run(on_disk: Arc<OnDisk>, meters: Meters) {
    loop {
        let round: Vec<super::Key> = lock(&on_disk.held).keys().copied().collect();
        for key in round {
            let begun = tokio::time::Instant::now();
            let of_disk = Arc::clone(&on_disk);
            let found = tokio::task::spawn_blocking(move || of_disk.disk.read(&key)).await;
            if matches!(found, Ok(Ok(Found::Damaged | Found::Nothing))) {
                // One that was evicted meanwhile is neither held nor there, and that is no damage.
                let was_held = lock(&on_disk.held).remove(&key).is_some();
                if was_held && matches!(found, Ok(Ok(Found::Damaged))) {
                    meters.damaged_piece();
                    tracing::warn!(
                        "a cached piece was damaged and is dropped; if this is repeated, test the gateway's disk"
                    );
                }
            }
            tokio::time::sleep(PACE.max(begun.elapsed() * YIELD)).await;
        }
        tokio::time::sleep(ROUND).await;
    }
}
