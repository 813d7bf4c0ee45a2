//! Who is alive and who leads: one low seam (keys, bytes, leases, revisions, watch) and the meaning on top of it.

pub mod limits;
pub mod memory;
pub mod remote;
pub mod seam;
pub mod serve;

pub use memory::Memory;
pub use seam::{
    Condition, Entry, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream,
};
