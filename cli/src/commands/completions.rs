//! `ingle completions`: a script that makes a shell complete our commands.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Failure;
use crate::out::Out;

const EXAMPLES: &str = "\
Examples:
  ingle completions bash > ~/.local/share/bash-completion/completions/ingle
  ingle completions zsh  > ~/.zfunc/_ingle
  ingle completions fish > ~/.config/fish/completions/ingle.fish";

/// Print a script that makes a shell complete these commands
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(out: Out, args: CompletionsArgs) -> Result<(), Failure> {
    // Generated into memory first: clap_complete panics when the reader of its output goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ingle", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}
