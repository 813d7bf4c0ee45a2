//! Merges the layers of settings and says which layer, key and value is wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Largest settings file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Deepest nesting of keys from the environment.
const ENV_DEPTH_MAX: usize = 8;

/// Settings that can't be used: where they come from, which key, what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{file}: {reason}")]
    File {
        /// Path of the file.
        file: String,
        /// What the system or the TOML parser said.
        reason: String,
    },
    /// No setting has that name.
    #[error("{origin}: unknown setting `{key}`{}", hint(.nearest))]
    Unknown {
        /// File, environment variable or option that it stands in.
        origin: String,
        /// Dotted name.
        key: String,
        /// The known name nearest to it.
        nearest: Option<String>,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: `{key}`: {reason}")]
    Value {
        /// File, environment variable or option that it stands in.
        origin: String,
        /// Dotted name.
        key: String,
        /// What was expected.
        reason: String,
    },
}

impl ConfigError {
    /// A setting that is well-formed but can't be used.
    pub fn invalid(key: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Value { origin: "settings".into(), key: key.into(), reason: reason.to_string() }
    }

    /// Never: settings don't mend themselves.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Loads settings: `T::default()`, overlaid by the file, by the environment and by `overrides` (the command line).
///
/// Environment variables are named `PREFIX_KEY`, with `__` between levels: `INGLE_NODE_TLS__CA` is `tls.ca` for the
/// prefix `INGLE_NODE`. Their values are read as TOML where they parse as such (numbers, booleans, arrays, inline
/// tables) and as text otherwise. `T` must carry `#[serde(deny_unknown_fields)]` on every level.
///
/// # Errors
/// [`ConfigError`] for a file that can't be read or parsed, an unknown name, or a value of the wrong type.
pub fn load<T>(prefix: &str, file: Option<&Path>, overrides: Table) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    load_from(prefix, file, std::env::vars_os(), overrides)
}

