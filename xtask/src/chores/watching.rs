//! Dashboards and alert rules: in step with their description, sound by Prometheus' and Grafana's own checks.

use std::process::Stdio;

use super::round::Round;
use crate::tidy::Tree;

/// Where Grafana's schema is kept.
const SCHEMA: &str = ".cache/grafana";
const SAID: &str = "skipped: ";

/// Checks what `deploy/` holds for Prometheus and Grafana, as far as their tools are there.
///
/// # Errors
/// If a command can't be started.
pub(super) fn check(round: &mut Round, tree: &Tree) -> anyhow::Result<()> {
    round.step_if_there(
        "dashboards are what generate.py writes",
        "python3",
        &["deploy/grafana/generate.py", "--check"],
    )?;
    let below = |folder: &str, ending: &str| -> Vec<String> {
        let paths = tree.texts().map(|(path, _)| path);
        paths.filter(|path| path.starts_with(folder) && path.ends_with(ending)).map(str::to_owned).collect()
    };
    let with = |first: &[&'static str], files: &[String]| -> Vec<String> {
        first.iter().map(|word| (*word).to_owned()).chain(files.iter().cloned()).collect()
    };
    let (rules, tests) = (below("deploy/prometheus/rules/", ".yml"), below("deploy/prometheus/tests/", ".yml"));
    for (name, arguments) in [
        ("alert rules parse", with(&["check", "rules"], &rules)),
        ("prometheus.yml is sound", with(&["check", "config", "deploy/prometheus/prometheus.yml"], &[])),
        ("alert rules fire on what they should", with(&["test", "rules"], &tests)),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        round.step_if_there(name, "promtool", &arguments)?;
    }
    if round.find("promtool").is_some() && round.find("python3").is_some() {
        // promtool takes files alone.
        let script = "file=$(mktemp) && python3 deploy/grafana/generate.py --rules > $file && promtool check rules $file; \
                      code=$?; rm -f $file; exit $code";
        round.step("expressions of dashboards parse", "sh", &["-c", script])?;
    }
    grafana(round, &below("deploy/grafana/dashboards/", ".json"))
}

/// The script says by itself what it can't do here.
fn grafana(round: &mut Round, files: &[String]) -> anyhow::Result<()> {
    const NAME: &str = "dashboards fit Grafana's types";
    if round.find("python3").is_none() {
        round.skip(&format!("{NAME}: python3 isn't installed"));
        return Ok(());
    }
    round.head(NAME);
    let mut arguments = vec!["tests/setup/grafana.py", "--into", SCHEMA];
    if std::env::var("INGLE_INSTALL").as_deref() == Ok("0") {
        arguments.push("--check");
    }
    arguments.extend(files.iter().map(String::as_str));
    let output = round.command("python3", &arguments).stderr(Stdio::inherit()).output()?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    match words.trim().strip_prefix(SAID) {
        Some(reason) if output.status.success() => round.skip(reason),
        _ => {
            if !words.trim().is_empty() {
                crate::say(words.trim_end());
            }
            round.note(NAME, output.status.success());
        }
    }
    Ok(())
}
