//! One round of steps: runs commands, goes on after a failure, and closes with what failed and what was skipped.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;

use crate::say;

/// Settings of the cargo that runs us; the commands we start are not part of that build.
pub(crate) const OF_OUR_BUILD: &[&str] =
    &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// What was run so far.
#[derive(Debug)]
pub(super) struct Round {
    /// Where commands run.
    pub(super) root: PathBuf,
    settings: Vec<(String, String)>,
    begun: Instant,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Round {
    /// A round at `root`. Without a terminal nothing is coloured.
    pub(super) fn new(root: &Path) -> Self {
        let mut round = Self {
            root: root.to_path_buf(),
            settings: Vec::new(),
            begun: Instant::now(),
            passed: 0,
            failed: Vec::new(),
            skipped: Vec::new(),
        };
        if !std::io::stdout().is_terminal() {
            round.set("CARGO_TERM_COLOR", "never");
            round.set("CARGO_TERM_PROGRESS_WHEN", "never");
            round.set("NO_COLOR", "1");
        }
        round
    }

    /// Sets a variable for every later command.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Puts a folder before the others that programs are looked for in.
    pub(super) fn add_to_path(&mut self, folder: &Path) {
        let path = format!("{}:{}", folder.display(), self.path());
        self.set("PATH", &path);
    }

    /// Folders that programs are looked for in.
    pub(super) fn path(&self) -> String {
        let set = self.settings.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
        set.or_else(|| std::env::var("PATH").ok()).unwrap_or_default()
    }

    /// Where a program lies, if it is there; administrators' programs are often off a person's path.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        let folders = format!("{}:/usr/local/sbin:/usr/sbin:/sbin", self.path());
        folders.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
    }

    /// A command in this round's surroundings, without input.
    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let ours = OF_OUR_BUILD.iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
            if ours {
                command.env_remove(name);
            }
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Whether a command ends well; its words are not shown.
    pub(super) fn succeeds(&self, program: &str, arguments: &[&str]) -> bool {
        let status = self.command(program, arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// The line above a step.
    pub(super) fn head(&self, name: &str) {
        say(&format!("\n== {name} (at {})", clock(self.begun)));
    }

    /// Runs a command and notes how it ended.
    pub(super) fn step(&mut self, name: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.head(name);
        let status =
            self.command(program, arguments).status().with_context(|| format!("{name}: {program} can't be started"))?;
        self.note(name, status.success());
        Ok(())
    }

    /// As [`Self::step`], or noted as skipped where the program is missing.
    pub(super) fn step_if_there(&mut self, name: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        if self.find(program).is_none() {
            self.skip(&format!("{name}: {program} isn't installed"));
            return Ok(());
        }
        self.step(name, program, arguments)
    }

    /// Notes how a step ended.
    pub(super) fn note(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            say(&format!("== {name}: FAILED"));
            self.failed.push(name.to_owned());
        }
    }

    /// Whether a step has failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Minutes left of `INGLE_TEST_MINUTES`, for steps that may be left out; without that setting there is no end.
    pub(super) fn minutes_left(&self) -> Option<u64> {
        let all: u64 = std::env::var("INGLE_TEST_MINUTES").ok()?.parse().ok()?;
        Some(all.saturating_sub(self.begun.elapsed().as_secs() / 60))
    }

    /// Notes something that could not be done here, and why.
    pub(super) fn skip(&mut self, what: &str) {
        if !self.skipped.iter().any(|known| known == what) {
            self.skipped.push(what.to_owned());
        }
    }

    /// Says what came of it; whether nothing failed.
    pub(super) fn close(self) -> bool {
        say(&self.summary());
        self.failed.is_empty()
    }

    fn summary(&self) -> String {
        let mut text = format!("\n== done in {}: {} steps passed", clock(self.begun), self.passed);
        match self.skipped.len() {
            0 => text.push_str("\nskipped: nothing"),
            count => {
                text.push_str(&format!("\nskipped ({count}):"));
                self.skipped.iter().for_each(|what| text.push_str(&format!("\n  - {what}")));
            }
        }
        match self.failed.len() {
            0 => text.push_str("\nresult: passed"),
            _ => text.push_str(&format!("\nresult: FAILED: {}", self.failed.join(", "))),
        }
        text
    }
}

fn clock(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_kept_and_the_round_goes_on() {
        let mut round = Round::new(Path::new("/"));
        round.step("good", "true", &[]).expect("true is there");
        round.step("bad", "false", &[]).expect("false is there");
        round.step("good again", "true", &[]).expect("true is there");
        round.skip("the moon: out of reach");
        round.skip("the moon: out of reach");
        assert_eq!(round.failed, ["bad"]);
        let summary = round.summary();
        for words in ["2 steps passed", "skipped (1):\n  - the moon: out of reach", "FAILED: bad"] {
            assert!(summary.contains(words), "{summary}");
        }
        assert!(!round.close());
    }

    #[test]
    fn a_program_that_is_missing_is_skipped_or_an_error() {
        let mut round = Round::new(Path::new("/"));
        round.step_if_there("dream", "no-such-program-anywhere", &[]).expect("skipped");
        assert_eq!(round.skipped, ["dream: no-such-program-anywhere isn't installed"]);
        assert!(round.step("dream", "no-such-program-anywhere", &[]).is_err());
        assert!(round.find("sh").is_some());
    }

    #[test]
    fn commands_get_settings_and_no_input() {
        let mut round = Round::new(Path::new("/"));
        round.set("INGLE_X", "1");
        round.set("INGLE_X", "2");
        assert!(round.succeeds("sh", &["-c", "test \"$INGLE_X\" = 2"]));
        assert!(round.succeeds("sh", &["-c", "! read line"]), "input is empty");
        assert!(round.succeeds("sh", &["-c", "test -z \"$CARGO_PKG_NAME\""]), "our own build's settings stay here");
    }
}
