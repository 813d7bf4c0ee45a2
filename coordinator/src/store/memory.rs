//! The store without a disk: for tests and simulations; what it holds outlives its handles, not the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ingle_proto::Epoch;

use super::{JobStore, Records, Snapshot, StoreError, below, check};
use crate::core::record::Change;

#[derive(Debug, Clone, Default)]
struct State {
    epoch: Epoch,
    revision: u64,
    records: BTreeMap<String, (u64, Vec<u8>)>,
    archive: BTreeMap<String, Vec<u8>>,
}

/// Records in memory. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

impl MemoryStore {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a start does: the next epoch, which shuts out whoever wrote before.
    #[must_use]
    pub fn open(&self) -> (Self, Epoch) {
        let mut state = self.lock();
        state.epoch = Epoch { generation: state.epoch.generation.max(1), revision: state.epoch.revision + 1 };
        (self.clone(), state.epoch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Put { key, value } => {
                self.records.insert(key, (self.revision, value));
            }
            Change::Delete { key } => {
                self.records.remove(&key);
            }
            Change::Clear { prefix } => {
                let end = below(&prefix);
                self.records.retain(|key, _| *key < prefix || *key >= end);
            }
            Change::Archive { prefix } => {
                let keys: Vec<String> =
                    self.records.range(prefix.clone()..below(&prefix)).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    if let Some((_, value)) = self.records.remove(&key) {
                        self.archive.insert(key, value);
                    }
                }
            }
        }
    }

    fn snapshot(&self, after: Option<u64>) -> Snapshot {
        let records = self.records.iter().filter(|(_, (revision, _))| after.is_none_or(|after| *revision > after));
        Snapshot {
            revision: self.revision,
            epoch: self.epoch,
            records: records.map(|(key, (_, value))| (key.clone(), value.clone())).collect(),
        }
    }
}

#[async_trait]
impl JobStore for MemoryStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        Ok(self.lock().snapshot(None))
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<Change>) -> Result<u64, StoreError> {
        check(&changes)?;
        let mut state = self.lock();
        if epoch < state.epoch {
            return Err(StoreError::Fenced { ours: epoch, stored: state.epoch });
        }
        state.epoch = epoch;
        state.revision += 1;
        for change in changes {
            state.apply(change);
        }
        Ok(state.revision)
    }

    async fn changes_since(&self, revision: u64) -> Result<Snapshot, StoreError> {
        Ok(self.lock().snapshot(Some(revision)))
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        let state = self.lock();
        let found = state.archive.range(prefix.to_owned()..below(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
