//! The seam itself: what any store of members must do, in bytes and revisions, and nothing about nodes or leaders.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// Orders the changes of one store. With etcd `epoch` is 0 and `counter` is its revision; a registry that restarts
/// counts anew under a greater epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// Which life of the store.
    pub epoch: u64,
    /// Which change in it.
    pub counter: u64,
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// A lease: its keys vanish when it isn't renewed. Never 0, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// When a write takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// In any case.
    Always,
    /// Only if the key doesn't exist.
    Absent,
    /// Only if the key exists and its last change was this one.
    Revision(Revision),
}

/// Whether a write took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// It did, as this change.
    Done(Revision),
    /// Its condition didn't hold; the store stands at this revision or a later one.
    Refused(Revision),
}

impl PutOutcome {
    /// The change, if it took place.
    #[must_use]
    pub const fn done(self) -> Option<Revision> {
        match self {
            Self::Done(revision) => Some(revision),
            Self::Refused(_) => None,
        }
    }
}

/// A key as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 1 to 1024 bytes.
    pub key: Bytes,
    /// At most 64 KiB.
    pub value: Bytes,
    /// The change that made it.
    pub created: Revision,
    /// Its last change.
    pub modified: Revision,
    /// What it hangs on.
    pub lease: Option<LeaseId>,
}

/// All keys below a prefix at one revision, in order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Watch from here to miss nothing.
    pub revision: Revision,
    /// The keys.
    pub entries: Vec<Entry>,
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key was made or changed.
    Put(Entry),
    /// A key was deleted or its lease ended.
    Delete {
        /// Which.
        key: Bytes,
        /// As this change.
        revision: Revision,
    },
    /// The store no longer knows what happened since: list again and watch from there. The watch ends with it.
    Reset,
    /// Still here, and everything up to this revision has been told.
    Progress(Revision),
}

impl Event {
    /// The revision that a watcher has reached with this event; `None` for a reset.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Put(entry) => Some(entry.modified),
            Self::Delete { revision, .. } | Self::Progress(revision) => Some(*revision),
            Self::Reset => None,
        }
    }
}

/// Changes in order, none missing, none twice. It ends after a reset or an error.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, MembershipError>> + Send>>;

/// What a store of members answers when it can't do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// It wasn't reached: nothing happened.
    #[error("membership {what}: not reached: {reason}")]
    Unavailable {
        /// Which call.
        what: &'static str,
        /// What the transport said.
        reason: String,
    },
    /// The call left but no answer came: it may or may not have happened. Read before doing it again.
    #[error("membership {what}: outcome unknown: {reason}")]
    Unknown {
        /// Which call.
        what: &'static str,
        /// What the transport said.
        reason: String,
    },
    /// The lease has ended: grant a new one and put the keys again.
    #[error("lease {0} has ended: grant a new one and put its keys again")]
    LeaseNotFound(LeaseId),
    /// An argument out of bounds.
    #[error("{field} {reason}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What was expected.
        reason: String,
    },
    /// A bound of the store is reached.
    #[error("membership is full: {reason}")]
    Full {
        /// Which bound.
        reason: String,
    },
    /// The store doesn't let us, or answers with something impossible.
    #[error("membership {what}: refused: {reason}")]
    Refused {
        /// Which call.
        what: &'static str,
        /// What the store said.
        reason: String,
    },
}

impl MembershipError {
    /// An argument out of bounds.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    /// Whether the same call may succeed later. After [`Self::outcome_unknown`] read first.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unknown { .. } | Self::Full { .. })
    }

    /// Whether the call may have taken place all the same.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// A store of members. Every call has a deadline ([`crate::limits::CALL_DEADLINE`]) and reads see every earlier write.
#[async_trait]
pub trait Membership: Send + Sync + 'static {
    /// Grants a lease of 2 to 3600 seconds; some stores round up to whole seconds.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError>;

    /// Renews a lease; answers how long it lasts from now.
    ///
    /// # Errors
    /// [`MembershipError::LeaseNotFound`] once it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError>;

    /// Ends a lease and deletes its keys. Ending one that has ended changes nothing.
    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError>;

    /// Writes a key, if its condition holds. The key then hangs on `lease`, or on none.
    ///
    /// # Errors
    /// [`MembershipError::LeaseNotFound`] if the lease has ended.
    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        condition: Condition,
    ) -> Result<PutOutcome, MembershipError>;

    /// Deletes a key, if its condition holds. Deleting an absent key with [`Condition::Always`] is done at once;
    /// [`Condition::Absent`] makes no sense here and is refused as invalid.
    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError>;

    /// All keys below a prefix; an empty prefix is all keys.
    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError>;

    /// Changes below a prefix after a revision that a listing or an event gave.
    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError>;
}

#[async_trait]
impl<M: Membership + ?Sized> Membership for std::sync::Arc<M> {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MembershipError> {
        (**self).grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MembershipError> {
        (**self).keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MembershipError> {
        (**self).revoke(lease).await
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
        condition: Condition,
    ) -> Result<PutOutcome, MembershipError> {
        (**self).put(key, value, lease, condition).await
    }

    async fn delete(&self, key: Bytes, condition: Condition) -> Result<PutOutcome, MembershipError> {
        (**self).delete(key, condition).await
    }

    async fn list(&self, prefix: Bytes) -> Result<Listing, MembershipError> {
        (**self).list(prefix).await
    }

    async fn watch(&self, prefix: Bytes, after: Revision) -> Result<WatchStream, MembershipError> {
        (**self).watch(prefix, after).await
    }
}
