//! The suites: each measure takes a sample of ours, then one of the peer's, and again; so both see the same weather.

pub(crate) mod busy;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ingle_engine::Task;
use ingle_engine_candle::CandleEngine;
use ingle_proto::v1;

use crate::cluster::Cluster;
use crate::machine::{self, Machine};
use crate::ours::embed::Encoder;
use crate::ours::llm::Decoder;
use crate::ours::ocr::Reader;
use crate::peers::llama_cpp::LlamaCpp;
use crate::peers::ocr::Readers;
use crate::peers::onnx::Onnx;
use crate::report::{Better, Measure, Peer, Report, median};
use crate::{Options, corpus, ours, peers, say};

const TEXTS_PER_S: &str = "embed.texts_per_s";
const PREFILL: &str = "llm.prefill.smollm2";
const DECODE: &str = "llm.decode.smollm2";
const FIRST_TOKEN: &str = "llm.first_token_added_ms";
const CLUSTER: &str = "embed.cluster_vs_engine";
const OCR_PAGES: &str = "ocr.pages_per_s";
const OCR_CLUSTER: &str = "ocr.cluster_vs_engine";
const OCR_MEMORY: &str = "ocr.peak_memory";

const SEED: u64 = 20_261_121;
const PREFILL_TOKENS: u32 = 512;
const DECODE_TOKENS: u32 = 128;
/// The peer runs at the best of these.
const PEER_BATCHES: [u32; 3] = [4, 8, 32];
/// Texts whose vectors are compared, and how alike they must be for the rates to be of the same work.
const COMPARED: usize = 16;
const COSINE_MIN: f64 = 0.999;
const QUESTION: &str = "In one sentence: why do people keep their documents at home?";

/// What every suite begins with: the workspace, an empty report, and the folder of models.
pub(crate) fn begin(options: &Options, name: &'static str) -> anyhow::Result<(PathBuf, Report, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("benches/ lies in the workspace")?.to_path_buf();
    let machine = Machine::read();
    let report =
        Report { name, notes: machine.doubts(), commit: machine::commit(&root), machine, measures: Vec::new() };
    say(&report.machine.notes());
    let models = if options.models.is_absolute() { options.models.clone() } else { root.join(&options.models) };
    Ok((root, report, models))
}

/// Prints the table and the notes, writes the files.
pub(crate) fn end(options: &Options, root: &Path, report: &Report) -> anyhow::Result<()> {
    say(&format!("\n{}", report.table()));
    report.notes.iter().for_each(|note| say(&format!("- {note}")));
    let folder = report.write(&root.join("benches/runs"), options.keep)?;
    say(&format!("written to {}", folder.strip_prefix(root).unwrap_or(&folder).display()));
    Ok(())
}

/// A peer's name, its samples and its peak of memory in bytes; or why it is missing.
type Other = Result<(String, Vec<f64>, f64), String>;

pub(crate) fn binaries(options: &Options) -> anyhow::Result<PathBuf> {
    match &options.binaries {
        Some(folder) => Ok(folder.clone()),
        None => Ok(std::env::current_exe()?.parent().context("a program lies in a folder")?.to_path_buf()),
    }
}

/// Runs every measure that is wanted, prints the table, writes the files.
///
/// # Errors
/// If one of our own parts fails; a missing peer is a note.
pub(crate) fn main(options: &Options) -> anyhow::Result<()> {
    let (root, mut report, models) = begin(options, "main")?;
    let texts = corpus::texts(options.texts as usize, SEED);
    if options.wants(TEXTS_PER_S) {
        embeddings(options, &root, &models, &texts, &mut report)?;
    }
    if options.wants(PREFILL) || options.wants(DECODE) {
        language_model(options, &models, &mut report)?;
    }
    if options.wants(FIRST_TOKEN) || options.wants(CLUSTER) {
        cluster(options, &models, &texts, &mut report)?;
    }
    end(options, &root, &report)
}

