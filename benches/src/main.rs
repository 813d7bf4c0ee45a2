//! `make bench-main`, `make bench-ocr`, `make bench-cluster`, `make bench-storage`, `make bench-schedule`: engines, cluster and peers on one machine in one run, interleaved; medians and ratios.

mod cluster;
mod corpus;
mod machine;
mod ours;
mod peers;
mod report;
mod schedule;
mod storage;
mod suite;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures Inglenook beside its peers
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Embeddings, LLM, and what the cluster costs beside its bare engine
    Main(Options),
    /// Pages read by us, by rapidocr and by Tesseract, and through a cluster
    Ocr {
        #[command(flatten)]
        options: Options,
        /// Pages of each of the five kinds
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=50))]
        pages: u32,
    },
    /// A person beside a backlog, and what the cluster costs beside its bare engines
    Cluster(Options),
    /// The NAS, what stands between it and a node, and the peers of each
    Storage {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        amounts: storage::Amounts,
    },
    /// Who is served when, beside what others do, in virtual time; what a decision costs with two thousand nodes
    Schedule(Options),
}

/// How much to measure, and where things lie.
#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// Samples of each measure; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    samples: u32,
    /// Texts that one sample of embedding takes
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=4096))]
    texts: u32,
    /// Only measures whose name begins so
    #[arg(long, default_value = "")]
    only: String,
    /// Compute threads; default: every core
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Folder of the starter models
    #[arg(long, default_value = ".cache/models/starter", env = "INGLE_TEST_MODELS")]
    models: PathBuf,
    /// Folder of the daemons' and the CLI's binaries, built like this one; default: beside it
    #[arg(long, env = "INGLE_BIN_DIR")]
    binaries: Option<PathBuf>,
    /// llama.cpp: its `llama-bench`, or the folder that holds it
    #[arg(long, env = "LLAMA_CPP_BIN")]
    llama_cpp: Option<PathBuf>,
    /// Also keep the run in a dated folder below benches/runs
    #[arg(long, env = "KEEP", value_parser = clap::builder::BoolishValueParser::new(), default_value = "false")]
    keep: bool,
}

impl Options {
    fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(all, |threads| threads as usize)
    }

    fn wants(&self, measure: &str) -> bool {
        measure.starts_with(&self.only)
    }

    /// Whether any measure of a group, named by what all of them begin with, is wanted.
    fn group(&self, group: &str) -> bool {
        self.only.starts_with(group) || group.starts_with(&self.only)
    }
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().suite {
        Suite::Main(options) => {
            size_candles_pool(&options)?;
            suite::main(&options)
        }
        Suite::Cluster(options) => {
            size_candles_pool(&options)?;
            suite::busy::run(&options)
        }
        Suite::Ocr { options, pages } => suite::ocr(&options, pages),
        Suite::Storage { options, amounts } => storage::run(&options, &amounts),
        Suite::Schedule(options) => schedule::run(&options),
    }
}

/// Candle sizes its own pool from the environment, once per process and before any thread: so this program starts itself
/// again with it set.
fn size_candles_pool(options: &Options) -> anyhow::Result<()> {
    let name = "CANDLE_NUM_THREADS";
    let wanted = options.threads().to_string();
    if std::env::var(name).as_deref() != Ok(&wanted) {
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(name, wanted)
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// A line for the person at the terminal.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
