//! What can be seen without asking anybody: settings of the daemons on this machine, their disks, their certificates.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ingle_daemon::certificates::{end_of_server, first_end};
use ingle_daemon::config::TlsConfig;

use super::{Check, WITHIN};
use crate::client::Client;
use crate::human;
use crate::up::{binary, data_dir};

/// Where packages put settings.
const ETC: &str = "/etc/inglenook";
/// Largest file of settings that is read, in bytes.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;
/// Most files that are looked at of a directory.
const FILES_MAX: usize = 64;
/// Room on a disk from which on it is worth a look, and below which things break: bytes.
const ROOM_WARN: u64 = 2 << 30;
const ROOM_FAIL: u64 = 200 << 20;
/// Days that a certificate lasts.
const DAYS_WARN: i64 = 21;

/// The settings of a daemon on this machine, as far as they matter here.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    table: toml::Table,
}

impl Settings {
    /// A setting that is a text, such as `tls.ca`.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let table = if section.is_empty() { &self.table } else { self.table.get(section)?.as_table()? };
        table.get(name)?.as_str()
    }

    /// `[tls]`.
    pub(super) fn tls(&self) -> TlsConfig {
        let file = |key| self.text(key).map(PathBuf::from);
        TlsConfig { ca: file("tls.ca"), cert: file("tls.cert"), key: file("tls.key") }
    }
}

/// Reads what there is, and lets each daemon judge its own.
pub(super) async fn settings(given: &[PathBuf], checks: &mut Vec<Check>) -> Vec<Settings> {
    let paths = if given.is_empty() { default_places() } else { given.to_vec() };
    if paths.is_empty() {
        checks.push(Check::ok("settings", format!("no daemon is set up on this machine ({ETC} holds no settings)")));
    }
    let mut read = Vec::new();
    for path in paths {
        match table(&path) {
            Err(why) => {
                let todo = "name the right file with --config, or run this as root if only root may read it";
                let said = format!("{}: {why}", path.display());
                // That only root may read it is as it should be, and nothing that is broken.
                let closed =
                    std::fs::File::open(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
                checks.push(if closed {
                    Check::warn("settings", said, todo)
                } else {
                    Check::fail("settings", said, todo)
                });
            }
            Ok(table) => {
                checks.push(judged(&path).await);
                read.push(Settings { table });
            }
        }
    }
    read
}

/// Settings in the places where packages and `ingle up` put them.
fn default_places() -> Vec<PathBuf> {
    let up = data_dir(None).map(|data| data.join("run")).ok();
    let mut found = Vec::new();
    for place in std::iter::once(PathBuf::from(ETC)).chain(up) {
        let Ok(entries) = std::fs::read_dir(&place) else { continue };
        let files = entries.take(FILES_MAX).filter_map(|entry| Some(entry.ok()?.path()));
        found.extend(files.filter(|path| path.extension().is_some_and(|e| e == "toml") && daemon(path).is_some()));
    }
    found.sort();
    found
}

/// Which daemon's settings a file holds, by its name.
fn daemon(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    ["coordinator", "gateway", "node"].into_iter().find(|daemon| name.contains(daemon))
}

fn table(path: &Path) -> Result<toml::Table, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > SETTINGS_BYTES_MAX {
        return Err(format!("expected a file of at most {}", human::bytes(SETTINGS_BYTES_MAX)));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: toml::de::Error| format!("is no TOML: {}", error.message()))
}

/// What the daemon itself says of its settings: it alone knows all of them.
async fn judged(path: &Path) -> Check {
    let shown = path.display();
    let Some(daemon) = daemon(path) else {
        let todo = "name it after its daemon: coordinator.toml, gateway.toml or node.toml";
        return Check::warn("settings", format!("{shown}: whose settings they are can't be told"), todo);
    };
    let program = format!("ingle-{daemon}");
    let Ok(found) = binary(&program) else {
        let todo = format!("install {program}, or run this where it is");
        return Check::warn("settings", format!("{shown} is TOML; {program}, which knows more, isn't here"), todo);
    };
    let mut command = tokio::process::Command::new(found);
    command.arg("--check-config").arg("--config").arg(path).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(WITHIN, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Check::ok("settings", format!("{shown} is good")),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it didn't say why");
            let todo = format!("mend it; `{program} --check-config --config {shown}` looks again");
            Check::fail("settings", format!("{shown}: {why}"), todo)
        }
        Ok(Err(error)) => Check::fail("settings", format!("{program}: {error}"), "install it again"),
        Err(_) => {
            Check::fail("settings", format!("{program} didn't judge {shown} in time"), "look at this machine's load")
        }
    }
}

/// Room where daemons keep state and caches.
pub(super) fn disks(settings: &[Settings], checks: &mut Vec<Check>) {
    let mut places: BTreeSet<PathBuf> = BTreeSet::new();
    for settings in settings {
        for key in ["state_dir", "cache_dir", "cache.dir"] {
            places.extend(settings.text(key).map(PathBuf::from));
        }
    }
    if settings.is_empty() {
        places.extend(data_dir(None).ok().filter(|dir| dir.is_dir()));
    }
    checks.extend(places.iter().map(|place| disk(place)));
}

