//! The commands behind make: `check` while working, `test` for everything, `soak` for what is long.

mod foreign;
mod needs;
mod rollout;
mod round;
mod skips;
mod watching;

use std::path::Path;

use crate::tidy;
pub(crate) use round::OF_OUR_BUILD;
use round::Round;

/// Formatting, clippy and tidy: what is quick.
///
/// # Errors
/// If a command can't be started.
pub fn check(root: &Path) -> anyhow::Result<bool> {
    let mut round = Round::new(root);
    formatting_and_tidy(&mut round)?;
    round.step("clippy", "cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    Ok(round.close())
}

/// Everything, in the order in which mistakes are cheapest to find. `rest` goes to the test runner.
///
/// # Errors
/// If a command can't be started.
pub fn test(root: &Path, rest: &[String]) -> anyhow::Result<bool> {
    let mut round = Round::new(root);
    needs::gather(&mut round)?;
    formatting_and_tidy(&mut round)?;
    scripts(&mut round)?;
    lint_while_building(&mut round);
    deny(&mut round)?;
    run_tests(&mut round, "default", rest)?;
    rollout::short(&mut round)?;
    Ok(round.close())
}

/// Packages of two versions and every step of the rollout to guests.
///
/// # Errors
/// If a command can't be started.
pub fn test_rollout(root: &Path) -> anyhow::Result<bool> {
    let mut round = Round::new(root);
    needs::gather(&mut round)?;
    lint_while_building(&mut round);
    round.step("build and lints", "cargo", &["build", "--workspace", "--bins", "--tests"])?;
    rollout::whole(&mut round)?;
    Ok(round.close())
}

/// The tests again with wider seeds and longer rounds; tests read `INGLE_SOAK`.
///
/// # Errors
/// If a command can't be started.
pub fn soak(root: &Path, rest: &[String]) -> anyhow::Result<bool> {
    let mut round = Round::new(root);
    round.set("INGLE_SOAK", "1");
    lint_while_building(&mut round);
    if std::env::var_os("PROPTEST_CASES").is_none() {
        round.set("PROPTEST_CASES", "4096");
    }
    needs::gather(&mut round)?;
    run_tests(&mut round, "soak", rest)?;
    foreign::arm64(&mut round)?;
    Ok(round.close())
}

fn formatting_and_tidy(round: &mut Round) -> anyhow::Result<()> {
    round.step("formatting", "cargo", &["fmt", "--all", "--check"])?;
    round.head("tidy");
    let tidy = tidy::report(&round.root)?;
    round.note("tidy", tidy);
    Ok(())
}

/// Lets clippy's driver compile our crates in every later build: it lints and makes code in one pass. `cargo clippy` beside a
/// build reads all dependencies a second time, a quarter of a cold round.
fn lint_while_building(round: &mut Round) {
    if std::env::var_os("CI").is_some() {
        // What is built once and thrown away gains nothing from being built in pieces that can be kept.
        round.set("CARGO_INCREMENTAL", "0");
    }
    if round.succeeds("clippy-driver", &["--version"]) {
        round.set("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
        // As `cargo clippy -- -D warnings` hands it to its driver.
        round.set("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
    } else {
        round.skip("clippy: clippy-driver isn't installed (rustup component add clippy)");
    }
}

/// Scripts are code: they must at least parse.
fn scripts(round: &mut Round) -> anyhow::Result<()> {
    let tree = tidy::Tree::read(&round.root)?;
    let ending_with = |ending: &str| -> Vec<String> {
        tree.texts().map(|(path, _)| path.to_owned()).filter(|path| path.ends_with(ending)).collect()
    };
    let python = ending_with(".py");
    if !python.is_empty() {
        let parse = "import ast, sys\nfor name in sys.argv[1:]: ast.parse(open(name, encoding='utf-8').read(), name)";
        let mut arguments = vec!["-c", parse];
        arguments.extend(python.iter().map(String::as_str));
        round.step_if_there("Python scripts parse", "python3", &arguments)?;
    }
    for script in ending_with(".sh").iter().map(String::as_str).chain([".ci/run"]) {
        round.step(&format!("{script} parses"), "bash", &["-n", script])?;
    }
    watching::check(round, &tree)?;
    if tree.has("ansible/site.yml") {
        let inventory = ["--syntax-check", "-i", "ansible/inventory.example/home.yml", "ansible/site.yml"];
        round.step_if_there("playbook parses", "ansible-playbook", &inventory)?;
    }
    Ok(())
}

fn deny(round: &mut Round) -> anyhow::Result<()> {
    if round.succeeds("cargo", &["deny", "--version"]) {
        // Advisories need a database from the network; the rest is in the tree.
        return round.step("cargo deny", "cargo", &["deny", "check", "bans", "licenses", "sources"]);
    }
    round.skip("cargo deny (licences of dependencies): cargo-deny isn't installed");
    Ok(())
}

fn run_tests(round: &mut Round, profile: &str, rest: &[String]) -> anyhow::Result<()> {
    // Binaries and tests in one invocation: cargo then chooses one set of features, and nothing is built twice.
    round.step("build and lints", "cargo", &["build", "--workspace", "--bins", "--tests"])?;
    let binaries = round.root.join("target/debug");
    round.set("INGLE_BIN_DIR", &binaries.to_string_lossy());
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    if round.succeeds("cargo", &["nextest", "--version"]) {
        let report = round.root.join("target/nextest").join(profile).join("junit.xml");
        // A report of an earlier round would name what that one skipped.
        let _ = std::fs::remove_file(&report);
        let mut arguments = vec!["nextest", "run", "--workspace", "--no-fail-fast", "--profile", profile];
        arguments.extend(rest);
        round.step("tests", "cargo", &arguments)?;
        for skip in skips::from_junit(&std::fs::read_to_string(&report).unwrap_or_default()) {
            round.skip(&skip);
        }
    } else {
        round.skip("cargo-nextest isn't installed: tests ran under cargo test, without its time limits");
        let mut arguments = vec!["test", "--workspace", "--bins", "--lib", "--tests", "--no-fail-fast"];
        arguments.extend(rest);
        round.step("tests", "cargo", &arguments)?;
    }
    Ok(())
}
