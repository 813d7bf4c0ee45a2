//! The coordinator: accepts, persists, schedules and watches jobs; decides, and never touches bytes.
//!
//! - `core` decides, without I/O; `limits` holds every cap.
//! - `driver` owns the core and keeps the order decide, persist, act; `store` is where it persists.
//! - `leader` is about being the only one; `config`, `error`, `metrics` are what they say.

pub mod config;
pub mod core;
pub mod driver;
pub mod error;
pub mod leader;
pub mod limits;
pub mod members;
pub mod metrics;
pub mod store;
