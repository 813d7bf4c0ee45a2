//! What a ledger's files hold: protobuf messages of our own, kept for good, so fields are added and never renumbered.

/// Where inputs were found: names count only below the same root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Root {
    /// Name of the export; empty for texts given with the job.
    #[prost(string, tag = "1")]
    pub export: String,
    /// Directory that names are relative to; for texts given with the job the digest of all of them.
    #[prost(bytes = "vec", tag = "2")]
    pub base: Vec<u8>,
}

/// A document that an output was made from, or that left it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Input {
    /// Relative to the root.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// In bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub mtime_ns: i64,
    /// BLAKE3.
    #[prost(bytes = "vec", tag = "4")]
    pub content_digest: Vec<u8>,
    /// The output no longer holds it.
    #[prost(bool, tag = "5")]
    pub gone: bool,
}

/// What is meant to happen to one visible name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Intent {
    /// Visible name below the place.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Staged name, if something is to be shown.
    #[prost(string, tag = "2")]
    pub staged: String,
    /// Digest of what is to be shown.
    #[prost(bytes = "vec", tag = "3")]
    pub digest: Vec<u8>,
    /// Its size in bytes.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// Digest of what we had published under the name before; empty if nothing.
    #[prost(bytes = "vec", tag = "5")]
    pub previous: Vec<u8>,
    /// The name is to go.
    #[prost(bool, tag = "6")]
    pub remove: bool,
    /// The file stays and only what it was made from is told anew.
    #[prost(bool, tag = "7")]
    pub keep: bool,
    /// What it is made from.
    #[prost(message, repeated, tag = "8")]
    pub inputs: Vec<Input>,
    /// It was made from nothing though we had shown a file: that one was gone, and with it what the inputs of other jobs gave.
    #[prost(bool, tag = "9")]
    pub anew: bool,
    /// Why it is not shown under its name, if a document of another input has that: empty otherwise.
    #[prost(string, tag = "10")]
    pub taken: String,
}

/// All intents of one attempt, written before the first of them is acted on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Publish {
    /// Names the publish: generation of the coordinator's store, job, attempt and digest of the manifest.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The job.
    #[prost(string, tag = "2")]
    pub job: String,
    /// The attempt that won.
    #[prost(uint64, tag = "3")]
    pub attempt: u64,
    /// `JobKind` of the wire.
    #[prost(int32, tag = "4")]
    pub kind: i32,
    /// Digest of the model.
    #[prost(bytes = "vec", tag = "5")]
    pub model: Vec<u8>,
    /// Digest of the parameters.
    #[prost(bytes = "vec", tag = "6")]
    pub parameters: Vec<u8>,
    /// Where the job's scan looked; absent if there was none.
    #[prost(message, optional, tag = "7")]
    pub root: Option<Root>,
    /// When that scan began, Unix milliseconds.
    #[prost(int64, tag = "8")]
    pub scanned_ms: i64,
    /// Digest of the manifest blob.
    #[prost(bytes = "vec", tag = "9")]
    pub manifest: Vec<u8>,
    /// One per visible name.
    #[prost(message, repeated, tag = "10")]
    pub intents: Vec<Intent>,
    /// With whose rights on the NAS; absent where there are none to be had.
    #[prost(message, optional, tag = "11")]
    pub user: Option<User>,
}

/// A user of the NAS.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct User {
    /// User id.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// Further groups.
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
}

impl From<crate::export::User> for User {
    fn from(user: crate::export::User) -> Self {
        Self { uid: user.uid, gid: user.gid, groups: user.groups }
    }
}

impl From<&User> for crate::export::User {
    fn from(user: &User) -> Self {
        Self { uid: user.uid, gid: user.gid, groups: user.groups.clone() }
    }
}

/// What became of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Result {
    /// Never written.
    Unspecified = 0,
    /// Our result has the name.
    Published = 1,
    /// It stayed as it was.
    Kept = 2,
    /// A person's file has the name.
    Conflict = 3,
    /// Nothing of ours has the name any more.
    Deleted = 4,
    /// The storage would not have it: what was known of the name stays known.
    Refused = 5,
}

