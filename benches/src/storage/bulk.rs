//! From the gateway to a node: ranges over HTTP/1.1 beside a plain server, with TLS beside gRPC's stream; memory with many readers.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use ingle_daemon::config::TlsConfig;
use ingle_node_agent::bulk::{Bulk, Part, Wanted};
use ingle_node_agent::storage::Gateway as Client;
use ingle_proto::v1;
use ingle_tests::nas::Ganesha;
use tokio::runtime::Runtime;

use super::gateway::Gateway;
use super::{Amounts, compare, nfs, plain};
use crate::Options;
use crate::report::{Better, Measure, Peer, Report};

/// What a node asks for at a time, and how many parts at once: as `node-agent/src/limits.rs` has it.
const PART_BYTES: u64 = ingle_node_agent::limits::WEIGHTS_RANGE_BYTES;
const PARTS_AT_ONCE: usize = ingle_node_agent::limits::WEIGHTS_RANGES_IN_FLIGHT;
/// Connections over which gRPC is at its best here.
const BEST_STREAMS: u64 = 2;
const READERS: usize = 100;
/// Memory that the gateway may take beside its cache, and the cache that it has by default, in MiB.
const MEMORY_MIB: (f64, f64) = (256.0, 128.0);

fn object() -> v1::ObjectRef {
    v1::ObjectRef { export: "docs".into(), path: b"big".to_vec().into() }
}

