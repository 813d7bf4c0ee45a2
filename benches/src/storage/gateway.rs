//! A gateway as people run it: the release binary, a settings file, a port.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ingle_daemon::config::TlsConfig;
use ingle_daemon::metrics::Metrics;
use ingle_node_agent::metrics::NodeMetrics;
use ingle_node_agent::storage::{Gateway as Client, Gateways};

const READY_MAX: Duration = Duration::from_secs(20);

/// A running gateway, ended when dropped.
pub(super) struct Gateway {
    child: Child,
    listen: SocketAddr,
    metrics: SocketAddr,
    tls: TlsConfig,
    _home: tempfile::TempDir,
}

impl Gateway {
    /// Starts it over exports, given by name and URL.
    ///
    /// # Errors
    /// It isn't built, or doesn't come up: what it said.
    pub(super) fn start(
        binaries: &Path,
        exports: &[(&str, &str)],
        settings: &str,
        tls: TlsConfig,
    ) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("ingle-bench-gateway-").tempdir()?;
        let (listen, metrics) = (free(), free());
        let mut text = format!(
            "listen = '{listen}'\nmetrics = '{metrics}'\nstate_dir = '{}'\n{settings}\n",
            home.path().join("state").display()
        );
        for (name, url) in exports {
            writeln!(text, "[exports.{name}]\nurl = '{url}'")?;
        }
        if let (Some(ca), Some(cert), Some(key)) = (&tls.ca, &tls.cert, &tls.key) {
            writeln!(text, "[tls]\nca = '{}'\ncert = '{}'\nkey = '{}'", ca.display(), cert.display(), key.display())?;
        }
        let (config, log) = (home.path().join("gateway.toml"), home.path().join("log"));
        std::fs::write(&config, text)?;
        let program = binaries.join("ingle-gateway");
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}: build the binaries first", program.display()))?;
        let mut gateway = Self { child, listen, metrics, tls, _home: home };
        let begun = Instant::now();
        while std::net::TcpStream::connect(listen).is_err() {
            let ended = gateway.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > READY_MAX {
                anyhow::bail!("ingle-gateway isn't ready: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(gateway)
    }

    /// A client with connections of its own. Call it inside a runtime.
    ///
    /// # Errors
    /// The certificates can't be used.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let gateways = Gateways::new(self.tls.clone(), NodeMetrics::new(&Metrics::new("bench")));
        Ok(gateways.get(&self.endpoint())?)
    }

    /// Its gRPC endpoint.
    pub(super) fn endpoint(&self) -> String {
        let scheme = if self.tls.connects() { "https" } else { "http" };
        format!("{scheme}://{}", self.listen)
    }

    /// The sum of a counter over its labels.
    ///
    /// # Errors
    /// Its metrics can't be read.
    pub(super) fn counted(&self, name: &str) -> anyhow::Result<u64> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(ingle_tests::cluster::counted(&page, name))
    }

    /// Peak of resident memory, in bytes.
    ///
    /// # Errors
    /// `/proc` doesn't say.
    pub(super) fn peak_bytes(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    ([127, 0, 0, 1], ingle_tests::ports::port()).into()
}
