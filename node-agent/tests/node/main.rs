//! A whole node in process: the fake engine, a gateway in memory, and a test that plays the coordinator.

mod batches;
mod calls;
mod gateway;
mod harness;
mod sessions;
mod weights;
