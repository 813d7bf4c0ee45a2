//! Packages as dpkg sees them, units as systemd does: made from stand-ins for the binaries, so that nothing has to be built for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::deb::contents::PACKAGES;
use xtask::deb::elf::Arch;
use xtask::deb::stage::{Inputs, packages};
use xtask::workspace_root;

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("inglenook-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program's answer, or nothing where it is missing.
fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().ok()?;
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|folder| Path::new(folder).join(program).is_file())
}

fn root() -> PathBuf {
    workspace_root().expect("xtask lies in the workspace")
}

/// This test's own program under the names of ours, as if built for `arch`.
fn stand_ins(folder: &Path, arch: Arch) -> Inputs {
    let binaries = folder.join("bin");
    let pages = folder.join("pages");
    std::fs::create_dir_all(&binaries).expect("room");
    std::fs::create_dir_all(pages.join("man")).expect("room");
    let mut program = std::fs::read(std::env::current_exe().expect("we run")).expect("we may read ourselves");
    program[18..20].copy_from_slice(&arch.machine().to_le_bytes());
    for package in PACKAGES {
        std::fs::write(binaries.join(package.binary()), &program).expect("room");
    }
    for name in ["bash", "zsh", "fish", "man/ingle.1", "man/ingle-jobs-list.1"] {
        std::fs::write(pages.join(name), "words\n").expect("room");
    }
    Inputs { root: root(), binaries, pages, arch, version: "0.0.1+test".into(), quick: true }
}

/// Path, and mode and owner as `dpkg-deb --contents` tells them.
fn contents(package: &Path) -> BTreeMap<String, (String, String)> {
    let text = ask("dpkg-deb", &["--contents", package.to_str().expect("UTF-8")]).expect("dpkg-deb is there");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some((words.get(5)?.trim_start_matches('.').to_owned(), (words[0].to_owned(), words[1].to_owned())))
    };
    text.lines().filter_map(line).collect()
}

fn field(package: &Path, name: &str) -> String {
    ask("dpkg-deb", &["--field", package.to_str().expect("UTF-8"), name]).expect("dpkg-deb is there").trim().to_owned()
}

#[test]
fn packages_of_both_architectures_hold_what_they_should() {
    if !there("dpkg-deb") || !there("gzip") {
        println!("skipped: contents of packages: dpkg-deb or gzip is missing");
        return;
    }
    for arch in [Arch::Amd64, Arch::Arm64] {
        let folder = Folder::new(&format!("packages-{}", arch.debian()));
        let made = packages(&stand_ins(&folder.0, arch), &folder.0.join("work"), &folder.0).expect("packages");
        assert_eq!(made.len(), 4);
        for (package, file) in PACKAGES.iter().zip(&made) {
            let name = format!("{}_0.0.1+test_{}.deb", package.name, arch.debian());
            assert_eq!(file.file_name().expect("a name").to_string_lossy(), name);
            assert_eq!(field(file, "Architecture"), arch.debian());
            assert_eq!(field(file, "Version"), "0.0.1+test");
            assert!(field(file, "Depends").starts_with("libc6 (>= 2."), "{}", field(file, "Depends"));
            let inside = contents(file);
            assert!(inside.values().all(|(_, owner)| owner == "root/root"), "{inside:?}");
            let mode =
                |path: &str| inside.get(path).unwrap_or_else(|| panic!("{path} is missing: {inside:?}")).0.as_str();
            assert_eq!(mode(&format!("/usr/bin/{}", package.binary())), "-rwxr-xr-x");
            assert_eq!(mode(&format!("/usr/share/doc/{}/copyright", package.name)), "-rw-r--r--");
            assert_eq!(mode(&format!("/usr/share/doc/{}/changelog.gz", package.name)), "-rw-r--r--");
            assert_eq!(mode("/usr/"), "drwxr-xr-x", "whatever our umask is");
            let Some(daemon) = package.daemon else {
                assert_eq!(mode("/usr/share/man/man1/ingle-jobs-list.1.gz"), "-rw-r--r--");
                assert_eq!(mode("/usr/share/zsh/vendor-completions/_ingle"), "-rw-r--r--");
                assert_eq!(mode("/usr/share/inglenook/certs.sh"), "-rwxr-xr-x");
                continue;
            };
            assert_eq!(mode(&format!("/etc/inglenook/{daemon}.toml")), "-rw-r-----");
            assert_eq!(mode("/etc/inglenook/tls/"), "drwxr-x---");
            assert_eq!(mode(&format!("/usr/lib/systemd/system/ingle-{daemon}.service")), "-rw-r--r--");
            assert_eq!(mode(&format!("/usr/lib/systemd/system/ingle-{daemon}.socket")), "-rw-r--r--");
            assert_eq!(mode(&format!("/usr/lib/sysusers.d/inglenook-{daemon}.conf")), "-rw-r--r--");
            let meta = folder.0.join(format!("meta-{daemon}"));
            let (file, place) = (file.to_str().expect("UTF-8"), meta.to_str().expect("UTF-8"));
            ask("dpkg-deb", &["--control", file, place]).expect("dpkg-deb is there");
            let kept = std::fs::read_to_string(meta.join("conffiles")).expect("settings are kept on upgrade");
            assert_eq!(kept, format!("/etc/inglenook/{daemon}.toml\n"));
            for script in ["postinst", "prerm", "postrm"] {
                let path = meta.join(script);
                ask("sh", &["-n", path.to_str().expect("UTF-8")]).expect("sh is there");
            }
        }
    }
}

