//! Every cap of the coordinator, with its unit.

/// Jobs that are open at once.
pub const JOBS_OPEN_MAX: usize = 1_000;
/// Ended jobs kept for `jobs list`.
pub const JOBS_ENDED_MAX: usize = 10_000;
/// Interactive calls that wait or run.
pub const CALLS_MAX: usize = 1_024;
/// Interactive calls that wait for a node.
pub const CALLS_WAITING_MAX: usize = 256;
/// Nodes.
pub const NODES_MAX: usize = 4_096;
/// Nodes up to which each decision weighs all of them.
pub const NODES_ALL_MAX: usize = 64;
/// Of more nodes so many with room are looked at for one decision, and so many of them weighed against each other.
pub const NODES_LOOKED_AT: usize = 64;
/// See there.
pub const NODES_WEIGHED: usize = 16;
/// Of so many nodes one at a time is kept for items that a node died with.
pub const NODES_PER_WARD: usize = 8;
/// Nodes that people drained, attached or not.
pub const CORDONS_MAX: usize = 4_096;
/// How long ago a model was used to count as hot: a node that leaves has it loaded elsewhere first. Milliseconds.
pub const HOT_MS: u64 = 10 * 60_000;
/// How long loading a hot model elsewhere may hold up a drain without a deadline, milliseconds.
pub const WARM_WITHIN_MS: u64 = 10 * 60_000;
/// Nodes that are tried for one model before a drain goes on without it.
pub const WARM_TRIES_MAX: usize = 3;
/// Names of models whose use is remembered.
pub const MODELS_USED_MAX: usize = 4_096;
/// How often a node that shall end is told so again, milliseconds.
pub const LEAVE_AGAIN_MS: u64 = 5_000;
/// Segments of one job: a million documents.
pub const SEGMENTS_MAX: u32 = 1_000_000;
/// Failures of an item alone before it is set aside.
pub const ITEM_FAILURES_MAX: u32 = 5;
/// Nodes that may die with an item alone before it is set aside.
pub const ITEM_DEATHS_MAX: u32 = 3;
/// The same of attempts that those nodes never said they had: they may have died on their way, so they count for less.
pub const ITEM_UNSEEN_DEATHS_MAX: u32 = 9;
/// How long a node may still be at what it was told to stop, milliseconds.
pub const CANCEL_WITHIN_MS: u64 = 3_000;
/// Silence after which a node gets no new work, milliseconds.
pub const SUSPECT_MS: u64 = 3_000;
/// Silence after which its streams move, milliseconds.
pub const STREAMS_MOVE_MS: u64 = 4_000;
/// Silence after which its batches are leased again, milliseconds.
pub const LOST_MS: u64 = 10_000;
/// How long a new leader waits for nodes to report what they run, milliseconds.
pub const REATTACH_MS: u64 = 20_000;
/// How long a batch should take, milliseconds.
pub const BATCH_TARGET_MS: f64 = 4_000.0;
/// What a batch should take at least, milliseconds: sharing out less than that costs more than it brings.
pub const BATCH_LEAST_MS: f64 = 500.0;
/// Items of one batch.
pub const BATCH_ITEMS_MAX: u32 = 256;
/// Pages of one batch of a document in ranges: as few as are worth reading the document for, and as many as may be lost with
/// a node.
pub const RANGE_PAGES: (u32, u32) = (4, 16);
/// Most pages of a document.
pub const DOCUMENT_PAGES_MAX: u32 = 10_000;
/// Of this many failed ranges the join is told why, in at most so many characters.
pub const PAGE_REASONS: (u32, usize) = (100, 400);
/// Attempts a node holds per slot: one runs, one waits so that the node is never idle.
pub const ATTEMPTS_PER_SLOT: usize = 2;
/// Attempt numbers reserved at once, so that each dispatch needs no write of the mark.
pub const ATTEMPTS_RESERVED: u64 = 1_000;
/// First and longest back-off, milliseconds.
pub const BACKOFF_MS: (i64, i64) = (500, 30_000);
/// Longest a pass of a standing job that failed again and again waits for its next try, milliseconds; longer only where the
/// job's interval is.
pub const PASS_AGAIN_MS_MAX: u64 = 60 * 60_000;
/// Longest an attempt may take whatever was expected, milliseconds.
pub const ATTEMPT_FLOOR_MS: u64 = 10 * 60_000;
/// Longest a person's call takes from its coming to its last frame, milliseconds: nobody waits longer, and what a call
/// holds (a place at its node, frames here) is bounded by it. `inference.proto` tells callers.
pub const CALL_WITHIN_MS: u64 = 10 * 60_000;
/// How much longer than allowed a node goes on by itself, milliseconds: we judge lateness, and it ends what nobody judges.
pub const NODE_GRACE_MS: u64 = 60_000;
/// Days an idempotency key outlives its job, milliseconds.
pub const IDEMPOTENCY_MS: i64 = 7 * 24 * 3_600_000;
/// Watchers of jobs at once.
pub const WATCHERS_MAX: usize = 1_024;
/// Events the driver takes before it commits.
pub const EVENTS_PER_COMMIT: usize = 64;
/// Changes in one commit.
pub const CHANGES_PER_COMMIT: usize = 100;
/// Events, questions and queries that wait for the driver; whoever comes then waits for room.
pub const INBOX_MAX: usize = 1_024;
/// Callers that wait for the driver's answer at once.
pub const ASKS_MAX: usize = 4_096;
/// How long a caller waits for the driver, milliseconds.
pub const ASK_WITHIN_MS: u64 = 10_000;
/// How often the store's house is kept and its room looked at, milliseconds.
pub const TEND_MS: u64 = 5_000;
/// How often time itself is an event, milliseconds.
pub const TICK_MS: u64 = 250;
/// How long a full inbox may put that off, milliseconds.
pub const TICK_LATE_MS: u64 = 1_000;
/// Failures in a row, of work that shares nothing, after which a node or a model on a node gets none.
pub const BREAKER_FAILURES: u32 = 3;
/// How long it gets none, the first time and the longest, milliseconds.
pub const BREAKER_MS: (u64, u64) = (5_000, 60_000);
/// The same for a model that could not be loaded there.
pub const MODEL_BREAKER_MS: (u64, u64) = (60_000, 600_000);
/// Breakers of one node: its own and those of its models.
pub const BREAKERS_PER_NODE_MAX: usize = 64;
/// How long the silence of more than half of the nodes at once is taken for our own fault, milliseconds.
pub const BRAKE_MS: u64 = 20_000;
/// Share of the time that a call takes which it may wait before; and how long any may, milliseconds: a burst of short calls
/// that are all done within a second is no overload.
pub const CALL_WAIT: (f64, f64) = (0.4, 1_000.0);
/// Models whose calls are timed.
pub const PACES_MAX: usize = 512;
/// Evictions remembered for each node.
pub const EVICTIONS_PER_NODE_MAX: usize = 64;
/// A turn of the driver that takes longer is our own standing still: nodes aren't held silent meanwhile, milliseconds.
pub const STOOD_MS: u64 = 2_000;
