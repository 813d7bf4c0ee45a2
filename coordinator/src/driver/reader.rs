//! Answers queries from the store while another coordinator leads: decides nothing, writes nothing.

use std::sync::Arc;
use std::time::Duration;

use ingle_daemon::Shutdown;
use tokio::time::Instant;

use super::{Inbox, Input, now};
use crate::core::Core;
use crate::store::{JobStore, StoreError};

/// How old what is told may be.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// What was read of the store.
struct Read {
    revision: u64,
    core: Core,
    at: Instant,
}

/// Stands in the driver's place.
pub struct Reader {
    inbox: Inbox,
    store: Arc<dyn JobStore>,
    read: Option<Read>,
}

impl Reader {
    /// Over a store that another writes.
    #[must_use]
    pub fn new(inbox: Inbox, store: Arc<dyn JobStore>) -> Self {
        Self { inbox, store, read: None }
    }

    /// Answers until `shutdown`.
    pub async fn run(mut self, shutdown: Shutdown) {
        loop {
            let input = tokio::select! {
                () = shutdown.wait() => break,
                input = self.inbox.inputs.recv() => input,
            };
            match input {
                Some(Input::Query(query)) => match self.refresh().await {
                    Ok(core) => query(core, now()),
                    // Dropped: whoever asked is told that nothing is known here.
                    Err(error) => tracing::debug!(%error, "the store can't be read; another coordinator leads it"),
                },
                // The handle refuses what would have to be decided.
                Some(Input::Event(_)) => {}
                None => break,
            }
        }
        self.inbox.shared.end();
    }

    async fn refresh(&mut self) -> Result<&Core, StoreError> {
        let stale = match &mut self.read {
            None => true,
            Some(read) if read.at.elapsed() < FRESH_FOR => false,
            Some(read) => {
                read.at = Instant::now();
                self.store.changes_since(u64::MAX).await?.revision != read.revision
            }
        };
        if stale {
            let snapshot = self.store.load().await?;
            let core = Core::load(snapshot.epoch, now(), snapshot.records).map_err(|reason| StoreError::Corrupt {
                place: "records".into(),
                reason,
                remedy: "start the version that wrote them".into(),
            })?;
            self.read = Some(Read { revision: snapshot.revision, core, at: Instant::now() });
        }
        Ok(&self.read.as_ref().expect("read by now").core)
    }
}
