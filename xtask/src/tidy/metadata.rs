//! The workspace as cargo describes it: its packages, who depends on whom, and what is linked in the end.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

/// Why one package needs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In the product.
    Normal,
    /// In tests only.
    Dev,
    /// In a build script only.
    Build,
}

/// One edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The package needed.
    pub name: String,
    /// Why.
    pub kind: Kind,
}

/// One member of the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What it depends on directly.
    pub dependencies: Vec<Dependency>,
    /// Cargo features it declares.
    pub features: Vec<String>,
    /// Its licence expression.
    pub licence: Option<String>,
    /// Its manifest, relative to the root.
    pub manifest: String,
}

/// All members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// In cargo's order.
    pub packages: Vec<Package>,
    /// Names of every package linked into a binary of ours or its build, others' included.
    pub linked: BTreeSet<String>,
}

impl Metadata {
    /// Asks cargo.
    ///
    /// # Errors
    /// If cargo fails or answers with something unforeseen.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let answer = cargo(root, &["metadata", "--format-version", "1", "--no-deps"])?;
        let json: Value = serde_json::from_str(&answer).context("cargo metadata's answer")?;
        let tree =
            cargo(root, &["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])?;
        let linked = tree.lines().filter_map(|line| line.split_whitespace().next()).map(Into::into).collect();
        Ok(Self { linked, ..Self::parse(&json, root)? })
    }

    fn parse(json: &Value, root: &Path) -> anyhow::Result<Self> {
        let packages = json["packages"].as_array().context("cargo metadata: no `packages`")?;
        let packages = packages.iter().map(|package| parse_package(package, root)).collect::<anyhow::Result<_>>()?;
        Ok(Self { packages, ..Self::default() })
    }
}

/// What a cargo command answers.
fn cargo(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root).output().context("running cargo")?;
    if !output.status.success() {
        anyhow::bail!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("cargo's answer isn't UTF-8")
}

fn parse_package(json: &Value, root: &Path) -> anyhow::Result<Package> {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    let name = text("name").context("cargo metadata: a package without a name")?;
    let dependencies = json["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let dependencies = dependencies
        .iter()
        .filter_map(|dependency| {
            let kind = match dependency["kind"].as_str() {
                Some("dev") => Kind::Dev,
                Some("build") => Kind::Build,
                _ => Kind::Normal,
            };
            Some(Dependency { name: dependency["name"].as_str()?.to_owned(), kind })
        })
        .collect();
    let manifest = text("manifest_path").with_context(|| format!("cargo metadata: {name} has no manifest"))?;
    let manifest = Path::new(&manifest);
    Ok(Package {
        dependencies,
        features: json["features"].as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default(),
        licence: text("license"),
        manifest: manifest.strip_prefix(root).unwrap_or(manifest).to_string_lossy().into_owned(),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_cargo_says() {
        let json = serde_json::json!({"packages": [{
            "name": "a", "license": "MIT", "manifest_path": "/r/a/Cargo.toml", "features": {"cuda": []},
            "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}, {"name": "d", "kind": "build"}],
        }]});
        let metadata = Metadata::parse(&json, Path::new("/r")).expect("sound");
        let package = &metadata.packages[0];
        assert_eq!((package.name.as_str(), package.manifest.as_str()), ("a", "a/Cargo.toml"));
        assert_eq!(package.features, ["cuda"]);
        let kinds: Vec<Kind> = package.dependencies.iter().map(|dependency| dependency.kind).collect();
        assert_eq!(kinds, [Kind::Normal, Kind::Dev, Kind::Build]);
        assert!(Metadata::parse(&serde_json::json!({}), Path::new("/r")).is_err());
    }
}
