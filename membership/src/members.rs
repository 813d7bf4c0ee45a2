//! Turns a store's lists, watches and resets into who joined, changed and left.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use ingle_daemon::backoff::Backoff;
use tokio::time::Instant;

use crate::records::Record;
use crate::registration::MEMBER_TTL;
use crate::seam::{Event, Listing, Membership, Revision, WatchStream};

/// How often everything is listed whatever the watch says.
const RELIST_INTERVAL: Duration = Duration::from_secs(60);
/// How long members may take to come back after a registry's restart before they count as gone: a lease, and the
/// window in which nodes re-attach.
pub const SETTLE: Duration = Duration::from_secs(MEMBER_TTL.as_secs() + 20);

/// What happened to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent<R> {
    /// It is there.
    Joined(R),
    /// Its record changed; with another incarnation its process is another.
    Changed(R),
    /// Its lease ended or it said goodbye: the record as it last was.
    Left(R),
}

struct Known<R> {
    record: R,
    modified: Revision,
}

/// Who is there, kept current. Ask [`Members::next`] again and again, or make it a stream.
pub struct Members<R: Record> {
    membership: Arc<dyn Membership>,
    prefix: Bytes,
    relist: Duration,
    settle: Duration,
    known: BTreeMap<Bytes, Known<R>>,
    events: VecDeque<MemberEvent<R>>,
    watch: Option<WatchStream>,
    listed: Option<Revision>,
    list_at: Instant,
    settles_at: Option<Instant>,
    backoff: Backoff,
}

/// Watches all members of one kind.
#[must_use]
pub fn watch_members<R: Record>(membership: Arc<dyn Membership>) -> Members<R> {
    Members::new(membership, RELIST_INTERVAL, SETTLE)
}

impl<R: Record> Members<R> {
    /// With another interval between full lists, and another time to come back after a registry's restart.
    #[must_use]
    pub fn new(membership: Arc<dyn Membership>, relist: Duration, settle: Duration) -> Self {
        Self {
            membership,
            prefix: Bytes::from_static(R::PREFIX.as_bytes()),
            relist,
            settle,
            known: BTreeMap::new(),
            events: VecDeque::new(),
            watch: None,
            listed: None,
            list_at: Instant::now(),
            settles_at: None,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
        }
    }

    /// Everyone who is there as far as told by [`Self::next`] and what it is about to tell.
    pub fn current(&self) -> impl Iterator<Item = &R> {
        self.known.values().map(|known| &known.record)
    }

    /// Whether everyone has been listed at least once.
    #[must_use]
    pub fn listed(&self) -> bool {
        self.listed.is_some()
    }

    /// As a stream; it never ends.
    pub fn into_stream(self) -> impl Stream<Item = MemberEvent<R>> + Send {
        stream::unfold(self, |mut members| async move {
            let event = members.next().await;
            Some((event, members))
        })
    }

    /// The next change; waits as long as it takes, through any failure of the store. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> MemberEvent<R> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let now = Instant::now();
            match &mut self.watch {
                Some(watch) if now < self.list_at => {
                    tokio::select! {
                        event = watch.next() => match event {
                            Some(Ok(event)) => self.take(event),
                            Some(Err(error)) => {
                                tracing::debug!(%error, "watch of members broke; listing again");
                                self.list_soon();
                            }
                            None => self.list_soon(),
                        },
                        () = tokio::time::sleep_until(self.list_at) => {}
                    }
                }
                None if now < self.list_at => tokio::time::sleep_until(self.list_at).await,
                _ => self.list().await,
            }
        }
    }

    fn list_soon(&mut self) {
        self.watch = None;
        self.list_at = Instant::now() + self.backoff.next_random();
    }

    async fn list(&mut self) {
        let listing = match self.membership.list(self.prefix.clone()).await {
            Ok(listing) => listing,
            Err(error) => {
                tracing::debug!(%error, "can't list members yet");
                // A watch that still works goes on; only the list is put off.
                self.list_at = Instant::now() + self.backoff.next_random();
                return;
            }
        };
        let revision = listing.revision;
        let restarted = self.listed.is_some_and(|listed| listed.epoch != revision.epoch);
        if restarted {
            self.settles_at = Some(Instant::now() + self.settle);
            self.watch = None;
        }
        self.apply(listing);
        // Only now is the list done with: whoever drops us in the middle finds that it is still to be made.
        if self.watch.is_none() {
            match self.membership.watch(self.prefix.clone(), revision).await {
                Ok(watch) => {
                    self.watch = Some(watch);
                    self.backoff.reset();
                }
                Err(error) => {
                    tracing::debug!(%error, "can't watch members yet");
                    self.list_soon();
                    return;
                }
            }
        }
        self.list_at = Instant::now() + self.relist;
        if let Some(settles) = self.settles_at {
            self.list_at = self.list_at.min(settles);
        }
    }

    fn apply(&mut self, listing: Listing) {
        self.listed = Some(listing.revision);
        let mut absent: Vec<Bytes> = self.known.keys().cloned().collect();
        for entry in listing.entries {
            absent.retain(|key| *key != entry.key);
            self.upsert(entry.key, &entry.value, entry.modified);
        }
        // After a restart the registry knows nobody: whoever is absent gets the time to come back.
        let settling = self.settles_at.is_some_and(|settles| Instant::now() < settles);
        if !settling {
            self.settles_at = None;
            for key in absent {
                self.remove(&key);
            }
        }
    }

    fn take(&mut self, event: Event) {
        let Some(listed) = self.listed else { return };
        match event {
            // What a later list has told already.
            event if event.revision().is_some_and(|revision| revision <= listed) => {}
            Event::Put(entry) => self.upsert(entry.key, &entry.value, entry.modified),
            Event::Delete { key, .. } => self.remove(&key),
            Event::Progress(_) => {}
            Event::Reset => self.list_soon(),
        }
    }

    fn upsert(&mut self, key: Bytes, value: &Bytes, modified: Revision) {
        let record = match R::decode(&key, value) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, "a member's record is ignored");
                return;
            }
        };
        match self.known.insert(key, Known { record: record.clone(), modified }) {
            None => self.events.push_back(MemberEvent::Joined(record)),
            Some(before) if before.modified != modified && before.record != record => {
                self.events.push_back(MemberEvent::Changed(record));
            }
            Some(_) => {}
        }
    }

    fn remove(&mut self, key: &Bytes) {
        if let Some(known) = self.known.remove(key) {
            self.events.push_back(MemberEvent::Left(known.record));
        }
    }
}

#[cfg(test)]
mod tests;
