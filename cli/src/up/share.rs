//! What is served, and from where: `NAME=URL` as it is typed.

use std::path::{Path, PathBuf};

use ingle_proto::storage::export_name;

use crate::exit::Failure;

/// The export that models are read from.
pub(crate) const MODELS: &str = "models";
/// Most shares; each directory takes a port.
const SHARES_MAX: usize = 16;

/// An export of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) read_only: bool,
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A directory that an NFS server of our own serves.
    Directory(PathBuf),
    /// Something that the gateway reads as it is: `nfs://…` or `file://…`.
    Url(String),
}

impl Share {
    /// For people.
    pub(crate) fn described(&self) -> String {
        match &self.source {
            Source::Directory(dir) => format!("{} over NFS", dir.display()),
            Source::Url(url) => url.clone(),
        }
    }

    pub(crate) fn access(&self) -> &'static str {
        if self.read_only { "read-only" } else { "" }
    }

    /// Whether it is this directory.
    pub(crate) fn is(&self, dir: &Path) -> bool {
        matches!(&self.source, Source::Directory(d) if d == dir)
    }
}

/// The shares asked for and that of the models, checked against each other and the data directory.
pub(crate) fn read(shares: &[String], models: &str, data: &Path) -> Result<Vec<Share>, Failure> {
    let mut read: Vec<Share> = Vec::new();
    for text in shares {
        let (name, url) = text.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--share is NAME=URL, got {text:?}")).hint(format!("e.g. --share docs={text}"))
        })?;
        let name = export_name(name)?;
        if name == MODELS || name == "state" {
            return Err(Failure::usage(format!("--share {name}=…: that name is taken; choose another"))
                .hint("models are named with --models URL"));
        }
        if read.iter().any(|s| s.name == name) {
            return Err(Failure::usage(format!("--share {name}=… is given twice")));
        }
        let source = source(&format!("--share {name}"), url)?;
        if let Source::Directory(dir) = &source
            && data.starts_with(dir)
        {
            return Err(Failure::usage(format!("--share {name}: {} holds the data directory {}", dir.display(), data.display()))
                .hint("what Inglenook keeps there would be read as documents: share a directory below, or name another with --data"));
        }
        read.push(Share { name, source, read_only: false });
    }
    if read.len() > SHARES_MAX {
        return Err(Failure::usage(format!("{} shares; at most {SHARES_MAX} can be served", read.len())));
    }
    read.push(Share { name: MODELS.to_owned(), source: source("--models", models)?, read_only: true });
    Ok(read)
}

fn source(option: &str, url: &str) -> Result<Source, Failure> {
    if let Some((scheme, rest)) = url.split_once("://") {
        return match scheme {
            "nfs" if !rest.is_empty() && !rest.starts_with('/') => Ok(Source::Url(url.to_owned())),
            "file" if rest.starts_with('/') => Ok(Source::Url(url.to_owned())),
            _ => Err(Failure::usage(format!(
                "{option} {url:?}: expected a directory, nfs://HOST/PATH or file:///DIRECTORY"
            ))),
        };
    }
    // A shell expands `~` at the beginning of a word only, and ours stands after NAME=.
    let path = match (url.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(url),
    };
    let dir = path.canonicalize().map_err(|error| Failure::usage(format!("{option} {url:?}: {error}")))?;
    if !dir.is_dir() {
        return Err(Failure::usage(format!("{option} {url:?} is not a directory")));
    }
    if dir.to_str().is_none() {
        return Err(Failure::usage(format!("{option} {url:?}: its name is not UTF-8, which settings files are")));
    }
    Ok(Source::Directory(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_directories_or_urls() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().canonicalize().expect("it exists");
        let shares = [format!("docs={}", path.display()), "nas=nfs://nas/volume1".into(), "usb=file:///media/x".into()];
        let read = read(&shares, &path.display().to_string(), Path::new("/nowhere/data")).expect("fine");
        assert_eq!(read[0].source, Source::Directory(path));
        assert_eq!(read[1].source, Source::Url("nfs://nas/volume1".into()));
        assert_eq!((read[3].name.as_str(), read[3].read_only), (MODELS, true));
    }

    #[test]
    fn what_can_not_be_shared_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().canonicalize().expect("it exists");
        let data = path.join("data");
        let here = path.display().to_string();
        let file = path.join("f");
        std::fs::write(&file, "x").expect("room");
        for (share, word) in [
            ("docs".to_owned(), "NAME=URL"),
            (format!("a b={here}"), "export"),
            (format!("models={here}"), "taken"),
            (format!("state={here}"), "taken"),
            ("docs=/nowhere/at/all".into(), "/nowhere/at/all"),
            ("docs=http://x/y".into(), "nfs://"),
            ("docs=nfs:///y".into(), "nfs://"),
            ("docs=file://y".into(), "file:///"),
            (format!("docs={}", file.display()), "not a directory"),
            (format!("docs={here}"), "data directory"),
        ] {
            let failure = read(std::slice::from_ref(&share), "file:///m", &data).expect_err(&share);
            assert!(failure.message.contains(word), "{share}: {}", failure.message);
        }
        let twice = ["a=file:///x".to_owned(), "a=file:///y".to_owned()];
        assert!(read(&twice, "file:///m", &data).is_err());
        let many: Vec<String> = (0..17).map(|i| format!("s{i}=file:///x")).collect();
        assert!(read(&many, "file:///m", &data).is_err());
    }
}
