//! One file over HTTP into a directory: goes on where an earlier try stopped, and is there only once it is checked.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;

use super::at;
use super::select::Wanted;
use crate::exit::{Exit, Failure};
use crate::human;

/// How often a broken connection is made again without a byte having come.
const RETRIES: u32 = 5;
/// The first pause before that; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// What went wrong with one try.
enum Broken {
    /// Another try may help.
    Retry(String),
    /// None does.
    Final(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

/// Fetches `url` to `dir`/`wanted.name` unless it lies there already. `come` is told how many bytes are there.
///
/// # Errors
/// A file whose bytes are not those promised is taken away again and said.
pub(crate) fn fetch(
    agent: &ureq::Agent,
    token: Option<&str>,
    url: &str,
    wanted: &Wanted,
    dir: &Path,
    mut come: impl FnMut(u64),
) -> Result<PathBuf, Failure> {
    let place = dir.join(&wanted.name);
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent).map_err(|error| at(parent, &error))?;
    }
    if std::fs::metadata(&place).is_ok_and(|m| m.len() == wanted.size) {
        come(wanted.size);
        return Ok(place);
    }
    let part = dir.join(format!("{}.part", wanted.name));
    let (mut tries, mut had) = (0, 0);
    loop {
        match once(agent, token, url, wanted, &part, &mut come) {
            Ok(()) => break,
            Err(Broken::Final(failure)) => return Err(failure),
            Err(Broken::Retry(why)) => {
                let has = std::fs::metadata(&part).map_or(0, |m| m.len());
                // As long as bytes come it goes on.
                tries = if has > had { 0 } else { tries + 1 };
                had = has;
                if tries >= RETRIES {
                    return Err(Failure::new(Exit::TryLater, format!("{}: {why}", wanted.name))
                        .hint("the same command goes on where it was"));
                }
                std::thread::sleep(PAUSE * 2u32.pow(tries));
            }
        }
    }
    std::fs::rename(&part, &place).map_err(|error| at(&place, &error))?;
    Ok(place)
}

fn once(
    agent: &ureq::Agent,
    token: Option<&str>,
    url: &str,
    wanted: &Wanted,
    part: &Path,
    come: &mut impl FnMut(u64),
) -> Result<(), Broken> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).read(true).append(true).open(part).map_err(|error| at(part, &error))?;
    let mut hasher = Sha256::new();
    let mut has = file.metadata().map_err(|error| at(part, &error))?.len();
    if has > wanted.size {
        file.set_len(0).map_err(|error| at(part, &error))?;
        has = 0;
    }
    if has > 0 {
        file.seek(SeekFrom::Start(0)).map_err(|error| at(part, &error))?;
        std::io::copy(&mut file, &mut hasher).map_err(|error| at(part, &error))?;
        come(has);
    }
    if has < wanted.size {
        let mut request = agent.get(url);
        if has > 0 {
            request = request.header("Range", format!("bytes={has}-"));
        }
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| Broken::Retry(error.to_string()))?;
        match (response.status(), has) {
            (StatusCode::OK, 0) => {}
            (StatusCode::PARTIAL_CONTENT, _) if resumes_at(&response) == Some(has) => {}
            (StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _) => {
                // It can't go on where we are: begin anew.
                file.set_len(0).map_err(|error| at(part, &error))?;
                return Err(Broken::Retry("the server does not go on where it was".into()));
            }
            (status, _) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Broken::Retry(format!("the server answered {status}")));
            }
            (status, _) => return Err(Broken::Final(super::hub::refusal(&wanted.name, status))),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let read = body.read(&mut buffer).map_err(|error| Broken::Retry(error.to_string()))?;
            if read == 0 {
                break;
            }
            has += read as u64;
            if has > wanted.size {
                file.set_len(0).map_err(|error| at(part, &error))?;
                let size = human::bytes(wanted.size);
                return Err(Failure::new(
                    Exit::WorkFailed,
                    format!("{}: more than the {size} promised came", wanted.name),
                )
                .into());
            }
            file.write_all(&buffer[..read]).map_err(|error| at(part, &error))?;
            hasher.update(&buffer[..read]);
            come(has);
        }
        if has < wanted.size {
            return Err(Broken::Retry(format!(
                "the connection ended after {} of {}",
                human::bytes(has),
                human::bytes(wanted.size)
            )));
        }
    }
    file.sync_all().map_err(|error| at(part, &error))?;
    let found: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if wanted.sha256.as_ref().is_some_and(|expected| *expected != found) {
        file.set_len(0).map_err(|error| at(part, &error))?;
        return Err(Failure::new(Exit::WorkFailed, format!("{}: its SHA-256 is not what the hub says", wanted.name))
            .hint("try again; if it stays so, something between alters files")
            .into());
    }
    Ok(())
}

/// Where a partial answer begins, from `Content-Range: bytes START-END/TOTAL`.
fn resumes_at(response: &ureq::http::Response<ureq::Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