#[test]
fn a_binary_of_another_machine_is_refused() {
    if !there("dpkg-deb") || !there("gzip") {
        println!("skipped: a binary of another machine: dpkg-deb or gzip is missing");
        return;
    }
    let folder = Folder::new("foreign");
    let inputs = Inputs { arch: Arch::Amd64, ..stand_ins(&folder.0, Arch::Arm64) };
    let error = packages(&inputs, &folder.0.join("work"), &folder.0).expect_err("the wrong machine");
    assert!(format!("{error:#}").contains("machine 183"), "{error:#}");
}

#[test]
fn systemd_takes_the_units_and_finds_them_hardened() {
    if !there("systemd-analyze") {
        println!("skipped: units as systemd sees them: systemd-analyze is missing");
        return;
    }
    let folder = Folder::new("units");
    for daemon in ["coordinator", "gateway", "node"] {
        let unit =
            std::fs::read_to_string(root().join(format!("deploy/systemd/ingle-{daemon}.service"))).expect("a unit");
        // Our programs aren't installed here: any program will do.
        let unit = unit.replace(&format!("/usr/bin/ingle-{daemon}"), "/bin/sh");
        let service = folder.0.join(format!("ingle-{daemon}.service"));
        let socket = folder.0.join(format!("ingle-{daemon}.socket"));
        std::fs::write(&service, unit).expect("room");
        std::fs::copy(root().join(format!("deploy/systemd/ingle-{daemon}.socket")), &socket).expect("room");
        let (service, socket) = (service.to_str().expect("UTF-8"), socket.to_str().expect("UTF-8"));
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", service, socket])
            .env("LC_ALL", "C")
            .output()
            .expect("it is there");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains(&format!("ingle-{daemon}")), "{said}");
        // In tenths: 0 is perfect, 100 exposed; a plain service has 96.
        let mut scored = Command::new("systemd-analyze");
        let output =
            scored.args(["security", "--offline=true", "--threshold=20", service]).output().expect("it is there");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", said.lines().last().unwrap_or_default());
    }
}

