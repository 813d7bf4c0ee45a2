//! Every cap of the node in one place, each with its unit.

use std::time::Duration;

pub use ingle_proto::job::TEXT_BYTES_MAX;

/// Documents that are kept on the local disk for another range of their pages.
pub const SPOOL_KEPT_DOCUMENTS: usize = 16;
/// How long they are kept while nobody asks for one.
pub const SPOOL_KEPT: Duration = Duration::from_secs(300);
/// When to come back where the local disk had no room for a document.
pub const SPOOL_RETRY: Duration = Duration::from_secs(10);
/// Bytes of texts read ahead of the model, for all of one attempt.
pub const READ_AHEAD_BYTES_MAX: u64 = 128 << 20;
/// Documents read ahead of the model, per attempt.
pub const READ_AHEAD_DOCUMENTS: usize = 6;
/// Largest listing, manifest or payload blob that is read, in bytes.
pub const BLOB_BYTES_MAX: u64 = 64 << 20;
/// Largest Parquet part that a join reads or writes, in bytes; it goes through a file, not through memory.
pub const PART_BYTES_MAX: u64 = 16 << 30;
/// Most segments and manifests that one join takes.
pub const JOIN_BLOBS_MAX: usize = 10_000;

/// Tokens of one request to an embedding model: about what stays in the caches.
pub const EMBED_REQUEST_TOKENS: usize = 1024;
/// Texts of one request to an embedding model.
pub const EMBED_REQUEST_TEXTS: usize = 64;
/// Tokens that are planned together, so that texts of like length meet.
pub const EMBED_WINDOW_TOKENS: usize = 8192;
/// Embedding requests of one attempt in the model at once: one computes, one waits.
pub const EMBED_REQUESTS_IN_FLIGHT: usize = 2;

/// Most pages of a document.
pub const DOCUMENT_PAGES_MAX: u32 = 10_000;
/// Pages that one attempt reads of a document; longer ones come back as ranges.
pub const PAGES_WHOLE_MAX: u32 = 16;
/// Bytes of one page's text and places, as they are staged.
pub const PAGE_TEXT_BYTES_MAX: usize = 3 << 20;
/// Pixels per inch at which pages are drawn to be read.
pub const OCR_DPI: f32 = 200.0;
/// The same where only their own text is wanted.
pub const TEXT_DPI: f32 = 72.0;
/// Documents of calls that are open at a time.
pub const PARSERS_FOR_CALLS: u32 = 2;
/// How long a document waits for a process to open it.
pub const PARSER_WAIT: Duration = Duration::from_secs(300);
/// When to come back where none was free, or none could be started.
pub const PARSER_RETRY: Duration = Duration::from_secs(5);

/// Bytes of a text that are tokenised at once when it is split into passages.
pub const TOKENISE_BYTES: usize = 64 << 10;
/// Largest rendered prompt, in bytes.
pub const PROMPT_BYTES_MAX: usize = 8 << 20;
/// Instructions that a prompt template may take.
pub const TEMPLATE_FUEL: u64 = 1_000_000;

/// Commands that may wait for a model's thread.
pub const MAILBOX_COMMANDS: usize = 64;
/// Requests that may wait for a slot of a model.
pub const WAITING_REQUESTS: usize = 256;
/// Events of one request that its reader may leave unread before the request is dropped.
pub const UNREAD_EVENTS: usize = 2048;

/// Attempts that a node of so many slots takes before it says it is full: a coordinator hands out up to two batches and two
/// calls for each, and some overlap when another leads.
#[must_use]
pub const fn attempts_max(slots: u32) -> usize {
    4 * slots as usize + 16
}
/// Finished attempts whose numbers are remembered, so that a repeated dispatch is recognised.
pub const FINISHED_REMEMBERED: usize = 4096;
/// Messages waiting for the coordinator, in bytes; past it the oldest frames go.
pub const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// How long frames of a generation are kept for a coordinator that comes back.
pub const FRAMES_KEPT: Duration = Duration::from_secs(60);
/// Generations that ended within that time and are told to a leader that comes.
pub const ENDED_STREAMS_KEPT: usize = 64;
/// How long a result is kept after it was handed to a stream: the stream may have been dead already.
pub const RESULTS_KEPT: Duration = Duration::from_secs(30);
/// Messages between the outbox and the transport.
pub const STREAM_MESSAGES: usize = 64;
/// Least time between two progress messages of one attempt.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long the coordinator may take to answer our goodbye before we end without.
pub const FAREWELL_WITHIN: Duration = Duration::from_secs(6);
/// How long the first message of a stream may take.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Tries of one storage call within an attempt.
pub const STORAGE_TRIES: u32 = 5;
/// First pause between two tries.
pub const STORAGE_PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
pub const STORAGE_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Bound on each answer, and on each message of a stream, from the gateway.
pub const STORAGE_ANSWER: Duration = Duration::from_secs(30);
/// Least pace of staging, in bytes per second: bounds a whole call together with [`STORAGE_ANSWER`].
pub const STAGE_PACE: u64 = 256 << 10;

/// Deepest folder below the models' location that may be a model.
pub const MODELS_DEPTH: usize = 4;
/// Most entries of the models' location that are looked at.
pub const MODELS_ENTRIES: usize = 20_000;
/// Most models that one node lists.
pub const MODELS_MAX: usize = 512;
/// Bytes of one ranged read of weights.
pub const WEIGHTS_RANGE_BYTES: u64 = 4 << 20;
/// Ranged reads of weights in flight.
pub const WEIGHTS_RANGES_IN_FLIGHT: usize = 8;
/// Idle connections to a gateway's range endpoint that are kept.
pub const BULK_IDLE_MAX: usize = 8;
/// Models that left memory and are told of.
pub const EVICTIONS_KEPT: usize = 64;
