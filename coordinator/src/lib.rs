//! The coordinator: accepts, persists, schedules and watches jobs; decides, and never touches bytes.
//!
//! - `core` decides, without I/O; `limits` holds every cap.
//! - `driver` owns the core and keeps the order decide, persist, act; `store` is where it persists.
//! - `effects` acts: on nodes through `sessions`, on the NAS through `gateway`, on people's calls through `calls`.
//! - `grpc` is the public API: it translates, and decides nothing.
//! - `members` follows who is there; `leader` is about being the only one.
//! - `app` puts all of it together, `program` is the binary; `config`, `error`, `metrics` are what they say.

pub mod app;
pub mod calls;
pub mod config;
pub mod core;
pub mod driver;
pub mod effects;
pub mod error;
pub mod front;
pub mod gateway;
pub mod grpc;
pub mod leader;
pub mod limits;
pub mod members;
pub mod metrics;
mod program;
pub mod sessions;
pub mod store;

pub use app::{Deps, run};
pub use program::main;
