//! The storage suite: the NFS client, bulk to a node, weights and iSCSI, each beside a peer in the same run.

mod bulk;
mod delay;
mod gateway;
mod iscsi;
mod nfs;
mod plain;
mod weights;

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use futures::StreamExt as _;

use crate::report::{Better, Measure, Peer, Report};
use crate::{Options, say};

/// How much the suite moves.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Amounts {
    /// MiB of the big file
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    pub(crate) file_mib: u64,
    /// Small files, and ten times as many names to list
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub(crate) files: u64,
}

/// Takes samples in turn, ours and the peer's, the first of each thrown away, and notes the measure.
///
/// # Errors
/// Ours failed, or the peer failed after it had begun.
pub(crate) fn compare(
    options: &Options,
    report: &mut Report,
    name: &'static str,
    unit: &'static str,
    mut ours: impl FnMut() -> anyhow::Result<f64>,
    peer: &str,
    mut theirs: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    if !options.wants(name) {
        return Ok(());
    }
    say(&format!("{name}: beside {peer}"));
    ours().with_context(|| format!("{name}: ours"))?;
    let peer = match theirs() {
        Ok(_) => Ok(peer.to_owned()),
        Err(error) => {
            report.notes.push(format!("{name}: {peer} is missing: {error:#}"));
            Err(format!("{error:#}"))
        }
    };
    let (mut our_samples, mut peer_samples) = (Vec::new(), Vec::new());
    for _ in 0..options.samples {
        our_samples.push(ours()?);
        if peer.is_ok() {
            peer_samples.push(theirs()?);
        }
    }
    let peer = match peer {
        Ok(peer) => Peer::Measured(peer, peer_samples),
        Err(why) => Peer::Missing(name.to_owned(), why),
    };
    let measure = Measure { name, unit, better: Better::Higher, ours: our_samples, peer };
    say(&format!("  {}", measure.line()));
    report.measures.push(measure);
    Ok(())
}

/// Whether what is measured brings the file's own bytes: asked once, beside the clock.
///
/// # Errors
/// It fails, or the bytes are others.
pub(crate) async fn verify<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
    source: &Path,
    pieces: impl futures::Stream<Item = Result<bytes::Bytes, E>>,
) -> anyhow::Result<()> {
    let mut pieces = std::pin::pin!(pieces);
    let mut hasher = blake3::Hasher::new();
    while let Some(piece) = pieces.next().await {
        hasher.update(&piece.with_context(|| what.to_owned())?);
    }
    let (expected, _) = ingle_node_agent::weights::hash::file(source)?;
    anyhow::ensure!(hasher.finalize() == blake3::Hash::from(expected.0), "{what}: other bytes came than the file has");
    Ok(())
}

/// A folder for what is measured, on the disk that the workspace lies on: gone when it is dropped.
///
/// # Errors
/// It can't be made.
pub(crate) fn ground(root: &Path, prefix: &str) -> anyhow::Result<tempfile::TempDir> {
    let shares = root.join("target/bench-storage");
    std::fs::create_dir_all(&shares)?;
    Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(&shares)?)
}

/// Runs a program to its end with what it prints thrown away; the seconds it took.
///
/// # Errors
/// It isn't there, or it failed.
pub(crate) fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let name = command.get_program().to_string_lossy().into_owned();
    let begun = std::time::Instant::now();
    let output = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .output()
        .with_context(|| format!("running {name}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    anyhow::ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(seconds)
}

/// The suite.
///
/// # Errors
/// One of our own parts failed; a missing peer is a note.
pub(crate) fn run(options: &Options, amounts: &Amounts) -> anyhow::Result<()> {
    let (root, mut report, _) = crate::suite::begin(options, "storage")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads()).enable_all().build()?;
    if options.group("nfs.") {
        nfs::measure(options, amounts, &root, &runtime, &mut report)?;
    }
    if options.group("bulk.") || options.group("gateway.") {
        bulk::measure(options, amounts, &root, &runtime, &mut report)?;
    }
    if options.group("iscsi.") {
        iscsi::measure(options, amounts, &root, &runtime, &mut report)?;
    }
    if options.group("weights.") {
        weights::measure(options, amounts, &root, &runtime, &mut report)?;
    }
    crate::suite::end(options, &root, &report)
}
