//! What runs did, so that weak faults are noticed.

/// What a run did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) crashes: u64,
    /// Leaders that went on when another led, and writes of theirs that were refused.
    pub(crate) frozen: u64,
    pub(crate) fenced: u64,
    /// Nodes that stood still, or were slow; times that the NAS was away, full or wrong; jumps of a leader's clock.
    pub(crate) paused: u64,
    pub(crate) slowed: u64,
    pub(crate) stalls: u64,
    pub(crate) jumps: u64,
    /// Calls that were read to their end, those of them that moved, and their tokens.
    pub(crate) streams: u64,
    pub(crate) moved: u64,
    pub(crate) tokens: u64,
    /// Nodes that ended in order, goodbyes that were answered, and models that were loaded elsewhere before.
    pub(crate) left: u64,
    pub(crate) farewells: u64,
    pub(crate) warmed: u64,
    pub(crate) deaths: u64,
    pub(crate) cuts: u64,
    pub(crate) dispatches: u64,
    pub(crate) jobs: u64,
    pub(crate) cancelled: u64,
    pub(crate) published: u64,
    pub(crate) unchanged: u64,
    pub(crate) deleted: u64,
    pub(crate) conflict: u64,
    pub(crate) failed: u64,
    pub(crate) quarantined: u64,
    /// Documents whose pages were batches of their own, and ranges of them that came back.
    pub(crate) split: u64,
    pub(crate) ranges: u64,
    pub(crate) pages_set_aside: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, o: Self) {
        self.crashes += o.crashes;
        self.frozen += o.frozen;
        self.fenced += o.fenced;
        self.paused += o.paused;
        self.slowed += o.slowed;
        self.stalls += o.stalls;
        self.jumps += o.jumps;
        self.streams += o.streams;
        self.moved += o.moved;
        self.tokens += o.tokens;
        self.left += o.left;
        self.farewells += o.farewells;
        self.warmed += o.warmed;
        self.deaths += o.deaths;
        self.cuts += o.cuts;
        self.dispatches += o.dispatches;
        self.jobs += o.jobs;
        self.cancelled += o.cancelled;
        self.published += o.published;
        self.unchanged += o.unchanged;
        self.deleted += o.deleted;
        self.conflict += o.conflict;
        self.failed += o.failed;
        self.quarantined += o.quarantined;
        self.split += o.split;
        self.ranges += o.ranges;
        self.pages_set_aside += o.pages_set_aside;
    }
}
