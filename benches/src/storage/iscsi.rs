//! Our iSCSI initiator beside libiscsi's own bench, against Debian's target; and a file of a volume beside the raw unit.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use ingle_gateway::export::Export;
use ingle_gateway::export::iscsi::{IscsiExport, IscsiOptions};
use ingle_proto::ObjectPath;
use ingle_tests::tgt::{Tgt, ext4};
use tokio::runtime::Runtime;

use super::{Amounts, compare, nfs};
use crate::Options;
use crate::report::Report;

/// How long one sample of reads goes on, in seconds.
const SECONDS: u64 = 3;
/// A sector, as the peer counts.
const SECTOR: u32 = 512;
/// Bytes of one read in order, and how many of them in flight the peer is tried with.
const SEQUENTIAL: (u32, [u32; 3]) = (256 << 10, [4, 8, 16]);
const RANDOM: (u32, [u32; 3]) = (4 << 10, [16, 32, 64]);

/// Reads per second over a few seconds.
async fn unit(url: &str, bytes: u32, depth: u32, random: bool) -> anyhow::Result<f64> {
    let options = IscsiOptions { depth: depth as usize, ..IscsiOptions::default() };
    let export = IscsiExport::new(url, &options)?;
    let places = export.unit_bytes().await? / u64::from(bytes);
    let (begun, mut count, mut at) = (Instant::now(), 0_u64, 0);
    let mut next = || {
        at = if random { fastrand::u64(..places) } else { (at + 1) % places };
        export.read_unit(at * u64::from(bytes), bytes)
    };
    let mut reads: FuturesUnordered<_> = (0..depth).map(|_| next()).collect();
    while let Some(data) = reads.next().await {
        anyhow::ensure!(data?.len() == bytes as usize, "a read came short");
        count += 1;
        if count.is_multiple_of(64) && begun.elapsed() >= Duration::from_secs(SECONDS) {
            break;
        }
        reads.push(next());
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// The same by libiscsi's bench.
fn peer(url: &str, bytes: u32, depth: u32, random: bool) -> anyhow::Result<f64> {
    let mut command = Command::new("iscsi-perf");
    command.args(["-m", &depth.to_string(), "-b", &(bytes / SECTOR).to_string(), "-t", &SECONDS.to_string()]);
    if random {
        command.arg("-r");
    }
    let output = command.arg(url).stdin(Stdio::null()).output().context("running iscsi-perf (Debian: libiscsi-bin)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let average = said.rsplit("iops average ").next().and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    average.with_context(|| format!("iscsi-perf says no average: {}", said.trim()))
}

/// The depth at which the peer is fastest.
fn best_depth(url: &str, bytes: u32, depths: [u32; 3], random: bool) -> anyhow::Result<u32> {
    let mut best = (0.0, depths[0]);
    for depth in depths {
        let rate = peer(url, bytes, depth, random)?;
        best = if rate > best.0 { (rate, depth) } else { best };
    }
    Ok(best.1)
}

async fn file(export: &dyn Export, path: &ObjectPath, size: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut pieces = std::pin::pin!(ingle_gateway::file::chunks(export, path, 0, size));
    let mut total = 0;
    while let Some(piece) = pieces.next().await {
        total += std::hint::black_box(piece?).len() as u64;
    }
    anyhow::ensure!(total == size, "{total} bytes came of {size}");
    Ok(total as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

pub(super) fn measure(
    options: &Options,
    amounts: &Amounts,
    root: &Path,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let home = super::ground(root, "unit-")?;
    let mib = amounts.file_mib.min(1024);
    std::fs::create_dir(home.path().join("files"))?;
    nfs::big_file(&home.path().join("files/big"), mib)?;
    let image = home.path().join("unit.img");
    ext4(&home.path().join("files"), &image, (mib + 256) << 20, &[]).map_err(anyhow::Error::msg)?;
    let mut target = Tgt::start().map_err(anyhow::Error::msg)?;
    target.unit(1, &image).map_err(anyhow::Error::msg)?;
    let url = target.url(1);
    for (name, (bytes, depths), random) in [("iscsi.seq", SEQUENTIAL, false), ("iscsi.rand4k", RANDOM, true)] {
        let depth = best_depth(&url, bytes, depths, random).unwrap_or(depths[1]);
        compare(
            options,
            report,
            name,
            "reads/s",
            || runtime.block_on(unit(&url, bytes, depth, random)),
            &format!("libiscsi iscsi-perf, {} KiB at depth {depth}", bytes >> 10),
            || peer(&url, bytes, depth, random),
        )?;
    }
    let export = runtime.block_on(IscsiExport::connect(&url, &IscsiOptions::default()))?;
    let path = ObjectPath::new("big").map_err(|problem| anyhow::anyhow!("{problem}"))?;
    if options.wants("iscsi.ext4_file") {
        let read = ingle_gateway::file::chunks(&export, &path, 0, mib << 20);
        runtime.block_on(super::verify("iscsi.ext4_file", &home.path().join("files/big"), read))?;
    }
    let (bytes, depths) = SEQUENTIAL;
    compare(
        options,
        report,
        "iscsi.ext4_file",
        "GB/s",
        || runtime.block_on(file(&export, &path, mib << 20)),
        "the raw unit read in order by us",
        || Ok(runtime.block_on(unit(&url, bytes, depths[1], false))? * f64::from(bytes) / 1e9),
    )
}
