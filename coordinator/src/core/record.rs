//! What the coordinator stores, and what not: jobs, segments of their listings, batches, cordons, a few high-water marks.
//!
//! Stored: specifications, digests of blobs (listings, manifests, outcomes), states, counts, failures, which nodes people
//! drained. Not stored: documents, prompts of interactive calls, results, what nodes are and hold (they report again),
//! progress within a batch.
//! Values are protobuf, so that later fields are harmless to older readers.

use ingle_proto::{NodeId, v1};

/// A change to the store. Keys are text; `job/<number>/…` are a job's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write a record.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Remove a record.
    Delete {
        /// Its key.
        key: String,
    },
    /// Move every record below a prefix to the archive, which is not loaded at start.
    Archive {
        /// The prefix.
        prefix: String,
    },
    /// Remove every record below a prefix for good: what a standing job's passes leave would grow without end.
    Clear {
        /// The prefix.
        prefix: String,
    },
}

/// Key of a job's record.
#[must_use]
pub fn job_key(job: u64) -> String {
    format!("jobs/{job:016x}")
}

/// Prefix of everything else of a job.
#[must_use]
pub fn parts_prefix(job: u64) -> String {
    format!("parts/{job:016x}/")
}

/// Key of a segment's record.
#[must_use]
pub fn segment_key(job: u64, index: u32) -> String {
    format!("parts/{job:016x}/s/{index:08x}")
}

/// Key of a batch's record.
#[must_use]
pub fn batch_key(job: u64, batch: u64) -> String {
    format!("parts/{job:016x}/b/{batch:016x}")
}

/// Key of a node's cordon.
#[must_use]
pub fn cordon_key(node: &NodeId) -> String {
    format!("cordons/{node}")
}

/// Key of the high-water marks.
pub const MARKS_KEY: &str = "marks";

/// Key of what stands in a store while jobs of another are still on their way into it.
pub const MIGRATING_KEY: &str = "migrating";

/// A job.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobRecord {
    /// Counts from 1; `j-<number>` to people.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// As validated.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<v1::JobSpec>,
    /// State.
    #[prost(enumeration = "v1::JobState", tag = "3")]
    pub state: i32,
    /// Unix milliseconds.
    #[prost(int64, tag = "4")]
    pub created_ms: i64,
    /// First dispatch, Unix milliseconds.
    #[prost(int64, tag = "5")]
    pub started_ms: i64,
    /// Unix milliseconds.
    #[prost(int64, tag = "6")]
    pub ended_ms: i64,
    /// Why it failed, was cancelled or waits.
    #[prost(string, tag = "7")]
    pub reason: String,
    /// Error code with the reason.
    #[prost(string, tag = "8")]
    pub code: String,
    /// May be empty.
    #[prost(string, tag = "9")]
    pub idempotency_key: String,
    /// BLAKE3 of the specification as given.
    #[prost(bytes = "vec", tag = "10")]
    pub spec_digest: Vec<u8>,
    /// Who asked.
    #[prost(string, tag = "11")]
    pub principal: String,
    /// Which model's bytes do it; known before listing.
    #[prost(bytes = "vec", tag = "12")]
    pub model_digest: Vec<u8>,
    /// Name of the model, resolved.
    #[prost(string, tag = "13")]
    pub model: String,
    /// The listing is complete.
    #[prost(bool, tag = "14")]
    pub listed: bool,
    /// Path buckets of the place.
    #[prost(uint32, tag = "15")]
    pub buckets: u32,
    /// Counts when it ended.
    #[prost(message, optional, tag = "16")]
    pub final_counts: Option<v1::ItemCounts>,
    /// Paused by a person.
    #[prost(bool, tag = "17")]
    pub paused: bool,
    /// Busy milliseconds of nodes spent on it.
    #[prost(uint64, tag = "18")]
    pub busy_ms: u64,
    /// Of a job that goes on.
    #[prost(message, optional, tag = "19")]
    pub standing: Option<StandingRecord>,
}

/// How far a standing job is. Its segments and batches are those of the pass at work, or of the last one that had work.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StandingRecord {
    /// Passes that are done: the next listing is of the one after.
    #[prost(uint64, tag = "1")]
    pub passes: u64,
    /// What that pass's listing said of documents that are in none of its segments.
    #[prost(message, optional, tag = "2")]
    pub carried: Option<v1::ScanDone>,
    /// What the last look found.
    #[prost(message, optional, tag = "3")]
    pub looked: Option<v1::ScanDone>,
    /// Unix milliseconds of when it ended; of later ones that found the same nothing is kept.
    #[prost(int64, tag = "4")]
    pub looked_ms: i64,
    /// Counts of the passes that are done, added up.
    #[prost(message, optional, tag = "5")]
    pub done: Option<v1::ItemCounts>,
    /// Times in a row that the pass at work could not be done.
    #[prost(uint32, tag = "6")]
    pub failed: u32,
}

/// A segment of a job's listing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SegmentRecord {
    /// Position in the listing.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// What the gateway said of it.
    #[prost(message, optional, tag = "2")]
    pub info: Option<v1::SegmentInfo>,
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum BatchState {
    /// Waits for a node, perhaps until `not_before_ms`.
    Queued = 0,
    /// Leased to a node.
    Running = 1,
    /// Its manifest is durable and won; what follows depends on the kind.
    Committed = 2,
    /// Its results are visible.
    Published = 3,
    /// Set aside.
    Quarantined = 4,
}

