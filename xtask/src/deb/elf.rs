//! What a binary needs to start: its machine, its libraries, and the newest glibc whose symbols it names.

use anyhow::{Context as _, bail, ensure};

/// Machines that packages are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// As Debian calls it.
    #[must_use]
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As rustc calls it.
    #[must_use]
    pub const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The machine that we run on, if packages are made for it.
    #[must_use]
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// `e_machine`.
    #[must_use]
    pub const fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
}

/// What stands in a binary's dynamic section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// `e_machine`.
    pub machine: u16,
    /// Names of libraries.
    pub libraries: Vec<String>,
    /// The newest `GLIBC_MAJOR.MINOR`.
    pub glibc: (u32, u32),
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;
/// Program headers, entries of the dynamic section, and versions that are looked at.
const ENTRIES_MAX: usize = 4096;

/// Reads what `bytes`, a 64-bit little-endian ELF file, needs.
///
/// # Errors
/// If it isn't one, or is cut short.
pub fn needs(bytes: &[u8]) -> anyhow::Result<Needs> {
    let file = File(bytes);
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "expected a 64-bit little-endian ELF file");
    let (table, size, count) = (file.u64(0, 32)?, u64::from(file.u16(0, 54)?), u64::from(file.u16(0, 56)?));
    let headers: Vec<u64> = (0..count).map(|index| table.saturating_add(index.saturating_mul(size))).collect();
    let mut loads = Vec::new();
    let mut dynamic = None;
    for header in headers {
        let (offset, address, length) = (file.u64(header, 8)?, file.u64(header, 16)?, file.u64(header, 32)?);
        match file.u32(header, 0)? {
            PT_LOAD => loads.push((address, offset, length)),
            PT_DYNAMIC => dynamic = Some((offset, length)),
            _ => {}
        }
    }
    let mut found = Needs { machine: file.u16(0, 18)?, libraries: Vec::new(), glibc: (2, 17) };
    let Some((dynamic, length)) = dynamic else { return Ok(found) };
    let place = |address: u64| {
        let load = loads.iter().find(|(start, _, length)| (*start..start.saturating_add(*length)).contains(&address));
        load.map(|(start, offset, _)| (address - start).saturating_add(*offset))
            .context("an address outside every segment")
    };
    let mut entries = Vec::new();
    for index in 0..(length / 16).min(ENTRIES_MAX as u64) {
        match (file.u64(dynamic, index * 16)?, file.u64(dynamic, index * 16 + 8)?) {
            (0, _) => break,
            entry => entries.push(entry),
        }
    }
    let value = |tag: u64| entries.iter().find(|(theirs, _)| *theirs == tag).map(|(_, value)| *value);
    let strings = place(value(DT_STRTAB).context("no table of strings")?)?;
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        found.libraries.push(file.text(strings.saturating_add(*name))?);
    }
    let (Some(versions), Some(count)) = (value(DT_VERNEED), value(DT_VERNEEDNUM)) else { return Ok(found) };
    let mut library = place(versions)?;
    for _ in 0..count.min(ENTRIES_MAX as u64) {
        let mut version = library.saturating_add(u64::from(file.u32(library, 8)?));
        for _ in 0..file.u16(library, 2)? {
            let name = file.text(strings.saturating_add(u64::from(file.u32(version, 8)?)))?;
            found.glibc = found.glibc.max(glibc(&name).unwrap_or_default());
            version = version.saturating_add(u64::from(file.u32(version, 12)?));
        }
        library = library.saturating_add(u64::from(file.u32(library, 12)?));
    }
    Ok(found)
}

