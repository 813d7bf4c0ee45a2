//! Weights on their way to nodes: how often the NAS is read for two of them, and how fast a local copy is checked.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use ingle_daemon::config::TlsConfig;
use ingle_daemon::metrics::Metrics;
use ingle_engine::fake::{FAKE_MODEL_FILE, FakeEngine};
use ingle_node_agent::config::ModelsRoot;
use ingle_node_agent::metrics::NodeMetrics;
use ingle_node_agent::storage::Gateways;
use ingle_node_agent::weights::{Cache, Catalogue, hash};
use ingle_proto::storage::Object;
use ingle_tests::nas::Ganesha;
use tokio::runtime::Runtime;

use super::gateway::Gateway;
use super::{Amounts, compare, nfs, timed};
use crate::Options;
use crate::report::{Better, Measure, Peer, Report};

/// What the engine of tests calls its weights.
const WEIGHTS_FILE: &str = "weights.bin";

/// A node's part in it: lists the models and copies the one there is into a cache of its own.
async fn node(endpoint: &str, cache: &Path) -> anyhow::Result<()> {
    let gateways = Gateways::new(TlsConfig::default(), NodeMetrics::new(&Metrics::new("bench")));
    let root = ModelsRoot::Object(Object::parse("nas://models/")?);
    let catalogue = Catalogue::new(
        Some(root),
        Arc::new(FakeEngine::new()),
        Arc::new(Cache::open(cache, 1 << 40)?),
        gateways,
        Some(endpoint.to_owned()),
        4096,
    );
    catalogue.refresh().await?;
    catalogue.ready("big", None).await?;
    Ok(())
}

pub(super) fn measure(
    options: &Options,
    amounts: &Amounts,
    root: &Path,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    const TWO: &str = "weights.two_nodes_bytes";
    let home = super::ground(root, "weights-")?;
    let model = home.path().join("models/big");
    std::fs::create_dir_all(&model)?;
    std::fs::write(model.join(FAKE_MODEL_FILE), r#"{"task":"embed","dimensions":16,"context":64}"#)?;
    let weights = model.join(WEIGHTS_FILE);
    nfs::big_file(&weights, amounts.file_mib)?;
    let bytes = amounts.file_mib << 20;
    if options.wants(TWO) {
        let nas = Ganesha::start(&home.path().join("models")).map_err(anyhow::Error::msg)?;
        // The file has to be older than the moment in which another change would look the same.
        std::thread::sleep(std::time::Duration::from_secs(6));
        let _inside = runtime.enter();
        let mut samples = Vec::new();
        for round in 0..options.samples {
            let binaries = crate::suite::binaries(options)?;
            let gateway = Gateway::start(&binaries, &[("models", &nas.url())], "", TlsConfig::default())?;
            let caches = [home.path().join(format!("a{round}")), home.path().join(format!("b{round}"))];
            let endpoint = gateway.endpoint();
            let began = Instant::now();
            let later = async {
                // The second node comes while the first one copies, as nodes do that start together.
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                node(&endpoint, &caches[1]).await
            };
            runtime.block_on(futures::future::try_join(node(&endpoint, &caches[0]), later))?;
            let seconds = began.elapsed().as_secs_f64();
            let read = gateway.counted("ingle_gateway_read_bytes_total")?;
            samples.push(bytes as f64 / read as f64);
            report.notes.push(format!("{TWO}: two copies of {} MiB in {seconds:.1} s", amounts.file_mib));
            caches.iter().try_for_each(std::fs::remove_dir_all)?;
        }
        report.measures.push(Measure {
            name: TWO,
            unit: "file ÷ NAS bytes",
            better: Better::Higher,
            ours: samples,
            peer: Peer::Measured("reading it once".into(), vec![1.0]),
        });
    }
    let gigabytes = bytes as f64 / 1e9;
    compare(
        options,
        report,
        "weights.local_cache",
        "GB/s",
        || {
            let begun = Instant::now();
            let (_, size) = hash::file(&weights)?;
            anyhow::ensure!(size == bytes, "{size} of {bytes} bytes were hashed");
            Ok(gigabytes / begun.elapsed().as_secs_f64())
        },
        "cat FILE",
        || Ok(gigabytes / timed(Command::new("cat").arg(&weights))?),
    )
}
