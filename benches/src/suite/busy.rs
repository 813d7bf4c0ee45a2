//! The suite `cluster`: what a person and a job feel of each other, and of the cluster around the engines.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use ingle_proto::v1;

use super::{QUESTION, SEED, batch, begin, binaries, end, first_token};
use crate::cluster::Cluster;
use crate::peers;
use crate::report::{Better, Measure, Peer};
use crate::{Options, corpus, say};

const BACKLOG: &str = "chat.ttft_p95_backlog_vs_idle";
const BATCH: &str = "overhead.batch";
const FIRST_TOKEN: &str = "overhead.first_token_ms";

/// Folders of the share: texts that are embedded in time, and what keeps the node busy.
const TEXTS: &str = "texts";
const MANY_TEXTS: &str = "many-texts";
const PAGES: &str = "pages";
/// Texts of the backlog for each text of a sample, and how often each page is in it.
const TEXTS_TIMES: usize = 20;
const PAGES_TIMES: usize = 40;
/// Questions of one sample: its 95th percentile is the last but one.
const QUESTIONS: usize = 20;
/// How long a backlog may take to be at work, or to rest.
const TURN_MAX: Duration = Duration::from_secs(300);

/// Runs every measure that is wanted, prints the table, writes the files.
///
/// # Errors
/// If one of our own parts fails.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (root, mut report, models) = begin(options, "cluster")?;
    let texts = corpus::texts(options.texts as usize, SEED);
    let mut documents: Vec<(&str, String, Vec<u8>)> = Vec::new();
    let named = |(index, text): (usize, &String)| (TEXTS, format!("{index:05}.txt"), text.as_bytes().to_vec());
    documents.extend(texts.iter().enumerate().map(named));
    let mut pages = 0;
    if options.wants(BACKLOG) {
        let many = corpus::texts(texts.len() * TEXTS_TIMES, SEED + 1);
        let named = |(index, text): (usize, String)| (MANY_TEXTS, format!("{index:06}.txt"), text.into_bytes());
        documents.extend(many.into_iter().enumerate().map(named));
        for path in peers::ocr::pages(&root, 2)? {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            documents.extend((0..PAGES_TIMES).map(|copy| (PAGES, format!("{copy:03}-{name}"), bytes.clone())));
            pages += PAGES_TIMES;
        }
    }
    let mut cluster = Cluster::in_memory(&binaries(options)?, &models, &documents)?;
    drop(documents);
    if options.wants(FIRST_TOKEN) {
        say("first token: the cluster beside the bare engine");
        first_token(options, &cluster, &models, FIRST_TOKEN, &mut report)?;
    }
    if options.wants(BATCH) {
        say("batch work: the cluster beside the bare engine");
        let job = |cluster: &mut Cluster| cluster.job_over(v1::JobKind::Embed, TEXTS, texts.len());
        batch(options, &mut cluster, &models, &texts, BATCH, job, &mut report)?;
    }
    if options.wants(BACKLOG) {
        say("chats: beside a backlog of pages and texts, and on the idle cluster");
        let (mut busy, mut idle) = (Vec::new(), Vec::new());
        let mut backlog = Backlog::new(&mut cluster)?;
        cluster.first_token_ms(QUESTION)?;
        for _ in 0..options.samples {
            backlog.works(&mut cluster)?;
            busy.push(p95(&cluster)?);
            backlog.rests(&cluster)?;
            idle.push(p95(&cluster)?);
        }
        report.notes.push(format!(
            "{BACKLOG}: 95th percentile of {QUESTIONS} questions, each sample; the backlog is {pages} pages and {} texts, \
             at work before the first question and after the last",
            texts.len() * TEXTS_TIMES
        ));
        let peer = Peer::Measured("the same cluster, idle".into(), idle);
        report.measures.push(Measure { name: BACKLOG, unit: "ms", better: Better::Lower, ours: busy, peer });
    }
    end(options, &root, &report)
}

/// Milliseconds within which 95 of a hundred questions have their first token.
fn p95(cluster: &Cluster) -> anyhow::Result<f64> {
    let mut times = (0..QUESTIONS).map(|_| cluster.first_token_ms(QUESTION)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(percentile95(&mut times))
}

fn percentile95(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get((times.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Two jobs that would keep the node busy for long: one of each kind, paused or not.
struct Backlog([(v1::JobKind, &'static str, String); 2]);

impl Backlog {
    fn new(cluster: &mut Cluster) -> anyhow::Result<Self> {
        let mut job = |kind, folder| -> anyhow::Result<_> { Ok((kind, folder, cluster.begin(kind, folder)?)) };
        Ok(Self([job(v1::JobKind::Ocr, PAGES)?, job(v1::JobKind::Embed, MANY_TEXTS)?]))
    }

    /// Both are at work; one that was done begins again.
    fn works(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for (kind, folder, job) in &mut self.0 {
            match cluster.look(job)?.state() {
                v1::JobState::Paused => cluster.pause(job, false)?,
                v1::JobState::Succeeded => *job = cluster.begin(*kind, folder)?,
                _ => {}
            }
        }
        self.until(cluster, "to be at work", |running| running > 0)
    }

    /// Nothing of them runs.
    fn rests(&self, cluster: &Cluster) -> anyhow::Result<()> {
        for (_, _, job) in &self.0 {
            let state = cluster.look(job)?.state();
            anyhow::ensure!(
                state == v1::JobState::Running,
                "the backlog ended under the questions: more pages or texts"
            );
            cluster.pause(job, true)?;
        }
        self.until(cluster, "to rest", |running| running == 0)
    }

    fn until(&self, cluster: &Cluster, what: &str, wanted: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        for (_, _, job) in &self.0 {
            loop {
                let job = cluster.look(job)?;
                if wanted(job.counts.map_or(0, |counts| counts.running)) {
                    break;
                }
                anyhow::ensure!(begun.elapsed() < TURN_MAX, "waited for job {} {what}: {}", job.job_id, job.reason);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_95th_percentile_is_the_nineteenth_of_twenty() {
        let mut times: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile95(&mut times), 19.0);
        assert_eq!(percentile95(&mut [4.0]), 4.0);
        assert_eq!(percentile95(&mut []), 0.0);
    }
}