/// The OCR suite: the same pages read by our engine, by the peers, and by a cluster over NFS.
///
/// # Errors
/// If one of our own parts fails; a missing peer is a note.
pub(crate) fn ocr(options: &Options, per_kind: u32) -> anyhow::Result<()> {
    let (root, mut report, models) = begin(options, "ocr")?;
    let threads = options.threads();
    let pages = peers::ocr::pages(&root, per_kind)?;
    report.notes.push(format!("{} pages at 200 dpi: clean, degraded, receipts, two columns, invoices", pages.len()));
    let mut reader = Reader::load(&models, threads)?;
    let mut peers = Readers::start(&root, &pages, threads)?;
    let documents = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        std::fs::read(path).map(|bytes| (name, bytes))
    };
    let documents = pages.iter().map(documents).collect::<Result<Vec<_>, _>>()?;
    let mut cluster = Cluster::start(&binaries(options)?, &models, documents.into_iter())?;
    reader.read(&pages)?;
    cluster.job(v1::JobKind::Ocr, pages.len())?;
    let (mut alone, mut inside) = (Vec::new(), Vec::new());
    let mut others: Vec<(&str, Other)> = Vec::new();
    for engine in ["rapidocr", "rapidocr-angle", "tesseract"] {
        let known = peers.read(engine).map(|round| (round.name, Vec::new(), round.bytes));
        others.push((engine, known.map_err(|error| format!("{error:#}"))));
    }
    for _ in 0..options.samples {
        alone.push(rate(pages.len(), reader.read(&pages)?.as_secs_f64()));
        for (engine, known) in &mut others {
            if let Ok((_, samples, bytes)) = known {
                let round = peers.read(engine)?;
                samples.push(rate(pages.len(), round.seconds));
                *bytes = bytes.max(round.bytes);
            }
        }
        inside.push(rate(pages.len(), cluster.job(v1::JobKind::Ocr, pages.len())?.as_secs_f64()));
    }
    let node = cluster.node_bytes()?;
    for (engine, known) in &others {
        let peer = match known {
            Ok((name, samples, _)) => Peer::Measured(name.clone(), samples.clone()),
            Err(why) => Peer::Missing((*engine).into(), why.clone()),
        };
        let ours = alone.clone();
        report.measures.push(Measure { name: OCR_PAGES, unit: "pages/s", better: Better::Higher, ours, peer });
    }
    let peer = Peer::Measured("our engine alone".into(), alone);
    report.measures.push(Measure { name: OCR_CLUSTER, unit: "pages/s", better: Better::Higher, ours: inside, peer });
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let peer = match &others[0].1 {
        Ok((name, _, bytes)) => Peer::Measured(name.clone(), vec![mib(*bytes)]),
        Err(why) => Peer::Missing("rapidocr".into(), why.clone()),
    };
    let ours = vec![mib(node)];
    report.measures.push(Measure { name: OCR_MEMORY, unit: "MiB", better: Better::Lower, ours, peer });
    end(options, &root, &report)
}

fn rate(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn embeddings(
    options: &Options,
    root: &Path,
    models: &Path,
    texts: &[String],
    report: &mut Report,
) -> anyhow::Result<()> {
    say("embeddings: our engine beside ONNX Runtime");
    let folder = ours::find(&CandleEngine::new(options.threads()), models, Task::Embed)?;
    let mut encoder = Encoder::load(models, options.threads())?;
    let (_, vectors) = encoder.embed(&texts[..texts.len().min(COMPARED)])?;
    let name = "ONNX Runtime";
    let mut missing = String::new();
    let mut peer = match Onnx::start(root, &folder, texts, options.threads()) {
        Ok(mut peer) => {
            let likeness = least_cosine(&vectors, &peer.vectors(vectors.len())?);
            report
                .notes
                .push(format!("{TEXTS_PER_S}: least cosine between our vectors and the peer's is {likeness:.6}"));
            anyhow::ensure!(likeness >= COSINE_MIN, "cosine {likeness}: ours and the peer's don't do the same work");
            Some(peer)
        }
        Err(error) => {
            missing = format!("{error:#}");
            report.notes.push(format!("{name}: missing: {missing}"));
            None
        }
    };
    // The warm-up also finds the peer's best batch.
    let mut batch = (PEER_BATCHES[0], f64::INFINITY);
    if let Some(peer) = &mut peer {
        for size in PEER_BATCHES {
            let seconds = peer.embed(size)?;
            batch = if seconds < batch.1 { (size, seconds) } else { batch };
        }
    }
    let (mut our_samples, mut peer_samples) = (Vec::new(), Vec::new());
    for _ in 0..options.samples {
        our_samples.push(rate(texts.len(), encoder.embed(texts)?.0.as_secs_f64()));
        if let Some(peer) = &mut peer {
            peer_samples.push(rate(texts.len(), peer.embed(batch.0)?));
        }
    }
    let peer = match peer {
        Some(peer) => Peer::Measured(format!("{}, batches of {}", peer.name, batch.0), peer_samples),
        None => Peer::Missing(name.into(), missing),
    };
    report.measures.push(Measure {
        name: TEXTS_PER_S,
        unit: "texts/s",
        better: Better::Higher,
        ours: our_samples,
        peer,
    });
    Ok(())
}

fn least_cosine(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let same = ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.len() == b.len());
    if !same {
        return -1.0;
    }
    ours.iter().zip(theirs).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min)
}

