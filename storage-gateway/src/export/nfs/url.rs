//! `nfs://HOST[:PORT]/PATH[?nfsport=..&mountport=..&uid=..&gid=..&version=3]`, and what else a connection needs to know.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::export::ExportError;

/// Longest path of an export on its server (RFC 1813: MNTPATHLEN).
const MOUNT_PATH_MAX: usize = 1024;
/// What a query may say.
const KEYS: &str = "nfsport, mountport, uid, gid, version";

/// How to talk to a server.
#[derive(Debug, Clone)]
pub struct NfsOptions {
    /// Longest that one RPC may take, with all its repetitions. A call of the export makes several.
    pub deadline: Duration,
    /// TCP connections to the NFS port, 1 to 16.
    pub connections: usize,
    /// User id presented to the server, unless the URL says another.
    pub uid: u32,
    /// Group id presented to the server, unless the URL says another.
    pub gid: u32,
    /// Further groups, at most 16 (a limit of `AUTH_SYS`).
    pub groups: Vec<u32>,
    /// Bytes of a READ, 4 KiB to 1 MiB and never more than the server takes; what the server prefers if absent.
    pub read_size: Option<u32>,
    /// Bytes of a WRITE, likewise.
    pub write_size: Option<u32>,
}

impl Default for NfsOptions {
    /// Ten seconds, four connections, this process's own user and group.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            connections: 4,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Vec::new(),
            read_size: None,
            write_size: None,
        }
    }
}

/// A server and a directory of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NfsUrl {
    /// Name or address; IPv6 without its brackets.
    pub(crate) host: String,
    /// What the portmapper is asked for otherwise.
    pub(crate) nfs_port: Option<u16>,
    /// What the portmapper is asked for otherwise.
    pub(crate) mount_port: Option<u16>,
    /// Path on the server, beginning with `/`.
    pub(crate) path: Vec<u8>,
    /// Overrides the options' user.
    pub(crate) uid: Option<u32>,
    /// Overrides the options' group.
    pub(crate) gid: Option<u32>,
    /// For people: without the query.
    pub(crate) shown: String,
}

impl NfsUrl {
    pub(crate) fn parse(url: &str) -> Result<Self, ExportError> {
        // What stands before an @ may be a password: it isn't repeated.
        let shown = if url.contains('@') { "nfs://…@…" } else { url };
        let refuse = |why: String| ExportError::Path(format!("{shown:?}: {why}; expected nfs://HOST[:PORT]/PATH"));
        let rest = url.strip_prefix("nfs://").ok_or_else(|| refuse("not an nfs:// URL".to_owned()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(refuse("a user name has no place in it (give ?uid= and ?gid=)".to_owned()));
        }
        let (host, port) = split_port(authority).map_err(&refuse)?;
        if host.is_empty() {
            return Err(refuse("the host is missing".to_owned()));
        }
        let mut path_bytes = vec![b'/'];
        path_bytes.extend(percent_decode_str(path));
        if path_bytes.len() > MOUNT_PATH_MAX || path_bytes.contains(&0) {
            return Err(refuse(format!("the path is longer than {MOUNT_PATH_MAX} bytes or holds NUL")));
        }
        let mut parsed = Self {
            host,
            nfs_port: port,
            mount_port: port,
            path: path_bytes,
            uid: None,
            gid: None,
            shown: format!("nfs://{rest}"),
        };
        for (key, value) in
            query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
        {
            let bad = || refuse(format!("{key}={value} isn't a number in range"));
            match key {
                "nfsport" => parsed.nfs_port = Some(port_number(value).ok_or_else(bad)?),
                "mountport" => parsed.mount_port = Some(port_number(value).ok_or_else(bad)?),
                "uid" => parsed.uid = Some(value.parse().map_err(|_| bad())?),
                "gid" => parsed.gid = Some(value.parse().map_err(|_| bad())?),
                "version" if value == "3" => {}
                "version" => return Err(refuse(format!("NFS version {value}: only 3 is spoken"))),
                _ => return Err(refuse(format!("unknown option {key:?} (known: {KEYS})"))),
            }
        }
        Ok(parsed)
    }
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`.
fn split_port(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("the bracket of an IPv6 address isn't closed")?;
            (host, after.strip_prefix(':').or((!after.is_empty()).then_some(after)))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => None,
        Some(text) => Some(port_number(text).ok_or_else(|| format!("the port {text:?} isn't one"))?),
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let url = NfsUrl::parse("nfs://nas.local/volume1/My%20Docs?uid=1000&gid=100&version=3").unwrap();
        assert_eq!((url.host.as_str(), url.nfs_port, url.mount_port), ("nas.local", None, None));
        assert_eq!((url.path.as_slice(), url.uid, url.gid), (b"/volume1/My Docs".as_slice(), Some(1000), Some(100)));
        assert_eq!(url.shown, "nfs://nas.local/volume1/My%20Docs");
        let url = NfsUrl::parse("nfs://127.0.0.1:2050/").unwrap();
        assert_eq!((url.nfs_port, url.mount_port, url.path.as_slice()), (Some(2050), Some(2050), b"/".as_slice()));
        let url = NfsUrl::parse("nfs://[fd00::1]:2050?mountport=20048").unwrap();
        assert_eq!((url.host.as_str(), url.nfs_port, url.mount_port), ("fd00::1", Some(2050), Some(20048)));
    }

    #[test]
    fn bad_urls_say_why() {
        for (bad, why) in [
            ("http://x/y", "nfs://"),
            ("nfs:///y", "host"),
            ("nfs://u@h/y", "user name"),
            ("nfs://h:0/y", "port"),
            ("nfs://h:99999/y", "port"),
            ("nfs://[::1/y", "bracket"),
            ("nfs://h/y?version=4", "version 4"),
            ("nfs://h/y?vers=3", "vers"),
            ("nfs://h/y?uid=-1", "uid"),
            ("nfs://h/%00", "NUL"),
        ] {
            let said = NfsUrl::parse(bad).expect_err(bad).to_string();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
