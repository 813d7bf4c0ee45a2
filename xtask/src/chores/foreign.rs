//! Packages for arm64, built across, and whether what is in them starts: under qemu's emulation of one process.

use std::path::Path;

use super::needs;
use super::round::Round;
use crate::deb::{Arch, Options, Profile, build, run, workspace_version};

/// Packages that building and starting arm64 binaries on another machine takes.
const PACKAGES: &[&str] = &[
    "gcc-aarch64-linux-gnu",
    "g++-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "binutils-aarch64-linux-gnu",
    "qemu-user-static",
];
const QEMU: &str = "qemu-aarch64-static";
/// Where the cross-compiler's packages keep the libraries that a binary is started with.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Builds the packages and starts each binary; skipped, with what is missing, where that can't be done.
pub(super) fn arm64(round: &mut Round) -> anyhow::Result<()> {
    round.head("arm64 packages");
    let root = round.root.clone();
    let native = Arch::host() == Some(Arch::Arm64);
    if !native {
        if may_install(round) && (round.find(QEMU).is_none() || !build::missing_for(&root, Arch::Arm64).is_empty()) {
            needs::install(round, PACKAGES);
            round.succeeds("rustup", &["target", "add", Arch::Arm64.target()]);
        }
        let mut missing = build::missing_for(&root, Arch::Arm64);
        if round.find(QEMU).is_none() {
            missing.push(format!("{QEMU} (package qemu-user-static)"));
        }
        if !missing.is_empty() {
            round.skip(&format!("arm64 packages: {}", missing.join("; ")));
            return Ok(());
        }
    }
    let options = Options { arches: vec![Arch::Arm64], profile: Profile::Release, build: true, into: None };
    match run(&root, &options) {
        Ok(packages) => round.note("arm64 packages", packages.len() == 4),
        Err(error) => {
            crate::say(&format!("{error:#}"));
            round.note("arm64 packages", false);
            return Ok(());
        }
    }
    let binaries = build::binaries(&root, Arch::Arm64, Profile::Release);
    let version = workspace_version(&root)?;
    for (name, settings) in [
        ("ingle", None),
        ("ingle-coordinator", Some("coordinator")),
        ("ingle-gateway", Some("gateway")),
        ("ingle-node", Some("node")),
    ] {
        let binary = binaries.join(name);
        let told = start(round, native, &binary, &["--version"]);
        let good = told.as_deref().is_some_and(|text| text.starts_with(&format!("{name} {version}")));
        round.note(&format!("arm64 {name} --version"), good);
        if let Some(settings) = settings {
            let path = root.join(format!("deploy/config/{settings}.toml"));
            let arguments = ["--config", &path.to_string_lossy(), "--check-config"];
            let good = start(round, native, &binary, &arguments).is_some();
            round.note(&format!("arm64 {name} --check-config"), good);
        }
    }
    Ok(())
}

fn may_install(round: &Round) -> bool {
    std::env::var("INGLE_INSTALL").as_deref() != Ok("0")
        && round.find("apt-get").is_some()
        && round.succeeds("sh", &["-c", "test \"$(id -u)\" = 0"])
}

/// What a binary says on its standard output, if it ends well.
fn start(round: &Round, native: bool, binary: &Path, arguments: &[&str]) -> Option<String> {
    let path = binary.to_string_lossy();
    let (program, before) = if native { (&*path, vec![]) } else { (QEMU, vec!["-L", LIBRARIES, &*path]) };
    let all: Vec<&str> = before.into_iter().chain(arguments.iter().copied()).collect();
    let output = round.command(program, &all).output().ok()?;
    if !output.status.success() {
        crate::say(&format!("{program} {all:?}: {}", String::from_utf8_lossy(&output.stderr)));
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
