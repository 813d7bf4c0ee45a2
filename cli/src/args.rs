//! The command line: what is global, and which command it is. Each command's own options stand beside it.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand};

use crate::commands::{chat, cluster, completions, embed, jobs, man, models, nodes, ocr, status, submit};
use crate::exit::EXIT_CODES;
use crate::human::parse_duration;
use crate::{doctor, top, up};

const EXAMPLES: &str = "\
Examples:
  ingle up --share docs=~/Documents               # one box: everything, with a directory served over NFS
  ingle models pull --starter                     # an embedding model and a small LLM
  ingle submit ocr nas://docs/ --output nas://docs/.text --wait
  ingle submit embed nas://docs/ --output nas://docs/.index --text-from nas://docs/.text --wait
  ingle chat 'What is a hearth for?'
  ingle jobs list --json | jq .";

/// Options that every command takes and the environment may give, with the names of their values.
const GLOBAL: [(&str, &str); 5] = [
    ("--coordinator", "URL"),
    ("--tls-ca", "FILE"),
    ("--tls-cert", "FILE"),
    ("--tls-key", "FILE"),
    ("--timeout", "TIME"),
];

/// Keeps the data on the NAS and puts the thinking on small machines beside it
#[derive(Debug, Parser)]
#[command(name = "ingle", version = ingle_daemon::version(), max_term_width = 100, propagate_version = true, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Print JSON: one document, or one per line for streams
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The coordinator's address; of several, with commas between, the first that answers
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "INGLE_COORDINATOR",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7700"
    )]
    pub(crate) coordinator: String,
    /// Certificates of the authority that signed the coordinator's (PEM); turns TLS on
    #[arg(long, global = true, value_name = "FILE", env = "INGLE_TLS_CA", hide_env_values = true)]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "INGLE_TLS_CERT", hide_env_values = true)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of our certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "INGLE_TLS_KEY", hide_env_values = true)]
    pub(crate) tls_key: Option<PathBuf>,
    /// How long one call may take, e.g. 10s or 2m [default: 30s; 10m for embed, ocr, chat and models load]
    #[arg(long, global = true, value_name = "TIME", env = "INGLE_TIMEOUT", hide_env_values = true, value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(up::UpArgs),
    Submit(submit::SubmitArgs),
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    #[command(subcommand)]
    Nodes(nodes::NodesCommand),
    #[command(subcommand)]
    Models(models::ModelsCommand),
    Embed(embed::EmbedArgs),
    Ocr(ocr::OcrArgs),
    Chat(chat::ChatArgs),
    Status(status::StatusArgs),
    Top(top::TopArgs),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// An error whose usage asks for no option that the environment gave: clap counts those among what was typed.
pub(crate) fn sober(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return error };
    let whole = usage.to_string();
    let mut text = whole.clone();
    for (option, value) in GLOBAL {
        let typed = format!(" {option} <{value}>");
        let place = if text.contains("[OPTIONS]") { "" } else { " [OPTIONS]" };
        text = text.replacen(&typed, place, 1);
    }
    if text == whole {
        return error;
    }
    error.insert(ContextKind::Usage, ContextValue::StyledStr(text.into()));
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_and_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            if command.get_subcommands().next().is_none() && command.get_name() != "help" {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("ingle "), "{path} has no example");
            }
            for sub in command.get_subcommands() {
                walk(sub, &path);
            }
        }
        walk(&Cli::command(), "");
    }

    #[test]
    fn options_of_the_issue_are_taken() {
        for line in [
            "ingle up --share docs=/tmp --share x=nfs://h/e --models /tmp/m --data /tmp/d --nodes 2",
            "ingle submit embed nas://docs/ --output nas://docs/i --model m --priority interactive --idempotency-key k --wait",
            "ingle submit generate nas://docs/ --output nas://docs/i --prompt p --system s --max-tokens 5 --temperature 0.5 --force --label a=b",
            "ingle submit ocr nas://docs/ --output nas://docs/i",
            "ingle jobs list",
            "ingle jobs show j-1",
            "ingle jobs items j-1",
            "ingle jobs watch j-1",
            "ingle jobs cancel j-1",
            "ingle jobs pause j-1",
            "ingle jobs resume j-1",
            "ingle jobs explain j-1",
            "ingle nodes list",
            "ingle nodes show n",
            "ingle nodes drain n",
            "ingle nodes uncordon n",
            "ingle embed a b",
            "ingle embed -",
            "ingle ocr scan.pdf photo.jpg",
            "ingle ocr - --json --model m",
            "ingle submit embed nas://docs/ --output nas://docs/i --text-from nas://docs/ocr",
            "ingle chat",
            "ingle chat hello --model m --system s",
            "ingle models list",
            "ingle models show m",
            "ingle models load m",
            "ingle models unload m",
            "ingle models fit m",
            "ingle models pull --starter",
            "ingle models pull --starter --into /tmp/x",
            "ingle models pull owner/name@main model.safetensors",
            "ingle completions bash",
            "ingle top",
            "ingle top --once --every 5s",
            "ingle top --json",
            "ingle doctor",
            "ingle doctor --config /tmp/a.toml --config /tmp/b.toml --output nas://docs/out --json",
            "ingle submit embed nas://docs/ --output nas://docs/i --again",
            "ingle man --into /tmp/man",
            "ingle status --json --coordinator http://127.0.0.1:1 --timeout 5s",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for bad in [
            "ingle",
            "ingle submit translate nas://docs/ --output nas://docs/i",
            "ingle submit embed nas://docs/",
            "ingle submit generate nas://d/ --output nas://d/i --temperature NaN",
            "ingle submit generate nas://d/ --output nas://d/i --temperature 2.5",
            "ingle submit generate nas://d/ --output nas://d/i --max-tokens -1",
            "ingle submit generate nas://d/ --output nas://d/i --max-tokens 9223372036854775808",
            "ingle up --nodes 0",
            "ingle up --nodes 17",
            "ingle models pull",
            "ingle top --every 1ms",
            "ingle status --timeout 0",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
