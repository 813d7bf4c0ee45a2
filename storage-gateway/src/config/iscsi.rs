//! How an iSCSI target is talked to, as the settings say it. Passwords stand in files of their own, never here.

use std::path::PathBuf;
use std::time::Duration;

use ingle_daemon::config::ConfigError;
use serde::{Deserialize, Serialize};

use crate::export::iscsi::{Account, IscsiOptions};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IscsiConfig {
    /// Our own name, by which targets may choose whom they let in.
    pub initiator: String,
    /// CHAP user; none if absent.
    pub user: Option<String>,
    /// File whose first line is the user's password.
    pub password_file: Option<PathBuf>,
    /// CHAP user that the target must prove to be; needs `user`.
    pub mutual_user: Option<String>,
    /// File whose first line is that user's password.
    pub mutual_password_file: Option<PathBuf>,
    /// Headers carry digests (CRC32C).
    pub header_digest: bool,
    /// Data carries digests (CRC32C).
    pub data_digest: bool,
    /// Longest that one call may take, with new sessions and repeated reads, in seconds, 1 to 600.
    pub deadline_s: u64,
    /// Commands in flight, 1 to 1024.
    pub depth: usize,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        let usual = IscsiOptions::default();
        Self {
            initiator: usual.initiator,
            user: None,
            password_file: None,
            mutual_user: None,
            mutual_password_file: None,
            header_digest: usual.header_digest,
            data_digest: usual.data_digest,
            deadline_s: usual.deadline.as_secs(),
            depth: usual.depth,
        }
    }
}

impl IscsiConfig {
    /// As the initiator takes it.
    #[must_use]
    pub fn options(&self) -> IscsiOptions {
        let account = |user: &Option<String>, file: &Option<PathBuf>| {
            let (user, password_file) = (user.clone()?, file.clone()?);
            Some(Account { user, password_file })
        };
        IscsiOptions {
            initiator: self.initiator.clone(),
            account: account(&self.user, &self.password_file),
            mutual: account(&self.mutual_user, &self.mutual_password_file),
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            deadline: Duration::from_secs(self.deadline_s),
            depth: self.depth,
            ..IscsiOptions::default()
        }
    }

    pub(super) fn check(&self, key: &str) -> Result<(), ConfigError> {
        let invalid = |name: &str, words: &str| Err(ConfigError::invalid(format!("{key}.iscsi.{name}"), words));
        if !["iqn.", "eui.", "naa."].iter().any(|prefix| self.initiator.starts_with(prefix)) {
            return invalid("initiator", "expected a name that begins with iqn., eui. or naa.");
        }
        if self.user.is_some() != self.password_file.is_some() {
            return invalid("password_file", "goes with user: expected both or none");
        }
        if self.mutual_user.is_some() != self.mutual_password_file.is_some() {
            return invalid("mutual_password_file", "goes with mutual_user: expected both or none");
        }
        if self.mutual_user.is_some() && self.user.is_none() {
            return invalid("mutual_user", "needs user and password_file: who asks for proof gives some");
        }
        if !(1..=600).contains(&self.deadline_s) {
            return invalid("deadline_s", "expected 1 to 600 seconds");
        }
        if !(1..=1024).contains(&self.depth) {
            return invalid("depth", "expected 1 to 1024");
        }
        Ok(())
    }
}
