//! What packages install, against the daemons' own code: default settings, units, sockets, containers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ingle_daemon::Settings;
use ingle_daemon::config::load_from;
use ingle_daemon::supervisor::STOP_MARGIN;

/// Where certificates lie on a machine; tests have others.
const TLS: &str = "/etc/inglenook/tls/";
/// Marks a commented setting that has no default, or another one.
const EXAMPLE: &str = " # example";

fn house() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = house().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The setting, or the head of a table, that a line holds behind a `#`.
fn commented(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('#')?;
    let name = rest.split(" = ").next().unwrap_or_default();
    let is_setting = rest.contains(" = ") && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    (is_setting || rest.starts_with('[')).then_some(rest)
}

fn taken_up(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", commented(line).unwrap_or(line))).collect()
}

/// Reads settings as a daemon does at its start, with everything that `--check-config` looks at but the listening itself.
fn load<C: Settings>(text: &str, environment: &[(String, String)]) -> Result<C, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("settings.toml");
    let certificates = house().join("daemon/tests/daemon/tls/");
    let own = |text: &str| {
        let folder = format!("{}/", certificates.display());
        text.replace(&format!("{TLS}cert.pem"), &format!("{folder}server.pem"))
            .replace(&format!("{TLS}key.pem"), &format!("{folder}server.key"))
            .replace(TLS, &folder)
    };
    std::fs::write(&file, own(text)).expect("room");
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(own(value))));
    let prefix = prefix_of::<C>();
    let config: C =
        load_from(prefix, Some(&file), environment, toml::Table::new()).map_err(|error| error.to_string())?;
    ingle_daemon::tls::server_tls(config.tls()).map_err(|error| error.to_string())?;
    ingle_daemon::tls::client_tls(config.tls()).map_err(|error| error.to_string())?;
    ingle_daemon::config::check_loopback(config.listen(), config.tls()).map_err(|error| error.to_string())?;
    config.telemetry().check().map_err(|error| error.to_string())?;
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

fn prefix_of<C: 'static>() -> &'static str {
    let kind = std::any::type_name::<C>();
    if kind.contains("coordinator") {
        ingle_coordinator::config::PREFIX
    } else if kind.contains("gateway") {
        ingle_gateway::config::PREFIX
    } else {
        "INGLE_NODE"
    }
}

/// Names that a table may hold, as the parser tells them who writes another.
fn known<C: Settings>(table: Option<&str>) -> BTreeSet<String> {
    let head = table.map(|name| format!("[{name}]\n")).unwrap_or_default();
    let Err(error) = toml::from_str::<C>(&format!("{head}no_such_setting = 1")) else {
        panic!("a setting that doesn't exist is taken");
    };
    let names: BTreeSet<String> = error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert!(names.len() > 1, "{error}");
    names
}

/// What a default file promises: it is good, each paragraph may be taken up alone and all together, what is shown is the default,
/// and nothing is left out.
fn file_is_true<C: Settings + PartialEq + std::fmt::Debug>(daemon: &str) {
    let path = format!("deploy/config/{daemon}.toml");
    let text = read(&path);
    let installed: C = load(&text, &[]).unwrap_or_else(|error| panic!("{path}: {error}"));
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let mut instead_of = Vec::new();
    for (index, paragraph) in paragraphs.iter().enumerate() {
        let mut changed: Vec<String> = paragraphs.iter().map(|other| (*other).to_owned()).collect();
        changed[index] = taken_up(paragraph);
        let mut changed = changed.join("\n\n");
        // A paragraph may say which live setting it stands in for.
        if let Some(name) = paragraph.split("instead of `").nth(1).and_then(|rest| rest.split('`').next()) {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} = "))).expect("a live setting");
            changed = changed.replace(line, "");
            instead_of.push(line);
        }
        load::<C>(&changed, &[]).unwrap_or_else(|error| panic!("{path}: taking up\n{paragraph}\n{error}"));
    }
    let mut all = taken_up(&text);
    instead_of.iter().for_each(|line| all = all.replace(line, ""));
    let all: C = load(&all, &[]).unwrap_or_else(|error| panic!("{path}, every line taken up: {error}"));
    assert_ne!(all, installed, "examples differ from what holds");

    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let Some(setting) = commented(line).filter(|setting| !setting.starts_with('[') && !line.ends_with(EXAMPLE))
        else {
            continue;
        };
        let mut changed = lines.clone();
        changed[number] = setting;
        let with: C = load(&changed.join("\n"), &[]).unwrap_or_else(|error| panic!("{path}: {setting}: {error}"));
        assert_eq!(
            with,
            installed,
            "{path}:{}: {setting} isn't the default; end the line with `{EXAMPLE}`",
            number + 1
        );
    }

    let (mut table, mut seen) = (None, BTreeSet::new());
    for line in lines.iter().map(|line| commented(line).unwrap_or(line)) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = Some(name.to_owned());
            seen.insert((None, name.split('.').next().unwrap_or_default().to_owned()));
        } else if let Some((name, _)) = line.split_once(" = ") {
            seen.insert((table.clone(), name.to_owned()));
        }
    }
    let live: Vec<Option<&str>> =
        lines.iter().filter_map(|line| Some(Some(line.strip_prefix('[')?.strip_suffix(']')?))).collect();
    for table in std::iter::once(None).chain(live) {
        for name in known::<C>(table) {
            let there = seen.contains(&(table.map(str::to_owned), name.clone()));
            assert!(there, "{path} doesn't show the setting {name} of {}", table.unwrap_or("the top"));
        }
    }
}

