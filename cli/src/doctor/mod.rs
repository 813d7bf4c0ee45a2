//! `ingle doctor`: looks at everything that a cluster stands on, and says what to do about what is wrong.
//!
//! It works against nothing running too: what can't be asked is a finding like any other. It changes nothing, but for two
//! bytes that are staged in the state export and removed again, and, where `--output` asks for it, an empty hidden file.

mod clock;
mod cluster;
mod etcd;
mod here;
mod storage;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::input;
use crate::out::{Colour, Out};

/// How long each question may take, unless `--timeout` says otherwise.
const WITHIN: Duration = Duration::from_secs(4);

const EXAMPLES: &str = "\
What is looked at: settings of the daemons on this machine, room on their disks, certificates
and how long they last, the coordinators, their leader and versions, each node, the clocks, etcd
where the settings name it, the gateway and what it may read and write, and jobs that are stuck.

Exit codes of this command:
  0    all is well
  1    something deserves a look: see the lines marked warn
  2    something is broken: see the lines marked FAIL

Examples:
  ingle doctor
  sudo ingle doctor                               # reads settings and keys that only root may
  ingle doctor --output nas://docs/.text          # and whether results can be written there
  ingle doctor --config /etc/inglenook/node.toml --json | jq '.checks[] | select(.verdict != \"ok\")'";

/// Check settings, reachability, clocks, etcd, the NAS, disks, certificates and versions, and say what to do
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Settings of a daemon on this machine; may be given several times [default: those in /etc/inglenook, and those of `ingle up`]
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// See whether results can be written there: an empty hidden file is staged, which leaves by itself after a day
    #[arg(long, value_name = "NAS-URL")]
    output: Option<String>,
}

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was looked at, how it is, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    area: &'static str,
    verdict: Verdict,
    said: String,
    /// Empty if nothing is to be done.
    todo: String,
}

impl Check {
    fn ok(area: &'static str, said: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Ok, said: said.into(), todo: String::new() }
    }

    fn warn(area: &'static str, said: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Warn, said: said.into(), todo: todo.into() }
    }

    fn fail(area: &'static str, said: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Fail, said: said.into(), todo: todo.into() }
    }

    /// What a call met, as it is told everywhere.
    fn failed(area: &'static str, what: &str, failure: &Failure) -> Self {
        let todo = failure.hint.clone().unwrap_or_else(|| "look at the daemon's log".to_owned());
        Self::fail(area, format!("{what}: {}", failure.message), todo)
    }
}

pub(crate) async fn run(client: &Client, args: DoctorArgs) -> Result<(), Failure> {
    let output = args.output.as_deref().map(input::output).transpose()?;
    let client = client.hurried(WITHIN);
    let mut checks = Vec::new();
    let settings = here::settings(&args.config, &mut checks).await;
    here::disks(&settings, &mut checks);
    here::certificates(client.tls(), &settings, &mut checks);
    etcd::look(&settings, &mut checks).await;
    let seen = cluster::look(&client, &mut checks).await;
    if let Some(seen) = &seen {
        storage::look(&client, seen, output, &mut checks).await;
    } else if output.is_some() {
        checks.push(Check::fail("storage", "--output can't be looked at: no coordinator names a gateway", "see above"));
    }
    tell(client.out, &checks)
}

/// Prints what was found. An error if anything is not well: its exit code says how bad the worst is.
fn tell(out: Out, checks: &[Check]) -> Result<(), Failure> {
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (warned, failed) = (count(Verdict::Warn), count(Verdict::Fail));
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    if out.json {
        let listed = checks.iter().map(|check| {
            json!({ "area": check.area, "verdict": check.verdict.word(), "said": check.said, "todo": check.todo })
        });
        out.json(&json!({
            "verdict": worst.word(), "ok": count(Verdict::Ok), "warn": warned, "fail": failed,
            "checks": listed.collect::<Value>(),
        }))?;
    } else {
        for check in checks {
            let word = match check.verdict {
                Verdict::Ok => out.paint(Colour::Green, "ok  "),
                Verdict::Warn => out.paint(Colour::Yellow, "warn"),
                Verdict::Fail => out.paint(Colour::Red, "FAIL"),
            };
            out.line(format!("{word}  {:<13} {}", check.area, crate::out::printable(&check.said).replace('\n', " ")))?;
            if !check.todo.is_empty() {
                out.line(format!("      {:<13} → {}", "", check.todo))?;
            }
        }
    }
    match worst {
        Verdict::Ok => Ok(()),
        Verdict::Warn => Err(Failure::new(Exit::WorkFailed, format!("{warned} of {} checks warn", checks.len()))
            .hint("the lines after → say what to do")),
        Verdict::Fail => {
            let words = format!("{failed} of {} checks failed, {warned} warn", checks.len());
            Err(Failure::usage(words).hint("the lines after → say what to do"))
        }
    }
}
