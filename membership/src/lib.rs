//! Who is alive and who leads: one low seam (keys, bytes, leases, revisions, watch) and the meaning on top of it.

pub mod conformance;
pub mod connect;
pub mod election;
pub mod etcd;
pub mod faulty;
pub mod identity;
pub mod limits;
pub mod members;
pub mod memory;
pub mod records;
pub mod registration;
pub mod remote;
pub mod seam;
pub mod serve;

pub use connect::{ConnectOptions, connect};
pub use election::{Election, LeaderEvent};
pub use identity::Identity;
pub use members::{MemberEvent, Members, watch_members};
pub use memory::Memory;
pub use records::{CoordinatorRecord, GatewayRecord, NodeCapacity, NodeLoad, NodeRecord, Record};
pub use registration::{Registration, RegistrationError, RegistrationState};
pub use seam::{
    Condition, Entry, Event, LeaseId, Listing, Membership, MembershipError, PutOutcome, Revision, WatchStream,
};
