//! A watcher is a place in the registry's history: it holds no queue of its own, so a slow one costs nothing.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use tokio::sync::watch::Receiver;

use super::Memory;
use crate::limits::PROGRESS_INTERVAL;
use crate::seam::{Event, Revision, WatchStream};

/// Changes taken from history at a time.
const BATCH_EVENTS: usize = 64;

struct Watcher {
    memory: Memory,
    prefix: Bytes,
    reached: Revision,
    ready: VecDeque<Event>,
    changed: Receiver<u64>,
    ended: bool,
}

pub(super) fn stream(memory: Memory, prefix: Bytes, after: Revision) -> WatchStream {
    let changed = memory.0.changed.subscribe();
    let watcher = Watcher { memory, prefix, reached: after, ready: VecDeque::new(), changed, ended: false };
    Box::pin(stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    }))
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        let quiet_since = tokio::time::Instant::now();
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            // Marked as seen before looking: a change in between is then seen twice rather than never.
            self.changed.borrow_and_update();
            let (found, wait) = {
                let current = self.memory.now();
                let found = current.state.since(&self.prefix, self.reached, BATCH_EVENTS);
                (found, current.state.next_end().map(|end| end.saturating_sub(current.now)))
            };
            let Some((events, reached)) = found else {
                self.ended = true;
                return Some(Event::Reset);
            };
            self.reached = reached;
            if !events.is_empty() {
                self.ready = events.into();
                continue;
            }
            let left = PROGRESS_INTERVAL.saturating_sub(quiet_since.elapsed());
            if left.is_zero() {
                return Some(Event::Progress(self.reached));
            }
            // Leases end while nobody calls: wake for the next one.
            let wait = wait.unwrap_or(left).min(left).max(Duration::from_millis(1));
            let _ = tokio::time::timeout(wait, self.changed.changed()).await;
        }
    }
}
