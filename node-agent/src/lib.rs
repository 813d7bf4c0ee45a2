//! The node's library: takes attempts from the leader, runs them on models in memory, and forgets. Never compiles candle.
//!
//! `app` puts everything together. `session` and `beat` speak to the coordinator, `storage` to the gateway, and `bulk` for what is large. `agent` holds
//! what runs, `pipeline` does it, one file per kind of work. `weights` knows which models there are, `loaded` which are in
//! memory, `executor` gives each of those a thread, `watchdog` notices those that stand still,
//! `parsing` keeps the processes that open documents. `slots`, `pipeline::passages` and `weights::folders` are pure.

pub mod agent;
mod app;
mod beat;
pub mod bulk;
pub mod config;
pub mod device;
pub mod epoch;
pub mod error;
pub mod executor;
pub mod heat;
mod leaving;
pub mod limits;
pub mod loaded;
pub mod metrics;
pub mod outbox;
pub mod parsing;
pub mod pipeline;
mod register;
mod session;
pub mod slots;
pub mod spool;
pub mod storage;
mod watchdog;
pub mod weights;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use futures::future::BoxFuture;
pub use ingle_daemon::version::stamp;
use ingle_daemon::{BoxError, Context};
use ingle_engine::Engine;

pub use app::{Deps, Listeners, run};
pub use config::NodeConfig;
pub use error::{Failure, StartError};
pub use parsing::PARSE_WORKER;

/// The whole of the binary's `main`. `engine` is called once with the number of compute threads.
pub fn main(engine: fn(usize) -> Arc<dyn Engine>) -> ExitCode {
    // The process that parses documents is this program again; nothing of the node is in it.
    if std::env::args_os().nth(1).is_some_and(|first| first == PARSE_WORKER) {
        ingle_parse::worker::main();
    }
    let args = config::Args::parse();
    ingle_daemon::run("ingle-node", "INGLE_NODE", &args.common, args.overrides(), |context| daemon(context, engine))
}

fn daemon(
    context: Context<NodeConfig>,
    engine: fn(usize) -> Arc<dyn Engine>,
) -> BoxFuture<'static, Result<(), BoxError>> {
    Box::pin(async move {
        let deps = Deps {
            engine: engine(context.config.compute_threads()),
            metrics: context.metrics.clone(),
            readiness: context.readiness.clone(),
            listeners: Listeners::bind(&context.config).await?,
            membership: None,
            // The very program that runs now, whatever has its name on the disk by then.
            parser: "/proc/self/exe".into(),
            config: context.config.clone(),
        };
        let shutdown = context.shutdown.clone();
        run(deps, shutdown, Box::new(move |addresses| context.announce(addresses))).await?;
        Ok(())
    })
}
