//! What lies in each package: files with their modes, configuration, scripts. A table, so that reading it is knowing the packages.

use std::path::Path;

/// Where a file's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A binary that cargo built.
    Binary(&'static str),
    /// A file of the tree.
    Tree(&'static str),
    /// Every file of a folder that `ingle` wrote its manual pages to, compressed.
    Manual,
    /// A completion script that `ingle` wrote, by the shell's name.
    Completions(&'static str),
}

/// A file, or a folder of them.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// Where it is installed, without the first slash.
    pub to: &'static str,
    /// What it is.
    pub from: Source,
    /// Its mode.
    pub mode: u32,
}

/// One package.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// The daemon's short name, for scripts and settings; none for `ingle`.
    pub daemon: Option<&'static str>,
    /// One line.
    pub summary: &'static str,
    /// The rest of `Description`.
    pub description: &'static str,
    /// Further fields of the control file.
    pub fields: &'static str,
    /// What is in it, beside its documentation.
    pub items: &'static [Item],
    /// Folders that are there from the start.
    pub folders: &'static [(&'static str, u32)],
}

const fn item(to: &'static str, from: Source, mode: u32) -> Item {
    Item { to, from, mode }
}

/// Every package.
pub const PACKAGES: &[Package] = &[
    Package {
        name: "inglenook-coordinator",
        daemon: Some("coordinator"),
        summary: "Inglenook: accepts, persists and schedules jobs",
        description: " The coordinator decides which machine computes what, keeps jobs, and answers\n \
                      people and programs over gRPC. It touches no document. One is enough; several\n \
                      stand in for each other over etcd.\n",
        fields: "Recommends: ingle\nSuggests: inglenook-gateway, inglenook-node, etcd-server\n",
        items: &[
            item("usr/bin/ingle-coordinator", Source::Binary("ingle-coordinator"), 0o755),
            item("etc/inglenook/coordinator.toml", Source::Tree("deploy/config/coordinator.toml"), 0o640),
            item(
                "usr/lib/systemd/system/ingle-coordinator.service",
                Source::Tree("deploy/systemd/ingle-coordinator.service"),
                0o644,
            ),
            item(
                "usr/lib/systemd/system/ingle-coordinator.socket",
                Source::Tree("deploy/systemd/ingle-coordinator.socket"),
                0o644,
            ),
            item(
                "usr/lib/sysusers.d/inglenook-coordinator.conf",
                Source::Tree("deploy/sysusers/inglenook-coordinator.conf"),
                0o644,
            ),
        ],
        folders: &[("etc/inglenook/tls", 0o750)],
    },
    Package {
        name: "inglenook-node",
        daemon: Some("node"),
        summary: "Inglenook: loads models and computes",
        description: " A node runs on each machine that computes: it loads models through the\n \
                      gateway, reads documents, answers chats, and forgets. It keeps nothing but its\n \
                      identity and caches that may be deleted.\n",
        fields: "Recommends: ingle\n",
        items: &[
            item("usr/bin/ingle-node", Source::Binary("ingle-node"), 0o755),
            item("etc/inglenook/node.toml", Source::Tree("deploy/config/node.toml"), 0o640),
            item("usr/lib/systemd/system/ingle-node.service", Source::Tree("deploy/systemd/ingle-node.service"), 0o644),
            item("usr/lib/systemd/system/ingle-node.socket", Source::Tree("deploy/systemd/ingle-node.socket"), 0o644),
            item("usr/lib/sysusers.d/inglenook-node.conf", Source::Tree("deploy/sysusers/inglenook-node.conf"), 0o644),
            item(
                "usr/lib/udev/rules.d/60-inglenook-node.rules",
                Source::Tree("deploy/udev/60-inglenook-node.rules"),
                0o644,
            ),
        ],
        folders: &[("etc/inglenook/tls", 0o750)],
    },
    Package {
        name: "inglenook-gateway",
        daemon: Some("gateway"),
        summary: "Inglenook: reads and writes the NAS",
        description: " The storage gateway is the one way to the NAS, over NFSv3, iSCSI or a local\n \
                      directory: it scans folders, reads documents and weights, and publishes results\n \
                      once. No mount is needed.\n",
        fields: "Recommends: ingle\n",
        items: &[
            item("usr/bin/ingle-gateway", Source::Binary("ingle-gateway"), 0o755),
            item("etc/inglenook/gateway.toml", Source::Tree("deploy/config/gateway.toml"), 0o640),
            item(
                "usr/lib/systemd/system/ingle-gateway.service",
                Source::Tree("deploy/systemd/ingle-gateway.service"),
                0o644,
            ),
            item(
                "usr/lib/systemd/system/ingle-gateway.socket",
                Source::Tree("deploy/systemd/ingle-gateway.socket"),
                0o644,
            ),
            item(
                "usr/lib/sysusers.d/inglenook-gateway.conf",
                Source::Tree("deploy/sysusers/inglenook-gateway.conf"),
                0o644,
            ),
        ],
        folders: &[("etc/inglenook/tls", 0o750)],
    },
    Package {
        name: "ingle",
        daemon: None,
        summary: "Inglenook: the command line",
        description: " What a person types: submit folders, watch jobs, chat, look after nodes and\n \
                      models. With the three daemons beside it, `ingle up` is a cluster on one box.\n",
        fields: "Suggests: inglenook-coordinator, inglenook-gateway, inglenook-node\n",
        items: &[
            item("usr/bin/ingle", Source::Binary("ingle"), 0o755),
            item("usr/share/man/man1", Source::Manual, 0o644),
            item("usr/share/bash-completion/completions/ingle", Source::Completions("bash"), 0o644),
            item("usr/share/zsh/vendor-completions/_ingle", Source::Completions("zsh"), 0o644),
            item("usr/share/fish/vendor_completions.d/ingle.fish", Source::Completions("fish"), 0o644),
            item("usr/share/inglenook/certs.sh", Source::Tree("deploy/certs.sh"), 0o755),
        ],
        folders: &[],
    },
];

