//! `ingle man`: manual pages of every command, for packages. Not listed in the help.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::args::Cli;
use crate::exit::Failure;
use crate::out::Out;

const EXAMPLES: &str = "\
Examples:
  ingle man --into ~/.local/share/man/man1";

/// Write the manual pages of every command
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// The folder; made if it isn't there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

pub(crate) fn run(out: Out, args: ManArgs) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.into)?;
    clap_mangen::generate_to(Cli::command(), &args.into)?;
    out.text(&format!("manual pages are in {}\n", args.into.display()))
}