/// The number in a version's name; the relocations of newer linkers have a name without one.
fn glibc(name: &str) -> Option<(u32, u32)> {
    if name == "GLIBC_ABI_DT_RELR" {
        return Some((2, 36));
    }
    let mut numbers = name.strip_prefix("GLIBC_")?.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The Debian packages that hold what is needed, for the field `Depends`.
///
/// # Errors
/// If a library is of a package that isn't known here: a daemon got a dependency that nobody meant it to have.
pub fn packages(needs: &Needs) -> anyhow::Result<Vec<String>> {
    let mut packages = vec![format!("libc6 (>= {}.{})", needs.glibc.0, needs.glibc.1)];
    for library in &needs.libraries {
        let package = match library.as_str() {
            "libgcc_s.so.1" => "libgcc-s1",
            "libstdc++.so.6" => "libstdc++6",
            name if is_glibc(name) => continue,
            other => bail!(
                "needs {other}, of a package that isn't known; name it in xtask/src/deb/elf.rs, or link without it"
            ),
        };
        if !packages.iter().any(|known| known == package) {
            packages.push(package.to_owned());
        }
    }
    Ok(packages)
}

fn is_glibc(name: &str) -> bool {
    ["libc.so.", "libm.so.", "libdl.so.", "libpthread.so.", "librt.so.", "libresolv.so.", "ld-linux"]
        .iter()
        .any(|start| name.starts_with(start))
}

struct File<'a>(&'a [u8]);

impl File<'_> {
    fn at<const N: usize>(&self, base: u64, offset: u64) -> anyhow::Result<[u8; N]> {
        let offset = base.saturating_add(offset);
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        rest.and_then(|rest| rest.first_chunk::<N>()).copied().with_context(|| format!("cut short at byte {offset}"))
    }

    fn u16(&self, base: u64, offset: u64) -> anyhow::Result<u16> {
        self.at(base, offset).map(u16::from_le_bytes)
    }

    fn u32(&self, base: u64, offset: u64) -> anyhow::Result<u32> {
        self.at(base, offset).map(u32::from_le_bytes)
    }

    fn u64(&self, base: u64, offset: u64) -> anyhow::Result<u64> {
        self.at(base, offset).map(u64::from_le_bytes)
    }

    fn text(&self, offset: u64) -> anyhow::Result<String> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let end = rest.iter().take(ENTRIES_MAX).position(|byte| *byte == 0).context("a name without an end")?;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ourselves() -> Vec<u8> {
        std::fs::read(std::env::current_exe().expect("we run")).expect("we may read ourselves")
    }

    #[test]
    fn our_own_needs_are_found() {
        let needs = needs(&ourselves()).expect("a test is an ELF file");
        assert_eq!(Some(needs.machine), Arch::host().map(Arch::machine));
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{needs:?}");
        assert!(needs.glibc >= (2, 17) && needs.glibc < (3, 0), "{needs:?}");
        let packages = packages(&needs).expect("only what is known");
        assert!(packages[0].starts_with("libc6 (>= 2."), "{packages:?}");
    }

    #[test]
    fn what_is_no_binary_is_refused() {
        let whole = ourselves();
        for bad in [&b""[..], b"#!/bin/sh\n", &whole[..40], &whole[..600]] {
            assert!(needs(bad).is_err(), "{} bytes", bad.len());
        }
        // Whatever stands there, it is read or refused, and never a panic.
        let mut spoilt = whole[..whole.len().min(1 << 16)].to_vec();
        for at in 16..64 {
            spoilt[at] ^= 0xff;
            let _ = needs(&spoilt);
        }
    }

    #[test]
    fn a_library_that_nobody_meant_is_named() {
        let mut needs =
            Needs { machine: 62, libraries: vec!["libc.so.6".into(), "libssl.so.3".into()], glibc: (2, 34) };
        assert!(packages(&needs).expect_err("unknown").to_string().contains("libssl.so.3"));
        needs.libraries = vec!["libgcc_s.so.1".into(), "libm.so.6".into(), "ld-linux-aarch64.so.1".into()];
        assert_eq!(packages(&needs).expect("known"), ["libc6 (>= 2.34)", "libgcc-s1"]);
        assert_eq!(glibc("GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(glibc("GLIBC_PRIVATE"), None);
    }
}
