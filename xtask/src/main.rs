//! `cargo xtask COMMAND`: tidy, check, test, test-rollout, soak, deb.

use std::process::ExitCode;

use xtask::{chores, deb, say, tidy, workspace_root};

const HELP: &str = "\
cargo xtask COMMAND

  check   quick: formatting, clippy, tidy
  tidy    what no compiler checks: edges between crates, module sentences, sizes, pages per error code …
  test    everything, as `make test` runs it: installs what is missing, fetches the starter models, checks, builds, tests
  test-rollout  packages of two versions, and every playbook on real hosts (guests on this machine); root alone
  soak    the tests again with wider seeds and longer rounds (INGLE_SOAK=1); arguments go to nextest
  deb     Debian packages into target/deb: [--arch amd64|arm64|all] [--profile release|dev] [--no-build] [--into DIR]

INGLE_TEST_MINUTES=n   leaves the rollout to guests out where it would end later than that
INGLE_STAMP=TEXT  is told by the binaries and packages beside their version: 0.2.0+TEXT
INGLE_INSTALL=0   installs and fetches nothing; says what is skipped instead
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match run(&command, &rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("xtask {command}: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Whether the command found everything in order.
fn run(command: &str, rest: &[String]) -> anyhow::Result<bool> {
    // Nothing is begun for somebody who asks what would be.
    if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h") {
        say(HELP.trim_end());
        return Ok(true);
    }
    let root = workspace_root()?;
    match command {
        "tidy" => tidy::report(&root),
        "check" => chores::check(&root),
        "test" => chores::test(&root, rest),
        "test-rollout" => chores::test_rollout(&root),
        "soak" => chores::soak(&root, rest),
        "deb" => deb::run(&root, &deb::Options::parse(rest)?).map(|_| true),
        "" | "help" | "--help" | "-h" => {
            say(HELP.trim_end());
            Ok(true)
        }
        other => anyhow::bail!("no such command: {other}; `cargo xtask help` lists them"),
    }
}
