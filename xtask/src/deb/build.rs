//! What is packed: binaries by cargo, for this machine or another, and the pages that `ingle` writes about itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::Options;
use super::elf::Arch;
use super::stage::Inputs;
use crate::chores::OF_OUR_BUILD;

/// One of cargo's profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For people.
    Release,
    /// For tests: what they have built already is packed.
    Dev,
}

impl Profile {
    const fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// The crates whose binaries are packed.
const CRATES: &[&str] = &["ingle-coordinator", "ingle-node", "ingle-gateway", "ingle"];
/// Shells that a completion script is made for.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// Where cargo builds.
#[must_use]
pub fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Where cargo leaves the binaries.
#[must_use]
pub fn binaries(root: &Path, arch: Arch, profile: Profile) -> PathBuf {
    let target = target_dir(root);
    let folder = if Arch::host() == Some(arch) { target } else { target.join(arch.target()) };
    folder.join(profile.folder())
}

/// Builds the binaries.
///
/// # Errors
/// If cargo fails, or if what a foreign architecture needs isn't there: says what to install.
pub fn cargo(root: &Path, arch: Arch, profile: Profile) -> anyhow::Result<()> {
    let mut command = clean("cargo", root);
    command.args(["build", "--locked"]);
    let native = Arch::host() == Some(arch);
    if native && profile == Profile::Dev {
        // As tests are built: another choice of crates is another choice of features, and everything would be built twice.
        command.args(["--workspace", "--bins", "--tests"]);
    } else {
        command.arg("--bins").args(CRATES.iter().flat_map(|name| ["--package", *name]));
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    if !native {
        let missing = missing_for(root, arch);
        ensure!(missing.is_empty(), "building for {} needs: {}", arch.debian(), missing.join("; "));
        command.args(["--target", arch.target()]).envs(cross(arch));
    }
    let status = command.status().context("cargo can't be started")?;
    ensure!(status.success(), "cargo build for {} failed", arch.debian());
    Ok(())
}

/// The start of the names of a foreign architecture's tools.
fn prefix(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64-linux-gnu",
        Arch::Arm64 => "aarch64-linux-gnu",
    }
}

/// Settings by which cargo and build scripts find the tools of a foreign architecture.
#[must_use]
pub fn cross(arch: Arch) -> Vec<(String, String)> {
    let tools = prefix(arch);
    let target = arch.target().replace('-', "_");
    vec![
        (format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()), format!("{tools}-gcc")),
        (format!("CC_{target}"), format!("{tools}-gcc")),
        (format!("CXX_{target}"), format!("{tools}-g++")),
        (format!("AR_{target}"), format!("{tools}-ar")),
    ]
}

/// What a foreign architecture needs and isn't there, each with how to get it.
#[must_use]
pub fn missing_for(root: &Path, arch: Arch) -> Vec<String> {
    let tools = prefix(arch);
    let mut missing = Vec::new();
    for (program, package) in [("gcc", "gcc"), ("g++", "g++")] {
        if find(&format!("{tools}-{program}")).is_none() {
            missing.push(format!("{tools}-{program} (package {package}-{tools})"));
        }
    }
    if !Path::new(&format!("/usr/{tools}/include/stdio.h")).is_file() {
        missing.push(format!("the C library's headers (package libc6-dev-{}-cross)", arch.debian()));
    }
    let library = clean("rustc", root).args(["--print", "target-libdir", "--target", arch.target()]).output();
    let there = library.is_ok_and(|output| {
        output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    });
    if !there {
        missing.push(format!("Rust's library for it (`rustup target add {}`)", arch.target()));
    }
    missing
}

/// Lets `ingle` write its manual pages and completion scripts into `inputs.pages`, once for all architectures. The host's own
/// is asked; where only a foreign one was built, under qemu's user emulation.
pub(super) fn pages(root: &Path, inputs: &Inputs, options: &Options) -> anyhow::Result<()> {
    let manual = inputs.pages.join("man");
    if manual.is_dir() {
        return Ok(());
    }
    let host = Arch::host().map(|host| binaries(root, host, options.profile).join("ingle"));
    let own = host.filter(|path| path.is_file());
    let ingle = |arguments: &[&str]| -> anyhow::Result<Vec<u8>> {
        let mut command = match (&own, find("qemu-aarch64-static")) {
            (Some(own), _) => clean(own, root),
            (None, Some(qemu)) => {
                let mut command = clean(qemu, root);
                command.args(["-L", "/usr/aarch64-linux-gnu"]).arg(inputs.binaries.join("ingle"));
                command
            }
            (None, None) => bail!(
                "`ingle` writes its own manual pages, and none runs here: build for this machine too (--arch all), or \
                 install qemu-aarch64-static (package qemu-user-static)"
            ),
        };
        let output = command.args(arguments).output().context("ingle can't be started")?;
        ensure!(output.status.success(), "ingle {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    for shell in SHELLS {
        let script = ingle(&["completions", shell])?;
        std::fs::create_dir_all(&inputs.pages)?;
        std::fs::write(inputs.pages.join(shell), script)?;
    }
    let text = manual.to_str().context("the folder's path isn't UTF-8")?;
    std::fs::create_dir_all(&manual)?;
    ingle(&["man", "--into", text]).map(drop)
}

/// A command at `root` without the settings of the build that made us.
pub(super) fn clean(program: impl AsRef<std::ffi::OsStr>, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root).stdin(std::process::Stdio::null());
    for (name, _) in std::env::vars_os() {
        if OF_OUR_BUILD.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Where a program lies.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let folders = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    folders.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_builds_have_their_own_tools_and_folder() {
        let settings = cross(Arch::Arm64);
        assert!(settings.contains(&(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER".to_owned(),
            "aarch64-linux-gnu-gcc".to_owned()
        )));
        assert!(settings.iter().any(|(name, _)| name == "CC_aarch64_unknown_linux_gnu"));
        let foreign = if Arch::host() == Some(Arch::Amd64) { Arch::Arm64 } else { Arch::Amd64 };
        let path = binaries(Path::new("/house"), foreign, Profile::Release);
        assert!(path.ends_with(format!("{}/release", foreign.target())), "{}", path.display());
    }
}
