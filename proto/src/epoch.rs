//! The epoch orders leaders: generation of the store first, then the revision of the leader's key.

use crate::v1;

/// See [`v1::Epoch`]. Greater is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Rises when a store is migrated or restored.
    pub generation: u64,
    /// Revision of the leader's key, or the counter of starts on a single box.
    pub revision: u64,
}

impl From<v1::Epoch> for Epoch {
    fn from(wire: v1::Epoch) -> Self {
        Self { generation: wire.generation, revision: wire.revision }
    }
}

impl From<Epoch> for v1::Epoch {
    fn from(epoch: Epoch) -> Self {
        Self { generation: epoch.generation, revision: epoch.revision }
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}
