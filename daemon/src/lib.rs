//! What every daemon does that isn't its job: configuration, telemetry, gRPC plumbing, tasks, shutdown, back-off.

pub mod args;
pub mod backoff;
pub mod certificates;
pub mod clock;
pub mod config;
pub mod grpc;
mod lines;
pub mod metrics;
pub mod past;
pub mod ready;
pub mod run;
pub mod shutdown;
pub mod sockets;
pub mod supervisor;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod version;

pub use args::CommonArgs;
pub use run::{Context, Serving, Settings, run, run_to_code};
pub use shutdown::Shutdown;
pub use tasks::{OnFailure, Tasks};
pub use version::version;

/// Any error that can travel between threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
