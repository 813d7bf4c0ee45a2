//! The program `ingle-gateway`, from its command line to its exit code.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use futures::future::BoxFuture;
use ingle_daemon::{BoxError, CommonArgs, Context, Shutdown};

use crate::app::Gateway;
use crate::config::{Config, PREFIX};
use crate::nfs_server::{self, NfsServerOptions, Squash};

/// Reads and writes the NAS for Inglenook; guards paths; publishes results once
#[derive(Parser)]
#[command(name = "ingle-gateway", version = ingle_daemon::version(), args_conflicts_with_subcommands = true)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a directory over NFSv3, so that a first try needs no NAS; prints the URL
    ServeNfs {
        /// The directory
        dir: PathBuf,
        /// Address to listen on; whoever reaches it can claim any user id
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Refuse every change
        #[arg(long)]
        read_only: bool,
        /// Leave callers that claim to be root their rights
        #[arg(long)]
        no_root_squash: bool,
        /// Write the address taken to this file, as JSON, once serving
        #[arg(long, value_name = "PATH")]
        ready_file: Option<PathBuf>,
    },
}

/// The whole of the binary's `main`.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        Some(Command::ServeNfs { dir, listen, read_only, no_root_squash, ready_file }) => {
            let squash = if no_root_squash { Squash::Nobody } else { Squash::Root };
            let options = NfsServerOptions { listen, squash, read_only, ..NfsServerOptions::default() };
            serve_nfs(&dir, options, ready_file.as_deref())
        }
        None => ingle_daemon::run("ingle-gateway", PREFIX, &args.common, toml::Table::new(), daemon),
    }
}

fn daemon(context: Context<Config>) -> BoxFuture<'static, Result<(), BoxError>> {
    // Boxed, so that all that a gateway does is compiled with this crate and not once more with its binary.
    Box::pin(async move {
        let listener = ingle_daemon::grpc::bind(context.config.listen).await?;
        let gateway = Gateway::new(context.config.clone(), &context.metrics, context.tasks.clone())?;
        context.announce(BTreeMap::from([("grpc".to_owned(), listener.local_addr()?)]))?;
        context.readiness.ready();
        gateway.serve(listener, context.shutdown.clone()).await
    })
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "what a person asked for on the command line")]
fn serve_nfs(dir: &Path, options: NfsServerOptions, ready_file: Option<&Path>) -> ExitCode {
    let outcome = || -> Result<(), BoxError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let _telemetry = {
            let _entered = runtime.enter();
            ingle_daemon::telemetry::init("ingle-nfs", &ingle_daemon::config::TelemetryConfig::default())?
        };
        runtime.block_on(async {
            let shutdown = Shutdown::new();
            let signals = shutdown.clone().signal();
            let ready = |server: &nfs_server::NfsServer| {
                println!("{}", server.url());
                ready_file.map_or(Ok(()), |path| {
                    ingle_daemon::ready::write(path, &BTreeMap::from([("nfs".to_owned(), server.local_addr())]))
                })
            };
            let mut told = Ok(());
            let serving = nfs_server::serve(dir, options, |server| told = ready(server), shutdown.wait());
            tokio::select! {
                served = serving => served?,
                failed = signals => failed?,
            }
            told.map_err(BoxError::from)
        })
    };
    match outcome() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingle-gateway serve-nfs {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}
