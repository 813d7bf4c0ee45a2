//! The rollout to guests: packages of two versions, and a playbook that takes real hosts from one to the other.

use std::path::Path;

use super::needs;
use super::round::Round;

/// What a round on guests needs beside root: program and Debian package.
const PROGRAMS: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("mmdebstrap", "mmdebstrap"),
    ("ssh", "openssh-client"),
    ("openssl", "openssl"),
    ("dpkg-deb", "dpkg"),
    ("ip", "iproute2"),
    ("python3", "python3"),
];
/// What tells the packages of the newer version from the older one's; each program says it with its version.
const STAMP: &str = "next";
/// Where packages of both versions lie.
const PACKAGES: &str = "target/rollout";
/// How long a short round takes on two slow cores, packing included.
const MINUTES: u64 = 20;

/// Whether this machine can hold guests and there is time left, or a word on why not.
fn hindered(round: &Round, minutes: u64) -> Option<String> {
    if !round.succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]) {
        return Some("it needs root".to_owned());
    }
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| round.find(program).is_none()).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return Some(format!("it needs the packages {}", missing.join(" ")));
    }
    let left = round.minutes_left()?;
    (left < minutes)
        .then(|| format!("{left} minutes are left of INGLE_TEST_MINUTES, and it takes {minutes}: make test-rollout"))
}

/// Packs what is built, builds and packs the same under another version, and rolls both out.
///
/// # Errors
/// If a command can't be started.
pub(super) fn short(round: &mut Round) -> anyhow::Result<()> {
    steps(round, "short", MINUTES)
}

/// As [`short`], with every step there is.
///
/// # Errors
/// If a command can't be started.
pub(super) fn whole(round: &mut Round) -> anyhow::Result<()> {
    steps(round, "all", 90)
}

fn steps(round: &mut Round, which: &str, minutes: u64) -> anyhow::Result<()> {
    if let Some(why) = hindered(round, minutes) {
        round.skip(&format!("rollout to guests: {why}"));
        return Ok(());
    }
    if round.has_failed() {
        round.skip("rollout to guests: something failed before");
        return Ok(());
    }
    if !round.succeeds("unshare", &["--mount", "--net", "--pid", "--fork", "true"]) {
        round.skip("rollout to guests: this machine lets nobody make namespaces");
        return Ok(());
    }
    if !round.succeeds("python3", &["tests/setup/models.py", "--into", needs::MODELS, "--check"]) {
        round.skip("rollout to guests: the starter models aren't there");
        return Ok(());
    }
    if !round.succeeds("python3", &["tests/rollout/rollout.py", "--tools"]) {
        round.skip("rollout to guests: ansible couldn't be fetched with pip");
        return Ok(());
    }
    let packages = round.root.join(PACKAGES);
    let _ = std::fs::remove_dir_all(&packages);
    pack(round, &packages.join("a"), "packages a")?;
    round.set("INGLE_STAMP", STAMP);
    round.step("another version", "cargo", &["build", "--workspace", "--bins", "--tests"])?;
    pack(round, &packages.join("b"), "packages b")?;
    round.set("ROLLOUT_DEBS", &packages.to_string_lossy());
    round.set("PYTHONUNBUFFERED", "1");
    round.step("rollout to guests", "python3", &["tests/rollout/rollout.py", which])
}

/// By the program that the build has just made: the one that runs us may have been replaced by it.
fn pack(round: &mut Round, into: &Path, name: &str) -> anyhow::Result<()> {
    let packer = round.root.join("target/debug/xtask");
    let into = into.to_string_lossy().into_owned();
    round.step(name, &packer.to_string_lossy(), &["deb", "--profile", "dev", "--no-build", "--into", &into])
}
