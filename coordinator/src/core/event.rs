//! The closed enums that drive the core: what happened, and what is to be done about it once it is durable.

use std::collections::BTreeMap;

use ingle_proto::{Epoch, NodeId, Problem, v1};

/// Names a caller that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// Names an interactive request within this leader's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Time as the driver tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub mono_ms: u64,
    /// Unix milliseconds, for records and people.
    pub unix_ms: i64,
}

/// What a node tells of itself when the leader's stream opens.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// Which node.
    pub node: NodeId,
    /// Of this start of its process.
    pub incarnation: String,
    /// For people.
    pub name: String,
    /// Where it is dialled.
    pub address: String,
    /// Its software's version.
    pub version: String,
    /// What it has.
    pub capacity: v1::Capacity,
    /// Models it sees.
    pub models: Vec<v1::ModelInfo>,
    /// Models it holds.
    pub loaded: Vec<v1::LoadedModel>,
    /// Attempts it still runs or whose results it still holds.
    pub running: Vec<u64>,
    /// Generations among them that another leader dispatched, and that we go on with.
    pub adopted: Vec<Adopted>,
}

/// A call that another leader took and a node still works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Which call.
    pub call: CallId,
    /// Its attempt there.
    pub attempt: u64,
    /// Model that was asked for; may be empty.
    pub model: String,
    /// Bytes of the prompt.
    pub bytes: u64,
    /// Tokens it may write.
    pub max_tokens: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A validated job comes in; an inline payload is a blob already.
    Submit {
        /// Who waits.
        reply: ReplyId,
        /// Validated.
        spec: Box<v1::JobSpec>,
        /// May be empty.
        idempotency_key: String,
        /// BLAKE3 of the specification as given.
        spec_digest: Vec<u8>,
        /// Who asks.
        principal: String,
    },
    /// End a job.
    Cancel {
        /// Who waits.
        reply: ReplyId,
        /// Which.
        job: u64,
    },
    /// Start nothing more of a job.
    Pause {
        /// Who waits.
        reply: ReplyId,
        /// Which.
        job: u64,
    },
    /// Go on.
    Resume {
        /// Who waits.
        reply: ReplyId,
        /// Which.
        job: u64,
    },
    /// The walk goes on.
    ScanProgress {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
        /// Entries seen.
        entries: u64,
    },
    /// A segment is durable.
    ScanSegment {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
        /// What it holds.
        info: Box<v1::SegmentInfo>,
    },
    /// The walk is complete.
    ScanDone {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
        /// What it says of all of it.
        done: Box<v1::ScanDone>,
    },
    /// The walk failed.
    ScanFailed {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
        /// Why.
        problem: Problem,
    },
    /// The leader's stream to a node is open.
    NodeAttached(Box<Attached>),
    /// That stream broke; the node may live.
    NodeDetached {
        /// Which.
        node: NodeId,
    },
    /// The node's record left membership.
    NodeLeft {
        /// Which.
        node: NodeId,
    },
    /// The node answered a beat.
    Beat {
        /// Which.
        node: NodeId,
        /// Of this start of its process.
        incarnation: String,
        /// Milliseconds its engines were busy since it started.
        busy_ms: u64,
    },
    /// Models on a node changed.
    Models {
        /// Which.
        node: NodeId,
        /// Models it sees.
        models: Vec<v1::ModelInfo>,
        /// Models it holds.
        loaded: Vec<v1::LoadedModel>,
        /// Bytes its models take.
        reserved: u64,
    },
    /// Models left a node's memory: all that it remembers of, oldest first.
    Evicted {
        /// Which.
        node: NodeId,
        /// What.
        evictions: Vec<v1::Eviction>,
    },
    /// Engines on a node stand still, or move again: all that do, with how long their present step takes, milliseconds.
    Stalled {
        /// Which.
        node: NodeId,
        /// Milliseconds by model.
        stalls: BTreeMap<String, u64>,
    },
    /// A batch goes on.
    Progress {
        /// Which attempt.
        attempt: u64,
        /// Items done.
        items: u32,
        /// Bytes done.
        bytes: u64,
    },
    /// A batch or join is done on a node.
    Complete {
        /// Which node says so.
        node: NodeId,
        /// What it says.
        complete: Box<v1::Complete>,
    },
    /// An attempt failed.
    Failed {
        /// Which node says so.
        node: NodeId,
        /// Which.
        attempt: u64,
        /// Whose fault.
        kind: v1::FailureKind,
        /// Why, and when to try again.
        problem: Problem,
    },
    /// Publishing ended.
    Published {
        /// Which job.
        job: u64,
        /// Which batch.
        batch: u64,
        /// Which attempt's manifest.
        attempt: u64,
        /// What came of it.
        result: Result<PublishedBatch, Problem>,
    },
    /// A person's call wants a node.
    Call {
        /// Which.
        call: CallId,
        /// Embed or generate.
        kind: v1::JobKind,
        /// Model's name; may be empty.
        model: String,
        /// Bytes of input, for the estimate.
        bytes: u64,
        /// Tokens it may produce.
        max_tokens: u32,
    },
    /// That call has its last frame.
    CallEnded {
        /// Which.
        call: CallId,
    },
    /// Its caller left.
    CallGone {
        /// Which.
        call: CallId,
    },
    /// Give a node no more work.
    Drain {
        /// Who waits.
        reply: ReplyId,
        /// Which.
        node: NodeId,
        /// Unix milliseconds after which its work is taken back; 0 for never, in the past for at once.
        deadline_ms: i64,
        /// Its process shall end when it has nothing left.
        leaves: bool,
    },
    /// A node was asked to end, and says so.
    Leaving {
        /// Which.
        node: NodeId,
        /// Milliseconds that it gives its work to end.
        within_ms: u64,
    },
    /// A node that leaves has nothing left, and told everything.
    Goodbye {
        /// Which.
        node: NodeId,
    },
    /// Loading a model elsewhere, for a node that leaves, has ended.
    Warmed {
        /// The node that leaves.
        node: NodeId,
        /// Which model.
        model: String,
        /// Where it was to be loaded.
        to: NodeId,
        /// What came of it.
        result: Result<(), Problem>,
    },
    /// Give it work again.
    Uncordon {
        /// Who waits.
        reply: ReplyId,
        /// Which.
        node: NodeId,
    },
    /// We ourselves stood still for so long, and heard nobody.
    Stood {
        /// Milliseconds.
        ms: u64,
    },
    /// Time passed.
    Tick,
}

