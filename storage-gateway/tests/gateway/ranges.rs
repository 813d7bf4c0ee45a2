//! The range endpoint as a program meets it: over TCP, TLS and a socket of the file system, with gRPC's checks.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::metrics::Metrics;
use ingle_daemon::{Shutdown, Tasks};
use ingle_gateway::Config;
use ingle_gateway::config::ExportConfig;
use ingle_proto::v1;
use ingle_proto::v1::storage_client::StorageClient;

struct Served {
    told: v1::RangesResponse,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

/// An answer as it came: status, head in lower case, body.
type Answer = (u16, String, Vec<u8>);

impl Served {
    async fn start(tls: TlsConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("docs/.inglenook")).unwrap();
        std::fs::write(dir.path().join("docs/a b.bin"), pattern()).unwrap();
        std::fs::write(dir.path().join("docs/.inglenook/x"), "ours").unwrap();
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics: None,
            state_dir: dir.path().join("state"),
            tls: tls.clone(),
            ..Config::default()
        };
        let url = format!("file://{}", dir.path().join("docs").display());
        config.exports.insert("docs".into(), ExportConfig { url, ..ExportConfig::default() });
        let listener = ingle_daemon::grpc::bind(config.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let (tasks, ending, metrics) = (Tasks::new(shutdown.clone()), shutdown.clone(), Metrics::new("test"));
        #[allow(clippy::disallowed_methods, reason = "awaited by stop")]
        let serving = tokio::spawn(async move {
            ingle_gateway::run(listener, config, &metrics, tasks.clone(), ending).await.unwrap();
            assert_eq!(tasks.shutdown_all(std::time::Duration::from_secs(10)).await, [""; 0]);
        });
        let scheme = if tls.serves() { "https" } else { "http" };
        let options = ingle_daemon::grpc::ConnectOptions::eager();
        let channel = ingle_daemon::grpc::connect(&format!("{scheme}://{address}"), &tls, &options).await.unwrap();
        let told = StorageClient::new(channel).ranges(v1::RangesRequest {}).await.unwrap().into_inner();
        Self { told, shutdown, serving, dir }
    }

    async fn stop(self) {
        self.shutdown.begin();
        self.serving.await.unwrap();
        assert!(!Path::new(&self.told.unix_socket).exists(), "the socket went with the gateway");
    }

    fn get(&self, target: &str, headers: &str) -> Answer {
        let port = u16::try_from(self.told.port).unwrap();
        ask(TcpStream::connect(("127.0.0.1", port)).unwrap(), "GET", target, headers)
    }
}

fn pattern() -> Vec<u8> {
    (0..700_000u32).map(|i| (i >> 3) as u8).collect()
}

fn ask(mut stream: impl std::io::Read + std::io::Write, method: &str, target: &str, headers: &str) -> Answer {
    write!(stream, "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    (head[9..12].parse().unwrap(), head, answer.split_off(end))
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let line = answer.1.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {}", answer.1))
}

fn pem(name: &str) -> Option<PathBuf> {
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/tests/daemon/tls").join(name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_versions_and_refusals() {
    let served = Served::start(TlsConfig::default()).await;
    let data = pattern();
    let whole = served.get("/objects/docs/a%20b.bin", "");
    assert_eq!((whole.0, &whole.2), (200, &data));
    assert_eq!(header(&whole, "ingle-instance"), served.told.instance);
    let part = served.get("/objects/docs/a%20b.bin", "range: bytes=262000-600000\r\n");
    assert_eq!((part.0, part.2.as_slice()), (206, &data[262_000..=600_000]));
    assert_eq!(header(&part, "content-range"), "bytes 262000-600000/700000");
    let beyond = served.get("/objects/docs/a%20b.bin", "range: bytes=699990-800000\r\n");
    assert_eq!((beyond.0, beyond.2.as_slice()), (206, &data[699_990..]));
    assert_eq!(served.get("/objects/docs/a%20b.bin", "range: bytes=700000-\r\n").0, 416);
    let etag = header(&whole, "etag").to_owned();
    let same = format!("if-match: {etag}\r\nrange: bytes=0-9\r\n");
    assert_eq!(served.get("/objects/docs/a%20b.bin", &same).0, 206);
    std::fs::write(served.dir.path().join("docs/a b.bin"), "another").unwrap();
    let other = served.get("/objects/docs/a%20b.bin", &same);
    assert_eq!((other.0, header(&other, "ingle-code")), (412, "object_changed"));
    for (target, headers, status, code) in [
        ("/objects/docs/none", "", 404, "object_not_found"),
        ("/objects/elsewhere/a", "", 404, "export_not_found"),
        ("/objects/docs/.inglenook/x", "", 400, "path_refused"),
        ("/objects/docs/%2e%2e/state/x", "", 400, "path_refused"),
        ("/objects/docs/a%2f..%2fb", "", 400, "path_refused"),
        ("/objects/docs/", "", 400, "object_kind"),
        ("/objects/docs/a%20b.bin", "range: bytes=9-1\r\n", 400, "invalid_argument"),
        ("/objects/docs/a%20b.bin", "range: bytes=8-\r\n", 400, "invalid_argument"),
        // An empty token opens nothing.
        ("/objects/docs/a%20b.bin", "ingle-token: \r\n", 403, "storage_denied"),
        ("/elsewhere", "", 400, "invalid_argument"),
    ] {
        let answer = served.get(target, headers);
        assert_eq!((answer.0, header(&answer, "ingle-code")), (status, code), "{target}");
        let said: serde_json::Value = serde_json::from_slice(&answer.2).unwrap();
        assert!(!said["message"].as_str().unwrap().is_empty());
    }
    let port = u16::try_from(served.told.port).unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = ask(connect(), "HEAD", "/objects/docs/a%20b.bin", "");
    assert_eq!((head.0, head.2.len(), header(&head, "content-length")), (200, 0, "7"));
    assert_eq!(ask(connect(), "PUT", "/objects/docs/a%20b.bin", "content-length: 0\r\n").0, 400);
    let socket = ask(UnixStream::connect(&served.told.unix_socket).unwrap(), "GET", "/objects/docs/a%20b.bin", "");
    assert_eq!(socket.2, b"another");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_certificates_no_one_else_gets_in() {
    ingle_daemon::tls::install_provider();
    let own = TlsConfig { ca: pem("ca.pem"), cert: pem("server.pem"), key: pem("server.key") };
    let served = Served::start(own.clone()).await;
    assert!(served.told.tls);
    let port = u16::try_from(served.told.port).unwrap();
    let with = |tls: &TlsConfig| {
        let config = ingle_daemon::tls::client_config(tls).unwrap().unwrap();
        async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let name = tokio_rustls::rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let mut stream = tokio_rustls::TlsConnector::from(Arc::clone(&config)).connect(name, stream).await?;
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let request =
                "GET /objects/docs/a%20b.bin HTTP/1.1\r\nhost: x\r\nrange: bytes=0-3\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        }
    };
    assert!(with(&own).await.unwrap().starts_with("HTTP/1.1 206"));
    let stranger = TlsConfig { ca: pem("ca.pem"), cert: pem("stranger.pem"), key: pem("stranger.key") };
    assert!(with(&stranger).await.is_err());
    let nobody = TlsConfig { ca: pem("ca.pem"), ..TlsConfig::default() };
    assert!(with(&nobody).await.is_err());
    // Plaintext to it gets nothing either.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"GET /objects/docs/a%20b.bin HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 2"));
    served.stop().await;
}