#[test]
fn default_settings_are_true() {
    file_is_true::<ingle_coordinator::config::Config>("coordinator");
    file_is_true::<ingle_gateway::Config>("gateway");
    file_is_true::<ingle_node_agent::NodeConfig>("node");
}

/// The values of a unit's key.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn unit_fits<C: Settings>(daemon: &str, state_dir: fn(&C) -> &Path) {
    let config: C = load(&read(&format!("deploy/config/{daemon}.toml")), &[]).expect("tested above");
    let unit = read(&format!("deploy/systemd/ingle-{daemon}.service"));
    let deadline = (config.drain_deadline() + STOP_MARGIN).as_secs().to_string();
    assert_eq!(values(&unit, "TimeoutStopSec"), [deadline.as_str()], "{daemon}: drain deadline and STOP_MARGIN");
    let state = format!("/var/lib/{}", values(&unit, "StateDirectory").join(" "));
    assert_eq!(Path::new(&state), state_dir(&config), "{daemon}");
    assert_eq!(values(&unit, "User"), [format!("inglenook-{daemon}")]);
    assert_eq!(values(&unit, "ExecStart"), [format!("/usr/bin/ingle-{daemon} --config /etc/inglenook/{daemon}.toml")]);
    assert_eq!(values(&unit, "Type"), ["notify"]);
    let kept: usize = values(&unit, "FileDescriptorStoreMax")[0].parse().expect("a number");
    assert!(kept >= config.addresses().len(), "{daemon}: each address has a socket to be kept");
    let socket = read(&format!("deploy/systemd/ingle-{daemon}.socket"));
    let held: BTreeSet<SocketAddr> =
        values(&socket, "ListenStream").iter().map(|text| text.parse().expect("an address")).collect();
    assert_eq!(held, config.addresses().into_iter().collect(), "{daemon}: the socket unit and the default settings");
}

#[test]
fn units_fit_the_daemons() {
    unit_fits::<ingle_coordinator::config::Config>("coordinator", |config| &config.state_dir);
    unit_fits::<ingle_gateway::Config>("gateway", |config| &config.state_dir);
    unit_fits::<ingle_node_agent::NodeConfig>("node", |config| &config.state_dir);
}

/// A service of the compose file as lines, without the file's general head and tail.
fn service(compose: &str, name: &str) -> Vec<String> {
    let head = format!("  {name}:");
    let inside = |line: &&str| line.is_empty() || line.starts_with("    ");
    let lines = compose.lines().skip_while(|line| !line.starts_with(&head)).skip(1).take_while(inside);
    lines.map(|line| line.trim().to_owned()).collect()
}

fn container_fits<C: Settings>(compose: &str, name: &str, daemon: &str, inherited: &[String]) -> Vec<String> {
    let lines = service(compose, name);
    let mut environment: Vec<(String, String)> = Vec::new();
    for line in inherited.iter().chain(&lines) {
        if let Some((key, value)) = line.split_once(": ").filter(|(key, _)| key.starts_with("INGLE_")) {
            environment.retain(|(known, _)| known != key);
            environment.push((key.to_owned(), value.trim_matches('"').to_owned()));
        }
    }
    assert!(environment.len() > 3, "{name}: {environment:?}");
    let config: C = load(&read(&format!("deploy/config/{daemon}.toml")), &environment)
        .unwrap_or_else(|error| panic!("compose.yml, {name}: {error}"));
    let grace = format!("stop_grace_period: {}s", (config.drain_deadline() + STOP_MARGIN).as_secs());
    let port = format!("METRICS_PORT: \"{}\"", config.metrics().expect("set").port());
    for wanted in [grace, port, format!("DAEMON: {daemon}")] {
        assert!(inherited.iter().chain(&lines).any(|line| *line == wanted), "compose.yml, {name}: expected {wanted}");
    }
    assert!(lines.contains(&format!("- ./tls/{name}:/etc/inglenook/tls:ro")), "{name} has a certificate of its own");
    lines
}

#[test]
fn containers_have_settings_that_daemons_take() {
    let compose = read("deploy/compose/compose.yml");
    container_fits::<ingle_coordinator::config::Config>(&compose, "coordinator", "coordinator", &[]);
    container_fits::<ingle_gateway::Config>(&compose, "gateway", "gateway", &[]);
    let first = container_fits::<ingle_node_agent::NodeConfig>(&compose, "node-1", "node", &[]);
    container_fits::<ingle_node_agent::NodeConfig>(&compose, "node-2", "node", &first);
    for path in ["deploy/docker/Dockerfile", "deploy/certs.sh"] {
        assert!(compose.contains(path), "the compose file speaks of {path}");
        assert!(house().join(path).is_file(), "{path}");
    }
}