#[test]
fn the_compose_file_is_what_compose_takes() {
    let file = root().join("deploy/compose/compose.yml");
    let file = file.to_str().expect("UTF-8");
    let compose = Command::new("docker").args(["compose", "version"]).output();
    if compose.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("docker");
        let output = command
            .args(["compose", "--file", file, "config", "--quiet"])
            .env("SHARE", "/srv")
            .env("MODELS", "/srv")
            .output()
            .expect("it is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    println!("skipped: docker compose reads compose.yml: it isn't installed");
    let read = "import sys, yaml; print(' '.join(sorted(yaml.safe_load(open(sys.argv[1]))['services'])))";
    if !there("python3") || !Command::new("python3").args(["-c", "import yaml"]).status().is_ok_and(|s| s.success()) {
        println!("skipped: compose.yml is YAML: python3 with yaml is missing");
        return;
    }
    assert_eq!(ask("python3", &["-c", read, file]).expect("tested").trim(), "coordinator gateway node-1 node-2");
}

#[test]
fn certificates_are_made_and_renewed() {
    if !there("openssl") {
        println!("skipped: certificates: openssl is missing");
        return;
    }
    let folder = Folder::new("certs");
    let script = root().join("deploy/certs.sh");
    let (script, into) = (script.to_str().expect("UTF-8"), folder.0.join("tls"));
    let into = into.to_str().expect("UTF-8");
    let authority = format!("{into}/ca.pem");
    let mut seen = Vec::new();
    for _ in 0..2 {
        ask("sh", &[script, "--into", into, "attic=attic.lan,10.0.0.21", "me"]).expect("sh is there");
        let certificate = format!("{into}/attic/cert.pem");
        ask("openssl", &["verify", "-CAfile", &authority, &certificate]).expect("openssl is there");
        let names = ask("openssl", &["x509", "-in", &certificate, "-noout", "-ext", "subjectAltName"]).expect("tested");
        for name in ["DNS:attic,", "DNS:localhost", "IP Address:127.0.0.1", "DNS:attic.lan", "IP Address:10.0.0.21"] {
            assert!(names.contains(name), "{name} in {names}");
        }
        let ca = std::fs::read_to_string(&authority).expect("made");
        seen.push((ca, std::fs::read_to_string(&certificate).expect("made")));
    }
    assert_eq!(seen[0].0, seen[1].0, "the authority stays");
    assert_ne!(seen[0].1, seen[1].1, "certificates are renewed");
    let refused = Command::new("sh").args([script, "--into", into, "../x"]).output().expect("sh is there");
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn systemd_makes_the_users() {
    let is_root = ask("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    if !is_root || !there("systemd-sysusers") {
        println!("skipped: users as systemd makes them: not root, or systemd-sysusers is missing");
        return;
    }
    let folder = Folder::new("users");
    std::fs::create_dir(folder.0.join("etc")).expect("room");
    for daemon in ["coordinator", "gateway", "node"] {
        let path = root().join(format!("deploy/sysusers/inglenook-{daemon}.conf"));
        let output = Command::new("systemd-sysusers")
            .arg(format!("--root={}", folder.0.display()))
            .arg("-")
            .stdin(std::fs::File::open(path).expect("in the tree"))
            .output()
            .expect("it is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let read = |name: &str| std::fs::read_to_string(folder.0.join("etc").join(name)).expect("made");
    let (users, groups) = (read("passwd"), read("group"));
    for daemon in ["coordinator", "gateway", "node"] {
        let user = users.lines().find(|line| line.starts_with(&format!("inglenook-{daemon}:"))).expect(daemon);
        assert!(user.ends_with(&format!(":/var/lib/inglenook/{daemon}:/usr/sbin/nologin")), "{user}");
        let shared = groups.lines().find(|line| line.starts_with("inglenook:")).expect("the common group");
        assert!(shared.contains(&format!("inglenook-{daemon}")), "{shared}");
    }
    assert!(groups.lines().any(|line| line.starts_with("render:") && line.ends_with("inglenook-node")), "{groups}");
}
