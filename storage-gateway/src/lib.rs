//! The storage gateway: reads and writes the NAS, guards paths, publishes results once. It never decides.
//!
//! - `export/` is the seam to the NAS; `nfs_server/` a small NFSv3 server of our own.
//! - `file`, `place`, `buffers`: bytes and names on an export. `blob`: the state export.
//! - `source`, `reading/`, `cache/`: what a read names, and how its bytes come; `access`: whether they may.
//! - `scan/`, `stage`, `publish/`, `ledger/`: what the coordinator and nodes ask for. `sweep`: what is left over.
//! - `exports`, `metered`, `admission`, `fence`: which export, counted, how many at once, and by whose order.
//! - `principals`, `views`, `rules`: as whom, and what an operator allows beyond what the NAS does.
//! - `grpc/`, `range/`, `register`: the wire. `app`: all of it put together. `program`: the binary.

mod access;
pub mod admission;
pub mod app;
pub mod blob;
pub mod buffers;
pub mod cache;
pub mod config;
pub mod export;
pub mod exports;
pub mod fence;
pub mod file;
pub mod grpc;
pub mod kinds;
pub mod ledger;
pub mod limits;
pub mod metered;
pub mod metrics;
pub mod nfs_server;
pub mod place;
pub mod principals;
mod program;
pub mod publish;
pub mod range;
pub mod reading;
pub mod register;
pub mod rules;
pub mod scan;
pub mod source;
pub mod stage;
pub mod sweep;
pub mod views;

pub use config::Config;
pub use program::main;

use futures::future::BoxFuture;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::{BoxError, Shutdown, Tasks};
use tokio::net::TcpListener;

/// Runs a gateway on a listener until shutdown, for tests that have one in their own process.
///
/// # Errors
/// The state directory or certificates can't be used, or the listener broke.
pub fn run(
    listener: TcpListener,
    config: Config,
    metrics: &Metrics,
    tasks: Tasks,
    shutdown: Shutdown,
) -> BoxFuture<'static, Result<(), BoxError>> {
    let gateway = app::Gateway::new(config, metrics, tasks);
    Box::pin(async move { gateway?.serve(listener, shutdown).await })
}
