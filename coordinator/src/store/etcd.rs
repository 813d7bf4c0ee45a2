//! The store in etcd, for several coordinators: each commit is one transaction, guarded by what the last one left.
//!
//! Stored below `/inglenook/store/v1/`: see [`layout`]. A transaction compares the revision of `meta` with the one that we
//! know, so that nothing of another writer, and nothing of ours that was given up as lost and came late, slips in between;
//! and that the leader's key is still the one that made our epoch. A new leader's first commit rewrites `meta`, which
//! shuts out whoever led before, however long it was frozen.
//!
//! An answer that doesn't come leaves the outcome open: the next call reads `meta` before anything else.

mod layout;
mod plan;
mod space;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, GetResponse, SortOrder, SortTarget, Txn, TxnOp,
    TxnResponse,
};
use ingle_daemon::tasks::describe;
use ingle_membership::ConnectOptions;
use ingle_membership::records::LEADER;
use ingle_proto::Epoch;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Code;

use self::layout::{Keys, Meta, Shelf};
use self::plan::Plan;
use self::space::Space;
use super::{ArchiveBounds, COMMIT_BYTES_MAX, JobStore, Records, Room, Snapshot, StoreError, below, check, whole};
use crate::core::record::Change;

/// Every key of the store starts so.
pub const ROOT: &str = "/inglenook/store/v1/";
/// Operations that etcd takes in one transaction by default are 128; one of them is about `meta`.
const OPERATIONS_MAX: usize = 120;
/// Records asked for at a time.
const PAGE_RECORDS: i64 = 64;
/// Largest answer: a page of the largest records that there may be.
const ANSWER_BYTES_MAX: usize = PAGE_RECORDS as usize * (COMMIT_BYTES_MAX + (4 << 10));
/// Whole readings that may be cut short by compaction before we give up.
const READINGS_MAX: u32 = 3;
/// Keys of the archive that are looked at when the oldest jobs leave it.
const OLDEST_KEYS_MAX: i64 = 10_000;
/// What etcd keeps if it isn't told otherwise, bytes.
pub const QUOTA_BYTES: u64 = 2 << 30;
/// How long etcd remembers what keys held before, for watchers that lag.
const HISTORY: Duration = Duration::from_secs(300);

/// What we know of `meta`.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// etcd's revision of it.
    modified: i64,
    meta: Meta,
}

/// A store in etcd.
pub struct EtcdStore {
    client: Client,
    deadline: Duration,
    keys: Keys,
    /// The leader's key must have been made in the revision that our epoch names.
    guarded: bool,
    known: Mutex<Option<Known>>,
    bounds: ArchiveBounds,
    quota_bytes: u64,
    /// A revision of etcd, and when it was the newest: what it held before is forgotten some time after.
    history: Mutex<Option<(i64, Instant)>>,
}

fn io(reason: impl std::fmt::Display) -> StoreError {
    StoreError::io("in etcd", reason)
}

impl EtcdStore {
    /// Opens the store of a cluster, made if there is none, and answers the epoch that wrote last: writing takes a greater one,
    /// the revision of the leader's key.
    ///
    /// # Errors
    /// [`StoreError::Io`] while etcd doesn't answer; [`StoreError::Corrupt`] for what we can't read.
    pub async fn open(url: &str, options: &ConnectOptions) -> Result<(Self, Epoch), StoreError> {
        Self::open_at(url, options, ROOT, true).await
    }

