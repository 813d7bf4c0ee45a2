//! `iscsi://HOST[:PORT]/TARGET/LUN[?partition=N]`, and what else a session needs to know.

use std::path::PathBuf;
use std::time::Duration;

use ingle_iscsi::scsi::LUN_MAX;

use crate::export::ExportError;

/// Where targets listen unless the URL says otherwise.
const PORT: u16 = 3260;
/// Longest name of a target or initiator (RFC 7143, section 4.2.7.1).
const NAME_MAX: usize = 223;
/// Most partitions that a table of ours is read for.
const PARTITION_MAX: u32 = 128;

/// A name, and the file that holds what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub user: String,
    /// A file with the password on its first line. Read at every login: it may change.
    pub password_file: PathBuf,
}

/// How to talk to a target.
#[derive(Debug, Clone)]
pub struct IscsiOptions {
    /// Our name, by which targets may choose whom they let in.
    pub initiator: String,
    /// Whom we log in as (CHAP); nobody if absent.
    pub account: Option<Account>,
    /// Whom the target must prove to be (mutual CHAP).
    pub mutual: Option<Account>,
    /// Headers carry digests.
    pub header_digest: bool,
    /// Data carries digests.
    pub data_digest: bool,
    /// Longest that one call may take, with new sessions and repeated reads.
    pub deadline: Duration,
    /// Commands in flight, 1 to 1024; the target's own window may be smaller.
    pub depth: usize,
    /// How long what was read of a volume's metadata is believed: somebody else may write to it.
    pub metadata_age: Duration,
}

impl Default for IscsiOptions {
    /// No account, no digests, 30 seconds, 64 commands.
    fn default() -> Self {
        Self {
            initiator: "iqn.2026-11.inglenook:gateway".to_owned(),
            account: None,
            mutual: None,
            header_digest: false,
            data_digest: false,
            deadline: Duration::from_secs(30),
            depth: 64,
            metadata_age: Duration::from_secs(1),
        }
    }
}

/// A unit of a target, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IscsiUrl {
    /// Name or address; IPv6 without its brackets.
    pub(crate) host: String,
    /// Where it listens.
    pub(crate) port: u16,
    /// `iqn.…`, `eui.…` or `naa.…`.
    pub(crate) target: String,
    /// The unit.
    pub(crate) lun: u16,
    /// Which partition, counted from 1; the only one that can be read if absent.
    pub(crate) partition: Option<u32>,
    /// For people.
    pub(crate) shown: String,
}

impl IscsiUrl {
    pub(crate) fn parse(url: &str) -> Result<Self, ExportError> {
        let expected = "expected iscsi://HOST[:PORT]/TARGET/LUN[?partition=N]";
        // What is wrong may be a password in the wrong place: it isn't shown then.
        let rest = url.strip_prefix("iscsi://").unwrap_or_default();
        let shown = if rest.contains('@') { "iscsi://…".to_owned() } else { format!("{url:?}") };
        let refuse = |why: &str| Err(ExportError::Path(format!("{shown}: {why}; {expected}")));
        if rest.is_empty() {
            return refuse("not an iscsi:// URL");
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') {
            return refuse("users and passwords have no place in it (set exports.NAME.iscsi.user and password_file)");
        }
        let (host, port) = match split_port(authority) {
            Ok(split) => split,
            Err(why) => return refuse(why),
        };
        if host.is_empty() {
            return refuse("the host is missing");
        }
        let Some((target, lun)) = path.split_once('/') else {
            return refuse("the unit (LUN) is missing");
        };
        if let Err(why) = check_name(target) {
            return refuse(&format!("the target {target:?} {why}"));
        }
        let Some(lun) = lun.parse().ok().filter(|lun| *lun <= LUN_MAX) else {
            return refuse(&format!("the unit (LUN) {lun:?} isn't a number up to {LUN_MAX}"));
        };
        let mut partition = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            partition = match pair.split_once('=') {
                Some(("partition", number)) => {
                    let number = number.parse().ok().filter(|number| (1..=PARTITION_MAX).contains(number));
                    let Some(number) = number else {
                        return refuse(&format!("{pair} isn't a number from 1 to {PARTITION_MAX}"));
                    };
                    Some(number)
                }
                _ => return refuse(&format!("unknown option {pair:?} (known: partition)")),
            };
        }
        let shown = match partition {
            Some(number) => format!("iscsi://{rest}?partition={number}"),
            None => format!("iscsi://{rest}"),
        };
        Ok(Self { host, port: port.unwrap_or(PORT), target: target.to_owned(), lun, partition, shown })
    }
}

/// Whether it can be a name of a target or an initiator.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if !["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix)) {
        return Err("doesn't begin with iqn., eui. or naa.");
    }
    if name.len() > NAME_MAX {
        return Err("is longer than 223 bytes");
    }
    if name.chars().any(|c| c.is_ascii() && !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | ':' | '_')) {
        return Err("has a character that such names don't have");
    }
    Ok(())
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`; what a portal calls itself may end in `,GROUP` (left out by the caller).
pub(crate) fn split_port(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket of an IPv6 address isn't closed")?;
            (host, after.strip_prefix(':').or((!after.is_empty()).then_some(after)))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => None,
        Some(text) => Some(text.parse().ok().filter(|port| *port != 0).ok_or("the port isn't one")?),
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let url = IscsiUrl::parse("iscsi://nas.local/iqn.2026-11.local.nas:docs/1").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.lun, url.partition), ("nas.local", 3260, 1, None));
        assert_eq!(url.target, "iqn.2026-11.local.nas:docs");
        let url = IscsiUrl::parse("iscsi://[fd00::1]:3261/eui.02004567A425678D/300?partition=2").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.lun, url.partition), ("fd00::1", 3261, 300, Some(2)));
        assert_eq!(url.shown, "iscsi://[fd00::1]:3261/eui.02004567A425678D/300?partition=2");
    }

    #[test]
    fn bad_urls_say_why() {
        for (bad, why) in [
            ("nfs://x/y", "not an iscsi://"),
            ("iscsi:///iqn.a/0", "host"),
            ("iscsi://h:0/iqn.a/0", "port"),
            ("iscsi://h/iqn.a", "LUN"),
            ("iscsi://h/iqn.a/x", "LUN"),
            ("iscsi://h/iqn.a/16384", "16383"),
            ("iscsi://h/disk/0", "iqn."),
            ("iscsi://h/iqn.a b/0", "character"),
            ("iscsi://h/iqn.a/0?partition=0", "1 to 128"),
            ("iscsi://h/iqn.a/0?part=1", "part=1"),
        ] {
            let said = IscsiUrl::parse(bad).expect_err(bad).to_string();
            assert!(said.contains(why), "{bad}: {said}");
        }
        let said = IscsiUrl::parse("iscsi://gw%secret@h/iqn.a/0").expect_err("a password").to_string();
        assert!(said.contains("password_file") && !said.contains("secret"), "{said}");
    }
}
