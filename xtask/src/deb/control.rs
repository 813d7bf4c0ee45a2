//! The text files of a package: control fields, changelog, copyright.

use super::contents::Package;

/// Who answers for the packages, in the form that Debian wants.
const MAINTAINER: &str = "Inglenook <inglenook@localhost>";

/// `DEBIAN/control`.
#[must_use]
pub fn control(package: &Package, version: &str, arch: &str, depends: &str, kib: u64) -> String {
    format!(
        "Package: {}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: {MAINTAINER}\nInstalled-Size: {kib}\n\
         Depends: {depends}\n{}Section: net\nPriority: optional\nDescription: {}\n{}",
        package.name, package.fields, package.summary, package.description
    )
}

/// `changelog`: one entry, for the version; what changed is told in the house's own.
#[must_use]
pub fn changelog(package: &Package, version: &str, date: &str) -> String {
    format!(
        "{} ({version}) stable; urgency=medium\n\n  * Built from the tree; CHANGELOG.md there says what is new.\n\n -- {MAINTAINER}  {date}\n",
        package.name
    )
}

/// `copyright`, with the house's licences.
#[must_use]
pub fn copyright(mit: &str) -> String {
    let paragraph: String = mit
        .lines()
        .map(|line| if line.trim().is_empty() { " .\n".to_owned() } else { format!(" {}\n", line.trim_end()) })
        .collect();
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Inglenook\n\n\
         Files: *\nCopyright: The authors of Inglenook\nLicense: Apache-2.0 or Expat\n\
         Comment: The binaries are linked with crates under licences of their own; Cargo.lock in the source names them.\n\n\
         License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\n\
         License: Expat\n{paragraph}"
    )
}

/// A version that dpkg takes: the workspace's, and the stamp behind a plus.
///
/// # Errors
/// If the stamp holds anything but letters, digits, dots and tildes, or is longer than 32.
pub fn version(workspace: &str, stamp: Option<&str>) -> anyhow::Result<String> {
    let Some(stamp) = stamp.filter(|stamp| !stamp.is_empty()) else { return Ok(workspace.to_owned()) };
    let good = stamp.len() <= 32 && stamp.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '~'));
    anyhow::ensure!(good, "INGLE_STAMP={stamp:?}: expected at most 32 letters, digits, dots or tildes");
    Ok(format!("{workspace}+{stamp}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::contents::PACKAGES;

    #[test]
    fn a_stamp_is_part_of_the_version() {
        assert_eq!(version("0.2.0", None).expect("plain"), "0.2.0");
        assert_eq!(version("0.2.0", Some("")).expect("plain"), "0.2.0");
        assert_eq!(version("0.2.0", Some("next")).expect("good"), "0.2.0+next");
        for bad in ["a b", "a/b", "ä", "a-b", &"x".repeat(33)] {
            assert!(version("0.2.0", Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn texts_have_the_form_that_dpkg_reads() {
        let control = control(&PACKAGES[0], "0.2.0", "amd64", "libc6 (>= 2.34)", 7);
        assert!(control.ends_with('\n') && !control.contains("\n\n"), "{control}");
        for field in
            ["Package: inglenook-coordinator", "Architecture: amd64", "Installed-Size: 7", "Description: Inglenook"]
        {
            assert!(control.lines().any(|line| line.starts_with(field)), "{field}: {control}");
        }
        let copyright = copyright("Permission\n\nis granted\n");
        assert!(copyright.ends_with("License: Expat\n Permission\n .\n is granted\n"), "{copyright}");
        let entry = changelog(&PACKAGES[0], "0.2.0", "Thu, 01 Jan 1970 00:00:00 +0000");
        assert!(entry.contains("\n -- Inglenook <inglenook@localhost>  Thu,"), "{entry}");
    }
}