    /// The same below another root; `guarded` by the leader's key or by `meta` alone.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_at(
        url: &str,
        options: &ConnectOptions,
        root: &str,
        guarded: bool,
    ) -> Result<(Self, Epoch), StoreError> {
        let client = ingle_membership::etcd::client(url, options).await.map_err(io)?;
        let (keys, deadline) = (Keys::new(root), options.deadline);
        let (known, history) = (Mutex::new(None), Mutex::new(None));
        let (bounds, quota_bytes) = (ArchiveBounds::default(), QUOTA_BYTES);
        let store = Self { client, deadline, keys, guarded, known, bounds, quota_bytes, history };
        let known = match store.meta().await? {
            Some(known) => known,
            None => store.make().await?,
        };
        *store.known.lock().await = Some(known);
        Ok((store, known.meta.epoch()))
    }

    /// With another bound on what is kept of ended jobs, and the quota that etcd was started with (it tells us itself from
    /// 3.6 on).
    #[must_use]
    pub fn keep(self, bounds: ArchiveBounds, quota_bytes: u64) -> Self {
        Self { bounds, quota_bytes, ..self }
    }

    /// Makes it, unless another coordinator does.
    async fn make(&self) -> Result<Known, StoreError> {
        let generation = u64::try_from(ingle_daemon::clock::unix_ms() / 1000).unwrap_or(0).max(1);
        let key = self.keys.meta();
        let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        let put = TxnOp::put(key, Meta::new(generation).encode(), None);
        self.transact(Txn::new().when([absent]).and_then([put])).await?;
        self.meta().await?.ok_or_else(|| io("what was made is gone"))
    }

    async fn answer<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failure::of(&error)),
            Err(_) => Err(Failure::Silent(format!("no answer within {:?}", self.deadline))),
        }
    }

    async fn transact(&self, transaction: Txn) -> Result<TxnResponse, StoreError> {
        let mut client = self.client.kv_client();
        self.answer(client.txn(transaction)).await.map_err(Failure::of_write)
    }

    async fn get(&self, key: String, options: GetOptions) -> Result<GetResponse, StoreError> {
        let mut client = self.client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        self.answer(client.get(key, Some(options))).await.map_err(Failure::of_read)
    }

    async fn meta(&self) -> Result<Option<Known>, StoreError> {
        Ok(self.meta_at().await?.map(|(known, _)| known))
    }

    /// `meta`, and etcd's revision when it was read.
    async fn meta_at(&self) -> Result<Option<(Known, i64)>, StoreError> {
        let key = self.keys.meta();
        let found = self.get(key.clone(), GetOptions::new()).await?;
        let at = found.header().map_or(0, etcd_client::ResponseHeader::revision);
        let Some(kv) = found.kvs().first() else { return Ok(None) };
        Ok(Some((Known { modified: kv.mod_revision(), meta: Meta::decode(&key, kv.value())? }, at)))
    }

    async fn there(&self) -> Result<Known, StoreError> {
        Ok(self.there_at().await?.0)
    }

    async fn there_at(&self) -> Result<(Known, i64), StoreError> {
        let gone = || layout::corrupt(&self.keys.meta(), "it is gone".to_owned());
        self.meta_at().await?.ok_or_else(gone)
    }

    /// Records below a prefix with the commits that wrote them, all as of one revision of etcd.
    async fn below(
        &self,
        shelf: Shelf,
        prefix: &str,
        at: Option<i64>,
    ) -> Result<Vec<(String, u64, Vec<u8>)>, StoreError> {
        let (mut from, end) = self.keys.range(shelf, prefix);
        let (mut at, mut records) = (at, Vec::new());
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_RECORDS);
            if let Some(at) = at {
                options = options.with_revision(at);
            }
            let page = self.get(from.clone(), options).await?;
            at = at.or(page.header().map(etcd_client::ResponseHeader::revision));
            for kv in page.kvs() {
                let place = String::from_utf8_lossy(kv.key());
                let key = self.keys.strip(shelf, kv.key()).ok_or_else(|| layout::corrupt(&place, "its name".into()))?;
                let (revision, value) = layout::decode(key, kv.value())?;
                records.push((key.to_owned(), revision, value.to_vec()));
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = format!("{}\0", String::from_utf8_lossy(last.key())),
                _ => return Ok(records),
            }
        }
    }

    async fn snapshot(&self, after: Option<u64>) -> Result<Snapshot, StoreError> {
        let mut readings = 0;
        loop {
            readings += 1;
            let (known, at) = self.there_at().await?;
            let snapshot = |records| Snapshot { revision: known.meta.revision, epoch: known.meta.epoch(), records };
            if after.is_some_and(|after| after >= known.meta.revision) {
                return Ok(snapshot(Records::new()));
            }
            // Every commit writes `meta`: as of the revision that it was read in, all records are those of its commit. The
            // revision in which it was written may be forgotten long since, where nothing was committed for some time.
            match self.below(Shelf::Live, "", Some(at)).await {
                Err(error) if readings < READINGS_MAX && error.to_string().contains("compacted") => {}
                read => {
                    let newer = |revision: u64| after.is_none_or(|after| revision > after);
                    let records = read?.into_iter().filter(|(_, revision, _)| newer(*revision));
                    return Ok(snapshot(records.map(|(key, _, value)| (key, value)).collect()));
                }
            }
        }
    }

    /// One transaction, or two where the changes are too many keys for one.
    async fn write(&self, known: Known, epoch: Epoch, changes: Vec<Change>, last: bool) -> Result<Known, StoreError> {
        let mut stored = BTreeMap::new();
        for prefix in plan::archived_prefixes(&changes) {
            let records = self.below(Shelf::Live, prefix, None).await?;
            stored.insert(prefix.to_owned(), records.into_iter().map(|(key, _, value)| (key, value)).collect());
        }
        let mut plan = plan::plan(changes.clone(), &stored);
        self.copy_early(known, &mut plan).await?;
        if plan.len() > OPERATIONS_MAX && changes.len() > 1 {
            // What loads after the first half is what the core could have committed by itself.
            let mut first = changes;
            let second = first.split_off(first.len() / 2);
            let known = Box::pin(self.write(known, epoch, first, false)).await?;
            return Box::pin(self.write(known, epoch, second, last)).await;
        }
        let meta = known.meta.after(epoch, known.meta.revision + u64::from(last));
        let number = known.meta.revision + 1;
        let mut operations = self.operations(&plan, number);
        operations.push(TxnOp::put(self.keys.meta(), meta.encode(), None));
        let answer = self.transact(Txn::new().when(self.guards(known, epoch)).and_then(operations)).await?;
        if !answer.succeeded() {
            return Err(self.refused(epoch).await);
        }
        let modified = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Known { modified, meta })
    }

    /// Copies into the archive what doesn't fit the transaction that takes the originals away. Until then nobody looks there,
    /// and what a crash leaves is written once more.
    async fn copy_early(&self, known: Known, plan: &mut Plan) -> Result<(), StoreError> {
        let bytes = |plan: &Plan| plan.archive.values().map(Vec::len).sum::<usize>();
        while !plan.archive.is_empty() && (plan.len() > OPERATIONS_MAX || bytes(plan) > COMMIT_BYTES_MAX / 4) {
            let mut taken = Plan::default();
            while taken.archive.len() < OPERATIONS_MAX
                && bytes(&taken) < COMMIT_BYTES_MAX / 2
                && let Some((key, value)) = plan.archive.pop_first()
            {
                taken.archive.insert(key, value);
            }
            let operations = self.operations(&taken, known.meta.revision + 1);
            // Alone it changes nothing that anybody sees: only who may write is asked.
            let same = Compare::mod_revision(self.keys.meta(), CompareOp::Equal, known.modified);
            let answer = self.transact(Txn::new().when([same]).and_then(operations)).await?;
            if !answer.succeeded() {
                return Err(StoreError::Unknown("another commit came in between".to_owned()));
            }
        }
        Ok(())
    }

    fn operations(&self, plan: &Plan, revision: u64) -> Vec<TxnOp> {
        let put = |shelf, (key, value): (&String, &Vec<u8>)| {
            TxnOp::put(self.keys.of(shelf, key), layout::encode(key, revision, value), None)
        };
        let mut operations: Vec<TxnOp> = plan.puts.iter().map(|record| put(Shelf::Live, record)).collect();
        operations.extend(plan.archive.iter().map(|record| put(Shelf::Archive, record)));
        operations.extend(plan.deletes.iter().map(|key| TxnOp::delete(self.keys.of(Shelf::Live, key), None)));
        operations.extend(plan.ranges.iter().map(|(from, end)| {
            let end = self.keys.of(Shelf::Live, end);
            TxnOp::delete(self.keys.of(Shelf::Live, from), Some(DeleteOptions::new().with_range(end)))
        }));
        operations
    }

    fn guards(&self, known: Known, epoch: Epoch) -> Vec<Compare> {
        let mut guards = vec![Compare::mod_revision(self.keys.meta(), CompareOp::Equal, known.modified)];
        if self.guarded {
            let made = i64::try_from(epoch.revision).unwrap_or(i64::MAX);
            guards.push(Compare::create_revision(LEADER, CompareOp::Equal, made));
        }
        guards
    }

    /// Why a guarded transaction was not carried out.
    async fn refused(&self, epoch: Epoch) -> StoreError {
        let stored = match self.there().await {
            Ok(known) => known.meta.epoch(),
            Err(error) => return error,
        };
        if stored > epoch {
            return StoreError::Fenced { ours: epoch, stored };
        }
        if self.guarded {
            match self.get(LEADER.to_owned(), GetOptions::new()).await {
                Ok(found) => {
                    let made = found.kvs().first().map(|kv| u64::try_from(kv.create_revision()).unwrap_or(0));
                    if made != Some(epoch.revision) {
                        return StoreError::Fenced { ours: epoch, stored };
                    }
                }
                Err(error) => return error,
            }
        }
        StoreError::Unknown("a commit that was given up as lost has come in".to_owned())
    }

    /// Lets the oldest jobs leave the archive, whole, where it has grown beyond its bound or etcd is half full. What fails is
    /// done after the next one.
    async fn trim(&self, known: Known) -> Result<(), StoreError> {
        let (from, end) = self.keys.range(Shelf::Archive, "");
        let counted = self.get(from, GetOptions::new().with_range(end).with_count_only()).await?.count();
        let bound = i64::try_from(self.bounds.records).unwrap_or(i64::MAX);
        // Records are counted all the same where etcd doesn't say how full it is.
        let pressed = self.space().await.is_ok_and(|space| space.pressed());
        let over = (counted - bound).max(if pressed { counted / 100 + 1 } else { 0 }).min(OLDEST_KEYS_MAX);
        if over <= 0 {
            return Ok(());
        }
        // Parts of jobs first: they are many, and a job is still told without them.
        for kind in ["parts/", ""] {
            let (from, end) = self.keys.range(Shelf::Archive, kind);
            let keys = GetOptions::new().with_range(end).with_keys_only();
            let newest = keys.clone().with_limit(1).with_sort(SortTarget::Key, SortOrder::Descend);
            let (oldest, newest) =
                (self.get(from.clone(), keys.with_limit(over)).await?, self.get(from.clone(), newest).await?);
            let job = |found: &GetResponse| {
                let key = found.kvs().last().and_then(|kv| self.keys.strip(Shelf::Archive, kv.key()));
                key.map(|key| whole(key).to_owned())
            };
            let (Some(last), Some(newest)) = (job(&oldest), job(&newest)) else { continue };
            // Jobs are numbered in order, and so are their keys. The newest one stays, however large.
            let until = if last < newest { below(&last) } else { newest };
            let until = self.keys.of(Shelf::Archive, &until);
            if from < until && oldest.kvs().first().is_some_and(|kv| kv.key() < until.as_bytes()) {
                let same = Compare::mod_revision(self.keys.meta(), CompareOp::Equal, known.modified);
                let delete = TxnOp::delete(from, Some(DeleteOptions::new().with_range(until)));
                return self.transact(Txn::new().when([same]).and_then([delete])).await.map(drop);
            }
        }
        Ok(())
    }

    async fn space(&self) -> Result<Space, StoreError> {
        let mut client = self.client.maintenance_client();
        let status = self.answer(client.status()).await.map_err(Failure::of_read)?;
        Ok(Space::of(&status, self.quota_bytes))
    }

    /// Makes etcd forget what keys held more than some minutes ago: left alone it remembers everything, until it is full.
    async fn forget_history(&self, newest: i64) -> Result<(), StoreError> {
        let mut history = self.history.lock().await;
        let Some((revision, since)) = *history else {
            *history = Some((newest, Instant::now()));
            return Ok(());
        };
        if since.elapsed() < HISTORY {
            return Ok(());
        }
        *history = Some((newest, Instant::now()));
        drop(history);
        let mut client = self.client.kv_client();
        match self.answer(client.compact(revision, None)).await {
            Ok(_) => Ok(()),
            // Somebody else compacts it too: so much the better.
            Err(Failure::Refused(reason)) if reason.contains("compacted") => Ok(()),
            Err(failure) => Err(failure.of_read()),
        }
    }
}