fn language_model(options: &Options, models: &Path, report: &mut Report) -> anyhow::Result<()> {
    say("language model: our engine beside llama.cpp");
    let folder = ours::find(&CandleEngine::new(options.threads()), models, Task::Generate)?;
    let name = "llama.cpp";
    let peer = gguf(&folder)
        .and_then(|file| LlamaCpp::find(options.llama_cpp.as_deref(), file, options.threads()))
        .map_err(|error| format!("{error:#}"));
    if let Err(why) = &peer {
        report.notes.push(format!("{name}: missing: {why}"));
    }
    let mut decoder = Decoder::load(models, options.threads())?;
    for (measure, is_prefill) in [(PREFILL, true), (DECODE, false)] {
        if !options.wants(measure) {
            continue;
        }
        // One of each is thrown away: pages of weights are read, pools started.
        let mut ours = || if is_prefill { decoder.prefill(PREFILL_TOKENS) } else { decoder.decode(DECODE_TOKENS) };
        let theirs =
            |peer: &LlamaCpp| if is_prefill { peer.prefill(PREFILL_TOKENS) } else { peer.decode(DECODE_TOKENS) };
        ours()?;
        let (mut our_samples, mut peer_samples) = (Vec::new(), Vec::new());
        for _ in 0..options.samples {
            our_samples.push(ours()?);
            if let Ok(peer) = &peer {
                peer_samples.push(theirs(peer)?);
            }
        }
        let peer = match &peer {
            Ok(peer) => Peer::Measured(peer.name.clone(), peer_samples),
            Err(why) => Peer::Missing(name.into(), why.clone()),
        };
        report.measures.push(Measure {
            name: measure,
            unit: "tokens/s",
            better: Better::Higher,
            ours: our_samples,
            peer,
        });
    }
    Ok(())
}

fn gguf(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut files = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|ending| ending == "gguf")).context("no GGUF in the model's folder")
}

fn cluster(options: &Options, models: &Path, texts: &[String], report: &mut Report) -> anyhow::Result<()> {
    say("cluster: `ingle up` with one node beside the bare engine");
    let mut cluster = Cluster::over_texts(&binaries(options)?, models, texts)?;
    if options.wants(FIRST_TOKEN) {
        first_token(options, &cluster, models, FIRST_TOKEN, report)?;
    }
    if options.wants(CLUSTER) {
        let job = |cluster: &mut Cluster| cluster.job(v1::JobKind::Embed, texts.len());
        batch(options, &mut cluster, models, texts, CLUSTER, job, report)?;
    }
    Ok(())
}

/// What the cluster adds to the time of a first token.
fn first_token(
    options: &Options,
    cluster: &Cluster,
    models: &Path,
    name: &'static str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut decoder = Decoder::load(models, options.threads())?;
    decoder.first_token_ms(QUESTION)?;
    cluster.first_token_ms(QUESTION)?;
    let (mut alone, mut inside) = (Vec::new(), Vec::new());
    // Single calls are short and scatter: more of them.
    for _ in 0..options.samples * 4 {
        alone.push(decoder.first_token_ms(QUESTION)?);
        inside.push(cluster.first_token_ms(QUESTION)?);
    }
    let engine = median(&alone);
    report.notes.push(format!(
        "{name}: the first token comes {:.2} ms after the question from the cluster, {engine:.2} ms from the engine; \
         value is the difference, ratio is engine / cluster",
        median(&inside)
    ));
    let peer = Peer::Measured("our engine alone".into(), alone);
    report.measures.push(Measure { name, unit: "ms", better: Better::Added, ours: inside, peer });
    Ok(())
}

/// Texts of a folder job per second beside the engine's.
fn batch(
    options: &Options,
    cluster: &mut Cluster,
    models: &Path,
    texts: &[String],
    name: &'static str,
    job: impl Fn(&mut Cluster) -> anyhow::Result<std::time::Duration>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut encoder = Encoder::load(models, options.threads())?;
    encoder.embed(&texts[..texts.len().min(COMPARED)])?;
    job(cluster)?;
    let (mut alone, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..options.samples {
        alone.push(rate(texts.len(), encoder.embed(texts)?.0.as_secs_f64()));
        inside.push(rate(texts.len(), job(cluster)?.as_secs_f64()));
    }
    let peer = Peer::Measured("our engine alone".into(), alone);
    report.measures.push(Measure { name, unit: "texts/s", better: Better::Higher, ours: inside, peer });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_is_the_least_cosine() {
        let one = vec![vec![1.0, 0.0], vec![0.0, 2.0]];
        assert!((least_cosine(&one, &one) - 1.0).abs() < 1e-9);
        assert!(least_cosine(&one, &[vec![1.0, 0.0], vec![2.0, 0.0]]).abs() < 1e-9);
        assert_eq!(least_cosine(&one, &one[..1]), -1.0);
    }
}
