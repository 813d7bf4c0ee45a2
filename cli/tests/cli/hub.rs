//! `models pull` against a hub played by this test: whole, interrupted, forged, and gone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{code, json, stderr, stdout};

const WEIGHTS: usize = 300_000;
/// SHA-256 of the weights below.
const WEIGHTS_SHA256: &str = "b1cf7538cf80d01efe3e0b8e45dc930048a138c7b6f8c4aff08f478e4695e631";

fn weights() -> Vec<u8> {
    (0..WEIGHTS).map(|i| (i * 7 % 251) as u8).collect()
}

/// Path and range of each request.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

struct Hub {
    endpoint: String,
    asked: Asked,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Fine,
    /// The weights' first answer breaks off in the middle.
    BreaksOff,
    /// Never answers with a part.
    NoRanges,
    /// Other bytes than promised.
    Forges,
    Gated,
}

impl Hub {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let served = Arc::new(AtomicUsize::new(0));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (log, served) = (Arc::clone(&log), Arc::clone(&served));
                std::thread::spawn(move || serve(connection, mood, &log, &served));
            }
        });
        Self { endpoint, asked }
    }

    fn pull(&self, into: &Path, arguments: &[&str]) -> Output {
        let mut command = super::ingle(&["models", "pull"]);
        command.args(arguments).arg("--into").arg(into).env("HF_ENDPOINT", &self.endpoint);
        command.output().expect("the binary starts")
    }
}

fn serve(connection: TcpStream, mood: Mood, log: &Mutex<Vec<(String, Option<String>)>>, served: &AtomicUsize) {
    let mut reader = BufReader::new(connection);
    loop {
        let (mut path, mut range) = (String::new(), None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            }
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("range")
            {
                range = Some(value.to_owned());
            }
        }
        log.lock().expect("no panic").push((path.clone(), range.clone()));
        let mut out = reader.get_ref();
        let listing = |sha: &str| {
            format!(
                r#"{{"sha":"{}","siblings":[{{"rfilename":"config.json","size":14}},{{"rfilename":"pytorch_model.bin","size":9}},
                {{"rfilename":"model.safetensors","size":{WEIGHTS},"lfs":{{"sha256":"{sha}","size":{WEIGHTS}}}}}]}}"#,
                "ab12".repeat(10)
            )
        };
        let mut whole = |status: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            out.write_all(head.as_bytes()).and_then(|()| out.write_all(body)).is_ok()
        };
        let fine = match path.as_str() {
            _ if mood == Mood::Gated => whole("401 Unauthorized", b"{}"),
            p if p.starts_with("/api/models/owner/small/revision/main") => {
                whole("200 OK", listing(WEIGHTS_SHA256).as_bytes())
            }
            p if p.ends_with("/resolve/ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12/config.json") => {
                whole("200 OK", b"{\"a\":\"config\"}")
            }
            p if p.ends_with("/model.safetensors") => {
                let mut bytes = weights();
                if mood == Mood::Forges {
                    bytes[1000] ^= 1;
                }
                let first = served.fetch_add(1, Ordering::SeqCst) == 0;
                let start =
                    range.as_ref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
                let (status, more, body) = match start {
                    Some(start) if mood != Mood::NoRanges => {
                        let range = format!("Content-Range: bytes {start}-{}/{WEIGHTS}\r\n", WEIGHTS - 1);
                        ("206 Partial Content", range, bytes.split_off(start))
                    }
                    _ => ("200 OK", String::new(), bytes),
                };
                let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n", body.len());
                let breaks = first && matches!(mood, Mood::BreaksOff | Mood::NoRanges);
                let sent = if breaks { &body[..body.len() / 3] } else { &body[..] };
                let mut out = reader.get_ref();
                out.write_all(head.as_bytes()).and_then(|()| out.write_all(sent)).is_ok() && !breaks
            }
            _ => whole("404 Not Found", b"{}"),
        };
        if !fine {
            return;
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_repository_becomes_a_folder() {
    let hub = Hub::start(Mood::Fine);
    let dir = tempfile::tempdir().expect("a directory");
    let output = hub.pull(dir.path(), &["owner/small", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let said = json(&stdout(&output));
    assert_eq!(said["model"], "small");
    assert_eq!(names(dir.path()), ["small"], "nothing half-done is left");
    assert_eq!(names(&dir.path().join("small")), ["config.json", "model.safetensors"], "nothing pickled came");
    assert_eq!(std::fs::read(dir.path().join("small/model.safetensors")).expect("there"), weights());
    let output = hub.pull(dir.path(), &["owner/small", "pytorch_model.bin"]);
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("pickled"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_file_is_gone_on_with() {
    let hub = Hub::start(Mood::BreaksOff);
    let dir = tempfile::tempdir().expect("a directory");
    let output = hub.pull(dir.path(), &["owner/small"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(dir.path().join("small/model.safetensors")).expect("there"), weights());
    let ranges: Vec<_> = hub.asked.lock().unwrap().iter().filter_map(|(_, range)| range.clone()).collect();
    assert_eq!(ranges, ["bytes=100000-"], "only the rest was asked for");
}

#[test]
fn a_server_without_ranges_is_begun_anew() {
    let hub = Hub::start(Mood::NoRanges);
    let dir = tempfile::tempdir().expect("a directory");
    let output = hub.pull(dir.path(), &["owner/small"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(std::fs::read(dir.path().join("small/model.safetensors")).expect("there"), weights());
}

#[test]
fn forged_weights_are_never_put_in_place() {
    let hub = Hub::start(Mood::Forges);
    let dir = tempfile::tempdir().expect("a directory");
    let output = hub.pull(dir.path(), &["owner/small"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("SHA-256"), "{}", stderr(&output));
    assert!(!dir.path().join("small").exists());
}

#[test]
fn what_is_not_there_or_not_reached_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Hub::start(Mood::Fine).pull(dir.path(), &["owner/absent"]);
    assert_eq!(code(&output), 4, "{}", stderr(&output));
    let output = Hub::start(Mood::Gated).pull(dir.path(), &["owner/small"]);
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("HF_TOKEN"), "{}", stderr(&output));
    let port = crate::ports::port();
    let gone = Hub { endpoint: format!("http://127.0.0.1:{port}"), asked: Arc::default() };
    let output = gone.pull(dir.path(), &["owner/small"]);
    assert_eq!(code(&output), 6);
    assert!(stderr(&output).contains("--starter"), "what else can be done: {}", stderr(&output));
    let plain = Hub { endpoint: "http://example.invalid".into(), asked: Arc::default() };
    assert_eq!(code(&plain.pull(dir.path(), &["owner/small"])), 2, "never in plaintext over the network");
    assert!(names(dir.path()).is_empty());
}