impl Package {
    /// The binary in it.
    ///
    /// # Panics
    /// Never: a test sees to it that each package has one.
    #[must_use]
    pub fn binary(&self) -> &'static str {
        let mut binaries = self.items.iter().filter_map(|item| match item.from {
            Source::Binary(name) => Some(name),
            _ => None,
        });
        binaries.next().expect("every package has a binary: tested")
    }

    /// Files that are kept as a person left them.
    pub fn conffiles(&self) -> impl Iterator<Item = String> {
        self.items.iter().filter(|item| item.to.starts_with("etc/")).map(|item| format!("/{}", item.to))
    }

    /// Maintainer scripts, as (name, text), made from those in `deploy/deb`.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn scripts(&self, root: &Path) -> std::io::Result<Vec<(&'static str, String)>> {
        let Some(daemon) = self.daemon else { return Ok(Vec::new()) };
        let read = |name: &'static str| {
            let text = std::fs::read_to_string(root.join(format!("deploy/deb/{name}.sh")))?;
            Ok((name, text.replace("@NAME@", daemon)))
        };
        ["postinst", "prerm", "postrm"].into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_hold_what_is_in_the_tree() {
        let root = crate::workspace_root().expect("xtask lies in the workspace");
        for package in PACKAGES {
            assert!(package.items.iter().any(|item| item.to == format!("usr/bin/{}", package.binary())));
            for item in package.items {
                if let Source::Tree(path) = item.from {
                    assert!(root.join(path).is_file(), "{path}");
                }
            }
            for (name, text) in package.scripts(&root).expect("scripts are there") {
                assert!(text.starts_with("#!/bin/sh\n") && !text.contains('@'), "{} of {}", name, package.name);
            }
            assert!(
                package.description.lines().all(|line| line.starts_with(' ') && line.len() <= 80),
                "{}",
                package.name
            );
        }
    }
}
