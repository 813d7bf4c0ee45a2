//! Our NFS client against NFS-Ganesha: one big file, many small ones a millisecond away, a listing, a durable write.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use ingle_gateway::export::Export;
use ingle_gateway::export::nfs::{NfsExport, NfsOptions};
use ingle_gateway::file;
use ingle_proto::ObjectPath;
use ingle_tests::nas::Ganesha;
use tokio::runtime::Runtime;

use super::{Amounts, compare, delay, timed};
use crate::Options;
use crate::report::Report;

/// A NAS in the house: a switch or two away.
const ROUND_TRIP: Duration = Duration::from_millis(1);
const SMALL_BYTES: usize = 8 << 10;
const DIRECTORIES: u64 = 100;
const WRITTEN_MIB: u64 = 512;
/// Small files asked for at once: what a few nodes ask for together.
const AT_ONCE: usize = 64;

/// A server with what is measured on it.
struct Nas {
    server: Ganesha,
    root: tempfile::TempDir,
    peer: PathBuf,
}

impl Nas {
    fn start(root: &Path, amounts: &Amounts) -> anyhow::Result<Self> {
        let home = super::ground(root, "nas-")?;
        big_file(&home.path().join("big"), amounts.file_mib)?;
        for (folder, count) in [("small", 1), ("many", DIRECTORIES)] {
            let files = if folder == "small" { amounts.files } else { amounts.files * 10 };
            for directory in 0..count {
                let at = home.path().join(folder).join(if count == 1 { String::new() } else { directory.to_string() });
                std::fs::create_dir_all(&at)?;
                for file in 0..files / count {
                    let data = [file as u8; SMALL_BYTES];
                    std::fs::write(at.join(format!("{file:06}")), if folder == "small" { &data[..] } else { &[] })?;
                }
            }
        }
        let server = Ganesha::start_caching(home.path()).map_err(anyhow::Error::msg)?;
        let peer = root.join(".cache/bench-nfs3/release/bench-nfs3-client");
        Ok(Self { server, root: home, peer })
    }

    /// The client, over a wire with a round trip if one is asked for.
    fn client(&self, runtime: &Runtime, wire: Option<&Wire>) -> anyhow::Result<Arc<dyn Export>> {
        let url = match wire {
            None => self.server.url(),
            Some(wire) => {
                let root = self.root.path().display();
                format!("nfs://127.0.0.1{root}?nfsport={}&mountport={}", wire.nfs.port(), wire.mount.port())
            }
        };
        Ok(Arc::new(runtime.block_on(NfsExport::connect(&url, &NfsOptions::default()))?))
    }

    fn wire(&self) -> anyhow::Result<Wire> {
        let (nfs, mount) = self.server.ports();
        let to = |port| delay::wire(SocketAddr::from(([127, 0, 0, 1], port)), ROUND_TRIP);
        Ok(Wire { nfs: to(nfs)?, mount: to(mount)? })
    }

    /// What the peer's program counted, and how long it took.
    fn peer(&self, what: &str, ports: (u16, u16), folder: &str, rest: &[String]) -> anyhow::Result<f64> {
        let output = Command::new(&self.peer)
            .args([what, &ports.0.to_string(), &ports.1.to_string()])
            .arg(self.root.path())
            .arg(folder)
            .args(rest)
            .output()
            .with_context(|| format!("running {}", self.peer.display()))?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let number = |field: &str| said[field].as_f64().with_context(|| format!("the peer says no {field}"));
        Ok(number("count")? / number("seconds")?)
    }
}

struct Wire {
    nfs: SocketAddr,
    mount: SocketAddr,
}