/// A range of a segment's entries to do, or (`join`) the visible file of a bucket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BatchRecord {
    /// Within the job, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Makes a visible file from what other batches staged.
    #[prost(bool, tag = "2")]
    pub join: bool,
    /// Index of the segment; of `join` only where it covers one segment.
    #[prost(uint32, tag = "3")]
    pub segment: u32,
    /// First entry.
    #[prost(uint32, tag = "4")]
    pub first: u32,
    /// Entries; 0 for joins.
    #[prost(uint32, tag = "5")]
    pub count: u32,
    /// Path bucket.
    #[prost(uint32, tag = "6")]
    pub bucket: u32,
    /// State.
    #[prost(enumeration = "BatchState", tag = "7")]
    pub state: i32,
    /// Current or winning attempt.
    #[prost(uint64, tag = "8")]
    pub attempt: u64,
    /// Node of that attempt.
    #[prost(string, tag = "9")]
    pub node: String,
    /// Failures of its single item.
    #[prost(uint32, tag = "10")]
    pub failures: u32,
    /// Nodes that died with its single item.
    #[prost(uint32, tag = "11")]
    pub deaths: u32,
    /// Attempts so far, for back-off of what is free of charge.
    #[prost(uint32, tag = "12")]
    pub tries: u32,
    /// Unix milliseconds before which it isn't dispatched.
    #[prost(int64, tag = "13")]
    pub not_before_ms: i64,
    /// Of the winning attempt.
    #[prost(message, optional, tag = "14")]
    pub manifest: Option<v1::BlobRef>,
    /// What publishing said.
    #[prost(message, optional, tag = "15")]
    pub outcomes: Option<v1::BlobRef>,
    /// Items with a result.
    #[prost(uint32, tag = "16")]
    pub committed: u32,
    /// Items found unchanged by content.
    #[prost(uint32, tag = "17")]
    pub unchanged: u32,
    /// Items skipped by the node.
    #[prost(uint32, tag = "18")]
    pub skipped: u32,
    /// Items that can't be done.
    #[prost(uint32, tag = "19")]
    pub failed: u32,
    /// Items that met a person's file.
    #[prost(uint32, tag = "20")]
    pub conflict: u32,
    /// Documents that left.
    #[prost(uint32, tag = "21")]
    pub deleted: u32,
    /// Bytes of its documents.
    #[prost(uint64, tag = "22")]
    pub bytes: u64,
    /// Why it waits or was set aside.
    #[prost(string, tag = "23")]
    pub reason: String,
    /// Error code with the reason.
    #[prost(string, tag = "24")]
    pub code: String,
    /// Files to publish.
    #[prost(uint32, tag = "25")]
    pub outputs: u32,
    /// A node died while it had these items: they run alone there, so that they alone are blamed the next time.
    #[prost(bool, tag = "26")]
    pub suspect: bool,
    /// 0, or one more than the segment's entry whose pages `first` and `count` count in; of a join, whose ranges it joins.
    #[prost(uint32, tag = "27")]
    pub document: u32,
    /// Those of its documents whose pages are batches of their own.
    #[prost(message, repeated, tag = "28")]
    pub splits: Vec<SplitRecord>,
    /// Milliseconds that its current attempt may take.
    #[prost(uint64, tag = "29")]
    pub allowed_ms: u64,
    /// Of the items with a result, those that lack pages.
    #[prost(uint32, tag = "30")]
    pub incomplete: u32,
    /// Nodes that died when its single item was alone on its way to them, or there without their word.
    #[prost(uint32, tag = "31")]
    pub unseen_deaths: u32,
}

/// A document that was too long for one attempt.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SplitRecord {
    /// Entry of the segment.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// How many it has.
    #[prost(uint32, tag = "2")]
    pub pages: u32,
}

/// A node that shall take no work until a person says otherwise. There is none for a node that may work.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CordonRecord {
    /// Which.
    #[prost(string, tag = "1")]
    pub node: String,
    /// Unix milliseconds after which its work is taken back; 0 for never.
    #[prost(int64, tag = "2")]
    pub deadline_ms: i64,
    /// Its process shall end when it has nothing left.
    #[prost(bool, tag = "3")]
    pub leaves: bool,
    /// The start of its process that was told to end; empty if none was. Another start of it has come back on purpose.
    #[prost(string, tag = "4")]
    pub told: String,
}

/// High-water marks: numbers below them may have been used.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Marks {
    /// Of attempts.
    #[prost(uint64, tag = "1")]
    pub attempt: u64,
    /// Of jobs.
    #[prost(uint64, tag = "2")]
    pub job: u64,
}

impl BatchRecord {
    /// One past the last entry.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.first + self.count
    }

    /// The entry whose pages it is about.
    #[must_use]
    pub fn entry(&self) -> Option<u32> {
        self.document.checked_sub(1)
    }

    /// Its range counts a segment's entries.
    #[must_use]
    pub fn takes_documents(&self) -> bool {
        !self.join && self.document == 0
    }

    /// Its range counts a document's pages.
    #[must_use]
    pub fn takes_pages(&self) -> bool {
        !self.join && self.document != 0
    }

    /// It makes one document's result from ranges of its pages.
    #[must_use]
    pub fn joins_document(&self) -> bool {
        self.join && self.document != 0
    }

    /// Documents that are settled with it.
    #[must_use]
    pub fn stands_for(&self) -> u32 {
        if self.takes_documents() {
            self.count.saturating_sub(self.splits.len() as u32)
        } else {
            u32::from(self.joins_document())
        }
    }

    /// Whether it needs nothing more.
    #[must_use]
    pub fn terminal(&self) -> bool {
        matches!(self.state(), BatchState::Published | BatchState::Quarantined)
    }
}

/// Whether a job needs nothing more.
#[must_use]
pub fn ended(state: v1::JobState) -> bool {
    matches!(state, v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}