/// [`load`] with the environment handed in.
///
/// # Errors
/// As [`load`].
pub fn load_from<T>(
    prefix: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: Table,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut merged = Table::try_from(T::default())
        .map_err(|error| ConfigError::invalid("defaults", format!("are not a table: {error}")))?;
    let mut origins = BTreeMap::new();

    if let Some(path) = file {
        let table = read_file(path)?;
        overlay(&mut merged, table, &mut Vec::new(), &path.display().to_string(), &mut origins);
    }
    let mut texts = BTreeMap::new();
    for (name, path, text) in environment_settings(prefix, environment)? {
        let value = parse_value(&text);
        if !value.is_str() {
            texts.insert(path.join("."), (path.clone(), text));
        }
        let table = nest(&path, value);
        overlay(&mut merged, table, &mut Vec::new(), &format!("environment variable {name}"), &mut origins);
    }
    overlay(&mut merged, overrides, &mut Vec::new(), "command line", &mut origins);

    // A text setting may look like a number (`INGLE_NODE_NAME=7`): when the typed reading doesn't fit, try the text.
    loop {
        match Value::Table(merged.clone()).try_into::<T>() {
            Ok(settings) => return Ok(settings),
            Err(error) => {
                let (key, problem) = explain(&error, &origins);
                match texts.remove(&key) {
                    Some((path, text)) if matches!(problem, ConfigError::Value { .. }) => {
                        overlay_value(&mut merged, &path, Value::String(text));
                    }
                    _ => return Err(problem),
                }
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let fail = |reason: String| ConfigError::File { file: path.display().to_string(), reason };
    let size = std::fs::metadata(path).map_err(|error| fail(format!("can't be read: {error}")))?.len();
    if size > FILE_BYTES_MAX {
        return Err(fail(format!("is {size} bytes long; settings are at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("can't be read: {error}")))?;
    text.parse::<Table>().map_err(|error| fail(complaint(&error, &text)))
}

/// What the parser says, without the line if a password may stand in it: these words end in logs.
fn complaint(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.get(..at).unwrap_or_default().matches('\n').count();
    if text.lines().nth(number).is_some_and(is_secret) {
        let words = "the line isn't shown, since a password stands in it";
        return format!("line {}: {}; {words}", number + 1, error.message());
    }
    error.to_string().trim_end().to_owned()
}

/// Whether a setting of this name, or a line with it, is nobody's business.
fn is_secret(name: &str) -> bool {
    name.contains("password")
}

type EnvironmentSetting = (String, Vec<String>, String);

fn environment_settings(
    prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<EnvironmentSetting>, ConfigError> {
    let start = format!("{prefix}_");
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(&start) else { continue };
        let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        let origin = || format!("environment variable {name}");
        if path.len() > ENV_DEPTH_MAX || path.iter().any(String::is_empty) {
            return Err(ConfigError::Unknown { origin: origin(), key: path.join("."), nearest: None });
        }
        let Ok(value) = value.into_string() else {
            return Err(ConfigError::Value { origin: origin(), key: path.join("."), reason: "is not UTF-8".into() });
        };
        found.push((name.to_owned(), path, value));
    }
    // Outer tables before what is set inside them, whatever order the system hands them out in.
    found.sort_by(|a, b| (a.1.len(), &a.1).cmp(&(b.1.len(), &b.1)));
    Ok(found)
}

fn parse_value(text: &str) -> Value {
    // A line break would let the value smuggle in further keys.
    if !text.contains('\n')
        && let Ok(mut table) = format!("v = {text}").parse::<Table>()
        && table.len() == 1
        && let Some(value) = table.remove("v")
    {
        return value;
    }
    Value::String(text.to_owned())
}

fn nest(path: &[String], value: Value) -> Table {
    let mut table = Table::new();
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            table.insert(first.clone(), Value::Table(nest(rest, value)));
        }
    }
    table
}

fn overlay(
    base: &mut Table,
    layer: Table,
    path: &mut Vec<String>,
    origin: &str,
    origins: &mut BTreeMap<String, String>,
) {
    for (key, value) in layer {
        path.push(key.clone());
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above, path, origin, origins),
            (_, value) => {
                origins.insert(path.join("."), origin.to_owned());
                base.insert(key, value);
            }
        }
        path.pop();
    }
}

fn overlay_value(base: &mut Table, path: &[String], value: Value) {
    overlay(base, nest(path, value), &mut Vec::new(), "", &mut BTreeMap::new());
}

/// Finds the key that an error of serde is about, and the layer that it came from.
fn explain(error: &toml::de::Error, origins: &BTreeMap<String, String>) -> (String, ConfigError) {
    let text = error.to_string();
    let parent = text.rsplit_once("in `").and_then(|(_, rest)| rest.trim_end().strip_suffix('`')).unwrap_or_default();
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field")
        && let Some((name, known)) = quoted.split_first()
    {
        let key = join(parent, name);
        let nearest = nearest(name, known).map(|near| join(parent, near));
        let origin = origin_of(&key, origins);
        return (key.clone(), ConfigError::Unknown { origin, key, nearest });
    }
    let key = if parent.is_empty() { quoted.first().copied().unwrap_or("settings") } else { parent };
    // What was found instead may be the secret itself.
    let reason = if is_secret(key) { "expected text in quotes" } else { message };
    let problem =
        ConfigError::Value { origin: origin_of(key, origins), key: key.to_owned(), reason: reason.to_owned() };
    (key.to_owned(), problem)
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn origin_of(key: &str, origins: &BTreeMap<String, String>) -> String {
    // The exact key, the table it stands in, or the first key inside it.
    let mut outer = key;
    loop {
        if let Some(origin) = origins.get(outer) {
            return origin.clone();
        }
        match outer.rsplit_once('.') {
            Some((rest, _)) => outer = rest,
            None => break,
        }
    }
    let inner = format!("{key}.");
    origins
        .iter()
        .find(|(path, _)| path.starts_with(&inner))
        .map_or_else(|| "settings".to_owned(), |(_, origin)| origin.clone())
}

#[cfg(test)]
mod tests;
