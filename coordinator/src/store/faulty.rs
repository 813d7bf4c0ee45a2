//! A store whose k-th commit goes wrong: lost or done without an answer, and perhaps the process with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use ingle_proto::Epoch;

use super::{JobStore, Records, Room, Snapshot, StoreError};
use crate::core::record::Change;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which commit, from 1.
    pub at: u64,
    /// The commit is done all the same, only its answer is lost.
    pub done: bool,
    /// Nothing works from then on, as after a crash; otherwise it was a hiccup.
    pub dead: bool,
}

/// Any store, with one fault.
pub struct FaultyStore {
    inner: Arc<dyn JobStore>,
    fault: Fault,
    commits: AtomicU64,
}

impl FaultyStore {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: Arc<dyn JobStore>, fault: Fault) -> Self {
        Self { inner, fault, commits: AtomicU64::new(0) }
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.fault.dead && self.commits.load(Ordering::SeqCst) >= self.fault.at {
            return Err(StoreError::io("faulty", "crashed as told"));
        }
        Ok(())
    }
}

#[async_trait]
impl JobStore for FaultyStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        self.alive()?;
        self.inner.load().await
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<Change>) -> Result<u64, StoreError> {
        self.alive()?;
        let number = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        if number != self.fault.at {
            return self.inner.commit(epoch, changes).await;
        }
        if self.fault.done {
            self.inner.commit(epoch, changes).await?;
        }
        Err(StoreError::Unknown(format!("commit {number} was made to have no answer")))
    }

    async fn changes_since(&self, revision: u64) -> Result<Snapshot, StoreError> {
        self.alive()?;
        self.inner.changes_since(revision).await
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        self.alive()?;
        self.inner.archived(prefix).await
    }

    async fn tend(&self) -> Result<Room, StoreError> {
        self.alive()?;
        self.inner.tend().await
    }
}
