//! What an operator allows of an export beyond what the NAS does: where results may go, whether hidden names may be named,
//! how large documents may be.

use ingle_daemon::config::ConfigError;
use ingle_proto::storage::Object;
use ingle_proto::{ErrorCode, ObjectPath, Problem};
use serde::{Deserialize, Serialize};

use crate::config::ExportConfig;

/// Largest document that any setting may allow, in bytes.
pub const DOCUMENT_BYTES_CEILING: u64 = 16 << 30;

/// What is done about names that begin with a dot; `.inglenook` is never listed or named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hidden {
    /// They are not listed, so no tree or glob takes them; who names one gets it.
    #[default]
    Named,
    /// They are like any others.
    Listed,
    /// They are not listed, and may not be named either.
    Refused,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    hidden: Hidden,
    output_prefixes: Vec<ObjectPath>,
    /// In place of the limit for all exports.
    pub document_bytes_max: Option<u64>,
}

/// Whether a name begins with a dot.
#[must_use]
pub fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
}

impl Rules {
    /// Reads them out of an export's settings; `key` names those.
    ///
    /// # Errors
    /// Names the key.
    pub fn new(key: &str, config: &ExportConfig) -> Result<Self, ConfigError> {
        let mut output_prefixes = Vec::new();
        for prefix in &config.output_prefixes {
            let path = ObjectPath::new(prefix.as_bytes())
                .map_err(|problem| ConfigError::invalid(format!("{key}.output_prefixes"), problem.message))?;
            output_prefixes.push(path);
        }
        if let Some(most) = config.document_bytes_max
            && !(1..=DOCUMENT_BYTES_CEILING).contains(&most)
        {
            let words = format!("expected 1 to {DOCUMENT_BYTES_CEILING} (16 GiB), got {most}");
            return Err(ConfigError::invalid(format!("{key}.document_bytes_max"), words));
        }
        Ok(Self { hidden: config.hidden, output_prefixes, document_bytes_max: config.document_bytes_max })
    }

    /// Whether names that begin with a dot are listed.
    #[must_use]
    pub fn lists_hidden(&self) -> bool {
        self.hidden == Hidden::Listed
    }

    /// Whether names that begin with a dot may not even be named.
    #[must_use]
    pub fn refuses_hidden(&self) -> bool {
        self.hidden == Hidden::Refused
    }

    /// Where places may lie; anywhere if empty.
    #[must_use]
    pub fn output_prefixes(&self) -> &[ObjectPath] {
        &self.output_prefixes
    }

    /// Whether an object may be named at all.
    ///
    /// # Errors
    /// `PATH_REFUSED` names it and the setting.
    pub fn may_name(&self, object: &Object) -> Result<(), Problem> {
        if !self.refuses_hidden() || !object.path.components().any(is_hidden) {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::PathRefused,
            format!(
                "{object}: names that begin with a dot are closed here; move it, or set exports.{}.hidden = \"named\" in \
                 the gateway's settings",
                object.export
            ),
        ))
    }

    /// Whether results may go to a place.
    ///
    /// # Errors
    /// `EXPORT_READ_ONLY` names it, and where they may go.
    pub fn may_hold(&self, place: &Object) -> Result<(), Problem> {
        let prefixes = &self.output_prefixes;
        if prefixes.is_empty() || prefixes.iter().any(|prefix| place.path.below(prefix).is_some()) {
            return Ok(());
        }
        let names: Vec<String> =
            prefixes.iter().map(|prefix| format!("nas://{}/{}", place.export, prefix.display())).collect();
        Err(Problem::new(
            ErrorCode::ExportReadOnly,
            format!(
                "{place}: results may only go to {} or below (exports.{}.output_prefixes of the gateway's settings)",
                names.join(", "),
                place.export
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(config: ExportConfig) -> Rules {
        Rules::new("exports.docs", &config).unwrap()
    }

    fn object(url: &str) -> Object {
        Object::parse(url).unwrap()
    }

    #[test]
    fn places_lie_at_or_below_a_prefix() {
        let some = rules(ExportConfig {
            output_prefixes: vec!["results".into(), "team/out".into()],
            ..ExportConfig::default()
        });
        for (url, ok) in [
            ("nas://docs/results", true),
            ("nas://docs/results/2026/may", true),
            ("nas://docs/team/out", true),
            ("nas://docs/team", false),
            ("nas://docs/results2", false),
            ("nas://docs", false),
        ] {
            assert_eq!(some.may_hold(&object(url)).is_ok(), ok, "{url}");
            assert!(Rules::default().may_hold(&object(url)).is_ok(), "anywhere unless said");
        }
        let problem = some.may_hold(&object("nas://docs/in")).unwrap_err();
        assert_eq!(problem.code, ErrorCode::ExportReadOnly);
        assert!(problem.message.contains("nas://docs/team/out"), "{problem}");
    }

    #[test]
    fn hidden_names_may_be_named_unless_that_is_refused() {
        let closed = rules(ExportConfig { hidden: Hidden::Refused, ..ExportConfig::default() });
        let listed = rules(ExportConfig { hidden: Hidden::Listed, ..ExportConfig::default() });
        assert!(listed.lists_hidden() && !closed.lists_hidden() && !Rules::default().lists_hidden());
        for (url, plain) in [
            ("nas://docs/a/b.md", true),
            ("nas://docs", true),
            ("nas://docs/.env", false),
            ("nas://docs/.git/config", false),
            ("nas://docs/a/.ssh/key", false),
        ] {
            assert_eq!(closed.may_name(&object(url)).is_ok(), plain, "{url}");
            assert!(Rules::default().may_name(&object(url)).is_ok() && listed.may_name(&object(url)).is_ok(), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (config, key) in [
            (ExportConfig { output_prefixes: vec!["../up".into()], ..ExportConfig::default() }, "output_prefixes"),
            (ExportConfig { output_prefixes: vec!["/abs".into()], ..ExportConfig::default() }, "output_prefixes"),
            (ExportConfig { document_bytes_max: Some(0), ..ExportConfig::default() }, "document_bytes_max"),
        ] {
            let error = Rules::new("exports.docs", &config).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