/// Why etcd didn't answer with what was asked for.
enum Failure {
    /// No room; nothing was done.
    Full(String),
    /// Nothing was done.
    Refused(String),
    /// It may have been done.
    Silent(String),
}

impl Failure {
    fn of(error: &Error) -> Self {
        let reason = describe(error);
        match error {
            Error::GRpcStatus(status) => match status.code() {
                // Nothing was done either, but it passes by itself.
                Code::ResourceExhausted if reason.contains("too many requests") => Self::Refused(reason),
                Code::ResourceExhausted => Self::Full(reason),
                Code::InvalidArgument | Code::OutOfRange | Code::PermissionDenied | Code::Unauthenticated => {
                    Self::Refused(reason)
                }
                _ => Self::Silent(reason),
            },
            _ => Self::Silent(reason),
        }
    }

    fn of_write(self) -> StoreError {
        match self {
            Self::Full(reason) => StoreError::Full(format!("etcd: {reason}; {}", space::REMEDY)),
            Self::Refused(reason) => io(reason),
            Self::Silent(reason) => StoreError::Unknown(format!("etcd: {reason}")),
        }
    }

    fn of_read(self) -> StoreError {
        let (Self::Full(reason) | Self::Refused(reason) | Self::Silent(reason)) = self;
        io(reason)
    }
}

