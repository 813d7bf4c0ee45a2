//! A whole node in process: the fake engine, a gateway in memory, and a test that plays the coordinator.

#![allow(clippy::unwrap_used, reason = "all of it is tests; clippy sees only functions marked so")]
#![allow(clippy::disallowed_methods, reason = "servers and nodes of a test end with its runtime")]

mod batches;
mod calls;
mod copies;
mod gateway;
mod harness;
mod leaving;
mod sessions;
mod stalls;
mod weights;