/// A file in parts, thrown away as they come, buffers used again: gigabytes per second.
async fn parts<F, W>(bytes: u64, part: F) -> anyhow::Result<f64>
where
    F: Fn(u64, u64, Vec<u8>) -> W,
    W: Future<Output = anyhow::Result<Part>>,
{
    let begun = Instant::now();
    let spare = std::sync::Mutex::new(Vec::<Vec<u8>>::new());
    let taken = || spare.lock().expect("no panic holds it").pop().unwrap_or_default();
    futures::stream::iter((0..bytes).step_by(PART_BYTES as usize))
        .map(|offset| {
            let length = PART_BYTES.min(bytes - offset);
            let read = part(offset, length, taken());
            async move { read.await.map(|part| (length, part)) }
        })
        .buffer_unordered(PARTS_AT_ONCE)
        .try_for_each(|(length, part)| {
            let whole = part.bytes.len() as u64 == length;
            spare.lock().expect("no panic holds it").push(part.bytes);
            std::future::ready(if whole { Ok(()) } else { Err(anyhow::anyhow!("a part came short")) })
        })
        .await?;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

async fn through(client: &Client, bytes: u64) -> anyhow::Result<f64> {
    let object = object();
    let object = &object;
    parts(bytes, |offset, length, buffer| async move {
        let wanted = Wanted { object, token: None, offset, length, etag: None, lasting: false };
        Ok(client.part(wanted, buffer).await?)
    })
    .await
}

/// The file's parts in order.
fn in_order(client: &Client, bytes: u64) -> impl futures::Stream<Item = Result<bytes::Bytes, ingle_proto::Problem>> {
    futures::stream::iter((0..bytes).step_by(PART_BYTES as usize))
        .map(move |offset| async move {
            let object = object();
            let length = PART_BYTES.min(bytes - offset);
            let wanted = Wanted { object: &object, token: None, offset, length, etag: None, lasting: false };
            Ok(client.part(wanted, Vec::new()).await?.bytes.into())
        })
        .buffered(PARTS_AT_ONCE)
}

async fn from_plain(bulk: &Bulk, bytes: u64) -> anyhow::Result<f64> {
    let object = object();
    let object = &object;
    parts(bytes, |offset, length, buffer| async move {
        let wanted = Wanted { object, token: None, offset, length, etag: None, lasting: false };
        Ok(bulk.part(wanted, buffer).await?)
    })
    .await
}

/// The same file over gRPC, a stream on each of a few connections.
async fn over_grpc(gateway: &Gateway, tls: &TlsConfig, bytes: u64, streams: u64) -> anyhow::Result<f64> {
    let share = bytes / streams;
    let options = ingle_daemon::grpc::ConnectOptions::eager();
    let mut clients = Vec::new();
    for _ in 0..streams {
        let channel = ingle_daemon::grpc::connect(&gateway.endpoint(), tls, &options).await?;
        let client = v1::storage_client::StorageClient::new(channel);
        clients.push(client.max_decoding_message_size(ingle_proto::MESSAGE_BYTES_MAX));
    }
    let begun = Instant::now();
    let reads = clients.into_iter().zip(0..).map(|(mut client, number)| async move {
        let source = v1::read_request::Source::Object(object());
        let request =
            v1::ReadRequest { source: Some(source), offset: number * share, length: share, ..Default::default() };
        let mut stream = client.read(request).await?.into_inner();
        let mut total = 0;
        while let Some(message) = stream.message().await? {
            total += std::hint::black_box(message.data).len() as u64;
        }
        anyhow::ensure!(total == share, "{total} of {share} bytes came");
        Ok(())
    });
    futures::future::try_join_all(reads).await?;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

pub(super) fn measure(
    options: &Options,
    amounts: &Amounts,
    root: &Path,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let binaries = crate::suite::binaries(options)?;
    let home = super::ground(root, "bulk-")?;
    nfs::big_file(&home.path().join("big"), amounts.file_mib)?;
    let bytes = amounts.file_mib << 20;
    let url = format!("file://{}", home.path().display());
    let _inside = runtime.enter();

    let tcp_alone = "[ranges]\nsocket = '/dev/null/none'";
    let gateway = Gateway::start(&binaries, &[("docs", &url)], tcp_alone, TlsConfig::default())?;
    let client = gateway.client()?;
    let verified = |name: &'static str, client: &Client| {
        runtime.block_on(super::verify(name, &home.path().join("big"), in_order(client, bytes)))
    };
    verified("bulk.to_node", &client)?;
    let plain = Bulk::at(plain::serve(&home.path().join("big"))?);
    compare(
        options,
        report,
        "bulk.to_node",
        "GB/s",
        || runtime.block_on(through(&client, bytes)),
        "plain HTTP/1.1 server of a local file",
        || runtime.block_on(from_plain(&plain, bytes)),
    )?;
    let beside = Gateway::start(&binaries, &[("docs", &url)], "", TlsConfig::default())?;
    let over_socket = beside.client()?;
    verified("bulk.to_node_socket", &over_socket)?;
    compare(
        options,
        report,
        "bulk.to_node_socket",
        "GB/s",
        || runtime.block_on(through(&over_socket, bytes)),
        "the same over TCP",
        || runtime.block_on(through(&client, bytes)),
    )?;
    let pem = |name: &str| Some(root.join("daemon/tests/daemon/tls").join(name));
    let tls = |name: &str| TlsConfig {
        ca: pem("ca.pem"),
        cert: pem(&format!("{name}.pem")),
        key: pem(&format!("{name}.key")),
    };
    let secured = Gateway::start(&binaries, &[("docs", &url)], tcp_alone, tls("server"))?;
    let secure_client = secured.client()?;
    verified("bulk.to_node_tls", &secure_client)?;
    let sides = [("bulk.to_node_tls", "one stream", 1), ("bulk.to_node_tls_two", "two connections", BEST_STREAMS)];
    for (name, how, streams) in sides {
        compare(
            options,
            report,
            name,
            "GB/s",
            || runtime.block_on(through(&secure_client, bytes)),
            &format!("gRPC (tonic) with TLS, {how}"),
            || runtime.block_on(over_grpc(&secured, &tls("server"), bytes, streams)),
        )?;
    }
    memory(options, &home, &binaries, runtime, report, bytes)
}

/// A hundred nodes read a big file at once, each from another place, over NFS and gRPC.
fn memory(
    options: &Options,
    home: &tempfile::TempDir,
    binaries: &Path,
    runtime: &Runtime,
    report: &mut Report,
    bytes: u64,
) -> anyhow::Result<()> {
    const NAME: &str = "gateway.memory_100_readers";
    if !options.wants(NAME) {
        return Ok(());
    }
    let nas = Ganesha::start(home.path()).map_err(anyhow::Error::msg)?;
    let gateway = Gateway::start(binaries, &[("docs", &nas.url())], "", TlsConfig::default())?;
    let share = (bytes / READERS as u64).clamp(1, 64 << 20);
    let read = |number: u64| {
        let gateway = &gateway;
        async move {
            let client = gateway.client()?;
            for offset in (number * share..(number + 1) * share).step_by(PART_BYTES as usize) {
                let wanted = Wanted {
                    object: &object(),
                    token: None,
                    offset,
                    length: PART_BYTES.min((number + 1) * share - offset),
                    etag: None,
                    lasting: true,
                };
                client.part(wanted, Vec::new()).await.context("a reader")?;
            }
            anyhow::Ok(())
        }
    };
    runtime.block_on(futures::future::try_join_all((0..READERS as u64).map(read)))?;
    let peak = gateway.peak_bytes()? / f64::from(1 << 20);
    report.measures.push(Measure {
        name: NAME,
        unit: "MiB",
        better: Better::Lower,
        ours: vec![peak],
        peer: Peer::Measured("256 MiB and the configured cache".into(), vec![MEMORY_MIB.0 + MEMORY_MIB.1]),
    });
    Ok(())
}
