//! The gateway's behaviour in one test binary: publishing under crashes and people, ledger, scans, and the wire.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod base;
mod claims;
mod damage;
mod ledger;
mod memory;
mod moves;
mod person;
mod plan;
mod publish;
mod ranges;
mod reads;
mod refused;
mod rig;
mod rights;
mod rules;
mod scan;
mod share;
mod sweep;
mod wire;
