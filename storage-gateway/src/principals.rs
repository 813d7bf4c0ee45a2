//! Who a request's principal is on the NAS: the mapping of the settings.
//!
//! What a principal is called comes from the coordinator (a job's record, an attempt's token); what that name may do is the
//! NAS's to say, by the user and groups that it is mapped to here. A call that names nobody is the gateway's own.

use std::collections::BTreeMap;

use ingle_daemon::config::ConfigError;
use ingle_proto::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};

use crate::export::User;
use crate::export::nfs::GROUPS_MAX;

/// Who the gateway itself is: no principal at all.
pub const OURSELVES: &str = "";
/// Longest name of a principal, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A principal's ids on the NAS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups, at most 16.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// What a principal without ids of its own gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmapped {
    /// The export's own user: `nfs.uid` and `nfs.gid`.
    #[default]
    Export,
    /// Nothing.
    Refuse,
}

/// Checks `[principals]` of the settings.
///
/// # Errors
/// Names the key.
pub fn check(principals: &BTreeMap<String, Ids>) -> Result<(), ConfigError> {
    for (name, ids) in principals {
        let key = format!("principals.{name}");
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(ConfigError::invalid(key, format!("expected a name of 1 to {NAME_BYTES_MAX} bytes")));
        }
        if ids.groups.len() > GROUPS_MAX {
            return Err(ConfigError::invalid(format!("{key}.groups"), format!("expected at most {GROUPS_MAX}")));
        }
    }
    Ok(())
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Principals {
    mapped: BTreeMap<String, User>,
    unmapped: Unmapped,
}

impl Principals {
    /// As the settings say.
    #[must_use]
    pub fn new(principals: &BTreeMap<String, Ids>, unmapped: Unmapped) -> Self {
        let user = |ids: &Ids| User { uid: ids.uid, gid: ids.gid, groups: ids.groups.clone() };
        Self { mapped: principals.iter().map(|(name, ids)| (name.clone(), user(ids))).collect(), unmapped }
    }

    /// The user that a principal is; `None` for the export's own.
    ///
    /// # Errors
    /// `STORAGE_DENIED` for a principal that has none and gets none.
    pub fn user(&self, principal: &str) -> Result<Option<&User>, Problem> {
        match (self.mapped.get(principal), self.unmapped) {
            (Some(user), _) => Ok(Some(user)),
            (None, Unmapped::Export) => Ok(None),
            (None, Unmapped::Refuse) if principal == OURSELVES => Ok(None),
            (None, Unmapped::Refuse) => Err(Problem::new(
                ErrorCode::StorageDenied,
                format!(
                    "the principal {principal:?} is nobody on the NAS: give it a uid and gid under \
                     [principals.{principal}] of the gateway's settings"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_ids_gets_the_exports_own_or_nothing() {
        let ids = Ids { uid: 1000, gid: 100, groups: vec![7] };
        let mapped = BTreeMap::from([("anna".to_owned(), ids)]);
        for unmapped in [Unmapped::Export, Unmapped::Refuse] {
            let principals = Principals::new(&mapped, unmapped);
            let anna = User { uid: 1000, gid: 100, groups: vec![7] };
            assert_eq!(principals.user("anna").unwrap(), Some(&anna));
            assert_eq!(principals.user(OURSELVES).unwrap(), None);
            let stranger = principals.user("bert");
            if unmapped == Unmapped::Export {
                assert_eq!(stranger.unwrap(), None);
            } else {
                let problem = stranger.unwrap_err();
                assert_eq!(problem.code, ErrorCode::StorageDenied);
                assert!(problem.message.contains("[principals.bert]"), "{problem}");
            }
        }
    }
}
