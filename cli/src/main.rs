//! `ingle`: what a person types. It starts a cluster on one box, and asks any coordinator for work, state and answers.

mod args;
mod client;
mod commands;
mod doctor;
mod exit;
mod human;
mod input;
mod json;
mod out;
mod pull;
mod top;
mod traces;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tracing::Instrument as _;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::traces::Traces;

fn main() -> ExitCode {
    ingle_daemon::version::stamp(option_env!("INGLE_STAMP"));
    ingle_daemon::tls::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&args::sober(error)),
    };
    let json = cli.global.json;
    let ended = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let ended = traced(&runtime, cli);
            // A thread may still wait for a line of standard input: it must not keep us.
            runtime.shutdown_timeout(Duration::from_millis(100));
            ended
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out::report(json, &failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// The command within the trace it belongs to, if it belongs to one. `up` isn't a request: it lasts as long as the house.
fn traced(runtime: &tokio::runtime::Runtime, cli: Cli) -> Result<(), Failure> {
    if matches!(cli.command, Command::Up(_)) {
        return runtime.block_on(Box::pin(run(cli)));
    }
    let inside = runtime.enter();
    let traces = Traces::begin()?;
    drop(inside);
    let ended = runtime.block_on(Box::pin(run(cli).instrument(traces.span.clone())));
    traces.end();
    ended
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let client = Client::new(&cli.global);
    match cli.command {
        Command::Up(args) => up::run(&client, args).await,
        Command::Submit(args) => Box::pin(commands::submit::run(&client, args)).await,
        Command::Jobs(command) => commands::jobs::run(&client, command).await,
        Command::Nodes(command) => commands::nodes::run(&client, command).await,
        Command::Models(command) => commands::models::run(&client, command).await,
        Command::Embed(args) => commands::embed::run(&client, args).await,
        Command::Ocr(args) => commands::ocr::run(&client, args).await,
        Command::Chat(args) => commands::chat::run(&client, args).await,
        Command::Status(args) => commands::status::run(&client, args).await,
        Command::Top(args) => Box::pin(top::run(&client, args)).await,
        Command::Doctor(args) => Box::pin(doctor::run(&client, args)).await,
        Command::Cluster(command) => commands::cluster::run(&client, command).await,
        Command::Completions(args) => commands::completions::run(client.out, args),
        Command::Man(args) => commands::man::run(client.out, args),
    }
}

/// Help and version go to standard output and are no error; a wrong command line is.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|a| a == "--json") {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        out::report(true, &Failure::usage(text.trim_end()));
    } else {
        // Nobody is left to tell when this fails.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
}
