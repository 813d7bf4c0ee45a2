//! A Prometheus on loopback for one test, where one is installed, and what its HTTP API says.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::eventually::patience;
use crate::ports::port;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A server with its data. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _data: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes each (job, address) every second, and evaluates rules from these files as often. `None`, said
    /// aloud, where none is installed.
    ///
    /// # Panics
    /// One is installed and doesn't come up.
    #[must_use]
    pub fn start(targets: &[(&str, SocketAddr)], rules: &[PathBuf]) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some(binary) = std::env::split_paths(&path).map(|dir| dir.join("prometheus")).find(|file| file.is_file())
        else {
            eprintln!("skipped: no prometheus here: install the package prometheus");
            return None;
        };
        // A program that is no test may have taken its port meanwhile.
        (0..5).find_map(|_| Self::try_start(&binary, targets, rules)).or_else(|| panic!("prometheus doesn't come up"))
    }

    fn try_start(binary: &Path, targets: &[(&str, SocketAddr)], rules: &[PathBuf]) -> Option<Self> {
        let data = tempfile::tempdir().expect("a directory");
        let mut text = "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n".to_owned();
        for file in rules {
            let _ = writeln!(text, "  - {}", file.display());
        }
        text += "scrape_configs:\n";
        let mut jobs: Vec<&str> = targets.iter().map(|(job, _)| *job).collect();
        jobs.dedup();
        for job in jobs {
            let of: Vec<String> =
                targets.iter().filter(|(of, _)| *of == job).map(|(_, at)| format!("\"{at}\"")).collect();
            let _ = writeln!(text, "  - job_name: {job}\n    static_configs:\n      - targets: [{}]", of.join(", "));
        }
        let config = data.path().join("prometheus.yml");
        std::fs::write(&config, text).expect("room");
        let address = SocketAddr::from(([127, 0, 0, 1], port()));
        let log = std::fs::File::create(data.path().join("log")).expect("room");
        let child = Command::new(binary)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut server = Self { child, address, _data: data };
        let begun = Instant::now();
        while begun.elapsed() < patience() {
            if server.child.try_wait().expect("ours").is_some() {
                eprintln!("{}", std::fs::read_to_string(server._data.path().join("log")).unwrap_or_default());
                return None;
            }
            if TcpStream::connect(address).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// What an expression gave over the last five minutes: one entry per series.
    ///
    /// # Errors
    /// What Prometheus has against it.
    pub async fn over_time(&self, expression: &str) -> Result<Vec<Value>, String> {
        let now = ingle_daemon::clock::unix_ms() / 1000;
        let query =
            [("query", expression), ("start", &(now - 300).to_string()), ("end", &now.to_string()), ("step", "1")];
        let answer = self.get("query_range", &query).await?;
        Ok(answer["result"].as_array().cloned().unwrap_or_default())
    }

    /// The `data` of an answer of the API.
    ///
    /// # Errors
    /// What Prometheus says, or that it doesn't answer.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let query: Vec<String> =
            query.iter().map(|(key, value)| format!("{}={}", quoted(key), quoted(value))).collect();
        let fetch = async {
            let mut stream = tokio::net::TcpStream::connect(self.address).await?;
            // HTTP/1.0: the answer isn't chunked, and ends with the connection.
            let request = format!("GET /api/v1/{path}?{} HTTP/1.0\r\nhost: localhost\r\n\r\n", query.join("&"));
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(patience(), fetch).await.map_err(|_| "no answer in time".to_owned())?;
        let answer =
            String::from_utf8(answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let said: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))?;
        match said["status"].as_str() {
            Some("success") => Ok(said["data"].clone()),
            _ => Err(said["error"].as_str().unwrap_or(body).to_owned()),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