fn disk(place: &Path) -> Check {
    let shown = place.display();
    // What isn't made yet will lie where its nearest parent does.
    let Some(there) = place.ancestors().find(|ancestor| ancestor.exists()) else {
        return Check::fail("disk", format!("{shown}: no part of this path is there"), "make the directory");
    };
    match rustix::fs::statvfs(there) {
        Err(error) => {
            Check::fail("disk", format!("{shown}: {error}"), "see whether the disk is mounted and may be read")
        }
        Ok(room) => room_of(&shown.to_string(), room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize),
    }
}

fn room_of(place: &str, free: u64, all: u64) -> Check {
    let said = format!("{place}: {} free of {}", human::bytes(free), human::bytes(all));
    let todo = "make room on that disk, or lower cache_bytes_max of the node or cache.disk_mib of the gateway";
    // A small disk is no fault: a twentieth of it is room enough.
    match free {
        ..ROOM_FAIL => Check::fail("disk", said, todo),
        ..ROOM_WARN if free < all / 20 => Check::warn("disk", said, todo),
        _ => Check::ok("disk", said),
    }
}

/// How long the certificates last that we and the daemons here use.
pub(super) fn certificates(ours: &TlsConfig, settings: &[Settings], checks: &mut Vec<Check>) {
    let mut files: BTreeSet<PathBuf> = [&ours.ca, &ours.cert].into_iter().flatten().cloned().collect();
    for tls in settings.iter().map(Settings::tls) {
        files.extend([tls.ca, tls.cert].into_iter().flatten());
    }
    let now = human::now_ms() / 1000;
    checks.extend(files.iter().map(|file| {
        let shown = file.display().to_string();
        match first_end(file) {
            Some(end) => lasts(&shown, end, now),
            None => {
                let todo = "it must be PEM, and readable for whoever runs this: try as root, or make it anew";
                Check::fail("certificates", format!("{shown} holds no readable certificate"), todo)
            }
        }
    }));
}

/// How long the certificate lasts that a daemon shows, which isn't always the file that lies there now.
pub(super) async fn of_server(client: &Client, what: &str, checks: &mut Vec<Check>) {
    let (endpoint, tls) = (client.endpoint.clone(), client.tls().clone());
    let asked = tokio::task::spawn_blocking(move || end_of_server(&endpoint, &tls, WITHIN)).await;
    checks.extend(match asked {
        Ok(Ok(None)) | Err(_) => None,
        Ok(Ok(Some(end))) => Some(lasts(&format!("the certificate of {what}"), end, human::now_ms() / 1000)),
        Ok(Err(why)) => {
            let todo = "compare its certificate with --tls-ca";
            Some(Check::fail("certificates", format!("{what}: {why}"), todo))
        }
    });
}

/// What an end of validity means.
pub(super) fn lasts(what: &str, end: i64, now: i64) -> Check {
    let days = (end - now).div_euclid(86_400);
    let todo = "make a new one (ansible/site.yml renews when it is run again), and restart what uses it";
    if end <= now {
        return Check::fail("certificates", format!("{what} ended {} days ago", (now - end) / 86_400), todo);
    }
    let said = format!("{what} lasts {days} more days");
    if days < DAYS_WARN { Check::warn("certificates", said, todo) } else { Check::ok("certificates", said) }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn room_is_judged_by_bytes_and_by_share() {
        for (free, all, verdict) in [
            (100 << 20, 1 << 40, Verdict::Fail),
            (1 << 30, 1 << 40, Verdict::Warn),
            (1 << 30, 8 << 30, Verdict::Ok),
            (3 << 30, 1 << 40, Verdict::Ok),
            (0, 0, Verdict::Fail),
        ] {
            assert_eq!(room_of("/x", free, all).verdict, verdict, "{free} of {all}");
        }
        assert_eq!(disk(Path::new("/no/such/place")).verdict, disk(Path::new("/")).verdict, "its parent is the root");
    }

    #[test]
    fn certificates_are_judged_by_days() {
        let day = 86_400;
        for (end, verdict) in
            [(-1, Verdict::Fail), (0, Verdict::Fail), (5 * day, Verdict::Warn), (400 * day, Verdict::Ok)]
        {
            assert_eq!(lasts("x.pem", 1_000_000 + end, 1_000_000).verdict, verdict, "{end}");
        }
        assert!(lasts("x.pem", 1_000_000 + 5 * day, 1_000_000).said.contains("5 more days"));
    }

    #[test]
    fn settings_tell_what_matters() {
        let text = "state_dir = '/s'\nmembership = 'etcd://a,b'\n[tls]\nca = '/ca.pem'\n[cache]\ndir = '/c'\n";
        let settings = Settings { table: text.parse().expect("TOML") };
        assert_eq!((settings.text("state_dir"), settings.text("cache.dir")), (Some("/s"), Some("/c")));
        assert_eq!(settings.tls(), TlsConfig { ca: Some("/ca.pem".into()), cert: None, key: None });
        assert_eq!(settings.text("none.such"), None);
        assert_eq!(daemon(Path::new("/etc/inglenook/node-2.toml")), Some("node"));
        assert_eq!(daemon(Path::new("/etc/inglenook/other.toml")), None);
    }
}
