//! The store of the simulation, which checks what is committed: nothing twice, nothing undone, epochs only rising.

use std::collections::{BTreeMap, BTreeSet};

use ingle_coordinator::core::{BatchRecord, BatchState, Change, JobRecord, SegmentRecord};
use ingle_coordinator::limits;
use ingle_proto::NodeId;
use prost::Message as _;

/// A blob's digest from its number.
pub(crate) fn digest(number: u64) -> prost::bytes::Bytes {
    let mut bytes = vec![0u8; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

/// The number in a digest that [`digest`] made.
pub(crate) fn number(digest: &[u8]) -> u64 {
    u64::from_le_bytes(digest[..8].try_into().unwrap())
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) live: BTreeMap<String, Vec<u8>>,
    pub(crate) archive: BTreeMap<String, Vec<u8>>,
    epoch: u64,
    /// (job, document) with the batch that has it committed.
    pub(crate) committed: BTreeMap<(u64, u32), u64>,
    pub(crate) quarantined: BTreeSet<(u64, u32)>,
    /// (job, document, page) with the batch that has it committed.
    pub(crate) committed_pages: BTreeMap<(u64, u32, u32), u64>,
    pub(crate) quarantined_pages: BTreeSet<(u64, u32, u32)>,
    /// Winning attempt of every committed batch.
    pub(crate) winners: BTreeMap<(u64, u64), u64>,
    ended: BTreeMap<u64, i32>,
}

impl Store {
    /// From now on only leaders of this epoch and later ones write.
    pub(crate) fn fence(&mut self, epoch: u64) {
        assert!(epoch > self.epoch, "epoch {epoch} is no later than {}", self.epoch);
        self.epoch = epoch;
    }

    /// Whether a leader of this epoch may write.
    pub(crate) fn admits(&self, epoch: u64) -> bool {
        epoch >= self.epoch
    }

    /// Whether a job has ended.
    pub(crate) fn ended(&self, job: u64) -> bool {
        self.ended.contains_key(&job)
    }

    /// One commit, whole.
    pub(crate) fn commit(&mut self, epoch: u64, changes: &[Change], documents: &BTreeMap<u64, Vec<u32>>) {
        assert!(self.admits(epoch), "epoch {epoch} commits after epoch {}", self.epoch);
        self.epoch = epoch;
        ingle_coordinator::store::check(changes).expect("a commit within its bounds");
        assert!(changes.len() <= limits::CHANGES_PER_COMMIT);
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    self.live.insert(key.clone(), value.clone());
                    self.look(key, value, documents);
                }
                Change::Delete { key } => {
                    self.live.remove(key);
                }
                Change::Clear { prefix } => self.live.retain(|key, _| !key.starts_with(prefix)),
                Change::Archive { prefix } => {
                    let keys: Vec<String> = self
                        .live
                        .range(prefix.clone()..)
                        .take_while(|(k, _)| k.starts_with(prefix))
                        .map(|(k, _)| k.clone())
                        .collect();
                    for key in keys {
                        let value = self.live.remove(&key).unwrap();
                        self.archive.insert(key, value);
                    }
                }
            }
        }
    }

    fn look(&mut self, key: &str, value: &[u8], documents: &BTreeMap<u64, Vec<u32>>) {
        let parts: Vec<&str> = key.split('/').collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        match parts.as_slice() {
            ["jobs", job] => {
                let record = JobRecord::decode(value).unwrap();
                let before = self.ended.get(&hex(job)).copied();
                assert!(before.is_none_or(|state| state == record.state), "job {} ended and goes on", record.number);
                if ingle_coordinator::core::record::ended(record.state()) {
                    self.ended.insert(record.number, record.state);
                }
            }
            ["parts", job, "b", _] => {
                let (job, record) = (hex(job), BatchRecord::decode(value).unwrap());
                self.look_at_batch(job, &record, documents);
            }
            _ => {}
        }
    }

    fn look_at_batch(&mut self, job: u64, record: &BatchRecord, documents: &BTreeMap<u64, Vec<u32>>) {
        let id = record.id;
        if record.join && record.state() == BatchState::Queued && record.code == "RESULT_OUTDATED" {
            // Another job replaced what it was made from: nothing of it was visible, and it is made again.
            self.winners.remove(&(job, id));
        }
        if let Some(winner) = self.winners.get(&(job, id)) {
            let undone = !matches!(record.state(), BatchState::Committed | BatchState::Published);
            assert!(!undone && *winner == record.attempt, "job {job} batch {id} was committed and is now {record:?}");
        }
        if matches!(record.state(), BatchState::Committed | BatchState::Published) {
            self.winners.insert((job, id), record.attempt);
        }
        if record.takes_pages() {
            let document = self.entries(job, record.segment, documents)[record.entry().unwrap() as usize];
            for page in record.first..record.end() {
                let key = (job, document, page);
                match record.state() {
                    BatchState::Committed => {
                        let before = self.committed_pages.insert(key, id);
                        assert!(before.is_none_or(|b| b == id), "page {key:?} is committed by two batches");
                    }
                    BatchState::Quarantined => drop(self.quarantined_pages.insert(key)),
                    BatchState::Published => panic!("pages become visible with their document only: {record:?}"),
                    BatchState::Queued | BatchState::Running => {}
                }
            }
            return;
        }
        if record.join && !record.joins_document() {
            return;
        }
        match record.state() {
            BatchState::Committed | BatchState::Published => {
                for document in self.documents(job, record, documents) {
                    let before = self.committed.insert((job, document), id);
                    assert!(before.is_none_or(|b| b == id), "job {job}: document {document} committed by two batches");
                }
            }
            BatchState::Quarantined => {
                for document in self.documents(job, record, documents) {
                    self.quarantined.insert((job, document));
                }
            }
            _ => {}
        }
    }

    /// The documents a batch covers.
    fn documents(&self, job: u64, record: &BatchRecord, documents: &BTreeMap<u64, Vec<u32>>) -> Vec<u32> {
        let entries = self.entries(job, record.segment, documents);
        if let Some(entry) = record.entry() {
            return vec![entries[entry as usize]];
        }
        let whole = |entry: &u32| record.splits.iter().all(|split| split.index != *entry);
        (record.first..record.end()).filter(whole).map(|entry| entries[entry as usize]).collect()
    }

    /// The documents of a segment, by entry.
    fn entries(&self, job: u64, segment: u32, documents: &BTreeMap<u64, Vec<u32>>) -> Vec<u32> {
        let key = ingle_coordinator::core::record::segment_key(job, segment);
        let segment = SegmentRecord::decode(self.live[&key].as_slice()).unwrap();
        let blob = number(&segment.info.unwrap().blob.unwrap().digest);
        documents[&blob].clone()
    }

    /// Every record that a new leader loads.
    pub(crate) fn records(&self) -> Vec<(String, Vec<u8>)> {
        self.live.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Nodes that are drained.
    pub(crate) fn cordoned(&self) -> BTreeSet<NodeId> {
        let keys = self.live.keys().filter_map(|key| key.strip_prefix("cordons/"));
        keys.map(|id| NodeId::parse(id).expect("a node's identity")).collect()
    }

    pub(crate) fn job(&self, number: u64) -> Option<JobRecord> {
        let value = self.live.get(&ingle_coordinator::core::record::job_key(number))?;
        Some(JobRecord::decode(value.as_slice()).unwrap())
    }

    /// Numbers of all jobs by idempotency key.
    pub(crate) fn keys(&self) -> BTreeMap<String, Vec<u64>> {
        let mut keys: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (_, value) in self.live.range("jobs/".to_owned()..).take_while(|(k, _)| k.starts_with("jobs/")) {
            let record = JobRecord::decode(value.as_slice()).unwrap();
            keys.entry(record.idempotency_key).or_default().push(record.number);
        }
        keys
    }
}
