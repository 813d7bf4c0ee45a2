//! `ingle-coordinator`: the coordinator's program.

use std::process::ExitCode;

use clap::Parser as _;
use ingle_coordinator::config::{Args, Config, PREFIX};
use ingle_daemon::{BoxError, Context, grpc};

fn main() -> ExitCode {
    let args = Args::parse();
    ingle_daemon::run("ingle-coordinator", PREFIX, &args.common, args.overrides(), daemon)
}

async fn daemon(context: Context<Config>) -> Result<(), BoxError> {
    let listener = grpc::bind(context.config.listen).await?;
    let deps = ingle_coordinator::Deps {
        config: context.config.clone(),
        metrics: context.metrics.clone(),
        readiness: context.readiness.clone(),
        listener,
        membership: None,
    };
    // Boxed: it holds everything there is.
    Box::pin(ingle_coordinator::run(deps, context.shutdown.clone(), |addresses| context.announce(addresses))).await?;
    Ok(())
}