#[async_trait]
impl JobStore for EtcdStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        self.snapshot(None).await
    }

    async fn commit(&self, epoch: Epoch, changes: Vec<Change>) -> Result<u64, StoreError> {
        check(&changes)?;
        // Taken out: a call that is dropped midway leaves nothing known.
        let mut slot = self.known.lock().await;
        let known = match slot.take() {
            Some(known) if known.meta.epoch() == epoch => known,
            // Whoever takes the store over has to see what was written until now.
            _ => self.there().await?,
        };
        if epoch < known.meta.epoch() {
            return Err(StoreError::Fenced { ours: epoch, stored: known.meta.epoch() });
        }
        let archives = changes.iter().any(|change| matches!(change, Change::Archive { .. }));
        let written = self.write(known, epoch, changes, true).await?;
        *slot = Some(written);
        drop(slot);
        if archives && let Err(error) = self.trim(written).await {
            tracing::debug!(%error, "the archive isn't trimmed yet");
        }
        Ok(written.meta.revision)
    }

    async fn changes_since(&self, revision: u64) -> Result<Snapshot, StoreError> {
        self.snapshot(Some(revision)).await
    }

    async fn archived(&self, prefix: &str) -> Result<Records, StoreError> {
        let records = self.below(Shelf::Archive, prefix, None).await?;
        Ok(records.into_iter().map(|(key, _, value)| (key, value)).collect())
    }

    async fn tend(&self) -> Result<Room, StoreError> {
        let space = self.space().await?;
        if let Err(error) = self.forget_history(space.revision).await {
            tracing::debug!(%error, "etcd still remembers everything");
        }
        Ok(space.room())
    }
}
