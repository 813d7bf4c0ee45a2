//! Which files of a repository are fetched: weights that can't hold programs, and the settings beside them. Pure.

use globset::{Glob, GlobMatcher};
use ingle_proto::ObjectPath;
use serde::Deserialize;

use crate::exit::{Exit, Failure};
use crate::human;

/// Largest file taken, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 40;
/// Most files of a repository.
const FILES_MAX: usize = 10_000;
/// What is fetched.
const TAKEN: [&str; 4] = ["safetensors", "gguf", "json", "txt"];
/// What runs programs when it is loaded.
const PICKLED: [&str; 7] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib"];

/// A repository as the hub lists it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listing {
    /// Commit that the revision stands for.
    pub(crate) sha: String,
    #[serde(default)]
    pub(crate) siblings: Vec<Sibling>,
}

/// A file of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sibling {
    pub(crate) rfilename: String,
    pub(crate) size: Option<u64>,
    pub(crate) lfs: Option<Lfs>,
}

/// What is known of a large file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Lfs {
    pub(crate) sha256: String,
}

/// A file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Checked: stays below its folder.
    pub(crate) name: String,
    pub(crate) size: u64,
    /// SHA-256 in lower-case hexadecimal, where the hub tells it (it does for weights).
    pub(crate) sha256: Option<String>,
}

/// Chooses the files: those named, or else all that are of use.
pub(crate) fn select(repository: &str, listing: &Listing, named: &[String]) -> Result<Vec<Wanted>, Failure> {
    if listing.siblings.len() > FILES_MAX {
        let count = listing.siblings.len();
        return Err(Failure::usage(format!("{repository} has {count} files; at most {FILES_MAX} are looked at")));
    }
    let chosen = if named.is_empty() { all(repository, listing)? } else { by_name(repository, listing, named)? };
    chosen.into_iter().map(|sibling| wanted(repository, sibling)).collect()
}

fn all<'a>(repository: &str, listing: &'a Listing) -> Result<Vec<&'a Sibling>, Failure> {
    let taken: Vec<&Sibling> = listing.siblings.iter().filter(|s| is(&s.rfilename, &TAKEN)).collect();
    let ggufs: Vec<&str> = taken.iter().map(|s| s.rfilename.as_str()).filter(|n| is(n, &["gguf"])).collect();
    if ggufs.len() > 1 {
        return Err(Failure::usage(format!("{repository} holds {} GGUF files: {}", ggufs.len(), listed(&ggufs)))
            .hint(format!("name the one you want: `ingle models pull {repository} {}`", ggufs[0])));
    }
    if !taken.iter().any(|s| is(&s.rfilename, &["gguf", "safetensors"])) {
        let pickled = listing.siblings.iter().find(|s| is(&s.rfilename, &PICKLED));
        let but = pickled.map(|s| format!("; {} is pickled and may run programs when loaded", s.rfilename));
        return Err(Failure::new(
            Exit::Refused,
            format!("{repository} holds no safetensors or GGUF weights{}", but.unwrap_or_default()),
        ));
    }
    Ok(taken)
}

fn by_name<'a>(repository: &str, listing: &'a Listing, named: &[String]) -> Result<Vec<&'a Sibling>, Failure> {
    let mut chosen: Vec<&Sibling> = Vec::new();
    for name in named {
        let pattern: GlobMatcher =
            Glob::new(name).map_err(|error| Failure::usage(format!("FILES {name:?}: {error}")))?.compile_matcher();
        let exact = |s: &&Sibling| s.rfilename == *name;
        let matching: Vec<&Sibling> = match listing.siblings.iter().find(exact) {
            Some(sibling) => vec![sibling],
            None => listing.siblings.iter().filter(|s| pattern.is_match(&s.rfilename)).collect(),
        };
        let usable: Vec<&Sibling> = matching.iter().copied().filter(|s| is(&s.rfilename, &TAKEN)).collect();
        match (matching.first(), usable.is_empty()) {
            (None, _) => {
                let there: Vec<&str> = listing.siblings.iter().map(|s| s.rfilename.as_str()).collect();
                return Err(Failure::new(
                    Exit::NotFound,
                    format!("{repository} has no file {name:?}; it has {}", listed(&there)),
                ));
            }
            (Some(other), true) if is(&other.rfilename, &PICKLED) => {
                return Err(Failure::new(
                    Exit::Refused,
                    format!("{} is pickled and may run programs when loaded: it is never fetched", other.rfilename),
                )
                .hint("look for a safetensors or GGUF version of the model"));
            }
            (Some(other), true) => {
                return Err(Failure::usage(format!(
                    "{} is none of the kinds that are fetched: {}",
                    other.rfilename,
                    TAKEN.join(", ")
                )));
            }
            (Some(_), false) => {}
        }
        for sibling in usable {
            if !chosen.iter().any(|c| c.rfilename == sibling.rfilename) {
                chosen.push(sibling);
            }
        }
    }
    Ok(chosen)
}