/// One outcome.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Outcome {
    /// Visible name below the place.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// What became of it.
    #[prost(enumeration = "Result", tag = "2")]
    pub result: i32,
    /// Where our result lies instead.
    #[prost(bytes = "vec", tag = "3")]
    pub conflict_name: Vec<u8>,
    /// For people.
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// All outcomes of one publish: once this is durable, the publish is over.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Done {
    /// Of the publish.
    #[prost(string, tag = "1")]
    pub key: String,
    /// One per intent; left out of snapshots.
    #[prost(message, repeated, tag = "2")]
    pub outcomes: Vec<Outcome>,
    /// Digest of the OutcomeManifest blob.
    #[prost(bytes = "vec", tag = "3")]
    pub blob: Vec<u8>,
    /// Size of that blob in bytes.
    #[prost(uint64, tag = "4")]
    pub blob_size: u64,
    /// How many were published or kept.
    #[prost(uint64, tag = "5")]
    pub published: u64,
    /// How many met a person's file.
    #[prost(uint64, tag = "6")]
    pub conflict: u64,
    /// How many left.
    #[prost(uint64, tag = "7")]
    pub removed: u64,
    /// When, Unix milliseconds.
    #[prost(int64, tag = "8")]
    pub at_ms: i64,
}

/// One file of the log.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogSegment {
    /// Its place in the log, from 1.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// Intents, or …
    #[prost(message, optional, tag = "2")]
    pub publish: Option<Publish>,
    /// … outcomes.
    #[prost(message, optional, tag = "3")]
    pub done: Option<Done>,
}

/// What an output was made from, as the ledger keeps it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InputState {
    /// Relative to the root.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// In bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub mtime_ns: i64,
    /// BLAKE3.
    #[prost(bytes = "vec", tag = "4")]
    pub content_digest: Vec<u8>,
    /// Digest of the model that worked on it.
    #[prost(bytes = "vec", tag = "5")]
    pub model: Vec<u8>,
    /// Digest of the parameters.
    #[prost(bytes = "vec", tag = "6")]
    pub parameters: Vec<u8>,
    /// Where it was found.
    #[prost(message, optional, tag = "7")]
    pub root: Option<Root>,
    /// When the scan that found it began, Unix milliseconds.
    #[prost(int64, tag = "8")]
    pub scanned_ms: i64,
    /// Another result of it met a person's file: it is to be done again.
    #[prost(bool, tag = "9")]
    pub stale: bool,
}

/// A visible file of ours.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutputState {
    /// Visible name below the place.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Of what we published.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    /// In bytes.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// The attempt that made it.
    #[prost(uint64, tag = "4")]
    pub attempt: u64,
    /// The job that made it.
    #[prost(string, tag = "5")]
    pub job: String,
    /// `JobKind` of the wire.
    #[prost(int32, tag = "6")]
    pub kind: i32,
    /// What it was made from.
    #[prost(message, repeated, tag = "7")]
    pub inputs: Vec<InputState>,
}

/// One bucket of a ledger, whole.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Snapshot {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub bucket: u32,
    /// Of how many.
    #[prost(uint32, tag = "2")]
    pub buckets: u32,
    /// Log segments up to this one are in it.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// Visible files.
    #[prost(message, repeated, tag = "4")]
    pub outputs: Vec<OutputState>,
    /// Publishes that are over, without their outcomes.
    #[prost(message, repeated, tag = "5")]
    pub done: Vec<Done>,
}

/// What is fixed about a place for good (`.inglenook/place`).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Constants {
    /// Path buckets of its embeddings.
    #[prost(uint32, tag = "1")]
    pub embed_buckets: u32,
}

/// What the scan of a job leaves for its publishes (`.inglenook/jobs/JOB`).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JobRecord {
    /// Where it looked.
    #[prost(message, optional, tag = "1")]
    pub root: Option<Root>,
    /// When it began, Unix milliseconds.
    #[prost(int64, tag = "2")]
    pub scanned_ms: i64,
    /// Other roots of whose documents it found some gone: names of theirs may be taken over.
    #[prost(message, repeated, tag = "3")]
    pub replaces: Vec<Root>,
}
