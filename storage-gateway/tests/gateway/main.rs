//! The gateway's behaviour in one test binary: publishing under crashes and people, ledger, scans, and the wire.

mod ledger;
mod memory;
mod person;
mod plan;
mod publish;
mod rig;
mod scan;
mod wire;