fn wanted(repository: &str, sibling: &Sibling) -> Result<Wanted, Failure> {
    let name = &sibling.rfilename;
    let bad = |what: String| Failure::new(Exit::Refused, format!("{repository}: file {name:?} {what}"));
    let path = ObjectPath::new(name.as_bytes()).map_err(|problem| bad(problem.message))?;
    if path.components().any(|c| c.starts_with(b".")) {
        return Err(bad("is hidden".into()));
    }
    let size = sibling.size.ok_or_else(|| bad("has no size".into()))?;
    if size > FILE_BYTES_MAX {
        return Err(bad(format!("has {}; at most {} are fetched", human::bytes(size), human::bytes(FILE_BYTES_MAX))));
    }
    let sha256 = sibling.lfs.as_ref().map(|lfs| lfs.sha256.to_ascii_lowercase());
    if sha256.as_ref().is_some_and(|s| s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(bad("has a malformed SHA-256".into()));
    }
    Ok(Wanted { name: name.clone(), size, sha256 })
}

fn is(name: &str, kinds: &[&str]) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    kinds.iter().any(|kind| ending.eq_ignore_ascii_case(kind))
}

fn listed(names: &[&str]) -> String {
    let mut text = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 10 {
        text.push_str(&format!(" and {} more", names.len() - 10));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| Sibling { rfilename: (*name).to_owned(), size: Some(7), lfs: None };
        Listing { sha: "a".repeat(40), siblings: names.iter().map(file).collect() }
    }

    fn names(listing: &Listing, named: &[&str]) -> Result<Vec<String>, Failure> {
        let named: Vec<String> = named.iter().map(|n| (*n).to_owned()).collect();
        Ok(select("o/r", listing, &named)?.into_iter().map(|w| w.name).collect())
    }

    #[test]
    fn all_of_use_and_nothing_pickled() {
        let repo = listing(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "vocab.txt",
            "1_Pooling/config.json",
            "onnx/model.onnx",
            "rust_model.ot",
        ]);
        assert_eq!(
            names(&repo, &[]).expect("some"),
            ["config.json", "model.safetensors", "vocab.txt", "1_Pooling/config.json"]
        );
        assert_eq!(names(&repo, &["*.json"]).expect("some"), ["config.json", "1_Pooling/config.json"]);
        assert_eq!(names(&repo, &["*"]).expect("some").len(), 4, "a wildcard never takes what isn't fetched");
        assert_eq!(names(&repo, &["pytorch_model.bin"]).expect_err("pickled").exit, Exit::Refused);
        assert_eq!(names(&repo, &["nothing.json"]).expect_err("absent").exit, Exit::NotFound);
        assert_eq!(names(&repo, &["README.md"]).expect_err("no kind of ours").exit, Exit::Usage);
    }

    #[test]
    fn one_gguf_of_many_must_be_named() {
        let repo = listing(&["m-Q4.gguf", "m-Q8.gguf", "config.json"]);
        let failure = names(&repo, &[]).expect_err("which?");
        assert!(failure.message.contains("m-Q8.gguf") && failure.hint.is_some_and(|h| h.contains("m-Q4.gguf")));
        assert_eq!(names(&repo, &["m-Q8.gguf"]).expect("named"), ["m-Q8.gguf"]);
        let failure = names(&listing(&["pytorch_model.bin", "config.json"]), &[]).expect_err("only pickled weights");
        assert!(failure.message.contains("pickled"), "{}", failure.message);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [
            "../config.json",
            "/etc/config.json",
            "a/../../config.json",
            "a//config.json",
            ".hidden/config.json",
            "a\0.json",
        ] {
            assert!(names(&listing(&["model.gguf", bad]), &[]).is_err(), "{bad}");
        }
        let mut huge = listing(&["model.gguf"]);
        huge.siblings[0].size = Some(u64::MAX);
        assert!(names(&huge, &[]).is_err());
        huge.siblings[0].size = None;
        assert!(names(&huge, &[]).is_err());
        let mut forged = listing(&["model.gguf"]);
        forged.siblings[0].lfs = Some(Lfs { sha256: "../../x".into() });
        assert!(names(&forged, &[]).is_err());
    }
}
