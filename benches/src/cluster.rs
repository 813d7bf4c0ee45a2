//! A real cluster on this machine: `ingle up` with one node, documents over the built-in NFS, asked over gRPC.

use std::io::BufReader;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ingle_proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use v1::inference_client::InferenceClient;
use v1::jobs_client::JobsClient;

/// The share's name, and the folder in it that jobs read.
const SHARE: &str = "bench";
const INPUT: &str = "in";
/// What a job may take before the bench gives up.
const JOB_MAX: Duration = Duration::from_secs(1200);
const STOP_MAX: Duration = Duration::from_secs(45);

/// A running cluster; stopped when dropped.
pub(crate) struct Cluster {
    up: Child,
    runtime: Runtime,
    channel: Channel,
    jobs: u32,
    // Last: the daemons read and write here until they have ended.
    _share: tempfile::TempDir,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// Writes one document per text into a share and starts a cluster over it.
    ///
    /// # Errors
    /// If the binaries are missing or the cluster doesn't come up.
    pub(crate) fn over_texts(binaries: &Path, models: &Path, texts: &[String]) -> anyhow::Result<Self> {
        let named = |(index, text): (usize, &String)| (format!("{index:05}.txt"), text.as_bytes().to_vec());
        Self::start(binaries, models, texts.iter().enumerate().map(named))
    }

    /// Likewise with any documents, given by name and bytes.
    ///
    /// # Errors
    /// As [`Self::over_texts`].
    pub(crate) fn start(
        binaries: &Path,
        models: &Path,
        documents: impl Iterator<Item = (String, Vec<u8>)>,
    ) -> anyhow::Result<Self> {
        let share = tempfile::Builder::new().prefix("ingle-bench-").tempdir()?;
        for (index, (name, bytes)) in documents.enumerate() {
            put(share.path(), INPUT, index, &name, &bytes)?;
        }
        Self::with(binaries, models, share)
    }

    /// Likewise over several folders, given with each document; they lie in memory where the system has a place for that, so
    /// that no disk is measured. What the daemons keep lies on the disk.
    ///
    /// # Errors
    /// As [`Self::over_texts`].
    pub(crate) fn in_memory(
        binaries: &Path,
        models: &Path,
        documents: &[(&str, String, Vec<u8>)],
    ) -> anyhow::Result<Self> {
        let mut named = tempfile::Builder::new();
        named.prefix("ingle-bench-");
        let filled = |share: tempfile::TempDir| -> std::io::Result<tempfile::TempDir> {
            for (index, (within, name, bytes)) in documents.iter().enumerate() {
                put(share.path(), within, index, name, bytes)?;
            }
            Ok(share)
        };
        // Some systems have the place, and little room in it.
        let share = named.tempdir_in("/dev/shm").and_then(filled).or_else(|_| named.tempdir().and_then(filled))?;
        Self::with(binaries, models, share)
    }

