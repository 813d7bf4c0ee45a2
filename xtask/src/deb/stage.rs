//! Puts a package's files in place, with their modes, and has dpkg-deb pack them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::contents::{Item, PACKAGES, Package, Source};
use super::elf::{self, Arch};
use super::{build, control};

/// What packages are made from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The tree.
    pub root: PathBuf,
    /// Folder with the four binaries.
    pub binaries: PathBuf,
    /// Folder with a completion script per shell, and manual pages in `man`.
    pub pages: PathBuf,
    /// For which machine.
    pub arch: Arch,
    /// With the stamp.
    pub version: String,
    /// Packed fast rather than small.
    pub quick: bool,
}

/// Makes every package; `work` is a folder of ours, `into` gets the packages. Answers their paths.
///
/// # Errors
/// If something is missing, or a binary is of another machine.
pub fn packages(inputs: &Inputs, work: &Path, into: &Path) -> anyhow::Result<Vec<PathBuf>> {
    ensure!(build::find("dpkg-deb").is_some(), "dpkg-deb isn't installed (package dpkg)");
    PACKAGES.iter().map(|package| make(inputs, package, work, into).with_context(|| package.name.to_owned())).collect()
}

fn make(inputs: &Inputs, package: &Package, work: &Path, into: &Path) -> anyhow::Result<PathBuf> {
    let tree = work.join(package.name);
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    for (folder, mode) in package.folders {
        std::fs::create_dir_all(tree.join(folder))?;
        std::fs::set_permissions(tree.join(folder), std::fs::Permissions::from_mode(*mode))?;
    }
    for item in package.items {
        place(inputs, item, &tree)?;
    }
    documentation(inputs, package, &tree)?;
    let binary = tree.join("usr/bin").join(package.binary());
    let needs = elf::needs(&std::fs::read(&binary)?).with_context(|| package.binary().to_owned())?;
    ensure!(
        needs.machine == inputs.arch.machine(),
        "{} is of machine {}, expected that of {} ({})",
        package.binary(),
        needs.machine,
        inputs.arch.debian(),
        inputs.arch.machine()
    );
    let kib = size(&tree)?.div_ceil(1024);
    let meta = tree.join("DEBIAN");
    std::fs::create_dir(&meta)?;
    let depends = elf::packages(&needs)?.join(", ");
    let fields = control::control(package, &inputs.version, inputs.arch.debian(), &depends, kib);
    write(&meta.join("control"), fields.as_bytes(), 0o644)?;
    let conffiles: String = package.conffiles().map(|path| format!("{path}\n")).collect();
    if !conffiles.is_empty() {
        write(&meta.join("conffiles"), conffiles.as_bytes(), 0o644)?;
    }
    for (name, text) in package.scripts(&inputs.root)? {
        write(&meta.join(name), text.as_bytes(), 0o755)?;
    }
    open_folders(&tree, package)?;
    let file = into.join(format!("{}_{}_{}.deb", package.name, inputs.version, inputs.arch.debian()));
    let compression: &[&str] = if inputs.quick { &["-Zgzip", "-z1"] } else { &["-Zxz", "-z6"] };
    let output = build::clean("dpkg-deb", &inputs.root)
        .env("SOURCE_DATE_EPOCH", git(&inputs.root, "%ct").unwrap_or_else(|| "0".into()))
        .args(["--root-owner-group"])
        .args(compression)
        .arg("--build")
        .args([&tree, &file])
        .output()
        .context("dpkg-deb can't be started")?;
    ensure!(output.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(file)
}

fn place(inputs: &Inputs, item: &Item, tree: &Path) -> anyhow::Result<()> {
    let to = tree.join(item.to);
    let copy = |from: &Path| -> anyhow::Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("{}: can't be read", from.display()))?;
        write(&to, &bytes, item.mode)
    };
    match item.from {
        Source::Tree(path) => copy(&inputs.root.join(path)),
        Source::Completions(shell) => copy(&inputs.pages.join(shell)),
        Source::Binary(name) => {
            let from = inputs.binaries.join(name);
            ensure!(from.is_file(), "{} isn't there: leave --no-build away", from.display());
            copy(&from)?;
            strip(inputs, &to)
        }
        Source::Manual => {
            let mut pages: Vec<PathBuf> = std::fs::read_dir(inputs.pages.join("man"))?
                .map(|entry| Ok(entry?.path()))
                .collect::<anyhow::Result<_>>()?;
            pages.sort();
            ensure!(!pages.is_empty(), "ingle wrote no manual pages");
            for page in pages {
                let name = page.file_name().context("a page has a name")?.to_string_lossy().into_owned();
                write(&to.join(format!("{name}.gz")), &compressed(&inputs.root, &page)?, item.mode)?;
            }
            Ok(())
        }
    }
}

/// Takes away what only debuggers read, where a tool that knows the machine is there.
fn strip(inputs: &Inputs, binary: &Path) -> anyhow::Result<()> {
    let tool = match (Arch::host() == Some(inputs.arch), inputs.arch) {
        (true, _) => "strip",
        (false, Arch::Arm64) => "aarch64-linux-gnu-strip",
        (false, Arch::Amd64) => "x86_64-linux-gnu-strip",
    };
    if build::find(tool).is_none() {
        crate::say(&format!("{tool} isn't installed (package binutils): the package is larger than it need be"));
        return Ok(());
    }
    let status = build::clean(tool, &inputs.root).arg("--strip-unneeded").arg(binary).status()?;
    if !status.success() {
        crate::say(&format!("{tool} can't read {}: it is packed as it is", binary.display()));
    }
    Ok(())
}

fn documentation(inputs: &Inputs, package: &Package, tree: &Path) -> anyhow::Result<()> {
    let folder = tree.join("usr/share/doc").join(package.name);
    write(&folder.join("README.md"), &std::fs::read(inputs.root.join("README.md"))?, 0o644)?;
    let mit = std::fs::read_to_string(inputs.root.join("LICENSE-MIT"))?;
    write(&folder.join("copyright"), control::copyright(&mit).as_bytes(), 0o644)?;
    let date = git(&inputs.root, "%cD").unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 +0000".into());
    let plain = folder.join("changelog");
    write(&plain, control::changelog(package, &inputs.version, &date).as_bytes(), 0o644)?;
    write(&folder.join("changelog.gz"), &compressed(&inputs.root, &plain)?, 0o644)?;
    std::fs::remove_file(plain)?;
    Ok(())
}

/// Something about the last commit; nothing outside a repository.
fn git(root: &Path, format: &str) -> Option<String> {
    let output = build::clean("git", root)
        .args(["-c", "safe.directory=*", "log", "-1", &format!("--format={format}")])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn compressed(root: &Path, file: &Path) -> anyhow::Result<Vec<u8>> {
    let output =
        build::clean("gzip", root).args(["-9", "-n", "-c"]).arg(file).output().context("gzip can't be started")?;
    ensure!(output.status.success(), "gzip: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("{}: can't be made", folder.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("{}: can't be written", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Folders may be entered by everybody, whatever our umask is, but for those that the table says otherwise of.
fn open_folders(tree: &Path, package: &Package) -> anyhow::Result<()> {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        let named = package.folders.iter().find(|(path, _)| tree.join(path) == folder);
        let mode = named.map_or(0o755, |(_, mode)| *mode);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

fn size(tree: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(tree)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        total += if kind.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}
