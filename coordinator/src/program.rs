//! The program `ingle-coordinator`, from its command line to its exit code.

use std::process::ExitCode;

use clap::Parser as _;
use futures::future::BoxFuture;
use ingle_daemon::{BoxError, Context, grpc};

use crate::app::{Deps, run};
use crate::config::{Args, Config, PREFIX};

/// The whole of the binary's `main`.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let body = if args.migrate_store { migrate } else { daemon };
    ingle_daemon::run("ingle-coordinator", PREFIX, &args.common, args.overrides(), body)
}

fn migrate(context: Context<Config>) -> BoxFuture<'static, Result<(), BoxError>> {
    Box::pin(async move {
        let count = crate::app::migrate(&context.config).await?;
        tracing::info!(
            records = count,
            to = context.config.membership,
            "jobs moved into etcd; start the coordinators now"
        );
        Ok(())
    })
}

fn daemon(context: Context<Config>) -> BoxFuture<'static, Result<(), BoxError>> {
    Box::pin(async move {
        let deps = Deps {
            listener: grpc::bind(context.config.listen).await?,
            config: context.config.clone(),
            metrics: context.metrics.clone(),
            readiness: context.readiness.clone(),
            membership: None,
        };
        let shutdown = context.shutdown.clone();
        run(deps, shutdown, Box::new(move |addresses| context.announce(addresses))).await?;
        Ok(())
    })
}