    fn with(binaries: &Path, models: &Path, share: tempfile::TempDir) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ingle-bench-").tempdir()?;
        let ingle = binaries.join("ingle");
        let log = std::fs::File::create(folder.path().join("up.log"))?;
        let mut up = Command::new(&ingle)
            .args(["--json", "up", "--nodes", "1", "--port-base", "0"])
            .arg("--share")
            .arg(format!("{SHARE}={}", share.path().display()))
            .arg("--models")
            .arg(std::path::absolute(models)?)
            .arg("--data")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}: build the binaries first", ingle.display()))?;
        let stdout = up.stdout.take().context("a pipe was asked for")?;
        let endpoint = match endpoint(BufReader::new(stdout)) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                stop(&mut up);
                let words = std::fs::read_to_string(folder.path().join("up.log")).unwrap_or_default();
                return Err(error.context(format!("ingle up: {}", words.trim())));
            }
        };
        // With a thread of its own: the connection's pings are answered while an engine is measured.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = {
            let _inside = runtime.enter();
            Channel::from_shared(endpoint)?.connect_lazy()
        };
        Ok(Self { up, runtime, channel, jobs: 0, _share: share, _folder: folder })
    }

    /// Works on every document of the share into a new place; the time from submitting to the job's end.
    pub(crate) fn job(&mut self, kind: v1::JobKind, documents: usize) -> anyhow::Result<Duration> {
        self.job_over(kind, INPUT, documents)
    }

    /// What a job over a folder is, into a new place.
    fn spec(&mut self, kind: v1::JobKind, folder: &str) -> v1::JobSpec {
        self.jobs += 1;
        let object = |path: String| v1::ObjectRef { export: SHARE.into(), path: path.into_bytes().into() };
        v1::JobSpec {
            kind: kind.into(),
            input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Tree(object(folder.into()))) }),
            output: Some(object(format!("out-{}", self.jobs))),
            ..v1::JobSpec::default()
        }
    }

    /// As [`Self::job`], over one of several folders.
    pub(crate) fn job_over(&mut self, kind: v1::JobKind, folder: &str, documents: usize) -> anyhow::Result<Duration> {
        let spec = self.spec(kind, folder);
        let mut client = JobsClient::new(self.channel.clone());
        let run = async {
            let begun = Instant::now();
            let request = v1::SubmitJobRequest { spec: Some(spec), ..v1::SubmitJobRequest::default() };
            let job = client.submit_job(request).await?.into_inner().job.context("an answer without a job")?;
            let request = v1::WatchJobRequest { job_id: job.job_id };
            let mut changes = client.watch_job(request).await?.into_inner();
            let mut last = None;
            while let Some(change) = changes.message().await? {
                last = change.job;
            }
            let (took, job) = (begun.elapsed(), last.context("a watch without a job")?);
            let published = job.counts.as_ref().map_or(0, |counts| counts.published);
            anyhow::ensure!(
                job.state == i32::from(v1::JobState::Succeeded) && published == documents as u64,
                "the job ended {:?} with {published} of {documents} documents: {}",
                job.state(),
                job.reason
            );
            Ok(took)
        };
        self.runtime.block_on(async { tokio::time::timeout(JOB_MAX, run).await? })
    }

    /// Submits a job over a folder that nobody waits for; its id.
    pub(crate) fn begin(&mut self, kind: v1::JobKind, folder: &str) -> anyhow::Result<String> {
        let request = v1::SubmitJobRequest { spec: Some(self.spec(kind, folder)), ..v1::SubmitJobRequest::default() };
        let mut client = JobsClient::new(self.channel.clone());
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(JOB_MAX, client.submit_job(request)).await })??;
        Ok(answer.into_inner().job.context("an answer without a job")?.job_id)
    }

    /// Lets a job go on, or keeps it from beginning anything.
    pub(crate) fn pause(&self, job: &str, paused: bool) -> anyhow::Result<()> {
        let (mut client, job_id) = (JobsClient::new(self.channel.clone()), job.to_owned());
        let steer = async {
            if paused {
                client.pause_job(v1::PauseJobRequest { job_id }).await.map(|_| ())
            } else {
                client.resume_job(v1::ResumeJobRequest { job_id }).await.map(|_| ())
            }
        };
        Ok(self.runtime.block_on(async { tokio::time::timeout(JOB_MAX, steer).await })??)
    }

    /// A job as it is.
    pub(crate) fn look(&self, job: &str) -> anyhow::Result<v1::Job> {
        let mut client = JobsClient::new(self.channel.clone());
        let request = v1::GetJobRequest { job_id: job.to_owned() };
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(JOB_MAX, client.get_job(request)).await })??;
        answer.into_inner().job.context("an answer without a job")
    }

    /// Milliseconds from asking to the first token of an answer.
    pub(crate) fn first_token_ms(&self, question: &str) -> anyhow::Result<f64> {
        let mut client = InferenceClient::new(self.channel.clone());
        let part = v1::ContentPart { part: Some(v1::content_part::Part::Text(question.into())) };
        let message = v1::ChatMessage { role: "user".into(), content: vec![part], ..v1::ChatMessage::default() };
        let request =
            v1::GenerateRequest { messages: vec![message], max_tokens: Some(1), ..v1::GenerateRequest::default() };
        let run = async {
            let begun = Instant::now();
            let mut frames = client.generate(request).await?.into_inner();
            let mut first = None;
            while let Some(frame) = frames.message().await? {
                if let Some(v1::generate_response::Frame::Delta(_)) = frame.frame {
                    first.get_or_insert_with(|| begun.elapsed());
                }
            }
            first.map(|first| first.as_secs_f64() * 1000.0).context("no token came")
        };
        self.runtime.block_on(async { tokio::time::timeout(JOB_MAX, run).await? })
    }
}

impl Cluster {
    /// Peak of resident memory of the node's process, in bytes.
    pub(crate) fn node_bytes(&self) -> anyhow::Result<f64> {
        // A child belongs to the thread that started it.
        let mut children = String::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.up.id()))?.filter_map(Result::ok) {
            children.push_str(&std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        }
        for child in children.split_whitespace() {
            let status = std::fs::read_to_string(format!("/proc/{child}/status"))?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if field("Name:") == Some("ingle-node") {
                let kib = field("VmHWM:").and_then(|text| text.trim_end_matches(" kB").parse::<f64>().ok());
                return kib.map(|kib| kib * 1024.0).context("/proc says nothing of the node's memory");
            }
        }
        anyhow::bail!("`ingle up` has no child called ingle-node")
    }
}

/// Puts a document into one of some folders, as a share has them.
fn put(share: &Path, within: &str, index: usize, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let place = share.join(within).join(format!("{:02}", index % 20));
    std::fs::create_dir_all(&place)?;
    std::fs::write(place.join(name), bytes)
}

/// The coordinator's address, from the line that `ingle up --json` prints when it is ready.
fn endpoint(lines: impl std::io::BufRead) -> anyhow::Result<String> {
    for line in lines.lines() {
        let line: Value = serde_json::from_str(&line?).context("a line that isn't JSON")?;
        if line["event"] == "ready" {
            return line["coordinator"].as_str().map(Into::into).context("ready, but no `coordinator`");
        }
    }
    anyhow::bail!("it ended before it was ready")
}

/// Asks for an end as a person's Ctrl-C would, and insists after a while.
fn stop(up: &mut Child) {
    let asked = i32::try_from(up.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = asked {
        let _ = kill_process(pid, Signal::TERM);
    }
    let begun = Instant::now();
    while begun.elapsed() < STOP_MAX {
        if !matches!(up.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = up.kill();
    let _ = up.wait();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        stop(&mut self.up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_coordinator() {
        let lines = "{\"event\":\"starting\"}\n{\"event\":\"ready\",\"coordinator\":\"http://127.0.0.1:1\"}\n";
        assert_eq!(endpoint(lines.as_bytes()).expect("ready"), "http://127.0.0.1:1");
        assert!(endpoint("{\"event\":\"starting\"}\n".as_bytes()).is_err());
        assert!(endpoint("oh no\n".as_bytes()).is_err());
    }
}
