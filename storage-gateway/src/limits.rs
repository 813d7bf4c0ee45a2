//! Every cap of this daemon, with its unit.

use std::time::Duration;

use ingle_proto::job::DOCUMENT_BYTES_MAX;
use serde::{Deserialize, Serialize};

/// Caps that an operator may set, `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest document with pages that is read, in bytes; larger ones are listed as skipped. Texts have a bound of their own.
    pub document_bytes_max: u64,
    /// Most entries of one scan.
    pub scan_entries_max: usize,
    /// Largest staged result or blob, in bytes.
    pub staged_bytes_max: u64,
    /// Reads open at once per export.
    pub reads_max: usize,
    /// Bytes of reads in memory at once per export, in MiB.
    pub read_mib_max: usize,
    /// Reads that may wait for their turn per export.
    pub reads_waiting_max: usize,
    /// Scans at once.
    pub scans_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            document_bytes_max: DOCUMENT_BYTES_MAX,
            scan_entries_max: 1_000_000,
            staged_bytes_max: 1 << 30,
            reads_max: 128,
            read_mib_max: 128,
            reads_waiting_max: 1024,
            scans_max: 4,
        }
    }
}

/// Pieces of one read that are asked of the export before the first is sent: 2 MiB, what a second cache holds.
pub const READ_AHEAD_PIECES: usize = 8;
/// Pieces fetched ahead of readers that go through files in ranges, all together: 16 MiB.
pub const AHEAD_IN_FLIGHT: usize = 64;
/// Connections to the range endpoint.
pub const RANGE_CONNECTIONS_MAX: usize = 512;
/// How long a read waits for its turn before it is told to come back.
pub const READ_WAIT: Duration = Duration::from_secs(5);
/// How long an export may take to say whether it answers.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Writes of one file that are under way at once.
pub const WRITES_IN_FLIGHT: usize = 8;
/// Outputs that are published at once.
pub const PUBLISH_IN_FLIGHT: usize = 8;
/// Directories that a scan lists at once.
pub const LISTS_IN_FLIGHT: usize = 16;
/// Entries of one directory.
pub const DIRECTORY_ENTRIES_MAX: usize = 1_000_000;
/// Pause before a scan looks a second time at the directories from which documents are missing.
pub const SECOND_LOOK_AFTER: Duration = Duration::from_millis(250);
/// How long after one complete listing of a standing job another one must miss a document too, so that it is deleted.
pub const SUSPECTED_FOR: Duration = Duration::from_secs(2);
/// Documents that may be missing at once from a folder, however few it has, before that counts as a folder that is gone.
pub const MISSING_AT_ONCE: usize = 10;
/// How far a NAS's clock may lie from ours where it can't be asked.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Most skipped documents that a later pass of a standing job tells of anew.
pub const SKIPPED_TOLD_MAX: usize = 1000;
/// Largest record of what a look saw, in bytes.
pub const SEEN_BYTES_MAX: u64 = 256 << 20;
/// Deepest directory that a scan enters, in components below its base.
pub const SCAN_DEPTH_MAX: usize = 256;
/// Entries of one page of `List`.
pub const LIST_PAGE_ENTRIES: usize = 1000;
/// Entries of one segment.
pub const SEGMENT_ENTRIES: usize = 1000;
/// Documents that a path bucket is meant to hold.
pub const BUCKET_ENTRIES: usize = 512;
/// Most path buckets of a place.
pub const BUCKETS_MAX: u32 = 256;
/// Largest blob that is read whole (manifests, segments, payloads), in bytes.
pub const WHOLE_BLOB_BYTES_MAX: u64 = 64 << 20;
/// Largest file of a ledger, in bytes.
pub const LEDGER_FILE_BYTES_MAX: u64 = 256 << 20;
/// Outputs of one manifest.
pub const MANIFEST_OUTPUTS_MAX: usize = 10_000;
/// Log segments of a ledger before they are folded into snapshots.
pub const LEDGER_LOG_SEGMENTS: usize = 128;
/// How long a ledger remembers an attempt that it published.
pub const PUBLISHED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Age at which staged leftovers go.
pub const STAGED_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Age at which trash goes.
pub const TRASH_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the sweeper looks, and how long after the start it looks first.
pub const SWEEP_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Pause between two removals of the sweeper: it never competes with people.
pub const SWEEP_PACE: Duration = Duration::from_millis(20);
/// Progress of a scan is told this often at least.
pub const SCAN_PROGRESS: Duration = Duration::from_secs(1);
/// Longest file name of a document: what is appended to it must fit into 255 bytes.
pub const DOCUMENT_NAME_BYTES_MAX: usize = 215;
/// Longest path of an output place, in bytes: names of ours must fit below it.
pub const PLACE_PATH_BYTES_MAX: usize = 2048;