/// What publishing a manifest did, in documents.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PublishedBatch {
    /// The outcome manifest.
    pub outcomes: v1::BlobRef,
    /// Documents whose result met a person's file.
    pub conflict: u32,
}

/// What a dispatch asks of the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Entries of a segment.
    Batch {
        /// Which job.
        job: u64,
        /// Which batch, as of now.
        batch: Box<BatchWork>,
    },
    /// A person's call.
    Call {
        /// Which.
        call: CallId,
    },
}

/// A batch as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchWork {
    /// Within the job.
    pub batch: u64,
    /// The specification.
    pub spec: v1::JobSpec,
    /// Who asked.
    pub principal: String,
    /// Path bucket.
    pub bucket: u32,
    /// First entry.
    pub first: u32,
    /// Entries; 0 for joins.
    pub count: u32,
    /// The segment, or for joins all segments of the bucket.
    pub segments: Vec<v1::BlobRef>,
    /// For joins: manifests of the bucket's committed batches, or of the document's ranges in page order.
    pub manifests: Vec<v1::BlobRef>,
    /// It is a join.
    pub join: bool,
    /// Only these pages of the one document.
    pub pages: Option<v1::PageRange>,
    /// For joins: of this document rather than a bucket.
    pub document: Option<v1::DocumentJoin>,
}

/// What is to be done, once the changes of the same step are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Answer a caller.
    Reply {
        /// Who.
        reply: ReplyId,
        /// What.
        answer: Result<Answer, Problem>,
    },
    /// Walk a job's input.
    Scan {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
        /// What to ask the gateway, but for the epoch.
        request: Box<v1::ScanRequest>,
    },
    /// Give up a walk. What it still tells is not listened to.
    StopScan {
        /// Which job.
        job: u64,
        /// Which walk of it.
        scan: u64,
    },
    /// Send work to a node.
    Dispatch {
        /// Where.
        node: NodeId,
        /// Number of the attempt.
        attempt: u64,
        /// Milliseconds from now after which it is given up.
        allowed_ms: u64,
        /// Model by name and digest.
        model: v1::ModelRef,
        /// Interactive or batch.
        priority: v1::Priority,
        /// Milliseconds it waited here.
        queued_ms: u64,
        /// What.
        work: Work,
    },
    /// Tell a node to stop an attempt.
    CancelAttempt {
        /// Where.
        node: NodeId,
        /// Which.
        attempt: u64,
        /// Why.
        reason: String,
    },
    /// Make a manifest's outputs visible.
    Publish {
        /// Which job.
        job: u64,
        /// Which batch.
        batch: u64,
        /// What to ask the gateway, but for the epoch.
        request: Box<v1::PublishRequest>,
    },
    /// A call can't be served; it is forgotten here.
    CallFailed {
        /// Which.
        call: CallId,
        /// Why.
        problem: Problem,
    },
    /// Tell a node to drain or to take work again.
    SetDrain {
        /// Which.
        node: NodeId,
        /// Which of both.
        drain: bool,
    },
    /// Tell a node that nothing is waited for any more: its process is to end.
    Leave {
        /// Which.
        node: NodeId,
    },
    /// Answer a node's goodbye.
    Farewell {
        /// Which.
        node: NodeId,
    },
    /// Load a model on a node, since the only one that holds it leaves.
    Warm {
        /// The node that leaves.
        node: NodeId,
        /// Which model.
        model: v1::ModelRef,
        /// Where.
        to: NodeId,
        /// How long that may take, milliseconds.
        within_ms: u64,
    },
    /// Watchers of a job should look.
    JobChanged {
        /// Which.
        job: u64,
    },
}

/// Answers to callers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A job, and whether it existed before.
    Job(Box<v1::Job>, bool),
    /// A node.
    Node(Box<v1::NodeStatus>),
}

/// What stays the same during a leader's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// This leader's epoch.
    pub epoch: Epoch,
}