/// Bytes that no file system stores more cheaply than others.
pub(super) fn big_file(path: &Path, mib: u64) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"bytes of a bench");
    let mut reader = hasher.finalize_xof();
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        reader.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn build_peer(root: &Path) -> anyhow::Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(root.join("benches/peers/nfs3_client/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join(".cache/bench-nfs3"))
        .status()?;
    anyhow::ensure!(status.success(), "benches/peers/nfs3_client can't be built");
    Ok(())
}

fn path(text: &str) -> anyhow::Result<ObjectPath> {
    ObjectPath::new(text).map_err(|problem| anyhow::anyhow!("{problem}"))
}

async fn sequential(export: &dyn Export, path: &ObjectPath, size: u64) -> anyhow::Result<()> {
    let mut pieces = std::pin::pin!(file::chunks(export, path, 0, size));
    let mut total = 0;
    while let Some(piece) = pieces.next().await {
        total += std::hint::black_box(piece?).len() as u64;
    }
    anyhow::ensure!(total == size, "{total} bytes came of {size}");
    Ok(())
}

/// Lists a folder and reads all in it, each file with one READ: the listing brought the handles.
async fn small(export: &dyn Export, folder: &ObjectPath) -> anyhow::Result<f64> {
    let names = export.list(folder, usize::MAX).await?;
    let begun = Instant::now();
    let reads = names.iter().map(|entry| async move {
        let file = folder.join(&entry.name).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        let data = export.read_at(&file, 0, SMALL_BYTES as u32).await?;
        anyhow::ensure!(data.len() == SMALL_BYTES, "{} has {} bytes", file.display(), data.len());
        Ok(())
    });
    futures::stream::iter(reads).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(names.len() as f64 / begun.elapsed().as_secs_f64())
}

/// Every directory below, several at once.
async fn scan(export: &dyn Export, root: ObjectPath) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let (mut open, mut count) = (vec![root], 0);
    while !open.is_empty() {
        let lists = std::mem::take(&mut open).into_iter().map(|directory| async move {
            let entries = export.list(&directory, usize::MAX).await?;
            anyhow::Ok((directory, entries))
        });
        let mut lists = futures::stream::iter(lists).buffer_unordered(ingle_gateway::limits::LISTS_IN_FLIGHT);
        while let Some((directory, entries)) = lists.try_next().await? {
            count += entries.len();
            for entry in entries.iter().filter(|entry| entry.attr.kind == ingle_gateway::export::Kind::Directory) {
                open.push(directory.join(&entry.name).map_err(|problem| anyhow::anyhow!("{problem}"))?);
            }
        }
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

async fn write(export: &Arc<dyn Export>, mib: u64) -> anyhow::Result<f64> {
    let data = Bytes::from(vec![7; 1 << 20]);
    let begun = Instant::now();
    let mut writer = file::Writer::begin(export, &ObjectPath::root()).await?;
    for _ in 0..mib {
        writer.push(data.clone()).await?;
    }
    let sealed = writer.seal().await?;
    let seconds = begun.elapsed().as_secs_f64();
    sealed.discard().await;
    Ok((mib << 20) as f64 / seconds / 1e9)
}

pub(super) fn measure(
    options: &Options,
    amounts: &Amounts,
    root: &Path,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    build_peer(root)?;
    let nas = Nas::start(root, amounts)?;
    let near = nas.client(runtime, None)?;
    let bytes = amounts.file_mib << 20;
    let big = path("big")?;
    let url = format!(
        "nfs://127.0.0.1{}/big?version=3&nfsport={}&mountport={}",
        nas.root.path().display(),
        nas.server.ports().0,
        nas.server.ports().1
    );
    let gigabytes = bytes as f64 / 1e9;
    if options.wants("nfs.seq_2gib") {
        let read = file::chunks(&*near, &big, 0, bytes);
        runtime.block_on(super::verify("nfs.seq_2gib", &nas.root.path().join("big"), read))?;
    }
    compare(
        options,
        report,
        "nfs.seq_2gib",
        "GB/s",
        || {
            let begun = Instant::now();
            runtime.block_on(sequential(&*near, &big, bytes))?;
            Ok(gigabytes / begun.elapsed().as_secs_f64())
        },
        "libnfs nfs-cat",
        || Ok(gigabytes / timed(Command::new("nfs-cat").arg(&url))?),
    )?;
    let wire = nas.wire()?;
    let far = nas.client(runtime, Some(&wire))?;
    let ports = (wire.nfs.port(), wire.mount.port());
    let serial = "nfs3_client 0.9.1, one connection";
    let folder = path("small")?;
    compare(
        options,
        report,
        "nfs.small_1ms",
        "files/s",
        || runtime.block_on(small(&*far, &folder)),
        serial,
        || nas.peer("small", ports, "small", &[]),
    )?;
    compare(
        options,
        report,
        "nfs.scan_1ms",
        "entries/s",
        || runtime.block_on(scan(&*far, path("many")?)),
        serial,
        || nas.peer("scan", ports, "many", &[]),
    )?;
    let mib = WRITTEN_MIB.min(amounts.file_mib);
    compare(
        options,
        report,
        "nfs.write_commit",
        "GB/s",
        || runtime.block_on(write(&near, mib)),
        "nfs3_client 0.9.1, FILE_SYNC, one after another",
        || Ok(nas.peer("write", nas.server.ports(), "", &[(mib << 20).to_string()])? / 1e9),
    )
}
