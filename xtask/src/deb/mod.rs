//! `cargo xtask deb`: Debian packages of the four programs, for this machine's architecture or, cross-built, for arm64.

pub mod build;
pub mod contents;
pub mod control;
pub mod elf;
pub mod stage;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::say;
pub use build::Profile;
pub use elf::Arch;

/// What is to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For which machines.
    pub arches: Vec<Arch>,
    /// Which of cargo's profiles.
    pub profile: Profile,
    /// Whether the binaries are built first, or are there.
    pub build: bool,
    /// Where the packages go; `target/deb` if absent.
    pub into: Option<PathBuf>,
}

impl Options {
    /// Reads `--arch amd64|arm64|all --profile release|dev --no-build --into DIR`.
    ///
    /// # Errors
    /// For anything else.
    pub fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let host = Arch::host().context("packages are made on amd64 and arm64 machines")?;
        let mut options = Self { arches: vec![host], profile: Profile::Release, build: true, into: None };
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument {
                "--arch" => {
                    options.arches = match value()? {
                        "amd64" => vec![Arch::Amd64],
                        "arm64" => vec![Arch::Arm64],
                        // The host's first: its `ingle` writes the manual pages of both.
                        "all" => vec![host, if host == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 }],
                        other => bail!("--arch {other}: expected amd64, arm64 or all"),
                    }
                }
                "--profile" => {
                    options.profile = match value()? {
                        "release" => Profile::Release,
                        "dev" => Profile::Dev,
                        other => bail!("--profile {other}: expected release or dev"),
                    }
                }
                "--no-build" => options.build = false,
                "--into" => options.into = Some(PathBuf::from(value()?)),
                other => bail!("deb {other}: expected --arch, --profile, --no-build or --into"),
            }
        }
        Ok(options)
    }
}

/// Builds and packs; answers the packages' paths.
///
/// # Errors
/// If a program is missing, cargo fails, or a binary isn't what a package of its architecture may hold.
pub fn run(root: &Path, options: &Options) -> anyhow::Result<Vec<PathBuf>> {
    let into = options.into.clone().unwrap_or_else(|| build::target_dir(root).join("deb"));
    std::fs::create_dir_all(&into).with_context(|| format!("{}: can't be made", into.display()))?;
    // Packages come as a whole or not at all: what is made is made beside its place.
    let work = into.join(format!(".making-{}", std::process::id()));
    let made = options.arches.iter().try_fold(Vec::new(), |mut made, arch| {
        if options.build {
            build::cargo(root, *arch, options.profile)?;
        }
        let inputs = stage::Inputs {
            root: root.to_owned(),
            binaries: build::binaries(root, *arch, options.profile),
            pages: work.join("pages"),
            arch: *arch,
            version: control::version(&workspace_version(root)?, std::env::var("INGLE_STAMP").ok().as_deref())?,
            quick: options.profile == Profile::Dev,
        };
        build::pages(root, &inputs, options)?;
        made.extend(stage::packages(&inputs, &work.join(arch.debian()), &into)?);
        anyhow::Ok(made)
    });
    let removed = std::fs::remove_dir_all(&work).with_context(|| format!("{}: can't be removed", work.display()));
    let made = made?;
    removed?;
    for package in &made {
        say(&format!("{}", package.display()));
    }
    Ok(made)
}

/// The version in the workspace's manifest.
///
/// # Errors
/// If there is none.
pub fn workspace_version(root: &Path) -> anyhow::Result<String> {
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml"))?.parse()?;
    let version =
        manifest.get("workspace").and_then(|table| table.get("package")).and_then(|table| table.get("version"));
    Ok(version.and_then(toml::Value::as_str).context("Cargo.toml: expected workspace.package.version")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> anyhow::Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_others_refused() {
        let usual = parse("").expect("nothing is needed");
        assert_eq!((usual.profile, usual.build, usual.into), (Profile::Release, true, None));
        assert_eq!(usual.arches, [Arch::host().expect("tests run where packages are made")]);
        let all = parse("--arch all --profile dev --no-build --into /tmp/x").expect("good");
        assert_eq!((all.arches.len(), all.build, all.into), (2, false, Some(PathBuf::from("/tmp/x"))));
        for bad in ["--arch", "--arch mips", "--profile fast", "--into", "everything"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
